"""Vision towers computed in part, composed from the stock ones' sub-modules: no forward replaced,
no weight copied.

The layers run here in the stock arithmetic: with every patch computed the result equals the stock
tower's. `forward_partial` recomputes the same subset of patches in every layer. All other patches
reuse the reference frame's keys and values. A group whose every patch is chosen is computed whole.
All groups of a call are rows of one batch, and so are the references that they build on.

Which groups are computed how is the business of `keyframes/vit_cacher.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from keyframes.vit_cacher import Features, Reference
from models.cache_layout import rotate

QUERY, KEY, VALUE, ALL = slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 3)
# over the width: padded pairs of patches that take as long as one more call, timed on two CPU cores
CALL_WORK = 2**18
Module = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Layer:
    """One block of a tower as its stock sub-modules.

    project: [..., C] to QUERY, KEY, VALUE or ALL of them, p in number: [..., p, C], in memory of
    its own.
    """

    attention_norm: Module
    project: Callable[[Tensor, slice], Tensor]
    output: Module
    mlp_norm: Module
    mlp: Module


@dataclass(frozen=True, eq=False)
class TowerParts:
    """What sets one family of towers apart; C is the width, T the patches of a group.

    embed: patches [k, values] to [k, C]. places: a grid in patches to (added [T, C], rotation [2,
    T, head_dim] or None). finish: [k, C] of the last layer, all patches of some tokens, to [tokens,
    hidden]. taps: the same behind earlier layers.
    """

    width: int
    num_heads: int
    frames_per_group: int
    merge_size: int
    embed: Module
    places: Callable[[tuple[int, int]], tuple[Tensor, Tensor | None]]
    layers: Sequence[Layer]
    finish: Module
    taps: Mapping[int, Module]


class Tower:
    """A `keyframes.vit_cacher.VisionTower` over a stock one; shared and immutable. Runs without
    gradients.
    """

    def __init__(self, parts: TowerParts) -> None:
        self.frames_per_group = parts.frames_per_group
        self.merge_size = parts.merge_size
        self._parts = parts
        self._places = lru_cache(maxsize=1)(parts.places)

    @torch.no_grad()
    def encode(self, patches: Tensor, grid: tuple[int, int]) -> Features:
        """All of every group, patches [g, T, values]: what the stock tower gives. Groups of one
        grid attend in one call a layer, where the stock tower calls once for each."""
        everything = torch.ones(
            len(patches), patches.shape[1] // self.merge_size**2, dtype=torch.bool
        )
        features, _ = self.forward_partial(
            patches, grid, everything.to(patches.device), range(len(patches))
        )
        return features

    @torch.no_grad()
    def forward_partial(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        chosen: Tensor,
        bases: Sequence[int],
        before: Reference | None = None,
        keep: Sequence[int] = (),
    ) -> tuple[Features, list[Reference]]:
        tokens = feature_rows(chosen, bases)
        kept = ReferenceRecorder(self._of_patches(tokens[[*keep]]))
        levels = self._finish(
            self.partial_layers(patches, grid, chosen, tokens, before, kept if keep else None)
        )
        if before is not None:
            levels = [
                torch.cat([fresh, old[0]])
                for fresh, old in zip(levels, before.features, strict=True)
            ]
        features = Features.of(gather_rows(level, tokens) for level in levels)
        return features, kept.references(features, keep)

    def partial_layers(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        chosen: Tensor,
        tokens: Tensor,
        before: Reference | None = None,
        kept: ReferenceRecorder | None = None,
    ) -> Iterator[Tensor]:
        """[R, C] after each layer, of the patches of all `chosen` tokens, row by row; `tokens`: see
        `feature_rows`.
        """
        fresh = chosen.repeat_interleave(self.merge_size**2, 1)
        attend: Callable[[Tensor, Tensor], Tensor]
        if bool(chosen.all()):
            before, attend = None, partial(self._attend_whole, len(patches))
        else:
            groups = RaggedAttention.of(
                fresh, self._of_patches(tokens), CALL_WORK / self._parts.width / fresh.shape[1]
            )
            attend = partial(groups.attend, self._attend)
        added, rotation = self._places(grid)
        rows = fresh.flatten().nonzero()[:, 0]
        places = rows % fresh.shape[1]
        rotation = None if rotation is None else rotation.index_select(1, places)
        hidden = self._parts.embed(
            patches.flatten(0, 1).index_select(0, rows)
        ) + added.index_select(0, places)
        for number, layer in enumerate(self._parts.layers):
            projected = layer.project(layer.attention_norm(hidden), ALL)
            if rotation is not None:
                projected[:, :2] = apply_rotary(projected[:, :2], rotation)
            queries, pairs = projected[:, 0], projected[:, 1:]
            seen = pairs if before is None else torch.cat([pairs, before.pairs[number]])
            attended = layer.output(attend(queries, seen))
            hidden = hidden + attended
            transformed = layer.mlp(layer.mlp_norm(hidden))
            hidden = hidden + transformed
            if kept is not None:
                kept.add(pairs)
            yield hidden

    def _of_patches(self, tokens: Tensor) -> Tensor:
        """The rows of patches [g, T], of tokens' [g, n]."""
        size = self.merge_size**2
        return (size * tokens[..., None] + torch.arange(size, device=tokens.device)).flatten(1)

    def _attend_whole(self, groups: int, queries: Tensor, pairs: Tensor) -> Tensor:
        """[R, C] of queries [R, C] over keys and values [R, 2, C], where all patches of so many
        groups are rows.
        """
        keys, values = pairs.reshape(groups, -1, *pairs.shape[1:]).unbind(2)
        return self._attend(queries.reshape(groups, -1, queries.shape[1]), keys, values).flatten(
            0, 1
        )

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[g, k, C] from [g, k, C] over [g, T, C]; the patches of a group see each other."""

        def split(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], self._parts.num_heads, -1).transpose(1, 2)

        attended = scaled_dot_product_attention(split(queries), split(keys), split(values))
        return attended.transpose(1, 2).flatten(2)

    def _finish(self, layers: Iterator[Tensor]) -> list[Tensor]:
        """Embeddings and DeepStack levels [tokens, hidden] of the rows [R, C] behind each layer."""
        deepstack = []
        for number, hidden in enumerate(layers):
            if tap := self._parts.taps.get(number):
                deepstack.append(tap(hidden))
        return [self._parts.finish(hidden), *deepstack]


def feature_rows(chosen: Tensor, bases: Sequence[int]) -> Tensor:
    """Index of each token's feature row, int64 [g, n]. Recomputed tokens (`chosen`, bool [g, n])
    come first, in order, then the rows of the previous reference (base -1)."""
    own = chosen.flatten().cumsum(0).reshape(chosen.shape) - 1
    before = own[-1, -1] + 1 + torch.arange(chosen.shape[1], device=chosen.device)
    return torch.where(chosen, own, torch.cat([own, before[None]])[[*bases]])


@dataclass(frozen=True, eq=False)
class ReferenceRecorder:
    """What references need of the groups at `rows`, int64 [k, T], layer by layer."""

    rows: Tensor
    layers: list[Tensor] = field(default_factory=list)

    def add(self, pairs: Tensor) -> None:
        self.layers.append(pairs[self.rows])

    def references(self, features: Features, groups: Sequence[int]) -> list[Reference]:
        """Of these groups, which stand at the rows."""
        return [
            Reference(features.alone(group), torch.stack([pairs[k] for pairs in self.layers]))
            for k, group in enumerate(groups)
        ]


@dataclass(frozen=True, eq=False)
class Batch:
    """Groups with about as many computed patches each, which attend in one call.

    rows: int64 [b, m], those of each; the last over again where it has fewer than m.
    seen: int64 [b, T], the rows that each sees.
    """

    rows: Tensor
    seen: Tensor


@dataclass(frozen=True, eq=False)
class RaggedAttention:
    """How R rows attend, every group on its own. order: int64 [R], where each stands among the
    batches' results.
    """

    batches: list[Batch]
    order: Tensor

    @classmethod
    def of(cls, fresh: Tensor, seen: Tensor, few: float) -> RaggedAttention:
        """In no batch a group has more than twice the rows of another; those with up to `few` are
        alike.

        fresh: bool [g, T], the patches that are rows. seen: int64 [g, T], the rows that a group
        sees.
        """
        counts = fresh.sum(1)
        last = counts.cumsum(0) - 1
        sizes = torch.where(counts > 0, counts.clamp(min=few).log2().floor(), -1)
        order = torch.empty(int(counts.sum()), dtype=torch.long, device=fresh.device)
        batches, stood = list[Batch](), 0
        for size in torch.unique(sizes[counts > 0]):
            inside = sizes == size
            places = torch.arange(int(counts[inside].max()), device=fresh.device)
            first = (last - counts + 1)[inside, None]
            rows = torch.minimum(first + places, last[inside, None])
            filled = (first + places == rows).flatten()
            order[rows.flatten()[filled]] = stood + filled.nonzero()[:, 0]
            batches.append(Batch(rows, seen[inside]))
            stood += rows.numel()
        return cls(batches, order)

    def attend(
        self, attention: Callable[[Tensor, Tensor, Tensor], Tensor], queries: Tensor, seen: Tensor
    ) -> Tensor:
        """[R, C] of queries [R, C] over keys and values [rows, 2, C]."""
        results = [
            attention(
                gather_rows(queries, batch.rows), *gather_rows(seen, batch.seen).unbind(2)
            ).flatten(0, 1)
            for batch in self.batches
        ]
        return torch.cat(results).index_select(0, self.order)


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """[..., C] of [R, ..., C] at `rows`, in one copy of whole rows."""
    return x.index_select(0, rows.flatten()).reshape(*rows.shape, *x.shape[1:])


def apply_rotary(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Rotary embedding of [(g,) k, p, C] with cosines and sines [2, (g,) k, head_dim], in float32
    as the stock.
    """
    if rotation is None:
        return x
    cosines, sines = rotation[..., None, None, :].float()
    heads = x.float().reshape(*x.shape[:-1], -1, rotation.shape[-1])
    return rotate(heads, cosines, sines).flatten(-2).to(x.dtype)


