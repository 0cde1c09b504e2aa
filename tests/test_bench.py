"""The recall bench asks what it says it asks, and counts hits as it says."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from bench import reopen
from bench.arms import Said
from bench.asked import PRESENT_GROUPS, Asked, Asker, long_stream
from bench.plot import Line, line_chart
from bench.recall import knobs, rank_of_truth
from models.demo.questions import Question
from models.demo.streams import Stream

SECONDS = 3600.0


@pytest.fixture(scope="module")
def stream() -> Stream:
    return long_stream(3, SECONDS)


def test_questions_are_the_same_for_the_same_seed(stream: Stream) -> None:
    asked = Asker(stream, 1).all(6)
    assert asked == Asker(long_stream(3, SECONDS), 1).all(6)
    assert asked != Asker(stream, 2).all(6)
    assert {a.kind for a in asked} == {"past", "present", "given time", "never"}


def test_past_questions_are_about_all_of_the_history_and_none_about_the_last_seconds(stream: Stream) -> None:
    starts = [a.spans[0][0] for a in Asker(stream, 1).past(32)]
    assert all(any(k * SECONDS / 4 <= start < (k + 1) * SECONDS / 4 for start in starts) for k in range(4))
    assert max(starts) < SECONDS - 40


def test_what_never_happened_is_nowhere_in_the_stream(stream: Stream) -> None:
    names = {thing.name for _, _, event in stream.events() for thing in event.things}
    asked = Asker(stream, 1).never(12)
    assert len(asked) == 12
    for a in asked:
        assert not a.spans and a.question.answer == "no"
        assert not any(f" {name}" in a.question.text for name in names)


def test_the_present_is_on_screen_when_it_is_asked_about(stream: Stream) -> None:
    asked = Asker(stream, 1).present(10)
    assert len(asked) > 5
    for a in asked:
        assert all(start < a.at_seconds and stop > a.at_seconds - PRESENT_GROUPS for start, stop in a.spans)
        assert a.at_seconds >= SECONDS / 2 - 4


def test_a_short_clip_shows_the_whole_event(stream: Stream) -> None:
    for a in Asker(stream, 1).all(8):
        start, stop = a.clip_seconds
        assert start < stop <= min(a.at_seconds, start + 28) and start % 4 == 0
        assert all(start <= span[0] and span[1] <= stop for span in a.spans if span[1] <= a.at_seconds)


def test_the_rank_of_the_truth_counts_the_stretches_before_it() -> None:
    asked = Asked("past", Question("when", "When?", "at 9 seconds"), ((8.0, 10.0),), 60.0)
    said = Said("", 0, 0.0, ((20.0, 24.0), (10.0, 12.0), (4.0, 8.5)))
    assert rank_of_truth(asked, said) == 2
    assert rank_of_truth(asked, Said("", 0, 0.0, said.ranked[:2])) > 100  # type: ignore[operator]
    assert rank_of_truth(asked, Said("", 0, 0.0)) is None
    assert rank_of_truth(Asked("never", asked.question, (), 60.0), said) is None


def test_memory_settings_are_read_from_one_line() -> None:
    assert knobs("recall_chunks=4,sure_below=0.5,sparse=salient") == {
        "recall_chunks": 4,
        "sure_below": 0.5,
        "sparse": "salient",
    }
    assert knobs("") == {}


def test_the_reopening_bench_opens_what_it_wrote(tmp_path: Path) -> None:
    with torch.enable_grad():  # what it switches off is on again behind this
        reopen.main([0.005], tmp_path / "reopen")
    openings = json.loads((tmp_path / "reopen.json").read_text())["openings"]
    assert [(o["kv_bits"], o["chunks"]) for o in openings] == [(16, 4), (8, 4)]
    assert all(o["watch_again_seconds"] > 0 and o["session_seconds"] > 0 for o in openings)
    assert "| ratio |" in (tmp_path / "reopen.md").read_text()


def test_a_chart_is_well_formed_whatever_the_names() -> None:
    lines = [Line("a < b & c", ((0.1, 0.5), (6.0, 1.0))), Line("one point", ((1.0, 0.2),))]
    root = ElementTree.fromstring(line_chart("<title>", "hours", "MiB", lines))
    texts = [element.text for element in root.iter() if element.text]
    assert "a < b & c" in texts and "<title>" in texts
    assert ElementTree.fromstring(line_chart("empty", "x", "y", [])) is not None
