"""Carriers: the timestamp tokens of earlier chunks, which every new chunk sees, so that it knows
how far the stream is.

Bounded whatever the history (Video-XL-2 shows each chunk all earlier timestamps): the newest
chunks' tokens, and an evenly thinned sample of the older ones'. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable

from memory.chunk import KVChunk


class Carriers:
    """Timestamp tokens of chunks that have left the prefill's reach, at most `max_tokens`, on the
    device.

    fetch: brings a chunk from memory, None where it cannot be had any more; used for chunks that
    were never seen here, as after a session was reopened.
    """

    def __init__(self, max_tokens: int, fetch: Callable[[int], KVChunk | None]) -> None:
        self._max_tokens = max_tokens
        self._fetch = fetch
        self._kept: dict[int, KVChunk] = {}
        self._most = 1  # text tokens of the largest chunk so far

    def before(self, num_chunks: int) -> list[KVChunk]:
        """The carriers of the first `num_chunks` chunks, in time order; that number never falls."""
        if self._max_tokens == 0 or num_chunks <= 0:
            return []
        newest = self._text(num_chunks - 1)
        self._most = max(self._most, newest.num_tokens if newest else 0)
        if self._most == 0:
            return []
        found = (
            (index, self._text(index))
            for index in carrier_indices(num_chunks, self._max_tokens // self._most)
        )
        self._kept = {index: chunk for index, chunk in found if chunk is not None}
        return list(self._kept.values())

    @property
    def memory_bytes(self) -> int:
        return sum(chunk.memory_bytes for chunk in self._kept.values())

    def close(self) -> None:
        """Gives the tokens back."""
        self._kept.clear()

    def _text(self, index: int) -> KVChunk | None:
        if index in self._kept:
            return self._kept[index]
        chunk = self._fetch(index)
        return None if chunk is None else chunk.select(~chunk.visual)


def carrier_indices(num_chunks: int, count: int) -> list[int]:
    """At most `count` of the chunks 0 to num_chunks: half of them the newest, the others every 2nd,
    4th, 8th ...

    As the history grows a dropped chunk never comes back.

        4 of 4: 0 1 2 3     4 of 5: 0 2 3 4     4 of 6: 0 2 4 5
        4 of 7: 0 4 5 6     4 of 11: 0 8 9 10
    """
    newest = (count + 1) // 2
    old = max(0, num_chunks - newest)
    room, stride = count - newest, 1
    while room and -(-old // stride) > room:
        stride *= 2
    sample = range(0, old, stride) if room else range(0)
    return [*sample, *range(old, num_chunks if count else old)]
