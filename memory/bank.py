"""The memory of one stream: every chunk of it, the newest on the device, the older ones in host memory and on disk.

    append -> [ window: newest chunks, device ] -> oldest leaves -> [ host pool ] -> oldest is dropped
                                                                        |               |  (with a store only)
    get:      device <--------------------------------------------------+               |
              device <--------------------------------------- [ store: all chunks, on disk ]

Chunks are in the store before they come here. Device bytes depend on the window and on how large a chunk is, not on how
many there are. Knows nothing of models, questions or relevance: it is told which chunks to bring. One thread at a time,
which is the engine's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from config import MemoryConfig
from memory.chunk import KVChunk, PositionLayout, cells
from memory.pool import HostPool, PoolFullError
from memory.records import Kind
from memory.store import ChunkLostError, SessionStore

HEADROOM = 1.25  # blocks are larger than the first chunk: timestamps get longer as a stream goes on
BLOCK_STEP_BYTES = 512  # what a GPU's allocator rounds to as well


class MemoryFullError(ValueError):
    """Host or device has no room for more; what is remembered stays and can be asked about."""


@dataclass(frozen=True)
class _KVShape:
    """What all chunks of a memory have in common."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, chunk: KVChunk) -> _KVShape:
        layers, kv_heads, _, head_dim = chunk.keys.shape
        return cls(layers, kv_heads, head_dim, chunk.keys.dtype)

    @classmethod
    def of_kind(cls, kind: Kind) -> _KVShape:
        return cls(kind.layers, kind.kv_heads, kind.head_dim, kind.torch_dtype)

    def view(self, data: Tensor, num_tokens: int) -> Tensor:
        """uint8 [bytes] as [2, layers, kv_heads, n, head_dim]: keys, then values."""
        return data.view(self.dtype).view(2, self.layers, self.kv_heads, num_tokens, self.head_dim)


@dataclass(frozen=True, eq=False)
class _Entry:
    """What is known of a chunk wherever its keys and values are; tensors on the CPU."""

    layout: PositionLayout
    visual: Tensor
    start_seconds: float
    stop_seconds: float
    num_bytes: int


