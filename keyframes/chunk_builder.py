"""Puts the frames of a stream together to chunks, and says which of them are keyframes.

A chunk ends when it is full, when it covers enough time, or at a cut. Deterministic: nothing here
looks at a clock. Knows nothing of threads or of what becomes of a chunk.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from frames import ROUNDING_SECONDS, Frame
from keyframes.detector import KeyframeDetector
from keyframes.frame_diff import FrameDiff, measure_frames

MEASURE_FRAMES = 8  # of a file, measured in one batch

Measure = Callable[[Sequence[Frame]], list[FrameDiff]]


@dataclass(frozen=True, eq=False)
class ChunkFrames(Sequence[Frame]):
    """The frames of one chunk, measured.

    late_keyframes: frames of earlier chunks that turned out to be keyframes since.
    """

    diffs: Sequence[FrameDiff]
    late_keyframes: Sequence[FrameDiff] = ()

    def __len__(self) -> int:
        return len(self.diffs)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        if isinstance(index, slice):
            return [diff.frame for diff in self.diffs[index]]
        return self.diffs[index].frame


@dataclass(frozen=True)
class ChunkLimits:
    """When a chunk ends: with so many frames, or when its next frame is `max_seconds` after its
    first; also at a cut once it has `cut_frames`, so that quick cuts do not make many small chunks
    (0: never).
    """

    max_frames: int
    max_seconds: float
    cut_frames: int = 0


class ChunkBuilder:
    """Chunks of one stream. Every frame goes into exactly one, in order.

    Whether a frame is a keyframe is known LAG_FRAMES later. With `waits` a frame joins a chunk only
    then, so that all is known of a chunk's frames. Without, it joins at once and what turns out
    later is told with a later chunk.
    """

    def __init__(self, limits: ChunkLimits, detector: KeyframeDetector, waits: bool) -> None:
        self._limits = limits
        self._detector = detector
        self._waits = waits or limits.cut_frames > 0
        self._open: list[FrameDiff] = []
        self._unjudged: deque[FrameDiff] = deque()
        self._num_given = (
            0  # of the unjudged frames, the first ones: those that have left in a chunk
        )
        self._late: list[FrameDiff] = []

    @property
    def num_open(self) -> int:
        """Frames that have come and are in no chunk yet."""
        return len(self._open) if not self._waits else len(self._open) + self._num_held

    @property
    def _num_held(self) -> int:
        """Frames that wait for their verdict outside of any chunk."""
        return len(self._unjudged) - self._num_given

    def add(self, diffs: Sequence[FrameDiff]) -> list[ChunkFrames]:
        """The chunks that these frames complete."""
        complete: list[ChunkFrames] = []
        for diff in diffs:
            self._unjudged.append(diff)
            if not self._waits:
                complete += self._place(diff)
        return complete + self._take_verdicts(self._detector.judge(diffs))

    def judge_rest(self) -> list[ChunkFrames]:
        """The stream ends: the chunks that are complete now that all of its frames are judged."""
        return self._take_verdicts(self._detector.flush())

    def finish(self) -> list[ChunkFrames]:
        """The stream ends: all that is left."""
        return [*self.judge_rest(), *self._close()]

    def take_late_keyframes(self) -> list[FrameDiff]:
        """Keyframes in frames that have left, which came too late for the last chunk."""
        late, self._late = self._late, []
        return late

    def close_open(self) -> list[ChunkFrames]:
        """All frames that are in no chunk yet, without waiting for what is not known of them."""
        complete: list[ChunkFrames] = []
        if self._waits:
            while self._num_held:
                diff = self._unjudged[self._num_given]
                self._num_given += 1
                complete += self._place(diff)
        return complete + self._close()

    def _take_verdicts(self, judged: Sequence[FrameDiff]) -> list[ChunkFrames]:
        complete: list[ChunkFrames] = []
        for diff in judged:
            self._unjudged.popleft()
            if self._num_given:
                self._num_given -= 1
                if diff.keyframe is not None:
                    self._late.append(diff)
            elif self._waits:
                complete += self._place(diff)
            elif diff.keyframe is not None:
                self._mark(diff)
        return complete

    def _mark(self, diff: FrameDiff) -> None:
        """A frame of the open chunk is a keyframe."""
        place = next(k for k, one in enumerate(self._open) if one.frame is diff.frame)
        self._open[place] = diff

    def _place(self, diff: FrameDiff) -> list[ChunkFrames]:
        """Puts a frame into the open chunk; the chunks that this completes."""
        complete = self._close() if self._ends_before(diff) else []
        self._open.append(diff)
        if len(self._open) == self._limits.max_frames:
            complete += self._close()
        return complete

    def _ends_before(self, diff: FrameDiff) -> bool:
        if not self._open:
            return False
        cut_frames = self._limits.cut_frames
        if diff.keyframe == "cut" and 0 < cut_frames <= len(self._open):
            return True
        covered = diff.pts_seconds - self._open[0].pts_seconds
        return covered >= self._limits.max_seconds - ROUNDING_SECONDS

    def _close(self) -> list[ChunkFrames]:
        if not self._open:
            return []
        chunk = ChunkFrames(self._open, self._late)
        if not self._waits:
            self._num_given = len(self._unjudged)
        self._open, self._late = [], []
        return [chunk]


def build_chunks(
    frames: Iterable[Frame], builder: ChunkBuilder, measure: Measure
) -> Iterator[ChunkFrames]:
    """The chunks of frames that need not be waited for. If the frames end in an error, the chunks
    that are complete come first, and the rest is left out.
    """
    batch: list[Frame] = []
    try:
        for frame in frames:
            batch.append(frame)
            if len(batch) == MEASURE_FRAMES:
                diffs, batch = measure(batch), []
                yield from builder.add(diffs)
    except Exception:
        yield from builder.add(measure(batch))
        yield from builder.judge_rest()
        raise
    yield from builder.add(measure(batch))
    yield from builder.finish()


def split_at_cuts(
    frames: Iterable[Frame], min_frames: int, max_frames: int
) -> Iterator[list[Frame]]:
    """All frames in order, in runs of at most `max_frames`; a run that has `min_frames` ends at a
    cut.
    """
    limits = ChunkLimits(max_frames, math.inf, min_frames)
    builder = ChunkBuilder(limits, KeyframeDetector(), waits=True)
    for chunk in build_chunks(frames, builder, measure_frames):
        yield list(chunk)
