"""Aids of the binding stage, thrown away with it: say your time, tell what is around you, look where the answer is.

*Say*: linear heads on an early layer must read each visual token's time stamp off it. *Tell*: a layer later, what was
shown just before; and from the token that closes a group, its time and all that it shows. *Look*: in one later layer,
two heads' raw q . raw k must point from a name in the question, and from its answer, to the groups they are about, so
retrieval heads appear early and stay sharp. *Read*: after that, the attention of two heads must rest on the groups that
the next word of the answer is read from. They speed up by far what the answers alone teach slowly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.demo.architecture import HIDDEN, TOKENS_PER_GROUP
from models.demo.bind import Batch, TokenRow
from models.demo.questions import NEXT_SECONDS, Facts, Question
from models.demo.scenes import Moment
from models.demo.tokenizer import vocabulary
from models.demo.world import COLOURS, MOTIONS, SHAPES, WorldEvent

TIME_LAYER = 1  # its output carries the time
TELL_LAYER = 2  # its output carries what came before
RETRIEVAL_LAYER = 3
RETRIEVAL_HEADS = (0, 2)  # of different KV heads
TIME_HEADS = (4,)  # that look for the moment a question names, and are shared with no name
READ_LAYER = 4
READ_HEADS = (0, 2, 4)
PLACES = (1, 100, 10_000)  # what the pairs of digits of a second are worth
SUMMARY = (  # what a closing token is asked for: things, motions, how many
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"digit {n}" for n in range(10)),
    *MOTIONS,
    *(str(n) for n in range(5)),
)
THEN = vocabulary().index("then")
TOKENS_ASKED = 4  # visual tokens of each group that must say their time


class Aids(nn.Module):
    """Listens to the layers of a text model while it runs, and gives the losses of the last run."""

    def __init__(self, text_model: Any) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(HIDDEN, 100) for _ in PLACES])
        self.closing_time_heads = nn.ModuleList([nn.Linear(HIDDEN, 100) for _ in PLACES])
        self.summary_heads = nn.Linear(HIDDEN, len(SUMMARY))
        self.before_heads = nn.ModuleList([nn.Linear(HIDDEN, len(SHAPES) + 2), nn.Linear(HIDDEN, len(COLOURS) + 1)])
        self._heard: dict[str, Tensor] = {}
        attention, reading = (text_model.layers[layer].self_attn for layer in (RETRIEVAL_LAYER, READ_LAYER))
        self._group_size = attention.num_key_value_groups
        for name, module in (
            ("early", text_model.layers[TIME_LAYER]),
            ("late", text_model.layers[TELL_LAYER]),
            ("queries", attention.q_norm),
            ("keys", attention.k_norm),
            ("read queries", reading.q_norm),
            ("read keys", reading.k_norm),
            ("rotation", text_model.rotary_emb),
        ):
            module.register_forward_hook(self._listener(name))

    def _listener(self, name: str) -> Any:
        def hear(module: nn.Module, inputs: Any, output: Any) -> None:
            self._heard[name] = torch.stack(output) if name == "rotation" else output

        return hear

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], float]:
        """The loss of each aid, and how often the look falls on a right group first."""
        looking, hit = self._looking(batch)
        rows = [r for row, reach in zip(batch.rows, batch.reaches, strict=True) for r in surroundings(row, reach)]
        truth = torch.tensor(rows)  # [groups, 2]
        late, closing = self._tokens("late", batch), self._heard["late"][closing_tokens(batch)].float()
        seconds = torch.tensor([m.second for row in batch.rows for m in row.moments])
        return {
            "time": time_loss(self.heads, self._tokens("early", batch), seconds.repeat_interleave(TOKENS_ASKED)),
            "closing": time_loss(self.closing_time_heads, closing, seconds),
            "summary": self._summary(closing, batch),
            "before": self._before(late, truth.repeat_interleave(TOKENS_ASKED, 0)) + self._before(closing, truth),
            "look": looking,
            "read": self._reading(batch),
        }, hit

    def _before(self, tokens: Tensor, truth: Tensor) -> Tensor:
        pairs = zip(self.before_heads, truth.unbind(1), strict=True)
        return sum_of(nn.functional.cross_entropy(head(tokens), column) for head, column in pairs)

    def _summary(self, closing: Tensor, batch: Batch) -> Tensor:
        moments = [m for row in batch.rows for m in row.moments]
        truth = torch.tensor([summary(m) for m in moments])
        clean = torch.tensor([m.clean for m in moments])
        logits = self.summary_heads(closing)[clean]
        return 20 * nn.functional.binary_cross_entropy_with_logits(logits, truth[clean])

    def _tokens(self, name: str, batch: Batch) -> Tensor:
        """What some tokens of every group carry in a layer, [tokens asked, hidden]."""
        tokens = self._heard[name][batch.visual].view(-1, TOKENS_PER_GROUP, HIDDEN)
        return tokens[:, torch.randperm(TOKENS_PER_GROUP)[:TOKENS_ASKED]].float().flatten(0, 1)

    def _looking(self, batch: Batch) -> tuple[Tensor, float]:
        """Cross-entropy over the seen groups of the summed best matches of their tokens."""
        places, timed, wanted, seen = look_targets(batch)
        keys = self._heard["keys"][batch.visual].float()  # [visual tokens, kv_heads, head_dim]
        queries = self._heard["queries"][places[:, 0], places[:, 1]].float()  # [looks, heads, head_dim]
        scores = queries.new_zeros(wanted.shape)
        for head in (*RETRIEVAL_HEADS, *TIME_HEADS):
            match = queries[:, head] @ keys[:, head // self._group_size].T / keys.shape[-1] ** 0.5
            best = match.view(len(queries), -1, TOKENS_PER_GROUP).logsumexp(-1)
            scores = torch.where((timed == (head in TIME_HEADS))[:, None], scores + best, scores)
        useful = wanted.any(dim=1)
        logs = scores.masked_fill(~seen, float("-inf"))[useful].log_softmax(dim=-1)
        right = wanted[useful]
        if not right.numel():
            return scores.sum() * 0, 0.0
        loss = -logs.masked_fill(~right, float("-inf")).logsumexp(dim=-1).mean()
        return loss, float(right.gather(1, logs.argmax(-1, keepdim=True)).float().mean())

    def _reading(self, batch: Batch) -> Tensor:
        """Minus the log of the attention that answer tokens give to the groups they are read from, mean over heads."""
        cosines, sines = self._heard["rotation"].float()
        queries, keys = (rotated(self._heard[name].float(), cosines, sines) for name in ("read queries", "read keys"))
        losses = []
        for b, row in enumerate(batch.rows):
            places = (batch.targets[b] != -100).nonzero()[:, 0].tolist()
            wanted = torch.from_numpy(read_targets(row, batch, b, places))
            useful = wanted.any(dim=1)
            hidden = ~batch.allowed[b, 0, places]
            for head in READ_HEADS:
                match = queries[b, places, head] @ keys[b, :, head // self._group_size].T / keys.shape[-1] ** 0.5
                logs = match.masked_fill(hidden, float("-inf")).log_softmax(dim=-1)
                losses.append(-logs.masked_fill(~wanted, float("-inf"))[useful].logsumexp(dim=-1))
        return torch.cat(losses).mean()


def rotated(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """RoPE on [B, N, heads, head_dim] by angles [B, N, head_dim], halves turned against each other."""
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosines[:, :, None] + torch.cat([-second, first], dim=-1) * sines[:, :, None]


def read_targets(row: TokenRow, batch: Batch, b: int, places: Sequence[int]) -> NDArray[np.bool_]:
    """Which tokens of the row each answer token should be read from, bool [places, N]."""
    shown = np.zeros((len(places), batch.ids.shape[1]), dtype=bool)
    moment = np.array(row.moment)
    told: Counter[int] = Counter()  # events a caption has told so far, by question
    known: dict[tuple[int, int], NDArray[np.bool_]] = {}
    for k, n in enumerate(places):
        number = row.owner[n]
        told[number] += row.targets[n] == THEN
        at = (number, told[number])
        if at not in known:
            groups = row.moments_seen & source(row, batch.questions[b][number], told[number])
            known[at] = np.isin(moment, groups.nonzero()[0])
        shown[k, : len(moment)] = known[at]
    return shown


def look_targets(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Looks to be taken: the row and place of the looking token, [looks, 2]; whether it looks for a time, [looks];
    which groups of the batch it should fall on, and which its question sees, bool [looks, groups] each."""
    borders = np.cumsum([0, *(len(row.moments) for row in batch.rows)])
    places: list[tuple[int, int]] = []
    timed: list[bool] = []
    wanted: list[NDArray[np.bool_]] = []
    seen: list[NDArray[np.bool_]] = []
    for b, row in enumerate(batch.rows):
        facts = Facts(row.moments)
        looks = [(n, showing(row, facts.by_name.get(name, ()))) for n, name in row.names]
        asked = [answering(row, question) for question in batch.questions[b]]
        looks += [(n, groups) for n in range(len(row.ids)) if row.targets[n] != -100 for groups in asked[row.owner[n]]]
        for n, groups in looks:
            places.append((b, n))
            timed.append(row.targets[n] != -100 and batch.questions[b][row.owner[n]].second is not None)
            for marks, mine in ((wanted, row.moments_seen & groups), (seen, np.array(row.moments_seen))):
                marks.append(np.zeros(borders[-1], dtype=bool))
                marks[-1][borders[b] : borders[b + 1]] = mine
    return (
        torch.tensor(places),
        torch.tensor(timed),
        torch.from_numpy(np.stack(wanted)),
        torch.from_numpy(np.stack(seen)),
    )


