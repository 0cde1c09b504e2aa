"""The unit of memory: the keys and values of consecutive groups, prefilled together.

Keys are stored un-rotated, so a chunk can stand at any position of any context. Where its tokens
stand relative to each other is data (`PositionLayout`), never inferred from a length. Knows nothing
of models, tiers or questions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

META_BYTES = 2048  # of a `ChunkMeta` beside its tensors' own: Python's and torch's objects


@dataclass(frozen=True, eq=False)
class PositionLayout:
    """Where a run of tokens stands, relative to its own start.

    positions: int64 [3, n], the (t, h, w) position of each token; the run starts at 0.
    extent: the first position free behind the run, that is where the next run may start.

        run A: positions 0 1 2 | extent 3      A then B: 0 1 2 | 3 4 4 5
        run B: positions 0 1 1 2 | extent 3                      next starts at 6
    """

    positions: Tensor
    extent: int

    def __post_init__(self) -> None:
        if self.positions.ndim != 2 or self.positions.shape[0] != 3:
            raise ValueError(f"positions need shape [3, n], not {list(self.positions.shape)}")
        if self.positions.numel() and int(self.positions.max()) >= self.extent:
            raise ValueError(
                f"position {int(self.positions.max())} lies outside the extent {self.extent}"
            )

    @property
    def num_tokens(self) -> int:
        return int(self.positions.shape[1])


def closed_up(positions: Tensor, left_free: Iterable[int] = ()) -> PositionLayout:
    """A layout in which each position is taken by some token in some row: gaps closed, order kept.

    t  0 1 1 1 6          t  0 1 1 1 3
    h  0 1 1 3 6    ->    h  0 1 1 2 3     6 comes right after 3, since nothing stands at 2, 4 or 5

    left_free: positions that stay, although no token stands there.
    """
    places = {place for row in positions.tolist() for place in row}.union(left_free)
    taken = torch.tensor(sorted(places), dtype=torch.int64)
    return PositionLayout(torch.searchsorted(taken, positions.contiguous()), len(taken))


def cells(layout: PositionLayout, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Which 2 x 2 cell of its group's grid each token belongs to (a text token is a cell of its
    own), numbered in the order of the tokens: int64 [n]; and the first token of every cell, int64
    [cells], ascending."""
    numbers: dict[tuple[int, int, int], int] = {}
    owners: list[int] = []
    first: list[int] = []
    for token, ((t, h, w), is_visual) in enumerate(
        zip(layout.positions.T.tolist(), visual.tolist(), strict=True)
    ):
        name = (t, (h - t) // 2, (w - t) // 2) if is_visual else (-1 - token, 0, 0)
        if name not in numbers:
            numbers[name] = len(first)
            first.append(token)
        owners.append(numbers[name])
    return torch.tensor(owners, dtype=torch.int64), torch.tensor(first, dtype=torch.int64)


def pooled_layout(layout: PositionLayout, visual: Tensor) -> tuple[PositionLayout, Tensor]:
    """Where the tokens of the sparse level stand, one for each cell, and which of them are visual:
    bool [cells].

    A group takes half of the positions that it took, whichever of its tokens are there, so that
    these keep their places in it.
    """
    _, first = cells(layout, visual)
    t, h, w = layout.positions[:, first]
    smaller = torch.stack([t, t + (h - t) // 2, t + (w - t) // 2])
    places = torch.where(visual[first], smaller, layout.positions[:, first])
    return closed_up(places, _halves(layout, visual)), visual[first]


def _halves(layout: PositionLayout, visual: Tensor) -> set[int]:
    """The first half of the positions between text tokens, where groups stand: 4 and 5 of 4 5 6 7,
    4 5 of 4 5 6.
    """
    starts = {int(t) for t in layout.positions[0, visual]}
    text = {int(t) for t in layout.positions[0, ~visual]}
    free: set[int] = set()
    for start, stop in pairwise(sorted(starts | text | {t + 1 for t in text} | {0, layout.extent})):
        free |= set(range(start, start + (stop - start + 1) // 2))
    return free


@dataclass(frozen=True, eq=False)
class ChunkMeta:
    """All that is known of a chunk but its keys and values; see `KVChunk`. Tensors are on the CPU.

    There is one of each chunk, whoever asks: window, host, disk and records refer to it.
    """

    index: int
    start_seconds: float
    stop_seconds: float
    group_starts: tuple[float, ...]
    layout: PositionLayout
    visual: Tensor

    @property
    def num_tokens(self) -> int:
        return self.layout.num_tokens

    @property
    def num_visual_tokens(self) -> int:
        return int(self.visual.sum())

    @property
    def memory_bytes(self) -> int:
        return self.layout.positions.nbytes + self.visual.nbytes + META_BYTES

    def is_after(self, earlier: ChunkMeta) -> bool:
        """Whether this chunk may follow `earlier` in a stream."""
        starts_later = self.start_seconds >= earlier.start_seconds
        return starts_later and self.stop_seconds >= earlier.stop_seconds

    def pooled(self) -> ChunkMeta:
        """That of the chunk's sparse level."""
        layout, visual = pooled_layout(self.layout, self.visual)
        return replace(self, layout=layout, visual=visual)

    def with_kv(self, keys: Tensor, values: Tensor) -> KVChunk:
        """The chunk, from its keys and values."""
        span = self.start_seconds, self.stop_seconds
        return KVChunk(keys, values, self.layout, self.visual, *span, self.index, self.group_starts)


@dataclass(frozen=True, eq=False)
class KVChunk:
    """Keys and values of one chunk, with where and when its tokens stand.

    keys, values: [layers, kv_heads, n, head_dim]; keys are raw (before rotation).
    visual: bool [n], true for tokens that stand for a piece of picture.
    start_seconds, stop_seconds: the stretch of video covered, half-open.
    index: number of the chunk in its stream, from 0; the prompt's prefix is -1.
    group_starts: seconds at which its groups start, in order; where groups are left out, nothing
    new was shown.
    """

    keys: Tensor
    values: Tensor
    layout: PositionLayout
    visual: Tensor
    start_seconds: float
    stop_seconds: float
    index: int
    group_starts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.keys.ndim != 4 or self.keys.shape != self.values.shape:
            raise ValueError(
                f"keys {list(self.keys.shape)} and values {list(self.values.shape)} must be "
                f"one 4-d shape"
            )
        n = self.keys.shape[2]
        if self.layout.num_tokens != n or tuple(self.visual.shape) != (n,):
            raise ValueError(
                f"{n} keys need {n} positions and marks, not {self.layout.num_tokens}, "
                f"{list(self.visual.shape)}"
            )
        if self.stop_seconds < self.start_seconds:
            raise ValueError(
                f"a chunk cannot stop at {self.stop_seconds} s before it starts at "
                f"{self.start_seconds} s"
            )

    @property
    def num_tokens(self) -> int:
        return int(self.keys.shape[2])

    @property
    def memory_bytes(self) -> int:
        """Bytes of keys and values; the layout is a rounding error beside them."""
        return self.keys.nbytes + self.values.nbytes

    def meta(self) -> ChunkMeta:
        """What is known of the chunk besides, with tensors of its own on the CPU."""
        layout = replace(self.layout, positions=_cpu_copy(self.layout.positions))
        span = self.start_seconds, self.stop_seconds
        return ChunkMeta(self.index, *span, self.group_starts, layout, _cpu_copy(self.visual))

    def select(self, mask: Tensor) -> KVChunk:
        """The tokens that `mask` (bool [n]) marks, as they are, moved together so that no position
        is left empty.
        """
        if tuple(mask.shape) != (self.num_tokens,) or mask.dtype != torch.bool:
            raise ValueError(
                f"{self.num_tokens} tokens need a bool mark each, not {mask.dtype} "
                f"{list(mask.shape)}"
            )
        rows = mask.nonzero()[:, 0].cpu()
        there = rows.to(self.keys.device)
        return replace(
            self,
            keys=self.keys.index_select(2, there),
            values=self.values.index_select(2, there),
            layout=closed_up(self.layout.positions[:, rows]),
            visual=self.visual[rows],
        )

    def pooled(self) -> KVChunk:
        """The sparse level: text tokens as they are; of visual tokens, keys and values averaged
        over 2 x 2 cells.

        Cells are those of the group's grid, whichever of their tokens are there, so pruned chunks
        pool right as well. Exact because keys are raw: rotated keys of different places could not
        be averaged (Video-XL-2 pools them).
        """
        owners, _ = cells(self.layout, self.visual)
        layout, visual = pooled_layout(self.layout, self.visual)
        keys = _mean_by(self.keys, owners, layout.num_tokens)
        values = _mean_by(self.values, owners, layout.num_tokens)
        return replace(self, keys=keys, values=values, layout=layout, visual=visual)

    def salient(self) -> KVChunk:
        """The other sparse level: text tokens, and of every group's visual tokens the quarter that
        stands out most, that is whose raw keys are farthest from the mean of their group."""
        # [n, layers * kv_heads * head_dim]
        keys = self.keys.float().permute(2, 0, 1, 3).flatten(1).cpu()
        keep = ~self.visual
        for t in sorted(set(self.layout.positions[0, self.visual].tolist())):
            rows = (self.visual & (self.layout.positions[0] == t)).nonzero()[:, 0]
            far = (keys[rows] - keys[rows].mean(0)).norm(dim=1)
            keep[rows[far.topk(-(-len(rows) // 4)).indices]] = True
        return self.select(keep)

    def to(self, device: torch.device | str) -> KVChunk:
        """This chunk with its keys and values on `device`; itself when they are there already."""
        if self.keys.device == torch.device(device):
            return self
        return replace(self, keys=self.keys.to(device), values=self.values.to(device))

    def __repr__(self) -> str:
        layers, heads, n, dim = self.keys.shape
        span = f"{self.start_seconds:.1f}-{self.stop_seconds:.1f} s"
        return (
            f"KVChunk({self.index}, {span}, {n} tokens, {layers} layers x {heads} heads x "
            f"{dim}, {self.keys.dtype})"
        )


def _cpu_copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU that keeps nothing else alive."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _mean_by(x: Tensor, owners: Tensor, count: int) -> Tensor:
    """[layers, kv_heads, n, head_dim] averaged over the tokens of each owner: [layers, kv_heads,
    count, head_dim].
    """
    owners = owners.to(x.device)
    sums = torch.zeros(*x.shape[:2], count, x.shape[3], device=x.device).index_add_(
        2, owners, x.float()
    )
    return (sums / owners.bincount(minlength=count)[:, None]).to(x.dtype)
