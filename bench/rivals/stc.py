"""STC's way of reusing a vision tower's work (arXiv 2512.00891), beside `keyframes/vit_cacher.py`.

Every patch gets a fresh key in every layer. Those whose keys moved most from the reference's get
fresh values, attention and MLP; the others keep the reference's outputs. Which groups are whole,
refreshed or still is decided by the same plan as ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from config import ReuseConfig
from keyframes.vit_cacher import PREVIOUS, Encoded, Features, Step, Work, plan, token_novelty
from models.partial_vit import ALL, KEY, QUERY, VALUE, Tower, apply_rotary


@dataclass(frozen=True, eq=False)
class KeysReference:
    """One group as the tower computed it whole: T patches of width C in L layers.

    features: of this one group. keys (rotated), values, attended, transformed: [L, T, C]; the last
    two are what attention and MLP added.
    """

    features: Features
    keys: Tensor
    values: Tensor
    attended: Tensor
    transformed: Tensor


class KeysTower:
    """Runs the layers of one of our towers in STC's way."""

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        self.merge_size = tower.merge_size
        self.frames_per_group = tower.frames_per_group

    @torch.no_grad()
    def compute_reference(self, patches: Tensor, grid: tuple[int, int]) -> KeysReference:
        """One group, patches [1, T, values], computed whole with what its layers added."""
        tower = self.tower
        added, rotation = tower._places(grid)
        hidden = tower._parts.embed(patches[0])[None] + added
        kinds: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        outputs: list[Tensor] = []
        for layer in tower._parts.layers:
            projected = layer.project(layer.attention_norm(hidden), ALL)
            queries, keys, values = projected.unbind(-2)
            queries = apply_rotary(queries[..., None, :], rotation)[..., 0, :]
            keys = apply_rotary(keys[..., None, :], rotation)[..., 0, :]
            attended = layer.output(tower._attend(queries, keys, values))
            hidden = hidden + attended
            transformed = layer.mlp(layer.mlp_norm(hidden))
            hidden = hidden + transformed
            kinds.append((keys[0], values[0], attended[0], transformed[0]))
            outputs.append(hidden[0])
        levels = tower._finish(iter(outputs))
        features = Features.of(level[None] for level in levels)
        return KeysReference(features, *(torch.stack(kind) for kind in zip(*kinds, strict=True)))

    @torch.no_grad()
    def forward_by_keys(
        self, patches: Tensor, grid: tuple[int, int], reference: KeysReference, counts: Tensor
    ) -> Features:
        """Recompute in each layer the patches whose keys moved most from the reference's, of every
        group as many as `counts` [g] says, one at least."""
        layers = self.layers_by_keys(patches, grid, reference, counts)
        levels = self.tower._finish(hidden.flatten(0, 1) for hidden in layers)
        return Features.of(level.reshape(len(patches), -1, level.shape[-1]) for level in levels)

    def layers_by_keys(
        self, patches: Tensor, grid: tuple[int, int], reference: KeysReference, counts: Tensor
    ) -> Iterator[Tensor]:
        """[g, T, C] after each layer; `counts` patches of each group are recomputed in each."""
        tower = self.tower
        most = int(counts.max())
        filled = torch.arange(most, device=patches.device) < counts[:, None]
        added, rotation = tower._places(grid)
        hidden = tower._parts.embed(patches.flatten(0, 1)).reshape(*patches.shape[:2], -1) + added
        for number, layer in enumerate(tower._parts.layers):
            x = layer.attention_norm(hidden)
            keys = apply_rotary(layer.project(x, KEY), rotation)[:, :, 0]
            similarity = cosine_similarity(keys, reference.keys[number], dim=-1)
            chosen = similarity.topk(most, largest=False).indices
            # groups with fewer compute their first over again
            chosen = torch.where(filled, chosen, chosen[:, :1])
            x = gather_tokens(x, chosen)
            fresh_values = layer.project(x, VALUE)[:, :, 0]
            values = scatter_tokens(reference.values[number], chosen, fresh_values)
            chosen_rotation = None if rotation is None else rotation[:, chosen]
            queries = apply_rotary(layer.project(x, QUERY), chosen_rotation)[:, :, 0]
            attended = layer.output(tower._attend(queries, keys, values))
            hidden = hidden + scatter_tokens(reference.attended[number], chosen, attended)
            transformed = layer.mlp(layer.mlp_norm(gather_tokens(hidden, chosen)))
            hidden = hidden + scatter_tokens(reference.transformed[number], chosen, transformed)
            yield hidden


