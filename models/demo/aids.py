"""Two aids of the binding stage, thrown away with it: say your time, and look where the answer is.

*Say your time*: linear heads on a middle layer must read each visual token's time stamp off it, so a picture learns to
carry its time. *Look where the answer is*: in one later layer, two heads' raw q . raw k must point from an answer to the
groups that hold it, so retrieval heads appear early and stay sharp. Both speed up what the answers alone teach slowly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.demo.architecture import HIDDEN, TOKENS_PER_GROUP
from models.demo.bind import Batch, TokenRow
from models.demo.questions import Question

TIME_LAYER = 1  # its output carries the time
RETRIEVAL_LAYER = 3
RETRIEVAL_HEADS = (0, 2)  # of different KV heads
PLACES = (1, 100, 10_000)  # what the pairs of digits of a second are worth
TOKENS_ASKED = 4  # visual tokens of each group that must say their time


class Aids(nn.Module):
    """Listens to the layers of a text model while it runs, and gives the losses of the last run."""

    def __init__(self, text_model: Any) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(HIDDEN, 100) for _ in PLACES])
        self._heard: dict[str, Tensor] = {}
        attention = text_model.layers[RETRIEVAL_LAYER].self_attn
        self._group_size = attention.num_key_value_groups
        for name, module in (
            ("hidden", text_model.layers[TIME_LAYER]),
            ("queries", attention.q_norm),
            ("keys", attention.k_norm),
        ):
            module.register_forward_hook(self._listener(name))

    def _listener(self, name: str) -> Any:
        def hear(module: nn.Module, inputs: Any, output: Any) -> None:
            self._heard[name] = output[0] if isinstance(output, tuple) else output

        return hear

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, float]:
        """Loss of saying the time, loss of looking, and how often the look falls on a right group first."""
        looking, hit = self._looking(batch)
        return self._saying(batch), looking, hit

    def _saying(self, batch: Batch) -> Tensor:
        tokens = self._heard["hidden"][batch.visual].view(-1, TOKENS_PER_GROUP, HIDDEN)
        tokens = tokens[:, torch.randperm(TOKENS_PER_GROUP)[:TOKENS_ASKED]].float()
        seconds = torch.tensor([m.second for row in batch.rows for m in row.moments])
        loss = tokens.new_zeros(())
        for head, place in zip(self.heads, PLACES, strict=True):
            truth = (seconds // place % 100).repeat_interleave(TOKENS_ASKED)
            loss = loss + nn.functional.cross_entropy(head(tokens).flatten(0, 1), truth)
        return loss / len(PLACES)

    def _looking(self, batch: Batch) -> tuple[Tensor, float]:
        """Cross-entropy over the seen groups of the summed best matches of their tokens."""
        asked = batch.targets != -100
        wanted, seen = look_targets(batch)
        keys = self._heard["keys"][batch.visual].float()  # [visual tokens, kv_heads, head_dim]
        queries = self._heard["queries"][asked].float()  # [asked, heads, head_dim]
        scores = queries.new_zeros(wanted.shape)
        for head in RETRIEVAL_HEADS:
            match = queries[:, head] @ keys[:, head // self._group_size].T / keys.shape[-1] ** 0.5
            scores = scores + match.view(len(queries), -1, TOKENS_PER_GROUP).logsumexp(-1)
        useful = wanted.any(dim=1)
        logs = scores.masked_fill(~seen, float("-inf"))[useful].log_softmax(dim=-1)
        right = wanted[useful]
        if not right.numel():
            return scores.sum() * 0, 0.0
        loss = -logs.masked_fill(~right, float("-inf")).logsumexp(dim=-1).mean()
        return loss, float(right.gather(1, logs.argmax(-1, keepdim=True)).float().mean())


def look_targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """For every answer token in row order: which groups of the batch hold the answer, and which its question sees;
    bool [asked, groups] each."""
    places = (batch.targets != -100).nonzero().tolist()
    borders = np.cumsum([0, *(len(row.moments) for row in batch.rows)])
    wanted = np.zeros((len(places), int(borders[-1])), dtype=bool)
    seen = np.zeros_like(wanted)
    for k, (b, n) in enumerate(places):
        row, mine = batch.rows[b], slice(borders[b], borders[b + 1])
        seen[k, mine] = row.moments_seen
        wanted[k, mine] = row.moments_seen & answering(row, batch.questions[b][int(batch.owner[b, n])])
    return torch.from_numpy(wanted), torch.from_numpy(seen)


def answering(row: TokenRow, question: Question) -> NDArray[np.bool_]:
    """Which groups of the row hold the answer: the moment asked about, else those that show the true events."""
    if question.second is not None:
        return np.array([m.second == question.second for m in row.moments])
    return np.array([any(event in question.events for event in m.events) for m in row.moments])
