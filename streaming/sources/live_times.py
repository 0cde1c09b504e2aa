"""Which pictures of a live source become frames, at which times, and where some are missing.

Shared by everything that is live. Knows nothing of connections.
"""

from __future__ import annotations

from frames import ROUNDING_SECONDS
from streaming.sources.source import SourceGap, Tell, Thinning

MIN_STEP_SECONDS = 0.001  # times of a session grow strictly
MIN_GAP_SECONDS = 2.0  # a shorter jump is jitter
GAP_STEPS = 5.0  # a jump of so many usual steps is a gap, in a source of one picture a minute too
RECONNECT_GAP_SECONDS = 1.0
UNWATCHED = "not watched"
LOST_DATA = "pictures lost on the way"


class LiveTimes:
    """The times of one session's pictures, over all connections.

    seen_seconds: up to which it was watched before, None if it was not. tell: of gaps.
    """

    def __init__(self, fps: float, seen_seconds: float | None, tell: Tell) -> None:
        self.missed = UNWATCHED  # why pictures are missing, if some are
        self._fps = fps
        self._tell = tell
        self._last_seconds = seen_seconds  # of the newest picture
        self._step_seconds: float | None = None  # usual, between pictures
        self._next_seconds = 0.0  # of the next frame that is sampled

    def admit(self, seconds: float, is_first: bool) -> float | None:
        """The time of the next picture, after all others; None for one that was seen before.

        is_first: of a connection. Tells of a gap before the picture.
        """
        last = self._last_seconds
        if last is not None and seconds < last:
            return None
        if last is not None:
            seconds = max(seconds, last + MIN_STEP_SECONDS)
            longest = RECONNECT_GAP_SECONDS if is_first else self._longest_step()
            if seconds - last > longest:
                self._tell(SourceGap(last, seconds, self.missed))
            elif not is_first:
                self._learn_step(seconds - last)
        self.missed = LOST_DATA
        self._last_seconds = seconds
        return seconds

    def is_sampled(self, seconds: float, thinning: Thinning) -> bool:
        """Whether the picture is one of the sample."""
        if seconds < self._next_seconds - ROUNDING_SECONDS:
            return False
        spacing = 1.0 / (self._fps * thinning.share)
        # on a grid as long as pictures come, so that jitter does not add up
        self._next_seconds = max(self._next_seconds + spacing, seconds + spacing / 2)
        return True

    def _longest_step(self) -> float:
        usual = MIN_GAP_SECONDS if self._step_seconds is None else self._step_seconds
        return max(MIN_GAP_SECONDS, GAP_STEPS * usual)

    def _learn_step(self, seconds: float) -> None:
        before = seconds if self._step_seconds is None else self._step_seconds
        self._step_seconds = 0.9 * before + 0.1 * seconds