class KeysCacher:
    """The tower's work of one stream: holds the reference, as `VitCacher` does."""

    def __init__(self, tower: Tower, config: ReuseConfig) -> None:
        self._tower = KeysTower(tower)
        self._config = config
        self._reference: KeysReference | None = None
        self._own: Tensor | None = None  # change inside the reference's group, per token
        self._grid = (0, 0)

    @torch.no_grad()
    def encode(
        self, patches: Tensor, grid: tuple[int, int], novelty: Tensor, keyframes: Sequence[bool]
    ) -> Encoded:
        """As `VitCacher.encode`."""
        if grid != self._grid:
            self._reference, self._own, self._grid = None, None, grid
        size = self._tower.frames_per_group
        tokens = token_novelty(novelty, self._tower.merge_size).reshape(len(patches), size, -1)
        steps = plan(tokens, keyframes, self._own, self._config)
        parts, references = self._compute(patches, steps)
        last = steps[-1].base
        if last != PREVIOUS:
            self._reference = None if last is None else references[last]
            self._own = None if last is None else steps[last].novelty
        return Encoded(assemble(len(steps), parts), tuple(step.work for step in steps))

    def _compute(
        self, patches: Tensor, steps: Sequence[Step]
    ) -> tuple[list[tuple[list[int], Features]], dict[int, KeysReference]]:
        """Features of the groups, in parts with their places, and the references among them."""
        refreshed = rows_by_reference(steps, Work.REFRESHED)
        still = rows_by_reference(steps, Work.STILL)
        built_on = {*refreshed, *still, steps[-1].base} - {None, PREVIOUS}
        references: dict[int, KeysReference] = {}
        if self._reference is not None:
            references[PREVIOUS] = self._reference
        parts: list[tuple[list[int], Features]] = []
        for row, step in enumerate(steps):
            if step.work is not Work.WHOLE:
                continue
            alone = patches[row : row + 1]
            if row in built_on:
                references[row] = self._tower.compute_reference(alone, self._grid)
                parts.append(([row], references[row].features))
            else:
                parts.append(([row], self._tower.tower.encode(alone, self._grid)))
        parts += [(rows, references[base].features) for base, rows in still.items()]
        for base, rows in refreshed.items():
            changed = torch.stack([steps[row].novelty for row in rows]) > self._config.still_below
            counts = changed.sum(1) * self._tower.merge_size**2
            features = self._tower.forward_by_keys(
                patches[rows], self._grid, references[base], counts
            )
            parts.append((rows, features))
        return parts, references


def rows_by_reference(steps: Sequence[Step], work: Work) -> dict[int, list[int]]:
    """The groups that take this work, by what they build on."""
    found = defaultdict[int, list[int]](list)
    for row, step in enumerate(steps):
        if step.work is work and step.base is not None:
            found[step.base].append(row)
    return found


def assemble(num_groups: int, parts: Sequence[tuple[list[int], Features]]) -> Features:
    """One run of groups from parts of it, each with its places; a part of one group may stand in
    many.
    """
    wholes = [level.new_empty(num_groups, *level.shape[1:]) for level in parts[0][1]]
    for places, features in parts:
        for whole, level in zip(wholes, features, strict=True):
            whole[places] = level
    return Features.of(wholes)


def gather_tokens(x: Tensor, chosen: Tensor) -> Tensor:
    """Rows `chosen` [g, k] of [g, T, ...], each group its own."""
    return x[torch.arange(len(x), device=x.device)[:, None], chosen]


def scatter_tokens(old: Tensor, chosen: Tensor, fresh: Tensor) -> Tensor:
    """[g, T, C]: [T, C] for every group, with rows `chosen` [g, k] replaced by [g, k, C]."""
    whole = old.repeat(len(chosen), 1, 1)
    whole[torch.arange(len(chosen), device=old.device)[:, None], chosen] = fresh
    return whole
