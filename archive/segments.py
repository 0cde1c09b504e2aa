"""Where the segments of a video end: at cuts, within least and most seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from frames import Frame
from keyframes.chunk_builder import split_at_cuts


def segments(
    frames: Iterable[Frame], fps: float, min_seconds: float, max_seconds: float
) -> Iterator[list[Frame]]:
    """All frames in order, segment by segment. A last one that would be too short joins the one
    before it, which may be longer than `max_seconds` by that.
    """
    least = max(1, round(min_seconds * fps))
    most = max(least, round(max_seconds * fps))
    waiting: list[Frame] | None = None
    for part in split_at_cuts(frames, least, most):
        if waiting is not None and len(part) < least:
            waiting += part
            continue
        if waiting is not None:
            yield waiting
        waiting = part
    if waiting is not None:
        yield waiting
