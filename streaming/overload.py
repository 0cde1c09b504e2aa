"""When a live stream must be thinned so that it keeps up, and when it may be whole again.

A pure policy: fed with figures, it says a level. Knows nothing of sources.
"""

from __future__ import annotations

from dataclasses import dataclass

from streaming.sources.source import Thinning

OVERLOAD_SECONDS = 2.0  # of work without a pause, or of lag, that are too much
CALM_SECONDS = 20.0  # without overload before one level is taken back
SETTLE_SECONDS = 5.0  # a level needs so long to show what it does
_LEVELS = tuple(Thinning)


@dataclass
class OverloadPolicy:
    """Steps down quickly and up slowly, one level at a time."""

    level: Thinning = Thinning.NONE
    _num_dropped: int = 0
    _changed_seconds: float = 0.0
    _bad_seconds: float = 0.0  # when it was overloaded last

    def step(self, now_seconds: float, overload_seconds: float, num_dropped: int) -> Thinning:
        """The level from now on.

        overload_seconds: how long reading has been busy without a pause. num_dropped: frames so
        far that nobody took in time.
        """
        is_bad = overload_seconds > OVERLOAD_SECONDS or num_dropped > self._num_dropped
        self._num_dropped = num_dropped
        if is_bad:
            self._bad_seconds = now_seconds
        place = _LEVELS.index(self.level)
        since_change = now_seconds - self._changed_seconds
        if is_bad and place + 1 < len(_LEVELS) and (since_change >= SETTLE_SECONDS or not place):
            self._change(_LEVELS[place + 1], now_seconds)
        elif place and min(since_change, now_seconds - self._bad_seconds) >= CALM_SECONDS:
            self._change(_LEVELS[place - 1], now_seconds)
        return self.level

    def _change(self, level: Thinning, now_seconds: float) -> None:
        self.level = level
        self._changed_seconds = now_seconds
