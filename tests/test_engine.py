"""One thread does all device work, questions first; settings come by layers, and what makes no
sense is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from config import Config
from memory.chunk import KVChunk
from memory.kv_memory import MemoryFullError
from models.calibration import Profile, RetrievalHead, profile_path
from models.loading import load
from models.qwen3_vl import Qwen3VL
from models.video_llm import PrefillRequest
from streaming.engine import Engine, load_engine, load_model
from streaming.events import Answer
from streaming.session import Session
from tests.gated import WORDS, Gate, GatedModel
from tests.tiny import noise_frames
from tests.waiting import wait_until


@pytest.fixture
def recommends(checkpoint: Path, tmp_path: Path) -> Callable[[str], str]:
    """Makes the checkpoint recommend a text as its longlook.json; gives its name."""
    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)

    def write(text: str) -> str:
        (tmp_path / "longlook.json").write_text(text)
        return str(tmp_path)

    return write


def test_sessions_share_a_model_and_nothing_else() -> None:
    model = GatedModel()
    engine = Engine(model, None)
    one, other = engine.open(), engine.open()
    list(one.watch(noise_frames(8, 2, 2)))
    list(one.ask("mine"))
    assert (one.stats.chunks, other.stats.chunks, other.dialogue) == (1, 0, ())
    with pytest.raises(ValueError, match="nothing"):
        next(other.ask("mine"))


def test_a_question_of_one_session_goes_before_the_next_chunk_of_another() -> None:
    model = GatedModel()
    engine = Engine(model, None)
    busy, asking = engine.open(), engine.open()
    list(asking.watch(noise_frames(2, 2, 2)))
    model.log.clear()
    model.gates[0] = under_way = Gate()
    watcher = in_thread(lambda: list(busy.watch(noise_frames(64, 2, 2))))
    assert under_way.reached.wait(60)
    asker = in_thread(lambda: list(asking.ask("q")))
    wait_until(lambda: engine.scheduler.num_queries == 1)
    under_way.open()
    asker.join(60)
    watcher.join(60)
    assert model.log[:2] == ["chunk 0", "q: one"]
    assert busy.stats.chunks == 8


def test_all_device_work_is_done_by_one_thread() -> None:
    threads: set[str] = set()

    class Watched(GatedModel):
        def _do(self, key: int | str, line: str) -> None:
            threads.add(threading.current_thread().name)
            super()._do(key, line)

    engine = Engine(Watched(), None)
    sessions = [engine.open() for _ in range(3)]
    work = [in_thread(partial(watch_and_ask, session)) for session in sessions]
    for thread in work:
        thread.join(60)
        assert not thread.is_alive()
    assert threads == {"device"}


def test_answers_of_several_sessions_are_under_way_together() -> None:
    model = GatedModel()
    engine = Engine(model, None)
    sessions = [engine.open() for _ in range(3)]
    for session in sessions:
        list(session.watch(noise_frames(2, 2, 2)))
    model.log.clear()
    model.gates["one "] = first_token = Gate()
    askers = [in_thread(partial(list, session.ask(f"q{k}"))) for k, session in enumerate(sessions)]
    assert first_token.reached.wait(60)
    wait_until(lambda: engine.scheduler.num_queries == 2)
    first_token.open()
    for asker in askers:
        asker.join(60)
    words = [line.split(": ")[1] for line in model.log]
    assert words == ["one"] * 3 + ["two"] * 3 + ["three"] * 3


def test_an_answer_whose_reader_has_gone_frees_its_place_at_the_next_step() -> None:
    model = GatedModel()
    engine = Engine(model, None)
    session = engine.open()
    list(session.watch(noise_frames(2, 2, 2)))
    model.gates["two "] = second_token = Gate()
    answer = session.ask("q")
    next(answer)
    assert second_token.reached.wait(60)
    del answer  # its generator is closed
    second_token.open()
    wait_until(lambda: not engine._answers)
    assert "q: three" not in model.log and session.dialogue == ()


def test_an_error_in_a_step_is_raised_where_it_was_waited_for_and_the_device_goes_on() -> None:
    model = GatedModel()
    engine = Engine(model, None)
    session = engine.open()
    model.broken.add(0)
    with pytest.raises(RuntimeError, match="chunk 0"):
        list(session.watch(noise_frames(2, 2, 2)))
    model.broken.clear()
    list(session.watch(noise_frames(2, 2, 2)))
    model.broken.add("two ")
    with pytest.raises(RuntimeError, match="two"):
        list(session.ask("q"))
    model.broken.clear()
    assert [event.text for event in session.ask("q") if isinstance(event, Answer)] == [
        "".join(WORDS)
    ]


def test_a_device_without_memory_is_told_in_a_sentence() -> None:
    engine = Engine(GatedModel(), None)

    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(MemoryFullError, match="no memory left") as error:
        engine.run(too_large)
    assert "--" not in str(error.value), "a library knows no command line"
    assert engine.run(lambda: 7) == 7


def test_streams_that_wait_together_share_a_pass(
    tiny: Qwen3VL, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny, None, Config().overridden({"memory": {"chunk_frames": 4}}))
    clips = [noise_frames(12, seed=seed) for seed in range(3)]
    alone = []
    for clip in clips:
        session = Engine(tiny, None, engine.config).open()
        list(session.watch(clip))
        alone.append(session.memory.get([0, 1, 2]))

    sizes: list[int] = []
    stock = tiny.prefill_batch

    def counted(requests: Sequence[PrefillRequest]) -> list[list[KVChunk]]:
        sizes.append(len(requests))
        return stock(requests)

    monkeypatch.setattr(tiny, "prefill_batch", counted)
    sessions = [engine.open() for _ in clips]
    release, blocker = hold(engine)
    watchers = [
        in_thread(partial(list, session.watch(clip)))
        for session, clip in zip(sessions, clips, strict=True)
    ]
    wait_until(lambda: len(engine.scheduler._prefills) == 3)
    release.set()
    for thread in (blocker, *watchers):
        thread.join(60)
    assert sizes[0] == 3
    for session, wanted in zip(sessions, alone, strict=True):
        for one, other in zip(session.memory.get([0, 1, 2]), wanted, strict=True):
            assert float((one.keys - other.keys).abs().max()) < 1e-5


def test_questions_wait_where_their_contexts_have_no_room_and_are_answered_all_the_same(
    tiny: Qwen3VL,
) -> None:
    narrow = Config().overridden(
        {"answer": {"context_bytes": 0, "max_new_tokens": 6}, "memory": {"chunk_frames": 4}}
    )
    wide = narrow.overridden({"answer": {"context_bytes": 1 << 30}})
    texts: list[list[str]] = []
    most: list[int] = []
    for config in (wide, narrow):
        engine = Engine(tiny, None, config)
        session = engine.open()
        list(session.watch(noise_frames(8)))
        release, blocker = hold(engine)
        found: dict[int, str] = {}
        askers = [in_thread(partial(answer_into, session, k, found)) for k in range(4)]
        wait_until(lambda engine=engine: engine.scheduler.num_queries == 4)  # type: ignore[misc]
        peak = 0
        step = engine.step

        def counted(engine: Engine = engine, step: Callable[[], None] = step) -> None:
            nonlocal peak
            step()
            peak = max(peak, len(engine._batch))

        engine.step = counted  # type: ignore[method-assign]
        release.set()
        for thread in (blocker, *askers):
            thread.join(60)
        texts.append([found[k] for k in range(4)])
        most.append(peak)
    assert texts[0] == texts[1]
    assert most == [4, 1]


def test_too_many_questions_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.engine.MAX_WAITING_QUESTIONS", 2)
    engine = Engine(GatedModel(), None)
    session = engine.open()
    list(session.watch(noise_frames(2, 2, 2)))
    release, blocker = hold(engine)
    askers = []
    for number in range(2):
        askers.append(in_thread(lambda: list(session.ask("q"))))
        wait_until(lambda number=number: engine.scheduler.num_queries == 1 + number)  # type: ignore[misc]
    with pytest.raises(ValueError, match="ask again in a moment"):
        list(session.ask("one too many"))
    release.set()
    for thread in (blocker, *askers):
        thread.join(60)
    assert len(session.dialogue) == 2


def test_the_worker_ends_when_it_is_idle_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.engine.IDLE_SECONDS", 0.01)
    engine = Engine(GatedModel(), None)
    first = engine.run(threading.current_thread)
    first.join(60)
    assert not first.is_alive()
    assert engine.run(threading.current_thread) is not first


def hold(engine: Engine) -> tuple[threading.Event, threading.Thread]:
    """Keeps the device busy from now on until the event is set."""
    began, release = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        assert release.wait(60)

    thread = in_thread(partial(engine.run, work))
    assert began.wait(60)
    return release, thread


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_leaves_nobody_waiting_and_another_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(GatedModel(), None)
    session = engine.open()
    list(session.watch(noise_frames(2, 2, 2)))
    release, blocker = hold(engine)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            list(session.ask("q"))
        except RuntimeError as error:
            errors.append(error)

    askers = [in_thread(ask) for _ in range(2)]
    wait_until(lambda: engine.scheduler.num_queries == 2)
    with monkeypatch.context() as broken:
        broken.setattr(
            engine,
            "_drop_abandoned",
            lambda: (_ for _ in ()).throw(RuntimeError("our own mistake")),
        )
        release.set()
        for thread in (blocker, *askers):
            thread.join(60)
            assert not thread.is_alive()
    assert [str(error) for error in errors] == ["our own mistake"] * 2
    assert [event.text for event in session.ask("q") if isinstance(event, Answer)] == [
        "".join(WORDS)
    ]


def watch_and_ask(session: Session) -> None:
    list(session.watch(noise_frames(40, 2, 2)))
    list(session.ask("q"))


def answer_into(session: Session, number: int, found: dict[int, str]) -> None:
    found[number] = next(e.text for e in session.ask(f"What is {number}?") if isinstance(e, Answer))


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# Settings and profiles.


def test_settings_are_the_defaults_then_the_checkpoints_then_the_users(
    recommends: Callable[[str], str],
) -> None:
    model = recommends(
        json.dumps(
            {"memory": {"chunk_frames": 8, "window_chunks": 3}, "answer": {"max_new_tokens": 64}}
        )
    )
    config = load_engine(
        model, "cpu", settings={"memory": {"chunk_frames": 4}, "read": {"fps": 1}}
    ).config
    assert (
        config.memory.chunk_frames,
        config.memory.window_chunks,
        config.answer.max_new_tokens,
    ) == (4, 3, 64)
    assert (config.read.fps, config.memory.recall_chunks) == (1, 6)


def test_a_checkpoint_without_recommendations_gets_the_defaults(checkpoint: Path) -> None:
    assert load_engine(str(checkpoint), "cpu").config == Engine(GatedModel(), None).config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"memory": {"chunks": 3}}', "memory.chunks is not"),
        ('{"memories": {}}', "memories is not a section"),
        ('{"memory": {"chunk_frames": "8"}}', "whole number"),
        ('{"memory": 8}', "makes no sense"),
        ("[1, 2]", "makes no sense"),
        ("{", "makes no sense"),
    ],
)
def test_recommendations_that_make_no_sense_are_told_with_their_file(
    recommends: Callable[[str], str], text: str, told: str
) -> None:
    model = recommends(text)
    with pytest.raises(ValueError, match=r"longlook\.json") as error:
        load_engine(model, "cpu")
    assert told in str(error.value) and model in str(error.value) and "\n" not in str(error.value)


def test_settings_that_make_no_sense_are_told_before_a_model_is_loaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.engine.load", lambda *_: pytest.fail("loaded for nothing"))
    with pytest.raises(ValueError, match="fps"):
        load_engine(str(checkpoint), settings={"read": {"fps": 0}})


def test_an_engine_has_the_profile_of_its_very_checkpoint_and_dtype(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = load(checkpoint, "cpu")
    head = RetrievalHead(0, 0, 0, 0.0, 1.0, 1.0, 1.0, 1.0)
    profile = Profile(model.model_id, "float32", 2, (head,), 24, 1.0, 1.0)
    assert load_engine(str(checkpoint), "cpu").profile is None
    profile.save(profile_path(model))
    assert load_engine(str(checkpoint), "cpu").profile == profile
    assert load_engine(str(checkpoint), "cpu", "bfloat16").profile is None


def test_a_damaged_profile_is_told_and_does_not_stand_in_the_way_of_a_new_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = profile_path(load(checkpoint, "cpu"))
    path.parent.mkdir(parents=True)
    path.write_text("{ not json")
    with pytest.raises(ValueError, match="calibrate again"):
        load_engine(str(checkpoint), "cpu")
    assert load_model(str(checkpoint), "cpu")[0].model_id == load(checkpoint, "cpu").model_id


AT_THE_END = """
import threading, time
import torch
from streaming.engine import Engine
from tests.gated import GatedModel

began = threading.Event()

def work():
    began.set()
    until = time.monotonic() + 1
    x = torch.ones(400, 400)
    while time.monotonic() < until:
        x = (x @ x).clamp(-1, 1)

engine = Engine(GatedModel(), None)
threading.Thread(target=lambda: engine.run(work), daemon=True).start()
assert began.wait(60)
"""


def test_a_process_that_ends_in_the_middle_of_a_step_ends_well(repository: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", AT_THE_END], cwd=repository, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
