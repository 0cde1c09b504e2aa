"""Raw keys of the retrieval heads, searched: which chunks hold a token that a question's queries look for.

The score of a chunk for a head is MaxSim: the largest raw q . raw k over the given query tokens and the chunk's indexed
tokens (late interaction, as in ColBERT). The only file that imports faiss. Knows nothing of models, of which heads
retrieve, or of what becomes of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SEGMENT_TOKENS = 1 << 16  # that are searched flat before lists are learnt of them
LIST_TOKENS = 512  # of a segment, for each of its lists
LEARNT_STEP = 8  # one token in so many is looked at to learn the lists; 64 for each teach k-means enough
LEARNING_ROUNDS = 8  # of k-means
DIMS_FOR_ALL = 512  # a query token looks into so much of the lists as keys have of these: what is near is spread wider
CHUNK_TOKENS = 8  # asked of FAISS for each chunk wanted, before it is asked for more
MOST_TOKENS = 2048  # that FAISS gives for a query on a GPU
SPARE = 4  # so many times the chunks wanted are looked at with their true keys
BLOCK_TOKENS = 1 << 13  # whose true keys lie together, and are looked at together


class HeadIndex:
    """Keys of every head, tokens in the order of their chunks.

    The one rule of growth: the newest tokens, up to `segment_tokens`, are searched flat: every chunk among them is
    scored. When they become more they are a segment: FAISS gets them in inverted lists of 8-bit keys, an index for each
    head, with lists learnt from them and never again. It proposes chunks, and those are scored with their true keys. So
    what a token costs, and what is learnt at once, stay the same however long the stream. On a GPU where faiss has one.

        segment 0 (lists) | segment 1 (lists) | flat
        chunk 0 1 2 3 ... |         ...       | ... newest

    num_heads, head_dim: of the keys given to `add`, one row of keys per retrieval head (the KV head that serves it).
    dtype: in which true keys are kept; that of the model loses nothing.
    """

    def __init__(
        self, num_heads: int, head_dim: int, dtype: torch.dtype = torch.float32, segment_tokens: int = SEGMENT_TOKENS
    ) -> None:
        if num_heads < 1 or head_dim < 1:
            raise ValueError(f"an index needs heads and dimensions, not {num_heads} x {head_dim}")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self._dtype = dtype
        self._segment_tokens = segment_tokens
        self._keys: list[Tensor] = []  # of each chunk, [heads, n, head_dim], where they lie in their block
        self._blocks: list[_Block] = []  # of the chunks that are searched flat
        self._borders = [0]  # chunk i owns tokens borders[i] to borders[i + 1], half-open
        self._segments: list[_Segment] = []
        self._flat_from = 0  # first chunk that is in no segment
        self._gpu = faiss.StandardGpuResources() if faiss.get_num_gpus() else None

    @property
    def num_chunks(self) -> int:
        return len(self._keys)

    @property
    def num_tokens(self) -> int:
        """Tokens indexed per head."""
        return self._borders[-1]

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
        """A byte for every dimension of a key and eight for its number."""
        return self._borders[self._flat_from] * self.num_heads * (self.head_dim + 8)

    def add(self, chunk_index: int, keys: Tensor) -> None:
        """Indexes the next chunk's visual tokens: raw keys [heads, n, head_dim], n may be 0."""
        if chunk_index != self.num_chunks:
            raise ValueError(f"chunk {chunk_index} cannot follow {self.num_chunks} indexed chunks")
        self._check(keys, "keys")
        if not self._blocks or not self._blocks[-1].has_room(keys.shape[1]):
            shape = (self.num_heads, max(BLOCK_TOKENS, keys.shape[1]), self.head_dim)
            self._blocks.append(_Block(torch.empty(shape, dtype=self._dtype)))
        self._keys.append(self._blocks[-1].add(keys.detach()))
        self._borders.append(self.num_tokens + keys.shape[1])
        if self.num_tokens - self._borders[self._flat_from] > self._segment_tokens:
            self._close_segment()

    def search(self, queries: Tensor, limit: int, also: Iterable[int] = ()) -> Tensor:
        """MaxSim of raw queries [heads, q, head_dim] with every chunk, float32 [heads, chunks].

        Exact for the chunks that are searched flat, those in `also`, and those that FAISS proposes for any head: up to
        `SPARE * limit` for each, at least `limit` where the lists it visits have as many. All others get the least of
        these scores, since they stand behind them. A chunk with nothing indexed has -inf.
        """
        self._check(queries, "queries")
        if queries.shape[1] == 0 or limit < 1:
            raise ValueError(f"nothing to search for: {queries.shape[1]} query tokens, {limit} chunks")
        queries = queries.detach().to("cpu", torch.float32)
        chunks = sorted(index for index in {*self._proposed(queries, limit), *also} if index < self._flat_from)
        found = [self._max_sim(queries, chunks), *(block.max_sim(queries) for block in self._blocks)]
        chunks += range(self._flat_from, self.num_chunks)
        return self._with_the_others(chunks, torch.cat(found, 1))

    def _with_the_others(self, chunks: Sequence[int], found: Tensor) -> Tensor:
        """Scores of all chunks where those of some are known."""
        least = found.masked_fill(found == -torch.inf, torch.inf).amin(1, keepdim=True) if chunks else -torch.inf
        scores = torch.full((self.num_heads, self.num_chunks), -torch.inf)
        scores[:, torch.tensor(self._borders).diff() > 0] = least
        scores[:, chunks] = found
        return scores

    def _check(self, tensor: Tensor, name: str) -> None:
        if tensor.ndim != 3 or tensor.shape[0] != self.num_heads or tensor.shape[2] != self.head_dim:
            raise ValueError(f"{name} need [{self.num_heads}, n, {self.head_dim}], not {list(tensor.shape)}")

    def _close_segment(self) -> None:
        """Makes a segment of what is flat."""
        borders = np.array(self._borders[self._flat_from :]) - self._borders[self._flat_from]
        keys = torch.cat([block.keys for block in self._blocks], 1)
        indexes = [self._with_lists(rows.float().numpy()) for rows in keys]
        self._segments.append(_Segment(self._flat_from, borders, indexes))
        self._flat_from, self._blocks = self.num_chunks, []

    def _with_lists(self, keys: NDArray[np.float32]) -> Any:
        """An index of keys [n, head_dim] for inner products, its lists learnt from an even sample of them."""
        num_lists = max(1, len(keys) // LIST_TOKENS)
        index: Any = faiss.index_factory(self.head_dim, f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.nprobe = LEARNING_ROUNDS, math.ceil(num_lists * min(1, self.head_dim / DIMS_FOR_ALL))
        index.train(keys[::LEARNT_STEP])
        index.add(keys)
        return faiss.index_cpu_to_gpu(self._gpu, 0, index) if self._gpu else index

    def _proposed(self, queries: Tensor, limit: int) -> set[int]:
        """Chunks of the segments that FAISS takes for the best of some head."""
        proposed: set[int] = set()
        for head, rows in enumerate(queries.numpy()):
            different = np.unique(rows, axis=0)  # a head that is asked with few tokens has them several times
            scores = np.full(self.num_chunks, -np.inf, dtype=np.float32)
            for segment in self._segments:
                values, chunks = segment.search(head, different, limit)
                np.maximum.at(scores, chunks, values)
            best = np.argsort(-scores)[: SPARE * limit]
            proposed.update(best[np.isfinite(scores[best])].tolist())
        return proposed

    def _max_sim(self, queries: Tensor, chunks: Sequence[int]) -> Tensor:
        """Exact scores of some chunks, [heads, len(chunks)]."""
        if not chunks:
            return torch.empty(self.num_heads, 0)
        return _max_sim(
            queries, torch.cat([self._keys[i] for i in chunks], 1), [self._keys[i].shape[1] for i in chunks]
        )


def _max_sim(queries: Tensor, keys: Tensor, sizes: Sequence[int]) -> Tensor:
    """Scores [heads, chunks] of queries [heads, q, head_dim] with keys [heads, n, head_dim], so many of each chunk."""
    scores = torch.full((len(keys), len(sizes)), -torch.inf)
    owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).expand(len(keys), -1)
    return scores.scatter_reduce_(1, owners, (queries @ keys.float().transpose(1, 2)).amax(1), "amax")


class _Block:
    """True keys of consecutive chunks in one piece, room: [heads, most tokens, head_dim]."""

    def __init__(self, room: Tensor) -> None:
        self._room = room
        self._sizes: list[int] = []
        self._used = 0

    @property
    def keys(self) -> Tensor:
        """[heads, n, head_dim]"""
        return self._room[:, : self._used]

    def has_room(self, num_tokens: int) -> bool:
        return self._used + num_tokens <= self._room.shape[1]

    def add(self, keys: Tensor) -> Tensor:
        """Copies a chunk's keys in and gives them back where they lie now."""
        place = self._room[:, self._used : self._used + keys.shape[1]]
        place.copy_(keys)
        self._used += keys.shape[1]
        self._sizes.append(keys.shape[1])
        return place

    def max_sim(self, queries: Tensor) -> Tensor:
        """Exact scores of its chunks, [heads, chunks]."""
        return _max_sim(queries, self.keys, self._sizes)


@dataclass(frozen=True, eq=False)
class _Segment:
    """Consecutive chunks from `first_chunk` on, an index of their tokens for each head.

    borders: int64 [chunks + 1]; its chunk i owns tokens borders[i] to borders[i + 1], half-open.
    """

    first_chunk: int
    borders: NDArray[np.int64]
    indexes: Sequence[Any]

    def search(
        self, head: int, queries: NDArray[np.float32], limit: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best tokens for each query: scores, up to the rounding of keys, and chunks. They are of at least `limit`
        chunks, as far as the lists visited have so many."""
        most = min(MOST_TOKENS, int(self.borders[-1]))
        count = min(CHUNK_TOKENS * limit, most)
        while True:
            values, tokens = self.indexes[head].search(queries, count)
            chunks = np.searchsorted(self.borders, tokens[tokens >= 0], side="right") - 1
            if count == most or np.unique(chunks).size >= limit:
                return values[tokens >= 0], self.first_chunk + chunks
            count = min(4 * count, most)
