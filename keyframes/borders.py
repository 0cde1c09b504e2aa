"""Where the parts of a stream end: full, or at a cut, so that a part shows one shot where it can.

Knows nothing of what becomes of the parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from frames import Frame
from keyframes.cuts import CutDecision, CutFinder
from keyframes.detector import GRID
from keyframes.novelty import downsample


def split_at_cuts(frames: Iterable[Frame], least: int, most: int) -> Iterator[list[Frame]]:
    """All frames in order, in runs of at most `most`, given `keyframes.cuts.LAG_FRAMES` later than
    they come.

    A run ends before a cut where it has `least` frames already, so that quick cuts don't make many
    small ones.
    """
    part: list[Frame] = []
    for frame, is_cut in mark_cuts(frames):
        if is_cut and len(part) >= least:
            yield part
            part = []
        part.append(frame)
        if len(part) == most:
            yield part
            part = []
    if part:
        yield part


def mark_cuts(frames: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Every frame, and whether it is the first one of a shot."""
    finder = CutFinder()
    waiting: deque[Frame] = deque()

    def told(judged: Sequence[CutDecision]) -> Iterator[tuple[Frame, bool]]:
        return ((waiting.popleft(), one.is_cut) for one in judged)

    for frame in frames:
        waiting.append(frame)
        yield from told(finder.step(downsample([frame.image], GRID)))
    yield from told(finder.flush())
