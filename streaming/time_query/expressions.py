"""Times as people write them: where in a text they stand, and how many seconds they mean.

Reads clocks (1:35, 1:02:03), and writes them; reads amounts (95 s, 2 minutes and 5 seconds, half an
hour, twenty-five seconds) and compact forms (2m05s). English. Knows nothing of what a time is used
for: `spans.py` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: float(value) for value, word in enumerate(("zero", *_ONES, *_TEENS))}
_VALUES |= {word: 20.0 + 10 * i for i, word in enumerate(_TENS)}
_VALUES |= {"a": 1.0, "an": 1.0, "half a": 0.5, "half an": 0.5, "a half": 0.5, "half": 0.5}
_VALUES |= {"couple of": 2.0, "a couple of": 2.0, "few": 3.0, "a few": 3.0}
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}

_WORD = rf"(?:{'|'.join(_TENS)})(?:[-\s](?:{'|'.join(_ONES)}))?|{'|'.join(_TEENS)}|{'|'.join(_ONES)}|zero"  # noqa: E501
# what `number` reads; without groups, for other patterns
NUMBER = rf"(?:\d+(?:\.\d+)?|\b(?:{_WORD})\b)"
_VAGUE = r"\b(?:half\s+an?|(?:a\s+)?half|(?:a\s+)?couple\s+of|(?:a\s+)?few)\b"
_ARTICLE = r"\ban?\b(?=\s+(?:min|hour))"  # "a second" is mostly an ordinal
_UNIT = r"(?:s|secs?|seconds?|min|mins|minutes?|h|hrs?|hours?)(?![a-z\d])"
_FLAGS = re.IGNORECASE

_CLOCK = re.compile(
    r"(?<![\w:.])(?:(?P<h>\d{1,2}):(?P<hm>[0-5]\d)|(?P<m>\d{1,3})):(?P<s>[0-5]\d(?:\.\d+)?)(?![\d:])"
    r"(?!\s*[ap]\.?m\b)(?:\s*(?:minutes?|mins?|hours?|hrs?)\b)?",
    _FLAGS,
)
_COMPACT = re.compile(
    r"(?<![\w:.])(?:(?P<h>\d+)\s?h\s?(?=\d))?(?:(?P<m>\d+)\s?m(?![a-z]))?\s?(?:(?P<s>\d+(?:\.\d+)?)\s?s(?:ec)?)?(?![a-z\d])",
    _FLAGS,
)
_AMOUNT = re.compile(
    rf"(?<![\w:.])(?P<count>{NUMBER}|{_VAGUE}|{_ARTICLE})(?P<half>\s+and\s+a\s+half)?[-\s]*(?P<unit>{_UNIT})"
    r"(?P<tail>\s+and\s+a\s+half\b)?",
    _FLAGS,
)
_BARE = re.compile(
    rf"(?<![\w:.])(?P<count>{NUMBER})\s*(?:-|–|—|to|and|until|till|through)\s*$", _FLAGS
)
_JOINT = re.compile(r"[\s,]*(?:and\s+)?", _FLAGS)


@dataclass(frozen=True)
class WrittenTime:
    """A time in a text: characters `start` to `stop`, half-open.

    is_clock: written with colons. in_seconds: already written as digits and seconds, nothing else.
    unit_seconds: seconds of the last unit written, 1 for a clock.
    """

    start: int
    stop: int
    seconds: float
    is_clock: bool = False
    in_seconds: bool = False
    unit_seconds: float = 1.0


def number(text: str) -> float:
    """The value of what NUMBER (or "a few", "half an" before a unit) matches."""
    if text[0].isdigit():
        return float(text)
    words = re.split(r"[-\s]+", text.lower())
    whole = " ".join(words)
    return _VALUES[whole] if whole in _VALUES else sum(_VALUES[word] for word in words)


def clock(seconds: float) -> str:
    """`seconds` as m:ss, from an hour on h:mm:ss; fractions are cut off."""
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def written_times(text: str) -> list[WrittenTime]:
    """All times in a text, in order, not overlapping."""
    found = [_clock(match) for match in _CLOCK.finditer(text)]
    found += [_compact(match) for match in _COMPACT.finditer(text) if _num_parts(match) > 1]
    taken = [False] * len(text)
    for time in found:
        taken[time.start : time.stop] = [True] * (time.stop - time.start)
    amounts = [
        _amount(match)
        for match in _AMOUNT.finditer(text)
        if not any(taken[match.start() : match.end()])
    ]
    amounts = _joined(text, amounts)
    borders = [0, *(amount.stop for amount in amounts)]
    bare = [
        _inherited(text, border, amount) for border, amount in zip(borders, amounts, strict=False)
    ]
    return sorted([*found, *amounts, *filter(None, bare)], key=lambda time: time.start)


def _clock(match: re.Match[str]) -> WrittenTime:
    hours, minutes = float(match["h"] or 0), float(match["hm"] or match["m"])
    return WrittenTime(
        match.start(), match.end(), 3600 * hours + 60 * minutes + float(match["s"]), is_clock=True
    )


def _num_parts(match: re.Match[str]) -> int:
    return sum(match[name] is not None for name in "hms")


def _compact(match: re.Match[str]) -> WrittenTime:
    seconds = sum(float(match[name] or 0) * unit for name, unit in _UNIT_SECONDS.items())
    return WrittenTime(match.start(), match.end(), seconds)


def _amount(match: re.Match[str]) -> WrittenTime:
    unit = _UNIT_SECONDS[match["unit"][0].lower()]
    count = number(match["count"]) + (0.5 if match["half"] or match["tail"] else 0.0)
    plain = unit == 1.0 and match["count"][0].isdigit() and not match["half"] and not match["tail"]
    return WrittenTime(
        match.start(), match.end(), count * unit, in_seconds=plain, unit_seconds=unit
    )


def _joined(text: str, amounts: list[WrittenTime]) -> list[WrittenTime]:
    """Neighbours such as "2 minutes and 5 seconds" as one time."""
    joined: list[WrittenTime] = []
    for time in amounts:
        if joined and _belong_together(text, joined[-1], time):
            last = joined.pop()
            time = WrittenTime(
                last.start, time.stop, last.seconds + time.seconds, unit_seconds=time.unit_seconds
            )
        joined.append(time)
    return joined


def _belong_together(text: str, larger: WrittenTime, smaller: WrittenTime) -> bool:
    """Units descend, the smaller amount does not fill the larger unit, and only "and" or a comma is
    between them.
    """
    descends = smaller.unit_seconds < larger.unit_seconds and smaller.seconds < larger.unit_seconds
    return descends and _JOINT.fullmatch(text, larger.stop, smaller.start) is not None


def _inherited(text: str, border: int, amount: WrittenTime) -> WrittenTime | None:
    """The "60" of "60 to 80 seconds", which has its unit from the amount behind it; not before
    `border`.
    """
    match = _BARE.search(text, border, amount.start)
    if not match:
        return None
    seconds = number(match["count"]) * amount.unit_seconds
    return WrittenTime(
        match.start("count"), match.end("count"), seconds, in_seconds=amount.in_seconds
    )
