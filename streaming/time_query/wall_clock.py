"""Times by the clock on the wall in a question, turned into seconds of the stream.

"Who came between 2 and 3 pm?" becomes "Who came between 5400 seconds and 9000 seconds?", and the
rest of longlook reads that. Only for streams that know when they were: in a film "at 2:30" is a
place in the film. English; the zone is that of the machine, with its daylight saving. Knows nothing
of sessions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo

_WORDS = {"noon": (12, 0), "midday": (12, 0), "midnight": (0, 0)}
# (first hour, first hour after); evening and night end where people say so, not at midnight
_DAY_PARTS = {
    "morning": (5, 12),
    "afternoon": (12, 18),
    "evening": (18, 23),
    "night": (21, 30),
}
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_MINUTE = timedelta(minutes=1)  # what "at 2:30 pm" names
_ABOUT = timedelta(minutes=5)  # how far "around 2:30 pm" reaches to both sides

_DAY = (
    r"(?:(?:on )?(?P<day{n}>today|yesterday|the day before yesterday|"
    rf"(?:last )?(?:{'|'.join(_WEEKDAYS)})|"
    rf"(?:{'|'.join(_MONTHS)}) \d{{{{1,2}}}}(?:st|nd|rd|th)?|"
    rf"(?:the )?\d{{{{1,2}}}}(?:st|nd|rd|th)?(?: of)? (?:{'|'.join(_MONTHS)})|"
    r"\d{{4}}-\d{{2}}-\d{{2}}))"
)
_TIME = (
    r"(?P<time{n}>(?P<hour{n}>\d{{1,2}})(?:[:.](?P<minute{n}>[0-5]\d)(?::(?P<second{n}>[0-5]\d))?)?"
    r"(?: ?(?P<half{n}>[ap])\.?m\b\.?| o'?clock)?|noon|midday|midnight)"
)
_PART = r"(?P<part{n}>morning|afternoon|evening|night)"


def _pattern(text: str) -> re.Pattern[str]:
    """@time1 and the like stand for the patterns above, {day1} with its comma or "at"."""

    def expand(match: re.Match[str]) -> str:
        kind, number = match[1], match[2]
        source = {"time": _TIME, "day": _DAY, "part": _PART}[kind]
        return source.format(n=number)

    return re.compile(re.sub(r"@(time|day|part)(\d)", expand, text), re.IGNORECASE)


_BEFORE = r"(?:@day1,? )?"
_AFTER = r"(?:,? @day2)?"
_RANGE = _pattern(
    rf"\b{_BEFORE}(?P<word>between|from) {_BEFORE.replace('1', '3')}(?:at )?@time1 ?"
    rf"(?:and|to|until|till|-) ?@time2{_AFTER}(?![\w:])"
)
_SIDE = _pattern(
    rf"\b{_BEFORE}(?P<word>since|after|before|until|till|from) (?:about |around )?"
    rf"(?:@day3,? (?:at )?)?@time1{_AFTER}(?P<on> on(?:wards?)?)?(?![\w:])"
)
_AT = _pattern(
    rf"\b(?:@day1,? )?(?P<word>at|around|about) (?:about |around )?@time1{_AFTER}(?![\w:])"
)
_LAST_NIGHT = _pattern(r"\b(?P<word>since |after |before |until )?last (?P<part1>night|evening)\b")
_THIS_PART = _pattern(
    r"\b(?P<word>since |after |before |until )?"
    r"(?:this|in the|during the) (?P<part1>morning|afternoon|evening|night)\b"
)
_TONIGHT = _pattern(r"\b(?P<word>since |after |before |until )?tonight\b")
_DAYS_PART = _pattern(r"\b(?P<word>since |after |before |until )?@day1(?:'s)? @part1\b")
_WHOLE_DAY = _pattern(r"\b(?P<word>since |after |before |until )?(?:all (?:day )?)?@day1\b")


@dataclass(frozen=True)
class WallClock:
    """What is needed to read times: which moment it is now, and where a moment is in the stream.

    now: with its zone. began: when the stream did. seconds_at: of the stream, at a wall-clock time
    in seconds since 1970. now_seconds: of the stream, up to which it was watched.
    """

    now: datetime
    began: datetime
    seconds_at: Callable[[float], float]
    now_seconds: float


@dataclass(frozen=True)
class Rewritten:
    """A question in seconds of the stream; periods: what it named, each (start, stop)."""

    question: str
    periods: tuple[tuple[datetime, datetime], ...]


def rewrite_wall_times(question: str, clock: WallClock) -> Rewritten:
    """Everything else stays as it is, character by character."""
    reading = _Reading(clock)
    for pattern, phrase in (
        (_RANGE, reading.range),
        (_SIDE, reading.side),
        (_AT, reading.moment),
        (_LAST_NIGHT, reading.last_night),
        (_TONIGHT, reading.tonight),
        (_THIS_PART, reading.this_part),
        (_DAYS_PART, reading.days_part),
        (_WHOLE_DAY, reading.whole_day),
    ):
        question = pattern.sub(phrase, question)
    return Rewritten(question, tuple(reading.periods))


class _Reading:
    """The phrases of one question; each gives what stands there instead."""

    def __init__(self, clock: WallClock) -> None:
        self.periods: list[tuple[datetime, datetime]] = []
        self._clock = clock

    def range(self, match: re.Match[str]) -> str:
        day = self._day(match, "day1", "day2", "day3")
        stop = self._time(match, "2", day)
        start = self._time(match, "1", day, default_half=match["half2"])
        if start is None or stop is None:
            return match[0]
        if stop <= start:
            stop += timedelta(days=1)  # between 10 pm and 2 am
            if stop > self._clock.now and day is None:
                start, stop = start - timedelta(days=1), stop - timedelta(days=1)
        return self._between(start, stop)

    def side(self, match: re.Match[str]) -> str:
        if match["word"].lower() == "from" and not match["on"]:
            return match[0]
        at = self._time(match, "1", self._day(match, "day1", "day2", "day3"))
        return match[0] if at is None else self._beside(match["word"], at, at)

    def moment(self, match: re.Match[str]) -> str:
        at = self._time(match, "1", self._day(match, "day1", "day2"))
        if at is None:
            return match[0]
        if match["word"].lower() != "at":
            return self._between(at - _ABOUT, at + _ABOUT)
        if match["second1"]:
            self.periods.append((at, at + timedelta(seconds=1)))
            return f"at {self._seconds(at)} seconds"
        return self._between(at, at + _MINUTE)

    def last_night(self, match: re.Match[str]) -> str:
        return self._part(match, self._today() - timedelta(days=1))

    def tonight(self, match: re.Match[str]) -> str:
        return self._span(match["word"], self._today(), (18, 30))

    def this_part(self, match: re.Match[str]) -> str:
        return self._part(match, self._today())

    def days_part(self, match: re.Match[str]) -> str:
        day = self._day(match, "day1")
        return match[0] if day is None else self._part(match, day)

    def whole_day(self, match: re.Match[str]) -> str:
        day = self._day(match, "day1")
        return match[0] if day is None else self._span(match["word"], day, (0, 24))

    def _part(self, match: re.Match[str], day: date) -> str:
        return self._span(match["word"], day, _DAY_PARTS[match["part1"].lower()])

    def _span(self, word: str | None, day: date, hours: tuple[int, int]) -> str:
        start, stop = (self._moment(day, hour) for hour in hours)
        return self._beside(word, start, stop) if word else self._between(start, stop)

    def _between(self, start: datetime, stop: datetime) -> str:
        self.periods.append((start, stop))
        return f"between {self._seconds(start)} seconds and {self._seconds(stop)} seconds"

    def _beside(self, word: str, start: datetime, stop: datetime) -> str:
        """Since or before a stretch, whole or a moment."""
        word = word.strip().lower()
        if word in ("before", "until", "till"):
            self.periods.append((datetime.fromtimestamp(0, start.tzinfo), start))
            return f"before {self._seconds(start)} seconds"
        at = stop if word == "after" else start
        self.periods.append((at, self._clock.now))
        now_seconds = self._whole(self._clock.now_seconds)
        return f"between {self._seconds(at)} seconds and {now_seconds} seconds"

    def _seconds(self, at: datetime) -> str:
        return self._whole(self._clock.seconds_at(at.timestamp()))

    def _whole(self, seconds: float) -> str:
        return f"{max(0.0, min(seconds, self._clock.now_seconds)):.0f}"

    def _today(self) -> date:
        return self._clock.now.date()

    def _moment(self, day: date, hour: int, minute: int = 0, second: int = 0) -> datetime:
        """By the clock on the wall, whatever daylight saving did; hours go on after 24."""
        day += timedelta(days=hour // 24)
        naive = datetime.combine(day, time(hour % 24, minute, second))
        return zoned(naive, self._clock.now.tzinfo)

    def _day(self, match: re.Match[str], *names: str) -> date | None:
        for name in names:
            if match[name]:
                return day_of(match[name].lower(), self._today())
        return None

    def _time(
        self,
        match: re.Match[str],
        number: str,
        day: date | None,
        default_half: str | None = None,
    ) -> datetime | None:
        """A time of day; the last one that has been, where no day and no half of it is named.

        None for a number that is no time: "after 5 cars", "at 15".
        """
        text = match[f"time{number}"].lower()
        if text in _WORDS:
            hour, minute = _WORDS[text]
            return self._last(day, [(hour, minute, 0)])
        half = (match[f"half{number}"] or default_half or "").lower()
        hour, minute = int(match[f"hour{number}"]), int(match[f"minute{number}"] or 0)
        second = int(match[f"second{number}"] or 0)
        is_time = half or match[f"minute{number}"] or "clock" in text
        if not is_time and not (number == "1" and match.re is _RANGE and self._is_hour(match)):
            return None
        if hour > 23 or (half and not 1 <= hour <= 12):
            return None
        if half:
            return self._last(day, [(hour % 12 + (12 if half == "p" else 0), minute, second)])
        if "clock" in text and 1 <= hour < 12:
            return self._last(day, [(hour, minute, second), (hour + 12, minute, second)])
        found = self._last(day, [(hour, minute, second)])
        # "at 1:35" is a place in a stream that was not there yet at that time of day
        return found if found >= self._clock.began - _ABOUT else None

    def _is_hour(self, match: re.Match[str]) -> bool:
        """Whether the second time of a range makes the first number an hour: 2 and 3 pm."""
        return bool(match["half2"] or match["minute2"])

    def _last(self, day: date | None, times: list[tuple[int, int, int]]) -> datetime:
        """The newest of these times that has been: today's, else yesterday's."""
        if day is not None:
            return min(self._moment(day, *at) for at in times)
        days = (self._today(), self._today() - timedelta(days=1))
        found = [self._moment(one, *at) for one in days for at in times]
        return max(at for at in found if at <= self._clock.now)


def day_of(text: str, today: date) -> date | None:
    """The day that a phrase names, the newest one that is not to come."""
    text = re.sub(r"^(?:on |the |last )+", "", text)
    if text == "today":
        return today
    if text == "yesterday":
        return today - timedelta(days=1)
    if text == "day before yesterday":
        return today - timedelta(days=2)
    if text in _WEEKDAYS:
        back = (today.weekday() - _WEEKDAYS.index(text)) % 7
        return today - timedelta(days=back or 7)
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return _valid_day(*(int(part) for part in text.split("-")))
    month = next(place for place, name in enumerate(_MONTHS, 1) if name in text)
    found = re.search(r"\d+", text)
    assert found is not None
    day = _valid_day(today.year, month, int(found[0]))
    if day is not None and day > today:
        day = _valid_day(today.year - 1, month, int(found[0]))
    return day


def _valid_day(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


def zoned(naive: datetime, zone: tzinfo | None) -> datetime:
    """A time on the wall in a zone. A fixed offset is this machine's zone, which changes with the
    seasons.
    """
    if zone is None or hasattr(zone, "key"):
        return naive.replace(tzinfo=zone)
    return naive.astimezone()
