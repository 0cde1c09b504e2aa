"""The durable folder: what was committed comes back bit by bit, and whatever is wrong with it is
said in a sentence.
"""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config import MemoryConfig
from memory.chunk import KVChunk
from memory.disk_tier import ChunkLostError, SessionError, SessionStore
from memory.kv_codec import KVFormat
from memory.kv_files import read_bytes
from memory.kv_memory import KVMemory
from memory.records import KEPT, Kept, Kind, NewChunk
from tests.test_bank import DIM, HEADS, LAYERS, differs, make_chunk, tokens_of

KIND = Kind("tiny@1", "float32", LAYERS, HEADS, DIM)
PICTURE = np.full((12, 16, 3), 90, np.uint8)
LARGE = 1 << 40


def keys_for(chunk: KVChunk) -> torch.Tensor:
    return chunk.keys[0, :, chunk.visual]


def kept(chunk: KVChunk, bits: int) -> KVChunk:
    """As it comes back from host and disk."""
    form = KVFormat.of(chunk.keys, bits)
    keys, values = form.unpack(form.pack(chunk.keys, chunk.values), chunk.num_tokens)
    return replace(chunk, keys=keys, values=values)


def fill(store: SessionStore, count: int) -> None:
    """Appends chunks up to `count`."""
    for index in range(store.num_chunks, count):
        chunk = make_chunk(index, tokens_of(index))
        store.append(chunk, keys_for(chunk), PICTURE, 16, 0.25)


@pytest.fixture(params=[16, 8], ids=["as computed", "8 bits"])
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def folder(tmp_path: Path, bits: int) -> Path:
    """A session of six chunks, closed."""
    with opened(tmp_path / "session", bits=bits) as store:
        fill(store, 6)
    return tmp_path / "session"


class opened:  # noqa: N801 - reads as a verb
    """A store that is closed at the end of the block."""

    def __init__(
        self,
        folder: Path,
        kind: Kind = KIND,
        budget_bytes: int = LARGE,
        read_only: bool = False,
        bits: int = 16,
    ) -> None:
        self.store = SessionStore(folder, kind, {"a": 1}, budget_bytes, 2, read_only, bits)

    def __enter__(self) -> SessionStore:
        return self.store

    def __exit__(self, *_: object) -> None:
        self.store.close()


