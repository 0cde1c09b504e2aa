"""From the time stamps of a stream to seconds, whatever the container did to them.

Knows nothing of codecs or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Generic, TypeVar

T = TypeVar("T")
_JUMP_SECONDS = 1.0  # times that fall back further than this begin anew; less is jitter
_AHEAD_SECONDS = 10.0  # a time further ahead than this may be a wrong one
_MOST_HELD = 3  # pictures that are held back until it is known whether their times are wrong
_GAP_SECONDS = 1800.0  # without a picture, from which on it is told


class Clock:
    """Turns time stamps into seconds since the one that means 0 s.

    Stamps that fall back (two recordings joined) count on from where they were; missing ones follow
    the nominal rate. `first`: the stamp that means 0 s; None takes the first one seen.
    """

    def __init__(self, time_base: Fraction, rate: Fraction, first: int | None = None) -> None:
        self.first = first
        self.last_seconds: float | None = None
        self.jumps_seconds: list[float] = []  # where stamps fell back
        self.gaps_seconds: list[tuple[float, float]] = []  # where none came for very long
        self.num_pictures = 0
        self.num_alike = 0  # stamped as the picture before them
        self._time_base = time_base
        self._spacing_seconds = float(1 / rate)
        self._shift_seconds = 0.0

    def seconds(self, stamp: int | None) -> float:
        """The time of the next picture."""
        next_seconds = (
            0.0 if self.last_seconds is None else self.last_seconds + self._spacing_seconds
        )
        found = next_seconds if stamp is None else self.at(stamp)
        if self.falls_back(found):
            self._shift_seconds += next_seconds - found
            self.jumps_seconds.append(next_seconds)
            found = next_seconds
        self.num_pictures += 1
        self.num_alike += stamp is not None and found == self.last_seconds
        if self.last_seconds is not None and found > self.last_seconds + _GAP_SECONDS:
            self.gaps_seconds.append((self.last_seconds, found))
        self.last_seconds = found
        return found

    def at(self, stamp: int) -> float:
        """The time that a stamp means at this point of the file."""
        if self.first is None:
            self.first = stamp
        return float((stamp - self.first) * self._time_base) + self._shift_seconds

    def falls_back(self, seconds: float) -> bool:
        """Whether a time lies so far before the last picture's that the stamps begin anew."""
        return self.last_seconds is not None and seconds < self.last_seconds - _JUMP_SECONDS

    def runs_ahead(self, seconds: float) -> bool:
        """Whether a time lies so far after the last picture's that it may be wrong."""
        return self.last_seconds is not None and seconds > self.last_seconds + _AHEAD_SECONDS

    def stamp(self, seconds: float) -> int:
        """The stamp nearest to a time, in a file whose stamps never fall back."""
        return round(Fraction(seconds) / self._time_base) + (self.first or 0)


class Timeline(Generic[T]):
    """Gives pictures their times, one after the other.

    A recorder may stamp a single picture hours ahead, or back. So a picture far from its neighbour
    is held back until the next ones come: if they are where the stamps were, its stamp was wrong,
    and it is put between its neighbours.
    """

    def __init__(self, clock: Clock) -> None:
        self.num_corrected = 0
        self._clock = clock
        self._held: list[tuple[T, int | None]] = []
        self._held_seconds = 0.0  # what the first of them claims

    def add(self, picture: T, stamp: int | None) -> Iterator[tuple[T, float]]:
        """The pictures whose time is known now, in order, with their seconds."""
        if self._held:
            if not self._returns(stamp):
                self._held.append((picture, stamp))
                if len(self._held) > _MOST_HELD:
                    yield from self.flush()
                return
            yield from self._placed_before(stamp)
        if stamp is not None and self._is_far(self._clock.at(stamp)):
            self._held.append((picture, stamp))
            self._held_seconds = self._clock.at(stamp)
            return
        yield picture, self._clock.seconds(stamp)

    def flush(self) -> Iterator[tuple[T, float]]:
        """The pictures that are held back, with the times that they claim."""
        held, self._held = self._held, []
        for picture, stamp in held:
            yield picture, self._clock.seconds(stamp)

    def _is_far(self, seconds: float) -> bool:
        return self._clock.runs_ahead(seconds) or self._clock.falls_back(seconds)

    def _returns(self, stamp: int | None) -> bool:
        """Whether a stamp is no longer where the held ones are."""
        if stamp is None:
            return False
        seconds = self._clock.at(stamp)
        if self._clock.falls_back(self._held_seconds):
            return not self._clock.falls_back(seconds)
        return seconds < self._held_seconds - _JUMP_SECONDS

    def _placed_before(self, stamp: int | None) -> Iterator[tuple[T, float]]:
        """The pictures that are held back, evenly between the one before them and the next."""
        held, self._held = self._held, []
        self.num_corrected += len(held)
        assert stamp is not None and self._clock.last_seconds is not None
        before_seconds = self._clock.last_seconds
        gap_seconds = max(0.0, self._clock.at(stamp) - before_seconds)
        for place, (picture, _) in enumerate(held, 1):
            seconds = before_seconds + gap_seconds * place / (len(held) + 1)
            self._clock.last_seconds = seconds
            yield picture, seconds
