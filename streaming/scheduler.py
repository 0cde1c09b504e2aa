"""Whose turn it is on the device, and what shares a pass. Queues and policy; runs nothing itself.

Four kinds of step take turns:

- QUERY: a question's context is retrieved and its first token computed. It goes first: a question
  waits for the pass under way, for one prefill pass that is owed at most, and for the questions
  before it.
- DECODE: one more token of every answer under way.
- PREFILL: the next chunks of one stream or several, up to a number of visual tokens.
- BACKGROUND: the next part of work that nobody waits for at the screen, such as captions. It takes
  what the others leave, and a tenth of the device where they leave nothing.

While answers are under way, watching keeps half of the device: a balance of seconds says who is
owed. Among streams a live one goes before a file; one that was passed over several times goes
before both. Knows nothing of models.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# of the balance: a stream that paused for long cannot stop all answers when it comes back
MOST_OWED_SECONDS = 0.5
BACKGROUND_SHARE = 0.1  # of the device time of others, which background work gets in any case
MOST_PASSED_OVER = 4  # passes after which a waiting stream goes first, whatever its kind


class Step(StrEnum):
    """What the device does next."""

    QUERY = "query"
    DECODE = "decode"
    PREFILL = "prefill"
    BACKGROUND = "background"


@dataclass(frozen=True)
class Load:
    """What waits for the device.

    answers: under way. balance_seconds: device time that answers have had more than watching;
    negative if less.
    last: the step before.
    background: jobs. owed_seconds: of their share of the device; negative if they had more.
    """

    queries: int
    answers: int
    prefills: int
    balance_seconds: float = 0.0
    last: Step | None = None
    background: int = 0
    owed_seconds: float = 0.0


def next_step(load: Load) -> Step | None:
    """The next step; None if there is nothing to do."""
    prefill_is_owed = load.prefills > 0 and load.balance_seconds > 0
    if load.queries:
        return Step.PREFILL if prefill_is_owed and load.last is not Step.PREFILL else Step.QUERY
    if load.background and load.owed_seconds > 0:
        return Step.BACKGROUND
    if load.answers:
        return Step.PREFILL if prefill_is_owed else Step.DECODE
    if load.prefills:
        return Step.PREFILL
    return Step.BACKGROUND if load.background else None


@dataclass(frozen=True)
class Waiting:
    """What the order of prefills depends on. passed_over: passes that went by since it came."""

    is_live: bool
    num_tokens: int
    passed_over: int


def choose_prefills(waiting: Sequence[Waiting], max_tokens: int) -> list[int]:
    """Which of the waiting prefills share the next pass, in order; the first one goes whatever its
    size.
    """
    order = sorted(range(len(waiting)), key=lambda number: _prefill_order(waiting[number], number))
    chosen = order[:1]
    num_tokens = sum(waiting[number].num_tokens for number in chosen)
    for number in order[1:]:
        if num_tokens + waiting[number].num_tokens <= max_tokens:
            chosen.append(number)
            num_tokens += waiting[number].num_tokens
    return chosen


def _prefill_order(waiting: Waiting, number: int) -> tuple[bool, bool, int]:
    """Sorts first what was passed over too often, then live streams, then by the time of coming."""
    is_overdue = waiting.passed_over >= MOST_PASSED_OVER
    return not is_overdue, not waiting.is_live, number


@dataclass(eq=False)
class QueryJob:
    """Something short that goes first: `run` is called on the device's thread."""

    run: Callable[[], Any]
    done: Future[Any] = field(default_factory=Future)


@dataclass(eq=False)
class PrefillJob:
    """The next chunks of one stream. `work` is what the engine needs to run it; num_tokens counts
    visual tokens.
    """

    work: Any
    num_tokens: int
    is_live: bool
    passed_over: int = 0
    done: Future[Any] = field(default_factory=Future)


@dataclass(eq=False)
class BackgroundJob:
    """Work in short parts: `run_part` is called on the device's thread until it gives True."""

    run_part: Callable[[], bool]
    done: Future[None] = field(default_factory=Future)


