"""The bundled samples, watched and questioned as a person would: the embedded model answers, from
the right place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frames import Frame
from streaming.engine import Engine, load_engine
from streaming.events import Answer
from streaming.session import Session
from streaming.sources.file import FileSource
from training.streams import make_stream

SAMPLES = Path(__file__).parent.parent / "samples"
# of the questions of all families, answered letter for letter from evidence that covers the event
RIGHT = 0.93


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("demo", device="cpu")


def watched(engine: Engine, name: str) -> Session:
    session = engine.open()
    for _ in session.watch(FileSource(SAMPLES / f"{name}.mp4", engine.config.read.fps).frames()):
        pass
    return session


def answer(session: Session, question: str) -> Answer:
    return next(event for event in session.ask(question) if isinstance(event, Answer))


def covers(found: Answer, spans: list[list[float]]) -> bool:
    """Whether a true stretch, where there is one, lies in the evidence at least in part."""
    pairs = [(item, span) for item in found.evidence for span in spans]
    return not spans or any(
        item.start_seconds < stop and item.stop_seconds > start for item, (start, stop) in pairs
    )


@pytest.mark.parametrize("name", ["one_minute", "ten_minutes"])
def test_questions_about_a_sample_are_answered_right_from_the_right_place(
    engine: Engine, name: str
) -> None:
    asked: list[dict[str, Any]] = json.loads((SAMPLES / f"{name}.json").read_text())["questions"]
    session = watched(engine, name)
    wrong = []
    for question in asked:
        got = answer(session, question["question"])
        if got.text != question["answer"] or not covers(got, question["spans"]):
            wrong.append((question["question"], got.text, covers(got, question["spans"])))
    assert len(asked) > 50
    assert len(wrong) <= (1 - RIGHT) * len(asked), wrong


@pytest.mark.slow
def test_without_recall_the_past_of_a_long_sample_is_lost() -> None:
    """The control: the same questions from the newest chunks alone."""
    engine = load_engine("demo", device="cpu", settings={"memory": {"recall_chunks": 0}})
    session = watched(engine, "ten_minutes")
    asked = json.loads((SAMPLES / "ten_minutes.json").read_text())["questions"]
    asked = [
        question
        for question in asked
        if question["family"] in ("when", "what_at", "direction", "describe")
    ]
    assert (
        sum(answer(session, question["question"]).text == question["answer"] for question in asked)
        < len(asked) / 3
    )


def looped(frames: list[Frame], times: int) -> Iterator[Frame]:
    """The frames again and again, the time going on."""
    length = frames[-1].pts_seconds + 0.5
    for turn in range(times):
        for frame in frames:
            yield Frame(
                frame.image, frame.pts_seconds + turn * length, frame.index + turn * len(frames)
            )


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_an_hour_takes_the_same_device_bytes_as_ten_minutes(engine: Engine) -> None:
    frames = list(make_stream(5, 120.0).frames(side=64))
    device_bytes = []
    for minutes in (10, 60):
        session = engine.open()
        for _ in session.watch(looped(frames, minutes // 2)):
            pass
        assert session.stats.frames_read == minutes * 120
        device_bytes.append(session.stats.device_bytes)
        session.close()
    assert device_bytes[0] == device_bytes[1]
