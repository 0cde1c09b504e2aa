"""A chunk is in window, host, disk, index and records, or in none of them, whatever fails where."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from config import MemoryConfig
from errors import Notice
from memory import kv_memory as bank_module
from memory.disk_tier import SessionBusyError, SessionError, SessionStore
from memory.host_pool import HostPool, PoolFullError
from memory.kv_memory import KVMemory, MemoryFullError
from memory.records import NewChunk
from memory.retrieval_index import HeadIndex
from streaming.engine import Engine
from streaming.events import Answer, Watched
from streaming.session import Session
from tests.test_bank import DIM, HEADS, differs, make_chunk, tokens_of
from tests.test_store import KIND, new_chunk, wrong_chunks
from tests.tiny import noise_frames
from tests.watching import tiny_engine

CPU = torch.device("cpu")
NUM_CHUNKS = 6  # before something fails


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr("streaming.session.RETRY_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture(params=["with a folder", "without a folder"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KVMemory]:
    """A memory of some chunks, in all tiers that it has."""
    store = (
        SessionStore(tmp_path / "s", KIND, {}, 1 << 40, 2)
        if request.param == "with a folder"
        else None
    )
    filled = KVMemory(MemoryConfig(window_chunks=2), CPU, store, HeadIndex(HEADS, DIM))
    for index in range(NUM_CHUNKS):
        filled.append(new_chunk(index))
    yield filled
    filled.close()


class Failing:
    """Fails the first `times` calls of a function with an error, before it does its work or after
    it.
    """

    def __init__(
        self, work: Callable[..., Any], error: BaseException, times: int = 1, after: bool = False
    ) -> None:
        self._work, self._error, self._left, self._after = work, error, times, after
        self.calls = 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        result = self._work(*given, **named) if self._after else None
        if self._left > 0:
            self._left -= 1
            raise self._error
        return result if self._after else self._work(*given, **named)

    def __get__(self, owner: Any, kind: Any = None) -> Callable[..., Any]:
        return lambda *given, **named: self(owner, *given, **named)


def state(memory: KVMemory) -> tuple[object, ...]:
    """All that a chunk changes, and the answer to a search."""
    assert memory.index is not None
    query = torch.ones(HEADS, 2, DIM)
    found = memory.index.search(query, 4)
    return (
        memory.counts(),
        memory.spans(),
        list(memory.window_indices),
        list(memory.host_indices),
        memory.host_bytes,
        memory.search_bytes,
        found.tolist(),
        [chunk.keys.tolist() for chunk in memory.get(range(memory.num_chunks))],
    )


# What fails: object, name, error. Without a folder those of the store never happen.
IN_MEMORY = {
    "device": (KVMemory, "_resident", RuntimeError("device")),
    "packing": (KVMemory, "_packed_leavers", MemoryError()),
    "index": (HeadIndex, "add_flat", MemoryError()),
    "host": (HostPool, "write", RuntimeError("cudaErrorHostAlloc")),
}
ON_DISK = {
    "bytes": (os, "write", OSError(errno.ENOSPC, "No space left on device")),
    "flush": (os, "fsync", OSError(errno.EIO, "Input/output error")),
    "picture": (SessionStore, "thumbnail", OSError(errno.EROFS, "Read-only file system")),
    "files": (SessionStore, "_write_files", MemoryError()),
    "commit": (SessionStore, "_commit", sqlite3.OperationalError("database or disk is full")),
}
CASES = [
    *((step, False) for step in (*IN_MEMORY, *ON_DISK)),
    # Index and host promise that nothing has changed where they fail.
    *((step, True) for step in (*IN_MEMORY, *ON_DISK) if step not in ("index", "host")),
]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("step", "after"), CASES)
def test_whatever_fails_the_chunk_is_nowhere_and_the_next_one_goes_in(
    memory: KVMemory, monkeypatch: pytest.MonkeyPatch, step: str, after: bool, batch: int
) -> None:
    owner, name, error = (IN_MEMORY | ON_DISK)[step]
    before = state(memory)
    new = [new_chunk(index) for index in range(NUM_CHUNKS, NUM_CHUNKS + batch)]
    failing = Failing(getattr(owner, name), error, after=after)
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, failing)
        if step in ON_DISK and memory._store is None:
            memory.append_all(new)
            assert failing.calls == 0
        else:
            with pytest.raises((type(error), SessionError)):
                memory.append_all(new)
    if failing.calls:
        assert state(memory) == before
        memory.check_integrity()
        if memory._store is not None:
            memory._store.check_integrity()
        memory.append_all(new)
    assert state(memory) != before
    memory.check_integrity()
    assert not wrong_chunks(memory)
    if memory._store is not None:
        memory._store.check_integrity()


def test_a_state_with_a_chunk_more_is_another_one(memory: KVMemory) -> None:
    before = state(memory)
    memory.append(new_chunk(NUM_CHUNKS))
    after = state(memory)
    assert all(a != b for a, b in zip(before, after, strict=True)), "each part of the state tells"


@pytest.mark.parametrize("failing_at", [1, 2, 3])
def test_a_batch_that_fails_in_the_middle_is_taken_back_whole(
    memory: KVMemory, monkeypatch: pytest.MonkeyPatch, failing_at: int
) -> None:
    """Also where its first chunks have driven others out of the window already."""
    before, add = state(memory), HeadIndex.add_flat

    def failing(index: HeadIndex, number: int, keys: torch.Tensor) -> None:
        if number == NUM_CHUNKS + failing_at:
            raise MemoryError
        add(index, number, keys)

    with monkeypatch.context() as broken:
        broken.setattr(HeadIndex, "add_flat", failing)
        with pytest.raises(MemoryError):
            memory.append_all([new_chunk(NUM_CHUNKS + i) for i in range(4)])
    assert state(memory) == before
    memory.append_all([new_chunk(NUM_CHUNKS + i) for i in range(4)])
    memory.check_integrity()
    assert not wrong_chunks(memory)


def test_a_full_host_pool_is_no_error(memory: KVMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have no slab although the budget has: the oldest make room, down to none."""
    with monkeypatch.context() as broken:
        broken.setattr(HostPool, "write", Failing(HostPool.write, PoolFullError(), times=100))
        memory.append(new_chunk(NUM_CHUNKS))
        memory.check_integrity()
    assert len(memory.host_indices) == 0
    assert memory.first_chunk == (0 if memory._store is not None else NUM_CHUNKS - 1)
    memory.append(new_chunk(NUM_CHUNKS + 1))
    memory.check_integrity()
    assert not wrong_chunks(memory)


