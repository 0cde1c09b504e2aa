"""Vision towers computed in part, composed from the stock ones' sub-modules: no forward replaced, no weight copied.

What nothing is reused from goes through the stock forward. For everything else the layers are walked here, whole or
for some patches only, in the same arithmetic: with every patch recomputed both are equal. Two ways to compute in part:

- `refreshed`: chosen patches only, in every layer the same ones. The others are the reference's in every layer, so
  nothing is computed for them but what the chosen ones read: their keys and values.
- `refreshed_by_keys`: STC (arXiv 2512.00891). All patches go through every layer with fresh keys; those whose keys
  moved most from the reference's get fresh values, attention and MLP, the others the reference's outputs.

Which groups are computed how is the business of `keyframes/vit_cacher.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, linear, scaled_dot_product_attention
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from keyframes.vit_cacher import Features, Reference, assemble, some
from models.hf import rotate

QUERY, KEY, VALUE = range(3)
READ_PATCHES = 32  # whose work takes as long as reading the weights does; this and the next by timing two CPU cores
CALL_WORK = 2**20  # over the width squared: patches whose work takes as long as a layer's calls do
WALKED_MORE = 0.1  # of a patch's work: what walking costs beyond the stock forward
Module = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Layer:
    """One block of a tower as its stock sub-modules. project: [..., C] to its QUERY, KEY or VALUE, [..., C]."""

    attention_norm: Module
    project: Callable[[Tensor, int], Tensor]
    output: Module
    mlp_norm: Module
    mlp: Module


@dataclass(frozen=True, eq=False)
class Parts:
    """What sets one family of towers apart; C is the width, T the patches of a group.

    stock: the stock forward, of patches [g, T, values] and their grid. embed: patches [g, k, values] to [g, k, C].
    places: a grid in patches to (added [T, C], rotation [2, T, head_dim] or None). finish: [g, k, C] of the last layer
    to [g, tokens, hidden]. taps: the same behind earlier layers.
    """

    width: int
    num_heads: int
    frames_per_group: int
    merge_size: int
    stock: Callable[[Tensor, tuple[int, int]], Features]
    embed: Module
    places: Callable[[tuple[int, int]], tuple[Tensor, Tensor | None]]
    layers: Sequence[Layer]
    finish: Module
    taps: Mapping[int, Module]


class Tower:
    """A `keyframes.vit_cacher.VisionTower` over a stock one; shared and immutable. Runs without gradients."""

    def __init__(self, parts: Parts) -> None:
        self.frames_per_group = parts.frames_per_group
        self.merge_size = parts.merge_size
        self.batch_price = READ_PATCHES + CALL_WORK / parts.width**2
        self._attending_apart = CALL_WORK / (2 * parts.width)  # padded pairs of patches that cost what a batch does
        self._parts = parts

    @torch.no_grad()
    def whole(
        self, patches: Tensor, grid: tuple[int, int], keep: Sequence[int], outputs: bool = False
    ) -> tuple[Features, list[Reference]]:
        others = [row for row in range(len(patches)) if row not in keep]
        if keep and WALKED_MORE * len(others) * patches.shape[1] < self.batch_price:
            return self._walked(patches, grid, keep, outputs)
        parts, references = [], list[Reference]()
        if others:
            parts.append((others, self._parts.stock(some(patches, others), grid)))
        if keep:
            features, references = self._walked(patches[[*keep]], grid, range(len(keep)), outputs)
            parts.append(([*keep], features))
        return assemble(len(patches), parts), references

    def _walked(
        self, patches: Tensor, grid: tuple[int, int], keep: Sequence[int], outputs: bool
    ) -> tuple[Features, list[Reference]]:
        """All patches of all groups layer by layer, and references of those in `keep`."""
        added, rotation = self._parts.places(grid)
        kept: list[tuple[Tensor, ...]] = []
        features = self._finish(self._whole_layers(patches, added, rotation, outputs, kept))
        by_kind = [torch.stack(layers) for layers in zip(*kept, strict=True)]  # each [L, g, T, C]
        references = [
            Reference(features.alone(row), added, rotation, *(kind[:, row].clone() for kind in by_kind)) for row in keep
        ]
        return features, references

    @torch.no_grad()
    def refreshed(self, patches: Tensor, reference: Reference, chosen: Tensor) -> Features:
        fresh = self._finish(self.refreshed_layers(patches, reference, chosen))
        old = reference.features
        return Features(
            mixed(old.embeddings[0], chosen, fresh.embeddings[0]),
            tuple(mixed(a[0], chosen, b[0]) for a, b in zip(old.deepstack, fresh.deepstack, strict=True)),
        )

    @torch.no_grad()
    def refreshed_by_keys(self, patches: Tensor, reference: Reference, share: float) -> Features:
        count = max(1, math.floor(share * patches.shape[1]))
        return self._finish(self.refreshed_by_keys_layers(patches, reference, count))

    def _whole_layers(
        self,
        patches: Tensor,
        added: Tensor,
        rotation: Tensor | None,
        outputs: bool,
        kept: list[tuple[Tensor, ...]],
    ) -> Iterator[Tensor]:
        """[g, T, C] behind each layer. `kept` gets of each layer what references need."""
        hidden = self._parts.embed(patches) + added
        for layer in self._parts.layers:
            x = layer.attention_norm(hidden)
            keys, values = turned(layer.project(x, KEY), rotation), layer.project(x, VALUE)
            attended = layer.output(self._attend(turned(layer.project(x, QUERY), rotation), keys, values))
            hidden = hidden + attended
            transformed = layer.mlp(layer.mlp_norm(hidden))
            hidden = hidden + transformed
            kept.append((keys, values, attended, transformed) if outputs else (keys, values))
            yield hidden

    def refreshed_layers(self, patches: Tensor, reference: Reference, chosen: Tensor) -> Iterator[Tensor]:
        """[1, k, C] behind each layer, of the k patches of all groups whose tokens are `chosen` [g, n], row by row."""
        fresh = chosen.repeat_interleave(self.merge_size**2, 1)
        batches = alike(fresh, self._attending_apart / fresh.shape[1])
        places = fresh.nonzero()[:, 1]
        rotation = None if reference.rotation is None else reference.rotation[:, places]
        hidden = self._parts.embed(patches[fresh][None]) + reference.added[places]
        for layer, keys, values in zip(self._parts.layers, reference.keys, reference.values, strict=True):
            x = layer.attention_norm(hidden)
            queries, new_keys = turned(layer.project(x, QUERY), rotation), turned(layer.project(x, KEY), rotation)
            new_values, attended = layer.project(x, VALUE), torch.empty_like(queries)
            for batch in batches:
                seen = (batch.mixed(keys, new_keys[0]), batch.mixed(values, new_values[0]))
                batch.take(self._attend(batch.padded(queries[0]), *seen), attended[0])
            hidden = hidden + layer.output(attended)
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
            yield hidden

    def refreshed_by_keys_layers(self, patches: Tensor, reference: Reference, count: int) -> Iterator[Tensor]:
        """[g, T, C] behind each layer; `count` patches are recomputed in each (STC-Cacher)."""
        assert reference.attended is not None and reference.transformed is not None
        rotation = reference.rotation
        hidden = self._parts.embed(patches) + reference.added
        for number, layer in enumerate(self._parts.layers):
            x = layer.attention_norm(hidden)
            keys = turned(layer.project(x, KEY), rotation)
            similarity = cosine_similarity(keys, reference.keys[number], dim=-1)
            chosen = similarity.topk(count, largest=False).indices
            x = taken(x, chosen)
            values = replaced(reference.values[number], chosen, layer.project(x, VALUE))
            queries = turned(layer.project(x, QUERY), None if rotation is None else rotation[:, chosen])
            attended = layer.output(self._attend(queries, keys, values))
            hidden = hidden + replaced(reference.attended[number], chosen, attended)
            transformed = layer.mlp(layer.mlp_norm(taken(hidden, chosen)))
            hidden = hidden + replaced(reference.transformed[number], chosen, transformed)
            yield hidden

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[g, k, C] from [g, k, C] over [g, T, C]; the patches of a group see each other."""

        def split(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], self._parts.num_heads, -1).transpose(1, 2)

        attended = scaled_dot_product_attention(split(queries), split(keys), split(values))
        return attended.transpose(1, 2).flatten(2)

    def _finish(self, layers: Iterator[Tensor]) -> Features:
        levels = []
        for number, hidden in enumerate(layers):
            if tap := self._parts.taps.get(number):
                levels.append(tap(hidden))
        return Features(self._parts.finish(hidden), tuple(levels))


