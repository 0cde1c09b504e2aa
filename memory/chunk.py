"""The unit of memory: the keys and values of consecutive groups, prefilled together.

Keys are stored un-rotated, so a chunk can stand at any position of any context. Where its tokens stand relative to
each other is data (`PositionLayout`), never inferred from a length. Knows nothing of models, tiers or questions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


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
            raise ValueError(f"position {int(self.positions.max())} lies outside the extent {self.extent}")

    @property
    def num_tokens(self) -> int:
        return int(self.positions.shape[1])


@dataclass(frozen=True, eq=False)
class KVChunk:
    """Keys and values of one chunk, with where and when its tokens stand.

    keys, values: [layers, kv_heads, n, head_dim]; keys are raw (before rotation).
    visual: bool [n], true for tokens that stand for a piece of picture.
    start_seconds, stop_seconds: the stretch of video covered, half-open.
    index: number of the chunk in its stream, from 0; the prompt's prefix is -1.
    """

    keys: Tensor
    values: Tensor
    layout: PositionLayout
    visual: Tensor
    start_seconds: float
    stop_seconds: float
    index: int

    def __post_init__(self) -> None:
        if self.keys.ndim != 4 or self.keys.shape != self.values.shape:
            raise ValueError(f"keys {list(self.keys.shape)} and values {list(self.values.shape)} must be one 4-d shape")
        n = self.keys.shape[2]
        if self.layout.num_tokens != n or tuple(self.visual.shape) != (n,):
            raise ValueError(
                f"{n} keys need {n} positions and marks, not {self.layout.num_tokens}, {list(self.visual.shape)}"
            )
        if self.stop_seconds < self.start_seconds:
            raise ValueError(f"a chunk cannot stop at {self.stop_seconds} s before it starts at {self.start_seconds} s")

    @property
    def num_tokens(self) -> int:
        return int(self.keys.shape[2])

    @property
    def memory_bytes(self) -> int:
        """Bytes of keys and values; the layout is a rounding error beside them."""
        return self.keys.nbytes + self.values.nbytes

    def to(self, device: torch.device | str) -> KVChunk:
        """This chunk with its keys and values on `device`; itself when they are there already."""
        if self.keys.device == torch.device(device):
            return self
        return replace(self, keys=self.keys.to(device), values=self.values.to(device))

    def __repr__(self) -> str:
        layers, heads, n, dim = self.keys.shape
        span = f"{self.start_seconds:.1f}-{self.stop_seconds:.1f} s"
        return f"KVChunk({self.index}, {span}, {n} tokens, {layers} layers x {heads} heads x {dim}, {self.keys.dtype})"
