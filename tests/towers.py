"""Tiny seeded vision towers of both families, their stock forwards, and patches with a known
change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from keyframes.vit_cacher import Features
from models.partial_vit import Tower, qwen3_vl_tower, siglip_tower
from tests.tiny import tiny_network

QWEN_GRID, SIGLIP_GRID = (4, 6), (5, 5)
SIGLIP_SIDE, SIGLIP_PIXELS = 8, 43  # the last 3 pixels fill no patch


@dataclass(frozen=True, eq=False)
class Tiny:
    """stock: patches [g, T, values] to the features and the hidden states [g, T, C] behind each
    layer.
    """

    tower: Tower
    grid: tuple[int, int]
    values: int
    stock: Callable[[Tensor], tuple[Features, list[Tensor]]]

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return self.num_patches // self.tower.merge_size**2

    def patches(self, groups: int, seed: int = 0) -> Tensor:
        return torch.randn(
            groups, self.num_patches, self.values, generator=torch.Generator().manual_seed(seed)
        )


def tiny_qwen() -> Tiny:
    visual = tiny_network().model.visual

    def stock(patches: Tensor) -> tuple[Features, list[Tensor]]:
        groups = len(patches)
        grids = torch.tensor([[1, *QWEN_GRID]] * groups)
        out = visual(patches.flatten(0, 1), grid_thw=grids, output_hidden_states=True)
        levels = tuple(level.unflatten(0, (groups, -1)) for level in out.deepstack_features)
        layers = [hidden.unflatten(0, (groups, -1)) for hidden in out.hidden_states[1:]]
        return Features(out.pooler_output.unflatten(0, (groups, -1)), levels), layers

    return Tiny(qwen3_vl_tower(visual), QWEN_GRID, 3 * 2 * 8 * 8, stock)


def tiny_siglip() -> Tiny:
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIGLIP_PIXELS,
        patch_size=SIGLIP_SIDE,
        vision_use_head=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision: Any = SiglipVisionModel(config).eval().requires_grad_(False)

    def stock(patches: Tensor) -> tuple[Features, list[Tensor]]:
        out = vision(pictures(patches), output_hidden_states=True)
        return Features(out.hidden_states[-1]), list(out.hidden_states[1:])

    return Tiny(siglip_tower(vision), SIGLIP_GRID, 3 * SIGLIP_SIDE**2, stock)


def pictures(patches: Tensor) -> Tensor:
    """Pixels [g, 3, H, W] whose patches, row by row, these are, with something at the margin that
    no patch covers.
    """
    rows, columns = SIGLIP_GRID
    cells = patches.reshape(-1, rows, columns, 3, SIGLIP_SIDE, SIGLIP_SIDE).permute(
        0, 3, 1, 4, 2, 5
    )
    whole = torch.full((len(patches), 3, SIGLIP_PIXELS, SIGLIP_PIXELS), 7.0)
    whole[:, :, : rows * SIGLIP_SIDE, : columns * SIGLIP_SIDE] = cells.reshape(
        len(patches), 3, rows * SIGLIP_SIDE, columns * SIGLIP_SIDE
    )
    return whole


def distance(a: Features, b: Features) -> float:
    """The largest difference between features of the same groups."""
    pairs = zip((a.embeddings, *a.deepstack), (b.embeddings, *b.deepstack), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)
