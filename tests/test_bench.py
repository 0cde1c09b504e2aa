"""The recall bench asks what it says it asks, and counts hits as it says."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.progress import Progress

from bench import reopen
from bench.arms import Said
from bench.asked import PRESENT_GROUPS, Asked, Asker, long_stream, thing_named
from bench.plot import Line, line_chart
from bench.recall import Bench, knobs, rank_of_truth
from bench.report import LAST_FRAMES, OURS, SHORT_CLIP, WINDOW
from config import AnswerConfig, Config
from models.calibration import Profile, RetrievalHead
from models.loading import load
from streaming.engine import Engine
from tests.tiny import save_tiny
from training.questions import Question
from training.streams import Stream

SECONDS = 3600.0


@pytest.fixture(scope="module")
def stream() -> Stream:
    return long_stream(3, SECONDS)


def test_questions_are_the_same_for_the_same_seed(stream: Stream) -> None:
    asked = Asker(stream, 1).all(6)
    assert asked == Asker(long_stream(3, SECONDS), 1).all(6)
    assert asked != Asker(stream, 2).all(6)
    assert {a.kind for a in asked} == {"past", "present", "given time", "never"}


def test_past_questions_are_about_all_of_the_history_and_none_about_the_last_seconds(
    stream: Stream,
) -> None:
    starts = [a.spans[0][0] for a in Asker(stream, 1).past(32)]
    assert all(
        any(k * SECONDS / 4 <= start < (k + 1) * SECONDS / 4 for start in starts) for k in range(4)
    )
    assert max(starts) < SECONDS - 40


def test_a_name_is_the_same_whatever_words_stand_around_it() -> None:
    said = ("Is there a red ring?", "Any red ring", "Have you seen a Red ring in the clip.")
    assert {thing_named(text) for text in said} == {"red ring"}
    assert thing_named("Was a digit 3 there in the footage") == "digit 3"
    assert thing_named("Can you see a star?") == "star"


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
        assert all(
            start < a.at_seconds and stop > a.at_seconds - PRESENT_GROUPS for start, stop in a.spans
        )
        assert a.at_seconds >= SECONDS / 2 - 4


def test_a_short_clip_shows_the_whole_event(stream: Stream) -> None:
    for a in Asker(stream, 1).all(8):
        start, stop = a.clip_seconds
        assert start < stop <= min(a.at_seconds, start + 28) and start % 4 == 0
        assert all(
            start <= span[0] and span[1] <= stop for span in a.spans if span[1] <= a.at_seconds
        )


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


def test_a_logarithmic_chart_spans_powers_of_ten() -> None:
    root = ElementTree.fromstring(
        line_chart("bytes", "x", "y", [Line("a", ((0.1, 0.9), (6.0, 2500.0)))], log_y=True)
    )
    texts = [element.text for element in root.iter() if element.text]
    assert {"0.1", "1", "10", "100", "1,000", "10,000"} <= set(texts)


@pytest.mark.slow
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


def test_a_run_asks_every_way_and_other_settings_of_the_same_memory(tmp_path: Path) -> None:
    model = load(save_tiny(tmp_path))
    head = RetrievalHead(
        layer=1, head=3, last_tokens=0, mean=0.0, std=1.0, weight=1.0, hit1=1.0, hit4=1.0
    )
    profile = Profile(
        model.model_id, "float32", model.num_heads // model.num_kv_heads, (head,), 1, 1.0, 1.0
    )
    settings = {
        "memory": {"chunk_frames": 8, "window_chunks": 1, "recall_chunks": 2, "host_bytes": 1 << 16}
    }
    config = Config(answer=AnswerConfig(max_new_tokens=3, dialogue_turns=0)).overridden(settings)
    also = [{"recall_chunks": 2}, {"recall_chunks": 1}]
    bench = Bench(
        Engine(model, profile, config), questions=2, side=32, full_tokens=16_000, also=also
    )
    results = bench.run(seed=0, minutes=0.5, bar=Progress(disable=True))
    by_arm = {
        arm: [r for r in results if r.arm == arm] for arm in dict.fromkeys(r.arm for r in results)
    }
    ours, same, fewer = (
        by_arm.pop(name) for name in (OURS, "ours, recall_chunks 2", "ours, recall_chunks 1")
    )
    assert set(by_arm) == {
        LAST_FRAMES,
        WINDOW,
        SHORT_CLIP,
        "64 uniform frames",
        "full attention",
        "mean keys, all heads",
    }
    assert all(len(asked) == len(ours) for asked in by_arm.values())
    at_end = [r for r in ours if r.kind != "present"]
    told = [(r.question, r.said, r.rank, r.context_tokens) for r in at_end]
    assert told == [(r.question, r.said, r.rank, r.context_tokens) for r in same]
    assert told != [(r.question, r.said, r.rank, r.context_tokens) for r in fewer]
    assert all(0 < r.device_bytes < r.host_bytes + r.disk_bytes for r in ours)
    assert all(r.disk_bytes > (1 << 16) for r in at_end), "old chunks are on the disk only"
