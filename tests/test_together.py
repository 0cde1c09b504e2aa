"""Chunks prefilled in one pass are those prefilled one by one: the same keys and values, seeing the
same past.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from memory.chunk import KVChunk
from models.qwen3_vl import Qwen3VL
from models.video_llm import PrefillRequest, VisualGroup
from tests.tiny import noise_frames

SIZE = (64, 96)  # pixels; a grid of 2 x 3 tokens after the checkpoint's limit
TOLERANCE, NOTICED = 1e-5, 1e-3  # of the largest value


@pytest.fixture(scope="module")
def runs(tiny: Qwen3VL) -> list[list[VisualGroup]]:
    """Seven runs of one to three groups, some of them pruned."""
    groups = [
        group if number % 3 else only(group, [number % 5, 5])
        for number, group in enumerate(tiny.encode(FRAMES))
    ]
    lengths, made = [1, 2, 1, 3, 1, 2, 1], list[list[VisualGroup]]()
    for length in lengths:
        made.append(groups[:length])
        groups = groups[length:]
    return made


FRAMES = noise_frames(22, *SIZE)


def only(group: VisualGroup, places: Sequence[int]) -> VisualGroup:
    rows = torch.tensor(places, dtype=torch.int64)
    levels = tuple(level[rows] for level in group.deepstack)
    return replace(group, embeddings=group.embeddings[rows], deepstack=levels, kept=rows)


def one_by_one(tiny: Qwen3VL, runs: Sequence[Sequence[VisualGroup]], reach: int) -> list[KVChunk]:
    chunks: list[KVChunk] = []
    for number, groups in enumerate(runs):
        near = chunks[-reach:] if reach else []
        chunks.append(tiny.prefill(groups, [tiny.prefix(), *near], number))
    return chunks


def in_batches(
    tiny: Qwen3VL, runs: Sequence[Sequence[VisualGroup]], reach: int, sizes: Sequence[int]
) -> list[KVChunk]:
    chunks: list[KVChunk] = []
    for size in sizes:
        part, near = runs[len(chunks) : len(chunks) + size], chunks[-reach:] if reach else []
        chunks += tiny.prefill_batch(
            [PrefillRequest(part, [tiny.prefix()], near, reach, len(chunks))]
        )[0]
    return chunks


def apart(one: Sequence[KVChunk], other: Sequence[KVChunk]) -> float:
    """The largest difference of keys and values, of the largest value; everything else must be the
    same.
    """
    for a, b in zip(one, other, strict=True):
        assert (a.index, a.start_seconds, a.stop_seconds, a.group_starts) == (
            b.index,
            b.start_seconds,
            b.stop_seconds,
            b.group_starts,
        )
        assert torch.equal(a.layout.positions, b.layout.positions) and torch.equal(
            a.visual, b.visual
        )
    return max(
        float((x - y).abs().max() / y.abs().max())
        for a, b in zip(one, other, strict=True)
        for x, y in ((a.keys, b.keys), (a.values, b.values))
    )


@pytest.mark.parametrize("reach", [0, 1, 2, 9])
@pytest.mark.parametrize("sizes", [[7], [1, 4, 2], [3, 1, 1, 2]])
def test_together_is_one_by_one(
    tiny: Qwen3VL, runs: list[list[VisualGroup]], reach: int, sizes: list[int]
) -> None:
    assert apart(in_batches(tiny, runs, reach, sizes), one_by_one(tiny, runs, reach)) < TOLERANCE


def test_another_reach_a_chunk_missing_in_front_and_another_order_are_noticed(
    tiny: Qwen3VL, runs: list[list[VisualGroup]]
) -> None:
    wanted = one_by_one(tiny, runs, 2)
    for reach in (1, 3):
        assert apart(in_batches(tiny, runs, reach, [3, 4]), wanted) > NOTICED
    head, (first, second) = [tiny.prefix()], wanted[:2]

    def rest(near: Sequence[KVChunk]) -> list[KVChunk]:
        return tiny.prefill_batch([PrefillRequest(runs[2:], head, near, 2, 2)])[0]

    assert apart(rest([first, second]), wanted[2:]) < TOLERANCE
    assert apart(rest([second]), wanted[2:]) > NOTICED
    assert apart(rest([second, first]), wanted[2:]) > NOTICED
    blind = tiny.prefill_batch([PrefillRequest(runs, [], [], 2, 0)])[0]
    assert apart(blind, wanted) > NOTICED, "the prefix is seen by every chunk"


def test_a_chunk_keeps_no_memory_but_its_own(tiny: Qwen3VL, runs: list[list[VisualGroup]]) -> None:
    for chunk in tiny.prefill_batch([PrefillRequest(runs, [tiny.prefix()], [], 2, 0)])[0]:
        assert chunk.keys.untyped_storage().nbytes() == chunk.keys.nbytes
        assert chunk.values.untyped_storage().nbytes() == chunk.values.nbytes


def test_a_run_without_groups_is_refused(tiny: Qwen3VL, runs: list[list[VisualGroup]]) -> None:
    for empty in ([], [runs[0], []]):
        with pytest.raises(ValueError, match="at least one group"):
            tiny.prefill_batch([PrefillRequest(empty, [tiny.prefix()], [], 2, 0)])


def test_several_streams_share_a_pass(tiny: Qwen3VL, runs: list[list[VisualGroup]]) -> None:
    past = one_by_one(tiny, runs, 2)
    first = PrefillRequest(runs[2:4], [tiny.prefix()], past[:2], 2, 2)
    second = PrefillRequest(runs[:3], [tiny.prefix()], [], 1, 0)
    third = PrefillRequest(runs[5:], [tiny.prefix()], past[4:5], 1, 5)
    apart_from_others = [tiny.prefill_batch([request])[0] for request in (first, second, third)]
    for order in ((0, 1, 2), (2, 0, 1)):
        together = tiny.prefill_batch([(first, second, third)[k] for k in order])
        for k, chunks in zip(order, together, strict=True):
            assert apart(chunks, apart_from_others[k]) < TOLERANCE
    assert apart(apart_from_others[0], past[2:4]) < TOLERANCE
    swapped = tiny.prefill_batch([second, replace(first, recent=past[1:2])])[1]
    assert apart(swapped, past[2:4]) > NOTICED, "what a stream has seen is its own"
