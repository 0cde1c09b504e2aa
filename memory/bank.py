"""The memory of one stream: every chunk of it, the newest on the device, the older ones in host memory and on disk.

    append -> [ window: newest chunks, device ] -> oldest leaves -> [ host pool ] -> oldest is dropped
                                                                        |               |  (with a store only)
    get:      device <--------------------------------------------------+               |
              device <------------- [ store: all chunks, on disk; the oldest sparse, then not at all ]

Chunks are in the store before they come here. The device has them as computed, host and disk as their format says: in
8 bits perhaps, and then only the window is exact. Device bytes depend on the window and on how large a chunk is, not on
how many there are. Knows nothing of models, questions or relevance: it is told which chunks to bring. One thread at a
time, which is the engine's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from config import MemoryConfig
from errors import LonglookError
from memory.chunk import KVChunk, PositionLayout, cells, pooled_layout
from memory.packing import KVFormat
from memory.pool import HostPool, PoolFullError
from memory.records import Kept
from memory.store import ChunkLostError, SessionStore

HEADROOM = 1.25  # blocks are larger than the first chunk: timestamps get longer as a stream goes on
BLOCK_STEP_BYTES = 512  # what a GPU's allocator rounds to as well


class MemoryFullError(LonglookError):
    """Host or device has no room for more; what is remembered stays and can be asked about."""


@dataclass(frozen=True, eq=False)
class _Entry:
    """What is known of a chunk wherever its keys and values are; tensors on the CPU."""

    layout: PositionLayout
    visual: Tensor
    start_seconds: float
    stop_seconds: float
    group_starts: tuple[float, ...]

    @property
    def num_tokens(self) -> int:
        return self.layout.num_tokens

    def sparse(self) -> _Entry:
        layout, visual = pooled_layout(self.layout, self.visual)
        return replace(self, layout=layout, visual=visual)


@dataclass(frozen=True, eq=False)
class _Resident:
    """A chunk of the window and the device block that it lies at the beginning of."""

    chunk: KVChunk
    block: Tensor


class KVMemory:
    """Chunks of one stream, numbered from 0, appended in order and kept until `close`.

    store: its chunks are here from the beginning; then host memory is no limit, and old chunks may be `gone`.
    Window chunks lie in device blocks of one size, so that their bytes stay the same while chunks differ a little; only
    a chunk larger than all blocks so far gets a larger one. A chunk handed out stays valid whatever is appended later.
    """

    def __init__(self, config: MemoryConfig, device: torch.device, store: SessionStore | None = None) -> None:
        self._window_chunks = config.window_chunks
        self._store = store
        self._device = device
        self._host = HostPool(config.host_bytes, pinned=device.type == "cuda")
        self._entries: list[_Entry] = []
        self._spans: list[tuple[float, float]] = []  # of the same; asked for with every question
        self._addresses: deque[int] = deque()  # in the host pool, of the chunks that left the window last
        self._lost: dict[tuple[int, Kept], str] = {}  # what was found damaged or gone on disk, and what to say of it
        self._window: deque[_Resident] = deque()
        self._bits = config.kv_bits
        self._format: KVFormat | None = None  # of host and disk
        self._block_bytes = 0
        self._num_tokens = self._num_visual_tokens = 0
        self._closed = False
        if store is not None:
            self._restore(store)

    @property
    def num_chunks(self) -> int:
        return len(self._entries)

    @property
    def num_tokens(self) -> int:
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
    def window_indices(self) -> range:
        """Numbers of the chunks in the window, half-open."""
        return range(len(self._entries) - len(self._window), len(self._entries))

    @property
    def host_indices(self) -> range:
        """Numbers of the chunks in the host tier, half-open; those before them are on disk."""
        stop = self.window_indices.start
        return range(stop - len(self._addresses), stop)

    @property
    def gone(self) -> set[int]:
        """Numbers of the chunks whose keys and values cannot be had any more."""
        return self._without("dense") & self._without("sparse")

    @property
    def only_sparse(self) -> set[int]:
        """Numbers of the chunks of which the sparse level is all there is."""
        return self._without("dense") - self._without("sparse")

    @property
    def losses(self) -> list[str]:
        """A sentence for everything that could not be read from disk, in the order in which that was found."""
        return list(self._lost.values())

    def append(self, chunk: KVChunk) -> None:
        """Copies the next chunk into the window; the oldest one there moves to the host when the window is full.

        Raises ValueError for a chunk that does not follow (number, time, shape), MemoryFullError where the host tier
        has no room for the one that would move and there is no disk; the memory is then as it was.
        """
        self._check_follows(chunk)
        self._format = KVFormat.of(chunk.keys, self._bits)
        resident = self._resident(chunk)
        if len(self._window) == self._window_chunks:
            self._move_oldest_to_host()
        self._window.append(resident)
        self._num_tokens += chunk.num_tokens
        self._num_visual_tokens += int(chunk.visual.sum())
        self._entries.append(_entry(resident.chunk))
        self._spans.append((chunk.start_seconds, chunk.stop_seconds))

    def window(self) -> list[KVChunk]:
        """The newest chunks, oldest first, on the device; nothing is copied."""
        return [resident.chunk for resident in self._window]

    @property
    def newest(self) -> KVChunk:
        """The chunk appended last; raises IndexError before the first."""
        return self._window[-1].chunk

    def get(self, indices: Sequence[int]) -> list[KVChunk]:
        """These chunks on the device, in the order asked for; dense, but for those in `only_sparse`.

        Those not in the window come in one buffer, neighbours in host memory in one copy. Raises IndexError for a
        number not in memory, ChunkLostError for a chunk that is not as the disk should have it: from then on it is
        among `only_sparse` or `gone`.
        """
        for index in indices:
            if not 0 <= index < self.num_chunks:
                raise IndexError(f"chunk {index} is not among the {self.num_chunks} in memory")
        chunks = {resident.chunk.index: resident.chunk for resident in self._window}
        chunks |= self._loaded(sorted({index for index in indices if index not in chunks}))
        return [chunks[index] for index in indices]

    def group_starts(self, index: int) -> tuple[float, ...]:
        """Seconds at which the groups of a chunk start, wherever it is."""
        return self._entries[index].group_starts

    def sizes(self, index: int) -> tuple[int, int]:
        """Tokens of a chunk, dense and sparse (where the sparse level is not pooled: at most so many)."""
        entry = self._entries[index]
        return entry.num_tokens, len(cells(entry.layout, entry.visual)[1])

    def spans(self) -> list[tuple[float, float]]:
        """(start_seconds, stop_seconds) of every chunk, half-open, in time order."""
        return self._spans.copy()

    @property
    def stop_seconds(self) -> float | None:
        """Where the newest chunk ends; None where there is none."""
        return self._entries[-1].stop_seconds if self._entries else None

    def check_integrity(self) -> None:
        """Asserts what always holds: numbering, order in time, places of the chunks, counts of bytes and tokens."""
        spans = [(entry.start_seconds, entry.stop_seconds) for entry in self._entries]
        assert spans == self._spans, "spans are not those of the chunks"
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans)), "times do not ascend"
        assert [chunk.index for chunk in self.window()] == list(self.window_indices), "window and host do not join"
        assert len(self._window) <= self._window_chunks, "the window is too long"
        if self._store is None:
            assert self.host_indices.start == 0, "chunks are nowhere"
            assert len(self._window) == min(self._window_chunks, self.num_chunks), "the window has gaps"
        else:
            assert self._store.num_chunks == self.num_chunks, "disk and memory do not hold the same"
        assert all(chunk.keys.device.type == self._device.type for chunk in self.window()), "window not on the device"
        sizes = [self._num_bytes(self._entries[index]) for index in self.host_indices]
        assert self._host.used_bytes == sum(sizes), "host bytes are not the sum"
        gaps = [stop - start for start, stop in pairwise(self._addresses)]
        assert gaps == sizes[:-1], "host addresses are not those of the chunks"
        assert self._host.used_bytes <= self._host.reserved_bytes <= self._host.budget_bytes, "host budget"
        assert self._num_tokens == sum(entry.num_tokens for entry in self._entries), "token count"
        visual = sum(int(entry.visual.sum()) for entry in self._entries)
        assert self._num_visual_tokens == visual, "visual token count"

    def close(self) -> None:
        """Gives all memory back; chunks handed out before stay valid. May be called twice."""
        self._closed = True
        self._window.clear()
        self._entries.clear()
        self._spans.clear()
        self._addresses.clear()
        self._lost.clear()
        self._host.close()
        self._num_tokens = self._num_visual_tokens = 0

    def _check_follows(self, chunk: KVChunk) -> None:
        if self._closed:
            raise ValueError("this memory is closed")
        if chunk.index != self.num_chunks:
            raise ValueError(f"chunk {chunk.index} cannot follow {self.num_chunks} chunks")
        assert self._store is None or chunk.index < self._store.num_chunks, f"{chunk!r} is not on disk yet"
        if self._format is not None and KVFormat.of(chunk.keys, self._bits) != self._format:
            raise ValueError(f"{chunk!r} is not of this memory's {self._format}")
        if self._entries and not self._is_later(chunk, self._entries[-1]):
            raise ValueError(f"{chunk!r} lies before its predecessor, which ends at {self._entries[-1].stop_seconds} s")

    @staticmethod
    def _is_later(chunk: KVChunk, entry: _Entry) -> bool:
        return chunk.start_seconds >= entry.start_seconds and chunk.stop_seconds >= entry.stop_seconds

    def _move_oldest_to_host(self) -> None:
        """With a store the host's oldest chunks make room; one that is too large for the host is on disk only."""
        assert self._format is not None
        oldest = self._window[0].chunk
        data = self._format.pack(oldest.keys, oldest.values)
        while True:
            try:
                self._addresses.append(self._host.write(data))
                break
            except PoolFullError as error:
                if self._store is None:
                    raise MemoryFullError(self._full_sentence(), "memory.host_bytes") from error
            if not self._addresses:
                break
            self._host.release(self._num_bytes(self._entries[self.host_indices.start]))
            self._addresses.popleft()
        self._window.popleft()

    def _full_sentence(self) -> str:
        seconds = self._entries[-1].stop_seconds
        budget = self._host.budget_bytes / (1 << 30)
        return (
            f"The host memory for this stream is full after {seconds:.0f} s of video: {budget:.2f} GiB hold "
            f"{len(self._addresses)} chunks."
        )

    def _resident(self, chunk: KVChunk) -> _Resident:
        """A copy of the chunk in a block of its own: prefill may hand us a view that keeps far more alive."""
        if chunk.memory_bytes > self._block_bytes:
            self._block_bytes = math.ceil(chunk.memory_bytes * HEADROOM / BLOCK_STEP_BYTES) * BLOCK_STEP_BYTES
        block = torch.empty(self._block_bytes, dtype=torch.uint8, device=self._device)
        keys, values = block[: chunk.memory_bytes].view(chunk.keys.dtype).view(2, *chunk.keys.shape)
        keys.copy_(chunk.keys)
        values.copy_(chunk.values)
        layout = replace(chunk.layout, positions=_own(chunk.layout.positions))
        return _Resident(replace(chunk, keys=keys, values=values, layout=layout, visual=_own(chunk.visual)), block)

    def _loaded(self, indices: Sequence[int]) -> dict[int, KVChunk]:
        """Chunks of host and disk, ascending numbers, by way of one new device buffer."""
        sparse = self.only_sparse
        entries = [self._entries[i].sparse() if i in sparse else self._entries[i] for i in indices]
        borders = [0, *accumulate(map(self._num_bytes, entries))]
        buffer = torch.empty(borders[-1], dtype=torch.uint8, device=self._device)
        first = self.host_indices.start
        on_disk = bisect_left(indices, first)
        for i in range(on_disk):
            data = self._read(indices[i], "sparse" if indices[i] in sparse else "dense")
            buffer[borders[i] : borders[i + 1]].copy_(data)
        for start, stop in _runs(indices[on_disk:]):
            start, stop = start + on_disk, stop + on_disk
            self._host.read(self._addresses[indices[start] - first], buffer[borders[start] : borders[stop]])
        parts = (buffer[start:stop] for start, stop in pairwise(borders))
        assert self._format is not None
        return {i: _chunk(i, entry, self._format, data) for i, entry, data in zip(indices, entries, parts, strict=True)}

    def _read(self, index: int, kept: Kept) -> Tensor:
        """uint8 [bytes] of a chunk on disk."""
        assert self._store is not None
        try:
            return self._store.read(index, kept)
        except ChunkLostError as error:
            if kept != "exact" or self._store.has_exact(index):  # else it has left the writer's window since
                self._lost[index, kept] = str(error)
            raise

    def _without(self, kept: Kept) -> set[int]:
        """Chunks of which this cannot be had; those that the host has are dense whatever the disk has."""
        start = self.host_indices.start
        gone = range(min(self._store.first(kept) if self._store else 0, start))
        return {*gone, *(index for index, lost in self._lost if lost == kept and index < start)}

    def _restore(self, store: SessionStore) -> None:
        """All that is in the store; the newest chunks into the window, as far back as they are sound."""
        self._format, self._bits = store.format, store.format.bits
        self._entries = [
            _Entry(c.layout, c.visual, c.start_seconds, c.stop_seconds, c.group_starts) for c in store.chunks
        ]
        self._spans = [(entry.start_seconds, entry.stop_seconds) for entry in self._entries]
        self._num_tokens = sum(entry.num_tokens for entry in self._entries)
        self._num_visual_tokens = sum(int(entry.visual.sum()) for entry in self._entries)
        newest = range(max(0, self.num_chunks - self._window_chunks), self.num_chunks)
        for index in reversed(newest):
            try:
                self._window.appendleft(self._resident(self._restored(index)))
            except ChunkLostError:
                break

    def _restored(self, index: int) -> KVChunk:
        """As it was computed, where that is kept; else as the others are kept."""
        assert self._store is not None and self._format is not None
        entry = self._entries[index]
        if self._store.has_exact(index):
            with suppress(ChunkLostError):
                return _chunk(index, entry, self._format.as_computed, self._read(index, "exact"))
        return _chunk(index, entry, self._format, self._read(index, "dense"))

    def _num_bytes(self, entry: _Entry) -> int:
        """On host and disk."""
        assert self._format is not None
        return self._format.num_bytes(entry.num_tokens)


def _entry(chunk: KVChunk) -> _Entry:
    return _Entry(chunk.layout, chunk.visual, chunk.start_seconds, chunk.stop_seconds, chunk.group_starts)


def _chunk(index: int, entry: _Entry, form: KVFormat, data: Tensor) -> KVChunk:
    keys, values = form.unpack(data, entry.num_tokens)
    span = entry.start_seconds, entry.stop_seconds
    return KVChunk(keys, values, entry.layout, entry.visual, *span, index, entry.group_starts)


def _own(tensor: Tensor) -> Tensor:
    """A copy on the CPU that keeps nothing else alive."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where neighbours stand together among ascending numbers, half-open: 2 3 4 7 8 -> (0, 3), (3, 5)."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield start, i
            start = i