def kv_files(folder: Path, kept: str = "*") -> list[Path]:
    return sorted(folder.glob(f"kv-{kept}-*.bin"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def memory_over(store: SessionStore, host_bytes: int = LARGE) -> KVMemory:
    return KVMemory(
        MemoryConfig(window_chunks=2, host_bytes=host_bytes), torch.device("cpu"), store
    )


def wrong_chunks(memory: KVMemory) -> list[int]:
    """Those that are not what they should be: exact in the window, else as kept; sparse where that
    is all there is.
    """
    back = memory.get([index for index in range(memory.num_chunks) if not memory.is_evicted(index)])
    return [chunk.index for chunk in back if differs(chunk, right(memory, chunk.index))]


def gone(memory: KVMemory) -> set[int]:
    return {index for index in range(memory.num_chunks) if memory.is_evicted(index)}


def sparse_only(memory: KVMemory) -> set[int]:
    return {index for index in range(memory.num_chunks) if memory.is_sparse_only(index)}


def new_chunk(index: int) -> NewChunk:
    chunk = make_chunk(index, tokens_of(index))
    return NewChunk(chunk, keys_for(chunk), PICTURE, 16, 0.25)


def right(memory: KVMemory, index: int) -> KVChunk:
    chunk = make_chunk(index, tokens_of(index))
    if index in memory.window_indices:
        return chunk
    return kept(chunk.pooled() if memory.is_sparse_only(index) else chunk, memory._bits)


def test_everything_comes_back_bit_by_bit_when_a_folder_is_opened_again(
    folder: Path, bits: int
) -> None:
    with opened(folder) as store:
        store.check_integrity()
        assert (store.settings, store.format.bits) == ({"a": 1}, bits)
        assert [(c.num_frames, c.watch_seconds) for c in store.chunks] == [(16, 0.25)] * 6
        memory = memory_over(store)
        memory.check_integrity()
        assert memory.num_chunks == 6
        assert not wrong_chunks(memory)
        for index, keys in enumerate(store.index_keys(HEADS)):
            assert torch.equal(keys, keys_for(make_chunk(index, tokens_of(index))))
        assert store.thumbnail(5).stat().st_size == store.chunks[5].thumb_bytes > 0


@pytest.mark.parametrize("num_chunks", [4, 40])
def test_opening_reads_the_keys_and_values_of_the_window_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, num_chunks: int
) -> None:
    with opened(tmp_path / "s", bits=bits) as store:
        fill(store, num_chunks)
    read: list[int] = []

    def counted(path: Path, offset: int, num_bytes: int, checksum: int) -> torch.Tensor:
        read.append(num_bytes)
        return read_bytes(path, offset, num_bytes, checksum)

    monkeypatch.setattr("memory.kv_files.read_bytes", counted)
    with opened(tmp_path / "s") as store:
        memory = memory_over(store)
        assert read == [chunk.memory_bytes for chunk in reversed(memory.window())]
        memory.get([0])
        assert len(read) == 3, "what is read later must be noticed"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_bits(tmp_path: Path, dtype: str) -> None:
    kind = replace(KIND, dtype=dtype)
    chunk = make_chunk(0, dtype=kind.torch_dtype)
    with opened(tmp_path / "s", kind) as store:
        store.append(chunk, keys_for(chunk).float(), PICTURE, 16, 0.0)
    with opened(tmp_path / "s", kind) as store:
        assert not differs(memory_over(store).get([0])[0], chunk)
        assert torch.equal(next(store.index_keys(HEADS)), keys_for(chunk))


def test_an_opened_session_goes_on_as_if_it_had_never_stopped(
    folder: Path, tmp_path: Path, bits: int
) -> None:
    with opened(folder) as store:
        fill(store, 9)
    with opened(tmp_path / "whole", bits=bits) as whole:
        fill(whole, 9)
        assert len(kv_files(folder)) == (2 if bits == 16 else 5), (
            "chunks 6, 7 and 8 are there as computed as well"
        )
    assert [path.read_bytes() for path in kv_files(folder)] == [
        p.read_bytes() for p in kv_files(tmp_path / "whole")
    ]


def test_the_dialogue_is_kept_in_order(folder: Path) -> None:
    with opened(folder) as store, opened(folder, read_only=True) as reader:
        store.add_turn("a?", "yes")
        reader.add_turn("b?", "no")
    with opened(folder) as store:
        assert store.turns() == [("a?", "yes"), ("b?", "no")]


@pytest.mark.parametrize("host_chunks", [0, 1, 3, 100])
def test_what_leaves_the_host_is_read_from_disk(
    tmp_path: Path, host_chunks: int, bits: int
) -> None:
    with opened(tmp_path / "s", bits=bits) as store:
        memory = memory_over(store, host_bytes=host_chunks * store.format.num_bytes(20))
        for index in range(14):
            memory.append(new_chunk(index))
            memory.check_integrity()
            assert not wrong_chunks(memory)
        assert (len(memory.host_indices) < 12) == (host_chunks < 100), (
            "the host budget must matter here"
        )
        assert memory.get([0, 11, 5])[2].index == 5


def test_a_torn_tail_is_cut(folder: Path) -> None:
    whole = {path.name: path.read_bytes() for path in kv_files(folder)}
    for level in ("dense", "sparse", "exact"):
        for path in kv_files(folder, level)[-1:]:
            with path.open("ab") as file:
                file.write(b"torn" * 100)
        (folder / f"kv-{level}-00000006.bin").write_bytes(b"begun")
    with opened(folder) as store:
        assert {path.name: path.read_bytes() for path in kv_files(folder)} == whole
        fill(store, 8)
        store.check_integrity()
        assert not wrong_chunks(memory_over(store))


def test_a_reader_does_not_cut_what_is_being_written(folder: Path) -> None:
    with kv_files(folder)[0].open("ab") as file:
        file.write(b"under way")
    size = kv_files(folder)[0].stat().st_size
    with opened(folder, read_only=True) as store:
        store.check_integrity()
    assert kv_files(folder)[0].stat().st_size == size


def flip_chunk(folder: Path, index: int, level: Kept) -> None:
    """A byte in the middle of a chunk."""
    with opened(folder, read_only=True) as store:
        place = store.chunks[index].places[level]
    flip(folder / f"kv-{level}-{place.segment:08d}.bin", place.offset + place.num_bytes // 2)


def test_a_flipped_byte_costs_its_chunk_the_details_and_is_said(folder: Path) -> None:
    flip_chunk(folder, 1, "dense")
    with opened(folder) as store:
        memory = memory_over(store)
        with pytest.raises(
            ChunkLostError, match=r"8 s to 16 s is damaged .* comes back sparse .* checksum"
        ):
            memory.get([0, 1, 2])
        assert (sparse_only(memory), gone(memory), len(memory.losses)) == ({1}, set(), 1)
        assert memory.get([1])[0].num_tokens < make_chunk(1, tokens_of(1)).num_tokens
        assert not wrong_chunks(memory)
        memory.check_integrity()


def test_a_chunk_that_is_damaged_at_both_levels_is_left_out(folder: Path) -> None:
    flip_chunk(folder, 1, "dense")
    flip_chunk(folder, 1, "sparse")
    with opened(folder) as store:
        memory = memory_over(store)
        for sentence in ("comes back sparse", "was left out"):
            with pytest.raises(ChunkLostError, match=sentence):
                memory.get([0, 1, 2])
        assert (sparse_only(memory), gone(memory), len(memory.losses)) == (set(), {1}, 2)
        assert not wrong_chunks(memory)
        memory.check_integrity()


def test_every_flipped_byte_is_noticed(folder: Path, bits: int) -> None:
    generator = np.random.default_rng(0)
    with opened(folder, read_only=True) as store:
        there = [
            (c.index, kept, c.places[kept])
            for kept in KEPT
            for c in store.chunks
            if c.index >= store.first(kept)
        ]
        places = [(index, kept, place) for index, kept, place in there if place.num_bytes]
        assert len(places) == (12 if bits == 16 else 15), (
            "in 8 bits the newest three are there as computed as well"
        )
        for index, kept, place in places:
            path = folder / f"kv-{kept}-{place.segment:08d}.bin"
            for offset in place.offset + generator.integers(0, place.num_bytes, 4):
                flip(path, int(offset))
                with pytest.raises(ChunkLostError, match="checksum is wrong"):
                    store.read(index, kept)
                flip(path, int(offset))
    with opened(folder) as store:
        store.check_integrity()


def test_a_damaged_chunk_of_the_window_shortens_the_window_and_watching_goes_on(
    folder: Path, bits: int
) -> None:
    flip_chunk(folder, 5, "dense")
    if bits == 8:
        flip_chunk(folder, 5, "exact")
    with opened(folder) as store:
        memory = memory_over(store)
        assert (sparse_only(memory), memory.window()) == ({5}, [])
        for index in range(6, 10):
            memory.append(new_chunk(index))
            memory.check_integrity()
        assert not wrong_chunks(memory)
        assert sparse_only(memory) == {5}


def test_a_window_whose_exact_copy_is_damaged_is_taken_in_8_bits_and_that_is_said(
    tmp_path: Path,
) -> None:
    with opened(tmp_path / "s", bits=8) as store:
        fill(store, 6)
    flip_chunk(tmp_path / "s", 5, "exact")
    with opened(tmp_path / "s") as store:
        memory = memory_over(store)
        chunks = [make_chunk(index, tokens_of(index)) for index in (4, 5)]
        exact, rounded = memory.window()
        assert not differs(exact, chunks[0]) and not differs(rounded, kept(chunks[1], 8))
        (sentence,) = memory.losses
        assert "40 s to 48 s is damaged" in sentence and "was taken in 8 bits" in sentence


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            "UPDATE chunks SET start_seconds = start_seconds + 1 WHERE number = 2",
            "record of chunk 2 has changed",
        ),
        (
            "UPDATE chunks SET positions = zeroblob(length(positions)) WHERE number = 3",
            "record of chunk 3 has changed",
        ),
        ("DELETE FROM chunks WHERE number = 1", "records of chunks are missing"),
        ("UPDATE facts SET value = '99' WHERE name = 'format'", "the fact 'format' has changed"),
    ],
)
def test_records_that_are_not_as_written_are_refused(
    folder: Path, command: str, sentence: str
) -> None:
    db = sqlite3.connect(folder / "session.sqlite")
    with db:
        db.execute(command)
    db.close()
    with pytest.raises(SessionError, match=sentence):
        opened(folder)


