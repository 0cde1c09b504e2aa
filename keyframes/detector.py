"""Which frames of a stream stand for what it shows: its head and tail, cuts, where enough has
changed, long gaps.

Frames come in batches of any size and are decided `LAG_FRAMES` later; memory is bounded, so a
stream need not end. Knows nothing of models, tokens or files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from frames import Frame
from keyframes.cuts import LAG_FRAMES, CutDecision, CutFinder
from keyframes.frame_diff import FrameDiff, KeyframeKind, measure_frames
from keyframes.novelty import ReferenceFrame, otsu

__all__ = ["LAG_FRAMES", "Keyframe", "KeyframeDetector"]

CHANGE_SHARE = 0.5  # of the patches that must be new
PATCH_BORDERS = (0.1, 0.5)  # Otsu's border between old and new patches lies in there
SETTLE_SECONDS = 1.5  # what changes is waited for so long, to be shown as it comes to rest
CHECKS_PER_SECOND = 8  # for change; cuts are looked for in every frame
BLANK_LEVELS = 12  # a picture whose darkest and brightest places differ by no more shows nothing


@dataclass(frozen=True)
class Keyframe:
    """`index` and `pts_seconds` are the frame's. A "cut" is the first frame of a new shot."""

    index: int
    pts_seconds: float
    kind: KeyframeKind


class KeyframeDetector:
    """One stream's keyframes: `judge` frames as they come, `flush` at the end."""

    def __init__(self, gap_seconds: float = 30.0) -> None:
        """gap_seconds: where nothing happens for so long there is a keyframe nevertheless; the last
        frame is one if half of that has passed. Raises ValueError where it is not positive.
        """
        if not gap_seconds > 0:
            raise ValueError(f"gap_seconds must be positive, not {gap_seconds}")
        self._gap_seconds = gap_seconds
        self._cuts = CutFinder()
        self._reference = ReferenceFrame()
        self._waiting: deque[FrameDiff] = deque()  # frames not judged yet
        self._last: Keyframe | None = None
        self._changed_from_seconds: float | None = None
        self._next_check_seconds = float("-inf")

    @property
    def num_waiting(self) -> int:
        """Frames that have come and are not judged yet."""
        return len(self._waiting)

    def judge(self, diffs: Sequence[FrameDiff]) -> list[FrameDiff]:
        """The frames that these decide, in order, each with the kind of keyframe that it is: all
        but the newest LAG_FRAMES.
        """
        if not diffs:
            return []
        self._waiting.extend(diffs)
        pictures = torch.stack([diff.coarse for diff in diffs])
        return self._decide(self._cuts.step(pictures, [diff.pts_seconds for diff in diffs]))

    def flush(self) -> list[FrameDiff]:
        """The newest frames, judged by what there is."""
        judged = self._decide(self._cuts.flush())
        if judged and self._last and judged[-1].keyframe is None:
            newest = judged[-1]
            if newest.pts_seconds - self._last.pts_seconds >= self._gap_seconds / 2:
                judged[-1] = self._keyframe(newest, "tail")
        return judged

    def step(self, frames: Sequence[Frame]) -> list[Keyframe]:
        """The keyframes that these frames decide, for those who want nothing else."""
        return keyframes_of(self.judge(measure_frames(frames)))

    def _decide(self, decisions: Sequence[CutDecision]) -> list[FrameDiff]:
        """The content of a keyframe is what the frames after it are compared with."""
        judged = [self._waiting.popleft() for _ in decisions]
        due = [k for k, diff in enumerate(judged) if self._is_due(diff.pts_seconds)]
        changed = self._changed(decisions, due)
        for k, diff in enumerate(judged):
            kind = self._kind(decisions[k], diff.pts_seconds, changed.get(k))
            if kind is not None:
                judged[k] = self._keyframe(diff, kind)
                self._changed_from_seconds = None
                self._reference.keep(decisions[k].picture)
                changed = self._changed(decisions, [later for later in due if later > k])
        return judged

    def _keyframe(self, diff: FrameDiff, kind: KeyframeKind) -> FrameDiff:
        self._last = Keyframe(diff.frame.index, diff.pts_seconds, kind)
        return replace(diff, keyframe=kind)

    def _is_due(self, pts_seconds: float) -> bool:
        if pts_seconds < self._next_check_seconds:
            return False
        self._next_check_seconds = pts_seconds + 1 / CHECKS_PER_SECOND
        return True

    def _kind(
        self, frame: CutDecision, pts_seconds: float, changed: bool | None
    ) -> KeyframeKind | None:
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

    def _changed(self, decisions: Sequence[CutDecision], places: Sequence[int]) -> dict[int, bool]:
        """Whether most of a picture is new and it shows anything, for each of these places."""
        if not places:
            return {}
        pictures = torch.stack([decisions[k].picture for k in places])
        maps = self._reference.novelty(pictures).flatten(1)
        share = (maps > otsu(maps, *PATCH_BORDERS)[:, None]).float().mean(1)
        shows = (pictures.flatten(2).amax(2) - pictures.flatten(2).amin(2)).amax(1) > BLANK_LEVELS
        return dict(zip(places, ((share >= CHANGE_SHARE) & shows).tolist(), strict=True))


def keyframes_of(judged: Sequence[FrameDiff]) -> list[Keyframe]:
    """The keyframes among frames that were judged."""
    return [
        Keyframe(diff.frame.index, diff.pts_seconds, diff.keyframe)
        for diff in judged
        if diff.keyframe is not None
    ]
