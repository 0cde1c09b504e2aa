"""What a live session knows of time besides its chunks: when it was by the clock on the wall, and
where pictures are missing.

A session counts seconds on a clock of its own, which never jumps. Ties say what the wall clock
showed at some of them: one for each time watching began, and one wherever the wall clock was set.
Knows nothing of questions.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Protocol

from frames import Gap

MAX_GAPS = 2000  # kept, the newest; a camera that fails every minute is told of for a day
MAX_TIES = 500
SAME_SECONDS = 1.0  # a wall clock that differs by less was not set, it drifts
GAP, TIE, OPEN_GAP = "gap ", "tie ", "open gap"


class Notes(Protocol):
    """Where a timeline is kept: small texts by name, durable."""

    def notes(self, prefix: str) -> dict[str, str]:
        """Those whose name begins so."""
        ...

    def set_notes(self, notes: Mapping[str, str | None]) -> None:
        """All or none; None takes one away."""
        ...


class Timeline:
    """Gaps and wall-clock times of one session; used under the session's lock.

    notes: where it is kept, None for a session without a folder.
    """

    def __init__(self, notes: Notes | None = None) -> None:
        self._notes = notes
        self._gaps: dict[int, Gap] = {}
        self._ties: dict[int, tuple[float, float]] = {}  # seconds, and the wall clock's
        self._open: Gap | None = None
        self.refresh()

    def refresh(self) -> None:
        """Takes note of what another process has kept."""
        if self._notes is None:
            return
        for name, text in self._notes.notes(GAP).items():
            self._gaps[int(name.removeprefix(GAP))] = Gap(*json.loads(text))
        for name, text in self._notes.notes(TIE).items():
            seconds, wall = json.loads(text)
            self._ties[int(name.removeprefix(TIE))] = (seconds, wall)
        found = self._notes.notes(OPEN_GAP).get(OPEN_GAP)
        if found is None:
            self._open = None
        else:
            start, reason = json.loads(found)
            self._open = Gap(start, math.inf, reason)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """In order; the last one may still be open."""
        found = tuple(self._gaps[number] for number in sorted(self._gaps))
        return found if self._open is None else (*found, self._open)

    @property
    def has_wall_clock(self) -> bool:
        return bool(self._ties)

    def touching(self, start_seconds: float, stop_seconds: float) -> tuple[Gap, ...]:
        """The gaps that a stretch touches."""
        return tuple(
            gap
            for gap in self.gaps
            if gap.start_seconds < stop_seconds and start_seconds < gap.stop_seconds
        )

    def add_gap(self, gap: Gap) -> None:
        """Pictures are back after a gap."""
        number = max(self._gaps, default=-1) + 1
        self._gaps[number] = gap
        self._open = None
        kept = json.dumps([gap.start_seconds, gap.stop_seconds, gap.reason])
        changes: dict[str, str | None] = {f"{GAP}{number}": kept, OPEN_GAP: None}
        for old in sorted(self._gaps)[:-MAX_GAPS]:
            del self._gaps[old]
            changes[f"{GAP}{old}"] = None
        self._keep(changes)

    def open_gap(self, start_seconds: float, reason: str) -> None:
        """No pictures come any more; known to who asks meanwhile."""
        if self._open is not None and self._open.reason == reason:
            return
        start_seconds = self._open.start_seconds if self._open else start_seconds
        self._open = Gap(start_seconds, math.inf, reason)
        self._keep({OPEN_GAP: json.dumps([start_seconds, reason])})

    def end_open_gap(self) -> None:
        """Pictures are back, and nothing was missed."""
        if self._open is not None:
            self._open = None
            self._keep({OPEN_GAP: None})

    def tie(self, seconds: float, wall_seconds: float) -> None:
        """Says what the wall clock shows now, as seconds since 1970."""
        expected = self.wall_at(seconds)
        if expected is not None and abs(expected - wall_seconds) < SAME_SECONDS:
            return
        number = max(self._ties, default=-1) + 1
        self._ties[number] = (seconds, wall_seconds)
        changes: dict[str, str | None] = {f"{TIE}{number}": json.dumps([seconds, wall_seconds])}
        for old in sorted(self._ties)[1:-MAX_TIES]:  # the first one says when it all began
            del self._ties[old]
            changes[f"{TIE}{old}"] = None
        self._keep(changes)

    def wall_at(self, seconds: float) -> float | None:
        """What the wall clock showed, as seconds since 1970; None if that was never said."""
        ties = self._sorted_ties()
        if not ties:
            return None
        place = max(0, bisect_right(ties, (seconds, math.inf)) - 1)
        return ties[place][1] + seconds - ties[place][0]

    def seconds_at(self, wall_seconds: float) -> float | None:
        """Where the session was when the wall clock showed this; where it did so twice, the later
        one. A time that was skipped is where the wall clock jumped.
        """
        ties = self._sorted_ties()
        for place in range(len(ties) - 1, -1, -1):
            seconds, wall = ties[place]
            if wall_seconds < wall and place:
                continue
            found = seconds + wall_seconds - wall
            return found if place + 1 == len(ties) else min(found, ties[place + 1][0])
        return None

    def _sorted_ties(self) -> list[tuple[float, float]]:
        return [self._ties[number] for number in sorted(self._ties)]

    def _keep(self, changes: Mapping[str, str | None]) -> None:
        if self._notes is not None:
            self._notes.set_notes(changes)


def is_gap(text: str) -> bool:
    """Whether a kept gap is one; the folder may come from a stranger."""
    start, stop, reason = json.loads(text)
    return _is_time(start) and _is_time(stop) and start <= stop and isinstance(reason, str)


def is_open_gap(text: str) -> bool:
    start, reason = json.loads(text)
    return _is_time(start) and isinstance(reason, str)


def is_tie(text: str) -> bool:
    seconds, wall = json.loads(text)
    return _is_time(seconds) and _is_time(wall)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