def qwen3_vl_tower(visual: Any) -> Tower:
    """The tower of a stock `Qwen3VLVisionModel`, DeepStack included."""

    def embed(patches: Tensor) -> Tensor:
        return visual.patch_embed(patches)  # type: ignore[no-any-return]

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
        cosines, sines = visual.rotary_pos_emb(
            added, get_vision_position_ids(sizes, visual.spatial_merge_size)
        )
        return added, torch.stack([cosines, sines])

    def layer(block: Any) -> Layer:
        attention = block.attn
        width = attention.proj.in_features

        def project(x: Tensor, which: slice) -> Tensor:
            # of the one matrix for queries, keys and values
            rows = slice(which.start * width, which.stop * width)
            projected = linear(x, attention.qkv.weight[rows], attention.qkv.bias[rows])
            return projected.reshape(*x.shape[:-1], -1, width)

        return Layer(block.norm1, project, attention.proj, block.norm2, block.mlp)

    mergers = zip(visual.deepstack_visual_indexes, visual.deepstack_merger_list, strict=True)
    return Tower(
        TowerParts(
            width=visual.blocks[0].attn.proj.in_features,
            num_heads=visual.blocks[0].attn.num_heads,
            frames_per_group=visual.patch_embed.temporal_patch_size,
            merge_size=visual.spatial_merge_size,
            embed=embed,
            places=places,
            layers=[layer(block) for block in visual.blocks],
            finish=visual.merger,
            taps=dict(mergers),
        )
    )


