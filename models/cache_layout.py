"""Where cached tokens stand in a context, and what each new token of a pass may see.

A pass prefills one run of new tokens or several. Each run sees the prefix, a stretch of earlier
tokens, and its own tokens causally. Positions are computed here and never inferred from a length.
Plain tensor arithmetic: knows nothing of models, prompts or tiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from memory.chunk import KVChunk, PositionLayout


@dataclass(frozen=True, eq=False)
class RunView:
    """What the tokens of one run see, in this order: the prefix, a stretch of the line, their own
    predecessors.

    own: the run's tokens among all new tokens of its stream, half-open.
    first_visible: the first token of the line that the run sees; it sees all from there to itself.
    prefix_positions: int64 [3, prefix tokens], the prefix as far before that token as in a separate
    prefill.
    """

    own: slice
    first_visible: int
    prefix_positions: Tensor


@dataclass(frozen=True, eq=False)
class AttentionContext:
    """What the new tokens of one stream see. Several of these can share a pass.

        prefix | line: recent chunks, then the runs
        prefix   recent recent run run run
                 each run sees the last `num_recent` chunks or runs before it

    prefix: chunks that every run sees. recent: chunks of the line.
    positions: int64 [3, line tokens], of the recent chunks and the new tokens.
    runs: in time order; together they are all new tokens of the stream.
    """

    prefix: Sequence[KVChunk]
    recent: Sequence[KVChunk]
    positions: Tensor
    runs: Sequence[RunView]

    @property
    def num_new_tokens(self) -> int:
        return int(self.runs[-1].own.stop)

    @property
    def num_recent_tokens(self) -> int:
        return int(self.positions.shape[1]) - self.num_new_tokens


def concat_positions(layouts: Sequence[PositionLayout]) -> tuple[Tensor, int]:
    """Positions [3, all tokens] of layouts one after the other, and the first free position after
    them.
    """
    start = 0
    positions = [torch.empty(3, 0, dtype=torch.int64)]
    for layout in layouts:
        positions.append(layout.positions + start)
        start += layout.extent
    return torch.cat(positions, dim=1), start


def causal_context(context: Sequence[KVChunk], layout: PositionLayout) -> AttentionContext:
    """One run of new tokens after `context`, all of which it sees."""
    positions, _ = concat_positions([*(chunk.layout for chunk in context), layout])
    run = RunView(slice(0, layout.num_tokens), 0, torch.empty(3, 0, dtype=torch.int64))
    return AttentionContext((), context, positions, [run])


def packed_context(
    prefix: Sequence[KVChunk],
    recent: Sequence[KVChunk],
    layouts: Sequence[PositionLayout],
    num_recent: int,
) -> AttentionContext:
    """Several runs in one pass: each sees `prefix` and the `num_recent` chunks or runs before it.

    Only distances matter to rotary attention, so recent chunks and runs stand on one line, rotated
    once for all that see them. The prefix must be just before the first thing that a run sees, so
    it has its own positions in each run.
    """
    prefix_positions, prefix_extent = concat_positions([chunk.layout for chunk in prefix])
    line = [*(chunk.layout for chunk in recent), *layouts]
    starts = [prefix_extent]  # position at which each part of the line starts
    first_tokens = [0]  # index of its first token in the line
    for layout in line:
        starts.append(starts[-1] + layout.extent)
        first_tokens.append(first_tokens[-1] + layout.num_tokens)
    positions = [torch.empty(3, 0, dtype=torch.int64)]
    positions += [layout.positions + start for layout, start in zip(line, starts, strict=False)]

    num_recent_tokens = first_tokens[len(recent)]
    runs = []
    for number in range(len(recent), len(line)):
        first = max(0, number - num_recent)
        own = slice(
            first_tokens[number] - num_recent_tokens, first_tokens[number + 1] - num_recent_tokens
        )
        runs.append(
            RunView(own, first_tokens[first], prefix_positions + starts[first] - prefix_extent)
        )
    return AttentionContext(prefix, recent, torch.cat(positions, dim=1), runs)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embedding of [..., n, head_dim], in the half-split arrangement of the Llama and Qwen
    families.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


def signed_sines(sines: Tensor) -> Tensor:
    """Sines [n, head_dim] with the first half negated, as `rotate_signed` takes them."""
    first, second = sines.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


def rotate_signed(x: Tensor, cosines: Tensor, signed: Tensor) -> Tensor:
    """`rotate` in three kernels instead of five: a GPU takes longer to start small ones than to run
    them.
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cosines, swapped, signed)


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
    """The mask of queries that are the last of all keys: each sees everything before it, and
    itself.

        5 keys, 3 queries:  1 1 1 0 0
                            1 1 1 1 0
                            1 1 1 1 1

    None if there are as many queries as keys, which is plain causal. On CUDA the mask is symbolic,
    so that flash kernels apply; elsewhere it is written out.
    """
    if num_queries == num_keys:
        return None
    if device.type == "cuda":
        return causal_lower_right(num_queries, num_keys)
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)
