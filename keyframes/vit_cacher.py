"""Which frames the vision tower computes whole, which it refreshes in part, and which cost nothing.

A keyframe is computed whole and becomes the *reference* of what follows, up to the next keyframe. A
later group without anything new is the reference over again; one with few new tokens has just those
recomputed; one with many is computed whole. All groups of a call go through the tower in one batch,
however much is new in each, and so do their
references: it takes no more calls than computing everything.

Knows nothing of how a tower is built (`models/partial_vit.py` does), nor of how novelty is
measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from config import ReuseConfig


@dataclass(frozen=True, eq=False)
class Features:
    """What a vision tower makes of g groups with n tokens each, row-major over the grid of tokens.

    embeddings: [g, n, hidden]. deepstack: one [g, n, hidden] per level (Qwen3-VL); empty elsewhere.
    """

    embeddings: Tensor
    deepstack: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, levels: Iterable[Tensor]) -> Features:
        """Embeddings first."""
        embeddings, *deepstack = levels
        return cls(embeddings, tuple(deepstack))

    def __iter__(self) -> Iterator[Tensor]:
        """The levels, embeddings first."""
        return iter((self.embeddings, *self.deepstack))

    def alone(self, row: int) -> Features:
        """One group by itself."""
        return Features.of(level[row : row + 1].clone() for level in self)


@dataclass(frozen=True, eq=False)
class Reference:
    """One group as the tower computed it whole, layer by layer; T patches of width C in L layers.

    features: of this one group, g = 1.
    pairs: rotated keys, and values [L, T, 2, C].
    """

    features: Features
    pairs: Tensor


class VisionTower(Protocol):
    """A vision tower that can be computed in part. Patches are [g, T, values], those of a token
    next to each other, of a grid (rows, columns) of patches."""

    frames_per_group: int
    merge_size: int  # patches along a token's side

    def forward_partial(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        chosen: Tensor,
        bases: Sequence[int],
        before: Reference | None,
        keep: Sequence[int],
    ) -> tuple[Features, list[Reference]]:
        """The features of all groups, computing the tokens that are true in `chosen` [g, n], one at
        least.

        bases: of each group the one of these, computed whole, whose other tokens it has; PREVIOUS
        for those of `before`. keep: groups computed whole of which references are wanted.
        """
        ...


class Work(StrEnum):
    """What is done for one group."""

    WHOLE = "whole"
    REFRESHED = "refreshed"
    STILL = "still"


PREVIOUS = -1  # stands for the reference from before these groups


@dataclass(frozen=True, eq=False)
class Step:
    """The work for one group.

    base: number of the group that is the reference from here on, this one included; PREVIOUS, or
    None for none.
    novelty: per token [n], against that reference; in the reference itself, the change between its
    frames.
    """

    work: Work
    base: int | None
    novelty: Tensor


@dataclass(frozen=True, eq=False)
class Encoded:
    """The features of a call's groups and what was done for each."""

    features: Features
    work: tuple[Work, ...]


def token_novelty(novelty: Tensor, merge_size: int) -> Tensor:
    """Novelty per patch [frames, T], those of a token next to each other, as the highest in each
    token [frames, n].
    """
    return novelty.reshape(len(novelty), -1, merge_size**2).amax(2)


def plan(
    novelty: Tensor,
    keyframes: Sequence[bool],
    own: Tensor | None,
    config: ReuseConfig,
    anew: Sequence[bool] = (),
) -> list[Step]:
    """The work for each group.

    novelty: [g, frames, n] per token against the last keyframe, whose own row is not read.
    keyframes: of g * frames frames.
    own: change between the frames of the reference from before, [n]; None where there is none.
    anew: of the groups, those for which no earlier one is a reference; none without.

    A group builds on a whole *group*, whose frames may differ among themselves, so that change
    counts as novelty too. A keyframe that is not the first of its group makes a mixed group, on
    which nothing builds: the next one becomes the reference.
    """
    size = novelty.shape[1]
    newest = [
        max((k for k in range(size) if keyframes[start + k]), default=None)
        for start in range(0, len(keyframes), size)
    ]
    anew = anew or [False] * len(novelty)
    steps: list[Step] = []
    base = None if own is None else PREVIOUS
    while (number := len(steps)) < len(novelty):
        key = newest[number]
        if anew[number]:
            own = None
        if own is None or key is not None:
            change = novelty_after_keyframe(novelty[number], key)
            base, own = (None, None) if key else (number, change)
            steps.append(Step(Work.WHOLE, base, change))
            continue
        stop = number
        while stop < len(novelty) and newest[stop] is None and not anew[stop]:
            stop += 1
        changes = torch.maximum(novelty[number:stop].amax(1), own)
        counts = (changes > config.still_below).sum(1).tolist()
        most = num_tokens_in_share(len(own), config.refresh_share)
        steps += [
            Step(choose_work(count, most), base, change)
            for count, change in zip(counts, changes, strict=True)
        ]
    return steps


