"""The host tier's bytes: one pool, taken from the system slab by slab and never beyond its budget.

Addresses count bytes from the pool's beginning and run on over slab borders, so nothing is wasted at a border and what
was written one after the other is read back in one go:

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
    """Append-only bytes in host memory.

    budget_bytes: never more than this is taken from the system.
    pinned: page-locked slabs, for fast copies to a GPU.
    """

    def __init__(self, budget_bytes: int, pinned: bool, slab_bytes: int = SLAB_BYTES) -> None:
        if budget_bytes < 0 or slab_bytes < 1:
            raise ValueError(f"a pool cannot have a budget of {budget_bytes} bytes in slabs of {slab_bytes}")
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._pinned = pinned
        self._slab_bytes = slab_bytes
        self._slabs: list[Tensor] = []

    @property
    def reserved_bytes(self) -> int:
        """Bytes taken from the system; at least `used_bytes`, at most the budget."""
        return sum(slab.nbytes for slab in self._slabs)

    def write(self, data: Tensor) -> int:
        """Copies `data` (uint8 [n], any device) behind what is there; returns its address. Raises PoolFullError."""
        address = self.used_bytes
        self._reserve(address + data.nbytes)
        for piece, done in self._pieces(address, data.nbytes):
            piece.copy_(data[done : done + piece.nbytes])
        self.used_bytes += data.nbytes
        return address

    def read(self, address: int, out: Tensor) -> None:
        """Fills `out` (uint8 [n], any device) with the bytes from `address` on, in order on the current stream."""
        if address < 0 or address + out.nbytes > self.used_bytes:
            raise IndexError(f"bytes {address} to {address + out.nbytes} are not among the {self.used_bytes} in use")
        for piece, done in self._pieces(address, out.nbytes):
            out[done : done + piece.nbytes].copy_(piece, non_blocking=self._pinned)

    def close(self) -> None:
        """Gives all slabs back."""
        self._slabs.clear()
        self.used_bytes = 0

    def _reserve(self, total_bytes: int) -> None:
        if total_bytes > self.budget_bytes:
            raise PoolFullError(f"{total_bytes} bytes do not fit into {self.budget_bytes}")
        while (reserved := self.reserved_bytes) < total_bytes:
            num_bytes = min(self._slab_bytes, self.budget_bytes - reserved)
            self._slabs.append(_slab(num_bytes, self._pinned))

    def _pieces(self, address: int, num_bytes: int) -> Iterator[tuple[Tensor, int]]:
        """The parts of slabs that hold a range of addresses, each with the bytes that came before it."""
        done = 0
        while done < num_bytes:
            number, offset = divmod(address + done, self._slab_bytes)
            piece = self._slabs[number][offset : offset + num_bytes - done]
            yield piece, done
            done += piece.nbytes


def _slab(num_bytes: int, pinned: bool) -> Tensor:
    try:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:
        raise PoolFullError(f"the system has no further {num_bytes} bytes of host memory") from error
