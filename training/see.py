"""The seeing stage: the vision tower alone learns what every token shows, through heads that are thrown away.

Without it a small video LLM stays blind to shapes however long it trains on answers alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel, apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from models.demo.architecture import HIDDEN, MERGE, PATCH, SIDE
from training.bank import LABELS, Bank
from training.optimiser import Schedule, make_optimisers, mixed_precision


def patchify(frames: Tensor) -> Tensor:
    """uint8 [groups, 2, 64, 64, 3] -> float [groups, 64, 384], in the merge order of the stock processor."""
    pixels = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # [groups, C, T, H, W]
    side = SIDE // PATCH // MERGE
    g, c, t = pixels.shape[:3]
    cells = pixels.reshape(g, c, t, side, MERGE, PATCH, side, MERGE, PATCH)
    return cells.permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(g, side * side * MERGE * MERGE, c * t * PATCH * PATCH)


class BatchedTower(nn.Module):
    """The stock tower's own sub-modules over many groups of one size in one batch (stock attends group by group)."""

    def __init__(self, tower: Qwen3VLVisionModel) -> None:
        super().__init__()
        self.tower = tower
        grid = torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]])
        self.taps, self.weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=MERGE,
        )
        self.positions = get_vision_position_ids(grid, MERGE)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """[groups, 64, 384] -> embeddings and deepstack features, each [groups, 16, hidden]."""
        tower = self.tower
        groups = patches.shape[0]
        h = tower.patch_embed.proj.weight.flatten(1)  # a strided convolution over one patch is a product
        x = nn.functional.linear(patches, h, tower.patch_embed.proj.bias)
        x = x + (tower.pos_embed(self.taps) * self.weights[:, :, None]).sum(1)
        rotary = tower.rotary_pos_emb(x, self.positions)
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
        out = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        projected: Tensor = attention.proj(out.transpose(1, 2).reshape(groups, count, width))
        return projected


class TokenHeads(nn.Module):
    """One linear classifier per column of `LABELS`, on embeddings and deepstack features alike."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.heads = nn.ModuleDict({name: nn.Linear(HIDDEN, classes) for name, classes in LABELS.items()})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.norm(tokens)
        return {name: head(x) for name, head in self.heads.items()}


def see_loss(heads: TokenHeads, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy over the columns, and the accuracy of each where there is something to see."""
    loss, right = tokens.new_zeros(()), {}
    for column, (name, logits) in enumerate(heads(tokens).items()):
        truth = labels[..., column].flatten().long()
        logits = logits.flatten(0, 1).float()
        weight = torch.where(truth > 0, 1.0, 0.35) * (truth >= 0)
        each = nn.functional.cross_entropy(logits, truth.clamp(min=0), reduction="none")
        loss = loss + (each * weight).sum() / weight.sum().clamp(min=1)
        shown = truth > 0
        right[name] = float((logits.argmax(-1) == truth)[shown].float().mean()) if shown.any() else float("nan")
    return loss, right


def augmented(frames: NDArray[np.uint8], generator: torch.Generator) -> Tensor:
    """Brightness, contrast and a little noise, the same for both frames of a group but the noise."""
    pixels = torch.from_numpy(frames).float()
    shape = (len(pixels), 1, 1, 1, 1)
    gain = 0.8 + 0.4 * torch.rand(shape, generator=generator)
    lift = 24 * (torch.rand(shape, generator=generator) - 0.5)
    grain = 4 * torch.rand(shape, generator=generator) * torch.randn(pixels.shape, generator=generator)
    return (pixels * gain + lift + grain).clamp(0, 255)


def train_tower(
    tower: Qwen3VLVisionModel, bank: Bank, checkpoint: Path, steps: int, batch: int = 128, seed: int = 0
) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Trains in place and yields (step, loss, accuracies) now and then; resumes from `checkpoint`."""
    torch.manual_seed(seed)
    batched, heads = BatchedTower(tower), TokenHeads()
    both = nn.ModuleList([tower, heads])
    schedule = Schedule(make_optimisers(both, muon_lr=0.01, adam_lr=1.5e-3), steps, warm_up=100)
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(saved["modules"])
        schedule.load_state_dict(saved["schedule"])
        start = int(saved["step"])
    held_out = len(bank.frames) - 512
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 7919 + step)
        pick = torch.randint(held_out, (batch,), generator=generator).numpy()
        with mixed_precision():
            embeddings, deep = batched(patchify(augmented(bank.frames[pick], generator)))
        labels = torch.from_numpy(bank.labels[pick])
        loss, _ = see_loss(heads, embeddings.float(), labels)
        extra, _ = see_loss(heads, deep.float(), labels)
        torch.autograd.backward(loss + 0.2 * extra)
        schedule.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            yield step + 1, float(loss.detach()), evaluate_tower(batched, heads, bank, held_out)
            state = {"modules": both.state_dict(), "schedule": schedule.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)


@torch.no_grad()
def evaluate_tower(batched: BatchedTower, heads: TokenHeads, bank: Bank, first: int) -> dict[str, float]:
    """Per-token accuracy on the groups from `first` on, where there is something to see."""
    embeddings, _ = batched(patchify(torch.from_numpy(bank.frames[first:])))
    return see_loss(heads, embeddings, torch.from_numpy(bank.labels[first:]))[1]


@torch.no_grad()
def features(tower: Qwen3VLVisionModel, frames: NDArray[np.uint8], batch: int = 512) -> tuple[Tensor, Tensor]:
    """Embeddings and deepstack features of every group of a bank, half precision: each [groups, 16, hidden]."""
    batched = BatchedTower(tower)
    parts = [batched(patchify(torch.from_numpy(frames[k : k + batch]))) for k in range(0, len(frames), batch)]
    return torch.cat([p[0].half() for p in parts]), torch.cat([p[1].half() for p in parts])


def log_line(step: int, loss: float, right: dict[str, float], since: float) -> str:
    shown = " ".join(f"{name} {value:.3f}" for name, value in right.items())
    return f"step {step} loss {loss:.3f} {shown} ({time.monotonic() - since:.0f} s)"
