"""Which frames the vision tower computes whole, which it refreshes in part, and which cost nothing.

A keyframe is computed whole and becomes the *reference* of what follows, up to the next keyframe. A later group
without anything new is the reference over again; one with few new tokens has just those recomputed; one with many is
computed whole. All groups refreshed from one reference go through the tower in one batch, however much is new in each,
and so do all that are computed whole.

Knows nothing of how a tower is built (`models/towers.py` does), nor of how novelty is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    steps: list[Step] = []
    base = None if own is None else CARRIED
    size = novelty.shape[1]
    for number, frames in enumerate(novelty):
        keys = [k for k in range(size) if keyframes[number * size + k]]
        later = frames[keys[-1] + 1 :] if keys else frames
        change = later.amax(0) if len(later) else torch.zeros_like(frames[0])
        work = Work.WHOLE
        if keys and keys[-1] > 0:
            base = own = None
        elif keys or own is None:
            base, own = number, change
        else:
            change = torch.maximum(change, own)
            work = choose(change, config)
        steps.append(Step(work, base, change))
    return steps


def choose(novelty: Tensor, config: ReuseConfig) -> Work:
    """What a group with `novelty` [n] against its reference takes: as little as computes every changed token."""
    changed = int((novelty > config.still_below).sum())
    if changed == 0:
        return Work.STILL
    return Work.REFRESHED if changed <= share_of(len(novelty), config.refresh_share) else Work.WHOLE


def share_of(num_tokens: int, share: float) -> int:
    """How many tokens a share of a group is; one at least."""
    return max(1, math.floor(share * num_tokens))


class VitCacher:
    """The tower's work of one stream: holds the reference, and nothing else."""

    def __init__(self, tower: VisionTower, config: ReuseConfig) -> None:
        self._tower, self._config = tower, config
        self._reference: Reference | None = None
        self._own: Tensor | None = None  # change inside the reference group, per token
        self._grid: tuple[int, int] | None = None

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
            self._reference, self._own, self._grid = None, None, grid
        per_frame = token_novelty(novelty, self._tower.merge_size)
        steps = plan(per_frame.reshape(groups, size, -1), keyframes, self._own, self._config)
        return Encoded(self._run(patches, steps), tuple(step.work for step in steps))

    def _run(self, patches: Tensor, steps: Sequence[Step]) -> Features:
        """The batches: one of all whole groups, one of the groups refreshed from each reference."""
        assert self._grid is not None
        last = steps[-1].base
        needed = {step.base for step in steps if step.work is not Work.WHOLE} | {last}
        whole = [number for number, step in enumerate(steps) if step.work is Work.WHOLE]
        bases = [number for number in whole if number in needed]
        references = {} if self._reference is None else {CARRIED: self._reference}
        parts = []
        if whole:
            keep = [whole.index(number) for number in bases]
            features, kept = self._tower.whole(patches[whole], self._grid, keep, self._config.strategy == "keys")
            parts.append((whole, features))
            references |= dict(zip(bases, kept, strict=True))
        for base, reference in references.items():
            parts += self._reused(patches, steps, base, reference)
        if last != CARRIED:
            self._reference = None if last is None else references[last]
            self._own = None if last is None else steps[last].novelty
        return assemble(len(steps), parts)

    def _reused(
        self, patches: Tensor, steps: Sequence[Step], base: int, reference: Reference
    ) -> list[tuple[list[int], Features]]:
        """What builds on one reference: its repetitions, and its refreshed groups as one batch."""
        built = {
            work: [k for k, step in enumerate(steps) if step.base == base and step.work is work]
            for work in (Work.STILL, Work.REFRESHED)
        }
        parts = []
        if rows := built[Work.STILL]:
            parts.append((rows, reference.features))
        if rows := built[Work.REFRESHED]:
            parts.append(
                (rows, self._refreshed(patches[rows], reference, torch.stack([steps[row].novelty for row in rows])))
            )
        return parts

    def _refreshed(self, patches: Tensor, reference: Reference, novelty: Tensor) -> Features:
        chosen = novelty > self._config.still_below
        if self._config.strategy == "keys":
            return self._tower.refreshed_by_keys(patches, reference, float(chosen.float().mean(1).max()))
        return self._tower.refreshed(patches, reference, chosen)


def assemble(num_groups: int, parts: Sequence[tuple[list[int], Features]]) -> Features:
    """One run of groups from parts of it, each with its places; a part of one group may stand in many."""
    model = parts[0][1]
    wholes = [level.new_empty(num_groups, *level.shape[1:]) for level in (model.embeddings, *model.deepstack)]
    for places, features in parts:
        for whole, level in zip(wholes, (features.embeddings, *features.deepstack), strict=True):
            whole[places] = level
    return Features(wholes[0], tuple(wholes[1:]))
