"""The durable folder of a session: every chunk of a stream on disk, and what was said about it.

    kv-dense-00000000.bin    keys and values, append-only; named by its first chunk, dropped whole
    kv-sparse-00000000.bin   those of the sparse level, which outlasts the dense one
    kv-exact-00000000.bin    the newest chunks as computed, where the others are in 8 bits:
                             watching goes on from them
    session.sqlite           what the folder is, every chunk's record and index keys, keyframes with
                             their pictures, the dialogue (write-ahead log)
    thumbs/00000000.jpg      a picture of every chunk
    lock                     held by the one process that watches

Beyond the budget the oldest dense level goes first; once there is no more of it to spare, the
oldest chunks go altogether, with record, index keys and thumbnail. Chunks keep their numbers.

A chunk counts once its record is committed, and that comes after its bytes are flushed. Chunks that
come together share one commit. So a kill at any instant loses the chunks under way and nothing
else: bytes without a record are cut when the folder is opened to be written again. Files of evicted
chunks are deleted after the commit that lets them go. Checksums cover all of it but the thumbnails,
which nothing of ours reads. Any number of readers may look on, each at what was there when it
opened the folder. A folder may come from a stranger: see `plain_files.py` and `session_db.py`.

Knows nothing of models, windows or questions.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from errors import LonglookError
from memory.chunk import ChunkMeta, KVChunk
from memory.eviction import BudgetTooSmallError, Ledger, Placement
from memory.kv_codec import AS_COMPUTED, KVFormat
from memory.kv_files import DamagedBytesError, Segments, as_bytes, sync_folder
from memory.numbered import Numbered
from memory.plain_files import (
    DATABASE,
    LOCK,
    THUMBS,
    check_folder,
    delete_files,
    is_left_over,
    kv_names,
    open_descriptor,
    open_file,
    refuse_journal,
    remove_journal,
    replace_file,
    thumb_names,
)
from memory.records import (
    KEPT,
    KEYFRAME_KINDS,
    ROW_BYTES,
    TOKEN_BYTES,
    Kept,
    KeyframeRecord,
    Kind,
    NewChunk,
    Place,
    StoredChunk,
)
from memory.session_db import (
    FORMAT,
    DamagedDatabaseError,
    ForeignDatabaseError,
    OtherFormatError,
    add_keyframe,
    add_turn,
    connect,
    connect_read_only,
    create_tables,
    delete_fact,
    has_session,
    limit_log,
    log_bytes,
    read_facts,
    read_keyframe_picture,
    read_keyframes,
    read_turns,
    set_fact,
)

LOCK_TRIES, LOCK_WAIT_SECONDS = 20, 0.025
FALLBACK_TEXT = {"dense": "comes back sparse from now on", "exact": "was taken in 8 bits"}


class SessionError(LonglookError):
    """A session's folder cannot be used so; the message is one sentence for the user."""


class SessionBusyError(SessionError):
    """Another process holds the database for too long; trying again may help."""


class DiskFullError(SessionError):
    """The disk itself is full, whatever the budget says."""


class ChunkLostError(SessionError):
    """Keys and values of one chunk, dense, sparse or exact, cannot be had any more; everything else
    can.
    """


SQLITE_ERRORS: dict[int | None, type[SessionError]] = {
    sqlite3.SQLITE_BUSY: SessionBusyError,
    sqlite3.SQLITE_LOCKED: SessionBusyError,
    sqlite3.SQLITE_FULL: DiskFullError,
}