def test_changed_index_keys_are_noticed(folder: Path) -> None:
    db = sqlite3.connect(folder / "session.sqlite")
    with db:
        db.execute("UPDATE index_keys SET data = zeroblob(length(data)) WHERE number = 2")
    db.close()
    with opened(folder) as store, pytest.raises(SessionError, match="index keys of chunk 2"):
        list(store.index_keys(HEADS))


def test_a_database_that_is_none_is_refused(folder: Path) -> None:
    (folder / "session.sqlite").write_bytes(b"no database" * 1000)
    for suffix in ("-wal", "-shm"):
        (folder / f"session.sqlite{suffix}").unlink(missing_ok=True)
    with pytest.raises(SessionError, match="not a database"):
        opened(folder)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (replace(KIND, model_id="tiny@2"), "was made with model tiny@1, not tiny@2"),
        (replace(KIND, dtype="bfloat16"), "was made with dtype float32, not bfloat16"),
        (replace(KIND, layers=4), "was made with layers 3, not 4"),
    ],
)
def test_another_model_or_dtype_is_refused_and_changes_nothing(
    folder: Path, other: Kind, sentence: str
) -> None:
    with pytest.raises(SessionError, match=sentence):
        opened(folder, other)
    with opened(folder) as store:
        store.check_integrity()
        assert store.num_chunks == 6


