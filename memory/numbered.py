"""A list whose oldest items can be dropped while the others keep their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
MIN_DROPPED = 64  # places are moved up only when this many are empty, so that dropping costs O(1)


class Numbered(Generic[T]):
    """Items with consecutive numbers from `first` to `stop`, half-open."""

    def __init__(self, items: Iterable[T] = (), first: int = 0) -> None:
        self.first = first
        self._items: list[T | None] = list(items)
        self._num_dropped = 0  # empty places at the beginning of the list

    @property
    def stop(self) -> int:
        return self.first + len(self)

    def __len__(self) -> int:
        return len(self._items) - self._num_dropped

    def __getitem__(self, number: int) -> T:
        if not self.first <= number < self.stop:
            raise IndexError(f"{number} is not among {self.first} to {self.stop}")
        item = self._items[self._num_dropped + number - self.first]
        assert item is not None
        return item

    def __iter__(self) -> Iterator[T]:
        for number in range(self.first, self.stop):
            yield self[number]

    def append(self, item: T) -> None:
        self._items.append(item)

    def pop(self) -> T:
        """Takes the newest item away."""
        if not len(self):
            raise IndexError("there is nothing to take")
        item = self._items.pop()
        assert item is not None
        return item

    def drop_before(self, number: int) -> list[T]:
        """Drops the items before `number` and gives them."""
        dropped = [self[i] for i in range(self.first, min(number, self.stop))]
        for place in range(self._num_dropped, self._num_dropped + len(dropped)):
            self._items[place] = None
        self.first += len(dropped)
        self._num_dropped += len(dropped)
        if self._num_dropped > max(MIN_DROPPED, len(self)):
            del self._items[: self._num_dropped]
            self._num_dropped = 0
        return dropped

    def clear(self) -> None:
        self.drop_before(self.stop)
