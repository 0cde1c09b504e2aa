"""Attention mass, the fallback without retrieval heads: where the attention falls, within
bounds.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch

from memory.chunk import KVChunk
from memory.mass import CANDIDATES, as_scores, attention_mass, candidates
from models.qwen3_vl import text_layout

LAYERS, KV_HEADS, GROUP, DIM = 2, 2, 3, 4


def make_chunk(index: int, num_tokens: int = 6) -> KVChunk:
    kv = torch.randn(
        2, LAYERS, KV_HEADS, num_tokens, DIM, generator=torch.Generator().manual_seed(index)
    )
    visual = torch.arange(num_tokens) > 1
    return KVChunk(kv[0], kv[1], text_layout(num_tokens), visual, float(index), float(index), index)


def test_the_shares_are_those_of_one_softmax_over_all_visual_tokens() -> None:
    chunks = [make_chunk(index, 5 + index) for index in range(4)]
    queries = torch.randn(
        LAYERS, KV_HEADS * GROUP, 3, DIM, generator=torch.Generator().manual_seed(9)
    )
    keys = torch.cat([chunk.keys[:, :, chunk.visual] for chunk in chunks], dim=2).repeat_interleave(
        GROUP, dim=1
    )
    weights = (
        torch.einsum("lhqd,lhnd->lhqn", queries, keys).div(DIM**0.5).softmax(-1).mean((0, 1, 2))
    )
    borders = [0, *accumulate(int(chunk.visual.sum()) for chunk in chunks)]
    wanted = [float(weights[start:stop].sum()) for start, stop in pairwise(borders)]
    assert attention_mass(queries, chunks) == pytest.approx(wanted, abs=1e-6)
    assert attention_mass(queries.flip(1), chunks) != pytest.approx(wanted, abs=1e-3)


def test_a_chunk_that_holds_what_is_looked_for_gets_the_mass() -> None:
    chunks = [make_chunk(index) for index in range(5)]
    chunks[3].keys[:, :, 4] *= 4.0
    queries = chunks[3].keys[:, :, 4:5].repeat_interleave(GROUP, dim=1)
    shares = attention_mass(queries, chunks)
    assert max(range(5), key=lambda index: shares[index]) == 3
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("num_chunks", [-1, 0, 1, 5, CANDIDATES, CANDIDATES + 1, 10_000])
def test_candidates_are_bounded_and_even(num_chunks: int) -> None:
    got = candidates(num_chunks)
    assert got == sorted(set(got)) and len(got) == min(CANDIDATES, max(0, num_chunks))
    steps = [late - early for early, late in pairwise(got)]
    assert not steps or max(steps) - min(steps) <= 1


def test_chunks_that_were_not_looked_at_score_least() -> None:
    scores = as_scores([0.1, 0.7, 0.2], [0, 3, 6], 8)
    assert max(range(8), key=lambda index: scores[index]) == 3
    assert all(scores[index] == min(scores) for index in (1, 2, 4, 5, 7))
    assert as_scores([1.0], [0], 2) == [1.0, 1.0]
