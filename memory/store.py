"""The durable folder of a session: every chunk of a stream on disk, and what was said about it.

    kv-dense-00000000.bin    keys and values, append-only; a file is named by its first chunk and dropped as a whole
    kv-sparse-00000000.bin   those of the sparse level, which outlasts the dense one
    kv-exact-00000000.bin    the newest chunks as computed, where the others are in 8 bits: watching goes on from them
    session.sqlite           what the folder is, every chunk's record and index keys, the dialogue (write-ahead log)
    thumbs/00000000.jpg      a picture of every chunk
    lock                     held by the one process that watches

Beyond the budget the oldest dense level goes first; once there is no more of it to spare, the oldest sparse one.
Records, index keys and thumbnails stay.

A chunk counts once its record is committed, and that comes after its bytes are flushed. So a kill at any instant loses
the chunk under way and nothing else: bytes without a record are cut when the folder is opened to be written again.
Checksums cover all of it but the thumbnails, which nothing of ours reads. Any number of readers may
look on, each at what was there when it opened the folder. A folder may come from a stranger: see
`plain_files.py` and `database.py`.

Knows nothing of models, windows or questions.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from errors import LonglookError
from memory.chunk import KVChunk, pooled_layout
from memory.database import (
    FORMAT,
    DamagedDatabaseError,
    ForeignDatabaseError,
    OtherFormatError,
    add_turn,
    connect,
    create_tables,
    has_session,
    read_facts,
    read_turns,
    set_fact,
)
from memory.packing import AS_COMPUTED, KVFormat
from memory.plain_files import (
    DATABASE,
    LOCK,
    THUMBS,
    check_folder,
    delete_files,
    open_descriptor,
    open_file,
    refuse_journal,
    remove_journal,
    replace_file,
)
from memory.records import KEPT, TOKEN_BYTES, Kept, Kind, Place, StoredChunk
from memory.segments import DamagedBytesError, Segments, as_bytes, sync_folder

SEGMENTS_PER_BUDGET = 16  # so much of the budget is freed at a time
MAKE_ROOM: tuple[Kept, ...] = ("dense", "sparse")  # in this order
INSTEAD = {"dense": "comes back sparse from now on", "exact": "was taken in 8 bits"}


class SessionError(LonglookError):
    """A session's folder cannot be used so; the message is one sentence for the user."""


class ChunkLostError(SessionError):
    """Keys and values of one chunk, dense, sparse or exact, cannot be had any more; everything else can."""


