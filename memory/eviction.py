"""Which chunks make room on the disk: pure bookkeeping of files, bytes and a budget.

Old chunks lose their dense level first, a file at a time. Once there is no more of it to spare, the
oldest sparse file goes, and with it everything else of its chunks: record, index keys, thumbnail.
Knows nothing of how the bytes are written or deleted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from memory.records import KEPT, Kept, StoredChunk

FILES_PER_BUDGET = 16  # a file holds this share of the budget, which is freed at a time
EVICTION_ORDER: tuple[Kept, ...] = ("dense", "sparse")


class BudgetTooSmallError(ValueError):
    """Not even the newest chunks fit into the budget."""


@dataclass(frozen=True)
class KVFile:
    """Chunks `first` to `stop` (half-open) in one file; record_bytes: what goes with them, see
    `Ledger`.
    """

    first: int
    stop: int
    num_bytes: int
    record_bytes: int = 0


@dataclass(frozen=True)
class Placement:
    """Where a chunk's bytes go, (file, offset) by level, and the files that make room for it."""

    places: Mapping[Kept, tuple[int, int]]
    dropped: list[tuple[Kept, int]]


class Ledger:
    """The files of a session and what they take of its budget.

    Records, index keys and thumbnails are counted with the sparse files, because they go with them.
    keep_chunks: the newest chunks, which never make room.
    """

    def __init__(self, budget_bytes: int, keep_chunks: int) -> None:
        self._budget_bytes = budget_bytes
        self._keep_chunks = keep_chunks
        self._files: dict[Kept, deque[KVFile]] = {kept: deque() for kept in KEPT}
        self._firsts: dict[Kept, int] = dict.fromkeys(KEPT, 0)
        self.num_bytes = 0

    @classmethod
    def of(
        cls,
        chunks: Iterable[StoredChunk],
        key_bytes: Mapping[int, int],
        firsts: Mapping[Kept, int],
        budget_bytes: int,
        keep_chunks: int,
    ) -> Ledger:
        """The books of a folder as it stands. key_bytes: of each chunk's index keys."""
        ledger = cls(budget_bytes, keep_chunks)
        ledger._firsts.update(firsts)
        for chunk in chunks:
            for kept, place in chunk.places.items():
                if chunk.index >= firsts[kept] and place.num_bytes:
                    record = (
                        chunk.record_bytes + key_bytes.get(chunk.index, 0)
                        if kept == "sparse"
                        else 0
                    )
                    ledger._put(kept, chunk.index, place.segment, place.num_bytes, record)
        return ledger

    def copy(self) -> Ledger:
        other = Ledger(self._budget_bytes, self._keep_chunks)
        other._files = {kept: deque(files) for kept, files in self._files.items()}
        other._firsts = dict(self._firsts)
        other.num_bytes = self.num_bytes
        return other

    def first(self, kept: Kept) -> int:
        """Number of the first chunk of which this level is still there."""
        return self._firsts[kept]

    def files(self, kept: Kept) -> list[KVFile]:
        return list(self._files[kept])

    def num_bytes_of(self, kept: Kept) -> int:
        return sum(file.num_bytes for file in self._files[kept])

    def add(self, index: int, sizes: Mapping[Kept, int], record_bytes: int) -> Placement:
        """Makes room for the next chunk and says where its bytes go.

        Raises BudgetTooSmallError; the books are of no use then, so work on a copy.
        """
        newest = index - self._keep_chunks
        dropped = self._drop_files("exact", newest)
        num_bytes = sum(sizes.values()) + record_bytes
        while self.num_bytes + num_bytes > self._budget_bytes:
            dropped += self._drop_oldest_before(newest)
        places: dict[Kept, tuple[int, int]] = {}
        for kept, size in sizes.items():
            places[kept] = self._place(kept, index)
            self._put(kept, index, places[kept][0], size, record_bytes if kept == "sparse" else 0)
        return Placement(places, dropped)

    def add_record_bytes(self, num_bytes: int) -> None:
        """The newest chunk's record has grown."""
        files = self._files["sparse"]
        last = files.pop()
        files.append(replace(last, record_bytes=last.record_bytes + num_bytes))
        self.num_bytes += num_bytes

    def drop_oldest(self, num_chunks: int) -> list[tuple[Kept, int]]:
        """Drops the oldest file of a history of so many chunks. Raises BudgetTooSmallError where
        none can go.
        """
        return self._drop_oldest_before(num_chunks - self._keep_chunks)

    def drop_before(self, kept: Kept, number: int) -> None:
        """Another process dropped the files of the chunks before `number`."""
        self._drop_files(kept, number)
        self._firsts[kept] = max(self._firsts[kept], number)

    def _place(self, kept: Kept, index: int) -> tuple[int, int]:
        """Behind the newest bytes, or at the beginning of a new file."""
        files = self._files[kept]
        full_bytes = 0 if kept == "exact" else self._budget_bytes // FILES_PER_BUDGET
        if not files or files[-1].stop != index or files[-1].num_bytes >= full_bytes:
            return index, 0
        return files[-1].first, files[-1].num_bytes

    def _put(self, kept: Kept, index: int, segment: int, num_bytes: int, record_bytes: int) -> None:
        files = self._files[kept]
        if not files or files[-1].first != segment:
            files.append(KVFile(segment, index, 0))
        last = files.pop()
        record = last.record_bytes + record_bytes
        files.append(
            replace(last, stop=index + 1, num_bytes=last.num_bytes + num_bytes, record_bytes=record)
        )
        self.num_bytes += num_bytes + record_bytes

    def _drop_oldest_before(self, newest: int) -> list[tuple[Kept, int]]:
        for kept in EVICTION_ORDER:
            files = self._files[kept]
            if files and files[0].stop <= newest:
                return self._drop_files(kept, files[0].stop)
        raise BudgetTooSmallError

    def _drop_files(self, kept: Kept, stop: int) -> list[tuple[Kept, int]]:
        """Drops the files whose chunks all lie before `stop`."""
        dropped: list[tuple[Kept, int]] = []
        files = self._files[kept]
        while files and files[0].stop <= stop:
            file = files.popleft()
            self.num_bytes -= file.num_bytes + file.record_bytes
            self._firsts[kept] = file.stop
            dropped.append((kept, file.first))
        return dropped