def test_only_one_writes_and_others_may_read(folder: Path) -> None:
    with opened(folder) as store:
        with pytest.raises(SessionError, match="is being watched by another process"):
            opened(folder)
        with opened(folder, read_only=True) as reader:
            memory = memory_over(reader)
            fill(store, 8)
            assert (reader.num_chunks, store.num_chunks) == (6, 8)
            assert not wrong_chunks(memory)
            assert not memory_over(reader).losses, (
                "the window may have moved on, which is no damage"
            )
            with pytest.raises(SessionError, match="questions only"):
                fill(reader, 7)
    with opened(folder) as store:
        assert store.num_chunks == 8


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SessionError, match="is not a session, and it is not empty"):
        opened(tmp_path)
    with pytest.raises(SessionError, match="There is no session in"):
        opened(tmp_path, read_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.fixture
def file_limit() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_takes_no_more_is_said_and_what_was_kept_stays(
    folder: Path, file_limit: None
) -> None:
    with opened(folder) as store:
        before = kv_files(folder)[0].stat().st_size
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (before + 1000, hard))
        with pytest.raises(SessionError, match="file too large"):
            fill(store, 7)
        assert kv_files(folder)[0].stat().st_size == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        fill(store, 8)
        store.check_integrity()
        assert not wrong_chunks(memory_over(store))


@pytest.mark.parametrize("failing", ["fsync", "commit"])
def test_a_full_disk_at_any_step_leaves_the_folder_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(folder) as store:
        before = {path: path.read_bytes() for path in kv_files(folder) if "exact" not in path.name}
        if failing == "fsync":
            monkeypatch.setattr(os, "fsync", full)
        else:
            store._db.execute(
                f"PRAGMA max_page_count = {store._db.execute('PRAGMA page_count').fetchone()[0]}"
            )
            fill_pages(store)
        with pytest.raises(SessionError, match=r"no space left on device|database or disk is full"):
            fill(store, 40)
        monkeypatch.undo()
        kept = store.num_chunks
        store._db.execute("PRAGMA max_page_count = 1000000")
        assert {path: path.read_bytes()[: len(data)] for path, data in before.items()} == before
        store.check_integrity()
    with opened(folder) as store:
        assert store.num_chunks == kept
        fill(store, kept + 2)
        store.check_integrity()
        assert not wrong_chunks(memory_over(store))


