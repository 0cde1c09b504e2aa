"""Which frames of a stream stand for what it shows: its head and tail, cuts, where enough has
changed, long gaps.

Frames come in batches of any size and are decided `LAG_FRAMES` later; memory is bounded, so a
stream need not end. Knows nothing of models, tokens or files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from frames import Frame
from keyframes.cuts import LAG_FRAMES, CutDecision, CutFinder
from keyframes.novelty import ReferenceFrame, downsample, otsu

__all__ = ["GRID", "LAG_FRAMES", "Keyframe", "KeyframeDetector"]

GRID = (9, 16)  # rows and columns of patches
CHANGE_SHARE = 0.5  # of the patches that must be new
PATCH_BORDERS = (0.1, 0.5)  # Otsu's border between old and new patches lies in there
SETTLE_SECONDS = 1.5  # what changes is waited for so long, to be shown as it comes to rest
CHECKS_PER_SECOND = 8  # for change; cuts are looked for in every frame
BLANK_LEVELS = 12  # a picture whose darkest and brightest places differ by no more shows nothing

Why = Literal["head", "cut", "change", "gap", "tail"]


@dataclass(frozen=True)
class Keyframe:
    """`index` and `pts_seconds` are the frame's. A "cut" is the first frame of a new shot."""

    index: int
    pts_seconds: float
    why: Why


class KeyframeDetector:
    """One stream's keyframes: `step` with frames as they come, `flush` at the end.

    gap_seconds: where nothing happens for so long there is a keyframe nevertheless; the last frame
    is one if half of
        that has passed. Raises ValueError where it is not positive.
    """

    def __init__(self, gap_seconds: float = 30.0, device: torch.device | str = "cpu") -> None:
        if not gap_seconds > 0:
            raise ValueError(f"gap_seconds must be positive, not {gap_seconds}")
        self._gap_seconds = gap_seconds
        self._device = device
        self._cuts = CutFinder()
        self._kept = ReferenceFrame()
        # index and time of the frames not judged yet
        self._waiting: deque[tuple[int, float]] = deque()
        self._newest: tuple[int, float] | None = None
        self._last: Keyframe | None = None
        self._changed_from_seconds: float | None = None
        self._next_check_seconds = float("-inf")

    def step(self, frames: Sequence[Frame]) -> list[Keyframe]:
        """The keyframes that these frames decide: all but those among the newest LAG_FRAMES."""
        if not frames:
            return []
        self._waiting.extend((frame.index, frame.pts_seconds) for frame in frames)
        self._newest = self._waiting[-1]
        return self._decide(
            self._cuts.step(downsample([frame.image for frame in frames], GRID, self._device))
        )

    def flush(self) -> list[Keyframe]:
        """The keyframes among the newest frames."""
        found = self._decide(self._cuts.flush())
        if (
            self._last
            and self._newest
            and self._newest[1] - self._last.pts_seconds >= self._gap_seconds / 2
        ):
            self._last = Keyframe(*self._newest, "tail")
            found.append(self._last)
        return found

    def _decide(self, judged: Sequence[CutDecision]) -> list[Keyframe]:
        """The content of a keyframe is what the frames behind it are compared with."""
        moments = [self._waiting.popleft() for _ in judged]
        due = [k for k, (_, pts_seconds) in enumerate(moments) if self._is_due(pts_seconds)]
        changed = self._changed(judged, due)
        found: list[Keyframe] = []
        for k, (index, pts_seconds) in enumerate(moments):
            why = self._why(judged[k], pts_seconds, changed.get(k))
            if why is not None:
                self._last = Keyframe(index, pts_seconds, why)
                self._changed_from_seconds = None
                found.append(self._last)
                self._kept.keep(judged[k].picture)
                changed = self._changed(judged, [later for later in due if later > k])
        return found

    def _is_due(self, pts_seconds: float) -> bool:
        if pts_seconds < self._next_check_seconds:
            return False
        self._next_check_seconds = pts_seconds + 1 / CHECKS_PER_SECOND
        return True

    def _why(self, frame: CutDecision, pts_seconds: float, changed: bool | None) -> Why | None:
        """changed: None where that was not looked at."""
        if self._last is None:
            return "head"
        if frame.is_cut:
            return "cut"
        if changed is not None and self._settles(frame, pts_seconds, changed):
            return "change"
        return "gap" if pts_seconds - self._last.pts_seconds >= self._gap_seconds else None

    def _settles(self, frame: CutDecision, pts_seconds: float, changed: bool) -> bool:
        """Whether what has changed comes to rest, or has been waited for long enough."""
        if not changed:
            self._changed_from_seconds = None
            return False
        if self._changed_from_seconds is None:
            self._changed_from_seconds = pts_seconds
        return pts_seconds - self._changed_from_seconds >= SETTLE_SECONDS or frame.is_still

    def _changed(self, judged: Sequence[CutDecision], places: Sequence[int]) -> dict[int, bool]:
        """Whether most of a picture is new and it shows anything, for each of these places."""
        if not places:
            return {}
        pictures = torch.stack([judged[k].picture for k in places])
        maps = self._kept.novelty(pictures).flatten(1)
        share = (maps > otsu(maps, *PATCH_BORDERS)[:, None]).float().mean(1)
        shows = (pictures.flatten(2).amax(2) - pictures.flatten(2).amin(2)).amax(1) > BLANK_LEVELS
        return dict(zip(places, ((share >= CHANGE_SHARE) & shows).tolist(), strict=True))