class SessionStore:
    """The folder of one session, open. `chunks` are the records of the chunks that are there, in
    order.

    One thread may write and publish while others read. Readers of `chunks` and of keys and values
    must keep `publish` away meanwhile; the database has a lock of its own.
    """

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

        kind: what the session must be of; None leaves that open, for a folder that is only looked
        at.
        settings: kept with a new session; `self.settings` are those it began with.
        budget_bytes: of the folder. Never do the newest `keep_chunks` have to make room.
        kv_bits: of a new session, 8 or 16 as in `KVFormat`; `self.format` is what it began with.
        Raises SessionError.
        """
        self.folder = folder
        self.read_only = read_only
        self._budget_bytes = budget_bytes
        self._keep_chunks = keep_chunks
        self.num_discarded = 0  # chunks that were not noted down yet when watching was killed
        self._is_unclean = False  # bytes of a chunk that failed may lie about
        self._files = {kept: Segments(folder, f"kv-{kept}") for kept in KEPT}
        self._evicted_files: list[tuple[Kept, int]] = []  # not deleted yet
        self._db_lock = threading.RLock()  # watching and asking threads share one connection
        with ExitStack() as undo, self._wrap_errors():
            if not read_only:
                undo.enter_context(lock(folder))
            if is_left_over(folder) and kv_names(folder):
                raise SessionError(
                    f"{folder} has lost its database, and what was remembered cannot be read "
                    "without it: delete the session, and watch again."
                )
            self._db = undo.enter_context(closing(open_database(folder, read_only)))
            opened = (folder / DATABASE).lstat()
            self._database_id = opened.st_dev, opened.st_ino
            if kind is not None and not read_only and not has_session(self._db):
                self._create(kind, settings or {}, kv_bits)
            with self._snapshot():
                self._facts = self._checked_facts(kind)
                self.chunks = self._read_chunks()
                self._key_bytes = self._read_key_bytes()
                self._keyframes = self._read_keyframes()
            self._ledger = self._counted(
                {kept: int(self._facts.get(f"first {kept}", 0)) for kept in KEPT}
            )
            self._watched = self._read_watched()
            self._first_thumb = self.first_chunk  # older ones have been deleted
            if not read_only:
                (folder / THUMBS).mkdir(exist_ok=True)
                limit_log(self._db, budget_bytes)
                self.num_discarded = self._num_without_record()
                self._clean_up()
            self._closing = undo.pop_all()

    @property
    def kind(self) -> Kind:
        facts = self._facts
        layers, kv_heads, head_dim = (
            int(facts[name]) for name in ("layers", "kv_heads", "head_dim")
        )
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
        """How many chunks there have been, evicted ones included: the number of the next one."""
        return self.chunks.stop

    @property
    def first_chunk(self) -> int:
        """Number of the first chunk that is still there; of those before it nothing is left."""
        return self.first("sparse")

    def first(self, kept: Kept) -> int:
        """Number of the first chunk of which this level is still there; all before it had to make
        room.
        """
        return self._ledger.first(kept)

    @property
    def _firsts(self) -> dict[Kept, int]:
        return {kept: self.first(kept) for kept in KEPT}

    @property
    def num_forgotten(self) -> int:
        """How many chunks are gone, the oldest ones."""
        return min(self.first("dense"), self.first("sparse"))

    @property
    def num_sparse(self) -> int:
        """How many chunks have lost their dense level only, the oldest ones that are there."""
        return self.first("dense") - self.num_forgotten

    @property
    def disk_bytes(self) -> int:
        """Bytes of keys, values, records, index keys and thumbnails."""
        return self._ledger.num_bytes

    def append(
        self,
        chunk: KVChunk,
        index_keys: Tensor | None,
        picture: NDArray[np.uint8],
        num_frames: int,
        seconds: float,
    ) -> None:
        """Makes the next chunk durable; old ones may have to make room for it.

        Raises SessionError where the chunk cannot be kept; none of it is left then.
        """
        self.publish(self.write([NewChunk(chunk, index_keys, picture, num_frames, seconds)]))
        self.delete_evicted()

    def write(self, chunks: Sequence[NewChunk]) -> list[WrittenChunk]:
        """Makes the next chunks durable in one commit. They are not among `chunks` before
        `publish`.

        So another thread may read all the while. Raises SessionError, or SessionBusyError where
        trying again may help; nothing of the chunks is left then.
        """
        if self.read_only:
            raise SessionError(f"{self.folder} was opened for questions only.")
        prepared = [self._prepare(new) for new in chunks]
        with self._wrap_errors():
            self._check_database_is_there()
            if self._is_unclean:
                self._clean_up()
            self._is_unclean = True
            try:
                # not under the database's lock: a turn of dialogue may be kept
                written = self._write_files(prepared)
                self._commit(written)
            except Exception:
                with suppress(OSError, sqlite3.Error):
                    self._clean_up()
                    self._is_unclean = False
                raise
            self._is_unclean = False
        return written

    def publish(self, written: Sequence[WrittenChunk]) -> None:
        """These chunks are there from now on, and those that made room for them are not."""
        for new in written:
            self._ledger = new.ledger
            self._watched = new.watched
            self._facts["seen seconds"] = repr(new.seen_seconds)
            self.chunks.append(new.record)
            self._key_bytes[new.record.index] = new.key_bytes
            self._keyframes.extend(new.keyframes)
            self._drop_records()
            self._evicted_files += new.dropped

    def write_eviction(self) -> Eviction | None:
        """Lets the oldest file go although there is budget, for a disk that is full; None where
        none can be spared.

        Durable at once; `publish_eviction` makes it so here, and `delete_evicted` deletes the file.
        """
        ledger = self._ledger.copy()
        try:
            dropped = ledger.drop_oldest(self.num_chunks)
        except BudgetTooSmallError:
            return None
        with self._wrap_errors(), self._db_lock, self._db:
            self._write_facts(ledger, {})
        return Eviction(ledger, dropped)

    def publish_eviction(self, eviction: Eviction) -> None:
        self._ledger = eviction.ledger
        self._evicted_files += eviction.dropped
        self._drop_records()

    def delete_evicted(self) -> None:
        """Deletes what made room for published chunks; opening the folder again deletes what is
        left.
        """
        files, self._evicted_files = self._evicted_files, []
        with suppress(OSError):
            for kept, segment in files:
                self._files[kept].drop(segment)
            names = [
                self.thumbnail(index).name for index in range(self._first_thumb, self.first_chunk)
            ]
            if names:
                delete_files(self.folder / THUMBS, names)
            self._first_thumb = max(self._first_thumb, self.first_chunk)

    def _drop_records(self) -> None:
        for record in self.chunks.drop_before(self.first_chunk):
            del self._key_bytes[record.index]
        self._drop_keyframes(self.first_chunk)

    def _drop_keyframes(self, first_chunk: int) -> None:
        while self._keyframes and self._keyframes[0].chunk < first_chunk:
            self._keyframes.popleft()

    def forget_before(self, number: int) -> None:
        """Keeps no records of these chunks in memory; they stay on the disk until they make room
        there.
        """
        self.chunks.drop_before(number)
        self._drop_keyframes(number)

    def read(self, index: int, kept: Kept = "dense") -> Tensor:
        """The packed keys and values of a chunk: uint8 [n] on the CPU. Raises ChunkLostError."""
        if index < self.chunks.first:
            raise ChunkLostError(
                f"What was remembered as chunk {index} had to make room on the disk."
            )
        chunk = self.chunks[index]
        when = f"{chunk.meta.start_seconds:.0f} s to {chunk.meta.stop_seconds:.0f} s"
        if index >= self.first(kept):
            try:
                if kept == "sparse":
                    self._check_sparse_size(chunk)
                return self._files[kept].read(chunk.places[kept])
            except DamagedBytesError as error:
                if not self._was_evicted(index, kept):
                    what = (
                        "was left out"
                        if kept == "sparse" or index < self.first("sparse")
                        else FALLBACK_TEXT[kept]
                    )
                    sentence = (
                        f"What was remembered of {when} is damaged in {self.folder} and {what}: "
                        f"{error}."
                    )
                    raise ChunkLostError(sentence) from error
        raise ChunkLostError(
            f"What was remembered of {when} had to make room on the disk in the meantime."
        )

    def has_exact(self, index: int) -> bool:
        """Whether a chunk is kept as computed beside 8 bits; the newest are."""
        return index >= self.first("exact") and self.chunks[index].places["exact"].num_bytes > 0

    def index_keys(self, num_heads: int) -> Iterator[Tensor]:
        """The index keys of every chunk that is there, in order, in the type of the keys:
        [num_heads, n, head_dim].
        """
        with self._wrap_errors(), self._db_lock, self._snapshot():
            self._refresh_firsts()
            first = max(self.chunks.first, self.first_chunk)
            for _ in range(self.chunks.first, first):  # another process has just evicted these
                yield self._keys_of(b"", num_heads)
            query = (
                "SELECT number, data, checksum FROM index_keys WHERE number >= ? AND number < ? "
                "ORDER BY number"
            )
            rows = self._db.execute(query, (first, self.num_chunks))
            for index in range(first, self.num_chunks):
                number, data, checksum = next(rows, (None, None, None))
                if number != index:
                    raise DamagedDatabaseError(f"the index keys of chunk {index} are missing")
                if not isinstance(data, bytes):
                    data, checksum = b"", None
                if zlib.crc32(data) != checksum or len(data) % self._key_row_bytes(num_heads):
                    raise DamagedDatabaseError(f"the index keys of chunk {index} have changed")
                yield self._keys_of(data, num_heads)

    def replace_index(self, heads: str, keys: Iterable[Tensor]) -> None:
        """Other index keys for every chunk, and what `heads` will say about them."""
        with self._wrap_errors(), self._db_lock, self._db:
            self._db.execute("DELETE FROM index_keys")
            for index, rows in enumerate(keys, self.chunks.first):
                data = self._to_bytes(rows)
                self._db.execute(
                    "INSERT INTO index_keys VALUES (?, ?, ?)", (index, data, zlib.crc32(data))
                )
            set_fact(self._db, "heads", heads)
            self._key_bytes = self._read_key_bytes()
        self._facts["heads"] = heads
        self._ledger = self._counted(self._firsts)

    @property
    def heads(self) -> str:
        """Which heads the index keys are of, as `replace_index` was told; nothing in a new
        session.
        """
        return self._facts.get("heads", "")

    @property
    def source(self) -> str | None:
        """Where the frames come from, once that is known."""
        return self._facts.get("source")

    @property
    def fingerprint(self) -> tuple[str, int] | None:
        """Hash of the first packets of the source, and its bytes when that was last said."""
        found = self._facts.get("fingerprint")
        if found is None:
            return None
        first_packets, num_bytes = json.loads(found)
        return first_packets, num_bytes

    def set_source(self, source: str, fingerprint: tuple[str, int] | None = None) -> None:
        """Raises SessionError for a name that is not UTF-8, which the database cannot hold."""
        try:
            source.encode()
        except UnicodeEncodeError as error:
            raise SessionError(f"A session cannot keep {source!a}, which is not UTF-8.") from error
        facts = {"source": source}
        if fingerprint is not None:
            facts["fingerprint"] = json.dumps(fingerprint)
        if any(self._facts.get(name) != value for name, value in facts.items()):
            self._set(facts)

    @property
    def seen_seconds(self) -> float:
        """How far was watched: to the end of the newest chunk, or as far behind it as has been
        said.
        """
        seen = float(self._facts.get("seen seconds", 0.0))
        if not len(self.chunks):
            return seen
        return max(seen, self.chunks[self.num_chunks - 1].meta.stop_seconds)

    @property
    def frames_watched(self) -> int:
        """Of all chunks, evicted ones included, and since the newest one."""
        return self._watched[0] + self.still_since[0]

    @property
    def watch_seconds(self) -> float:
        """What watching all of this took."""
        return self._watched[1] + self.still_since[1]

    @property
    def still_since(self) -> tuple[int, float]:
        """Frames watched behind the newest chunk that showed nothing new, where it has been said,
        and the seconds that took."""
        chunks, frames, seconds = json.loads(self._facts.get("still since", "[0, 0, 0.0]"))
        return (frames, seconds) if chunks == self.num_chunks else (0, 0.0)

    def set_seen(self, seconds: float, still_since: tuple[int, float]) -> None:
        self._set(
            {
                "seen seconds": repr(seconds),
                "still since": json.dumps([self.num_chunks, *still_since]),
            }
        )

    @property
    def keyframes(self) -> list[KeyframeRecord]:
        """Those of the chunks that are there, in order, without their pictures."""
        return list(self._keyframes)

    @property
    def num_keyframes(self) -> int:
        return len(self._keyframes)

    def add_keyframes(self, keyframes: Sequence[KeyframeRecord]) -> None:
        """Keeps keyframes that came after the newest chunk, with that one; without any chunk they
        are nobody's.
        """
        if not keyframes or not len(self.chunks):
            return
        with self._wrap_errors(), self._db_lock, self._db:
            rows = self._insert_keyframes(self.num_chunks - 1, keyframes)
        self._keyframes.extend(rows)
        self._ledger.add_record_bytes(sum(keyframe.num_bytes for keyframe in rows))

    def keyframe_picture(self, keyframe: KeyframeRecord) -> bytes | None:
        """A JPEG; None where it had to make room, or is damaged."""
        with self._wrap_errors(), self._db_lock:
            return read_keyframe_picture(self._db, keyframe.number)

    def _insert_keyframes(
        self, chunk: int, keyframes: Sequence[KeyframeRecord]
    ) -> list[KeyframeRecord]:
        """In the transaction that is open: the rows as they are on the disk."""
        rows: list[KeyframeRecord] = []
        for keyframe in keyframes:
            row = (chunk, float(keyframe.pts_seconds), keyframe.kind)
            number = add_keyframe(self._db, row, keyframe.picture)
            rows.append(replace(keyframe, picture=b"", chunk=chunk, number=number))
        return rows

    def _read_keyframes(self) -> deque[KeyframeRecord]:
        found: deque[KeyframeRecord] = deque()
        for number, row, picture_bytes in read_keyframes(self._db, self.chunks.first):
            chunk, pts_seconds, kind = row
            if kind not in KEYFRAME_KINDS or chunk >= self.chunks.stop:
                raise DamagedDatabaseError(f"keyframe {number} cannot be")
            if found and chunk < found[-1].chunk:
                raise DamagedDatabaseError(f"keyframe {number} lies before the one it follows")
            found.append(KeyframeRecord(pts_seconds, kind, b"", picture_bytes, chunk, number))
        return found

    def notes(self, prefix: str) -> dict[str, str]:
        """The facts whose names begin so; of a folder that another process writes, as they are
        now.
        """
        if self.read_only:
            with self._wrap_errors(), self._db_lock:
                self._facts = read_facts(self._db)
        return {name: value for name, value in self._facts.items() if name.startswith(prefix)}

    def set_notes(self, notes: Mapping[str, str | None]) -> None:
        """Facts, durable together; None takes one away."""
        facts = {name: value for name, value in notes.items() if value is not None}
        gone = [name for name, value in notes.items() if value is None]
        with self._wrap_errors(), self._db_lock, self._db:
            for name in gone:
                delete_fact(self._db, name)
            for name, value in facts.items():
                set_fact(self._db, name, value)
        self._facts = {name: self._facts[name] for name in self._facts if name not in gone} | facts

    def turns(self) -> list[tuple[str, str]]:
        """All questions and answers, in order."""
        with self._wrap_errors(), self._db_lock:
            return read_turns(self._db)

    def add_turn(self, question: str, answer: str) -> None:
        """Readers may add turns as well."""
        with self._wrap_errors(), self._db_lock, self._db:
            add_turn(self._db, question, answer)

    def thumbnail(self, index: int) -> Path:
        return self.folder / THUMBS / f"{index:08d}.jpg"

    def close(self) -> None:
        """May be called twice."""
        self._closing.close()

    def check_integrity(self) -> None:
        """Asserts that records follow each other and their bytes lie gapless in their files; reads
        all of them.
        """
        assert [chunk.index for chunk in self.chunks] == list(
            range(self.chunks.first, self.num_chunks)
        ), "records"
        for kept in KEPT:
            ends: dict[int, int] = {}
            for chunk in self.chunks:
                place = chunk.places[kept]
                if chunk.index < self.first(kept) or not place.num_bytes:
                    continue
                assert place.offset == ends.get(place.segment, 0), "bytes of a file are nobody's"
                ends[place.segment] = place.offset + self.read(chunk.index, kept).nbytes
            if self.chunks.first == self.first_chunk:
                assert self._ledger.num_bytes_of(kept) == sum(ends.values()), (
                    f"{kept} bytes are not the sum"
                )
        if self.chunks.first == self.first_chunk:
            assert self.disk_bytes == self._counted(self._firsts).num_bytes, (
                "disk bytes are not the sum"
            )
        with self._db_lock:
            for table in ("chunks", "index_keys"):
                rows = [
                    number
                    for (number,) in self._db.execute(f"SELECT number FROM {table} ORDER BY number")
                ]
                if self.heads or table == "chunks":
                    assert self.read_only or rows == list(
                        range(self.first_chunk, self.num_chunks)
                    ), f"rows of {table}"
            if not self.read_only:
                rows = [number for (number,) in self._db.execute("SELECT number FROM keyframes")]
                wanted = {keyframe.number for keyframe in self._keyframes}
                if self.chunks.first == self.first_chunk:
                    assert set(rows) == wanted, "rows of keyframes"

    def _create(self, kind: Kind, settings: Mapping[str, Any], kv_bits: int) -> None:
        (self.folder / THUMBS).mkdir(exist_ok=True)
        sync_folder(self.folder)
        facts = {"format": FORMAT, "settings": json.dumps(settings), "kv_bits": kv_bits} | asdict(
            kind
        )
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
                raise SessionError(
                    f"{self.folder} was made with {what} {facts[name]}, not {wanted}."
                )
        return facts

    def _read_chunks(self) -> Numbered[StoredChunk]:
        first = int(self._facts.get("first sparse", 0))
        chunks: Numbered[StoredChunk] = Numbered(first=first)
        previous: StoredChunk | None = None
        for row in self._db.execute(
            "SELECT * FROM chunks WHERE number >= ? ORDER BY number", (first,)
        ):
            chunk = StoredChunk.of_row(row)
            self._check_sizes(chunk)
            if chunk.index != chunks.stop:
                raise DamagedDatabaseError("records of chunks are missing")
            if previous is not None and not chunk.meta.is_after(previous.meta):
                raise DamagedDatabaseError(f"chunk {chunk.index} lies before the one it follows")
            chunks.append(chunk)
            previous = chunk
        return chunks

    def _read_key_bytes(self) -> dict[int, int]:
        """Bytes of index keys by chunk."""
        return dict(
            self._db.execute("SELECT number, length(data) FROM index_keys WHERE data IS NOT NULL")
        )

    def _read_watched(self) -> tuple[int, float]:
        """Frames of all chunks there have been, and the seconds that these took."""
        if "watched" in self._facts:
            frames, seconds = json.loads(self._facts["watched"])
            return frames, seconds
        return sum(chunk.num_frames for chunk in self.chunks), sum(
            chunk.watch_seconds for chunk in self.chunks
        )

    def _counted(self, firsts: Mapping[Kept, int]) -> Ledger:
        """The books, from the records."""
        budget_bytes = self._budget_bytes - log_bytes(self._budget_bytes)
        extra_bytes = dict(self._key_bytes)
        for keyframe in self._keyframes:
            others = extra_bytes.get(keyframe.chunk, 0)
            extra_bytes[keyframe.chunk] = others + keyframe.num_bytes
        return Ledger.of(self.chunks, extra_bytes, firsts, budget_bytes, self._keep_chunks)

    def _check_sizes(self, chunk: StoredChunk) -> None:
        """Raises DamagedDatabaseError where a record names another number of bytes than it has.

        How many the sparse level has takes longer to find out: see `_check_sparse_size`.
        """
        form, num_tokens, places = self.format, chunk.meta.num_tokens, chunk.places
        is_right = places["dense"].num_bytes == form.num_bytes(num_tokens)
        is_right &= places["sparse"].num_bytes <= form.num_bytes(num_tokens)
        is_right &= places["exact"].num_bytes in (0, form.as_computed.num_bytes(num_tokens))
        if not is_right:
            what = f"the record of chunk {chunk.index} names a wrong number of bytes"
            raise DamagedDatabaseError(what)

    def _check_sparse_size(self, chunk: StoredChunk) -> None:
        if chunk.places["sparse"].num_bytes != self.format.num_bytes(
            chunk.meta.pooled().num_tokens
        ):
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

    def _prepare(self, new: NewChunk) -> _PreparedChunk:
        """All that is computed of a chunk before anything is written."""
        keys = b"" if new.index_keys is None else self._to_bytes(new.index_keys)
        thumb = b"" if new.thumbnail is None else as_jpeg(new.thumbnail)
        packed = {kept: as_bytes(data) for kept, data in self._packed(new.chunk).items()}
        return _PreparedChunk(new, new.chunk.meta(), keys, thumb, packed)

    def _write_files(self, prepared: Sequence[_PreparedChunk]) -> list[WrittenChunk]:
        """Bytes and thumbnails on the disk, flushed once for all; records are not written yet.

        The exact copies are not flushed: without them the window is taken from the dense level.
        """
        ledger, (frames, seconds) = self._ledger, self._watched
        written: list[WrittenChunk] = []
        with ExitStack() as open_files:
            writers = {
                kept: open_files.enter_context(files.writer(must_flush=kept != "exact"))
                for kept, files in self._files.items()
            }
            for index, item in enumerate(prepared, self.num_chunks):
                assert item.meta.index == index, (
                    f"chunk {item.meta.index} cannot follow {index} chunks"
                )
                ledger = ledger.copy()
                placement = self._placed(ledger, item)
                places = dict.fromkeys(KEPT, Place(index))
                for kept, data in item.packed.items():
                    places[kept] = writers[kept].append(*placement.places[kept], data)
                if item.thumb:
                    replace_file(self.thumbnail(index), item.thumb)
                new = item.new
                record = StoredChunk(
                    item.meta, new.num_frames, new.watch_seconds, len(item.thumb), places
                )
                frames, seconds = frames + new.num_frames, seconds + new.watch_seconds
                watched = (frames, seconds)
                seen_seconds = max(self.seen_seconds, new.seen_seconds)
                written.append(
                    WrittenChunk(
                        record,
                        item.keys,
                        ledger,
                        placement.dropped,
                        watched,
                        seen_seconds,
                        list(new.keyframes),
                    )
                )
            for writer in writers.values():
                writer.flush()
        return written

    def _placed(self, ledger: Ledger, item: _PreparedChunk) -> Placement:
        sizes = {kept: len(data) for kept, data in item.packed.items()}
        record_bytes = (
            ROW_BYTES
            + TOKEN_BYTES * item.meta.num_tokens
            + len(item.thumb)
            + len(item.keys)
            + item.new.keyframe_bytes
        )
        try:
            return ledger.add(item.meta.index, sizes, record_bytes)
        except BudgetTooSmallError as error:
            gib = self._budget_bytes / (1 << 30)
            raise SessionError(
                f"The disk budget of {gib:.3g} GiB is full.", "memory.disk_bytes"
            ) from error

    def _commit(self, written: Sequence[WrittenChunk]) -> None:
        """The records in, those of evicted chunks out, in one transaction: only now the chunks
        count.
        """
        ledger = written[-1].ledger
        with self._db_lock, self._db:
            for new in written:
                keys = (new.record.index, new.keys, zlib.crc32(new.keys))
                self._db.execute(
                    f"INSERT INTO chunks VALUES ({', '.join('?' * 12)})", new.record.row()
                )
                self._db.execute("INSERT INTO index_keys VALUES (?, ?, ?)", keys)
                new.keyframes[:] = self._insert_keyframes(new.record.index, new.keyframes)
            facts = {
                "watched": json.dumps(written[-1].watched),
                "seen seconds": repr(written[-1].seen_seconds),
            }
            self._write_facts(ledger, facts)

    def _write_facts(self, ledger: Ledger, facts: dict[str, str]) -> None:
        """Facts, and what the ledger has evicted, in the transaction that is open."""
        for kept in KEPT:
            if ledger.first(kept) != self.first(kept):
                facts[f"first {kept}"] = str(ledger.first(kept))
        if ledger.first("sparse") > self.first_chunk:
            for table in ("chunks", "index_keys"):
                self._db.execute(f"DELETE FROM {table} WHERE number < ?", (ledger.first("sparse"),))
            self._db.execute("DELETE FROM keyframes WHERE chunk < ?", (ledger.first("sparse"),))
        for name, value in facts.items():
            set_fact(self._db, name, value)

    def _num_without_record(self) -> int:
        """How many chunks have a picture and no record; more than a few where the log is lost."""
        thumbs = thumb_names(self.folder / THUMBS)
        return sum(int(name.partition(".")[0]) >= self.num_chunks for name in thumbs)

    def _check_database_is_there(self) -> None:
        """Raises SessionError where it was deleted: what goes into it would be gone at the end."""
        try:
            found = (self.folder / DATABASE).lstat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._database_id:
            raise SessionError(f"{self.folder} was deleted or replaced while it was being watched.")

    def _clean_up(self) -> None:
        """Takes away what does not count: of a chunk under way, or evicted just before a kill."""
        with self._db_lock:
            newest = self._db.execute("SELECT max(number) FROM chunks").fetchone()[0]
            if newest is not None and newest >= self.num_chunks:
                with self._db:
                    for table in ("chunks", "index_keys"):
                        self._db.execute(
                            f"DELETE FROM {table} WHERE number >= ?", (self.num_chunks,)
                        )
                    self._db.execute("DELETE FROM keyframes WHERE chunk >= ?", (self.num_chunks,))
        for kept, files in self._files.items():
            files.cut({file.first: file.num_bytes for file in self._ledger.files(kept)})
        thumbs = self.folder / THUMBS
        if os.path.lexists(thumbs):
            numbers = range(self.first_chunk, self.num_chunks)
            delete_files(
                thumbs,
                [
                    name
                    for name in thumb_names(thumbs)
                    if int(name.partition(".")[0]) not in numbers
                ],
            )

    def _was_evicted(self, index: int, kept: Kept) -> bool:
        """What the folder says now; another process may be writing it."""
        if self.read_only:
            with self._wrap_errors(), self._db_lock:
                self._refresh_firsts()
        return index < self.first(kept)

    def _refresh_firsts(self) -> None:
        """Takes note of what another process has evicted."""
        if not self.read_only:
            return
        newest = read_facts(self._db)
        for kept in KEPT:
            self._ledger.drop_before(kept, int(newest.get(f"first {kept}", 0)))

    def _key_row_bytes(self, num_heads: int) -> int:
        """Of one token's index keys."""
        return num_heads * self.kind.head_dim * self.kind.torch_dtype.itemsize

    def _keys_of(self, data: bytes, num_heads: int) -> Tensor:
        keys = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).view(
            self.kind.torch_dtype
        )
        return keys.view(num_heads, len(data) // self._key_row_bytes(num_heads), self.kind.head_dim)

    def _to_bytes(self, index_keys: Tensor) -> bytes:
        return as_bytes(index_keys.to(self.kind.torch_dtype)).tobytes()

    def _set(self, facts: Mapping[str, str]) -> None:
        with self._wrap_errors(), self._db_lock, self._db:
            for name, value in facts.items():
                set_fact(self._db, name, value)
        self._facts |= facts

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """What is read inside was all there at one moment, whatever another process commits."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.rollback()

    def _wrap_errors(self) -> AbstractContextManager[None]:
        return wrap_errors(self.folder)


@dataclass(frozen=True, eq=False)
class _PreparedChunk:
    """A chunk as bytes. keys: of the index. thumb: a JPEG."""

    new: NewChunk
    meta: ChunkMeta
    keys: bytes
    thumb: bytes
    packed: Mapping[Kept, memoryview]


@dataclass(frozen=True, eq=False)
class Eviction:
    """Files that were let go and not published yet; ledger: as it is without them."""

    ledger: Ledger
    dropped: Sequence[tuple[Kept, int]]


@dataclass(frozen=True, eq=False)
class WrittenChunk:
    """A chunk that is durable and not yet published; ledger, watched: as they are with it. dropped:
    files. keyframes: as rows, once they are committed.
    """

    record: StoredChunk
    keys: bytes
    ledger: Ledger
    dropped: Sequence[tuple[Kept, int]]
    watched: tuple[int, float]
    seen_seconds: float
    keyframes: list[KeyframeRecord]

    @property
    def key_bytes(self) -> int:
        return len(self.keys)


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
    database = folder.resolve() / DATABASE
    return connect_read_only(database) if read_only else connect(database, "rwc")


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
        kind = SQLITE_ERRORS.get(getattr(error, "sqlite_errorcode", None), SessionError)
        raise kind(f"{folder / DATABASE} cannot be used: {error}.") from error
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
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else SessionError
        raise kind(f"{folder} cannot be used: {what[:1].lower()}{what[1:]}.") from error


def lock(folder: Path) -> FileIO:
    """The right to write in a folder, which is made where there is none; held until closed or the
    process ends.

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
        _take_lock(file)
    except BlockingIOError as error:
        file.close()
        raise SessionError(f"{folder} is being watched by another process.") from error
    return file


def _take_lock(file: FileIO) -> None:
    """Who only asks whether a folder is being watched holds its lock for a moment."""
    for _ in range(LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOCK_WAIT_SECONDS)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