@dataclass(frozen=True, eq=False)
class _Resident:
    """A chunk of the window and the device block that it lies at the beginning of."""

    chunk: KVChunk
    block: Tensor

    @property
    def data(self) -> Tensor:
        return self.block[: self.chunk.memory_bytes]


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
        self._addresses: deque[int] = deque()  # in the host pool, of the chunks that left the window last
        self._lost: dict[int, str] = {}  # chunks found to be damaged or taken away on disk, with what to say of it
        self._window: deque[_Resident] = deque()
        self._shape: _KVShape | None = None
        self._block_bytes = 0
        self._num_tokens = 0
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
    def device_bytes(self) -> int:
        """Bytes of the window's blocks, headroom included."""
        return sum(resident.block.nbytes for resident in self._window)

    @property
    def host_bytes(self) -> int:
        """Bytes of keys and values in the host tier."""
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
        forgotten = range(min(self._store.num_forgotten if self._store else 0, self.host_indices.start))
        return {*self._lost, *forgotten}.difference(self.host_indices)

    @property
    def losses(self) -> list[str]:
        """A sentence for every chunk that could not be read from disk, in the order in which that was found."""
        return list(self._lost.values())

    def append(self, chunk: KVChunk) -> None:
        """Copies the next chunk into the window; the oldest one there moves to the host when the window is full.

        Raises ValueError for a chunk that does not follow (number, time, shape), MemoryFullError where the host tier
        has no room for the one that would move and there is no disk; the memory is then as it was.
        """
        self._check_follows(chunk)
        self._shape = _KVShape.of(chunk)
        resident = self._resident(chunk)
        if len(self._window) == self._window_chunks:
            self._move_oldest_to_host()
        self._window.append(resident)
        self._num_tokens += chunk.num_tokens
        self._entries.append(_entry(resident.chunk))

    def window(self) -> list[KVChunk]:
        """The newest chunks, oldest first, on the device; nothing is copied."""
        return [resident.chunk for resident in self._window]

    @property
    def newest(self) -> KVChunk:
        """The chunk appended last; raises IndexError before the first."""
        return self._window[-1].chunk

    def get(self, indices: Sequence[int]) -> list[KVChunk]:
        """These chunks on the device, in the order asked for.

        Those not in the window come in one buffer, neighbours in host memory in one copy. Raises IndexError for a
        number not in memory, ChunkLostError for a chunk that is gone; it is among `gone` from then on.
        """
        for index in indices:
            if not 0 <= index < self.num_chunks:
                raise IndexError(f"chunk {index} is not among the {self.num_chunks} in memory")
        chunks = {resident.chunk.index: resident.chunk for resident in self._window}
        chunks |= self._loaded(sorted({index for index in indices if index not in chunks}))
        return [chunks[index] for index in indices]

    def sizes(self, index: int) -> tuple[int, int]:
        """Tokens of a chunk, dense and sparse (where the sparse level is not pooled: at most so many)."""
        entry = self._entries[index]
        return entry.layout.num_tokens, len(cells(entry.layout, entry.visual)[1])

    def spans(self) -> list[tuple[float, float]]:
        """(start_seconds, stop_seconds) of every chunk, half-open, in time order."""
        return [(entry.start_seconds, entry.stop_seconds) for entry in self._entries]

    def check_integrity(self) -> None:
        """Asserts what always holds: numbering, order in time, places of the chunks, counts of bytes and tokens."""
        spans = self.spans()
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans)), "times do not ascend"
        assert [chunk.index for chunk in self.window()] == list(self.window_indices), "window and host do not join"
        assert len(self._window) <= self._window_chunks, "the window is too long"
        if self._store is None:
            assert self.host_indices.start == 0, "chunks are nowhere"
            assert len(self._window) == min(self._window_chunks, self.num_chunks), "the window has gaps"
        else:
            assert self._store.num_chunks == self.num_chunks, "disk and memory do not hold the same"
        assert all(chunk.keys.device.type == self._device.type for chunk in self.window()), "window not on the device"
        sizes = [self._entries[index].num_bytes for index in self.host_indices]
        assert self._host.used_bytes == sum(sizes), "host bytes are not the sum"
        gaps = [stop - start for start, stop in pairwise(self._addresses)]
        assert gaps == sizes[:-1], "host addresses are not those of the chunks"
        assert self._host.used_bytes <= self._host.reserved_bytes <= self._host.budget_bytes, "host budget"
        assert self._num_tokens == sum(entry.layout.num_tokens for entry in self._entries), "token count"

    def close(self) -> None:
        """Gives all memory back; chunks handed out before stay valid. May be called twice."""
        self._closed = True
        self._window.clear()
        self._entries.clear()
        self._addresses.clear()
        self._lost.clear()
        self._host.close()
        self._num_tokens = 0

    def _check_follows(self, chunk: KVChunk) -> None:
        if self._closed:
            raise ValueError("this memory is closed")
        if chunk.index != self.num_chunks:
            raise ValueError(f"chunk {chunk.index} cannot follow {self.num_chunks} chunks")
        assert self._store is None or chunk.index < self._store.num_chunks, f"{chunk!r} is not on disk yet"
        if self._shape is not None and _KVShape.of(chunk) != self._shape:
            raise ValueError(f"{chunk!r} is not of this memory's {self._shape}")
        if self._entries and not self._is_later(chunk, self._entries[-1]):
            raise ValueError(f"{chunk!r} lies before its predecessor, which ends at {self._entries[-1].stop_seconds} s")

    @staticmethod
    def _is_later(chunk: KVChunk, entry: _Entry) -> bool:
        return chunk.start_seconds >= entry.start_seconds and chunk.stop_seconds >= entry.stop_seconds

    def _move_oldest_to_host(self) -> None:
        """With a store the host's oldest chunks make room; one that is too large for the host is on disk only."""
        data = self._window[0].data
        while True:
            try:
                self._addresses.append(self._host.write(data))
                break
            except PoolFullError as error:
                if self._store is None:
                    raise MemoryFullError(self._full_sentence()) from error
            if not self._addresses:
                break
            self._host.release(self._entries[self.host_indices.start].num_bytes)
            self._addresses.popleft()
        self._window.popleft()

    def _full_sentence(self) -> str:
        seconds = self._entries[-1].stop_seconds
        budget = self._host.budget_bytes / (1 << 30)
        return (
            f"The host memory for this stream is full after {seconds:.0f} s of video: {budget:.2f} GiB hold "
            f"{len(self._addresses)} chunks. Give more with --host-budget."
        )

    def _resident(self, chunk: KVChunk) -> _Resident:
        """A copy of the chunk in a block of its own: prefill may hand us a view that keeps far more alive."""
        assert self._shape is not None
        if chunk.memory_bytes > self._block_bytes:
            self._block_bytes = math.ceil(chunk.memory_bytes * HEADROOM / BLOCK_STEP_BYTES) * BLOCK_STEP_BYTES
        block = torch.empty(self._block_bytes, dtype=torch.uint8, device=self._device)
        kv = self._shape.view(block[: chunk.memory_bytes], chunk.num_tokens)
        kv[0].copy_(chunk.keys)
        kv[1].copy_(chunk.values)
        layout = replace(chunk.layout, positions=_own(chunk.layout.positions))
        return _Resident(replace(chunk, keys=kv[0], values=kv[1], layout=layout, visual=_own(chunk.visual)), block)

    def _loaded(self, indices: Sequence[int]) -> dict[int, KVChunk]:
        """Chunks of host and disk, ascending numbers, as views of one new device buffer."""
        borders = [0, *accumulate(self._entries[index].num_bytes for index in indices)]
        buffer = torch.empty(borders[-1], dtype=torch.uint8, device=self._device)
        first = self.host_indices.start
        on_disk = bisect_left(indices, first)
        for i in range(on_disk):
            buffer[borders[i] : borders[i + 1]].copy_(self._read(indices[i]))
        for start, stop in _runs(indices[on_disk:]):
            start, stop = start + on_disk, stop + on_disk
            self._host.read(self._addresses[indices[start] - first], buffer[borders[start] : borders[stop]])
        parts = (buffer[start:stop] for start, stop in pairwise(borders))
        return {index: self._chunk(index, data) for index, data in zip(indices, parts, strict=True)}

    def _read(self, index: int) -> Tensor:
        """uint8 [bytes] of a chunk on disk."""
        assert self._store is not None
        try:
            return self._store.read(index)
        except ChunkLostError as error:
            self._lost[index] = str(error)
            raise

    def _restore(self, store: SessionStore) -> None:
        """All that is in the store; the newest chunks into the window, as far back as they are sound."""
        self._shape = _KVShape.of_kind(store.kind)
        self._entries = [_Entry(c.layout, c.visual, c.start_seconds, c.stop_seconds, c.num_bytes) for c in store.chunks]
        self._num_tokens = sum(entry.layout.num_tokens for entry in self._entries)
        newest = range(max(0, self.num_chunks - self._window_chunks), self.num_chunks)
        for index in reversed(newest):
            try:
                data = self._read(index)
            except ChunkLostError:
                break
            self._window.appendleft(self._resident(self._chunk(index, data)))

    def _chunk(self, index: int, data: Tensor) -> KVChunk:
        assert self._shape is not None
        entry = self._entries[index]
        keys, values = self._shape.view(data, entry.layout.num_tokens)
        return KVChunk(keys, values, entry.layout, entry.visual, entry.start_seconds, entry.stop_seconds, index)


def _entry(chunk: KVChunk) -> _Entry:
    return _Entry(chunk.layout, chunk.visual, chunk.start_seconds, chunk.stop_seconds, chunk.memory_bytes)


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
