"""Muon for the hidden matrices, AdamW for everything else, one warm-up-and-decay schedule over both; and the precision
that steps are computed in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # as torch names what x86 and ARM can do


def mixed_precision() -> torch.autocast:
    """A step in bfloat16 where the CPU multiplies it natively; elsewhere that takes ten times as long as float32."""
    able = torch.cpu.get_capabilities()
    return torch.autocast("cpu", torch.bfloat16, enabled=any(able.get(name) for name in NATIVE_BF16))


def make_optimisers(module: nn.Module, muon_lr: float, adam_lr: float) -> list[Optimizer]:
    """Splits the trainable parameters: matrices inside the blocks go to Muon, embeddings, norms and heads to AdamW."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim == 2 and not any(word in name for word in ("embed", "heads", "lm_head"))
        (matrices if hidden else others).append(parameter)
    return [
        Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Schedule:
    """Steps the optimisers under gradient clipping; the rate rises linearly, then falls on a cosine to a twentieth."""

    def __init__(self, optimisers: list[Optimizer], steps: int, warm_up: int = 100) -> None:
        self.optimisers, self.steps, self.warm_up, self.done = optimisers, steps, warm_up, 0
        self.rates = [[group["lr"] for group in o.param_groups] for o in optimisers]

    def step(self) -> None:
        rise = min(1.0, (self.done + 1) / self.warm_up)
        fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done / self.steps)))
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * rise * fall
            torch.nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "optimisers": [o.state_dict() for o in self.optimisers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = int(state["done"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
