"""Aids of the binding stage, thrown away with it: say your time, tell what is around you, look where the answer is.

*Say*: linear heads on an early layer must read each visual token's time stamp off it, and off a time in a question what
it names. *Tell*: a layer later, what was
shown just before; and from the token that closes a group, its time and all that it shows. *Look*: in one later layer,
two heads' raw q . raw k must point from a name in the question, and from its answer, to the groups they are about, so
retrieval heads appear early and stay sharp; another head's from a time in the question to the group of that time.
*Fetch*: what that head sees there, it must attend to, and tell. *Read*: after that, the attention of some heads must
rest on the groups that the next word is read from. They speed up by far what the answers alone teach slowly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from models.demo.architecture import HIDDEN, TOKENS_PER_GROUP
from models.demo.tokenizer import vocabulary
from models.demo.world import COLOURS, MOTIONS, SHAPES, WorldEvent
from training.bind import Batch, ClipMaker, TokenRow
from training.questions import NEXT_SECONDS, Facts, Question
from training.scenes import Moment

TIME_LAYER = 1  # its output carries the time
TELL_LAYER = 2  # its output carries what came before
RETRIEVAL_LAYER = 3
RETRIEVAL_HEADS = (0, 2)  # of different KV heads
TIME_HEADS = (4,)  # that look for the moment a question names, and are shared with no name
NEXT_HEADS = (5,)  # that look from a thing's name to what comes right after it
READ_LAYER = 4
READ_HEADS = (0, 2, 4)
PLACES = (1, 100, 10_000)  # what the pairs of digits of a second are worth
SUMMARY = (  # what a closing token is asked for: things, motions, how many
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"digit {n}" for n in range(10)),
    *MOTIONS,
    *(str(n) for n in range(5)),
)
THEN, CLOSING = vocabulary().index("then"), vocabulary().index("<|vision_end|>")
NOTHING = -1e4  # how well a token matches that was pruned
TOKENS_ASKED = 4  # visual tokens that must say their time, so many for each group


Looks = list[tuple[int, int, NDArray[np.bool_]]]  # row, place of the looking token, groups of the row to look at
AttentionTargets = Callable[[Batch, int], tuple[list[int], NDArray[np.bool_]]]


class Aids(nn.Module):
    """Listens to the layers of a text model while it runs, and gives the losses of the last run."""

    def __init__(self, text_model: Any) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(HIDDEN, 100) for _ in PLACES])
        self.closing_time_heads = nn.ModuleList([nn.Linear(HIDDEN, 100) for _ in PLACES])
        self.summary_heads = nn.Linear(HIDDEN, len(SUMMARY))
        self.fetched_heads = nn.Linear(HIDDEN, len(SUMMARY))
        self.fetched_time_heads = nn.ModuleList([nn.Linear(HIDDEN, 100) for _ in PLACES])
        self.fetched_next_heads = nn.Linear(HIDDEN, len(SUMMARY))
        self.fetched_before_heads = before_heads()
        self.before_heads = before_heads()
        self.heard: dict[str, Tensor] = {}
        attention, reading = (text_model.layers[layer].self_attn for layer in (RETRIEVAL_LAYER, READ_LAYER))
        self.group_size = attention.num_key_value_groups
        for name, module in (
            ("early", text_model.layers[TIME_LAYER]),
            ("late", text_model.layers[TELL_LAYER]),
            ("fetched", text_model.layers[RETRIEVAL_LAYER]),
            ("queries", attention.q_norm),
            ("keys", attention.k_norm),
            ("read queries", reading.q_norm),
            ("read keys", reading.k_norm),
            ("rotation", text_model.rotary_emb),
        ):
            module.register_forward_hook(self._listener(name))
        self._num_layers = len(text_model.layers)
        for number, layer in enumerate(text_model.layers):
            layer.self_attn.k_norm.register_forward_hook(self._listener(f"keys {number}"))
            layer.self_attn.v_proj.register_forward_hook(self._listener(f"values {number}"))

    def _listener(self, name: str) -> Any:
        def hear(module: nn.Module, inputs: Any, output: Any) -> None:
            self.heard[name] = torch.stack(output) if name == "rotation" else output

        return hear

    def raw_keys_and_values(self) -> list[tuple[Tensor, Tensor]]:
        """Those of every layer, un-rotated, [B * N, kv_heads, head_dim] each."""
        pairs = [(self.heard[f"keys {k}"], self.heard[f"values {k}"]) for k in range(self._num_layers)]
        return [(keys.flatten(0, 1), values.view(keys.shape).flatten(0, 1)) for keys, values in pairs]

    def clip_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of what clips' tokens must tell."""
        rows = [r for row, reach in zip(batch.rows, batch.reaches, strict=True) for r in surroundings(row, reach)]
        truth = torch.tensor(rows)  # [groups, 2]
        some = some_visual_tokens(batch)
        early, late = (self.heard[name][batch.visual][some.places].float() for name in ("early", "late"))
        closing = self.heard["late"][batch.ids == CLOSING].float()
        seconds = torch.tensor([m.second for row in batch.rows for m in row.moments])
        return {
            "time": time_loss(self.heads, early, seconds[some.groups]),
            "closing": time_loss(self.closing_time_heads, closing, seconds),
            "summary": self._summary(closing, batch),
            "before": before_loss(self.before_heads, late, truth[some.groups])
            + before_loss(self.before_heads, closing, truth),
        }

    def named_loss(self, batch: Batch) -> Tensor:
        """How badly times in questions say what they name."""
        named, seconds = self._named_times(batch)
        return time_loss(self.heads, named, seconds) if len(named) else named.sum()

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The loss of each aid, and how often each kind of look falls on a right group first."""
        names, name_hit = self._looking(batch, name_looks(batch), RETRIEVAL_HEADS)
        times, time_hit = self._looking(batch, time_looks(batch), TIME_HEADS)
        return {
            **self.clip_losses(batch),
            "named": self.named_loss(batch),
            "look": names,
            "look for time": times,
            "fetch": self._attending(batch, ("queries", "keys"), TIME_HEADS, fetch_targets),
            "fetched": self._fetched(batch),
            "read": self._attending(batch, ("read queries", "read keys"), READ_HEADS, read_targets),
        }, {"names": name_hit, "times": time_hit}

    def _summary(self, closing: Tensor, batch: Batch) -> Tensor:
        return summary_loss(self.summary_heads, closing, [m for row in batch.rows for m in row.moments])

    def _fetched(self, batch: Batch) -> Tensor:
        """A time in a question must tell what its group shows, once it has looked there."""
        found = [
            (b, n, row.moments[int(groups.argmax())])
            for b, n, groups in time_looks(batch)
            if (groups & (row := batch.rows[b]).moments_seen).any()
        ]
        rows, places = torch.tensor([(b, n) for b, n, _ in found], dtype=torch.long).reshape(-1, 2).unbind(1)
        return summary_loss(self.fetched_heads, self.heard["fetched"][rows, places].float(), [m for _, _, m in found])

    def _named_times(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the times in questions carry in the early layer, [times, hidden], and the seconds they name."""
        named = [
            (b, n, batch.questions[b][number].second)
            for b, row in enumerate(batch.rows)
            for number, n in row.times.items()
        ]
        rows, places, seconds = torch.tensor(named, dtype=torch.long).reshape(-1, 3).unbind(1)
        return self.heard["early"][rows, places].float(), seconds

    def _looking(self, batch: Batch, looks: Looks, heads: Sequence[int]) -> tuple[Tensor, float]:
        """Cross-entropy over the seen groups of the summed best matches of their tokens."""
        wanted, seen = look_targets(batch, looks)
        rows, places = torch.tensor([(b, n) for b, n, _ in looks], dtype=torch.long).reshape(-1, 2).unbind(1)
        keys = self.heard["keys"][batch.visual].float()  # [visual tokens, kv_heads, head_dim]
        queries = self.heard["queries"][rows, places].float()  # [looks, heads, head_dim]
        slots = groups_of_visual_tokens(batch) * TOKENS_PER_GROUP + batch.features % TOKENS_PER_GROUP
        scores = queries.new_zeros(wanted.shape)
        for head in heads:
            match = queries.new_full((len(queries), wanted.shape[1] * TOKENS_PER_GROUP), NOTHING)
            match[:, slots] = queries[:, head] @ keys[:, head // self.group_size].T / keys.shape[-1] ** 0.5
            scores = scores + match.view(*wanted.shape, TOKENS_PER_GROUP).logsumexp(-1)
        useful = wanted.any(dim=1)
        scores, seen, right = scores[useful], seen[useful], wanted[useful]
        if not right.numel():
            return keys.sum() * 0, 0.0
        first = scores.masked_fill(~seen, float("-inf")).argmax(-1, keepdim=True)
        return missed(scores, seen, right).mean(), float(right.gather(1, first).float().mean())

    def _attending(
        self, batch: Batch, vectors: tuple[str, str], heads: Sequence[int], targets: AttentionTargets
    ) -> Tensor:
        """Minus the log of the attention that some tokens give to where they should look, mean over heads."""
        cosines, sines = self.heard["rotation"].float()
        queries, keys = (rotated(self.heard[name].float(), cosines, sines) for name in vectors)
        losses = [keys.new_zeros(0)]
        for b in range(len(batch.rows)):
            places, marks = targets(batch, b)
            wanted = torch.from_numpy(marks)
            useful = wanted.any(dim=1)
            seen = batch.allowed[b, 0, places][useful]
            for head in heads:
                match = queries[b, places, head] @ keys[b, :, head // self.group_size].T / keys.shape[-1] ** 0.5
                losses.append(missed(match[useful], seen, wanted[useful]))
        every = torch.cat(losses)
        return every.mean() if every.numel() else keys.sum() * 0


@dataclass(frozen=True, eq=False)
class Learner:
    """What the binding stage trains, and on what: embeddings and DeepStack level of all of the bank's groups."""

    model: Qwen3VLForConditionalGeneration
    aids: Aids
    maker: ClipMaker
    features: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """What one step of the binding stage has come to: logits where the batch's answers are predicted, the losses of the
    aids, and how often each kind of look fell on a right group first."""

    batch: Batch
    logits: Tensor
    helped: dict[str, Tensor]
    hits: dict[str, float]


def missed(scores: Tensor, seen: Tensor, wanted: Tensor) -> Tensor:
    """Minus the log of the share that softmax over what is `seen` gives to what is `wanted`, over the last axis."""
    logs = scores.masked_fill(~seen, float("-inf")).log_softmax(-1)
    return -logs.masked_fill(~wanted, float("-inf")).logsumexp(-1)


def rotated(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """RoPE on [B, N, heads, head_dim] by angles [B, N, head_dim], halves turned against each other."""
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosines[:, :, None] + torch.cat([-second, first], dim=-1) * sines[:, :, None]


def read_targets(batch: Batch, b: int) -> tuple[list[int], NDArray[np.bool_]]:
    """The answer tokens of a row, and which tokens each should be read from, bool [places, N]: those of the groups that
    show it, or the named time, which has fetched what they show."""
    row = batch.rows[b]
    places = [n for n, target in enumerate(row.targets) if target != -100]
    shown = np.zeros((len(places), batch.ids.shape[1]), dtype=bool)
    moment = np.array(row.moment)
    told: Counter[int] = Counter()  # events a caption has told so far, by question
    known: dict[tuple[int, int], NDArray[np.bool_]] = {}
    for k, n in enumerate(places):
        number = row.owner[n]
        told[number] += row.targets[n] == THEN
        at = (number, told[number])
        if at not in known:
            groups = row.moments_seen & source(row.moments, batch.questions[b][number], told[number])
            known[at] = np.isin(moment, groups.nonzero()[0])
            if number in row.times:
                known[at][row.times[number]] = groups.any()
        shown[k, : len(moment)] = known[at]
    return places, shown


def fetch_targets(batch: Batch, b: int) -> tuple[list[int], NDArray[np.bool_]]:
    """The times named in a row's questions, and which tokens belong to the groups of these times, bool [places, N]."""
    row, moment = batch.rows[b], np.array(batch.rows[b].moment)
    shown = np.zeros((len(row.times), batch.ids.shape[1]), dtype=bool)
    for k, number in enumerate(row.times):
        groups = row.moments_seen & answering(row.moments, batch.questions[b][number])[0]
        shown[k, : len(moment)] = np.isin(moment, groups.nonzero()[0])
    return list(row.times.values()), shown


def name_looks(batch: Batch) -> Looks:
    """From the names of things, and from the answers about them, to the groups that show them."""
    looks: Looks = []
    for b, row in enumerate(batch.rows):
        facts = Facts(row.moments)
        looks += [(b, n, showing(row.moments, facts.by_name.get(name, ()))) for n, name in row.names]
        asked = [[] if q.second is not None else answering(row.moments, q) for q in batch.questions[b]]
        answers = [n for n, target in enumerate(row.targets) if target != -100]
        looks += [(b, n, groups) for n in answers for groups in asked[row.owner[n]]]
    return looks


def time_looks(batch: Batch) -> Looks:
    """From the times named in questions to the groups of these times."""
    return [
        (b, n, answering(row.moments, batch.questions[b][number])[0])
        for b, row in enumerate(batch.rows)
        for number, n in row.times.items()
    ]


def look_targets(batch: Batch, looks: Looks) -> tuple[Tensor, Tensor]:
    """Which groups of the batch each look should fall on, and which its question sees, bool [looks, groups] each; of
    those that have tokens."""
    borders = np.cumsum([0, *(len(row.moments) for row in batch.rows)])
    wanted, seen = (np.zeros((len(looks), borders[-1]), dtype=bool) for _ in range(2))
    full = np.isin(np.arange(borders[-1]), groups_of_visual_tokens(batch))
    for k, (b, _, groups) in enumerate(looks):
        mine = slice(borders[b], borders[b + 1])
        seen[k, mine] = batch.rows[b].moments_seen & full[mine]
        wanted[k, mine] = seen[k, mine] & groups
    return torch.from_numpy(wanted), torch.from_numpy(seen)


def answering(moments: Sequence[Moment], question: Question) -> list[NDArray[np.bool_]]:
    """Which groups the question is about: the moment asked about, else those that show the true events; of
    two things to compare, each is looked for."""
    if question.second is not None:
        return [np.array([m.second == question.second for m in moments])]
    if question.family in ("first_of", "last_of"):
        return [showing(moments, [event]) for event in question.events]
    return [showing(moments, question.events)]


def source(moments: Sequence[Moment], question: Question, told: int = 0) -> NDArray[np.bool_]:
    """Which groups the next word of the answer is read from: of two events, the one that is the answer; of
    a caption, the one to be told next."""
    if question.second is not None:
        return answering(moments, question)[0]
    events: Sequence[WorldEvent] = question.events
    if question.family == "caption":
        events = events[told : told + 1]
    elif question.family in ("after", "before"):
        events = events[1:]
    elif question.family in ("first_of", "last_of"):
        events = [e for e in events if any(f"the {thing.name}" == question.answer for thing in e.things)]
    return showing(moments, events)


def showing(moments: Sequence[Moment], events: Collection[WorldEvent]) -> NDArray[np.bool_]:
    """Which groups show one of the events."""
    return np.array([any(event in events for event in m.events) for m in moments])


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


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """Some of a batch's visual tokens: their places among all of them, and their groups' numbers, [n] each."""

    places: Tensor
    groups: Tensor


def groups_of_visual_tokens(batch: Batch) -> Tensor:
    """For every visual token the number of its group in the batch, [visual tokens]."""
    borders = np.cumsum([0, *(len(row.moments) for row in batch.rows)])[:-1]
    own = [np.array(row.moment)[np.array(row.feature) >= 0] for row in batch.rows]
    numbers = [numbers + border for numbers, border in zip(own, borders, strict=True)]
    return torch.from_numpy(np.concatenate(numbers))


def some_visual_tokens(batch: Batch) -> VisualTokens:
    groups = groups_of_visual_tokens(batch)
    places = torch.randperm(len(groups))[: TOKENS_ASKED * sum(len(row.moments) for row in batch.rows)]
    return VisualTokens(places, groups[places])


def summary_loss(heads: nn.Module, tokens: Tensor, moments: Sequence[Moment]) -> Tensor:
    """How badly `tokens` [n, hidden] tell what these n moments show; moments of two events are not asked."""
    clean = torch.tensor([m.clean for m in moments], dtype=torch.bool)
    if not clean.any():
        return tokens.sum() * 0
    truth = torch.tensor([summary(m) for m in moments])
    return 20 * nn.functional.binary_cross_entropy_with_logits(heads(tokens)[clean], truth[clean])


def summary(moment: Moment) -> list[float]:
    """What a group shows as marks in the order of `SUMMARY`."""
    things = [thing for event in moment.events for thing in event.things]
    shown = {thing.name for thing in things} | {thing.motion for thing in things if thing.digit is None}
    shown.add(str(len(things)))
    return [float(name in shown) for name in SUMMARY]


def before_heads() -> nn.ModuleList:
    """For shape and colour of what was shown before, each with a class for nothing, shapes with one for digits."""
    return nn.ModuleList([nn.Linear(HIDDEN, len(SHAPES) + 2), nn.Linear(HIDDEN, len(COLOURS) + 1)])


def before_loss(heads: Iterable[nn.Module], tokens: Tensor, truth: Tensor) -> Tensor:
    """How badly tokens [n, hidden] tell the shape and the colour of what was shown before, [n, 2]; -100: not asked."""
    pairs = zip(heads, truth.unbind(1), strict=True)
    losses = [nn.functional.cross_entropy(head(tokens), column, reduction="sum") for head, column in pairs]
    return sum_of(losses) / int((truth[:, 0] >= 0).sum().clamp(min=1))


def time_loss(heads: Iterable[nn.Module], tokens: Tensor, seconds: Tensor) -> Tensor:
    """Mean cross-entropy of reading the three pairs of digits of `seconds` [n] off `tokens` [n, hidden]."""
    losses = [
        nn.functional.cross_entropy(head(tokens), seconds // place % 100)
        for head, place in zip(heads, PLACES, strict=True)
    ]
    return sum_of(losses) / len(PLACES)


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()
