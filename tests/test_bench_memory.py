"""The benches of the index and of heads kept sparse measure what they say."""

from __future__ import annotations

import pytest
import torch

from bench import index as index_bench
from bench.head_sparsity import kept_sparse, num_bytes
from tests.test_levels import HEADS, LAYERS, make_chunk


def test_the_index_bench_holds_lists_against_flat_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_bench, "SEGMENT_TOKENS", 2000)
    measured = list(index_bench.measure_made_up(8, [1000, 3000], questions=3))
    assert [(m.way, m.tokens >= 2000) for m in measured] == [
        ("flat", False),
        ("lists", False),
        ("flat", True),
        ("lists", True),
    ]
    assert [m.recall for m in measured[:3]] == [1.0, 1.0, 1.0] and 0.5 < measured[3].recall <= 1.0
    assert measured[0].index_bytes == measured[1].index_bytes == measured[0].tokens * 8 * 2
    assert measured[3].index_bytes > measured[2].index_bytes
    assert len(index_bench.report(measured)) == 2 + 4 + 2


def test_heads_kept_sparse_see_the_means_of_cells_and_dense_ones_all_there_was() -> None:
    chunk, dense = make_chunk([(4, 4)], stamp=3), torch.zeros(LAYERS, HEADS, dtype=torch.bool)
    dense[1, 0] = True
    kept = kept_sparse(chunk, dense)
    assert torch.equal(kept.keys[1, 0], chunk.keys[1, 0]) and torch.equal(
        kept.values[1, 0], chunk.values[1, 0]
    )
    cell = [3, 4, 7, 8]  # of the upper left, behind three tokens of text
    torch.testing.assert_close(kept.keys[0, 1, cell], chunk.keys[0, 1, cell].mean(0).expand(4, -1))
    torch.testing.assert_close(
        kept.values[1, 1, cell], chunk.values[1, 1, cell].mean(0).expand(4, -1)
    )
    text = ~chunk.visual
    assert (
        torch.equal(kept.keys[:, :, text], chunk.keys[:, :, text]) and kept.layout is chunk.layout
    )


def test_the_bytes_of_mixed_heads_lie_between_sparse_and_dense() -> None:
    chunk, dense = make_chunk([(4, 4)], stamp=3), torch.zeros(LAYERS, HEADS, dtype=torch.bool)
    sparse, everything = num_bytes(chunk, dense, 16), num_bytes(chunk, ~dense, 16)
    assert (sparse * 20, everything) == (everything * 8, chunk.memory_bytes // 2)
    dense[1, 0] = True
    assert num_bytes(chunk, dense, 16) == sparse + (everything - sparse) // 4
