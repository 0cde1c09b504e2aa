"""How a question says when: the phrases that make a written time, or no time at all, an address in
the stream.

A question is first reduced to a skeleton in which every written time is a token: {c0} is a clock,
{d1} an amount, {m2} a moment worked out so far. Phrases are patterns over the skeleton, tried from
the most to the least specific; each consumes what it has read, leaving another token or "#":

    What was there 2 minutes ago?  ->  what was there {d0} ago?
        ->  what was there {m0}?  ->  what was there # ?

English. Knows nothing of chunks: `spans.py` has the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from streaming.time_query.expressions import NUMBER, WrittenTime, number, written_times

EXACT_SECONDS = 1.0  # a moment reaches so far to both sides
ABOUT_SECONDS = 5.0  # one named with "about", or "halfway"
# what "at the beginning", "at the end", "recently" and "after 1:00" have in mind first
EDGE_SECONDS = 10.0

_RANKS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
)
_UNIT_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}


class Reading:
    """What a question says of times.

    times: the times written in it. moments: numbers of those that are moments of the stream, not
    lengths.
    spans: (start, stop) in seconds, not clipped to the stream, which ends at `now_seconds`.
    """

    def __init__(self, question: str, now_seconds: float) -> None:
        self.times = [time for time in written_times(question) if not _is_content(question, time)]
        self.moments: set[int] = set()
        self.spans: list[tuple[float, float]] = []
        self._now = now_seconds
        # of the {m} tokens: seconds, and how far they reach
        self._points: list[tuple[float, float]] = []
        self._text = _skeleton(question, self.times)
        for pattern, phrase in _PHRASES:
            self._consume(pattern, phrase)
        if not self.spans and not _ORDER_OF_EVENTS.search(self._text):
            self._consume(_FIRST_OR_LAST, Reading.edge)

    def _consume(self, pattern: re.Pattern[str], phrase: Phrase) -> None:
        self._text = pattern.sub(lambda match: phrase(self, match), self._text)

    def _length(self, token: str) -> float:
        return self.times[int(token)].seconds

    def _moment(self, token: str) -> tuple[float, float]:
        """Seconds and reach of a token such as "c0"; a written time becomes a moment by this."""
        if token[0] == "m":
            return self._points[int(token[1:])]
        self.moments.add(int(token[1:]))
        return self._length(token[1:]), EXACT_SECONDS

    def _edge_seconds(self, token: str | None, word: str) -> float:
        if token:
            return self._moment(token)[0]
        return 0.0 if word in ("start", "beginning") else self._now

    def _token(self, seconds: float, reach: float = EXACT_SECONDS) -> str:
        self._points.append((seconds, reach))
        return f"{{m{len(self._points) - 1}}}"

    def _add(self, start: float, stop: float) -> str:
        self.spans.append((min(start, stop), max(start, stop)))
        return " # "

    # Phrases: what stands in the skeleton instead of the match.

    def no_time(self, match: re.Match[str]) -> str:
        return " # "

    def first_or_last_length(self, match: re.Match[str]) -> str:
        first = match["which"] in ("first", "opening", "initial")
        length = (
            self._length(match["d"])
            if match["d"]
            else _UNIT_SECONDS.get(match["unit"], self._now / 2)
        )
        border = length if first else self._now - length
        upto = match["side"] in ("before", "until") if match["side"] else first
        return self._add(0.0, border) if upto else self._add(border, self._now)

    def second_half(self, match: re.Match[str]) -> str:
        return self._add(self._now / 2, self._now)

    def ranked_unit(self, match: re.Match[str]) -> str:
        rank, unit = _rank(match["rank"]), _UNIT_SECONDS[match["unit"]]
        return self._token(rank) if unit == 1.0 else self._add((rank - 1) * unit, rank * unit)

    def numbered_units(self, match: re.Match[str]) -> str:
        unit = _UNIT_SECONDS[match["unit"]]
        return self._add(number(match["start"]) * unit, number(match["stop"]) * unit)

    def numbered_unit(self, match: re.Match[str]) -> str:
        start, unit = number(match["number"]), _UNIT_SECONDS[match["unit"]]
        return self._add(start * unit, (start + 1) * unit)

    def start_of_numbered_unit(self, match: re.Match[str]) -> str:
        return self._token(number(match["number"]) * _UNIT_SECONDS[match["unit"]])

    def before_now(self, match: re.Match[str]) -> str:
        return self._token(self._now - self._length(match["d"]))

    def since_start(self, match: re.Match[str]) -> str:
        return self._token(self._moment(match["at"])[0])

    def bare_seconds(self, match: re.Match[str]) -> str:
        return self._token(float(match["number"]))

    def halfway(self, match: re.Match[str]) -> str:
        return self._token(self._now / 2, ABOUT_SECONDS)

    def between(self, match: re.Match[str]) -> str:
        if match["word1"] and match["word2"]:
            return self.no_time(match)  # from beginning to end
        start = self._edge_seconds(match["at1"], match["word1"])
        return self._add(start, self._edge_seconds(match["at2"], match["word2"]))

    def between_times(self, match: re.Match[str]) -> str:
        return self._add(self._moment(match["at1"])[0], self._moment(match["at2"])[0])

    def after(self, match: re.Match[str]) -> str:
        seconds, _ = self._moment(match["at"])
        self._add(seconds, seconds + EDGE_SECONDS)
        return self._add(seconds, self._now)

    def before(self, match: re.Match[str]) -> str:
        seconds, _ = self._moment(match["at"])
        self._add(seconds - EDGE_SECONDS, seconds)
        return self._add(0.0, seconds)

    def moment(self, match: re.Match[str]) -> str:
        seconds, reach = self._moment(match["at"])
        reach = max(reach, ABOUT_SECONDS) if match["about"] else reach
        return self._add(seconds - reach, seconds + reach)

    def moments_listed(self, match: re.Match[str]) -> str:
        for token in re.findall(_TOKEN, match[0]):
            seconds, reach = self._moment(token[1:-1])
            self._add(seconds - reach, seconds + reach)
        return " # "

    def edge(self, match: re.Match[str]) -> str:
        first = any(match[name] == "first" for name in ("which1", "which2", "which3"))
        return self.beginning(match) if first else self.end(match)

    def beginning(self, match: re.Match[str]) -> str:
        return self._add(0.0, EDGE_SECONDS)

    def end(self, match: re.Match[str]) -> str:
        return self._add(self._now - EDGE_SECONDS, self._now)

    def newest(self, match: re.Match[str]) -> str:
        return self._add(self._now - EXACT_SECONDS, self._now)


Phrase = Callable[[Reading, re.Match[str]], str]


def _skeleton(question: str, times: Sequence[WrittenTime]) -> str:
    pieces, done = [], 0
    for i, time in enumerate(times):
        pieces += [_plain(question[done : time.start]), f"{{{'c' if time.is_clock else 'd'}{i}}}"]
        done = time.stop
    return re.sub(r"\s+", " ", "".join([*pieces, _plain(question[done:])])).strip()


def _plain(text: str) -> str:
    """Lower case, one kind of dash, and nothing that looks like a token."""
    return re.sub(r"[{}#]", " ", re.sub("[\u2010-\u2015\u2212]", "-", text.lower()))


def _is_content(question: str, time: WrittenTime) -> bool:
    """Whether a clock is something seen ("the display shows 12:30"), not a moment."""
    return time.is_clock and _SEEN.search(question[: time.start].lower()) is not None


def _rank(text: str) -> float:
    return float(text[:-2]) if text[0].isdigit() else _RANKS.index(text) + 1.0


_VIDEO = r"(?:video|clip|stream|recording|film|movie|footage)"
_OF_VIDEO = rf"(?: of (?:the |this )?{_VIDEO}\b)?(?! of\b)"
_NEAR = r"(?:about |around |roughly |approximately |circa |nearly |almost |near |~ ?)"
_LEAD = r"(?:exactly |precisely )?(?:the )?(?:time |timestamp |t ?= ?)?"
_AT = r"\{(?P<at>[cdm]\d+)\}"
_TOKEN = r"\{[cdm]\d+\}"
_STANDING = r"\{(?P<at>[cm]\d+)\}"  # a moment without any "at" before it
_LENGTH = r"\{d(?P<d>\d+)\}"
_EDGE = rf"{_NEAR}?{_LEAD}(?:\{{(?P<at@>[cdm]\d+)\}}|(?:very )?(?P<word@>start|beginning|end|now)\b{_OF_VIDEO})"  # noqa: E501
_FROM, _TO = _EDGE.replace("@", "1"), _EDGE.replace("@", "2")
_NOT_OF_SCREEN = r"(?! of the (?:picture|screen|frame|image))"
_AFTER_WORDS = (
    r"(?:(?<=\bafter )|(?<=\bsince )|(?<=\bbefore )|(?<=\buntil )|(?<=\bfrom )|(?<=\baround ))"
)
_CLAUSE_END = rf"(?= ?(?:[?!.,;:]|$)| (?:in|of) (?:the|this) {_VIDEO})"
_HOW_IT = r"how (?:does|did) (?:it|this)"
_NOT_UNTIL = r"(?<!until )(?<!till )(?<!by )(?<!up to )(?<!from )(?<!before )(?<!than )"
_NOUN = r"(?:thing|shape|object|item|colou?r|digit|number|scene|event|frame|image|picture|shot|figure|symbol|part)s?"  # noqa: E501
_SHOWN = r"(?:appear(?:s|ed)?|shown|seen|displayed|happen(?:s|ed)?|visible|occur(?:s|red)?|presented|comes?|came)"  # noqa: E501
_VERB = rf"(?:{_SHOWN}|shows?|see|is|was|are|were)"

_SEEN = re.compile(r"\b(?:show(?:s|ing|n)?|reads?|reading|says?|ratio|score)(?: of| is)?\s*$")
_ORDER_OF_EVENTS = re.compile(r"\b(?:or|after|before|since|until|till|between|when|while)\b|#")
_FIRST_OR_LAST = re.compile(
    rf"(?:\bthe |\bwhat |\bwhich |^)(?:very )?(?P<which1>first|last) {_NOUN}\b"
    rf"|\b{_VERB} (?:the )?(?:very )?(?P<which2>first|last)\b{_CLAUSE_END}"
    rf"|^what (?:(?:is|was|has|had) )?(?:been )?(?P<which3>first|last) {_SHOWN}\b"
)

# Stretches named by their length or their number.
_LENGTHS: list[tuple[str, Phrase]] = [
    (
        r"\b(?:(?P<side>after|before|since|until) )?"
        r"\b(?:(?:in|during|over|within|for|from|of) (?:the |its |this )?|the |its )(?:very )?"
        r"(?P<which>first|opening|initial|last|past|previous|final|closing|most recent) "
        rf"(?:{_LENGTH}|(?P<unit>minute|hour|second(?={_CLAUSE_END})|half{_NOT_OF_SCREEN})\b)",
        Reading.first_or_last_length,
    ),
    (rf"\bthe (?:second|latter) half\b{_NOT_OF_SCREEN}", Reading.second_half),
    (
        rf"\bthe (?P<rank>\d+(?:st|nd|rd|th)|{'|'.join(_RANKS)}) (?P<unit>minute|hour)\b",
        Reading.ranked_unit,
    ),
    (r"\bthe (?P<rank>\d+(?:st|nd|rd|th)) (?P<unit>second)\b", Reading.ranked_unit),
    (
        r"\b(?P<unit>(?:minute|hour)(?=s? )|second(?=s )|(?<=between )second|(?<=from )second)s? "
        rf"(?P<start>{NUMBER}) ?(?:-|to|and|until|through) ?(?:(?P=unit) )?(?P<stop>{NUMBER})(?!\w|\.\d)",  # noqa: E501
        Reading.numbered_units,
    ),
    (
        rf"{_AFTER_WORDS}(?P<unit>minute|hour) (?P<number>{NUMBER})(?!\w)",
        Reading.start_of_numbered_unit,
    ),
    (
        rf"(?:(?<=\bat )|{_AFTER_WORDS})(?P<unit>second) (?P<number>\d+)\b",
        Reading.start_of_numbered_unit,
    ),
    (
        rf"(?<!per )(?<!each )(?<!every )\b(?P<unit>minute|hour) (?P<number>{NUMBER})(?!\w)",
        Reading.numbered_unit,
    ),
]

# Lengths that say how long or how often, not when.
_NO_TIMES: list[tuple[str, Phrase]] = [
    (
        r"\b(?:for|last(?:s|ed|ing)?|takes?|took|every|each|within|per|another|next|(?:more|less|longer|shorter) than) "  # noqa: E501
        rf"(?:{_NEAR}|at least |at most |up to |only |exactly )?{_LENGTH}",
        Reading.no_time,
    ),
    (rf"\bat (?:the |an? )?{_LENGTH} (?:intervals?|steps?|each|apart|per|long)\b", Reading.no_time),
    (rf"\bafter {_NEAR}?{_LENGTH} of\b", Reading.no_time),
]

_MOMENTS: list[tuple[str, Phrase]] = [
    (rf"{_LENGTH} ago\b", Reading.before_now),
    (rf"{_LENGTH} (?:before|from|to|until) the (?:very )?end\b{_OF_VIDEO}", Reading.before_now),
    (
        rf"{_AT} (?:after|from|past|into) the (?:very )?(?:start|beginning)\b{_OF_VIDEO}",
        Reading.since_start,
    ),
    (rf"{_AT} in(?:to)?\b(?! a row| length| total| duration| all\b| between)", Reading.since_start),
    (rf"{_AT}[ -]?(?:mark|point|timestamp)\b", Reading.since_start),
    (
        r"\bat (?:time |timestamp )?(?P<number>\d+(?:\.\d+)?)(?= ?(?:[?!,;]|\.(?!\d)|$))",
        Reading.bare_seconds,
    ),
    (r"\bt ?= ?(?P<number>\d+(?:\.\d+)?)(?![\w:]|\.\d)", Reading.bare_seconds),
    (rf"\b(?:half[ -]?way|midway)\b|\bin the middle of (?:the |this )?{_VIDEO}\b", Reading.halfway),
]

# Stretches between moments, and beside one; then moments alone.
_SPANS: list[tuple[str, Phrase]] = [
    (rf"\b(?:between|from) {_FROM} ?(?:-|and|to|till|until|through|up to) ?{_TO}", Reading.between),
    (
        r"\{(?P<at1>[cdm]\d+)\} ?(?:-|to|until|till|through) ?\{(?P<at2>[cdm]\d+)\}",
        Reading.between_times,
    ),
    (
        rf"\b(?:after|since|from|later than|starting (?:at|from)) {_NEAR}?{_LEAD}{_AT}",
        Reading.after,
    ),
    (
        rf"\b(?:before|until|till|up until|prior to|earlier than) {_NEAR}?{_LEAD}{_AT}",
        Reading.before,
    ),
    (
        rf"(?:\bat {_LEAD}{_TOKEN}|{_STANDING})(?:(?: ?,| and| or|, and|, or) {_TOKEN})+",
        Reading.moments_listed,
    ),
    (rf"(?:\bat|@) (?P<about>{_NEAR})?{_LEAD}{_AT}", Reading.moment),
    (rf"\b(?P<about>around |near ){_LEAD}{_AT}", Reading.moment),
    (rf"(?P<about>{_NEAR})?{_STANDING}", Reading.moment),
]

_EDGES: list[tuple[str, Phrase]] = [
    (
        rf"\b(?:at|in|near|around) the (?:very )?(?:beginning|start|outset)\b{_OF_VIDEO}",
        Reading.beginning,
    ),
    (rf"\b(?:start|beginning|opening) of (?:the |this )?{_VIDEO}\b", Reading.beginning),
    (
        rf"\b(?:{_VIDEO}|{_HOW_IT}) (?:starts?|begins?|opens?|started|began|opened)\b",
        Reading.beginning,
    ),
    (r"\b(?:initially|at first|to (?:begin|start) with)\b", Reading.beginning),
    (rf"\b(?:at|in|near|towards?|by) the (?:very )?end\b{_OF_VIDEO}", Reading.end),
    (rf"\bend of (?:the |this )?{_VIDEO}\b", Reading.end),
    (
        rf"\b(?:{_VIDEO}|{_HOW_IT}) (?:ends?|ended|finish(?:es|ed)?|stops?|stopped|closes?)\b",
        Reading.end,
    ),
    (
        r"\b(?:finally|just now|moments ago|an? (?:moment|second) ago|(?:most )?recently)\b",
        Reading.end,
    ),
    (rf"{_NOT_UNTIL}\bnow\b|\bcurrently\b|\bat present\b", Reading.newest),
    (r"\bat (?:the|this) moment\b(?= ?(?:[?!.,;:]|$))", Reading.newest),
]

_PHRASES = [
    (re.compile(pattern), phrase)
    for pattern, phrase in _LENGTHS + _NO_TIMES + _MOMENTS + _SPANS + _EDGES
]
