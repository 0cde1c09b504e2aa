"""Which earlier chunks hold what a chunk still shows: where nothing changes, nothing is remembered twice.

With the novelty pruner a cell of the picture that shows what it showed before has no token. What is seen there is in
the chunk that kept the cell last. Knows nothing of pruners, questions or tiers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memory.chunk import PositionLayout

WIDEST = 1 << 16  # columns of a grid, at most
Places = tuple[PositionLayout, Tensor]  # where a chunk's tokens stand, and which of them are visual


def holders(
    index: int, spans: Sequence[tuple[float, float]], places: Callable[[int], Places], seconds: float
) -> list[int]:
    """The chunks that hold what chunk `index` shows in its first group and does not hold itself, those that hold most
    first; the newest in a tie.

    spans: of all chunks. seconds: how far back a kept cell may be.
    """
    known = _of_first_group(*places(index))
    since_seconds = spans[index][0] - seconds
    found: dict[int, int] = {}
    for earlier in range(index - 1, -1, -1):
        if spans[earlier][1] <= since_seconds:
            break
        there = _grid_cells(*places(earlier))
        new = there[~torch.isin(there, known)]
        if len(new):
            found[earlier] = len(new)
            known = torch.cat([known, new])
    return sorted(found, key=lambda earlier: (-found[earlier], -earlier))


def _grid_cells(layout: PositionLayout, visual: Tensor) -> Tensor:
    """The cells that any group of a chunk has tokens of, each once: int64 [cells]."""
    t, h, w = layout.positions[:, visual]
    found: Tensor = torch.unique((h - t) * WIDEST + w - t)
    return found


def _of_first_group(layout: PositionLayout, visual: Tensor) -> Tensor:
    """The same of its first group, which stands where text first leaves a place free."""
    text = layout.positions[0, ~visual]
    start = int((text == torch.arange(len(text))).long().cumprod(0).sum())
    return _grid_cells(layout, visual & (layout.positions[0] == start))
