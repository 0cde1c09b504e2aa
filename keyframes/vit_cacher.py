"""Which frames the vision tower computes whole, which it refreshes in part, and which cost nothing.

A keyframe is computed whole and becomes the *reference* of what follows, up to the next keyframe. A later group
without anything new is the reference over again; one with few new tokens has just those recomputed; one with many is
computed whole. All groups refreshed from one reference go through the tower in one batch, however much is new in each,
and so do all that are computed whole. A batch of its own has a price, which is high beside the work of a small tower:
it is paid where what is not computed is worth more.

Knows nothing of how a tower is built (`models/towers.py` does), nor of how novelty is measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
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

    def alone(self, row: int) -> Features:
        """One group by itself."""
        return Features(
            self.embeddings[row : row + 1].clone(), tuple(level[row : row + 1].clone() for level in self.deepstack)
        )


@dataclass(frozen=True, eq=False)
class Reference:
    """One group as the tower computed it whole, layer by layer; T patches of width C in L layers.

    features: of this one group, g = 1.
    added, rotation: what tells the tower where a patch is: added to its embedding [T, C]; cosines and sines of queries
        and keys [2, T, head_dim], None for a tower without rotary embeddings.
    keys, values: [L, T, C]; keys are rotated.
    attended, transformed: [L, T, C], what attention and MLP added; None unless "keys" is the strategy.
    """

    features: Features
    added: Tensor
    rotation: Tensor | None
    keys: Tensor
    values: Tensor
    attended: Tensor | None = None
    transformed: Tensor | None = None


class VisionTower(Protocol):
    """A vision tower that can be computed in part. Patches are [g, T, values], those of a token next to each other."""

    frames_per_group: int
    merge_size: int  # patches along a token's side
    batch_price: float  # what one more batch costs, in patches

    def whole(
        self, patches: Tensor, grid: tuple[int, int], keep: Sequence[int], outputs: bool
    ) -> tuple[Features, list[Reference]]:
        """All patches of all groups, and references of those in `keep`, with or without `outputs` of the layers.

        grid: rows and columns of patches.
        """
        ...

    def refreshed(self, patches: Tensor, reference: Reference, chosen: Tensor) -> Features:
        """Recompute the tokens that are true in `chosen` [g, n], one at least of each group, and take everything else
        from the reference."""
        ...

    def refreshed_by_keys(self, patches: Tensor, reference: Reference, share: float) -> Features:
        """Recompute in each layer the share of patches whose keys moved most from the reference's (STC)."""
        ...


class Work(StrEnum):
    """What is done for one group."""

    WHOLE = "whole"
    REFRESHED = "refreshed"
    STILL = "still"


IN_ADVANCE = 0.25  # of a group's patches: where a batch costs less, a reference is made before it is needed
CARRIED = -1  # stands for the reference from before these groups