def answering(row: TokenRow, question: Question) -> list[NDArray[np.bool_]]:
    """Which groups of the row the question is about: the moment asked about, else those that show the true events; of
    two things to compare, each is looked for."""
    if question.second is not None:
        return [np.array([m.second == question.second for m in row.moments])]
    if question.family in ("first_of", "last_of"):
        return [showing(row, [event]) for event in question.events]
    return [showing(row, question.events)]


def source(row: TokenRow, question: Question, told: int) -> NDArray[np.bool_]:
    """Which groups of the row the next word of the answer is read from: of two events, the one that is the answer; of
    a caption, the one to be told next."""
    if question.second is not None:
        return answering(row, question)[0]
    events: Sequence[WorldEvent] = question.events
    if question.family == "caption":
        events = events[told : told + 1]
    elif question.family in ("after", "before"):
        events = events[1:]
    elif question.family in ("first_of", "last_of"):
        events = [e for e in events if any(f"the {thing.name}" == question.answer for thing in e.things)]
    return showing(row, events)


def showing(row: TokenRow, events: Collection[WorldEvent]) -> NDArray[np.bool_]:
    """Which groups of the row show one of the events."""
    return np.array([any(event in events for event in m.events) for m in row.moments])


def surroundings(row: TokenRow, reach: int) -> list[list[int]]:
    """For every group in which something comes up: shape and colour of what was shown just before (0: nothing near);
    -100 elsewhere, and where that has no one answer or lies out of the group's view."""
    around = []
    shown: list[tuple[WorldEvent, int, float]] = []  # events so far, with the chunk and the time they were last seen
    for moment, chunk in zip(row.moments, row.moments_chunk, strict=True):
        around.append([*_before(moment, chunk, reach, shown)])
        for event in moment.events:
            shown = [s for s in shown if s[0] is not event] + [(event, chunk, moment.pts_seconds)]
    return around


