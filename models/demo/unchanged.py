"""Which tokens of a bank's scenes show something new: what a pruner would keep, for training on pruned streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.demo.bank import CELL, GRID

LEVELS = (4.0, 6.0, 9.0)  # mean change of a token's pixels (of 255) from which it is new; two encodings differ by < 3


def new_tokens(frames: NDArray[np.uint8], first_group: Sequence[int]) -> NDArray[np.bool_]:
    """Marks of new tokens, bool [levels, groups, tokens]: those in which a frame differs from what was last kept there.

    frames: uint8 [groups, 2, side, side, 3]. first_group: where each scene begins; there all is new.
    """
    groups = len(frames)
    place = np.arange(groups) - np.repeat(first_group, np.diff([*first_group, groups]))
    marks = np.ones((len(LEVELS), groups, GRID * GRID), dtype=bool)
    for number, level in enumerate(LEVELS):
        kept = np.empty_like(frames[:, 0])  # of each group: what was last kept of every token, up to it
        for step in range(int(place.max(initial=0)) + 1):
            here = np.flatnonzero(place == step)
            latest = frames[here, 1]
            if step:
                change = _change(frames[here], kept[here - 1])
                marks[number, here] = change >= level
                latest = np.where(_spread(marks[number, here]), latest, kept[here - 1])
            kept[here] = latest
    return marks


def _change(frames: NDArray[np.uint8], kept: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean absolute change of each token, the larger of both frames: [n, tokens]."""
    change = np.abs(frames.astype(np.int16) - kept[:, None].astype(np.int16))
    cells = change.reshape(len(frames), frames.shape[1], GRID, CELL, GRID, CELL, 3)
    return np.asarray(cells.mean((3, 5, 6), dtype=np.float32).max(1).reshape(len(frames), -1))


def _spread(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Marks of tokens [n, tokens] over their pixels: [n, side, side, 1]."""
    grid = marks.reshape(-1, GRID, GRID)
    return grid.repeat(CELL, axis=1).repeat(CELL, axis=2)[..., None]
