"""Times named in questions: the phrasings people use, and the ordinary questions that name no
time.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from streaming.time_query.expressions import written_times
from streaming.time_query.spans import Span, chunk_ranges, in_seconds, named_spans, time_beyond

HOUR = 3600.0


def spans(question: str, now_seconds: float = 2 * HOUR) -> list[tuple[float, float]]:
    return [(span.start_seconds, span.stop_seconds) for span in named_spans(question, now_seconds)]


@pytest.mark.parametrize(
    ("question", "seconds"),
    [
        ("What is shown at 12:30?", 750),
        ("what is shown at 0:07", 7),
        ("What colour is the star at 1:02:03?", 3723),
        ("At 01:02:03, what is there?", 3723),
        ("12:30, what was on screen?", 750),
        ("What happens at 1:35.5?", 95.5),
        ("What is shown at 1:35 minutes?", 95),
        ("What is shown at exactly 1:35?", 95),
        ("What is shown at time 1:35?", 95),
        ("What is shown at t = 95?", 95),
        ("What is shown at t=95s?", 95),
        ("What was shown at 95 seconds?", 95),
        ("WHAT WAS SHOWN AT 95 SECONDS", 95),
        ("At 95 seconds, what is on screen?", 95),
        ("what do you see at 95s?", 95),
        ("what do you see at 95 sec.", 95),
        ("what do you see at 95.", 95),
        ("what do you see at 95.5 seconds?", 95.5),
        ("What is there 95 seconds in?", 95),
        ("What is there 95 seconds in, and what colour is it?", 95),
        ("What is there 95 seconds into the video?", 95),
        ("What is there 95 seconds after the start?", 95),
        ("What is there at the 95 second mark?", 95),
        ("What is there at the 95-second mark?", 95),
        ("What is there at the 2-minute mark?", 120),
        ("What is there at the 95th second?", 95),
        ("What is there at second 95?", 95),
        ("What is there at one second?", 1),
        ("What is there at twelve seconds?", 12),
        ("What is there at twenty-five seconds?", 25),
        ("What is there at forty two seconds?", 42),
        ("What is there at sixty seconds?", 60),
        ("What is there at 2 minutes and 5 seconds?", 125),
        ("What is there at 2 minutes 5 seconds?", 125),
        ("What is there at two minutes, five seconds?", 125),
        ("What is there at 2 min 5 s?", 125),
        ("What is there at 2m05s?", 125),
        ("What is there at 1h 2m 3s?", 3723),
        ("What is there at 1 hour, 2 minutes and 3 seconds?", 3723),
        ("What is there at one and a half minutes?", 90),
        ("What is there at 2 minutes and a half?", 150),
        ("What is there half an hour in?", 1800),
        ("What is there a minute in?", 60),
        ("What was there five minutes ago?", 2 * HOUR - 300),
        ("What was there a couple of minutes ago?", 2 * HOUR - 120),
        ("What was there 30 seconds before the end?", 2 * HOUR - 30),
    ],
)
def test_a_moment_is_a_narrow_span(question: str, seconds: float) -> None:
    assert spans(question) == [(seconds - 1, seconds + 1)]


@pytest.mark.parametrize(
    ("question", "start", "stop"),
    [
        ("What happened in the first minute?", 0, 60),
        ("What happened during the first 30 seconds?", 0, 30),
        ("What happened in the first five minutes?", 0, 300),
        ("What happened in the opening minute of the video?", 0, 60),
        ("How many stars in the last five minutes?", 6900, 7200),
        ("In the last 30s, what was shown?", 7170, 7200),
        ("What was shown over the past hour?", 3600, 7200),
        ("what happened in the previous minute", 7140, 7200),
        ("what happened in the last few minutes", 7020, 7200),
        ("what happened in the last second?", 7199, 7200),
        ("What happened in the final half minute?", 7170, 7200),
        ("What happened in the first half?", 0, 3600),
        ("What happened in the second half of the video?", 3600, 7200),
        ("What happened in the second minute?", 60, 120),
        ("What happened during the 3rd minute?", 120, 180),
        ("What happened in minute 3?", 180, 240),
        ("What happened in minute three?", 180, 240),
        ("What happened from minute 3 to minute 5?", 180, 300),
        ("What happened in minutes 3 to 5?", 180, 300),
        ("What happened in seconds 60-80?", 60, 80),
        ("What happened between 1:00 and 1:20?", 60, 80),
        ("What happened between about 1:00 and 1:20?", 60, 80),
        ("What happened from 1:00 to 1:20?", 60, 80),
        ("What happened from 1:20 to 1:00?", 60, 80),
        ("What happened 1:00-1:20?", 60, 80),
        ("What happened in 1:00 \N{EN DASH} 1:20?", 60, 80),
        ("What happened from 60 to 80 seconds?", 60, 80),
        ("What happened between 60 and 80 seconds?", 60, 80),
        ("What happened between 60 seconds and 80 seconds?", 60, 80),
        ("What happened between sixty and eighty seconds?", 60, 80),
        ("What happened between 50 seconds and 2 minutes?", 50, 120),
        ("What happened between 1 minute and 90 seconds?", 60, 90),
        ("What happened between 1 and 2 minutes?", 60, 120),
        ("What happened between one minute and five seconds and two minutes?", 65, 120),
        ("What happened from the beginning to 0:30?", 0, 30),
        ("What happened from 1:00 until the end of the video?", 60, 7200),
        ("What happened between five minutes ago and now?", 6900, 7200),
        ("What happened after the first minute?", 60, 7200),
        ("What happened before the last minute?", 0, 7140),
        ("What is there at the beginning?", 0, 10),
        ("What is shown at the start of the clip?", 0, 10),
        ("What was shown at the very beginning?", 0, 10),
        ("How does the video start?", 0, 10),
        ("What was visible initially?", 0, 10),
        ("What is there at the end?", 7190, 7200),
        ("What is shown at the end of the video?", 7190, 7200),
        ("How does it end?", 7190, 7200),
        ("What has just now happened?", 7190, 7200),
        ("What is the first thing shown?", 0, 10),
        ("What came first?", 0, 10),
        ("What is shown first?", 0, 10),
        ("What appears first in the video?", 0, 10),
        ("What was first shown?", 0, 10),
        ("What colour is the first shape?", 0, 10),
        ("the last shape shown, what is it?", 7190, 7200),
        ("What came last?", 7190, 7200),
        ("What is the last thing shown?", 7190, 7200),
        ("What is around 12:30?", 745, 755),
        ("What is there at about 95 seconds?", 90, 100),
        ("What is there halfway?", 3595, 3605),
        ("What is there halfway through the video?", 3595, 3605),
        ("What is there in the middle of the video?", 3595, 3605),
        ("What is happening now?", 7199, 7200),
        ("What is there right now?", 7199, 7200),
        ("What do you currently see?", 7199, 7200),
        ("What is shown at the moment?", 7199, 7200),
    ],
)
def test_a_stretch_is_one_span(question: str, start: float, stop: float) -> None:
    assert spans(question) == [(start, stop)]


@pytest.mark.parametrize(
    "question", ["after 2 minutes", "What came after 2:00?", "since 2:00", "from 2:00 onwards"]
)
def test_after_a_moment_is_the_rest_and_what_follows_at_once(question: str) -> None:
    assert spans(question) == [(120, 130), (120, 7200)]


@pytest.mark.parametrize(
    "question", ["before 0:30", "What happened before 30 seconds?", "until 0:30", "up until 0:30"]
)
def test_before_a_moment_is_the_past_and_what_led_to_it(question: str) -> None:
    assert spans(question) == [(0, 30), (20, 30)]


def test_several_times_in_one_question_are_all_named() -> None:
    assert spans("Is the thing at 0:10 also there at 5 minutes?") == [(9, 11), (299, 301)]
    assert spans("What is shown at 1 and 2 minutes?") == [(59, 61), (119, 121)]
    assert spans("What is shown at 10, 20 and 30 seconds?") == [(9, 11), (19, 21), (29, 31)]
    assert spans("Compare 1:00, 2:00 and 0:30.") == [(29, 31), (59, 61), (119, 121)]
    assert spans("What changed from the first minute to now?") == [(0, 60), (7199, 7200)]


@pytest.mark.parametrize(
    "question",
    [
        "",
        "?!",
        "What colour is the star?",
        "When does the red circle appear?",
        "At what time does the star appear?",
        "At which second is the star first shown?",
        "How many seconds does it last?",
        "How many minutes is the video long?",
        "What is second?",
        "The star that came second, what colour was it?",
        "What came after a second star?",
        "Which came first, the star or the circle?",
        "What was shown first, the star or the circle?",
        "Did the star appear first or last?",
        "What is the first shape after the star?",
        "What is the last thing before the circle?",
        "When did the star appear for the first time?",
        "When was the star last seen?",
        "How long does the star last?",
        "Does the star last 5 seconds?",
        "Is the star visible for 5 seconds?",
        "Is it longer than 2 minutes?",
        "What happens every 10 seconds?",
        "What is shown at 5 second intervals?",
        "Does it happen within 5 seconds?",
        "What comes 5 seconds after the star?",
        "Is this a 5-second clip?",
        "How many times 5 seconds in a row?",
        "Is the aspect ratio 16:10?",
        "When does the clock show 12:30?",
        "What happens at 12:30 pm?",
        "What is in the middle?",
        "What is at the end of the road?",
        "What is at the beginning of the race?",
        "What happens at the moment when the star appears?",
        "What has happened until now?",
        "How many shapes were there so far?",
        "What is in the second row?",
        "Who is the first person?",
        "What happens from the beginning to the end?",
        "Do you know what snow is?",
        "Are there 3 shapes?",
        "Is the 7 shown after the 5?",
        "Which digit is shown?",
        "What happens in this video?",
        "Describe the video.",
        "What is the weather like?",
        "{c0} {d1} {m2} #",
    ],
)
def test_an_ordinary_question_names_no_time(question: str) -> None:
    assert spans(question) == []
    assert in_seconds(question) == question


def test_spans_are_clipped_to_what_has_been_seen() -> None:
    assert spans("at 0:00", 100) == [(0, 1)]
    assert spans("at 1:40", 100) == [(99, 100)]
    assert spans("at 12:30", 100) == []
    assert spans("in the last five minutes", 100) == [(0, 100)]
    assert spans("in the first minute", 30) == [(0, 30)]
    assert spans("at the end", 3) == [(0, 3)]
    assert spans("what is there now?", 0) == [(0, 0)]


@pytest.mark.parametrize(
    ("question", "rewritten"),
    [
        ("What is shown at 1:35?", "What is shown at 95 seconds?"),
        ("what is  shown at 2 minutes 5 seconds ?", "what is  shown at 125 seconds ?"),
        ("At 1:02:03, what?", "At 3723 seconds, what?"),
        ("At 1:35.5?", "At 95.5 seconds?"),
        ("at 1:35 minutes?", "at 95 seconds?"),
        ("at 2m05s", "at 125 seconds"),
        ("at 24:00:00", "at 86400 seconds"),
        ("at twenty-five seconds", "at 25 seconds"),
        ("at about 2 min?", "at about 120 seconds?"),
        ("2 minutes in", "120 seconds in"),
        ("between 1:00 and 1:20", "between 60 seconds and 80 seconds"),
        ("between 1 and 2 minutes", "between 60 seconds and 120 seconds"),
        ("after 2 minutes, before 3:00", "after 120 seconds, before 180 seconds"),
        (
            "Wie sp\u00e4t? \u0130 at 1:35\u00a0\u2026 {x}",
            "Wie sp\u00e4t? \u0130 at 95 seconds\u00a0\u2026 {x}",
        ),
    ],
)
def test_moments_are_rewritten_in_seconds_and_all_else_is_kept(
    question: str, rewritten: str
) -> None:
    assert in_seconds(question) == rewritten
    assert in_seconds(rewritten) == rewritten


@pytest.mark.parametrize(
    "question",
    [
        "What is shown at 95 seconds?",
        "What is shown at 95s?",
        "What is shown at 7?",
        "What is shown  in the last five minutes?",
        "What happened 2 minutes ago?",
        "Is it there for 2 minutes?",
        "What is there in minute 3?",
        "Does the clock show 12:30?",
        "at 12:30 pm",
        "at the beginning\n",
    ],
)
def test_amounts_and_seconds_stay_as_they_are(question: str) -> None:
    assert in_seconds(question) == question


def test_no_text_breaks_the_reader() -> None:
    words = [
        "at",
        "the",
        "1:20",
        "5",
        "second",
        "seconds",
        "last",
        "first",
        "{d0}",
        "{m9}",
        "and",
        "a",
        "half",
        "minute",
        "to",
        "-",
        "from",
        "between",
        "now",
        "the end",
        "ago",
        "in",
        "?",
        "99999999999999999999 hours",
        "0:99",
        "3rd",
        "\u0663",
        "12:30:61",
        "twenty",
        "mark",
        "after",
        "before",
        "#",
        "\U0001f600",
        "2m",
        "5s",
        "hour",
    ]
    generator = random.Random(0)
    for _ in range(3000):
        question = " ".join(generator.choices(words, k=generator.randrange(1, 9)))
        for span in named_spans(question, 600.0):
            assert 0 <= span.start_seconds <= span.stop_seconds <= 600, question
        in_seconds(question)


@pytest.mark.parametrize(
    ("question", "rewritten"),
    [
        ("What is shown now?", "What is shown at 29 seconds?"),
        ("What is there right now", "What is there at 29 seconds"),
        ("What do you see at the moment?", "What do you see at 29 seconds?"),
        ("Now, what is there?", "at 29 seconds, what is there?"),
        (
            "What was at 0:10, and what is now?",
            "What was at 10 seconds, and what is at 29 seconds?",
        ),
    ],
)
def test_now_becomes_the_moment_that_the_stream_has_come_to(question: str, rewritten: str) -> None:
    assert in_seconds(question, now_seconds=29.5) == rewritten
    assert "29" not in in_seconds(question), "unless nobody says when now is"


@pytest.mark.parametrize(
    "question",
    [
        "What has happened until now?",
        "What has just now happened?",
        "What happened between five minutes ago and now?",
        "What changed from the first minute to now?",
        "Is the now famous dog there?",
        "Do you know what snow is?",
    ],
)
def test_now_stays_where_it_names_no_moment_of_its_own(question: str) -> None:
    assert in_seconds(question, now_seconds=29.5) == question


def test_written_times_do_not_overlap_and_stand_where_they_say() -> None:
    text = "From 1:20 to 2 min, 3 and 4 seconds; 1h 5m; twenty-five seconds."
    times = written_times(text)
    assert [text[time.start : time.stop] for time in times] == [
        "1:20",
        "2 min",
        "3",
        "4 seconds",
        "1h 5m",
        "twenty-five seconds",
    ]
    assert [time.seconds for time in times] == [80, 120, 3, 4, 3900, 25]
    assert all(a.stop <= b.start for a, b in pairwise(times))


CHUNKS = [(8.0 * i, 8.0 * i + 7.5) for i in range(10)]


@pytest.mark.parametrize(
    ("span", "indices"),
    [
        (Span(0, 1), [0]),
        (Span(5, 12), [0, 1]),
        (Span(8, 16), [1]),
        (Span(8, 16.1), [1, 2]),
        (Span(7.6, 7.9), [0]),  # between the last frame of a chunk and the first of the next
        (Span(79, 80), [9]),
        (Span(80, 80), [9]),
        (Span(500, 600), [9]),
        (Span(16, 16), [2]),
        (Span(0, 600), list(range(10))),
    ],
)
def test_a_span_touches_the_chunks_that_hold_it(span: Span, indices: list[int]) -> None:
    assert [list(found) for found in chunk_ranges([span], CHUNKS)] == [indices]


def test_each_span_has_its_own_chunks_and_an_empty_history_has_none() -> None:
    assert chunk_ranges([Span(0, 1), Span(70, 80)], CHUNKS) == [range(1), range(8, 10)]
    assert chunk_ranges([Span(0, 1)], []) == []
    assert chunk_ranges([Span(0, 1)], [(5.0, 6.0), (6.0, 7.0)]) == [range(1)]


@pytest.mark.parametrize(
    ("question", "seconds"),
    [
        ("What is at 1:02:03?", 3723.0),
        ("At t=200 what is shown?", 200.0),
        ("What happens in the third minute?", 120.0),
        ("What happens after 3:00?", 180.0),
        ("What is shown at 0:30?", None),
        ("What is shown at the end?", None),
        ("What was shown 4 minutes ago?", None),
        ("What is in the " + "9" * 400 + "th minute?", None),
        ("What is in second " + "9" * 400 + "?", None),
    ],
)
def test_a_time_beyond_what_was_seen_is_found(question: str, seconds: float | None) -> None:
    assert time_beyond(question, 100.0) == seconds


def test_a_time_named_by_its_letter_is_one() -> None:
    (span,) = named_spans("At t=20 what is shown?", 60.0)
    assert (span.start_seconds, span.stop_seconds) == (19.0, 21.0)
    assert named_spans("Is list=20 shown?", 60.0) == []
    assert named_spans("Is t=20x shown?", 60.0) == []
