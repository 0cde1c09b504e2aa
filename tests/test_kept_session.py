"""Sessions in a folder: they go on as if they had never stopped, answer as before, and are asked
while watching.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from errors import LonglookError, Notice
from frames import next_tick_seconds
from memory.disk_tier import SessionError
from memory.retrieval_index import HeadIndex
from models.calibration import RetrievalHead
from streaming.engine import Engine
from streaming.events import Answer
from streaming.session import Session
from streaming.sources.file import EmptyStretchError, FileSource
from tests.clips import write_clip
from tests.conftest import REPOSITORY
from tests.tiny import noise_frames
from tests.waiting import wait_until
from tests.watching import tiny_engine
from ui.cli.opening import open_session
from ui.cli.settings import Setting, Settings

FRAMES = noise_frames(30)
QUESTION = "What happens?"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return tiny_engine(checkpoint)


def watched(session: Session, start: int = 0, stop: int = len(FRAMES)) -> list[str]:
    """The notices of watching some of the frames."""
    return [event.text for event in session.watch(FRAMES[start:stop]) if isinstance(event, Notice)]


def answered(session: Session, question: str = QUESTION) -> Answer:
    return next(event for event in session.ask(question) if isinstance(event, Answer))


def differing(one: Session, other: Session) -> list[int]:
    """Numbers of the chunks that are not the same, bit by bit."""
    numbers = range(other.memory.num_chunks)
    pairs = zip(one.memory.get(numbers), other.memory.get(numbers), strict=True)
    return [
        a.index
        for a, b in pairs
        if not (torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values))
    ]


@pytest.mark.parametrize(("carrier_tokens", "kv_bits"), [(0, 16), (100, 16), (0, 8), (100, 8)])
def test_a_session_that_was_closed_answers_and_goes_on_as_one_that_was_not(
    checkpoint: Path, tmp_path: Path, carrier_tokens: int, kv_bits: int
) -> None:
    engine = tiny_engine(checkpoint, carrier_tokens=carrier_tokens, kv_bits=kv_bits)
    whole = engine.open()
    watched(whole)
    first = engine.open(tmp_path / "s")
    watched(first, 0, 16)
    first.close()
    again = engine.open(tmp_path / "s")
    assert again.seen_seconds == FRAMES[15].pts_seconds
    assert (again.stats.frames_read, again.stats.chunks) == (16, 4)
    watched(again, 16)
    asked, expected = answered(again), answered(whole)
    assert (asked.text, asked.evidence) == (expected.text, expected.evidence)
    assert again.seen_seconds is not None and not differing(again, whole)
    assert again.stats.disk_bytes > again.stats.host_bytes > 0
    again.close()
    reopened = engine.open(tmp_path / "s", read_only=True)
    assert reopened.dialogue == whole.dialogue
    assert answered(reopened).text == answered(whole).text
    reopened.close()


def test_an_answer_needs_no_host_memory_where_there_is_a_disk(
    checkpoint: Path, engine: Engine, tmp_path: Path
) -> None:
    whole = engine.open()
    watched(whole)
    small = tiny_engine(checkpoint, host_bytes=1000).open(tmp_path / "s")
    assert watched(small) == []
    assert answered(small).text == answered(whole).text
    small.close()


def test_nothing_is_encoded_again_when_a_session_is_opened(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.open(tmp_path / "s")
    watched(session)
    session.close()
    for name in ("encode", "prefill"):
        monkeypatch.setattr(type(engine.model), name, None)
    again = engine.open(tmp_path / "s")
    assert answered(again).text
    again.close()


def test_other_retrieval_heads_get_their_keys_from_what_is_stored(
    engine: Engine, tmp_path: Path
) -> None:
    assert engine.profile is not None
    other = replace(engine.profile, heads=(RetrievalHead(1, 2, 0, 0.0, 1.0, 1.0, 1.0, 1.0),))
    session = engine.open(tmp_path / "s")
    watched(session, 0, 16)
    session.close()
    mixed = Engine(engine.model, other, engine.config).open(tmp_path / "s")
    watched(mixed, 16)
    whole = Engine(engine.model, other, engine.config).open()
    watched(whole)
    assert mixed.memory.index is not None and whole.memory.index is not None
    query = torch.randn(1, 3, engine.model.head_dim)
    assert torch.equal(mixed.memory.index.search(query, 8), whole.memory.index.search(query, 8))
    mixed.close()


def test_lists_are_learnt_again_from_the_keys_that_are_stored(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.session.HeadIndex", partial(HeadIndex, segment_tokens=64))
    session = engine.open(tmp_path / "s")
    watched(session)
    session.close()
    again, whole = engine.open(tmp_path / "s", read_only=True), engine.open()
    watched(whole)
    assert again.memory.index is not None and whole.memory.index is not None
    assert (
        again.memory.index.num_tokens > 64
        and again.memory.index.host_bytes == whole.memory.index.host_bytes
    )
    query = torch.randn(2, 3, engine.model.head_dim)
    assert torch.equal(again.memory.index.search(query, 1), whole.memory.index.search(query, 1))
    again.close()


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("levels", [("dense",), ("dense", "sparse")])
def test_a_damaged_chunk_comes_back_sparse_or_is_left_out_and_that_is_said_once(
    checkpoint: Path, tmp_path: Path, levels: tuple[str, ...], kv_bits: int
) -> None:
    engine = tiny_engine(checkpoint, kv_bits=kv_bits, host_bytes=0)
    session = engine.open(tmp_path / "s")
    watched(session)
    session.close()
    for level in levels:
        path = tmp_path / "s" / f"kv-{level}-00000000.bin"
        data = bytearray(path.read_bytes())
        data[100] ^= 4
        path.write_bytes(data)
    session = engine.open(tmp_path / "s")
    question = "What was at 0:00?"
    events = list(session.ask(question))
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert len(notices) == len(levels)
    assert all(text.startswith("What was remembered of 0 s to 2 s is damaged") for text in notices)
    evidence = next(e for e in events if isinstance(e, Answer)).evidence
    found = [(item.level, item.why) for item in evidence if item.start_seconds < 2.0]
    assert found == ([("sparse", "named time")] if levels == ("dense",) else [])
    assert not any(isinstance(e, Notice) for e in session.ask(question))
    session.close()


def test_beyond_the_disk_budget_the_oldest_is_recalled_sparse_and_that_is_said(
    checkpoint: Path, tmp_path: Path
) -> None:
    session = tiny_engine(checkpoint, disk_bytes=450_000, host_bytes=0).open(tmp_path / "s")
    notices = watched(session)
    assert notices and all(
        "is now remembered sparse, with fewer details" in text for text in notices
    )
    assert (session.stats.sparse_chunks > 0, session.stats.forgotten_chunks) == (True, 0)
    asked = answered(session, "What was at 0:00?")
    levels = {item.start_seconds: item.level for item in asked.evidence}
    assert levels[0.0] == "sparse" and levels[max(levels)] == "dense"
    whole = tiny_engine(checkpoint).open()
    watched(whole)
    sparse, dense = session.memory.get([0])[0], whole.memory.get([0])[0]
    assert sparse.num_tokens < dense.num_tokens and torch.equal(sparse.keys, dense.pooled().keys)
    assert asked.stats.context_tokens < answered(whole, "What was at 0:00?").stats.context_tokens
    session.close()


def test_forgetting_is_said_and_never_recalled(checkpoint: Path, tmp_path: Path) -> None:
    session = tiny_engine(checkpoint, disk_bytes=280_000, host_bytes=0).open(tmp_path / "s")
    notices = watched(session)
    assert any("is now remembered sparse" in text for text in notices)
    assert any("can't be recalled now" in text for text in notices)
    kept_from = 2.0 * session.stats.forgotten_chunks
    assert session.stats.forgotten_chunks > 0
    assert (
        min(item.start_seconds for item in answered(session, "What was at 0:00?").evidence)
        >= kept_from
    )
    session.close()


def bytes_without_keyframes(session: Session) -> int:
    return session.stats.disk_bytes - sum(keyframe.num_bytes for keyframe in session.keyframes)


@pytest.mark.parametrize("kv_bits", [16, 8])
def test_a_session_that_has_forgotten_goes_on_with_its_numbers_and_counts_when_opened_again(
    checkpoint: Path, tmp_path: Path, kv_bits: int
) -> None:
    engine = tiny_engine(checkpoint, disk_bytes=280_000, host_bytes=0, kv_bits=kv_bits)
    frames = noise_frames(80)
    whole = engine.open(tmp_path / "whole")
    list(whole.watch(frames))
    first = engine.open(tmp_path / "s")
    list(first.watch(frames[:60]))
    assert first.stats.forgotten_chunks > 2
    first.close()
    again = engine.open(tmp_path / "s")
    again.memory.check_integrity()
    counted = (
        "frames_read",
        "chunks",
        "tokens",
        "visual_tokens",
        "disk_bytes",
        "sparse_chunks",
        "forgotten_chunks",
    )
    assert [getattr(again.stats, name) for name in counted] == [
        getattr(first.stats, name) for name in counted
    ]
    list(again.watch(frames[60:]))
    assert (
        again.memory.spans() == whole.memory.spans()
        and again.memory.first_chunk == whole.memory.first_chunk > 5
    )
    # a stream that is taken up again has one keyframe more, where it begins anew
    same = [name for name in counted if name != "disk_bytes"]
    assert [getattr(again.stats, name) for name in same] == [
        getattr(whole.stats, name) for name in same
    ]
    assert bytes_without_keyframes(again) == bytes_without_keyframes(whole)
    for question in (QUESTION, "What was at 0:02?", "What was at 0:36?"):
        asked, expected = answered(again, question), answered(whole, question)
        assert (asked.text, asked.evidence) == (expected.text, expected.evidence)
        oldest = again.memory.spans()[0][0]
        assert all(item.start_seconds >= oldest for item in asked.evidence)
    assert not any(
        item.why == "named time" for item in answered(again, "What was at 0:02?").evidence
    )
    for session in (again, whole):
        session.close()


def test_watching_goes_on_where_the_chunks_that_would_be_carriers_are_forgotten(
    checkpoint: Path, tmp_path: Path
) -> None:
    engine = tiny_engine(checkpoint, disk_bytes=280_000, host_bytes=0, carrier_tokens=200)
    session = engine.open(tmp_path / "s")
    watched(session, 0, 24)
    assert session.stats.sparse_chunks > 0
    session.close()
    session = engine.open(tmp_path / "s")
    assert not any("ended" in text for text in watched(session, 24))
    assert session.stats.frames_read == len(FRAMES)
    assert session.stats.forgotten_chunks > 0
    session.close()


def test_a_disk_budget_that_is_too_small_ends_watching_with_a_sentence(
    checkpoint: Path, tmp_path: Path
) -> None:
    session = tiny_engine(checkpoint, disk_bytes=80_000).open(tmp_path / "s")
    (notice,) = [event for event in session.watch(FRAMES) if isinstance(event, Notice)]
    assert "The disk budget of" in notice.text and "Watching ended there" in notice.text
    assert notice.knob == "memory.disk_bytes"
    assert answered(session).text
    session.close()


def test_a_session_keeps_the_settings_it_began_with(
    checkpoint: Path, engine: Engine, tmp_path: Path
) -> None:
    engine.open(tmp_path / "s").close()
    other = Engine(
        engine.model, engine.profile, engine.config.overridden({"memory": {"chunk_frames": 9}})
    )
    session = other.open(tmp_path / "s")
    assert session.config.memory.chunk_frames == 4
    session.close()


def turned(knob: str, value: object, flag: str) -> Settings:
    """The settings of a call with one option."""
    return Settings([Setting(knob, value, flag, flag)])


def test_a_session_of_8_bits_stays_one_and_other_bits_are_refused_in_a_sentence(
    checkpoint: Path, engine: Engine, tmp_path: Path
) -> None:
    tiny_engine(checkpoint, kv_bits=8).open(tmp_path / "s").close()
    with open_session(engine, tmp_path / "s", Settings()) as session:
        assert session.config.memory.kv_bits == 8
    sentence = "--kv-bits cannot become 16: this session began with 8."
    with (
        pytest.raises(LonglookError, match=sentence),
        open_session(engine, tmp_path / "s", turned("memory.kv_bits", 16, "--kv-bits")),
    ):
        pass
    words = "--prune cannot become novelty: this session began with none."
    with (
        pytest.raises(LonglookError, match=words),
        open_session(engine, tmp_path / "s", turned("prune.strategy", "novelty", "--prune")),
    ):
        pass


def test_a_session_follows_one_source(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(tmp_path / "s")
    session.follow("/a.mp4")
    session.follow("/a.mp4")
    with pytest.raises(SessionError, match=r"is a session with /a.mp4, not with /b.mp4"):
        session.follow("/b.mp4")
    session.close()


@pytest.mark.parametrize("fps", [2.0, 3.0, 1.5])
def test_a_file_read_in_two_goes_gives_the_frames_of_one(tmp_path: Path, fps: float) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 12)
    whole = [frame.pts_seconds for frame in FileSource(clip, fps).frames()]
    for count in (1, 5, len(whole) - 1):
        start = next_tick_seconds(whole[count - 1], fps)
        assert [frame.pts_seconds for frame in FileSource(clip, fps, start).frames()] == whole[
            count:
        ]
    with pytest.raises(EmptyStretchError):
        list(FileSource(clip, fps, next_tick_seconds(whole[-1], fps)).frames())


class CommandLine:
    """app.py with a tiny model and sessions in a folder of the test."""

    def __init__(self, checkpoint: Path, home: Path) -> None:
        self._model = ["--model", str(checkpoint)]
        self._env = {**os.environ, "XDG_DATA_HOME": str(home), "COLUMNS": "200"}

    def start(self, *words: str, model: bool = True) -> subprocess.Popen[str]:
        command = [sys.executable, "app.py", *words, *(self._model if model else [])]
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, model: bool = True) -> tuple[int, str, str]:
        process = self.start(*words, model=model)
        out, told = process.communicate(timeout=500)
        return process.returncode, out, told


@pytest.fixture
def command_line(checkpoint: Path, tmp_path: Path) -> CommandLine:
    return CommandLine(checkpoint, tmp_path / "data")


def test_the_command_line_watches_asks_lists_and_deletes(
    command_line: CommandLine, tmp_path: Path
) -> None:
    clip = str(write_clip(tmp_path / "clip.mp4", 16))
    code, out, told = command_line.run(
        "watch", clip, "--session", "trip", "--json", "--chunk-frames", "4", "--kv-bits", "8"
    )
    assert (code, json.loads(out)["stats"]["chunks"]) == (0, 8), told
    code, out, told = command_line.run(
        "ask", "--session", "trip", "What?", "--json", "--max-tokens", "4"
    )
    assert (code, json.loads(out)["question"]) == (0, "What?"), told
    code, out, told = command_line.run("watch", clip, "--session", "trip")
    assert (code, "has been watched to its end before. To ask: " in told) == (0, True)
    assert len(told.splitlines()) == 3, "two lines about retrieval heads, and one clear thing"
    code, out, told = command_line.run("watch", clip, "--session", "trip", "--fps", "1")
    assert (code, "--fps cannot become 1: this session began with 2." in told) == (2, True)
    code, out, _ = command_line.run("sessions", "list", "--json", model=False)
    assert [(item["chunks"], item["questions"]) for item in json.loads(out)] == [(8, 1)]
    code, out, _ = command_line.run("sessions", "delete", "trip", "--yes", model=False)
    assert (code, list(tmp_path.glob("data/longlook/sessions/*"))) == (0, [])
    code, _, told = command_line.run("ask", "--session", "trip", "What?")
    assert (code, "There is no session in" in told) == (2, True)


@pytest.mark.slow
def test_a_session_is_asked_while_another_process_watches(
    command_line: CommandLine, engine: Engine, tmp_path: Path
) -> None:
    folder = str(tmp_path / "trip")
    watching = engine.open(tmp_path / "trip")
    watched(watching, 0, 12)
    code, out, told = command_line.run(
        "ask", "--session", folder, "What?", "--json", "--max-tokens", "4"
    )
    assert (code, json.loads(out)["stats"]["chunks"]) == (0, 3), told
    clip = str(write_clip(tmp_path / "clip.mp4", 4))
    code, _, told = command_line.run("watch", clip, "--session", folder)
    assert (code, "is being watched by another process" in told) == (2, True)
    _, out, _ = command_line.run("sessions", "info", folder, "--json", model=False)
    assert [json.loads(out)[name] for name in ("being_watched", "questions", "chunks")] == [
        True,
        1,
        3,
    ]
    code, _, told = command_line.run("sessions", "delete", folder, "--yes", model=False)
    assert (code, "is being watched by another process" in told) == (2, True)
    assert watched(watching, 12) == []
    assert watching.stats.chunks == 8
    watching.close()


@pytest.mark.slow
def test_ctrl_c_stops_between_chunks_and_the_same_command_goes_on(
    command_line: CommandLine, tmp_path: Path
) -> None:
    clip = str(write_clip(tmp_path / "clip.mp4", 1200))
    folder = tmp_path / "trip"
    words = ("watch", clip, "--session", str(folder), "--chunk-frames", "8")
    watching = command_line.start(*words)
    wait_until(
        lambda: watching.poll() is not None or (folder / "thumbs" / "00000003.jpg").exists(), 300
    )
    watching.send_signal(signal.SIGINT)
    _, told = watching.communicate(timeout=300)
    assert (watching.returncode, "app.py watch" in told) == (130, True), told
    _, out, _ = command_line.run("sessions", "info", str(folder), "--json", model=False)
    stopped = json.loads(out)
    assert (stopped["being_watched"], stopped["frames"]) == (False, 8 * stopped["chunks"])
    code, out, told = command_line.run(*words, "--json")
    assert (code, "Going on at" in told) == (0, True), told
    assert json.loads(out)["stats"]["frames_read"] == 2400


def test_keys_that_were_not_made_are_not_taken_for_none(engine: Engine, tmp_path: Path) -> None:
    for profile, start, stop in ((engine.profile, 0, 8), (None, 8, 16), (engine.profile, 16, 24)):
        session = Engine(engine.model, profile, engine.config).open(tmp_path / "s")
        watched(session, start, stop)
        session.close()
    session, whole = engine.open(tmp_path / "s"), engine.open()
    watched(whole, 0, 24)
    query = torch.randn(2, 3, engine.model.head_dim)
    assert session.memory.index is not None and whole.memory.index is not None
    assert torch.equal(session.memory.index.search(query, 8), whole.memory.index.search(query, 8))
    session.close()