Job = QueryJob | PrefillJob | BackgroundJob
Batch = tuple[Step, Sequence[Job]]


class Scheduler:
    """Jobs that wait, and the next thing to do. Any thread adds; one thread takes."""

    def __init__(self, max_pass_tokens: int) -> None:
        """max_pass_tokens: visual tokens of all prefills that share a pass."""
        self._max_pass_tokens = max_pass_tokens
        self._changed = threading.Condition()
        self._queries: deque[QueryJob] = deque()
        self._prefills: list[PrefillJob] = []
        self._background: deque[BackgroundJob] = deque()
        self._answers = 0
        self._owed_seconds = 0.0
        self._balance_seconds = 0.0
        self._last: Step | None = None
        self._has_worker = False
        self._is_stopped = False

    @property
    def num_queries(self) -> int:
        """Questions that wait for their first token."""
        return len(self._queries)

    def add(self, job: Job) -> bool:
        """Queues a job. Whether the caller must start the worker, which then is expected to call
        `wait`.
        """
        with self._changed:
            if isinstance(job, QueryJob):
                self._queries.append(job)
            elif isinstance(job, PrefillJob):
                self._prefills.append(job)
            else:
                self._background.append(job)
            self._changed.notify_all()
            must_start, self._has_worker = not self._has_worker, True
            return must_start

    def wait(self, idle_seconds: float) -> bool:
        """Waits until there is something to do; False, and no worker any more, if nothing came for
        so long.
        """
        with self._changed:
            while self._next_step() is None and not self._is_stopped:
                if not self._changed.wait(idle_seconds) and self._next_step() is None:
                    self._has_worker = False
                    return False
            return not self._is_stopped

    def stop(self) -> None:
        """Ends the worker after its step, for good."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def next_batch(self) -> Batch | None:
        """The next step and its jobs, which leave the queue; None if there is nothing to do."""
        with self._changed:
            step = self._next_step()
            if step is None:
                return None
            self._last = step
            if step is Step.QUERY:
                return step, [self._queries.popleft()]
            if step is Step.DECODE:
                return step, []
            if step is Step.BACKGROUND:
                return step, [self._background.popleft()]
            return step, self._take_prefills()

    def abandon(self) -> list[Job]:
        """Takes everything out of the queues; there is no worker any more, and the next job starts
        another.
        """
        with self._changed:
            jobs: list[Job] = [*self._queries, *self._prefills, *self._background]
            self._queries.clear()
            self._background.clear()
            self._prefills = []
            self._answers = 0
            self._has_worker = False
            return jobs

    def complete(self, step: Step, seconds: float, num_answers: int) -> None:
        """Accounts for a step: the device time it took, and how many answers are under way after
        it.
        """
        with self._changed:
            self._answers = num_answers
            if step is Step.BACKGROUND:
                self._owed_seconds = _limited(self._owed_seconds - seconds)
                return
            # nothing is owed for the time before there was work: it would hold up a live stream
            owed_seconds = self._owed_seconds + BACKGROUND_SHARE * seconds
            self._owed_seconds = _limited(owed_seconds) if self._background else 0.0
            change = -seconds if step is Step.PREFILL else seconds
            self._balance_seconds = _limited(self._balance_seconds + change)

    def _next_step(self) -> Step | None:
        load = Load(
            len(self._queries),
            self._answers,
            len(self._prefills),
            self._balance_seconds,
            self._last,
            len(self._background),
            self._owed_seconds,
        )
        return next_step(load)

    def _take_prefills(self) -> list[PrefillJob]:
        waiting = [Waiting(job.is_live, job.num_tokens, job.passed_over) for job in self._prefills]
        chosen = [
            self._prefills[number] for number in choose_prefills(waiting, self._max_pass_tokens)
        ]
        self._prefills = [job for job in self._prefills if job not in chosen]
        for job in self._prefills:
            job.passed_over += 1
        return chosen


def _limited(seconds: float) -> float:
    """A balance that forgets what lies too far back."""
    return min(max(seconds, -MOST_OWED_SECONDS), MOST_OWED_SECONDS)
