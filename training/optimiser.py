"""Muon for the hidden matrices, AdamW for everything else, one rate schedule over both; and the
precision of steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # as torch names what x86 and ARM can do
MOST_NORM = 1.0  # of a step's gradient
LEAST_RATE = 0.02  # share of the rate that is left at the end


def mixed_precision(device: torch.device) -> torch.autocast:
    """A step in bfloat16 on a GPU and where the CPU multiplies it natively; elsewhere it takes ten
    times as long.
    """
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    able = torch.cpu.get_capabilities()
    return torch.autocast(
        "cpu", torch.bfloat16, enabled=any(able.get(name) for name in NATIVE_BF16)
    )


class BatchedMuon(Optimizer):
    """Muon (as torch's: Nesterov momentum, five Newton-Schulz steps) with matrices of one shape
    made orthogonal
    together: a small model has many small matrices, and one by one they keep a GPU waiting."""

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            moments = [self._moment(p) for p in params]
            torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, moments, group["momentum"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            by_shape: dict[torch.Size, list[int]] = defaultdict(list)
            for k, update in enumerate(updates):
                by_shape[update.shape].append(k)
            for shape, numbers in by_shape.items():
                made = orthogonal(torch.stack([updates[k] for k in numbers]))
                scale = -group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                torch._foreach_add_(
                    [params[k] for k in numbers],
                    list(made.to(params[0].dtype).unbind()),
                    alpha=scale,
                )

    def _moment(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "moment" not in state:
            state["moment"] = torch.zeros_like(parameter)
        return state["moment"]  # type: ignore[no-any-return]


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices with the directions of these, [n, rows, columns]."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    turned: Tensor = x.mT if tall else x
    return turned


def make_optimisers(module: nn.Module, muon_lr: float, adam_lr: float) -> list[Optimizer]:
    """Splits the trainable parameters: matrices inside the blocks go to Muon, embeddings, norms and
    heads to AdamW.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim == 2 and not any(
            word in name for word in ("embed", "heads", "lm_head")
        )
        (matrices if hidden else others).append(parameter)
    fused = others[0].device.type == "cuda"
    adam = AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
    return [BatchedMuon(matrices, lr=muon_lr), adam]


class Schedule:
    """Steps the optimisers under gradient clipping. The rate follows the share of the work that is
    done, so it ends low exactly when the time is over: it rises over `warm_up`, stays, and falls
    linearly from `fall_from` on."""

    def __init__(
        self, optimisers: list[Optimizer], warm_up: float = 0.03, fall_from: float = 0.35
    ) -> None:
        self.optimisers, self.warm_up, self.fall_from = optimisers, warm_up, fall_from
        self.rates = [[group["lr"] for group in o.param_groups] for o in optimisers]

    def share(self, done: float) -> float:
        """Of the rates, after this share of the work."""
        rise = min(1.0, 0.05 + done / self.warm_up) if self.warm_up else 1.0
        fall = (1.0 - done) / (1.0 - self.fall_from) if done > self.fall_from else 1.0
        return max(LEAST_RATE, rise * min(1.0, fall))

    def step(self, done: float) -> None:
        share = self.share(done)
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * share
            parameters = [p for g in optimiser.param_groups for p in g["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, MOST_NORM, foreach=True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