def _before(moment: Moment, chunk: int, reach: int, shown: list[tuple[WorldEvent, int, float]]) -> tuple[int, int]:
    if not moment.clean or not moment.events:
        return -100, -100
    if any(event is moment.events[0] for event, _, _ in shown):
        return -100, -100
    if not shown or moment.pts_seconds - shown[-1][2] > NEXT_SECONDS:
        return (0, 0) if reach else (-100, -100)
    event, place, _ = shown[-1]
    if place < chunk - reach or len(event.things) > 1:
        return -100, -100
    thing = event.things[0]
    shape = len(SHAPES) + 1 if thing.digit is not None else SHAPES.index(thing.shape) + 1
    return shape, list(COLOURS).index(thing.colour) + 1


def closing_tokens(batch: Batch) -> Tensor:
    """Marks the token right behind the last visual token of each group, bool [B, N]."""
    marks = torch.zeros_like(batch.visual)
    marks[:, 1:] = batch.visual[:, :-1] & ~batch.visual[:, 1:]
    return marks


def summary(moment: Moment) -> list[float]:
    """What a group shows as marks in the order of `SUMMARY`."""
    things = [thing for event in moment.events for thing in event.things]
    shown = {thing.name for thing in things} | {thing.motion for thing in things if thing.digit is None}
    shown.add(str(len(things)))
    return [float(name in shown) for name in SUMMARY]


def time_loss(heads: Iterable[nn.Module], tokens: Tensor, seconds: Tensor) -> Tensor:
    """Mean cross-entropy of reading the three pairs of digits of `seconds` [n] off `tokens` [n, hidden]."""
    losses = [
        nn.functional.cross_entropy(head(tokens), seconds // place % 100)
        for head, place in zip(heads, PLACES, strict=True)
    ]
    return sum_of(losses) / len(PLACES)


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()
