"""Raw keys of the retrieval heads, searched: which chunks hold a token that a question's queries look for.

The score of a chunk for a head is MaxSim: the largest raw q . raw k over the given query tokens and the chunk's indexed
tokens (late interaction, as in ColBERT). The only file that imports faiss. Knows nothing of models, of which heads
retrieve, or of what becomes of the scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EXACT_TOKENS = 1 << 17  # up to here all chunks are scored; 64-dimensional keys then take 0.06 s on one CPU core
BLOCK_TOKENS = 1 << 15  # keys looked at together when scoring exactly; bounds the scratch memory


@dataclass(frozen=True, eq=False)
class MaxSim:
    """Scores of every chunk for every head.

    scores: float32 [heads, chunks]. Where `exact` is false it is an upper bound, the same for all such chunks of a
    head. A chunk with nothing indexed has -inf.
    exact: bool [chunks].
    """

    scores: Tensor
    exact: Tensor


class HeadIndex:
    """One FAISS inner-product index per head; tokens in the order of their chunks.

    num_heads, head_dim: of the keys given to `add`, one row of keys per retrieval head (the KV head that serves it).
    exact_tokens: with at most so many tokens per head all chunks are scored exactly, beyond that those FAISS finds.
    """

    def __init__(self, num_heads: int, head_dim: int, exact_tokens: int = EXACT_TOKENS) -> None:
        if num_heads < 1 or head_dim < 1:
            raise ValueError(f"an index needs heads and dimensions, not {num_heads} x {head_dim}")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self._exact_tokens = exact_tokens
        self._flats = [faiss.IndexFlatIP(head_dim) for _ in range(num_heads)]
        self._borders = [0]  # chunk i owns tokens borders[i] to borders[i + 1], half-open

    @property
    def num_chunks(self) -> int:
        return len(self._borders) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens indexed per head."""
        return self._borders[-1]

    @property
    def index_bytes(self) -> int:
        """Bytes of the keys, float32, all heads."""
        return self.num_tokens * self.num_heads * self.head_dim * 4

    def add(self, chunk_index: int, keys: Tensor) -> None:
        """Indexes the next chunk's visual tokens: raw keys [heads, n, head_dim], n may be 0."""
        if chunk_index != self.num_chunks:
            raise ValueError(f"chunk {chunk_index} cannot follow {self.num_chunks} indexed chunks")
        rows = self._rows(keys, "keys")
        for flat, head_rows in zip(self._flats, rows, strict=True):
            flat.add(head_rows)
        self._borders.append(self.num_tokens + rows.shape[1])

    def search(self, queries: Tensor, limit: int) -> MaxSim:
        """MaxSim of raw queries [heads, q, head_dim] with every chunk.

        For each head, at least its `limit` best chunks are exact, and so is every chunk found for any head.
        """
        rows = self._rows(queries, "queries")
        if rows.shape[1] == 0 or limit < 1:
            raise ValueError(f"nothing to search for: {rows.shape[1]} query tokens, {limit} chunks")
        scores = np.full((self.num_heads, self.num_chunks), -np.inf, dtype=np.float32)
        found = np.ones(self.num_chunks, dtype=np.bool_)
        if self.num_tokens > self._exact_tokens:
            found = self._find(rows, limit, scores)
        for run in _true_runs(found):
            self._score_exactly(rows, run, scores)
        empty = np.diff(self._borders) == 0
        scores[:, empty], found[empty] = -np.inf, True
        return MaxSim(torch.from_numpy(scores), torch.from_numpy(found))

    def _rows(self, tensor: Tensor, name: str) -> NDArray[np.float32]:
        if tensor.ndim != 3 or tensor.shape[0] != self.num_heads or tensor.shape[2] != self.head_dim:
            raise ValueError(f"{name} need [{self.num_heads}, n, {self.head_dim}], not {list(tensor.shape)}")
        rows: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        return rows

    def _find(self, rows: NDArray[np.float32], limit: int, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Marks the chunks that FAISS finds for any head; writes the bound of all others into `scores`."""
        found = np.zeros(self.num_chunks, dtype=np.bool_)
        for head in range(self.num_heads):
            chunks, scores[head] = self._find_for(head, rows[head], limit)
            found[chunks] = True
        return found

    def _find_for(self, head: int, rows: NDArray[np.float32], limit: int) -> tuple[NDArray[np.int64], float]:
        """Chunks among which are the `limit` best of a head, and what no other chunk exceeds.

        The k best tokens are asked for per query token. No token left out beats `bound`, the best of the k-th scores,
        so a chunk with a found score of at least `bound` is surely placed. As many tokens as the largest `limit` chunks
        have are always enough.
        """
        sizes = np.sort(np.diff(self._borders))
        enough = min(self.num_tokens, int(sizes[-limit:].sum()))
        k = min(enough, 8 * limit)
        while True:
            values, tokens = self._flats[head].search(rows, k)
            bound = float(values[:, -1].max()) if k < self.num_tokens else -np.inf
            chunks = np.unique(np.searchsorted(self._borders, tokens[values >= bound], side="right") - 1)
            if k == enough or chunks.size >= limit:
                return chunks, bound
            k = min(enough, 4 * k)

    def _score_exactly(self, rows: NDArray[np.float32], chunks: range, scores: NDArray[np.float32]) -> None:
        """Replaces the scores of consecutive chunks by their exact MaxSim."""
        scores[:, chunks.start : chunks.stop] = -np.inf
        start, stop = self._borders[chunks.start], self._borders[chunks.stop]
        for first in range(start, stop, BLOCK_TOKENS):
            num_tokens = min(BLOCK_TOKENS, stop - first)
            owners = np.searchsorted(self._borders, np.arange(first, first + num_tokens), side="right") - 1
            for head, flat in enumerate(self._flats):
                keys = flat.reconstruct_n(first, num_tokens)
                np.maximum.at(scores[head], owners, (keys @ rows[head].T).max(axis=1))


def _true_runs(marks: NDArray[np.bool_]) -> list[range]:
    """Half-open ranges of consecutive true marks."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], marks, [False]))))
    return [range(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
