"""The memory of one stream: its newest chunks on the device, older ones in host memory and on disk,
all in one index.

    append -> [ device window: newest chunks ] -> oldest -> [ host pool ] -> oldest is dropped
                 |          |                                     |
    get:         |        device <--------------------------------+
                 |        device <--- [ disk, with a store: all chunks; oldest sparse, then gone ]
                 +-> index: keys of the retrieval heads, of every chunk that can be loaded

A chunk is appended to all of it in one call, or to nothing. Everything is counted: what the device
holds depends on the window only, what the host holds on `host_bytes`, and the disk on the store's
budget. Whatever is full evicts the oldest chunks, with all that is known of them; chunks keep their
numbers. The device has chunks as computed, host and disk as their format says: in 8 bits perhaps,
and then only the window is exact. Knows nothing of models, questions or
relevance: it is told which chunks to bring.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from config import MemoryConfig
from errors import LonglookError, Notice
from memory.chunk import ChunkMeta, KVChunk, cells
from memory.disk_tier import (
    ChunkLostError,
    DiskFullError,
    SessionBusyError,
    SessionStore,
    WrittenChunk,
)
from memory.heap import return_free_memory
from memory.host_pool import HostPool, PoolFullError
from memory.kv_codec import KVFormat
from memory.numbered import Numbered
from memory.records import KEYFRAME_BYTES, Kept, KeyframeRecord, NewChunk
from memory.retrieval_index import HeadIndex

HEADROOM = 1.25  # blocks are larger than the first chunk: timestamps get longer as a stream goes on
BLOCK_STEP_BYTES = 512  # what a GPU's allocator rounds to as well
# between tries, where a failure may pass: others may need the device or the disk now
RETRY_SECONDS = (0.5, 2.0, 8.0)
PASSING_ERRORS = (SessionBusyError, torch.OutOfMemoryError)
# What the search needs in host memory whatever the budget, where a disk has the chunks: without
# index and records they could not be found. With a large model this is some 60 chunks, with the
# embedded one some 2,000.
MIN_SEARCH_BYTES = 64 << 20
NO_DEVICE_MEMORY = (
    "The device has no memory left; smaller chunks, fewer recalled chunks, a smaller model or "
    "the CPU need less."
)
TRIM_CHUNKS = 64  # once in so many chunks the heap gives back what is free in it


class MemoryFullError(LonglookError):
    """The device has no room for more; what is remembered stays and can be asked about."""


@dataclass(frozen=True)
class MemoryCounts:
    """What a memory holds, as it was right after some chunk. chunks: evicted ones included.

    disk_forgotten_chunks: made room on the disk; the host may have some of them still. The seconds
    are where the first chunk starts that was not forgotten so, and the first that has its dense
    level.
    """

    chunks: int
    tokens: int
    visual_tokens: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    sparse_chunks: int
    forgotten_chunks: int
    disk_forgotten_chunks: int
    disk_starts_seconds: float
    dense_starts_seconds: float


@dataclass(frozen=True, eq=False)
class _Resident:
    """A chunk of the window and the device block that it lies at the beginning of."""

    chunk: KVChunk
    meta: ChunkMeta
    block: Tensor


@dataclass(frozen=True, eq=False)
class _Pushed:
    """How to take a chunk back: what left the window for it, and whether the host has that."""

    left: _Resident | None
    is_on_host: bool


class KVMemory:
    """Chunks of one stream, numbered from 0 in the order of coming; those from `first_chunk` on are
    remembered.

    store: keeps the chunks on disk; then the host tier is a cache, and old chunks may be
    `is_evicted` there.
    index: finds chunks by their keys. Both are the memory's own from now on.
    lock: held whenever something changes that another thread may read, never while anything is
    written to the disk. Window chunks lie in device blocks of one size, so that their bytes stay
    the same while chunks differ a little; only a chunk larger than all blocks so far gets a larger
    one. A chunk handed out stays valid whatever is appended later.
    """

    def __init__(
        self,
        config: MemoryConfig,
        device: torch.device,
        store: SessionStore | None = None,
        index: HeadIndex | None = None,
        lock: threading.RLock | None = None,
    ) -> None:
        self._window_chunks = config.window_chunks
        self._store = store
        self._index = index
        self._device = device
        self._lock = lock or threading.RLock()
        self._appending = threading.Lock()
        self._closing = threading.Event()
        self._host_bytes = config.host_bytes
        self._host = HostPool(config.host_bytes, pinned=device.type == "cuda")
        self._metas: Numbered[ChunkMeta] = Numbered()
        self._keyframes: deque[KeyframeRecord] = deque()  # without a disk, else it has them
        # in the host pool, of the chunks that left the window last
        self._addresses: deque[int] = deque()
        # what was found damaged or gone on disk, and what to say of it
        self._lost: dict[tuple[int, Kept], str] = {}
        self._notices: list[Notice] = []  # not told yet
        self._has_told_of_host = self._has_told_of_disk = False
        self._window: deque[_Resident] = deque()
        # chunks that are not durable yet, wherever they are besides
        self._pending: dict[int, KVChunk] = {}
        self._bits = config.kv_bits
        self._format: KVFormat | None = None  # of host and disk
        self._block_bytes = 0
        self._num_tokens = self._num_visual_tokens = self._meta_bytes = 0
        self._chunks_since_trim = 0
        if store is not None:
            self._restore(store)

    @property
    def index(self) -> HeadIndex | None:
        return self._index

    @property
    def num_chunks(self) -> int:
        """How many chunks there have been, evicted ones included: the number of the next one."""
        return self._metas.stop

    @property
    def first_chunk(self) -> int:
        """Number of the first chunk that is remembered."""
        return self._metas.first

    @property
    def num_tokens(self) -> int:
        """Of all chunks that are remembered, dense."""
        return self._num_tokens

    @property
    def num_visual_tokens(self) -> int:
        return self._num_visual_tokens

    @property
    def device_bytes(self) -> int:
        """Bytes of the window's blocks, headroom included."""
        return sum(resident.block.nbytes for resident in self._window)

    @property
    def host_bytes(self) -> int:
        """Bytes of keys and values in the host tier, packed."""
        return self._host.used_bytes

    @property
    def host_reserved_bytes(self) -> int:
        """Bytes that the host tier has taken from the system, never more than its budget."""
        return self._host.reserved_bytes

    @property
    def search_bytes(self) -> int:
        """Bytes of index and records in host memory; they count in the host's budget."""
        on_disk = 0 if self._store is None else self._store.num_keyframes * KEYFRAME_BYTES
        return self._meta_bytes + on_disk + (self._index.host_bytes if self._index else 0)

    @property
    def window_indices(self) -> range:
        """Numbers of the chunks in the window, half-open."""
        return range(self.num_chunks - len(self._window), self.num_chunks)

    @property
    def host_indices(self) -> range:
        """Numbers of the chunks in the host tier, half-open; those before them are on disk."""
        stop = self.window_indices.start
        return range(stop - len(self._addresses), stop)

    def is_evicted(self, index: int) -> bool:
        """Whether a chunk's keys and values cannot be had any more: they made room, or are
        damaged.
        """
        return index < self.first_chunk or (
            self._is_missing(index, "dense") and self._is_missing(index, "sparse")
        )

    def is_sparse_only(self, index: int) -> bool:
        """Whether the sparse level is all there is of a chunk."""
        return self._is_missing(index, "dense") and not self._is_missing(index, "sparse")

    @property
    def damaged(self) -> set[int]:
        """Numbers of remembered chunks that cannot be had because what the disk has of them is not
        as it should be.
        """
        return {index for index, _ in self._lost if self.is_evicted(index)}

    @property
    def losses(self) -> list[str]:
        """A sentence for each chunk and level that could not be read from disk, in the order of
        finding.
        """
        return list(self._lost.values())

    def take_notices(self) -> list[Notice]:
        """What was lost since this was last asked for, a sentence each."""
        with self._lock:
            notices, self._notices = self._notices, []
        return notices

    def append(self, new: NewChunk) -> MemoryCounts:
        """As `append_all`, for one chunk."""
        return self.append_all([new])[0]

    def append_all(
        self, chunks: Sequence[NewChunk], on_visible: Callable[[], None] | None = None
    ) -> list[MemoryCounts]:
        """Puts the next chunks into window, host, index, records and disk: all of them or none,
        whatever fails.

        They can be asked about at once and are safe on the disk when this returns, all with one
        commit. Old chunks make room, and some more where the disk is full before its budget is.
        What may pass (a busy database, a device without memory) is tried again a few times. One
        thread at a time; others may read under the lock meanwhile.
        on_visible: called, under the lock, when the chunks can be asked about, and when a failure
        delays that.

        Gives what the memory held right after each chunk. Raises ValueError for a chunk that does
        not follow (number, time, shape), and SessionError, MemoryFullError or what else went wrong;
        the memory is then as it was.
        """
        with self._appending:
            for seconds in RETRY_SECONDS:
                try:
                    return self._append_once(chunks, on_visible)
                except (*PASSING_ERRORS, DiskFullError) as error:
                    if on_visible is not None:
                        with self._lock:
                            on_visible()
                    if self._closing.wait(seconds):
                        raise
                    if isinstance(error, DiskFullError):
                        self._make_room_on_disk(error)
            try:
                return self._append_once(chunks, on_visible)
            except torch.OutOfMemoryError as error:
                raise MemoryFullError(NO_DEVICE_MEMORY) from error

    def fill_index(self, keys: Iterable[Tensor]) -> None:
        """Index keys of every remembered chunk, in order: of a session that goes on."""
        assert self._index is not None
        self._index.evict_before(self.first_chunk)
        for number, rows in enumerate(keys, self.first_chunk):
            self._index.add(number, rows)
        self._evict_for_search()

    def window(self) -> list[KVChunk]:
        """The newest chunks, oldest first, on the device; nothing is copied."""
        return [resident.chunk for resident in self._window]

    @property
    def newest(self) -> KVChunk:
        """The chunk appended last; raises IndexError before the first."""
        return self._window[-1].chunk

    def get(self, indices: Sequence[int]) -> list[KVChunk]:
        """These chunks on the device, in the order asked for; dense, but for those that are
        `is_sparse_only`.

        Those not in the window come in one buffer, neighbours in host memory in one copy. Raises
        IndexError for a number not in memory, ChunkLostError for a chunk that is not as the disk
        should have it: from then on it is `is_sparse_only` or `is_evicted`.
        """
        for index in indices:
            if not self.first_chunk <= index < self.num_chunks:
                raise IndexError(f"chunk {index} is not among the {len(self._metas)} in memory")
        chunks = self._pending | {resident.chunk.index: resident.chunk for resident in self._window}
        chunks |= self._loaded(sorted({index for index in indices if index not in chunks}))
        return [chunks[index] for index in indices]

    @property
    def keyframes(self) -> list[KeyframeRecord]:
        """Those of the chunks that are remembered, in order."""
        if self._store is None:
            return list(self._keyframes)
        return self._store.keyframes

    @property
    def num_keyframes(self) -> int:
        return len(self._keyframes) if self._store is None else self._store.num_keyframes

    def keyframe_picture(self, keyframe: KeyframeRecord) -> bytes | None:
        """A JPEG; None where it had to make room, or is damaged."""
        if keyframe.picture or self._store is None:
            return keyframe.picture or None
        return self._store.keyframe_picture(keyframe)

    def meta(self, index: int) -> ChunkMeta:
        """What is known of a remembered chunk, wherever it is."""
        return self._metas[index]

    def group_starts(self, index: int) -> tuple[float, ...]:
        """Seconds at which the groups of a chunk start, wherever it is."""
        return self._metas[index].group_starts

    def sizes(self, index: int) -> tuple[int, int]:
        """Tokens of a chunk, dense and sparse (where the sparse level is not pooled: at most so
        many).
        """
        meta = self._metas[index]
        return meta.num_tokens, len(cells(meta.layout, meta.visual)[1])

    def spans(self) -> list[tuple[float, float]]:
        """(start_seconds, stop_seconds) of every remembered chunk, half-open, in time order."""
        return [(meta.start_seconds, meta.stop_seconds) for meta in self._metas]

    @property
    def stop_seconds(self) -> float | None:
        """Where the newest chunk ends; None where there is none."""
        return self._metas[self.num_chunks - 1].stop_seconds if len(self._metas) else None

    def counts(self) -> MemoryCounts:
        """What the memory holds now."""
        index = self._index
        return MemoryCounts(
            chunks=self.num_chunks,
            tokens=self._num_tokens,
            visual_tokens=self._num_visual_tokens,
            device_bytes=self.device_bytes + (index.device_bytes if index else 0),
            host_bytes=self.host_bytes + (index.host_bytes if index else 0),
            **self._disk_counts(),
        )

    def _disk_counts(self) -> dict[str, Any]:
        """The fields of `MemoryCounts` that chunks on the disk change."""
        store = self._store
        forgotten, sparse = (store.num_forgotten, store.num_sparse) if store else (0, 0)
        return {
            "disk_bytes": store.disk_bytes if store else 0,
            "sparse_chunks": sparse,
            "forgotten_chunks": max(forgotten, self.first_chunk),
            "disk_forgotten_chunks": forgotten,
            "disk_starts_seconds": self._start_seconds(forgotten),
            "dense_starts_seconds": self._start_seconds(forgotten + sparse),
        }

    def _start_seconds(self, index: int) -> float:
        """Where a chunk starts; where the newest one ends, if it has not come yet."""
        index = max(index, self.first_chunk)
        return (
            self._metas[index].start_seconds
            if index < self.num_chunks
            else self.stop_seconds or 0.0
        )

    def check_integrity(self) -> None:
        """Asserts what always holds: numbering, order in time, places of the chunks, counts of
        bytes and tokens, and that window, host, disk, index and records agree."""
        metas = list(self._metas)
        assert [meta.index for meta in metas] == list(range(self.first_chunk, self.num_chunks)), (
            "a record is missing"
        )
        assert all(b.is_after(a) for a, b in pairwise(metas)), "times do not ascend"
        assert [chunk.index for chunk in self.window()] == list(self.window_indices), (
            "window and host do not join"
        )
        assert len(self._window) <= self._window_chunks, "the window is too long"
        assert not self._pending, "a chunk is not durable"
        if self._store is None:
            assert self.host_indices.start == self.first_chunk, "chunks are nowhere"
            assert len(self._window) == min(self._window_chunks, len(metas)), "the window has gaps"
        else:
            assert self._store.num_chunks == self.num_chunks, "disk and memory do not hold the same"
            is_on_disk = self._store.first_chunk <= self.first_chunk
            assert is_on_disk or self.first_chunk == self.host_indices.start, "chunks are nowhere"
        if self._index is not None:
            ours, found = (
                (self.first_chunk, self.num_chunks),
                (self._index.first_chunk, self._index.num_chunks),
            )
            assert ours == found, f"the index has other chunks: {found}, not {ours}"
            self._index.check_integrity()
        assert all(chunk.keys.device.type == self._device.type for chunk in self.window()), (
            "window not on the device"
        )
        sizes = [self._num_bytes(self._metas[index]) for index in self.host_indices]
        assert self._host.used_bytes == sum(sizes), "host bytes are not the sum"
        gaps = [stop - start for start, stop in pairwise(self._addresses)]
        assert gaps == sizes[:-1], "host addresses are not those of the chunks"
        assert self._host.used_bytes <= self._host.reserved_bytes <= self._host.budget_bytes, (
            "host budget"
        )
        assert self._num_tokens == sum(meta.num_tokens for meta in metas), "token count"
        assert self._num_visual_tokens == sum(meta.num_visual_tokens for meta in metas), (
            "visual token count"
        )
        num_bytes = sum(meta.memory_bytes for meta in metas)
        num_bytes += sum(keyframe.num_bytes for keyframe in self._keyframes)
        assert self._meta_bytes == num_bytes, "bytes of the records"
        assert all(k.chunk >= self.first_chunk for k in self._keyframes), "keyframes of nobody"

    def stop(self) -> None:
        """Waits for chunks that are being appended; none can be from then on."""
        self._closing.set()
        with self._appending:
            pass

    def close(self) -> None:
        """Gives all memory back and closes the store, after the chunk under way; chunks handed out
        before stay valid.

        May be called twice, but not under the lock.
        """
        self.stop()
        with self._lock:
            self._window.clear()
            self._metas = Numbered()
            self._addresses.clear()
            self._lost.clear()
            self._pending.clear()
            self._keyframes.clear()
            self._host.close()
            self._index = None
            self._num_tokens = self._num_visual_tokens = self._meta_bytes = 0
            if self._store is not None:
                self._store.close()
        return_free_memory()

    def _append_once(
        self, chunks: Sequence[NewChunk], on_visible: Callable[[], None] | None
    ) -> list[MemoryCounts]:
        self._check_follow([new.chunk for new in chunks])
        residents = [self._resident(new.chunk) for new in chunks]
        leaving = self._packed_leavers(residents)
        with self._lock:
            self._check_open()
            held = self._push_all(residents, chunks, leaving)
            if on_visible is not None:
                on_visible()
        written = self._written(chunks, [pushed for pushed, _ in held])
        with self._lock:
            counts = self._settle([counts for _, counts in held], written)
        self._tidy(len(chunks))
        return counts

    def _push_all(
        self, residents: Sequence[_Resident], chunks: Sequence[NewChunk], leaving: dict[int, Tensor]
    ) -> list[tuple[_Pushed, MemoryCounts]]:
        """The chunks in window, host, index and records: all or none."""
        held: list[tuple[_Pushed, MemoryCounts]] = []
        try:
            for resident, new in zip(residents, chunks, strict=True):
                pushed = self._push(resident, new, leaving)
                held.append((pushed, self.counts()))
        except BaseException:
            self._take_back([pushed for pushed, _ in held])
            raise
        return held

    def _push(self, resident: _Resident, new: NewChunk, leaving: dict[int, Tensor]) -> _Pushed:
        """Puts the chunk into index and host, which changes nothing where it fails; then into
        window and records.
        """
        meta = resident.meta
        left = self._window[0] if len(self._window) == self._window_chunks else None
        self._add_to_index(new)
        try:
            is_on_host = left is not None and self._move_to_host(
                leaving[left.meta.index], meta.memory_bytes + new.keyframe_bytes
            )
        except BaseException:
            if self._index is not None:
                self._index.remove_newest()
            raise
        if left is not None:
            self._window.popleft()
        self._window.append(resident)
        self._metas.append(meta)
        self._num_tokens += meta.num_tokens
        self._num_visual_tokens += meta.num_visual_tokens
        self._meta_bytes += meta.memory_bytes
        if self._store is None:
            self._keyframes.extend(replace(k, chunk=meta.index) for k in new.keyframes)
            self._meta_bytes += new.keyframe_bytes
        self._format = KVFormat.of(resident.chunk.keys, self._bits)
        if self._store is not None:
            self._pending[meta.index] = resident.chunk
        self._evict_unreachable()
        return _Pushed(left, is_on_host)

    def _add_to_index(self, new: NewChunk) -> None:
        if self._index is None:
            return
        keys = new.index_keys
        if keys is None:
            keys = torch.empty(self._index.num_heads, 0, self._index.head_dim)
        self._index.add_flat(new.chunk.index, keys)

    def _take_back(self, pushed: Sequence[_Pushed]) -> None:
        """As if these chunks, the newest ones, had not come."""
        for step in reversed(pushed):
            meta = self._metas.pop()
            self._num_tokens -= meta.num_tokens
            self._num_visual_tokens -= meta.num_visual_tokens
            self._meta_bytes -= meta.memory_bytes
            while self._keyframes and self._keyframes[-1].chunk == meta.index:
                self._meta_bytes -= self._keyframes.pop().num_bytes
            self._pending.pop(meta.index, None)
            if self._index is not None:
                self._index.remove_newest()
            self._window.pop()
            if step.left is not None and step.left.meta.index >= self.first_chunk:
                self._window.appendleft(step.left)
                if step.is_on_host and self._addresses:
                    self._addresses.pop()
                    self._host.take_back(self._num_bytes(step.left.meta))

    def _written(self, chunks: Sequence[NewChunk], pushed: Sequence[_Pushed]) -> list[WrittenChunk]:
        """The chunks on the disk; where that fails they are nowhere else either."""
        if self._store is None:
            return []
        try:
            return self._store.write(chunks)
        except BaseException:
            with self._lock:
                self._take_back(pushed)
            raise

    def _settle(
        self, held: Sequence[MemoryCounts], written: Sequence[WrittenChunk]
    ) -> list[MemoryCounts]:
        """The chunks are durable; those that made room on the disk are evicted here as well."""
        self._pending.clear()
        if self._store is None:
            return list(held)
        counts: list[MemoryCounts] = []
        for new in written:
            self._store.publish([new])
            tokens, visual_tokens = self._num_tokens, self._num_visual_tokens
            self._evict_unreachable()
            self._evict_for_search()
            evicted = tokens - self._num_tokens, visual_tokens - self._num_visual_tokens
            held = [
                replace(c, tokens=c.tokens - evicted[0], visual_tokens=c.visual_tokens - evicted[1])
                for c in held
            ]
            counts.append(replace(held[len(counts)], **self._disk_counts()))
        return counts

    def _tidy(self, num_chunks: int) -> None:
        """What takes a while and need not be done at once, outside the lock."""
        if self._store is not None:
            self._store.delete_evicted()
        if self._index is not None:
            # then what is flat stays so, and it is tried again
            with suppress(MemoryError, RuntimeError):
                segment = self._index.next_segment()
                if segment is not None:
                    with self._lock:
                        self._index.install(segment)
        self._chunks_since_trim += num_chunks
        if self._chunks_since_trim >= TRIM_CHUNKS:
            self._chunks_since_trim = 0
            return_free_memory()

    def _make_room_on_disk(self, error: DiskFullError) -> None:
        """The disk is full although the budget is not: the oldest file goes. Raises `error` where
        none can.
        """
        assert self._store is not None
        eviction = self._store.write_eviction()
        if eviction is None:
            raise error
        with self._lock:
            self._store.publish_eviction(eviction)
            self._evict_unreachable()
            if not self._has_told_of_disk:
                self._has_told_of_disk = True
                self._notices.append(
                    Notice(f"{error} The oldest of what was seen makes room.", error.knob)
                )
        self._store.delete_evicted()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ValueError("this memory is closed")

    def _check_follow(self, chunks: Sequence[KVChunk]) -> None:
        self._check_open()
        previous: ChunkMeta | KVChunk | None = (
            self._metas[self.num_chunks - 1] if len(self._metas) else None
        )
        for index, chunk in enumerate(chunks, self.num_chunks):
            if chunk.index != index:
                raise ValueError(f"chunk {chunk.index} cannot follow {index} chunks")
            if self._format is not None and KVFormat.of(chunk.keys, self._bits) != self._format:
                raise ValueError(f"{chunk!r} is not of this memory's {self._format}")
            if previous is not None and not _is_after(chunk, previous):
                raise ValueError(
                    f"{chunk!r} lies before its predecessor, which ends at "
                    f"{previous.stop_seconds} s"
                )
            previous = chunk

    def _packed_leavers(self, residents: Sequence[_Resident]) -> dict[int, Tensor]:
        """The chunks that these will drive out of the window, as the host keeps them."""
        line = [*self._window, *residents]
        packed: dict[int, Tensor] = {}
        for resident in line[: max(0, len(line) - self._window_chunks)]:
            keys, values = resident.chunk.keys, resident.chunk.values
            if self._host_bytes == 0:
                packed[resident.meta.index] = torch.empty(0, dtype=torch.uint8)
            else:
                packed[resident.meta.index] = KVFormat.of(keys, self._bits).pack(keys, values)
        return packed

    def _move_to_host(self, data: Tensor, needed_bytes: int) -> bool:
        """The host's oldest chunks make room; whether the host has the bytes now, for it may be too
        small for them.

        needed_bytes: must stay free for a record.
        """
        while True:
            self._host.set_limit(self._host_bytes - self.search_bytes - needed_bytes)
            if not self._host.is_over_limit or not self._addresses:
                break
            self._release_oldest()
        while True:
            try:
                if not data.nbytes:
                    return False
                self._addresses.append(self._host.write(data))
                return True
            except PoolFullError:
                if not self._addresses:
                    return False
            self._release_oldest()
            self._host.set_limit(self._host_bytes - self.search_bytes - needed_bytes)

    def _release_oldest(self) -> None:
        """The host's oldest chunk leaves it."""
        index = self.host_indices.start
        self._addresses.popleft()
        self._host.release(self._num_bytes(self._metas[index]))
        if self._store is None:
            self._evict_before(index + 1)

    def _evict_unreachable(self) -> None:
        """Forgets the chunks that neither host nor disk has any more."""
        first_on_host = self.host_indices.start
        self._evict_before(
            first_on_host if self._store is None else min(self._store.first_chunk, first_on_host)
        )

    def _evict_for_search(self) -> None:
        """Forgets the oldest chunks on the disk where index and records alone are more than the
        host may hold.
        """
        most = max(self._host_bytes, MIN_SEARCH_BYTES)
        while (
            self._store is not None
            and self.search_bytes > most
            and self.first_chunk < self.host_indices.start
        ):
            self._tell_of_host()
            self._evict_before(self.first_chunk + 1)
            self._store.forget_before(self.first_chunk)

    def _evict_before(self, first_chunk: int) -> None:
        """Forgets the chunks before this one, with their index keys."""
        evicted = self._metas.drop_before(first_chunk)
        if not evicted:
            return
        for meta in evicted:
            self._num_tokens -= meta.num_tokens
            self._num_visual_tokens -= meta.num_visual_tokens
            self._meta_bytes -= meta.memory_bytes
        while self._keyframes and self._keyframes[0].chunk < self.first_chunk:
            self._meta_bytes -= self._keyframes.popleft().num_bytes
        if self._index is not None:
            self._index.evict_before(self.first_chunk)
        for key in [key for key in self._lost if key[0] < self.first_chunk]:
            del self._lost[key]
        if self._store is None:
            self._tell_of_host()

    def _tell_of_host(self) -> None:
        if self._has_told_of_host:
            return
        self._has_told_of_host = True
        gib, seconds = self._host_bytes / (1 << 30), self.stop_seconds or 0.0
        sentence = (
            f"The host memory for this stream is full after {seconds:.0f} s of video: "
            f"{gib:.3g} GiB. From now on the "
            "oldest chunks are forgotten."
        )
        self._notices.append(Notice(sentence, "memory.host_bytes"))

    def _resident(self, chunk: KVChunk) -> _Resident:
        """A copy of the chunk in a block of its own: prefill may hand us a view that keeps far more
        alive.
        """
        if chunk.memory_bytes > self._block_bytes:
            self._block_bytes = (
                math.ceil(chunk.memory_bytes * HEADROOM / BLOCK_STEP_BYTES) * BLOCK_STEP_BYTES
            )
        block = torch.empty(self._block_bytes, dtype=torch.uint8, device=self._device)
        keys, values = block[: chunk.memory_bytes].view(chunk.keys.dtype).view(2, *chunk.keys.shape)
        keys.copy_(chunk.keys)
        values.copy_(chunk.values)
        meta = chunk.meta()
        return _Resident(meta.with_kv(keys, values), meta, block)

    def _loaded(self, indices: Sequence[int]) -> dict[int, KVChunk]:
        """Chunks of host and disk, ascending numbers, by way of one new device buffer."""
        sparse = {index for index in indices if self.is_sparse_only(index)}
        metas = [self._metas[i].pooled() if i in sparse else self._metas[i] for i in indices]
        borders = [0, *accumulate(map(self._num_bytes, metas))]
        buffer = torch.empty(borders[-1], dtype=torch.uint8, device=self._device)
        first = self.host_indices.start
        on_disk = bisect_left(indices, first)
        for i in range(on_disk):
            data = self._read(indices[i], "sparse" if indices[i] in sparse else "dense")
            buffer[borders[i] : borders[i + 1]].copy_(data)
        for start, stop in _contiguous_ranges(indices[on_disk:]):
            start, stop = start + on_disk, stop + on_disk
            self._host.read(
                self._addresses[indices[start] - first], buffer[borders[start] : borders[stop]]
            )
        parts = (buffer[start:stop] for start, stop in pairwise(borders))
        assert self._format is not None
        return {
            meta.index: meta.with_kv(*self._format.unpack(data, meta.num_tokens))
            for meta, data in zip(metas, parts, strict=True)
        }

    def _read(self, index: int, kept: Kept) -> Tensor:
        """uint8 [bytes] of a chunk on disk."""
        assert self._store is not None
        try:
            return self._store.read(index, kept)
        except ChunkLostError as error:
            # else it has left the writer's window since
            if kept != "exact" or self._store.has_exact(index):
                self._lost[index, kept] = str(error)
                self._notices.append(Notice(str(error), error.knob))
            if self._store.read_only:
                self._evict_unreachable()  # of what another process has evicted
            raise

    def _is_missing(self, index: int, kept: Kept) -> bool:
        """Whether a level is no longer on disk. Chunks in window and host never count as
        missing.
        """
        if index >= self.host_indices.start:
            return False
        is_gone = self._store is not None and index < self._store.first(kept)
        return is_gone or (index, kept) in self._lost

    def _restore(self, store: SessionStore) -> None:
        """All that is in the store; the newest chunks into the window, as far back as they are
        sound.
        """
        self._format, self._bits = store.format, store.format.bits
        self._metas = Numbered((chunk.meta for chunk in store.chunks), store.chunks.first)
        self._num_tokens = sum(meta.num_tokens for meta in self._metas)
        self._num_visual_tokens = sum(meta.num_visual_tokens for meta in self._metas)
        self._meta_bytes = sum(meta.memory_bytes for meta in self._metas)
        newest = range(
            max(self.first_chunk, self.num_chunks - self._window_chunks), self.num_chunks
        )
        for index in reversed(newest):
            try:
                self._window.appendleft(self._resident(self._restored(index)))
            except ChunkLostError:
                break

    def _restored(self, index: int) -> KVChunk:
        """As it was computed, where that is kept; else as the others are kept."""
        assert self._store is not None and self._format is not None
        meta = self._metas[index]
        if self._store.has_exact(index):
            with suppress(ChunkLostError):
                data = self._read(index, "exact")
                return meta.with_kv(*self._format.as_computed.unpack(data, meta.num_tokens))
        return meta.with_kv(*self._format.unpack(self._read(index, "dense"), meta.num_tokens))

    def _num_bytes(self, meta: ChunkMeta) -> int:
        """On host and disk."""
        assert self._format is not None
        return self._format.num_bytes(meta.num_tokens)


def _is_after(chunk: KVChunk, earlier: ChunkMeta | KVChunk) -> bool:
    return (
        chunk.start_seconds >= earlier.start_seconds and chunk.stop_seconds >= earlier.stop_seconds
    )


def _contiguous_ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where neighbours stand together among ascending numbers, half-open: 2 3 4 7 8 -> (0, 3), (3,
    5).
    """
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield start, i
            start = i