def fill_pages(store: SessionStore) -> None:
    """Free room inside the database, taken up by what was said."""
    with pytest.raises(SessionError, match="full"):
        while True:
            store.add_turn("q" * 500, "a" * 500)


def test_beyond_the_budget_the_oldest_dense_level_goes_then_the_oldest_sparse_and_nothing_else(
    tmp_path: Path, bits: int
) -> None:
    budget = 40 * make_chunk(0, 20).memory_bytes
    seen: set[str] = set()
    with opened(tmp_path / "s", budget_bytes=budget, bits=bits) as store:
        memory = memory_over(store, host_bytes=0)
        for index in range(100):
            dense_before, sparse_before = store.first("dense"), store.first("sparse")
            memory.append(new_chunk(index))
            memory.check_integrity()
            assert on_disk(tmp_path) <= store.disk_bytes <= budget
            assert sparse_only(memory) == set(
                range(store.num_forgotten, store.num_forgotten + store.num_sparse)
            )
            assert gone(memory) == set(range(store.num_forgotten))
            if store.first("sparse") > sparse_before:
                seen.add("sparse")
                assert len(kv_files(store.folder, "dense")) <= 2, (
                    "something dense could still have gone"
                )
            elif store.first("dense") > dense_before:
                seen.add("dense")
            if index % 10 == 0:
                assert not wrong_chunks(memory)
        assert seen == {"dense", "sparse"}
        assert not wrong_chunks(memory)
        assert gone(memory) and sparse_only(memory)
    with opened(tmp_path / "s", budget_bytes=budget) as store:
        store.check_integrity()
        assert len(list(store.index_keys(HEADS))) == 100 - store.first_chunk
        assert [path.name for path in sorted((tmp_path / "s" / "thumbs").iterdir())] == [
            store.thumbnail(index).name for index in range(store.first_chunk, 100)
        ]
        again = memory_over(store)
        assert (gone(again), sparse_only(again)) == (gone(memory), sparse_only(memory))
        assert not wrong_chunks(again)
        with pytest.raises(ChunkLostError, match="had to make room"):
            store.read(0)


def on_disk(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.suffix in (".bin", ".jpg"))


def test_a_budget_that_cannot_hold_the_window_is_said(tmp_path: Path) -> None:
    with opened(tmp_path / "s", budget_bytes=2 * make_chunk(0, 16).memory_bytes) as store:
        with pytest.raises(SessionError, match="disk budget"):
            fill(store, 3)
        store.check_integrity()


def test_a_reader_sees_what_was_forgotten_while_it_looked(tmp_path: Path) -> None:
    budget = 40 * make_chunk(0, 20).memory_bytes
    with opened(tmp_path / "s", budget_bytes=budget) as store:
        fill(store, 10)
        with opened(tmp_path / "s", read_only=True) as reader:
            memory = memory_over(reader)
            fill(store, 30)
            with pytest.raises(
                ChunkLostError, match="had to make room on the disk in the meantime"
            ):
                memory.get([2])
            assert (memory.is_sparse_only(2), gone(memory)) == (True, set())
            assert not wrong_chunks(memory)
            fill(store, 90)
            with pytest.raises(
                ChunkLostError, match="had to make room on the disk in the meantime"
            ):
                memory.get([2])
            assert memory.is_evicted(2)


def test_replaced_index_keys_come_back(folder: Path) -> None:
    with opened(folder) as store:
        chunks = [make_chunk(index, tokens_of(index)) for index in range(6)]
        store.replace_index(
            "heads of layer 1", (chunk.keys[1, :1, chunk.visual] for chunk in chunks)
        )
        store.check_integrity()
    with opened(folder) as store:
        assert store.heads == "heads of layer 1"
        assert all(
            torch.equal(a, c.keys[1, :1, c.visual])
            for a, c in zip(store.index_keys(1), chunks, strict=True)
        )
