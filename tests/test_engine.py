"""The device goes to one at a time, questions first; settings come by layers, and what makes no sense is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memory.bank import MemoryFullError
from models.calibration import Profile, RetrievalHead, profile_path
from models.loading import load
from streaming.engine import Engine, Turns, load_engine, load_model
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


class Queue:
    """Threads that take turns, each started once the one before it stands in line; `order` tells who came when."""

    def __init__(self, turns: Turns) -> None:
        self.order: list[str] = []
        self._turns = turns
        self._threads: list[threading.Thread] = []

    def join(self, name: str, urgent: bool, then: Callable[[], None] = lambda: None) -> None:
        def work() -> None:
            with self._turns.take(urgent):
                self.order.append(name)
                then()

        self._threads.append(threading.Thread(target=work, daemon=True))
        waiting = self._num_waiting()
        self._threads[-1].start()
        wait_until(lambda: self._num_waiting() == waiting + 1)

    def finish(self) -> list[str]:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"hangs after {self.order}"
        return self.order

    def _num_waiting(self) -> int:
        return sum(len(tickets) for tickets in self._turns._waiting.values())


def test_urgent_ones_go_first_and_each_kind_in_the_order_of_asking() -> None:
    turns = Turns(patience_seconds=0)
    queue = Queue(turns)
    with turns.take(False):
        for name, urgent in (
            ("chunk a", False),
            ("chunk b", False),
            ("ask a", True),
            ("chunk c", False),
            ("ask b", True),
        ):
            queue.join(name, urgent)
    assert queue.finish() == ["ask a", "ask b", "chunk a", "chunk b", "chunk c"]


def test_one_who_comes_back_at_once_stands_behind_those_who_wait() -> None:
    turns = Turns(patience_seconds=0)
    queue = Queue(turns)
    with turns.take(False):
        queue.join("other", urgent=False)
    with turns.take(False):
        queue.order.append("again")
    assert queue.finish() == ["other", "again"]


def test_only_one_has_the_device() -> None:
    turns, inside, most = Turns(patience_seconds=0), 0, 0

    def work(urgent: bool) -> None:
        nonlocal inside, most
        for _ in range(200):
            with turns.take(urgent):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work, args=(k % 2 == 0,), daemon=True) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert (most, inside) == (1, 0)


def test_an_error_in_a_turn_gives_the_device_back() -> None:
    turns = Turns()
    with pytest.raises(RuntimeError, match="failed"), turns.take(True):
        raise RuntimeError("failed")
    with turns.take(True):
        pass
    assert not turns._busy


def test_a_device_without_memory_is_told_in_a_sentence_and_given_back() -> None:
    turns = Turns()
    with pytest.raises(MemoryFullError, match="no memory left; a smaller --chunk-frames"), turns.take(True):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    with turns.take(True):
        pass


def test_a_chunk_holds_back_while_an_answer_may_go_on_and_no_longer() -> None:
    patient = Turns(patience_seconds=1e6)
    with patient.take(True):
        pass
    held = patient._wait_seconds(_stand_in_line(patient), False)
    assert held is not None and held > 1e5
    with Turns(patience_seconds=0).take(True):
        pass
    hasty = Turns(patience_seconds=0)
    with hasty.take(True):
        pass
    assert hasty._wait_seconds(_stand_in_line(hasty), False) == 0


def _stand_in_line(turns: Turns) -> object:
    ticket = object()
    turns._waiting[False].append(ticket)
    return ticket


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
    engine._turns = Turns(patience_seconds=1e6)
    busy, asking = engine.open(), engine.open()
    list(asking.watch(noise_frames(2, 2, 2)))
    model.log.clear()
    model.gates[0] = under_way = Gate()
    watcher = threading.Thread(target=lambda: list(busy.watch(noise_frames(64, 2, 2))), daemon=True)
    watcher.start()
    assert under_way.reached.wait(60)
    asker = threading.Thread(target=lambda: list(asking.ask("q")), daemon=True)
    asker.start()
    wait_until(lambda: bool(engine._turns._waiting[True]))
    under_way.open()
    asker.join(60)
    assert model.log == ["chunk 0", *(f"q: {word.strip()}" for word in WORDS)]
    with engine._turns._changed:
        engine._turns._chunks_from_seconds = 0.0
        engine._turns._changed.notify_all()
    watcher.join(60)
    assert busy.stats.chunks == 4


# Settings and profiles.


def test_settings_are_the_defaults_then_the_checkpoints_then_the_users(recommends: Callable[[str], str]) -> None:
    model = recommends(
        json.dumps({"memory": {"chunk_frames": 8, "window_chunks": 3}, "answer": {"max_new_tokens": 64}})
    )
    config = load_engine(model, "cpu", settings={"memory": {"chunk_frames": 4}, "read": {"fps": 1}}).config
    assert (config.memory.chunk_frames, config.memory.window_chunks, config.answer.max_new_tokens) == (4, 3, 64)
    assert (config.read.fps, config.memory.recall_chunks) == (1, 6)


def test_a_checkpoint_without_recommendations_gets_the_defaults(checkpoint: Path) -> None:
    assert load_engine(str(checkpoint), "cpu").config == Engine(GatedModel(), None).config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"memory": {"chunks": 3}}', "no 'chunks'"),
        ('{"memories": {}}', "'memories'"),
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
