"""Events as text and pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streaming.events import Evidence, Stats
from ui.conversation import Turn
from ui.render import (
    ModelInfo,
    Progress,
    StripPicture,
    chat_html,
    clock,
    counters,
    evidence_row,
    fraction,
    head_html,
    headline,
    linked_times,
    player_html,
    problem_sentence,
    progress_html,
    sentence,
    size,
    sources_html,
    span,
    strip_html,
    suggestions_html,
    thinned,
)

STATS = Stats(
    frames_read=1234,
    chunks=78,
    tokens=56789,
    watch_seconds=3.25,
    device_bytes=1_500_000,
    host_bytes=2_000_000_000,
)


DEMO = ModelInfo("demo", is_demo=True)
REAL = ModelInfo("Qwen/Qwen3-VL-4B-Instruct", is_demo=False)


def keyframe(pts_seconds: float) -> StripPicture:
    return StripPicture(pts_seconds, f"{pts_seconds}.jpg")


def extended(
    strip: tuple[StripPicture, ...], new: StripPicture, limit: int
) -> tuple[StripPicture, ...]:
    """The strip with one more picture, thinned to its limit."""
    longer = (*strip, new)
    surplus = thinned(longer, limit)
    return tuple(item for item in longer if item is not surplus)


def evidence(start: float, stop: float, score: float = 0.5, why: str = "recalled") -> Evidence:
    return Evidence(start, stop, score, why)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.99, "0:59"),
        (61, "1:01"),
        (3599.9, "59:59"),
        (3600, "1:00:00"),
        (86399, "23:59:59"),
        (-1, "0:00"),
    ],
)
def test_times_read_as_minutes_and_from_an_hour_on_as_hours(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_999, "1.0 MB"),
        (8_400_000, "8.4 MB"),
        (123_400_000, "123 MB"),
        (80_000_000_000, "80.0 GB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_bytes_are_shown_in_the_unit_people_would_choose(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_a_span_within_one_second_is_one_time() -> None:
    assert span(evidence(42.1, 42.9)) == "0:42"
    assert span(evidence(42.1, 58)) == "0:42–0:58"


def test_the_counters_show_every_size_of_the_memory() -> None:
    shown = {name: value for name, value, _ in counters(STATS)}
    assert shown == {
        "frames read": "1,234",
        "keyframes": "0",
        "chunks": "78",
        "tokens": "56,789",
        "device memory": "1.5 MB",
        "host memory": "2.0 GB",
    }


def test_progress_shows_how_far_and_how_long() -> None:
    progress = Progress("clip.mp4", pts_seconds=42, duration_seconds=60, stats=STATS)
    assert "clip.mp4: 0:42 of 1:00" in headline(progress)
    assert fraction(progress) == pytest.approx(0.7)
    assert "width:70.0%" in progress_html(progress, DEMO)
    watched = replace(progress, pts_seconds=59.5, state="watched")
    assert headline(watched) == "Finished clip.mp4 (1:00) in 3 s"
    assert (
        headline(replace(progress, state="stopped")) == "Stopped watching clip.mp4 at 0:42 of 1:00"
    )


def test_an_unknown_duration_is_not_made_up() -> None:
    progress = Progress("stream", pts_seconds=42)
    assert fraction(progress) == 0.0
    assert " of " not in headline(progress)


def test_names_and_sentences_from_outside_are_escaped() -> None:
    nasty = "<img src=x onerror=alert(1)>"
    progress = Progress(nasty, notices=(nasty,))
    for html in (
        progress_html(progress, DEMO),
        progress_html(replace(progress, state="failed", problem=nasty), DEMO),
        progress_html(replace(progress, state="watched"), DEMO),
        head_html(replace(REAL, name=nasty)),
        sources_html([nasty]),
        player_html(f'"{nasty}').replace("<video", ""),
        suggestions_html([nasty]),
        *(
            chat_html([Turn(0, nasty, state, nasty, notices=(nasty,))], progress)
            for state in ("waiting", "answering", "done", "stopped", "failed")
        ),
    ):
        assert "<img" not in html
        assert "&lt;img" in html


def test_the_demo_model_warns_about_uploads_and_a_real_one_does_not() -> None:
    upload = Progress("holiday.mp4", is_upload=True)
    assert "only coloured shapes and digits" in progress_html(upload, DEMO)
    assert "shapes" not in progress_html(upload, REAL)
    assert "shapes" not in progress_html(Progress("one_minute.mp4"), DEMO)
    assert "only coloured shapes and digits" in head_html(DEMO)
    assert REAL.name in head_html(REAL) and "shapes" not in head_html(REAL)


def test_a_problem_names_the_file_and_not_the_servers_folders() -> None:
    assert (
        problem_sentence("/tmp/x/abc/a.mp4 is not a video.", "/tmp/x/abc/a.mp4", "a.mp4")
        == "a.mp4 is not a video."
    )


def test_an_answer_shows_its_best_evidence_with_pictures_and_names_the_rest() -> None:
    found = (evidence(70, 78, 4.2), evidence(10, 18, 0.4), evidence(52, 60, 0.1, "recent"))
    turn = Turn(0, "When?", "done", "at 72 seconds", found, ("picture.jpg", "", ""))
    html = chat_html([turn], Progress("clip", duration_seconds=100))
    assert 'data-seek="70.000"' in html and "picture.jpg" in html
    assert html.count("<img") == 1
    also = html[html.index("Also looked at") :]
    assert also.index("0:10–0:18") < also.index("0:52–1:00"), "in time order"
    assert "1:10–1:18" not in also


def test_an_answer_given_while_watching_says_how_far_that_was() -> None:
    progress = Progress("clip", duration_seconds=600)
    assert "when 0:12 of 10:00 had been watched" in chat_html(
        [Turn(0, "?", "done", "no", seen_seconds=12)], progress
    )
    assert "watched" not in chat_html([Turn(0, "?", "done", "no")], progress)


def test_waiting_questions_say_what_they_wait_for() -> None:
    turns = [Turn(0, "a", "answering"), Turn(1, "b"), Turn(2, "c")]
    html = chat_html(turns, Progress("clip", stats=STATS))
    assert "Looking back" in html
    assert "Waiting for 1 question before" in html
    assert "Waiting for 2 questions before" in html
    assert "first seconds" in chat_html(turns[:1], Progress("clip"))


def test_times_in_an_answer_are_written_for_people_and_move_the_player() -> None:
    assert ">8:38</button>" in linked_times("at 518 seconds", 600)
    assert 'data-seek="518"' in linked_times("at 518 seconds", 600)
    assert 'data-seek="3723"' in linked_times("From 1:02:03 on.", 0)
    assert linked_times("it lasts 5 seconds", 600) == "it lasts 5 seconds"
    assert "<button" not in linked_times("The clock showed 23:59.", 600), "no time of this video"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("down", "Down."),
        ("A dog!", "A dog!"),
        ("at 45 seconds", "At 45 seconds."),
        ("7", "7."),
        ("", ""),
        ("ok.", "Ok."),
    ],
)
def test_a_short_answer_is_a_sentence(text: str, written: str) -> None:
    assert sentence(text) == written


def test_only_what_was_searched_for_shows_a_score() -> None:
    assert evidence_row(evidence(70, 78, 0.912)) == ("1:10–1:18", "recalled", "0.91")
    assert evidence_row(evidence(10, 18, 0.0, "recent")) == ("0:10–0:18", "recent", "")


def test_the_strip_never_outgrows_its_limit_and_keeps_both_ends() -> None:
    strip: tuple[StripPicture, ...] = ()
    for second in range(1000):
        strip = extended(strip, keyframe(second), 24)
    assert len(strip) == 24
    assert (strip[0].pts_seconds, strip[-1].pts_seconds) == (0, 999)


def test_the_strip_stays_evenly_spread_however_long_the_stream() -> None:
    strip: tuple[StripPicture, ...] = ()
    for second in range(5000):
        strip = extended(strip, keyframe(second), 24)
    gaps = np.diff([item.pts_seconds for item in strip])
    assert gaps.max() <= 4 * 5000 / 24
    newest_only = np.diff([*range(23), 4999])  # what keeping the first ones would look like
    assert newest_only.max() > 4 * 5000 / 24


def test_a_strip_without_room_for_two_is_refused() -> None:
    with pytest.raises(ValueError, match="not for 1"):
        thinned((keyframe(0),), 1)


def test_pictures_of_the_strip_are_named_by_their_times() -> None:
    html = strip_html([keyframe(0), keyframe(75)])
    assert 'aria-label="Go to 0:00"' in html
    assert 'data-seek="75.000"' in html
