"""Events as text and pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streaming.events import Answer, AnswerPiece, AskEvent, Evidence, Stats, Thumbnail
from ui.render import (
    Progress,
    answer_markdown,
    clock,
    counters,
    evidence_label,
    evidence_row,
    extended,
    fraction,
    gallery,
    headline,
    paced,
    problem_sentence,
    progress_html,
    size,
    span,
)

STATS = Stats(
    frames_read=1234, chunks=78, tokens=56789, watch_seconds=3.25, device_bytes=1_500_000, host_bytes=2_000_000_000
)


def thumbnail(pts_seconds: float) -> Thumbnail:
    return Thumbnail(pts_seconds, np.zeros((4, 6, 3), np.uint8))


def evidence(start: float, stop: float, score: float = 0.5, why: str = "recalled") -> Evidence:
    return Evidence(start, stop, score, why)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00"), (59.99, "00:59"), (61, "01:01"), (3599.9, "59:59"), (3600, "1:00:00"), (86399, "23:59:59"),
     (-1, "00:00")],
)  # fmt: skip
def test_times_read_as_minutes_and_from_an_hour_on_as_hours(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB"), (8_400_000, "8.4 MB"), (123_400_000, "123 MB"),
     (80_000_000_000, "80.0 GB"), (5_000_000_000_000_000, "5000 TB")],
)  # fmt: skip
def test_bytes_are_shown_in_the_unit_people_would_choose(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_a_span_within_one_second_is_one_time() -> None:
    assert span(evidence(42.1, 42.9)) == "00:42"
    assert span(evidence(42.1, 58)) == "00:42–00:58"


def test_the_counters_show_every_size_of_the_memory() -> None:
    shown = dict(counters(STATS))
    assert shown == {
        "frames read": "1,234",
        "chunks": "78",
        "tokens": "56,789",
        "device memory": "1.5 MB",
        "host memory": "2.0 GB",
    }


def test_progress_shows_how_far_and_how_long() -> None:
    progress = Progress("clip.mp4", pts_seconds=42, duration_seconds=60, stats=STATS)
    assert "clip.mp4: 00:42 of 01:00" in headline(progress)
    assert fraction(progress) == pytest.approx(0.7)
    assert "width:70.0%" in progress_html(progress)
    assert "in 3.2 s" in headline(replace(progress, state="watched"))


def test_an_unknown_duration_is_not_made_up() -> None:
    progress = Progress("stream", pts_seconds=42)
    assert fraction(progress) == 0.0
    assert " of " not in headline(progress)


def test_names_and_sentences_from_outside_are_escaped() -> None:
    nasty = "<img src=x onerror=alert(1)>"
    for progress in (
        Progress(nasty),
        Progress("clip", notices=(nasty,)),
        Progress("clip", state="failed", problem=nasty),
        Progress(nasty, state="watched"),
    ):
        html = progress_html(progress)
        assert "<img" not in html
        assert "&lt;img" in html


def test_a_problem_names_the_file_and_not_the_servers_folders() -> None:
    assert problem_sentence("/tmp/x/abc/a.mp4 is not a video.", "/tmp/x/abc/a.mp4", "a.mp4") == "a.mp4 is not a video."


def test_an_answer_ends_with_the_times_it_looked_at_in_time_order() -> None:
    found = (evidence(70, 78, 0.9), evidence(10, 18, 0.4))
    assert answer_markdown(Answer("q", "red", found, STATS)) == "red\n\n*looked at 00:10–00:18, 01:10–01:18*"
    assert answer_markdown(Answer("q", "red", (), STATS)) == "red"


def test_only_what_was_searched_for_shows_a_score() -> None:
    assert evidence_row(evidence(70, 78, 0.912)) == ("01:10–01:18", "recalled", "0.91")
    assert evidence_label(evidence(70, 78, 0.912)) == "01:10–01:18 · recalled · 0.91"
    assert evidence_label(evidence(10, 18, 0.0, "recent")) == "00:10–00:18 · recent"


def test_the_strip_never_outgrows_its_limit_and_keeps_both_ends() -> None:
    strip: tuple[Thumbnail, ...] = ()
    for second in range(1000):
        strip = extended(strip, thumbnail(second), 24)
    assert len(strip) == 24
    assert (strip[0].pts_seconds, strip[-1].pts_seconds) == (0, 999)


def test_the_strip_stays_evenly_spread_however_long_the_stream() -> None:
    strip: tuple[Thumbnail, ...] = ()
    for second in range(5000):
        strip = extended(strip, thumbnail(second), 24)
    gaps = np.diff([item.pts_seconds for item in strip])
    assert gaps.max() <= 4 * 5000 / 24
    newest_only = np.diff([*range(23), 4999])  # what keeping the first ones would look like
    assert newest_only.max() > 4 * 5000 / 24


def test_a_strip_without_room_for_two_is_refused() -> None:
    with pytest.raises(ValueError, match="not for 1"):
        extended((), thumbnail(0), 1)


def test_gallery_captions_are_times() -> None:
    assert [caption for _, caption in gallery([thumbnail(0), thumbnail(75)])] == ["00:00", "01:15"]


def test_a_growing_answer_is_shown_at_most_once_per_interval_and_always_whole_at_the_end() -> None:
    clock_seconds = iter(range(1000))
    answer = Answer("q", "word " * 50, (), STATS)
    events: list[AskEvent] = [*[AnswerPiece("word ")] * 50, answer]
    shown = list(paced(events, 10, lambda: float(next(clock_seconds))))
    assert 2 <= len(shown) <= 12
    assert shown[-1] == (answer.text, answer)
    assert all(answer.text.startswith(text) for text, _ in shown)


def test_the_first_piece_of_an_answer_is_shown_at_once() -> None:
    assert next(paced([AnswerPiece("The")], 10, lambda: 0.0)) == ("The", None)
