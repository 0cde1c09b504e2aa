"""Which visual tokens of a group go on to the LLM: one interface, several strategies.

A pruner sees the groups of one stream in order, and says of each which of its tokens stay; that may be none where the
strategy carries over from group to group. Knows nothing of models, prompts or memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from config import PruneConfig
from keyframes.novelty import novelty, small
from keyframes.vit_cacher import token_novelty

PATCHES = 2  # along a token's side, in which change is looked for
TEMPORAL_SHARE = 0.5  # of the temporal anchor in STC's score; the rest is the spatial one's
ANCHOR_GROUPS = 4  # that the temporal anchor looks back over, about
FIXED_BUDGET = 0.25  # share of a group's tokens that strategies of a fixed size keep, unless told otherwise


@dataclass(frozen=True, eq=False)
class Seen:
    """One group as a pruner sees it.

    features: [n, hidden], row-major over the grid. grid: (rows, columns) of tokens, n in all.
    images: its frames, uint8 [H, W, 3]. pts_seconds: its time.
    """

    features: Tensor
    grid: tuple[int, int]
    images: Sequence[NDArray[np.uint8]]
    pts_seconds: float


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays of a group: tensors on the CPU.

    places: int64 [k], ascending, in the group's grid.
    owners: int64 [n], for each token of the group the kept one (0 to k) that stands for it, being the mean of all its
        tokens; None where the others are just dropped.
    """

    places: Tensor
    owners: Tensor | None = None


class TokenPruner(Protocol):
    """Holds what one stream needs; groups come in order."""

    def keep(self, group: Seen) -> Kept: ...


def make_pruner(config: PruneConfig) -> TokenPruner | None:
    """A pruner for a new stream, None where every token stays."""
    if config.strategy == "none":
        return None
    if config.strategy == "novelty":
        return NoveltyPruner(config)
    share = config.budget or FIXED_BUDGET
    strategies: dict[str, Callable[[float], TokenPruner]] = {
        "stc": DualAnchorPruner,
        "uniform": UniformPruner,
        "merge": MergePruner,
        "coverage": CoveragePruner,
    }
    return strategies[config.strategy](share)


def count_of(share: float, num_tokens: int) -> int:
    """How many tokens a share of a group is; one at least."""
    return max(1, round(share * num_tokens))


class NoveltyPruner:
    """Ours: a token stays where its cell of the picture shows something else than when it was last kept.

    Compared with what was last *kept* of the very cell, so slow drift adds up. What a kept group's own frames show
    differently counts as new for the next one, so that the last token of a cell shows one thing only. What the budget
    leaves out stays new, and comes with the next group. A still picture costs one whole group every `refresh_seconds`.
    """

    def __init__(self, config: PruneConfig) -> None:
        self._share = config.budget or 1.0
        self._below, self._refresh_seconds = config.still_below, config.refresh_seconds
        self._grid: tuple[int, int] | None = None
        self._reference = torch.empty(0)  # small picture: in every cell what was last kept of it
        self._own = torch.empty(0)  # [n], change between the frames of the group in which a cell was last kept
        self._kept_seconds = torch.empty(0)  # [n], when that was

    def keep(self, group: Seen) -> Kept:
        rows, columns = group.grid
        pictures = small(group.images, (PATCHES * rows, PATCHES * columns), group.features.device)
        if group.grid != self._grid:
            self._begin(group.grid, pictures[-1])
        new = torch.maximum(per_token(novelty(pictures, self._reference)), self._own)
        new[group.pts_seconds - self._kept_seconds >= self._refresh_seconds] = 1.0
        chosen = new.topk(count_of(self._share, len(new))).indices
        stays = torch.zeros_like(new, dtype=torch.bool)
        stays[chosen] = new[chosen] > self._below
        self._remember(stays, pictures, group.pts_seconds)
        return Kept(stays.nonzero()[:, 0].cpu())

    def _begin(self, grid: tuple[int, int], picture: Tensor) -> None:
        self._grid, self._reference = grid, picture
        self._own = torch.zeros(grid[0] * grid[1], device=picture.device)
        self._kept_seconds = torch.full_like(self._own, -torch.inf, dtype=torch.float64)

    def _remember(self, stays: Tensor, pictures: Tensor, pts_seconds: float) -> None:
        side = self._reference.shape[-1] // self._cells(stays).shape[-1]
        where = self._cells(stays).repeat_interleave(side, 0).repeat_interleave(side, 1)
        self._reference = torch.where(where, pictures[-1], self._reference)
        own = per_token(novelty(pictures[:-1], pictures[-1])) if len(pictures) > 1 else torch.zeros_like(self._own)
        self._own = torch.where(stays, own, self._own)
        self._kept_seconds[stays] = pts_seconds

    def _cells(self, per_cell: Tensor) -> Tensor:
        assert self._grid is not None
        return per_cell.reshape(self._grid)