@pytest.mark.parametrize("times", [1, 3])
def test_a_failure_that_passes_is_tried_again(
    memory: KVMemory, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(
        KVMemory, "_resident", Failing(KVMemory._resident, torch.OutOfMemoryError(), times)
    )
    memory.append(new_chunk(NUM_CHUNKS))
    memory.check_integrity()
    assert memory.num_chunks == NUM_CHUNKS + 1


def test_a_device_that_stays_full_is_told_in_a_sentence(
    memory: KVMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(memory)
    with monkeypatch.context() as broken:
        broken.setattr(
            KVMemory, "_resident", Failing(KVMemory._resident, torch.OutOfMemoryError(), 100)
        )
        with pytest.raises(MemoryFullError, match="no memory left"):
            memory.append(new_chunk(NUM_CHUNKS))
    assert state(memory) == before


def test_a_database_that_is_busy_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory.session_db.BUSY_SECONDS", 0.02)
    store = SessionStore(tmp_path / "s", KIND, {}, 1 << 40, 2)
    memory = KVMemory(MemoryConfig(window_chunks=2), CPU, store)
    memory.append(new_chunk(0))
    other = sqlite3.connect(tmp_path / "s" / "session.sqlite", check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SessionBusyError, match="locked"):
        memory.append(new_chunk(1))
    memory.check_integrity()
    store.check_integrity()
    tries = iter([None, None, other.rollback])
    commit = SessionStore._commit

    def counted(store: SessionStore, written: Any) -> None:
        if (let_go := next(tries)) is not None:
            let_go()
        commit(store, written)

    monkeypatch.setattr(SessionStore, "_commit", counted)
    memory.append(new_chunk(1))
    assert memory.num_chunks == 2 and next(tries, "no more") == "no more"
    memory.check_integrity()
    memory.close()
    other.close()


def test_a_folder_that_could_not_be_cleaned_up_is_when_the_next_chunk_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(tmp_path / "s", KIND, {}, 1 << 40, 2)
    memory = KVMemory(MemoryConfig(window_chunks=2), CPU, store)
    memory.append(new_chunk(0))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", Failing(os.fsync, OSError(errno.EIO, "Input/output error")))
        broken.setattr(
            os, "ftruncate", Failing(os.ftruncate, OSError(errno.EIO, "Input/output error"))
        )
        with pytest.raises(SessionError, match="input/output error"):
            memory.append(new_chunk(1))
    memory.append(new_chunk(1))
    memory.append(new_chunk(2))
    store.check_integrity()
    memory.check_integrity()
    memory.close()


def test_where_the_disk_is_full_before_its_budget_the_oldest_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(tmp_path / "s", KIND, {}, 2_000_000, 2)
    memory = KVMemory(MemoryConfig(window_chunks=2, host_bytes=0), CPU, store)
    for index in range(100):
        memory.append(new_chunk(index))
    assert sum(memory.is_sparse_only(index) for index in range(100)) == 0
    before = store.disk_bytes
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", Failing(os.write, full, times=2))
        memory.append(new_chunk(100))
    assert store.disk_bytes < before - 100_000 and memory.num_chunks == 101
    (notice,) = memory.take_notices()
    assert "no space left on device. The oldest of what was seen makes room." in notice.text
    assert memory.is_sparse_only(0) and not memory.is_sparse_only(95)
    memory.check_integrity()
    store.check_integrity()
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", Failing(os.write, full, times=100))
        with pytest.raises(SessionError, match="no space left"):
            memory.append(new_chunk(101))
    assert not memory.is_sparse_only(95), "not everything goes because others fill the disk"
    memory.append(new_chunk(101))
    memory.check_integrity()
    assert not wrong_chunks(memory)
    memory.close()


# One commit, and nobody waits for it.


class Counted:
    """Counts flushes and durable commits."""

    def __init__(self, store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushes, self.commits = 0, 0
        fsync = os.fsync

        def flush(handle: int) -> None:
            self.flushes += 1
            fsync(handle)

        def traced(statement: str) -> None:
            self.commits += statement.startswith("COMMIT")

        monkeypatch.setattr(os, "fsync", flush)
        store._db.set_trace_callback(traced)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "budget", [1 << 40, 200_000], ids=["with room", "while the oldest make room"]
)
def test_chunks_that_come_together_take_one_commit_and_one_flush_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, batch: int, budget: int
) -> None:
    store = SessionStore(tmp_path / "s", KIND, {}, budget, 2, kv_bits=bits)
    memory = KVMemory(MemoryConfig(window_chunks=2, kv_bits=bits), CPU, store)
    memory.append_all([new_chunk(index) for index in range(8)])
    counted = Counted(store, monkeypatch)
    for start in range(8, 88, batch):
        memory.append_all([new_chunk(index) for index in range(start, start + batch)])
    assert (store.first_chunk > 0) == (budget < 1 << 40), "chunks must have made room"
    assert counted.commits == 80 / batch
    # each is one flush more, and one of the folder
    new_files = 80 * 13_000 * 16 / budget if budget < 1 << 40 else 0
    assert 2 * 80 / batch <= counted.flushes <= 2 * 80 / batch + 3 * new_files
    memory.check_integrity()
    memory.close()


def test_a_question_does_not_wait_for_the_disk(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a chunk's bytes are being flushed, and it is what is asked about."""
    session = tiny_engine(checkpoint).open(tmp_path / "s")
    list(session.watch(noise_frames(8)))
    flushing, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(handle: int) -> None:
        flushing.set()
        assert go_on.wait(60), "nobody let the disk go on"
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    told: list[object] = []
    frames = noise_frames(12)[8:]
    watching = threading.Thread(target=lambda: told.extend(session.watch(frames)), daemon=True)
    watching.start()
    assert flushing.wait(60)
    (*_, answer) = session.ask("What happens?")
    assert isinstance(answer, Answer) and session._store is not None
    assert len(session._store.turns()) == 1
    newest = max(item.stop_seconds for item in answer.evidence)
    assert newest >= 5.9, "what the model has seen is part of what is asked about"
    assert not told, "what is not on the disk is not told of"
    go_on.set()
    watching.join(60)
    assert any(isinstance(event, Watched) for event in told)
    session.memory.check_integrity()
    session.close()


def test_a_session_that_is_closed_during_a_commit_waits_for_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine(checkpoint)
    session = engine.open(tmp_path / "s")
    flushing, go_on, fsync = threading.Event(), threading.Event(), os.fsync

    def slow(handle: int) -> None:
        flushing.set()
        assert go_on.wait(60)
        fsync(handle)

    with monkeypatch.context() as slowed:
        slowed.setattr(os, "fsync", slow)
        watching = threading.Thread(
            target=lambda: list(session.watch(noise_frames(8))), daemon=True
        )
        watching.start()
        assert flushing.wait(60)
        closing = threading.Thread(target=session.close, daemon=True)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        go_on.set()
        closing.join(60)
        watching.join(60)
    again = engine.open(tmp_path / "s")
    assert again.stats.chunks == 1
    again.close()


# The session around it.

STEPS = {
    **{
        name: (KVMemory, step)
        for name, step in {"device": "_resident", "packing": "_packed_leavers"}.items()
    },
    "index": (HeadIndex, "add_flat"),
    "host": (HostPool, "write"),
    "bytes": (SessionStore, "_write_files"),
    "commit": (SessionStore, "_commit"),
}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_session_watches_and_answers_on_after_any_failure(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, ahead: bool
) -> None:
    engine, frames = tiny_engine(checkpoint), noise_frames(40)
    session = engine.open(tmp_path / "s")
    list(session.watch(frames[:16], ahead))
    owner, name = STEPS[step]
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, Failing(getattr(owner, name), ZeroDivisionError(step), times=2))
        with pytest.raises(ZeroDivisionError):
            list(session.watch(frames[16:24], ahead))
    session.memory.check_integrity()
    assert session.stats.chunks == session.memory.num_chunks == 4
    assert list(session.ask("What happens?"))
    list(session.watch(frames[24:], ahead))
    assert session.stats.chunks == session.memory.num_chunks == 8
    session.memory.check_integrity()
    assert session._store is not None
    session._store.check_integrity()
    assert list(session.ask("What happens?"))
    session.close()
    again = engine.open(tmp_path / "s")
    again.memory.check_integrity()
    assert again.stats.chunks == 8
    again.close()


def opened(engine: Engine, folder: Path) -> tuple[Session, list[str]]:
    """A session that has watched on after a while in which every chunk failed twice, and its
    notices.
    """
    session = engine.open(folder)
    return session, [e.text for e in session.watch(noise_frames(16)) if isinstance(e, Notice)]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), sqlite3.OperationalError("database is locked")]
)
def test_watching_does_not_end_because_of_what_passes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    if isinstance(error, sqlite3.Error):
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    owner, name = (
        (KVMemory, "_resident") if isinstance(error, RuntimeError) else (SessionStore, "_commit")
    )
    monkeypatch.setattr(owner, name, Failing(getattr(owner, name), error, times=2))
    session, notices = opened(tiny_engine(checkpoint), tmp_path / "s")
    assert (notices, session.stats.chunks) == ([], 4)
    session.close()


