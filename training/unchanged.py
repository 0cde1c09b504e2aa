"""What a pruner would keep of a bank's scenes: the groups that show something new, and their tokens
that stand out. For training on pruned streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.bank import GRIDS, MOST_TOKENS

# mean change of a token's pixels (of 255) from which it is new; two encodings differ by < 3
LEVELS = (4.0, 6.0, 9.0)


@dataclass(frozen=True, eq=False)
class Worth:
    """What is worth keeping of a bank.

    news: bool [levels, groups], which groups show something new. order: uint8 [groups, tokens], the
    places of each group's tokens, those first that stand out most.
    """

    news: NDArray[np.bool_]
    order: NDArray[np.uint8]

    @classmethod
    def of(
        cls, patches: Tensor, embeddings: Tensor, grids: Tensor, first_group: Sequence[int]
    ) -> Worth:
        """patches: uint8 [groups, 64, 384]. embeddings: [groups, tokens, hidden]. first_group:
        where each scene begins; there all is new."""
        return cls(news_of(patches, first_group), order_of(embeddings, grids))


@torch.no_grad()
def news_of(patches: Tensor, first_group: Sequence[int]) -> NDArray[np.bool_]:
    """Marks of groups that differ from the last one kept, or follow one whose own frames differ:
    [levels, groups].
    """
    groups = len(patches)
    place = np.arange(groups) - np.repeat(first_group, np.diff([*first_group, groups]))
    own = np.concatenate([_most_change(part, part, 1, 0) for part in patches.split(4096)])  # type: ignore[no-untyped-call]
    marks = np.ones((len(LEVELS), groups), dtype=bool)
    for number, level in enumerate(LEVELS):
        last_kept = np.arange(groups)  # of each group: the number of the last one kept, up to it
        for step in range(1, int(place.max(initial=0)) + 1):
            here = np.flatnonzero(place == step)
            reference = last_kept[here - 1]
            change = np.maximum(_change_between(patches, here, reference), own[reference])
            marks[number, here] = change >= level
            last_kept[here] = np.where(marks[number, here], here, reference)
    return marks


def _change_between(
    patches: Tensor, here: NDArray[np.intp], there: NDArray[np.intp]
) -> NDArray[np.float32]:
    """The most that either frame of some groups differs from the second frame of others, group by
    group.
    """
    parts = []
    for k in range(0, len(here), 4096):
        mine, reference = patches[here[k : k + 4096]], patches[there[k : k + 4096]]
        parts.append(
            np.maximum(_most_change(mine, reference, 0, 1), _most_change(mine, reference, 1, 1))
        )
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def _most_change(
    patches: Tensor, others: Tensor, frame: int, other_frame: int
) -> NDArray[np.float32]:
    """The most that any token of a frame differs from that of another picture, mean over its
    pixels: [n].
    """
    mine, theirs = (part.view(len(part), MOST_TOKENS, -1, 3, 2, 64) for part in (patches, others))
    change = (mine[:, :, :, :, frame].float() - theirs[:, :, :, :, other_frame].float()).abs()
    return np.asarray(change.mean((2, 3, 4)).amax(1).cpu().numpy())


@torch.no_grad()
def order_of(embeddings: Tensor, grids: Tensor) -> NDArray[np.uint8]:
    """The places of each group's tokens, those first that are least like their frame's mean:
    [groups, tokens].
    """
    sizes = torch.tensor([rows * columns for rows, columns in GRIDS], device=embeddings.device)[
        grids
    ]
    beyond = torch.arange(MOST_TOKENS, device=embeddings.device) >= sizes[:, None]
    vectors = torch.nn.functional.normalize(embeddings.float(), dim=-1)
    frame = torch.nn.functional.normalize((vectors * ~beyond[..., None]).sum(1), dim=-1)
    alike = torch.einsum("gtd,gd->gt", vectors, frame).masked_fill(beyond, 2.0)
    return np.asarray(alike.argsort(1).to(torch.uint8).cpu().numpy())