def siglip_tower(vision: Any) -> Tower:
    """The tower of a stock `SiglipVisionModel`, up to its last layer, as LLaVA-OneVision reads it.

    Neither the final norm nor the head is run. A patch is [channels * side * side], cut by
    `models.pixels.patchify` from the whole multiple of the patch's side.
    """
    embeddings = vision.embeddings
    side = embeddings.patch_size

    def embed(patches: Tensor) -> Tensor:
        cells = patches.reshape(len(patches), embeddings.patch_embedding.in_channels, side, side)
        embedded = embeddings.patch_embedding(cells.to(embeddings.patch_embedding.weight.dtype))
        return embedded.flatten(1)  # type: ignore[no-any-return]

    def places(grid: tuple[int, int]) -> tuple[Tensor, None]:
        across = embeddings.image_size // side
        if grid != (across, across):
            raise ValueError(
                f"this tower reads {across} x {across} patches, not {grid[0]} x {grid[1]}"
            )
        return embeddings.position_embedding.weight, None

    def layer(block: Any) -> Layer:
        attention = block.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)

        def project(x: Tensor, which: slice) -> Tensor:
            return torch.stack([projection(x) for projection in projections[which]], -2)

        return Layer(block.layer_norm1, project, attention.out_proj, block.layer_norm2, block.mlp)

    return Tower(
        TowerParts(
            width=vision.config.hidden_size,
            num_heads=vision.config.num_attention_heads,
            frames_per_group=1,
            merge_size=1,
            embed=embed,
            places=places,
            layers=[layer(block) for block in vision.encoder.layers],
            finish=lambda hidden: hidden,
            taps={},
        )
    )
