"""What a pruner would keep of a bank's scenes: the groups that show something new, and their tokens that stand out. For
training on pruned streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from keyframes.pruner import DualAnchor
from training.bank import CELL, GRID

LEVELS = (4.0, 6.0, 9.0)  # mean change of a token's pixels (of 255) from which it is new; two encodings differ by < 3


@dataclass(frozen=True, eq=False)
class Worth:
    """What is worth keeping of a bank.

    news: bool [levels, groups], which groups show something new. order: uint8 [groups, tokens], the places of each
    group's tokens, those first that stand out most.
    """

    news: NDArray[np.bool_]
    order: NDArray[np.uint8]

    @classmethod
    def of(cls, frames: NDArray[np.uint8], embeddings: Tensor, first_group: Sequence[int]) -> Worth:
        """frames: uint8 [groups, 2, side, side, 3]. embeddings: [groups, tokens, hidden]. first_group: where each scene
        begins; there all is new."""
        return cls(news_of(frames, first_group), order_of(embeddings, first_group))

    def save(self, path: Path) -> None:
        np.savez(path, news=self.news, order=self.order)

    @classmethod
    def load(cls, path: Path) -> Worth:
        with np.load(path) as stored:
            return cls(stored["news"], stored["order"])


def news_of(frames: NDArray[np.uint8], first_group: Sequence[int]) -> NDArray[np.bool_]:
    """Marks of groups that differ from the last one kept, or follow one whose own frames differ: [levels, groups]."""
    groups = len(frames)
    place = np.arange(groups) - np.repeat(first_group, np.diff([*first_group, groups]))
    own = _most_change(frames[:, 1:], frames[:, 0])
    marks = np.ones((len(LEVELS), groups), dtype=bool)
    for number, level in enumerate(LEVELS):
        last_kept = np.arange(groups)  # of each group: the number of the last one kept, up to it
        for step in range(1, int(place.max(initial=0)) + 1):
            here = np.flatnonzero(place == step)
            reference = last_kept[here - 1]
            change = np.maximum(_most_change(frames[here], frames[reference, 1]), own[reference])
            marks[number, here] = change >= level
            last_kept[here] = np.where(marks[number, here], here, reference)
    return marks


def order_of(embeddings: Tensor, first_group: Sequence[int]) -> NDArray[np.uint8]:
    """The places of each group's tokens by STC's score, best first: [groups, tokens]."""
    order = np.empty(embeddings.shape[:2], dtype=np.uint8)
    borders = [*first_group, len(embeddings)]
    for start, stop in pairwise(borders):
        anchor = DualAnchor()
        for group in range(start, stop):
            order[group] = anchor.score(embeddings[group]).argsort(descending=True).numpy()
    return order


def _most_change(frames: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The most that any token of any frame differs from a picture, mean over its pixels: [n].

    frames: uint8 [n, frames, side, side, 3]; reference: [n, side, side, 3].
    """
    change = np.abs(frames.astype(np.int16) - reference[:, None].astype(np.int16))
    cells = change.reshape(len(frames), frames.shape[1], GRID, CELL, GRID, CELL, 3)
    return np.asarray(cells.mean((3, 5, 6), dtype=np.float32).max((1, 2, 3)))
