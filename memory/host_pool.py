"""The host tier's bytes: one pool, taken from the system slab by slab and never beyond its budget.

Addresses count all bytes ever written and run on over slab borders, so nothing is wasted at a
border and what was written one after the other is read back in one go. The oldest bytes can be
released; what is written then takes their place, going round:

    slab 0            slab 1            slab 2 (shorter: the budget ends here)
    |AAAAAABBBBBBBCCC|CCCCDDDDDDDDEEEEE|EE......|
    0                ^ C is one range of addresses, copied in two pieces

The limit may be lowered below the budget, when others need a part of it: then slabs without bytes
are moved to where the next bytes go, or given back. Pinned where the device is a GPU: a few large
blocks, nothing pinned per chunk. Knows nothing of keys, chunks or time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

MAX_SLAB_BYTES = 64 << 20  # a power of two, because the pinned allocator rounds up to one
MIN_SLAB_BYTES = 512
SLABS_PER_BUDGET = 16  # at least, so that a lower limit can be kept to


class PoolFullError(RuntimeError):
    """What was to be written does not fit into the budget; the pool is as it was."""


class HostPool:
    """Bytes in host memory: appended, and released in the same order.

    budget_bytes: never more than this is taken from the system.
    pinned: page-locked slabs, for fast copies to a GPU.
    """

    def __init__(self, budget_bytes: int, pinned: bool, slab_bytes: int | None = None) -> None:
        if budget_bytes < 0 or (slab_bytes is not None and slab_bytes < 1):
            raise ValueError(
                f"a pool cannot have a budget of {budget_bytes} bytes in slabs of {slab_bytes}"
            )
        self.budget_bytes = budget_bytes
        self._limit_bytes = budget_bytes
        self._start = 0  # address of the oldest byte kept
        self._stop = 0  # address of the next byte
        self._pinned = pinned
        self._slab_bytes = slab_bytes or default_slab_bytes(budget_bytes)
        self._slabs: dict[int, Tensor] = {}  # by their place in the ring

    @property
    def used_bytes(self) -> int:
        return self._stop - self._start

    @property
    def reserved_bytes(self) -> int:
        """Bytes taken from the system; at least `used_bytes`, at most the budget."""
        return sum(slab.nbytes for slab in self._slabs.values())

    @property
    def is_over_limit(self) -> bool:
        """Whether more is taken than `set_limit` said last, because of what is kept."""
        return self.reserved_bytes > self._limit_bytes

    def set_limit(self, limit_bytes: int) -> None:
        """From now on at most this many bytes are taken; bytes that are kept stay until they are
        released.
        """
        self._limit_bytes = max(0, min(limit_bytes, self.budget_bytes))
        self._give_back(0)

    def write(self, data: Tensor) -> int:
        """Copies `data` (uint8 [n], any device) behind what is there; returns its address. Raises
        PoolFullError.
        """
        address = self._stop
        if self.used_bytes + data.nbytes > self._limit_bytes:
            raise PoolFullError(
                f"{data.nbytes} bytes do not fit beside {self.used_bytes} into {self._limit_bytes}"
            )
        self._reserve(address, data.nbytes)
        for piece, done in self._pieces(address, data.nbytes):
            piece.copy_(data[done : done + piece.nbytes])
        self._stop += data.nbytes
        return address

    def read(self, address: int, out: Tensor) -> None:
        """Fills `out` (uint8 [n], any device) with the bytes from `address` on, in order on the
        current stream.
        """
        if address < self._start or address + out.nbytes > self._stop:
            kept = f"{self._start} to {self._stop}"
            raise IndexError(
                f"bytes {address} to {address + out.nbytes} are not among those kept, {kept}"
            )
        for piece, done in self._pieces(address, out.nbytes):
            out[done : done + piece.nbytes].copy_(piece, non_blocking=self._pinned)

    def release(self, num_bytes: int) -> None:
        """Makes room by letting the oldest bytes go."""
        assert 0 <= num_bytes <= self.used_bytes, (
            f"{num_bytes} of {self.used_bytes} bytes cannot be released"
        )
        self._start += num_bytes
        self._give_back(0)

    def take_back(self, num_bytes: int) -> None:
        """Lets the newest bytes go, as if they had not been written."""
        assert 0 <= num_bytes <= self.used_bytes, (
            f"{num_bytes} of {self.used_bytes} bytes cannot be taken back"
        )
        self._stop -= num_bytes

    def close(self) -> None:
        """Gives all slabs back."""
        self._slabs.clear()
        self._start = self._stop = 0

    def _reserve(self, address: int, num_bytes: int) -> None:
        """Slabs for a range of addresses; where the limit allows no more, those that hold
        nothing.
        """
        for place in self._places(address, num_bytes):
            if place in self._slabs:
                continue
            size = min(self._slab_bytes, self.budget_bytes - place * self._slab_bytes)
            if self.reserved_bytes + size > self._limit_bytes:
                idle = self._idle_places(address + num_bytes)
                same = next((i for i in idle if self._slabs[i].nbytes == size), None)
                if same is not None:
                    self._slabs[place] = self._slabs.pop(same)
                    continue
                self._give_back(size, address + num_bytes)
            if self.reserved_bytes + size > self._limit_bytes:
                raise PoolFullError(
                    f"{size} bytes do not fit beside {self.reserved_bytes} into {self._limit_bytes}"
                )
            self._slabs[place] = _slab(size, self._pinned)

    def _give_back(self, num_bytes: int, stop: int | None = None) -> None:
        """Frees slabs that hold nothing, until this many bytes could be taken within the limit."""
        if self.reserved_bytes + num_bytes <= self._limit_bytes:
            return
        for place in self._idle_places(stop):
            del self._slabs[place]
            if self.reserved_bytes + num_bytes <= self._limit_bytes:
                return

    def _idle_places(self, stop: int | None = None) -> list[int]:
        """Slabs that hold none of the bytes kept, nor of those up to address `stop`."""
        stop = self._stop if stop is None else stop
        busy = set(self._places(self._start, stop - self._start))
        return [place for place in self._slabs if place not in busy]

    def _places(self, address: int, num_bytes: int) -> list[int]:
        """The slabs of a range of addresses, in the order of the range."""
        return list(dict.fromkeys(place for place, _, _ in self._stretches(address, num_bytes)))

    def _pieces(self, address: int, num_bytes: int) -> Iterator[tuple[Tensor, int]]:
        """The parts of slabs that hold a range of addresses, each with the bytes that came before
        it.
        """
        done = 0
        for place, offset, count in self._stretches(address, num_bytes):
            yield self._slabs[place][offset : offset + count], done
            done += count

    def _stretches(self, address: int, num_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Slab, offset in it and number of bytes of each piece of a range of addresses."""
        done = 0
        while done < num_bytes:
            place, offset = divmod((address + done) % self.budget_bytes, self._slab_bytes)
            size = min(self._slab_bytes, self.budget_bytes - place * self._slab_bytes)
            count = min(size - offset, num_bytes - done)
            yield place, offset, count
            done += count


def default_slab_bytes(budget_bytes: int) -> int:
    """A power of two, small enough for `SLABS_PER_BUDGET` of them."""
    share = budget_bytes // SLABS_PER_BUDGET
    return min(MAX_SLAB_BYTES, max(MIN_SLAB_BYTES, 1 << max(0, share.bit_length() - 1)))


def _slab(num_bytes: int, pinned: bool) -> Tensor:
    try:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:
        raise PoolFullError(
            f"the system has no further {num_bytes} bytes of host memory"
        ) from error
