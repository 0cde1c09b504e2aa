"""The sparse level of a chunk, and taking some of its tokens: right for every grid and for whatever
tokens are left.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor

from memory.chunk import KVChunk, PositionLayout, cells
from models.cache_layout import concat_positions
from models.qwen3_vl import grid_layout, text_layout

LAYERS, HEADS, DIM = 2, 2, 4


def make_chunk(grids: list[tuple[int, int]], stamp: int = 3, seed: int = 0) -> KVChunk:
    """Groups as the family writes them: `stamp` text tokens, a grid, one text token."""
    runs = [
        run for grid in grids for run in (text_layout(stamp), whole_grid(*grid), text_layout(1))
    ]
    positions, extent = concat_positions(runs)
    marks = [[False] * stamp + [True] * (rows * columns) + [False] for rows, columns in grids]
    visual = torch.tensor([mark for group in marks for mark in group])
    kv = torch.randn(
        2, LAYERS, HEADS, len(visual), DIM, generator=torch.Generator().manual_seed(seed)
    )
    return KVChunk(kv[0], kv[1], PositionLayout(positions, extent), visual, 0.0, 4.0, 0)


def whole_grid(rows: int, columns: int) -> PositionLayout:
    return grid_layout(rows, columns, torch.arange(rows * columns))


def same(one: KVChunk, other: KVChunk) -> bool:
    pairs: list[tuple[Tensor, Tensor]] = [
        (one.keys, other.keys),
        (one.values, other.values),
        (one.layout.positions, other.layout.positions),
        (one.visual, other.visual),
    ]
    return (
        all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
        and one.layout.extent == other.layout.extent
    )


def some(chunk: KVChunk, seed: int) -> KVChunk:
    """The chunk with a random half of its visual tokens pruned, at the places that they had."""
    keep = ~chunk.visual | (
        torch.rand(chunk.num_tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    )
    layout = PositionLayout(chunk.layout.positions[:, keep], chunk.layout.extent)
    return KVChunk(
        chunk.keys[:, :, keep], chunk.values[:, :, keep], layout, chunk.visual[keep], 0.0, 4.0, 0
    )


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (3, 5), (6, 2)])
def test_selecting_everything_changes_nothing(grid: tuple[int, int]) -> None:
    chunk = make_chunk([grid, grid])
    everything = torch.ones(chunk.num_tokens, dtype=torch.bool)
    assert same(chunk.select(everything), chunk)
    everything[-1] = False
    assert not same(chunk.select(everything), chunk)


def test_text_alone_stands_as_if_there_had_been_no_pictures() -> None:
    chunk = make_chunk([(4, 4), (3, 5)])
    text = chunk.select(~chunk.visual)
    assert (
        torch.equal(text.layout.positions, torch.arange(8).expand(3, -1))
        and text.layout.extent == 8
    )
    assert torch.equal(text.keys, chunk.keys[:, :, ~chunk.visual])
    assert not text.visual.any()


def test_a_mask_of_another_length_is_refused() -> None:
    chunk = make_chunk([(2, 2)])
    with pytest.raises(ValueError, match="8 tokens need a bool mark each"):
        chunk.select(torch.ones(7, dtype=torch.bool))


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 7)])
def test_pooling_averages_the_tokens_of_each_cell_whichever_are_there(
    grid: tuple[int, int], pruned: bool
) -> None:
    chunk = make_chunk([grid, grid])
    chunk = some(chunk, seed=1) if pruned else chunk
    members: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for token, (t, h, w) in enumerate(chunk.layout.positions.T.tolist()):
        members[
            (t, (h - t) // 2, (w - t) // 2) if chunk.visual[token] else (-1 - token, 0, 0)
        ].append(token)
    pooled = chunk.pooled()
    assert pooled.num_tokens == len(members) == len(cells(chunk.layout, chunk.visual)[1])
    for place, tokens in enumerate(members.values()):
        assert torch.allclose(pooled.keys[:, :, place], chunk.keys[:, :, tokens].mean(2), atol=1e-6)
        assert torch.allclose(
            pooled.values[:, :, place], chunk.values[:, :, tokens].mean(2), atol=1e-6
        )
        assert bool(pooled.visual[place]) == bool(chunk.visual[tokens[0]])


def test_neighbours_in_the_grid_are_pooled_not_neighbours_in_the_row_of_tokens() -> None:
    chunk = make_chunk([(4, 4)])
    visual = chunk.keys[:, :, chunk.visual]
    in_a_row = visual.reshape(LAYERS, HEADS, 4, 4, DIM).mean(3)
    pooled = chunk.pooled()
    assert not torch.allclose(pooled.keys[:, :, pooled.visual], in_a_row, atol=1e-3)


def test_a_pooled_chunk_is_laid_out_like_one_of_half_the_side() -> None:
    pooled, half = make_chunk([(4, 6), (4, 6)]).pooled(), make_chunk([(2, 3), (2, 3)])
    assert torch.equal(pooled.layout.positions, half.layout.positions)
    assert pooled.layout.extent == half.layout.extent
    assert torch.equal(pooled.visual, half.visual)


@pytest.mark.parametrize("kept", [[15], [0, 5], [7, 8, 11], []])
def test_what_is_left_of_a_pruned_group_keeps_its_place_when_pooled(kept: list[int]) -> None:
    whole = make_chunk([(4, 4), (3, 5)])
    keep = ~whole.visual
    keep[[3 + place for place in kept]] = True
    pruned = KVChunk(
        whole.keys[:, :, keep],
        whole.values[:, :, keep],
        PositionLayout(whole.layout.positions[:, keep], whole.layout.extent),
        whole.visual[keep],
        0.0,
        4.0,
        0,
    )
    pooled, of_whole = pruned.pooled(), whole.pooled()
    corners = sorted({place // 8 * 2 + place % 4 // 2 for place in kept})
    wanted = ~of_whole.visual
    wanted[[3 + corner for corner in corners]] = True
    assert torch.equal(pooled.layout.positions, of_whole.layout.positions[:, wanted])
    assert pooled.layout.extent == of_whole.layout.extent
    assert int(pooled.visual.sum()) == len(corners)


def test_text_is_untouched_by_pooling() -> None:
    chunk = make_chunk([(4, 4), (3, 5)])
    pooled = chunk.pooled()
    assert torch.equal(pooled.keys[:, :, ~pooled.visual], chunk.keys[:, :, ~chunk.visual])
    assert torch.equal(pooled.values[:, :, ~pooled.visual], chunk.values[:, :, ~chunk.visual])


def test_half_precision_is_averaged_in_full_precision() -> None:
    chunk = make_chunk([(4, 4)])
    large = KVChunk(
        (1000 + chunk.keys).half(),
        chunk.values.half(),
        chunk.layout,
        chunk.visual,
        chunk.start_seconds,
        4.0,
        0,
    )
    wanted = KVChunk(
        large.keys.float(),
        large.values.float(),
        chunk.layout,
        chunk.visual,
        chunk.start_seconds,
        4.0,
        0,
    ).pooled()
    assert large.pooled().keys.dtype == torch.float16
    assert torch.equal(large.pooled().keys, wanted.keys.half())


def test_a_chunk_without_pictures_is_its_own_sparse_level() -> None:
    chunk = make_chunk([(2, 2)])
    text = chunk.select(~chunk.visual)
    assert same(text.pooled(), text)
    assert same(text.salient(), text)


def test_the_salient_level_keeps_text_and_of_every_group_what_stands_out() -> None:
    chunk = make_chunk([(4, 4), (2, 4)])
    keys = torch.zeros_like(chunk.keys)
    odd = [3 + 5, 3 + 16 + 1 + 3 + 2]  # the sixth token of the first grid, the third of the second
    keys[:, :, odd] = 9.0
    plain = KVChunk(keys, chunk.values, chunk.layout, chunk.visual, 0.0, 4.0, 0)
    kept = plain.salient()
    assert int(kept.visual.sum()) == 4 + 2
    assert int((~kept.visual).sum()) == 8
    assert int((kept.keys[0, 0, :, 0] == 9.0).sum()) == 2
    assert kept.num_tokens <= len(cells(plain.layout, plain.visual)[1])
