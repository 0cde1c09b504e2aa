"""Which groups go on to the LLM, and which of their visual tokens.

A pruner sees the groups of one stream in order. Before the vision tower runs it says whether a
group shows anything new; of those that do it says which tokens stay. Knows nothing of models,
prompts or memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from torch import Tensor
from torch.nn.functional import normalize

from config import PruneConfig
from keyframes.frame_diff import FrameDiff, join_patches
from keyframes.novelty import Patches, change

COMPARED_GROUPS = 32  # at once with the last one that went on, at most
TEMPORAL_SHARE = 0.5  # of the temporal anchor in STC's score; the rest is the spatial one's
ANCHOR_GROUPS = 4  # that the temporal anchor looks back over, about
GroupDiffs = Sequence[FrameDiff]  # the frames of a group


@dataclass(frozen=True, eq=False)
class TokenSelection:
    """Which tokens of a group stay.

    places: int64 [k] on the CPU, ascending, in the group's grid.
    """

    places: Tensor

    def select(self, features: Tensor) -> Tensor:
        """[k, hidden] of the group's [n, hidden]."""
        return features[self.places.to(features.device)]


class TokenPruner(Protocol):
    """Holds what one stream needs; groups come in order."""

    def select_groups(
        self, groups: Sequence[GroupDiffs], pts_seconds: Sequence[float]
    ) -> list[bool]:
        """Whether each of these groups goes on at all; all have as many frames."""
        ...

    def keep(self, features: Tensor) -> TokenSelection:
        """What stays of a group that goes on: its tokens' features [n, hidden], row-major over the
        grid.
        """
        ...


def make_pruner(config: PruneConfig) -> TokenPruner | None:
    """A pruner for a new stream, None where every token stays."""
    return NoveltyPruner(config) if config.strategy == "novelty" else None


def num_kept_tokens(share: float, num_tokens: int) -> int:
    """How many tokens a share of a group is; one at least."""
    return max(1, round(share * num_tokens))


class DualAnchor:
    """STC's score (arXiv 2512.00891), with anchors of full width and a bounded past: tokens count
    for most that are least like the mean of the last groups (temporal anchor) and like the mean of
    their own (spatial anchor)."""

    def __init__(self) -> None:
        self._past: Tensor | None = None  # [hidden]

    def score(self, features: Tensor) -> Tensor:
        """Of the next group's tokens [n, hidden]: float32 [n]."""
        z = features.float()
        spatial = z.mean(0)
        temporal = spatial if self._past is None else self._past
        self._past = temporal + (spatial - temporal) / ANCHOR_GROUPS
        return TEMPORAL_SHARE * cosine_distance(z, temporal) + (
            1 - TEMPORAL_SHARE
        ) * cosine_distance(z, spatial)


class NoveltyPruner:
    """A group goes on where it shows something else than the last one that did, and of it the
    tokens that stand out most, by STC's score. So each group that goes on can be read alone, and a
    frame with nothing new costs nothing.

    Compared with the last group that went on, so slow drift adds up. Where that one's own frames
    differ, the next is news, so that the last one shows one thing only. A still picture costs one
    group every `refresh_seconds`.
    """

    def __init__(self, config: PruneConfig) -> None:
        self._share = config.budget
        self._anchor = DualAnchor()
        self._below, self._refresh_seconds = config.still_below, config.refresh_seconds
        self._reference: Patches | None = None  # what was last seen of the last group that went on
        self._own = 0.0  # the most change between its frames
        self._seconds = 0.0  # when that was
        self._ahead = 1  # groups to be compared at once

    def select_groups(
        self, groups: Sequence[GroupDiffs], pts_seconds: Sequence[float]
    ) -> list[bool]:
        found: list[bool] = []
        for _, run in groupby(groups, grid_of_group):
            found += self._follow(list(run), pts_seconds[len(found) :])
        return found

    def keep(self, features: Tensor) -> TokenSelection:
        return TokenSelection(best_places(self._anchor.score(features), self._share))

    def _follow(self, groups: Sequence[GroupDiffs], pts_seconds: Sequence[float]) -> list[bool]:
        """The same for groups of one shape of picture. Where nothing is new, more and more are
        compared at once.
        """
        size = len(groups[0])
        patches = join_patches([diff for diffs in groups for diff in diffs])
        own = self._change_inside(patches, size)
        found: list[bool] = []
        while (start := len(found)) < len(groups):
            stop = min(start + self._ahead, len(groups))
            number = start + self._still(
                patches[start * size : stop * size], pts_seconds[start:stop]
            )
            found += [False] * (number - start)
            if number == stop:
                self._ahead = min(2 * self._ahead, COMPARED_GROUPS)
            else:
                found.append(True)
                behind = (number + 1) * size
                self._reference, self._own = patches[behind - 1 : behind], own[number]
                self._seconds, self._ahead = pts_seconds[number], 1
        return found

    @staticmethod
    def _change_inside(patches: Patches, size: int) -> list[float]:
        """The most change from any frame of each group of `size` to its last one."""
        if size == 1:
            return [0.0] * len(patches)
        earlier = [k for k in range(len(patches)) if (k + 1) % size]
        last = [k // size * size + size - 1 for k in earlier]
        moved: list[float] = (
            change(patches[earlier], patches[last])
            .reshape(len(patches) // size, -1)
            .amax(1)
            .tolist()
        )
        return moved

    def _still(self, patches: Patches, pts_seconds: Sequence[float]) -> int:
        """How many of these groups, from the first on, show nothing new."""
        if (
            self._reference is None
            or self._reference.grid != patches.grid
            or self._own > self._below
        ):
            return 0
        changes = change(patches, self._reference).reshape(len(pts_seconds), -1).amax(1).tolist()
        until = self._seconds + self._refresh_seconds
        shown = zip(changes, pts_seconds, strict=True)
        return next(
            (k for k, (new, at) in enumerate(shown) if new > self._below or at >= until),
            len(changes),
        )


def grid_of_group(diffs: GroupDiffs) -> tuple[int, int]:
    """The cells in which a group's change is told."""
    patches = diffs[0].patches
    assert patches is not None, "frames that were not measured in cells"
    return patches.grid


def best_places(scores: Tensor, share: float) -> Tensor:
    """Places of the best share of scores [n], ascending, on the CPU."""
    return scores.topk(num_kept_tokens(share, len(scores))).indices.sort().values.cpu()


def cosine_distance(z: Tensor, anchor: Tensor) -> Tensor:
    """1 - cosine of every token [n, hidden] and an anchor [hidden]: [n]."""
    return 1 - normalize(z, dim=-1) @ normalize(anchor, dim=-1)
