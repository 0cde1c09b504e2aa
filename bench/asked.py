"""What the recall bench asks of a stream: about the past, the present, a given time, and things
that never happened.

Needles are combinations that occur once, among events that share their shape or colour; scenes are
shuffled, so that they lie anywhere in the stream. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, islice

import numpy as np

from models.demo.world import COLOURS, SHAPES
from training.questions import Facts, Question, ask
from training.scenes import CHUNK_SECONDS
from training.streams import Stream, make_stream

KINDS = ("past", "present", "given time", "never")
PAST = ("when", "direction", "count_with", "colour", "shape", "after", "before", "presence")
GIVEN_TIME = ("what_at", "describe", "count_at", "digit_at")
PRESENT = ("what_at", "describe", "count_at", "digit_at", "last")
# newest groups that a question about the present may mean; what "the last 4 frames" hold
PRESENT_GROUPS = 2
RECENT_SECONDS = 40.0  # what happened since is not called past
TRIES = 40  # draws for one question
NEEDLE_SECONDS = 20.0  # a needle, alone or with its neighbour, takes no longer
# words that names are made of
NAMING = frozenset((*COLOURS, *SHAPES, "digit", *map(str, range(10))))
Spans = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Asked:
    """A question asked when the stream stands at `at_seconds`; `spans` are the true events,
    half-open, in stream time; empty where it never happened."""

    kind: str
    question: Question
    spans: Spans
    at_seconds: float

    @property
    def clip_seconds(self) -> tuple[float, float]:
        """A short clip around the events, on chunk borders; the newest one where nothing
        happened.
        """
        start = min((span[0] for span in self.spans), default=self.at_seconds - CHUNK_SECONDS)
        stop = max((span[1] for span in self.spans), default=self.at_seconds)
        first = max(0.0, start // CHUNK_SECONDS * CHUNK_SECONDS - CHUNK_SECONDS)
        return first, min(-(-stop // CHUNK_SECONDS) * CHUNK_SECONDS, self.at_seconds)


def thing_named(text: str) -> str:
    """The name that a question asks after, whatever words stand around it."""
    return " ".join(word for word in re.findall(r"[a-z]+|\d", text.lower()) if word in NAMING)


def long_stream(seed: int, seconds: float) -> Stream:
    """A stream of the world with its scenes shuffled: what occurs once may lie anywhere."""
    stream = make_stream(seed, seconds)
    order = np.random.default_rng([seed, 41]).permutation(len(stream.scenes))
    scenes = tuple(stream.scenes[int(k)] for k in order)
    return Stream(scenes, tuple(accumulate((s.duration_seconds for s in scenes[:-1]), initial=0.0)))


class Asker:
    """Draws questions of every kind about one stream, deterministic by seed."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 43])
        self._end_seconds = stream.duration_seconds
        self._moments = stream.moments()
        self._facts = Facts(self._moments)
        self._spans = {event: (start, stop) for start, stop, event in stream.events()}

    def all(self, per_kind: int) -> list[Asked]:
        """About `per_kind` questions of each kind, in the order in which they are asked."""
        asked = [
            *self.past(per_kind),
            *self.present(per_kind),
            *self.given_time(per_kind),
            *self.never(per_kind),
        ]
        return sorted(asked, key=lambda a: a.at_seconds)

    def past(self, count: int) -> list[Asked]:
        """Uniform over the history: the stream is cut into stretches, and each in turn gets a
        question.
        """
        return self._spread("past", PAST, count, self._is_needle)

    def given_time(self, count: int) -> list[Asked]:
        return self._spread("given time", GIVEN_TIME, count, lambda q: bool(q.events))

    def present(self, count: int) -> list[Asked]:
        """Asked at moments of the second half, about what is on screen then."""
        asked: list[Asked] = []
        seconds = np.linspace(self._end_seconds / 2, self._end_seconds, 4 * count)
        families = cycle(PRESENT)
        for at in sorted(
            {float(s // CHUNK_SECONDS * CHUNK_SECONDS) for s in seconds if s >= CHUNK_SECONDS}
        ):
            newest = [m for m in self._moments if m.pts_seconds < at][-PRESENT_GROUPS:]
            if len(asked) < count and newest[-1].events and newest[-1].clean:
                made = [
                    ask(self._rng, Facts(newest), family)
                    for family in islice(families, len(PRESENT))
                ]
                next(families)
                question = next((q for q in made if q and q.events), None)
                asked += [Asked("present", question, self._of(question), at)] if question else []
        return asked

    def never(self, count: int) -> list[Asked]:
        """Is there ...? where there was none, each name once."""
        made: dict[str, Question] = {}
        for _ in range(TRIES * count):
            question = ask(self._rng, self._facts, "presence")
            if question and question.answer == "no" and len(made) < count:
                made.setdefault(thing_named(question.text), question)
        return [Asked("never", question, (), self._end_seconds) for question in made.values()]

    def _spread(
        self, kind: str, families: Sequence[str], count: int, fits: Callable[[Question], bool]
    ) -> list[Asked]:
        """The j-th question is about the j-th stretch of the history where one can be had, else
        about any.
        """
        pool = [
            q
            for f in families
            for _ in range(TRIES * 2)
            if (q := ask(self._rng, self._facts, f)) and fits(q)
        ]
        until = self._end_seconds - min(RECENT_SECONDS, self._end_seconds / 3)
        pool = [q for q in pool if all(span[1] <= until for span in self._of(q))]
        asked: list[Asked] = []
        for j, family in zip(range(count), cycle(families), strict=False):
            middle = until * (j + 0.5) / count
            taken = {(a.question.family, a.spans) for a in asked}
            fresh = [q for q in pool if q.family == family and (family, self._of(q)) not in taken]
            if fresh:
                question = min(fresh, key=lambda q: abs(self._of(q)[0][0] - middle))
                asked.append(Asked(kind, question, self._of(question), self._end_seconds))
        return asked

    def _is_needle(self, question: Question) -> bool:
        spans = self._of(question)
        return bool(spans) and spans[-1][1] - spans[0][0] <= NEEDLE_SECONDS

    def _of(self, question: Question) -> Spans:
        return tuple(sorted(self._spans[event] for event in question.events))
