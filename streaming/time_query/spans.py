"""Time is an address: which stretches of the stream a question names ("at 12:30", "in the last five
minutes").

A search by content cannot find a time stamp, so named times go into the recall plan directly. A
question that names no time names none: "how many seconds", "the star that came second" and "lasts 5
seconds" are not addresses. `phrases.py` has the grammar. Knows nothing of models, scores or tiers.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from streaming.time_query.phrases import EXACT_SECONDS, Reading

# of a group's length: frame rates such as 29.97 let groups start a little after full seconds
BEGUN_SHARE = 0.25

# "now" as a moment of its own, at the end of a clause: not in "until now", "to now" or "just now".
NOW = re.compile(
    r"(?<!until )(?<!till )(?<!by )(?<!up to )(?<!from )(?<!before )(?<!than )(?<!just )(?<!and )(?<!to )"  # noqa: E501
    r"\b(?:right now|now|currently|at present|at (?:the|this) moment)(?=\s*(?:[?!.,;:]|$))",
    re.IGNORECASE,
)


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of the stream, in seconds since its beginning."""

    start_seconds: float
    stop_seconds: float


def named_spans(question: str, now_seconds: float) -> list[Span]:
    """The stretches of [0, now_seconds] that a question names, in time order; for most questions
    none.
    """
    spans = (
        (max(0.0, start), min(stop, now_seconds))
        for start, stop in Reading(question, now_seconds).spans
    )
    return sorted({Span(start, stop) for start, stop in spans if start <= stop})


def time_beyond(question: str, now_seconds: float) -> float | None:
    """The first moment or stretch that a question names and that lies after `now_seconds`, in
    seconds; None where there is none, and for what no stream can reach.
    """
    named: list[float] = []
    for start, stop in Reading(question, now_seconds).spans:
        is_moment = stop - start <= 2 * EXACT_SECONDS
        named.append((start + stop) / 2 if is_moment else start)
    later = [seconds for seconds in named if math.isfinite(seconds) and seconds > now_seconds]
    return min(later, default=None)


def in_seconds(
    question: str, shown_at: Callable[[float], float] = float, now_seconds: float | None = None
) -> str:
    """The question with its moments in seconds, as a video LLM's timestamps are: "at 1:35" -> "at
    95 seconds".

    shown_at: the moment whose timestamp stands for another one's, see `stamp_of`; each its own
    where it is left out.
    now_seconds: the moment that "now" means; without it "now" stays as it is. Amounts that are no
    moments ("in the last five minutes") and all other text stay as they are, byte for byte.
    """
    reading = Reading(question, now_seconds=math.inf)
    pieces, done = [], 0
    for i, time in enumerate(reading.times):
        if i not in reading.moments:
            continue
        seconds = shown_at(time.seconds)
        if seconds != time.seconds or not time.in_seconds:
            pieces += [question[done : time.start], f"{seconds:.10g} seconds"]
            done = time.stop
    text = "".join([*pieces, question[done:]])
    if now_seconds is None:
        return text
    return NOW.sub(f"at {shown_at(math.floor(now_seconds)):.10g} seconds", text)


def chunk_ranges(
    spans: Iterable[Span], chunk_spans: Sequence[tuple[float, float]], has_beginning: bool = True
) -> list[range]:
    """The chunks that each span touches, given every chunk's (start, stop) in time order.

    A chunk holds until the next one starts, so that no moment falls between two; the last one holds
    for ever. The first one holds for what was before it as well, unless chunks before it have been
    forgotten (has_beginning is false).

        chunks     |0      |1      |2        span 5-12 -> 0, 1; span 8-16 -> 1; span 16-16 -> 2
        seconds    0       8       16
    """
    spans = list(spans)
    if not spans or not chunk_spans:
        return []
    starts = [start for start, _ in chunk_spans]
    ranges: list[range] = []
    for span in spans:
        is_forgotten = (
            not has_beginning and span.start_seconds < starts[0] and span.stop_seconds <= starts[0]
        )
        ranges.append(range(0) if is_forgotten else _touched(span, starts))
    return ranges


def stamp_of(seconds: float, group_starts: Sequence[float], group_seconds: float) -> float:
    """The moment by which to look for what a model was shown at `seconds`: itself where a group was
    remembered then, else the whole second of the latest group before, which showed the same.

        groups     |0 |1       |4 |5          1.5 -> 1.5     3 -> 1     4 -> 4     60 -> 5

    group_starts: of the groups remembered around then, in order. A group that starts a little later
    counts as begun.
    """
    begun = bisect_right(group_starts, seconds + BEGUN_SHARE * group_seconds)
    if not begun or seconds < group_starts[begun - 1] + group_seconds:
        return seconds
    return float(math.floor(group_starts[begun - 1]))


def _touched(span: Span, starts: Sequence[float]) -> range:
    first = max(0, bisect_right(starts, span.start_seconds) - 1)
    return range(first, max(first + 1, bisect_left(starts, span.stop_seconds)))