def turned(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Rotary embedding of [g, k, C] with cosines and sines [2, (g,) k, head_dim], in float32 as the stock."""
    if rotation is None:
        return x
    cosines, sines = rotation.unsqueeze(-2).float()
    heads = x.float().reshape(*x.shape[:-1], -1, rotation.shape[-1])
    return rotate(heads, cosines, sines).flatten(-2).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Alike:
    """Groups with about as many recomputed patches each, which attend together.

    fresh: bool [b, T], the patches recomputed of each. rows: int64 [r], where these stand among those of all groups.
    filled: bool [b, m], m being the most of a group; false where a group has fewer.
    """

    fresh: Tensor
    rows: Tensor
    filled: Tensor

    @cached_property
    def _places(self) -> Tensor:
        """Of the rows among b * T patches, int64 [r]."""
        return self.fresh.flatten().nonzero()[:, 0]

    @cached_property
    def _slots(self) -> Tensor:
        """Of the rows among b * m places, int64 [r]."""
        return self.filled.flatten().nonzero()[:, 0]

    def padded(self, x: Tensor) -> Tensor:
        """[b, m, C] of what all groups have, [k, C]; zero where a group has fewer."""
        whole = x.new_zeros(self.filled.numel(), x.shape[-1])
        return whole.index_copy_(0, self._slots, x[self.rows]).reshape(*self.filled.shape, -1)

    def take(self, x: Tensor, into: Tensor) -> None:
        """Bring back [b, m, C] to where the rows stand in [k, C]."""
        into.index_copy_(0, self.rows, x.flatten(0, 1)[self._slots])

    def mixed(self, old: Tensor, x: Tensor) -> Tensor:
        """[b, T, C]: the reference's [T, C] for every group, the recomputed ones from what all groups have, [k, C]."""
        return put(old, self.fresh, self._places, x[self.rows])


def alike(fresh: Tensor, few: float) -> list[Alike]:
    """Batches of groups none of which has more than twice the recomputed patches of another; those with up to `few`
    are alike. fresh: bool [g, T]."""
    counts = fresh.sum(1)
    sizes = counts.clamp(min=few).log2().floor()
    owners = fresh.nonzero()[:, 0]
    batches = []
    for size in torch.unique(sizes):
        inside = sizes == size
        most = torch.arange(int(counts[inside].max()), device=fresh.device)
        batches.append(Alike(fresh[inside], inside[owners].nonzero()[:, 0], most < counts[inside, None]))
    return batches


def taken(x: Tensor, chosen: Tensor) -> Tensor:
    """Rows `chosen` [g, k] of [g, T, ...], each group its own."""
    return x[torch.arange(len(x), device=x.device)[:, None], chosen]


def replaced(old: Tensor, chosen: Tensor, fresh: Tensor) -> Tensor:
    """[g, T, C]: [T, C] for every group, with rows `chosen` [g, k] replaced by [g, k, C]."""
    whole = old.repeat(len(chosen), 1, 1)
    whole[torch.arange(len(chosen), device=old.device)[:, None], chosen] = fresh
    return whole


def mixed(old: Tensor, where: Tensor, fresh: Tensor) -> Tensor:
    """[g, T, C]: [T, C] for every group, with those true in `where` [g, T] replaced by [k, C], row by row."""
    return put(old, where, where.flatten().nonzero()[:, 0], fresh)


def put(old: Tensor, where: Tensor, places: Tensor, fresh: Tensor) -> Tensor:
    """The same, with the `places` of those in `where` among g * T, int64 [k]."""
    whole = old.repeat(len(where), 1)
    return whole.index_copy_(0, places, fresh).reshape(*where.shape, -1)


def qwen3_vl_tower(visual: Any) -> Tower:
    """The tower of a stock `Qwen3VLVisionModel`, DeepStack included."""

    def stock(patches: Tensor, grid: tuple[int, int]) -> Features:
        grids = torch.tensor([[1, *grid]] * len(patches), device=patches.device)
        made = visual(patches.flatten(0, 1), grid_thw=grids)
        levels = (made.pooler_output, *made.deepstack_features)
        embeddings, *deepstack = (level.unflatten(0, (len(patches), -1)) for level in levels)
        return Features(embeddings, tuple(deepstack))

    def embed(patches: Tensor) -> Tensor:
        return visual.patch_embed(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])  # type: ignore[no-any-return]

    def places(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        weight = visual.pos_embed.weight
        sizes = torch.tensor([[1, *grid]], device=weight.device)
        corners, shares = get_vision_interpolation_indices_and_weights(
            sizes,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.spatial_merge_size,
        )
        added = (visual.pos_embed(corners) * shares[:, :, None]).sum(1).to(weight.dtype)
        cosines, sines = visual.rotary_pos_emb(added, get_vision_position_ids(sizes, visual.spatial_merge_size))
        return added, torch.stack([cosines, sines])

    def merge(merger: Any) -> Module:
        def merged(hidden: Tensor) -> Tensor:
            return merger(hidden.flatten(0, 1)).unflatten(0, (len(hidden), -1))  # type: ignore[no-any-return]

        return merged

    def layer(block: Any) -> Layer:
        attention = block.attn
        width = attention.proj.in_features

        def project(x: Tensor, which: int) -> Tensor:
            rows = slice(which * width, (which + 1) * width)  # of the one matrix for queries, keys and values
            return linear(x, attention.qkv.weight[rows], attention.qkv.bias[rows])

        return Layer(block.norm1, project, attention.proj, block.norm2, block.mlp)

    mergers = zip(visual.deepstack_visual_indexes, visual.deepstack_merger_list, strict=True)
    return Tower(
        Parts(
            width=visual.blocks[0].attn.proj.in_features,
            num_heads=visual.blocks[0].attn.num_heads,
            frames_per_group=visual.patch_embed.temporal_patch_size,
            merge_size=visual.spatial_merge_size,
            stock=stock,
            embed=embed,
            places=places,
            layers=[layer(block) for block in visual.blocks],
            finish=merge(visual.merger),
            taps={number: merge(merger) for number, merger in mergers},
        )
    )


def siglip_tower(vision: Any) -> Tower:
    """The tower of a stock `SiglipVisionModel`, up to its last layer, as LLaVA-OneVision reads it.

    Neither the final norm nor the head is run. A patch is [channels * side * side], cut by `models.pixels.patchify`
    from the whole multiple of the patch's side.
    """
    embeddings = vision.embeddings
    side = embeddings.patch_size

    def embed(patches: Tensor) -> Tensor:
        cells = patches.reshape(-1, embeddings.patch_embedding.in_channels, side, side)
        embedded = embeddings.patch_embedding(cells.to(embeddings.patch_embedding.weight.dtype))
        return embedded.reshape(*patches.shape[:2], -1)  # type: ignore[no-any-return]

    def stock(patches: Tensor, grid: tuple[int, int]) -> Features:
        added, _ = places(grid)
        return Features(vision.encoder(inputs_embeds=embed(patches) + added).last_hidden_state)

    def places(grid: tuple[int, int]) -> tuple[Tensor, None]:
        across = embeddings.image_size // side
        if grid != (across, across):
            raise ValueError(f"this tower reads {across} x {across} patches, not {grid[0]} x {grid[1]}")
        return embeddings.position_embedding.weight, None

    def layer(block: Any) -> Layer:
        attention = block.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return Layer(
            block.layer_norm1,
            lambda x, which: projections[which](x),
            attention.out_proj,
            block.layer_norm2,
            block.mlp,
        )

    return Tower(
        Parts(
            width=vision.config.hidden_size,
            num_heads=vision.config.num_attention_heads,
            frames_per_group=1,
            merge_size=1,
            stock=stock,
            embed=embed,
            places=places,
            layers=[layer(block) for block in vision.encoder.layers],
            finish=lambda hidden: hidden,
            taps={},
        )
    )