class SessionStore:
    """The folder of one session, open. `chunks` are the records of all its chunks, in order."""

    def __init__(
        self,
        folder: Path,
        kind: Kind | None = None,
        settings: Mapping[str, Any] | None = None,
        budget_bytes: int = 1 << 62,
        keep_chunks: int = 1,
        read_only: bool = False,
        kv_bits: int = AS_COMPUTED,
    ) -> None:
        """Opens a folder; a writer makes it where there is none.

        kind: what the session must be of; None leaves that open, for a folder that is only looked at.
        settings: kept with a new session; `self.settings` are those it began with.
        budget_bytes: of the folder. Never do the newest `keep_chunks` have to make room.
        kv_bits: of a new session, 8 or 16 as in `KVFormat`; `self.format` is what it began with.
        Raises SessionError.
        """
        self.folder = folder
        self.read_only = read_only
        self._budget_bytes = budget_bytes
        self._keep_chunks = keep_chunks
        self._is_interrupted = False
        with ExitStack() as undo, self._told():
            if not read_only:
                undo.enter_context(lock(folder))
            self._db = undo.enter_context(closing(open_database(folder, read_only)))
            if kind is not None and not read_only and not has_session(self._db):
                self._create(kind, settings or {}, kv_bits)
            self._facts = self._checked_facts(kind)
            self.chunks = self._read_chunks()
            self._record_bytes = self._count_record_bytes()
            self._files = {kept: Segments(folder, f"kv-{kept}", self._full_bytes(kept)) for kept in KEPT}
            self._kv_bytes = {kept: self._count_kv_bytes(kept) for kept in KEPT}
            if not read_only:
                (folder / THUMBS).mkdir(exist_ok=True)
                self._cut_tail()
            self._closing = undo.pop_all()

    @property
    def kind(self) -> Kind:
        facts = self._facts
        layers, kv_heads, head_dim = (int(facts[name]) for name in ("layers", "kv_heads", "head_dim"))
        return Kind(facts["model_id"], facts["dtype"], layers, kv_heads, head_dim)

    @property
    def format(self) -> KVFormat:
        """Of keys and values on the disk."""
        return KVFormat.of_kind(self.kind, int(self._facts["kv_bits"]))

    @property
    def settings(self) -> dict[str, Any]:
        return dict(json.loads(self._facts["settings"]))

    @property
    def num_chunks(self) -> int:
        return len(self.chunks)

    def first(self, kept: Kept) -> int:
        """Number of the first chunk of which this is still there; all before it had to make room."""
        return int(self._facts.get(f"first {kept}", 0))

    @property
    def num_forgotten(self) -> int:
        """Chunks without keys and values, the oldest ones."""
        return min(self.first("dense"), self.first("sparse"))

    @property
    def num_sparse(self) -> int:
        """Chunks of which only the sparse level is left, the oldest ones but those forgotten."""
        return self.first("dense") - self.num_forgotten

    @property
    def disk_bytes(self) -> int:
        """Bytes of keys, values, records, index keys and thumbnails."""
        return self._record_bytes + sum(self._kv_bytes.values())

    def append(
        self, chunk: KVChunk, index_keys: Tensor | None, picture: NDArray[np.uint8], num_frames: int, seconds: float
    ) -> None:
        """Makes the next chunk durable; old ones may have to make room for it.

        index_keys: what `index_keys` shall give back. picture: its thumbnail, uint8 [h, w, 3].
        Raises SessionError where the chunk cannot be kept; none of it is left then.
        """
        assert chunk.index == self.num_chunks, f"{chunk!r} cannot follow {self.num_chunks} chunks"
        if self.read_only:
            raise SessionError(f"{self.folder} was opened for questions only.")
        if self._is_interrupted:
            raise SessionError(f"{self.folder} was interrupted in the middle of a chunk; open it again to go on.")
        keys = b"" if index_keys is None else self._to_bytes(index_keys)
        thumb, packed = as_jpeg(picture), self._packed(chunk)
        self._is_interrupted = True
        try:
            with self._told():
                num_bytes = sum(data.nbytes for data in packed.values())
                self._make_room(num_bytes + TOKEN_BYTES * chunk.num_tokens + len(thumb) + len(keys))
                stored = self._written(chunk, packed, thumb, num_frames, seconds)
                with self._db:
                    self._db.execute(f"INSERT INTO chunks VALUES ({', '.join('?' * 12)})", stored.row())
                    self._db.execute("INSERT INTO index_keys VALUES (?, ?, ?)", (chunk.index, keys, zlib.crc32(keys)))
        except SessionError:
            with self._told():
                self._cut_tail()
            self._is_interrupted = False
            raise
        self.chunks.append(stored)
        self._record_bytes += stored.record_bytes + len(keys)
        for kept in KEPT:
            self._kv_bytes[kept] += stored.places[kept].num_bytes
        self._is_interrupted = False

    def read(self, index: int, kept: Kept = "dense") -> Tensor:
        """The packed keys and values of a chunk: uint8 [n] on the CPU. Raises ChunkLostError."""
        chunk = self.chunks[index]
        when = f"{chunk.start_seconds:.0f} s to {chunk.stop_seconds:.0f} s"
        if index >= self.first(kept):
            try:
                if kept == "sparse":
                    self._check_sparse_size(chunk)
                return self._files[kept].read(chunk.places[kept])
            except DamagedBytesError as error:
                if not self._has_gone(index, kept):
                    what = "was left out" if kept == "sparse" or index < self.first("sparse") else INSTEAD[kept]
                    sentence = f"What was remembered of {when} is damaged in {self.folder} and {what}: {error}."
                    raise ChunkLostError(sentence) from error
        raise ChunkLostError(f"What was remembered of {when} had to make room on the disk in the meantime.")

    def has_exact(self, index: int) -> bool:
        """Whether a chunk is kept as computed beside 8 bits; the newest are."""
        return index >= self.first("exact") and self.chunks[index].places["exact"].num_bytes > 0

    def index_keys(self, num_heads: int) -> Iterator[Tensor]:
        """The index keys of every chunk in order, in the type of the keys: [num_heads, n, head_dim]."""
        kind = self.kind
        with self._told():
            rows = self._db.execute("SELECT number, data, checksum FROM index_keys WHERE number < ? ORDER BY number",
                                    (self.num_chunks,))  # fmt: skip
            num_rows = 0
            key_bytes = num_heads * kind.head_dim * kind.torch_dtype.itemsize
            for index, (number, data, checksum) in enumerate(rows):
                if number != index:
                    break
                is_whole = isinstance(data, bytes) and zlib.crc32(data) == checksum
                if not is_whole or len(data) % key_bytes:
                    raise DamagedDatabaseError(f"the index keys of chunk {index} have changed")
                keys = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).view(kind.torch_dtype)
                yield keys.view(num_heads, keys.numel() // (num_heads * kind.head_dim), kind.head_dim)
                num_rows += 1
            if num_rows < self.num_chunks:
                raise DamagedDatabaseError(f"the index keys of chunk {num_rows} are missing")

    def replace_index(self, heads: str, keys: Iterable[Tensor]) -> None:
        """Other index keys for every chunk, and what `heads` will say about them."""
        with self._told(), self._db:
            self._db.execute("DELETE FROM index_keys")
            for index, rows in enumerate(keys):
                data = self._to_bytes(rows)
                self._db.execute("INSERT INTO index_keys VALUES (?, ?, ?)", (index, data, zlib.crc32(data)))
            self._set("heads", heads)
        self._record_bytes = self._count_record_bytes()

    @property
    def heads(self) -> str:
        """Which heads the index keys are of, as `replace_index` was told; nothing in a new session."""
        return self._facts.get("heads", "")

    @property
    def source(self) -> str | None:
        """Where the frames come from, once that is known."""
        return self._facts.get("source")

    def set_source(self, source: str) -> None:
        """Raises SessionError for a name that is not UTF-8, which the database cannot hold."""
        try:
            source.encode()
        except UnicodeEncodeError as error:
            raise SessionError(f"A session cannot keep {source!a}, which is not UTF-8.") from error
        with self._told():
            self._set("source", source)

    @property
    def seen_seconds(self) -> float:
        """How far was watched: to the end of the newest chunk, or as far behind it as has been said."""
        return max([float(self._facts.get("seen seconds", 0.0)), *(chunk.stop_seconds for chunk in self.chunks[-1:])])

    @property
    def frames_watched(self) -> int:
        return sum(chunk.num_frames for chunk in self.chunks) + self.still_since[0]

    @property
    def still_since(self) -> tuple[int, float]:
        """Frames watched behind the newest chunk that showed nothing new, where it has been said, and the seconds that
        took."""
        chunks, frames, seconds = json.loads(self._facts.get("still since", "[0, 0, 0.0]"))
        return (frames, seconds) if chunks == self.num_chunks else (0, 0.0)

    def set_seen(self, seconds: float, still_since: tuple[int, float]) -> None:
        with self._told():
            self._set("seen seconds", repr(seconds))
            self._set("still since", json.dumps([self.num_chunks, *still_since]))

    def turns(self) -> list[tuple[str, str]]:
        """All questions and answers, in order."""
        with self._told():
            return read_turns(self._db)

    def add_turn(self, question: str, answer: str) -> None:
        """Readers may add turns as well."""
        with self._told(), self._db:
            add_turn(self._db, question, answer)

    def thumbnail(self, index: int) -> Path:
        return self.folder / THUMBS / f"{index:08d}.jpg"

    def close(self) -> None:
        """May be called twice."""
        self._closing.close()

    def check_integrity(self) -> None:
        """Asserts that records follow each other and their bytes lie gapless in their files; reads all of them."""
        assert [chunk.index for chunk in self.chunks] == list(range(self.num_chunks)), "a record is missing"
        num_bytes = 0
        for kept in KEPT:
            ends: dict[int, int] = {}
            for chunk in self.chunks[self.first(kept) :]:
                place = chunk.places[kept]
                assert place.num_bytes == 0 or place.offset == ends.get(place.segment, 0), (
                    "bytes of a file are nobody's"
                )
                ends[place.segment] = place.offset + (self.read(chunk.index, kept).nbytes if place.num_bytes else 0)
            num_bytes += sum(ends.values())
        assert self.disk_bytes == self._count_record_bytes() + num_bytes, "disk bytes are not the sum"

    def _create(self, kind: Kind, settings: Mapping[str, Any], kv_bits: int) -> None:
        (self.folder / THUMBS).mkdir(exist_ok=True)
        sync_folder(self.folder)
        facts = {"format": FORMAT, "settings": json.dumps(settings), "kv_bits": kv_bits} | asdict(kind)
        create_tables(self._db, {name: str(value) for name, value in facts.items()})

    def _checked_facts(self, kind: Kind | None) -> dict[str, str]:
        if not has_session(self._db):
            raise SessionError(f"There is no session in {self.folder}.")
        facts = read_facts(self._db)
        if facts["format"] != FORMAT:
            raise OtherFormatError(facts["format"])
        for name, wanted in asdict(kind).items() if kind else ():
            if facts[name] != str(wanted):
                what = {"model_id": "model", "dtype": "dtype"}.get(name, name)
                raise SessionError(f"{self.folder} was made with {what} {facts[name]}, not {wanted}.")
        return facts

    def _read_chunks(self) -> list[StoredChunk]:
        chunks: list[StoredChunk] = []
        for row in self._db.execute("SELECT * FROM chunks ORDER BY number"):
            chunk = StoredChunk.of_row(row)
            self._check_sizes(chunk)
            if chunk.index != len(chunks):
                raise DamagedDatabaseError("records of chunks are missing")
            if chunks and not chunk.is_after(chunks[-1]):
                raise DamagedDatabaseError(f"chunk {chunk.index} lies before the one it follows")
            chunks.append(chunk)
        return chunks

    def _check_sizes(self, chunk: StoredChunk) -> None:
        """Raises DamagedDatabaseError where a record names another number of bytes than it has.

        How many the sparse level has takes longer to find out: see `_check_sparse_size`.
        """
        form, num_tokens, places = self.format, chunk.layout.num_tokens, chunk.places
        is_right = places["dense"].num_bytes == form.num_bytes(num_tokens)
        is_right &= places["sparse"].num_bytes <= form.num_bytes(num_tokens)
        is_right &= places["exact"].num_bytes in (0, form.as_computed.num_bytes(num_tokens))
        if not is_right:
            what = f"the record of chunk {chunk.index} names a wrong number of bytes"
            raise DamagedDatabaseError(what)

    def _check_sparse_size(self, chunk: StoredChunk) -> None:
        layout, _ = pooled_layout(chunk.layout, chunk.visual)
        if chunk.places["sparse"].num_bytes != self.format.num_bytes(layout.num_tokens):
            raise DamagedBytesError("its record names a wrong number of bytes")

    def _packed(self, chunk: KVChunk) -> dict[Kept, Tensor]:
        """A chunk's keys and values as they are kept."""
        pooled, form = chunk.pooled(), self.format
        packed: dict[Kept, Tensor] = {
            "dense": form.pack(chunk.keys, chunk.values),
            "sparse": form.pack(pooled.keys, pooled.values),
        }
        if form.bits != AS_COMPUTED:
            packed["exact"] = form.as_computed.pack(chunk.keys, chunk.values)
        return packed

    def _written(
        self, chunk: KVChunk, packed: Mapping[Kept, Tensor], thumb: bytes, num_frames: int, seconds: float
    ) -> StoredChunk:
        """The chunk's bytes and thumbnail on disk; its record is not."""
        places = dict.fromkeys(KEPT, Place(chunk.index))
        for kept, data in packed.items():
            places[kept] = self._files[kept].append(chunk.index, data, self._last(kept))
        replace_file(self.thumbnail(chunk.index), thumb)
        layout = replace(chunk.layout, positions=chunk.layout.positions.cpu())
        return StoredChunk(
            chunk.index, chunk.start_seconds, chunk.stop_seconds, chunk.group_starts, num_frames, seconds, layout,
            chunk.visual.cpu(), len(thumb), places,
        )  # fmt: skip

    def _make_room(self, num_bytes: int) -> None:
        """Lets go what is least missed until so many bytes fit into the budget."""
        newest = self.num_chunks - self._keep_chunks
        if newest > 0 and self.has_exact(newest - 1):
            self._let_go("exact", newest)
        while self.disk_bytes + num_bytes > self._budget_bytes:
            for kept in MAKE_ROOM:
                stop = self._end_of_oldest(kept)
                if stop <= newest:
                    self._let_go(kept, stop)
                    break
            else:
                gib = self._budget_bytes / (1 << 30)
                raise SessionError(f"The disk budget of {gib:.3g} GiB is full.", "memory.disk_bytes")

    def _end_of_oldest(self, kept: Kept) -> int:
        """Number of the first chunk behind the oldest file."""
        segments = [chunk.places[kept].segment for chunk in self.chunks[self.first(kept) :]]
        return next((s for s in segments if s != segments[0]), self.num_chunks)

    def _let_go(self, kept: Kept, stop: int) -> None:
        """Drops the files of all chunks before `stop`, where one ends."""
        places = [chunk.places[kept] for chunk in self.chunks[self.first(kept) : max(0, stop)]]
        if not any(place.num_bytes for place in places):
            return
        self._set(f"first {kept}", str(stop))
        self._kv_bytes[kept] -= sum(place.num_bytes for place in places)
        for segment in {place.segment for place in places}:
            self._files[kept].drop(segment)

    def _last(self, kept: Kept) -> Place | None:
        """Where the newest chunk's bytes are, where they are still there."""
        return self.chunks[-1].places[kept] if self.num_chunks > self.first(kept) else None

    def _cut_tail(self) -> None:
        """Takes away bytes of which there is no record: of a chunk under way, or let go just before a kill."""
        for kept, files in self._files.items():
            files.cut({chunk.places[kept].segment for chunk in self.chunks[self.first(kept) :]}, self._last(kept))
        thumb = self.thumbnail(self.num_chunks)
        if os.path.lexists(thumb.parent):
            delete_files(thumb.parent, [thumb.name])

    def _has_gone(self, index: int, kept: Kept) -> bool:
        """What the folder says now; another process may be writing it."""
        with self._told():
            newest = read_facts(self._db)
        self._facts |= {name: value for name, value in newest.items() if name.startswith("first ")}
        self._kv_bytes[kept] = self._count_kv_bytes(kept)
        return index < self.first(kept)

    def _full_bytes(self, kept: Kept) -> int:
        """Of a file that takes no other chunk."""
        return 0 if kept == "exact" else self._budget_bytes // SEGMENTS_PER_BUDGET

    def _count_kv_bytes(self, kept: Kept) -> int:
        return sum(chunk.places[kept].num_bytes for chunk in self.chunks[self.first(kept) :])

    def _count_record_bytes(self) -> int:
        with self._told():
            (keys,) = self._db.execute("SELECT ifnull(sum(length(data)), 0) FROM index_keys").fetchone()
        return int(keys) + sum(chunk.record_bytes for chunk in self.chunks)

    def _to_bytes(self, index_keys: Tensor) -> bytes:
        return as_bytes(index_keys.to(self.kind.torch_dtype)).tobytes()

    def _set(self, name: str, value: str) -> None:
        """Together with what is not committed yet."""
        with self._db:
            set_fact(self._db, name, value)
        self._facts[name] = value

    def _told(self) -> AbstractContextManager[None]:
        return wrap_errors(self.folder)


def open_database(folder: Path, read_only: bool) -> sqlite3.Connection:
    """SQLite sees the folder only after it was checked: see `memory/plain_files.py`.

    Raises SessionError where there is no session to be read, and OSError for what is refused.
    """
    if read_only and not os.path.lexists(folder / DATABASE):
        raise SessionError(f"There is no session in {folder}.")
    check_folder(folder)
    if read_only:
        refuse_journal(folder)
    else:
        remove_journal(folder)
    return connect(folder.resolve() / DATABASE, may_create=not read_only)


def check_is_session(folder: Path) -> None:
    """Raises SessionError where a folder is not that of a session; it may be damaged, or older."""
    with wrap_errors(folder), closing(open_database(folder, read_only=True)) as db:
        try:
            is_session = has_session(db)
        except OtherFormatError:
            return
        if not is_session:
            raise SessionError(f"There is no session in {folder}.")


@contextmanager
def wrap_errors(folder: Path) -> Iterator[None]:
    """Raises what the system and SQLite say about a session's folder as a SessionError."""
    try:
        with wrap_os_errors(folder):
            yield
    except sqlite3.Error as error:
        raise SessionError(f"{folder / DATABASE} cannot be used: {error}.") from error
    except DamagedDatabaseError as error:
        raise SessionError(f"{folder} is damaged: {error}.") from error
    except ForeignDatabaseError as error:
        raise SessionError(f"{folder} {error}.") from error


@contextmanager
def wrap_os_errors(folder: Path) -> Iterator[None]:
    """Raises what the system says about a session's folder as a SessionError."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        raise SessionError(f"{folder} cannot be used: {what[:1].lower()}{what[1:]}.") from error


def lock(folder: Path) -> FileIO:
    """The right to write in a folder, which is made where there is none; held until closed or the process ends.

    Raises SessionError where another one has it, or the folder is something else.
    """
    with wrap_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        is_session = any(os.path.lexists(folder / name) for name in (LOCK, DATABASE))
        if not is_session and any(folder.iterdir()):
            raise SessionError(f"{folder} is not a session, and it is not empty.")
        check_folder(folder)
        file = FileIO(open_descriptor(folder / LOCK, os.O_WRONLY | os.O_CREAT), "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise SessionError(f"{folder} is being watched by another process.") from error
    return file


def as_jpeg(picture: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return file.getvalue()


def is_locked(folder: Path) -> bool:
    """Whether a process is watching into this folder now."""
    try:
        with open_file(folder / LOCK, os.O_RDONLY) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, so nobody holds it
        return False
    return False
