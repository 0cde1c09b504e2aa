"""The host tier's bytes: one pool, taken from the system slab by slab and never beyond its budget.

Addresses count all bytes ever written and run on over slab borders, so nothing is wasted at a border and what was
written one after the other is read back in one go. The oldest bytes can be released; what is written then takes their
place, going round:

    slab 0            slab 1            slab 2 (shorter: the budget ends here)
    |AAAAAABBBBBBBCCC|CCCCDDDDDDDDEEEEE|EE......|
    0                ^ C is one range of addresses, copied in two pieces

Pinned where the device is a GPU: a few large blocks, nothing pinned per chunk. Knows nothing of keys, chunks or time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SLAB_BYTES = 64 << 20  # a power of two, because the pinned allocator rounds up to one


class PoolFullError(RuntimeError):
    """What was to be written does not fit into the budget; the pool is as it was."""


class HostPool:
    """Bytes in host memory: appended, and released in the same order.

    budget_bytes: never more than this is taken from the system.
    pinned: page-locked slabs, for fast copies to a GPU.
    """

    def __init__(self, budget_bytes: int, pinned: bool, slab_bytes: int = SLAB_BYTES) -> None:
        if budget_bytes < 0 or slab_bytes < 1:
            raise ValueError(f"a pool cannot have a budget of {budget_bytes} bytes in slabs of {slab_bytes}")
        self.budget_bytes = budget_bytes
        self._start = 0  # address of the oldest byte kept
        self._stop = 0  # address of the next byte
        self._pinned = pinned
        self._slab_bytes = slab_bytes
        self._slabs: list[Tensor] = []

    @property
    def used_bytes(self) -> int:
        return self._stop - self._start

    @property
    def reserved_bytes(self) -> int:
        """Bytes taken from the system; at least `used_bytes`, at most the budget."""
        return sum(slab.nbytes for slab in self._slabs)

    def write(self, data: Tensor) -> int:
        """Copies `data` (uint8 [n], any device) behind what is there; returns its address. Raises PoolFullError."""
        address = self._stop
        if self.used_bytes + data.nbytes > self.budget_bytes:
            raise PoolFullError(f"{data.nbytes} bytes do not fit beside {self.used_bytes} into {self.budget_bytes}")
        self._reserve(min(address + data.nbytes, self.budget_bytes))
        for piece, done in self._pieces(address, data.nbytes):
            piece.copy_(data[done : done + piece.nbytes])
        self._stop += data.nbytes
        return address

    def read(self, address: int, out: Tensor) -> None:
        """Fills `out` (uint8 [n], any device) with the bytes from `address` on, in order on the current stream."""
        if address < self._start or address + out.nbytes > self._stop:
            kept = f"{self._start} to {self._stop}"
            raise IndexError(f"bytes {address} to {address + out.nbytes} are not among those kept, {kept}")
        for piece, done in self._pieces(address, out.nbytes):
            out[done : done + piece.nbytes].copy_(piece, non_blocking=self._pinned)

    def release(self, num_bytes: int) -> None:
        """Makes room by letting the oldest bytes go."""
        assert 0 <= num_bytes <= self.used_bytes, f"{num_bytes} of {self.used_bytes} bytes cannot be released"
        self._start += num_bytes

    def close(self) -> None:
        """Gives all slabs back."""
        self._slabs.clear()
        self._start = self._stop = 0

    def _reserve(self, total_bytes: int) -> None:
        while (reserved := self.reserved_bytes) < total_bytes:
            num_bytes = min(self._slab_bytes, self.budget_bytes - reserved)
            self._slabs.append(_slab(num_bytes, self._pinned))

    def _pieces(self, address: int, num_bytes: int) -> Iterator[tuple[Tensor, int]]:
        """The parts of slabs that hold a range of addresses, each with the bytes that came before it."""
        done = 0
        while done < num_bytes:
            number, offset = divmod((address + done) % self.budget_bytes, self._slab_bytes)
            piece = self._slabs[number][offset : offset + num_bytes - done]
            yield piece, done
            done += piece.nbytes


def _slab(num_bytes: int, pinned: bool) -> Tensor:
    try:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:
        raise PoolFullError(f"the system has no further {num_bytes} bytes of host memory") from error
