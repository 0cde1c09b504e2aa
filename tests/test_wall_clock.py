"""Times of day in questions about a live stream, in the zone of the machine."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from streaming.time_query.spans import named_spans
from streaming.time_query.wall_clock import WallClock, rewrite_wall_times

BERLIN = ZoneInfo("Europe/Berlin")
BEGAN = datetime(2026, 11, 24, 8, 0, tzinfo=BERLIN)  # a Tuesday
NOW = datetime(2026, 11, 26, 16, 0, tzinfo=BERLIN)  # a Thursday


def clock_at(now: datetime, began: datetime = BEGAN) -> WallClock:
    """Of a stream that has been watched without a break."""
    start = began.timestamp()
    return WallClock(now, began, lambda wall: wall - start, now.timestamp() - start)


def periods(question: str, now: datetime = NOW, began: datetime = BEGAN) -> list[str]:
    """What a question names, and that the rest of longlook reads it so."""
    clock = clock_at(now, began)
    found = rewrite_wall_times(question, clock)
    spans = named_spans(found.question, clock.now_seconds)
    assert bool(spans) >= bool(found.periods), found.question
    return [f"{start:%d %H:%M} {stop:%d %H:%M}" for start, stop in found.periods]


@pytest.mark.parametrize(
    ("question", "named"),
    (
        ("Who came between 2 and 3 pm?", "26 14:00 26 15:00"),
        ("Who came between 11 am and 1 pm?", "26 11:00 26 13:00"),
        ("Who came between 14:00 and 15:30?", "26 14:00 26 15:30"),
        ("What happened from 10 pm to 2 am?", "25 22:00 26 02:00"),
        ("What happened since noon?", "26 12:00 26 16:00"),
        ("What happened since midnight?", "26 00:00 26 16:00"),
        ("What happened yesterday evening?", "25 18:00 25 23:00"),
        ("Did anyone come last night?", "25 21:00 26 06:00"),
        ("Was there a car this morning?", "26 05:00 26 12:00"),
        ("What did you see at 2:30 pm?", "26 14:30 26 14:31"),
        ("What was there at 14:30?", "26 14:30 26 14:31"),
        ("What was there at 14:30:10?", "26 14:30 26 14:30"),
        ("What was there at 9 pm?", "25 21:00 25 21:01"),
        ("What was there around 3 pm?", "26 14:55 26 15:05"),
        ("Yesterday between 9 am and 10:30 am, was there a dog?", "25 09:00 25 10:30"),
        ("Who came between 9 and 10 am on Tuesday?", "24 09:00 24 10:00"),
        ("on November 25 at 3 pm?", "25 15:00 25 15:01"),
        ("Who came after 3 pm yesterday?", "25 15:00 26 16:00"),
        ("What came since yesterday?", "25 00:00 26 16:00"),
        ("What was shown at 3 o'clock?", "26 15:00 26 15:01"),
        ("How many cars came today?", "26 00:00 27 00:00"),
    ),
)
def test_times_of_day_are_found(question: str, named: str) -> None:
    assert periods(question) == [named]


@pytest.mark.parametrize(
    "question",
    (
        "What is shown now?",
        "What was shown 2 minutes ago?",
        "What happened after 5 cars came?",
        "What is the number between 2 and 3?",
        "How many at 15?",
        "Was it a good morning?",
        "What happened in the last hour?",
        "Does the sign say from 5 to 6?",
        "Who may come in?",
    ),
)
def test_what_is_no_time_of_day_stays_as_it_is(question: str) -> None:
    assert rewrite_wall_times(question, clock_at(NOW)).question == question


def test_a_place_in_the_stream_is_left_alone_where_that_time_of_day_was_not_watched() -> None:
    began = datetime(2026, 11, 26, 15, 50, tzinfo=BERLIN)
    found = rewrite_wall_times("What was there at 1:35?", clock_at(NOW, began))
    assert found.question == "What was there at 1:35?"
    with_half = rewrite_wall_times("What was there at 1:35 pm?", clock_at(NOW, began))
    assert with_half.periods, "whoever writes pm means the clock on the wall"


def test_the_hour_that_comes_twice_and_the_one_that_is_missing_do_no_harm() -> None:
    began = datetime(2026, 10, 24, 12, 0, tzinfo=BERLIN)
    now = datetime(2026, 10, 25, 12, 0, tzinfo=BERLIN)  # the night in which clocks went back
    clock = clock_at(now, began)
    found = rewrite_wall_times("between 1 am and 4 am", clock)
    (start, stop) = found.periods[0]
    assert stop.timestamp() - start.timestamp() == 4 * 3600
    began = datetime(2026, 3, 28, 12, 0, tzinfo=BERLIN)
    now = datetime(2026, 3, 29, 12, 0, tzinfo=BERLIN)  # and forward
    (start, stop) = rewrite_wall_times("between 1 am and 4 am", clock_at(now, began)).periods[0]
    assert stop.timestamp() - start.timestamp() == 2 * 3600


def test_a_very_long_question_is_read_in_no_time() -> None:
    question = "between 2 and 3 pm yesterday " * 130
    assert len(rewrite_wall_times(question, clock_at(NOW)).periods) == 130
    assert rewrite_wall_times("at " * 1300, clock_at(NOW)).question == "at " * 1300