def novelty_after_keyframe(novelty: Tensor, key: int | None) -> Tensor:
    """The greatest novelty [n] of the frames [size, n] behind a keyframe, or of all."""
    later = novelty if key is None else novelty[key + 1 :]
    return later.amax(0) if len(later) else torch.zeros_like(novelty[0])


def choose_work(changed: int, most: int) -> Work:
    """What a group with so many changed tokens takes: as little as computes them all; `most` of
    them one by one.
    """
    if changed == 0:
        return Work.STILL
    return Work.REFRESHED if changed <= most else Work.WHOLE


def num_tokens_in_share(num_tokens: int, share: float) -> int:
    """How many tokens a share of a group is; one at least."""
    return max(1, math.floor(share * num_tokens))


class VitCacher:
    """The tower's work of one stream: holds the reference, and nothing else."""

    def __init__(self, tower: VisionTower, config: ReuseConfig) -> None:
        self._tower, self._config = tower, config
        self._reference: Reference | None = None
        self._own: Tensor | None = None  # change inside the reference's group, per token
        self._grid = (0, 0)

    @torch.no_grad()
    def encode(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        novelty: Tensor,
        keyframes: Sequence[bool],
        anew: Sequence[bool] = (),
    ) -> Encoded:
        """The features of consecutive groups of one stream.

        patches: [g, T, values]. grid: (rows, columns) of the T. novelty: [frames, T], in [0, 1],
        against the last keyframe. keyframes: of as many frames. anew: as for `plan`.

        Raises ValueError where these do not fit together.
        """
        groups, size = len(patches), self._tower.frames_per_group
        if (len(keyframes), novelty.shape) != (groups * size, (groups * size, patches.shape[1])):
            shapes = f"{list(patches.shape)} patches, {list(novelty.shape)} novelty"
            raise ValueError(f"{shapes} and {len(keyframes)} keyframe marks do not fit together")
        if grid != self._grid:
            self._reference, self._own, self._grid = None, None, grid
        per_frame = token_novelty(novelty, self._tower.merge_size).reshape(groups, size, -1)
        steps = plan(per_frame, keyframes, self._own, self._config, anew)
        features, references = self._compute(patches, steps)
        if (last := steps[-1].base) != PREVIOUS:
            self._reference = None if last is None else references[last]
            self._own = None if last is None else steps[last].novelty
        return Encoded(features, tuple(step.work for step in steps))

    def _compute(
        self, patches: Tensor, steps: Sequence[Step]
    ) -> tuple[Features, dict[int, Reference]]:
        """What is new and what builds on nothing, in one batch; and the reference that lasts, if it
        is of these.
        """
        if self._reference is not None and all(step.work is Work.STILL for step in steps):
            return Features.of(
                level.expand(len(steps), -1, -1) for level in self._reference.features
            ), {}
        whole = torch.tensor([step.work is Work.WHOLE for step in steps], device=patches.device)
        chosen = (torch.stack([step.novelty for step in steps]) > self._config.still_below) | whole[
            :, None
        ]
        bases = [row if step.base is None else step.base for row, step in enumerate(steps)]
        keep = [last] if (last := steps[-1].base) is not None and last != PREVIOUS else []
        features, made = self._tower.forward_partial(
            patches, self._grid, chosen, bases, self._reference, keep
        )
        return features, dict(zip(keep, made, strict=True))
