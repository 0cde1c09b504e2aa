"""Which chunks a question attends to where no retrieval head is known: attention mass over all
heads, on sparse levels.

Far weaker than retrieval heads, and the more so the longer the history; better than nothing for a
checkpoint that was not calibrated or has no such head. Knows nothing of models or tiers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from memory.chunk import KVChunk

# chunks looked at, evenly from the whole history; each is brought to the device and pooled in turn
CANDIDATES = 32


def candidates(num_chunks: int) -> list[int]:
    """At most `CANDIDATES` of the chunks 0 to num_chunks, evenly spread, the middle of each
    stretch.
    """
    count = min(CANDIDATES, max(0, num_chunks))
    return [(2 * k + 1) * num_chunks // (2 * count) for k in range(count)]


def attention_mass(queries: Tensor, chunks: Iterable[KVChunk]) -> list[float]:
    """The share of attention that falls on each chunk's visual tokens, mean over layers, heads and
    query tokens.

    queries: raw, [layers, heads, n, head_dim]; raw keys, so places make no difference. The shares
    add up to 1, or are all 0 where no chunk has visual tokens.
    """
    columns: list[Tensor] = []
    for chunk in chunks:
        keys = chunk.keys[:, :, chunk.visual.to(chunk.keys.device)].float()
        layers, kv_heads, _, head_dim = keys.shape
        grouped = queries.to(keys).reshape(layers, kv_heads, -1, queries.shape[2], head_dim)
        products = torch.einsum("lkgqd,lkmd->lkgqm", grouped, keys) * head_dim**-0.5
        columns.append(products.logsumexp(-1).flatten().cpu())
    shares: list[float] = (
        torch.stack(columns).softmax(0).nan_to_num().mean(1).tolist() if columns else []
    )
    return shares


def as_scores(shares: list[float], indices: list[int], num_chunks: int) -> list[float]:
    """Standardised shares as one score per chunk; chunks that were not looked at have the least."""
    known = torch.tensor(shares, dtype=torch.float64)
    standard = (known - known.mean()) / known.std().clamp(min=1e-6) if len(shares) > 1 else known
    scores = torch.full((num_chunks,), float(standard.min()), dtype=torch.float64)
    scores[indices] = standard
    found: list[float] = scores.tolist()
    return found