def per_token(change: Tensor) -> Tensor:
    """The most novelty in each token of a group: [frames, rows, columns] per patch -> [n]."""
    return token_novelty(change, 1, PATCHES).amax(0)


class DualAnchorPruner:
    """STC's pruner (arXiv 2512.00891), with anchors of full width and a bounded past: the tokens stay that are least
    like the mean of the last groups (temporal anchor) and like the mean of their own (spatial anchor)."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._anchor: Tensor | None = None  # [hidden]

    def keep(self, group: Seen) -> Kept:
        z = group.features.float()
        spatial = z.mean(0)
        temporal = spatial if self._anchor is None else self._anchor
        self._anchor = temporal + (spatial - temporal) / ANCHOR_GROUPS
        score = TEMPORAL_SHARE * unlike(z, temporal) + (1 - TEMPORAL_SHARE) * unlike(z, spatial)
        return Kept(score.topk(count_of(self._share, len(z))).indices.sort().values.cpu())


def unlike(z: Tensor, anchor: Tensor) -> Tensor:
    """1 - cosine of every token [n, hidden] and an anchor [hidden]: [n]."""
    return 1 - normalize(z, dim=-1) @ normalize(anchor, dim=-1)


class UniformPruner:
    """Tokens evenly spread over the grid, row-major; the next group's lie one further, so that each cell has a turn."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._turn = 0

    def keep(self, group: Seen) -> Kept:
        n = len(group.features)
        count = count_of(self._share, n)
        places = (torch.arange(count) * n // count + self._turn) % n
        self._turn += 1
        return Kept(places.sort().values)


class MergePruner:
    """Token merging (ToMe, arXiv 2210.09461): the most alike tokens of a group become their mean, at one's place.

    In every round the tokens are two halves by turns, each of the first half looks for its likest in the second, and
    the likest pairs merge: at most half of them, so that none has to go where it does not belong.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def keep(self, group: Seen) -> Kept:
        z = group.features.float()
        count = count_of(self._share, len(z))
        stands_for = torch.arange(len(z), device=z.device)  # place of the token that each token has become
        while len(places := torch.unique(stands_for)) > count:
            means = means_of(z, torch.searchsorted(places, stands_for), len(places))
            into = _merged(means, places, len(places) - count)
            stands_for = into[torch.searchsorted(places, stands_for)]
        return Kept(places.cpu(), torch.searchsorted(places, stands_for).cpu())


def _merged(z: Tensor, places: Tensor, surplus: int) -> Tensor:
    """Where each of the tokens [m, hidden] at `places` goes in one round that makes them up to `surplus` fewer."""
    unit = normalize(z, dim=-1)
    alike, partner = (unit[::2] @ unit[1::2].T).max(1)
    going = alike.topk(min(surplus, -(-len(alike) // 2))).indices
    into = places.clone()
    into[2 * going] = places[1::2][partner[going]]
    return into


def means_of(z: Tensor, owners: Tensor, count: int) -> Tensor:
    """[n, hidden] averaged over the tokens of each owner: [count, hidden], in float32."""
    sums = torch.zeros(count, z.shape[1], device=z.device).index_add_(0, owners, z.float())
    return sums / owners.bincount(minlength=count)[:, None]


class CoveragePruner:
    """Diversity (as ToDRE and MMTok look for): one after the other, the token that is least like all those kept so far;
    first the one least like its group's mean."""

    def __init__(self, share: float) -> None:
        self._share = share

    def keep(self, group: Seen) -> Kept:
        unit = normalize(group.features.float(), dim=-1)
        apart = unlike(unit, unit.mean(0))
        chosen = [apart.argmax()]
        nearest = unlike(unit, unit[chosen[0]])
        for _ in range(count_of(self._share, len(unit)) - 1):
            nearest[chosen[-1]] = -torch.inf
            chosen.append(nearest.argmax())
            nearest = torch.minimum(nearest, unlike(unit, unit[chosen[-1]]))
        return Kept(torch.stack(chosen).sort().values.cpu())
