"""The seeing stage: the vision tower alone learns what every token shows, through heads that are
thrown away.

Without it a small video LLM stays blind to shapes however long it trains on answers alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from models.demo.architecture import HIDDEN, MERGE, PATCH
from training.bank import GRIDS, MOST_TOKENS, PATCHES_PER_TOKEN
from training.optimiser import mixed_precision
from training.pictures import LABELS

MOST_SHIFT = 3  # pixels, so that labels of tokens stay right
DEEP_WEIGHT = 0.2  # of the loss on DeepStack features


class BatchedTower(nn.Module):
    """The stock tower's own sub-modules over many groups of one grid in one batch (stock attends
    group by group).
    """

    def __init__(self, tower: Qwen3VLVisionModel) -> None:
        super().__init__()
        self.tower = tower
        for number, (rows, columns) in enumerate(GRIDS):
            grid = torch.tensor([[1, rows * MERGE, columns * MERGE]])
            taps, weights = get_vision_interpolation_indices_and_weights(
                grid,
                num_grid_per_side=tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=MERGE,
            )
            self.register_buffer(f"taps{number}", taps, persistent=False)
            self.register_buffer(f"weights{number}", weights, persistent=False)
            self.register_buffer(
                f"positions{number}", get_vision_position_ids(grid, MERGE), persistent=False
            )

    def forward(self, patches: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """Patches [groups, n, 384] of one grid -> embeddings and DeepStack features, [groups, n /
        4, hidden].
        """
        tower, groups = self.tower, patches.shape[0]
        taps, weights, positions = (
            getattr(self, f"{name}{grid}") for name in ("taps", "weights", "positions")
        )
        # a strided convolution over one patch is a product
        kernel = tower.patch_embed.proj.weight.flatten(1)
        x = nn.functional.linear(patches, kernel, tower.patch_embed.proj.bias)
        x = x + (tower.pos_embed(taps) * weights[:, :, None]).sum(1)
        rotary = tower.rotary_pos_emb(x, positions)
        deep = x
        for number, block in enumerate(tower.blocks):
            x = x + self._attend(block.attn, block.norm1(x), rotary)
            x = x + block.mlp(block.norm2(x))
            if number in tower.deepstack_visual_indexes:
                deep = tower.deepstack_merger_list[0](x)
        return tower.merger(x).view(groups, -1, HIDDEN), deep.view(groups, -1, HIDDEN)

    @staticmethod
    def _attend(attention: Any, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        groups, count, width = x.shape
        q, k, v = attention.qkv(x).view(groups, count, 3, attention.num_heads, -1).unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, *rotary)
        v = v.to(q.dtype)
        out = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        projected: Tensor = attention.proj(out.transpose(1, 2).reshape(groups, count, width))
        return projected


class TokenHeads(nn.Module):
    """One linear classifier per column of `LABELS`, on embeddings and DeepStack features alike."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(HIDDEN, classes) for name, classes in LABELS.items()}
        )

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.norm(tokens)
        return {name: head(x) for name, head in self.heads.items()}


def see_loss(heads: TokenHeads, tokens: Tensor, labels: Tensor) -> Tensor:
    """Sum over the columns of the mean cross-entropy; "nothing" weighs less than something."""
    loss = tokens.new_zeros(())
    for column, logits in enumerate(heads(tokens).values()):
        truth = labels[..., column].flatten().long()
        weight = torch.where(truth > 0, 1.0, 0.35) * (truth >= 0)
        each = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), truth.clamp(min=0), reduction="none"
        )
        loss = loss + (each * weight).sum() / weight.sum().clamp(min=1)
    return loss


def num_patches(grid: int) -> int:
    rows, columns = GRIDS[grid]
    return rows * columns * PATCHES_PER_TOKEN


def as_floats(patches: Tensor) -> Tensor:
    """uint8 -> what the preprocessing makes of it."""
    return patches.float() / 127.5 - 1