def test_a_prefill_without_memory_is_tried_again(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine(checkpoint)
    kind = type(engine.model)
    monkeypatch.setattr(
        kind, "prefill_batch", Failing(kind.prefill_batch, torch.OutOfMemoryError(), times=3)
    )
    session = engine.open()
    assert not [e for e in session.watch(noise_frames(16)) if isinstance(e, Notice)]
    assert session.stats.chunks == 4
    whole = tiny_engine(checkpoint).open()
    list(whole.watch(noise_frames(16)))
    pairs = zip(session.memory.get(range(4)), whole.memory.get(range(4)), strict=True)
    assert not any(differs(a, b) for a, b in pairs)


def test_a_device_that_stays_full_ends_watching_with_a_sentence(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine(checkpoint)
    session = engine.open()
    list(session.watch(noise_frames(8)))
    kind = type(engine.model)
    with monkeypatch.context() as broken:
        broken.setattr(
            kind, "prefill_batch", Failing(kind.prefill_batch, torch.OutOfMemoryError(), times=100)
        )
        (notice,) = session.watch(noise_frames(16)[8:])
    assert (
        isinstance(notice, Notice)
        and "no memory left" in notice.text
        and "Watching ended there" in notice.text
    )
    list(session.watch(noise_frames(16)[8:]))
    assert session.stats.chunks == 4


def test_keys_of_a_chunk_that_is_no_tensor_change_nothing(memory: KVMemory) -> None:
    before = state(memory)
    with pytest.raises(ValueError, match="keys need"):
        memory.append(NewChunk(make_chunk(NUM_CHUNKS, tokens_of(NUM_CHUNKS)), torch.zeros(1, 1, 1)))
    assert state(memory) == before
