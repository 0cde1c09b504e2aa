"""Pruners that keep a fixed share of every group: what novelty pruning is measured against.

They see the features of consecutive groups of one stream. `PrunedByRival` puts one between a model
and a session, which then prunes nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from frames import Frame
from keyframes.frame_group import FrameGroup
from keyframes.pruner import (
    DualAnchor,
    TokenSelection,
    best_places,
    cosine_distance,
    num_kept_tokens,
)
from keyframes.reuse import FeatureReuse
from models.video_llm import VideoLLM, VisualGroup, cut_groups


class RivalPruner(Protocol):
    """Holds what one stream needs; groups come in order."""

    def keep(self, features: Tensor) -> TokenSelection:
        """What stays of a group: its tokens' features [n, hidden], row-major over the grid."""
        ...


class PrunedByRival:
    """A model for one session, whose groups have lost the tokens that a rival drops."""

    def __init__(self, model: VideoLLM, pruner: RivalPruner) -> None:
        self._model, self._pruner = model, pruner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, frames: Sequence[Frame]) -> list[VisualGroup]:
        return self.encode_groups(cut_groups(frames, self._model))

    def encode_groups(
        self, groups: Sequence[FrameGroup], reuse: FeatureReuse | None = None
    ) -> list[VisualGroup]:
        encoded = self._model.encode_groups(groups, reuse)
        return [group.pruned(self._pruner.keep(group.embeddings)) for group in encoded]


class DualAnchorPruner:
    """STC's pruner (arXiv 2512.00891): a fixed share of each group, what scores best by its
    anchors.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._anchor = DualAnchor()

    def keep(self, features: Tensor) -> TokenSelection:
        return TokenSelection(best_places(self._anchor.score(features), self._share))


class UniformPruner:
    """Tokens evenly spread over the grid, row-major; the next group's lie one further, so that each
    cell has a turn.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._turn = 0

    def keep(self, features: Tensor) -> TokenSelection:
        n = len(features)
        count = num_kept_tokens(self._share, n)
        places = (torch.arange(count) * n // count + self._turn) % n
        self._turn += 1
        return TokenSelection(places.sort().values)


@dataclass(frozen=True, eq=False)
class MergedSelection(TokenSelection):
    """Tokens that stand for all of a group. owners: int64 [n] on the CPU, for each token the number
    of the kept one (0 to k) that stands for it, being the mean of all its tokens."""

    owners: Tensor

    def select(self, features: Tensor) -> Tensor:
        owners = self.owners.to(features.device)
        return owner_means(features, owners, len(self.places)).to(features.dtype)


class MergePruner:
    """Token merging (ToMe, arXiv 2210.09461): the most alike tokens of a group become their mean,
    at one's place.

    In every round the tokens are two halves by turns, each of the first half looks for its likest
    in the second, and the likest pairs merge: at most half of them, so that none has to go where it
    does not belong.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def keep(self, features: Tensor) -> TokenSelection:
        z = features.float()
        count = num_kept_tokens(self._share, len(z))
        # place of the token that each token has become
        stands_for = torch.arange(len(z), device=z.device)
        while len(places := torch.unique(stands_for)) > count:
            means = owner_means(z, torch.searchsorted(places, stands_for), len(places))
            into = _merged(means, places, len(places) - count)
            stands_for = into[torch.searchsorted(places, stands_for)]
        return MergedSelection(places.cpu(), torch.searchsorted(places, stands_for).cpu())


def _merged(z: Tensor, places: Tensor, surplus: int) -> Tensor:
    """Where each of the tokens [m, hidden] at `places` goes in one round that makes them up to
    `surplus` fewer.
    """
    unit = normalize(z, dim=-1)
    alike, partner = (unit[::2] @ unit[1::2].T).max(1)
    going = alike.topk(min(surplus, -(-len(alike) // 2))).indices
    into = places.clone()
    into[2 * going] = places[1::2][partner[going]]
    return into


def owner_means(z: Tensor, owners: Tensor, count: int) -> Tensor:
    """[n, hidden] averaged over the tokens of each owner: [count, hidden], in float32."""
    sums = torch.zeros(count, z.shape[1], device=z.device).index_add_(0, owners, z.float())
    return sums / owners.bincount(minlength=count)[:, None]


class CoveragePruner:
    """Diversity (as ToDRE and MMTok look for): one after the other, the token that is least like
    all those kept so far; first the one least like its group's mean."""

    def __init__(self, share: float) -> None:
        self._share = share

    def keep(self, features: Tensor) -> TokenSelection:
        unit = normalize(features.float(), dim=-1)
        apart = cosine_distance(unit, unit.mean(0))
        chosen = [apart.argmax()]
        nearest = cosine_distance(unit, unit[chosen[0]])
        for _ in range(num_kept_tokens(self._share, len(unit)) - 1):
            nearest[chosen[-1]] = -torch.inf
            chosen.append(nearest.argmax())
            nearest = torch.minimum(nearest, cosine_distance(unit, unit[chosen[-1]]))
        return TokenSelection(torch.stack(chosen).sort().values.cpu())


RIVALS: dict[str, Callable[[float], RivalPruner]] = {
    "stc": DualAnchorPruner,
    "uniform": UniformPruner,
    "merge": MergePruner,
    "coverage": CoveragePruner,
}