def shifted(patches: Tensor, grid: int) -> Tensor:
    """All pictures moved by the same few pixels, edges drawn out: patches [groups, n, 384] in, the
    same out.
    """
    rows, columns = GRIDS[grid]
    by, groups = MOST_SHIFT, len(patches)
    cells = patches.view(groups, rows, columns, MERGE, MERGE, 6, PATCH, PATCH)
    pictures = cells.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(
        groups, 6, rows * MERGE * PATCH, columns * MERGE * PATCH
    )
    padded = nn.functional.pad(pictures, (by, by, by, by), mode="replicate")
    # on the CPU: the device is not waited for
    down, right = torch.randint(2 * by + 1, (2,)).tolist()
    moved = padded[:, :, down : down + pictures.shape[2], right : right + pictures.shape[3]]
    cut = moved.reshape(groups, 6, rows, MERGE, PATCH, columns, MERGE, PATCH).permute(
        0, 2, 5, 3, 6, 1, 4, 7
    )
    return cut.reshape(patches.shape)


def augmented(patches: Tensor, grid: int, generator: torch.Generator) -> Tensor:
    """uint8 [groups, n, 384] -> floats at a slightly other place, with other brightness, contrast,
    white balance and a little noise."""
    groups, device = len(patches), patches.device

    def spread(shape: tuple[int, ...], most: float) -> Tensor:
        return most * (2 * torch.rand(shape, generator=generator, device=device) - 1)

    pixels = patches.view(groups, -1, 3, 2 * PATCH * PATCH).float()
    gain = 1 + spread((groups, 1, 1, 1), 0.2) + spread((groups, 1, 3, 1), 0.06)
    lift = spread((groups, 1, 1, 1), 14) + spread((groups, 1, 3, 1), 4)
    noise = torch.randn(pixels.shape, generator=generator, device=device)
    pixels = shifted(pixels.flatten(2), grid).view(pixels.shape)
    grain = 5 * torch.rand((groups, 1, 1, 1), generator=generator, device=device).square()
    return ((pixels * gain + lift + grain * noise).clamp(0, 255) / 127.5 - 1).flatten(2)


def see_step(
    batched: BatchedTower,
    heads: TokenHeads,
    patches: Tensor,
    labels: Tensor,
    grid: int,
    generator: torch.Generator,
) -> Tensor:
    """The loss of a batch of groups of one grid: patches [n, 64, 384], labels [n, 16, 6]."""
    pixels = augmented(patches[:, : num_patches(grid)], grid, generator)
    tokens = num_patches(grid) // PATCHES_PER_TOKEN
    with mixed_precision(patches.device):
        embeddings, deep = batched(pixels, grid)
        loss = see_loss(heads, embeddings, labels[:, :tokens])
        return loss + DEEP_WEIGHT * see_loss(heads, deep, labels[:, :tokens])


@torch.no_grad()
def accuracies(
    batched: BatchedTower, heads: TokenHeads, patches: Tensor, labels: Tensor, grids: Tensor
) -> dict[str, float]:
    """Share of tokens told right, per column, where there is something to see."""
    right = {name: [0, 0] for name in LABELS}
    for grid in range(len(GRIDS)):
        mine = (grids == grid).nonzero()[:, 0]
        if not len(mine):
            continue
        embeddings, _ = batched(as_floats(patches[mine, : num_patches(grid)]), grid)
        for column, (name, logits) in enumerate(heads(embeddings).items()):
            truth = labels[mine, : embeddings.shape[1], column].long()
            shown = truth > 0
            right[name][0] += int(((logits.argmax(-1) == truth) & shown).sum())
            right[name][1] += int(shown.sum())
    return {name: hits / max(1, asked) for name, (hits, asked) in right.items()}


@torch.no_grad()
def features(
    batched: BatchedTower,
    patches: Tensor,
    grids: Tensor,
    generator: torch.Generator | None = None,
    batch: int = 2048,
) -> tuple[Tensor, Tensor]:
    """Embeddings and DeepStack features of every group, half precision, zero beyond its tokens:
    [groups, 16, hidden].

    generator: of augmented pictures; None: as they are.
    """
    out = [
        torch.zeros(len(patches), MOST_TOKENS, HIDDEN, dtype=torch.float16, device=patches.device)
        for _ in range(2)
    ]
    for grid in range(len(GRIDS)):
        for mine in (grids == grid).nonzero()[:, 0].split(batch):  # type: ignore[no-untyped-call]
            if not len(mine):
                continue
            read = patches[mine, : num_patches(grid)]
            pixels = as_floats(read) if generator is None else augmented(read, grid, generator)
            made = batched(pixels, grid)
            for kept, part in zip(out, made, strict=True):
                kept[mine, : part.shape[1]] = part.half()
    return out[0], out[1]
