"""When the pictures of a live stream were taken, on the clock of the session.

Stamps of a stream start anywhere and start anew with every connection. They are tied to our clock
by the picture with the shortest way to us. Those that need not be waited for at the beginning may
be old: probing and the caches of servers deliver a burst first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WAITED_SECONDS = 0.015  # a picture that took so long to come was not in any cache
WAITED_STEPS = 0.5  # of a usual step: a busy machine makes any picture late by a little
MAX_HOLD_SECONDS = 2.0  # a cache holds a group of pictures, and is emptied sooner
MAX_HELD = 400
# Clocks of cameras are off by up to 100 millionths. A fast one is followed at once, as its pictures
# seem to come ever sooner; a slow one at this pace, so that pictures that are late stay late.
DRIFT_SHARE = 0.0002
_BACK_SECONDS, _AHEAD_SECONDS = -1.0, 5.0  # stamps that jump further are of another recording


@dataclass(frozen=True)
class Arrival:
    """One picture: its stamp in seconds, None where it has none, and when it came.

    waited_seconds: how long it had to be waited for. step_seconds: until the next one, by rate.
    """

    stamp: float | None
    now: float
    waited_seconds: float
    step_seconds: float


class StreamClock:
    """Turns the stamps of one connection into seconds of the session.

    by_arrival: the stamps mean nothing, as those of MJPEG over HTTP, which FFmpeg makes up.
    """

    def __init__(self, opened: float, by_arrival: bool) -> None:
        self._opened = opened
        self._by_arrival = by_arrival
        self._anchor: float | None = None  # seconds of the session at stamp 0
        self._last_stamp = 0.0
        self._held: list[Arrival] = []
        self.lag_seconds = 0.0  # of the newest picture

    @property
    def is_tied(self) -> bool:
        """Whether times are known; before that, pictures are held."""
        return self._anchor is not None or self._by_arrival

    def seconds(self, arrival: Arrival) -> list[float]:
        """The times of the pictures held so far and of this one; nothing while they are held."""
        if self._by_arrival:
            return [arrival.now]
        if self._anchor is not None:
            return [self._next(arrival)]
        self._held.append(arrival)
        if not self._ends_hold(arrival):
            return []
        return self._tie(arrival)

    def _ends_hold(self, arrival: Arrival) -> bool:
        if arrival.stamp is None:
            return False
        needed = max(WAITED_SECONDS, min(0.5, WAITED_STEPS * arrival.step_seconds))
        was_waited_for = arrival.waited_seconds >= needed
        is_late = arrival.now - self._opened >= MAX_HOLD_SECONDS
        return was_waited_for or is_late or len(self._held) >= MAX_HELD

    def _tie(self, arrival: Arrival) -> list[float]:
        assert arrival.stamp is not None
        stamps = fill_stamps(self._held)
        arrivals = zip(self._held, stamps, strict=True)
        self._anchor = min(held.now - stamp for held, stamp in arrivals)
        self._held = []
        self._last_stamp = arrival.stamp
        anchor = self._anchor
        return [anchor + stamp for stamp in stamps]

    def _next(self, arrival: Arrival) -> float:
        assert self._anchor is not None
        stamp = arrival.stamp
        if stamp is None:
            stamp = self._last_stamp + arrival.step_seconds
        if not _BACK_SECONDS < stamp - self._last_stamp < _AHEAD_SECONDS:
            self._anchor = arrival.now - stamp  # believe our clock
        drift = DRIFT_SHARE * max(0.0, stamp - self._last_stamp)
        self._anchor = min(arrival.now - stamp, self._anchor + drift)
        self._last_stamp = stamp
        self.lag_seconds = arrival.now - (self._anchor + stamp)
        return self._anchor + stamp


def fill_stamps(arrivals: Sequence[Arrival]) -> list[float]:
    """The stamps, with those that are missing counted from the next one; the last one is there."""
    found: list[float] = []
    for arrival in reversed(arrivals):
        if arrival.stamp is not None:
            found.append(arrival.stamp)
        else:
            found.append(found[-1] - arrival.step_seconds)
    return found[::-1]
