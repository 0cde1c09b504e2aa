"""Every suggested question fits its sample, and the embedded model answers it right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streaming.engine import Engine, load_engine
from streaming.reader import Reader
from streaming.sources.file import FileSource
from ui.suggestions import FOR_ANY_VIDEO, SUGGESTIONS_PATH, bundled_suggestions, suggestions_for

SAMPLES = SUGGESTIONS_PATH.parent
NAMES = sorted(bundled_suggestions())


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("demo")


def events_of(sample: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads((SAMPLES / f"{sample}.json").read_text())["events"]
    return events


def truths(events: list[dict[str, Any]], question: str) -> set[str]:
    """All answers to a suggested question that the timeline of a sample allows."""
    words = question.rstrip("?").split()
    named = " ".join(words[words.index("the") + 1 :]) if "the" in words else ""
    found = set()
    for event in events:
        for thing in event["things"]:
            colour, shape = thing["name"].split(" ", 1)
            if question.startswith(("When do", "When did")) and named.startswith(thing["name"]):
                found.add(f"at {int(event['start_seconds'])} seconds")
            elif question.startswith("Which way") and named.startswith(thing["name"]):
                found.add(thing["motion"])
            elif question.startswith("What colour") and named == shape:
                found.add(colour)
    if question.startswith("Was there a "):
        things = {thing["name"] for event in events for thing in event["things"]}
        found = {"yes" if " ".join(words[3:]) in things else "no"}
    if question.startswith("What is shown at "):
        minutes, seconds = words[-1].split(":")
        moment = 60 * int(minutes) + int(seconds)
        shown = [
            event["things"]
            for event in events
            if event["start_seconds"] <= moment < event["stop_seconds"]
        ]
        found = {f"a {things[0]['name']}" for things in shown if len(things) == 1}
    return found


@pytest.mark.parametrize("sample", NAMES)
def test_every_suggestion_has_one_right_answer_which_is_the_one_written_beside_it(
    sample: str,
) -> None:
    for item in bundled_suggestions()[sample]:
        assert truths(events_of(sample), item["question"]) == {item["answer"]}, item


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sample", NAMES)
def test_the_embedded_model_answers_every_suggestion_right_as_soon_as_it_is_shown_and_at_the_end(
    sample: str, engine: Engine
) -> None:
    session = engine.open()
    path = SAMPLES / f"{sample}.mp4"
    shown: set[str] = set()
    answers: list[tuple[str, str, str]] = []

    def ask(questions: set[str]) -> None:
        for item in bundled_suggestions()[sample]:
            if item["question"] in questions:
                *_, answer = session.ask(item["question"])
                answers.append((item["question"], getattr(answer, "text", ""), item["answer"]))

    read = engine.config.read
    with Reader(FileSource(path, read.fps)) as reader:
        for _ in session.watch(reader, ahead=True):
            suggested = set(suggestions_for(path, True, session.seen_seconds or 0.0))
            ask(suggested - shown)
            shown |= suggested
    ask(shown)
    session.close()
    assert len(answers) == 2 * len(bundled_suggestions()[sample])
    assert not [item for item in answers if item[1] != item[2]]


def test_the_embedded_model_gets_no_suggestions_about_other_videos_and_a_real_model_gets_some(
    tmp_path: Path,
) -> None:
    upload = tmp_path / "one_minute.mp4"  # the name alone makes no sample
    assert suggestions_for(upload, is_demo=True, seen_seconds=60.0) == ()
    assert suggestions_for(upload, is_demo=False, seen_seconds=60.0) == FOR_ANY_VIDEO
    assert suggestions_for(upload, is_demo=False, seen_seconds=0.0) == ()


@pytest.mark.parametrize("sample", NAMES)
def test_a_sample_suggests_at_least_four_questions_from_all_of_it(sample: str) -> None:
    items = bundled_suggestions()[sample]
    assert len(items) >= 4
    assert [item["after_seconds"] for item in items] == sorted(
        item["after_seconds"] for item in items
    )
    assert len(suggestions_for(SAMPLES / f"{sample}.mp4", True, 1e9)) == len(items)