@dataclass(frozen=True, eq=False)
class Step:
    """The work for one group.

    base: number of the group that is the reference from here on, this one included; CARRIED, or None for none.
    novelty: per token [n], against that reference; in the reference itself, the change between its frames.
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
    """Novelty per patch [frames, T], those of a token next to each other, as the highest in each token [frames, n]."""
    return novelty.reshape(len(novelty), -1, merge_size**2).amax(2)


def plan(novelty: Tensor, keyframes: Sequence[bool], own: Tensor | None, config: ReuseConfig) -> list[Step]:
    """The work for each group.

    novelty: [g, frames, n] per token against the last keyframe, whose own row is not read.
    keyframes: of g * frames frames.
    own: change between the frames of the reference from before, [n]; None where there is none.

    A group builds on a whole *group*, whose frames may differ among themselves, so that change counts as novelty too.
    A keyframe that is not the first of its group makes a mixed group, on which nothing builds: the next one becomes
    the reference.
    """
    size = novelty.shape[1]
    newest = [
        max((k for k in range(size) if keyframes[start + k]), default=None) for start in range(0, len(keyframes), size)
    ]
    steps: list[Step] = []
    base = None if own is None else CARRIED
    while (number := len(steps)) < len(novelty):
        key = newest[number]
        if own is None or key is not None:
            change = behind(novelty[number], key)
            base, own = (None, None) if key else (number, change)
            steps.append(Step(Work.WHOLE, base, change))
            continue
        stop = next((k for k in range(number, len(novelty)) if newest[k] is not None), len(novelty))
        changes = torch.maximum(novelty[number:stop].amax(1), own)
        counts = (changes > config.still_below).sum(1).tolist()
        most = share_of(len(own), config.refresh_share)
        steps += [Step(choose(count, most), base, change) for count, change in zip(counts, changes, strict=True)]
    return steps


def behind(novelty: Tensor, key: int | None) -> Tensor:
    """The greatest novelty [n] of the frames [size, n] behind a keyframe, or of all."""
    later = novelty if key is None else novelty[key + 1 :]
    return later.amax(0) if len(later) else torch.zeros_like(novelty[0])


def choose(changed: int, most: int) -> Work:
    """What a group with so many changed tokens takes: as little as computes them all; `most` of them one by one."""
    if changed == 0:
        return Work.STILL
    return Work.REFRESHED if changed <= most else Work.WHOLE


def share_of(num_tokens: int, share: float) -> int:
    """How many tokens a share of a group is; one at least."""
    return max(1, math.floor(share * num_tokens))


@dataclass(eq=False)
class Base:
    """A group computed whole, which later ones build on.

    patches: [1, T, values]. reference: what refreshing reads, made once that pays.
    forgone: patches that refreshing would have saved so far.
    """

    patches: Tensor
    features: Features
    reference: Reference | None
    forgone: float = 0.0


class VitCacher:
    """The tower's work of one stream: holds what is built on, and nothing else."""

    def __init__(self, tower: VisionTower, config: ReuseConfig) -> None:
        self._tower, self._config = tower, config
        self._base: Base | None = None
        self._own: Tensor | None = None  # change inside the base's group, per token
        self._grid = (0, 0)

    @torch.no_grad()
    def encode(self, patches: Tensor, grid: tuple[int, int], novelty: Tensor, keyframes: Sequence[bool]) -> Encoded:
        """The features of consecutive groups of one stream.

        patches: [g, T, values]. grid: (rows, columns) of the T. novelty: [frames, T], in [0, 1], against the last
        keyframe. keyframes: of as many frames.

        Raises ValueError where these do not fit together.
        """
        groups, size = len(patches), self._tower.frames_per_group
        if (len(keyframes), novelty.shape) != (groups * size, (groups * size, patches.shape[1])):
            shapes = f"{list(patches.shape)} patches, {list(novelty.shape)} novelty"
            raise ValueError(f"{shapes} and {len(keyframes)} keyframe marks do not fit together")
        if grid != self._grid:
            self._base, self._own, self._grid = None, None, grid
        per_frame = token_novelty(novelty, self._tower.merge_size).reshape(groups, size, -1)
        steps, forgone = self._paying(plan(per_frame, keyframes, self._own, self._config))
        return Encoded(self._run(patches, steps, forgone), tuple(step.work for step in steps))

    def _paying(self, steps: Sequence[Step]) -> tuple[list[Step], dict[int, float]]:
        """The steps, with groups computed whole where refreshing them does not pay; and what each base forgoes so.

        A reference is made as soon as refreshing from it would have saved what making it costs.
        """
        paying, forgone = [*steps], dict[int, float]()
        for base, rows in built(steps, Work.REFRESHED).items():
            carried = self._base if base == CARRIED else None
            saved = self._spared([steps[row] for row in rows]) - self._tower.batch_price
            before = carried.forgone if carried else 0.0
            if saved < 0 or before + saved < self._price(carried):
                forgone[base] = before + max(0.0, saved)
                for row in rows:
                    paying[row] = replace(steps[row], work=Work.WHOLE)
        return paying, forgone

    def _spared(self, steps: Sequence[Step]) -> int:
        """Patches that refreshing these groups leaves as they are."""
        still = torch.stack([step.novelty for step in steps]) <= self._config.still_below
        return int(still.sum()) * self._tower.merge_size**2

    def _price(self, carried: Base | None) -> float:
        """Of making a reference, in patches: a batch, and of a group from before, which is carried, its own as well."""
        if carried is None:
            return self._tower.batch_price
        return 0.0 if carried.reference else self._tower.batch_price + carried.patches.shape[1]

    def _run(self, patches: Tensor, steps: Sequence[Step], forgone: Mapping[int, float]) -> Features:
        """The batches: one of all whole groups, one of the groups refreshed from each base."""
        last = steps[-1].base
        refreshed, still = built(steps, Work.REFRESHED), built(steps, Work.STILL)
        bases, parts = dict[int, Base](), []
        if self._base is not None:
            bases[CARRIED] = self._base
        if whole := [row for row, step in enumerate(steps) if step.work is Work.WHOLE]:
            in_advance = self._tower.batch_price < IN_ADVANCE * patches.shape[1]
            walked = {*refreshed, last} if in_advance else {*refreshed}
            features, made = self._whole(patches, whole, {*refreshed, *still, last}, walked)
            parts.append((whole, features))
            bases |= made
        for base, patches_forgone in forgone.items():
            if base in bases:
                bases[base].forgone = patches_forgone
        parts += [(rows, bases[base].features) for base, rows in still.items()]
        for base, rows in refreshed.items():
            news = torch.stack([steps[row].novelty for row in rows])
            parts.append((rows, self._refreshed(patches[rows], self._reference(bases[base]), news)))
        if last != CARRIED:
            self._base = None if last is None else bases[last]
            self._own = None if last is None else steps[last].novelty
        return assemble(len(steps), parts)

    def _whole(
        self, patches: Tensor, rows: Sequence[int], built_on: Set[int | None], walked: Set[int | None]
    ) -> tuple[Features, dict[int, Base]]:
        """One batch of these groups; those that are built on, with a reference of those that are walked."""
        keep = [at for at, row in enumerate(rows) if row in walked]
        features, made = self._tower.whole(some(patches, rows), self._grid, keep, self._keeps_outputs)
        references = dict(zip(keep, made, strict=True))
        bases = {
            row: Base(patches[row : row + 1].clone(), features.alone(at), references.get(at))
            for at, row in enumerate(rows)
            if row in built_on
        }
        return features, bases

    @property
    def _keeps_outputs(self) -> bool:
        return self._config.strategy == "keys"

    def _reference(self, base: Base) -> Reference:
        if base.reference is None:
            base.reference = self._tower.whole(base.patches, self._grid, [0], self._keeps_outputs)[1][0]
        return base.reference

    def _refreshed(self, patches: Tensor, reference: Reference, novelty: Tensor) -> Features:
        chosen = novelty > self._config.still_below
        if self._config.strategy == "keys":
            return self._tower.refreshed_by_keys(patches, reference, float(chosen.float().mean(1).max()))
        return self._tower.refreshed(patches, reference, chosen)


def built(steps: Sequence[Step], work: Work) -> dict[int, list[int]]:
    """The groups that take this work, by what they build on."""
    found = defaultdict[int, list[int]](list)
    for row, step in enumerate(steps):
        if step.work is work and step.base is not None:
            found[step.base].append(row)
    return found


def some(patches: Tensor, rows: Sequence[int]) -> Tensor:
    """These groups of some, in ascending order; without a copy where that is all of them."""
    return patches if len(rows) == len(patches) else patches[[*rows]]


def assemble(num_groups: int, parts: Sequence[tuple[list[int], Features]]) -> Features:
    """One run of groups from parts of it, each with its places; a part of one group may stand in many."""
    places, model = parts[0]
    if places == [*range(len(model.embeddings))] == [*range(num_groups)]:
        return model
    wholes = [level.new_empty(num_groups, *level.shape[1:]) for level in (model.embeddings, *model.deepstack)]
    for places, features in parts:
        for whole, level in zip(wholes, (features.embeddings, *features.deepstack), strict=True):
            whole[places] = level
    return Features(wholes[0], tuple(wholes[1:]))
