"""Raw keys of the retrieval heads, searched: which chunks hold a token that a question's queries
look for.

The score of a chunk for a head is MaxSim: the largest raw q . raw k over the given query tokens and
the chunk's indexed tokens (late interaction, as in ColBERT). The only file that imports faiss.
Knows nothing of models, of which heads retrieve, or of what becomes of the scores.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory.numbered import Numbered

SEGMENT_TOKENS = 1 << 16  # that are searched flat before lists are learnt of them
LIST_TOKENS = 512  # of a segment, for each of its lists
# one token in so many is looked at to learn the lists; 64 for each teach k-means enough
LEARNT_STEP = 8
LEARNING_ROUNDS = 8  # of k-means
# a query token looks into so much of the lists as keys have of these: what is near is spread wider
DIMS_FOR_ALL = 512
CHUNK_TOKENS = 8  # asked of FAISS for each chunk wanted, before it is asked for more
MOST_TOKENS = 2048  # that FAISS gives for a query on a GPU
SPARE = 4  # so many times the chunks wanted are looked at with their true keys
BLOCK_TOKENS = 1 << 13  # at most, whose true keys lie together, and are looked at together
# a block is this part of what is flat, so that little room is empty however short the stream
BLOCKS = 8


class HeadIndex:
    """Keys of every head, tokens in the order of their chunks.

    The one rule of growth: the newest tokens, up to `segment_tokens`, are searched flat: every
    chunk among them is scored. When they become more they are a segment: FAISS gets them in
    inverted lists of 8-bit keys, an index for each head, with lists learnt from them and never
    again. It proposes chunks, and those are scored with their true keys. So what a token costs, and
    what is learnt at once, stay the same however long the stream. On a GPU where faiss has one.

        segment 0 (lists) | segment 1 (lists) | flat
        chunk 0 1 2 3 ... |         ...       | ... newest

    The oldest chunks can be evicted: a segment or block goes when all of its chunks have, until
    then they are masked.

    num_heads, head_dim: of the keys given to `add`, one row of keys per retrieval head (the KV head
    that serves it).
    dtype: in which true keys are kept; that of the model loses nothing.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        segment_tokens: int = SEGMENT_TOKENS,
    ) -> None:
        if num_heads < 1 or head_dim < 1:
            raise ValueError(f"an index needs heads and dimensions, not {num_heads} x {head_dim}")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self._dtype = dtype
        self._segment_tokens = segment_tokens
        # of each chunk, [heads, n, head_dim], where they lie in their block
        self._keys: Numbered[Tensor] = Numbered()
        self._blocks: deque[_Block] = deque()  # of the chunks that are searched flat
        self._segments: deque[_Segment] = deque()
        self._flat_from = 0  # first chunk that is in no segment
        self._num_tokens = self._num_flat_tokens = 0
        self._gpu = faiss.StandardGpuResources() if faiss.get_num_gpus() else None

    @property
    def first_chunk(self) -> int:
        """Number of the first chunk that is searched; those before it were evicted."""
        return self._keys.first

    @property
    def num_chunks(self) -> int:
        """How many chunks have been added, evicted ones included: the number of the next one."""
        return self._keys.stop

    @property
    def num_tokens(self) -> int:
        """Tokens indexed per head."""
        return self._num_tokens

    @property
    def host_bytes(self) -> int:
        """Of the true keys, all heads, and of the lists."""
        keys = self.num_tokens * self.num_heads * self.head_dim * self._dtype.itemsize
        return keys + (0 if self._gpu else self._list_bytes)

    @property
    def device_bytes(self) -> int:
        """Of the lists, where faiss has a GPU."""
        return self._list_bytes if self._gpu else 0

    @property
    def _list_bytes(self) -> int:
        """A byte for every dimension of a key and eight for its number; a segment keeps its lists
        until all is gone.
        """
        num_tokens = sum(segment.num_tokens for segment in self._segments)
        return num_tokens * self.num_heads * (self.head_dim + 8)

    def add(self, chunk_index: int, keys: Tensor) -> None:
        """Indexes the next chunk's visual tokens: raw keys [heads, n, head_dim], n may be 0."""
        self.add_flat(chunk_index, keys)
        segment = self.next_segment()
        if segment is not None:
            self.install(segment)

    def add_flat(self, chunk_index: int, keys: Tensor) -> None:
        """As `add`, without making a segment of what has become too much; where that fails, nothing
        has changed.
        """
        if chunk_index != self.num_chunks:
            raise ValueError(f"chunk {chunk_index} cannot follow {self.num_chunks} indexed chunks")
        self._check(keys, "keys")
        num_tokens = keys.shape[1]
        if not self._blocks or not self._blocks[-1].has_room(num_tokens):
            most = min(BLOCK_TOKENS, self._num_flat_tokens // BLOCKS)
            room = torch.empty(
                self.num_heads, max(most, num_tokens), self.head_dim, dtype=self._dtype
            )
            self._blocks.append(_Block(chunk_index, room))
        self._keys.append(self._blocks[-1].add(keys.detach()))
        self._num_tokens += num_tokens
        self._num_flat_tokens += num_tokens

    def remove_newest(self) -> None:
        """Takes back what `add_flat` did last."""
        num_tokens = self._keys.pop().shape[1]
        self._blocks[-1].remove_newest()
        if self._blocks[-1].is_empty:
            self._blocks.pop()
        self._num_tokens -= num_tokens
        self._num_flat_tokens -= num_tokens

    def evict_before(self, first_chunk: int) -> None:
        """The chunks before this one are never found again; what they take is given back as parts
        become whole.
        """
        if not len(self._keys):
            self._keys = Numbered(first=first_chunk)
        for keys in self._keys.drop_before(first_chunk):
            self._num_tokens -= keys.shape[1]
        while self._segments and self._segments[0].stop <= self.first_chunk:
            self._segments.popleft()
        while self._blocks and self._blocks[0].stop <= self.first_chunk:
            self._blocks.popleft()
        self._flat_from = max(self._flat_from, self.first_chunk)
        self._num_flat_tokens = sum(
            block.num_tokens_from(self._flat_from) for block in self._blocks
        )

    def next_segment(self) -> _Segment | None:
        """Lists of what is flat, where that has become too much. Takes a while and changes nothing:
        see `install`.
        """
        if self._num_flat_tokens <= self._segment_tokens:
            return None
        sizes = [self._keys[i].shape[1] for i in range(self._flat_from, self.num_chunks)]
        borders = np.cumsum([0, *sizes])
        keys = torch.cat([block.keys_from(self._flat_from) for block in self._blocks], 1)
        indexes = [self._with_lists(rows.float().numpy()) for rows in keys]
        return _Segment(self._flat_from, borders, indexes)

    def install(self, segment: _Segment) -> None:
        """From now on these chunks are searched by their lists."""
        assert (segment.first_chunk, segment.stop) == (self._flat_from, self.num_chunks), (
            "chunks came in between"
        )
        self._segments.append(segment)
        self._flat_from, self._num_flat_tokens = self.num_chunks, 0
        self._blocks.clear()

    def search(self, queries: Tensor, limit: int, also: Iterable[int] = ()) -> Tensor:
        """MaxSim of raw queries [heads, q, head_dim] with every chunk that is there, float32
        [heads, chunks], the first column being that of `first_chunk`.

        Exact for the chunks that are searched flat, those in `also`, and those that FAISS proposes
        for any head: up to `SPARE * limit` for each, at least `limit` where the lists it visits
        have as many. All others get the least of these scores, since they stand behind them. A
        chunk with nothing indexed has -inf.
        """
        self._check(queries, "queries")
        if queries.shape[1] == 0 or limit < 1:
            raise ValueError(
                f"nothing to search for: {queries.shape[1]} query tokens, {limit} chunks"
            )
        queries = queries.detach().to("cpu", torch.float32)
        in_segments = range(self.first_chunk, self._flat_from)
        chunks = sorted(
            index for index in {*self._proposed(queries, limit), *also} if index in in_segments
        )
        found = [
            self._max_sim(queries, chunks),
            *(block.max_sim(queries, self._flat_from) for block in self._blocks),
        ]
        chunks += range(self._flat_from, self.num_chunks)
        return self._with_the_others(
            [index - self.first_chunk for index in chunks], torch.cat(found, 1)
        )

    def check_integrity(self) -> None:
        """Asserts that every chunk is in one segment or block, and that the tokens are counted
        right.
        """
        sizes = [keys.shape[1] for keys in self._keys]
        assert self.num_tokens == sum(sizes), "tokens of the index"
        assert self._num_flat_tokens == sum(sizes[self._flat_from - self.first_chunk :]), (
            "flat tokens of the index"
        )
        parts = [(part.first_chunk, part.stop) for part in self._segments]
        parts += [(part.first_chunk, part.stop) for part in self._blocks]
        assert all(stop == start for (_, stop), (start, _) in pairwise(parts)), (
            "a chunk is in no part of the index"
        )
        assert not parts or parts[-1][1] == self.num_chunks, (
            "the newest chunks are not in the index"
        )
        assert not parts or parts[0][0] <= self.first_chunk < parts[0][1] or not sizes, (
            "the index keeps what is gone"
        )

    def _with_the_others(self, columns: Sequence[int], found: Tensor) -> Tensor:
        """Scores of all chunks where those of some are known."""
        least = (
            found.masked_fill(found == -torch.inf, torch.inf).amin(1, keepdim=True)
            if columns
            else -torch.inf
        )
        scores = torch.full((self.num_heads, len(self._keys)), -torch.inf)
        scores[:, torch.tensor([keys.shape[1] for keys in self._keys], dtype=torch.int64) > 0] = (
            least
        )
        scores[:, columns] = found
        return scores

    def _check(self, tensor: Tensor, name: str) -> None:
        if (
            tensor.ndim != 3
            or tensor.shape[0] != self.num_heads
            or tensor.shape[2] != self.head_dim
        ):
            raise ValueError(
                f"{name} need [{self.num_heads}, n, {self.head_dim}], not {list(tensor.shape)}"
            )

    def _with_lists(self, keys: NDArray[np.float32]) -> Any:
        """An index of keys [n, head_dim] for inner products, its lists learnt from an even sample
        of them.
        """
        num_lists = max(1, len(keys) // LIST_TOKENS)
        index: Any = faiss.index_factory(
            self.head_dim, f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT
        )
        index.cp.niter, index.nprobe = (
            LEARNING_ROUNDS,
            math.ceil(num_lists * min(1, self.head_dim / DIMS_FOR_ALL)),
        )
        index.train(keys[::LEARNT_STEP])
        index.add(keys)
        return faiss.index_cpu_to_gpu(self._gpu, 0, index) if self._gpu else index

    def _proposed(self, queries: Tensor, limit: int) -> set[int]:
        """Chunks of the segments that FAISS takes for the best of some head."""
        proposed: set[int] = set()
        for head, rows in enumerate(queries.numpy()):
            # a head that is asked with few tokens has them several times
            different = np.unique(rows, axis=0)
            scores = np.full(len(self._keys), -np.inf, dtype=np.float32)
            for segment in self._segments:
                if segment.first_chunk < self.first_chunk and self._gpu:
                    # on a GPU faiss cannot mask: all are scored
                    proposed.update(range(self.first_chunk, segment.stop))
                    continue
                values, chunks = segment.search(head, different, limit, self.first_chunk)
                np.maximum.at(scores, chunks - self.first_chunk, values)
            best = np.argsort(-scores)[: SPARE * limit]
            proposed.update((self.first_chunk + best[np.isfinite(scores[best])]).tolist())
        return proposed

    def _max_sim(self, queries: Tensor, chunks: Sequence[int]) -> Tensor:
        """Exact scores of some chunks, [heads, len(chunks)]."""
        if not chunks:
            return torch.empty(self.num_heads, 0)
        return _max_sim(
            queries,
            torch.cat([self._keys[i] for i in chunks], 1),
            [self._keys[i].shape[1] for i in chunks],
        )


def _max_sim(queries: Tensor, keys: Tensor, sizes: Sequence[int]) -> Tensor:
    """Scores [heads, chunks] of queries [heads, q, head_dim] with keys [heads, n, head_dim], so
    many of each chunk.
    """
    scores = torch.full((len(keys), len(sizes)), -torch.inf)
    owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).expand(len(keys), -1)
    return scores.scatter_reduce_(
        1, owners, (queries @ keys.float().transpose(1, 2)).amax(1), "amax"
    )


class _Block:
    """True keys of consecutive chunks from `first_chunk` on in one piece, room: [heads, most
    tokens, head_dim].
    """

    def __init__(self, first_chunk: int, room: Tensor) -> None:
        self.first_chunk = first_chunk
        self._room = room
        self._borders = [0]

    @property
    def stop(self) -> int:
        return self.first_chunk + len(self._borders) - 1

    @property
    def is_empty(self) -> bool:
        return len(self._borders) == 1

    def keys_from(self, chunk: int) -> Tensor:
        """Keys of this chunk and the later ones, [heads, n, head_dim]."""
        return self._room[:, self._borders[self._place(chunk)] : self._borders[-1]]

    def num_tokens_from(self, chunk: int) -> int:
        return self._borders[-1] - self._borders[self._place(chunk)]

    def has_room(self, num_tokens: int) -> bool:
        return self._borders[-1] + num_tokens <= self._room.shape[1]

    def add(self, keys: Tensor) -> Tensor:
        """Copies a chunk's keys in and gives them back where they lie now."""
        start = self._borders[-1]
        place = self._room[:, start : start + keys.shape[1]]
        place.copy_(keys)
        self._borders.append(start + keys.shape[1])
        return place

    def remove_newest(self) -> None:
        self._borders.pop()

    def max_sim(self, queries: Tensor, chunk: int) -> Tensor:
        """Exact scores of this chunk and the later ones, [heads, chunks]."""
        sizes = [stop - start for start, stop in pairwise(self._borders[self._place(chunk) :])]
        return _max_sim(queries, self.keys_from(chunk), sizes)

    def _place(self, chunk: int) -> int:
        return min(max(0, chunk - self.first_chunk), len(self._borders) - 1)


@dataclass(frozen=True, eq=False)
class _Segment:
    """Consecutive chunks from `first_chunk` on, an index of their tokens for each head.

    borders: int64 [chunks + 1]; its chunk i owns tokens borders[i] to borders[i + 1], half-open.
    """

    first_chunk: int
    borders: NDArray[np.int64]
    indexes: Sequence[Any]

    @property
    def stop(self) -> int:
        return self.first_chunk + len(self.borders) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.borders[-1])

    def search(
        self, head: int, queries: NDArray[np.float32], limit: int, first_chunk: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best tokens for each query: scores, up to the rounding of keys, and chunks, none
        before `first_chunk`. They are of at least `limit` chunks, as far as the lists visited have
        so many."""
        num_evicted = max(0, first_chunk - self.first_chunk)
        start = int(self.borders[num_evicted])
        index = self.indexes[head]
        most = min(MOST_TOKENS, self.num_tokens)
        options: dict[str, Any] = {}
        if start:
            selector = faiss.IDSelectorRange(start, self.num_tokens)
            kind: Any = faiss.SearchParametersIVF
            options["params"] = kind(sel=selector, nprobe=index.nprobe)
        count = min(CHUNK_TOKENS * limit, most)
        while True:
            values, tokens = index.search(queries, count, **options)
            is_there = tokens >= 0
            chunks = np.searchsorted(self.borders, tokens[is_there], side="right") - 1
            if count == most or np.unique(chunks).size >= limit:
                return values[is_there], self.first_chunk + chunks
            count = min(4 * count, most)
