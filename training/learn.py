"""The binding stage on a device: the LLM learns to answer from what the (frozen) tower sees.

Beside the answers stand aids, thrown away with the stage. *Say*: linear heads on an early layer
must read each visual token's time stamp off it, and off a time in a question what it names. *Tell*:
a layer later, what was shown just before; and from the token that closes a group, its time and all
that it shows. *Look*: in one later layer, two heads' raw q . raw k must point from a name in the
question to the groups that show it, so retrieval heads appear early and stay sharp; another head's
from a time to its group, another's from a name to what comes next. *Fetch*: what such a head sees
there, it must attend to, and tell. *Read*: after that, the attention of some heads must rest on the
groups that the next word is read from. They speed up by far what the answers alone teach slowly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from models.demo.architecture import HIDDEN
from models.demo.world import COLOURS, SHAPES
from training.optimiser import mixed_precision
from training.plan import NOT_ASKED, SUMMARY
from training.stock_cache import filled_cache

TIME_LAYER = 1  # its output carries the time
TELL_LAYER = 2  # its output carries what came before
RETRIEVAL_LAYER = 3
RETRIEVAL_HEADS = (0, 2)  # of different KV heads
TIME_HEADS = (4,)  # that look for the moment a question names, and are shared with no name
NEXT_HEADS = (5,)  # that look from a thing's name to what comes right after it
READ_LAYER = 4
READ_HEADS = (0, 2, 4)
PLACES = (1, 100, 10_000)  # what the pairs of digits of a second are worth
ALIGNED = 8  # tokens: attention is fastest where masks are so many times a whole number wide
NOWHERE = -1e4  # how well a token matches that does not count
SUMMARY_WEIGHT = 20.0

Batch = dict[str, Tensor]
# of each layer: keys and values of all clip tokens, [tokens, kv_heads, dim]
RawKV = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Result:
    """What a step has come to: the loss of the answers, those of the aids, and which questions were
    answered right.
    """

    loss: Tensor
    aids: dict[str, Tensor]
    right: Tensor  # bool [Q]
    hits: dict[str, Tensor]


class Aids(nn.Module):
    """Throw-away heads, and ears on the layers of a text model while it runs."""

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
        attention, reading = (
            text_model.layers[layer].self_attn for layer in (RETRIEVAL_LAYER, READ_LAYER)
        )
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

    def raw_keys_and_values(self) -> RawKV:
        """Those of every layer, un-rotated, [B * N, kv_heads, head_dim] each."""
        pairs = [
            (self.heard[f"keys {k}"], self.heard[f"values {k}"]) for k in range(self._num_layers)
        ]
        return [
            (keys.flatten(0, 1), values.view(keys.shape).flatten(0, 1)) for keys, values in pairs
        ]


def before_heads() -> nn.ModuleList:
    """For shape and colour of what was shown before, each with a class for nothing, shapes with one
    for digits.
    """
    return nn.ModuleList([nn.Linear(HIDDEN, len(SHAPES) + 2), nn.Linear(HIDDEN, len(COLOURS) + 1)])


@dataclass(frozen=True, eq=False)
class Learner:
    """What the binding stage trains, and on what: embeddings and DeepStack features of all of the
    bank's groups.
    """

    model: Qwen3VLForConditionalGeneration
    aids: Aids
    # half precision [copies * groups * 16, hidden]: each copy under another light
    features: tuple[Tensor, Tensor]
    num_prefix: int  # tokens before every clip
    num_copies: int = 1


def learn(learner: Learner, batch: Batch) -> Result:
    """One step without its optimiser: the batch is a plan as tensors on the device."""
    model, aids = learner.model, learner.aids
    with mixed_precision(batch["ids"].device):
        _prefill(learner, batch)
        raw = aids.raw_keys_and_values()
        helped = _clip_losses(aids, batch)
        looks, hits = _look(learner, raw[RETRIEVAL_LAYER][0], batch)
        helped |= looks
        contexts = Contexts.of(batch, learner.num_prefix)
        states, keys, allowed = _answer(learner, raw, batch, contexts)
        picked = states.flatten(0, 1)[_target_rows(batch, learner.num_prefix)]
        logits = model.lm_head(picked).float()
        helped |= _reading_losses(learner, keys, allowed, batch, contexts)
    targets = batch["target_ids"].long()
    missed_words = (logits.argmax(-1) != targets).to(torch.int32)
    width = batch["asked_ids"].shape[1]
    wrong = torch.zeros(len(batch["asked_ids"]), dtype=torch.int32, device=logits.device)
    wrong.index_add_(0, batch["target_places"].long() // width, missed_words)
    weight = batch["target_weight"]
    each = nn.functional.cross_entropy(logits, targets, reduction="none")
    return Result((each * weight).sum() / weight.sum(), helped, wrong == 0, hits)


def run_layers(
    llm: Any,
    hidden: Tensor,
    positions: Tensor,
    allowed: Tensor,
    deep: Tensor | None = None,
    cache: Any = None,
) -> Tensor:
    """The stock layers, one after the other; `deep` joins after the first, as the stock adds it,
    but without asking the device where. hidden, deep: [B, N, hidden]; positions: [3, B, N];
    allowed: bool [B, 1, N, all]."""
    rotation = llm.rotary_emb(hidden, positions)
    for number, layer in enumerate(llm.layers):
        hidden = layer(
            hidden,
            position_embeddings=rotation,
            attention_mask=allowed,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        if number == 0 and deep is not None:
            hidden = hidden + deep
    return llm.norm(hidden)  # type: ignore[no-any-return]


def _prefill(learner: Learner, batch: Batch) -> None:
    """All clips through the LLM, each chunk in view of those before it."""
    llm = learner.model.model.language_model
    feature = batch["feature"].long()
    visual = (feature >= 0)[..., None]
    copies = torch.randint(learner.num_copies, (len(feature), 1), device=feature.device)
    number = feature.clamp(min=0) + copies * (len(learner.features[0]) // learner.num_copies)
    embeddings, deep = (part[number].float() * visual for part in learner.features)
    hidden = torch.where(visual, embeddings, llm.embed_tokens(batch["ids"]))
    run_layers(
        llm, hidden, batch["positions"].long(), clip_view(batch["chunk"], batch["reach"]), deep
    )


def clip_view(chunk: Tensor, reach: Tensor) -> Tensor:
    """Who sees whom in rows of chunks: the prefix (-1) and `reach` chunks back; padding (-2) only
    itself.
    """
    mine, theirs = chunk[:, :, None], chunk[:, None, :]
    near = (theirs >= mine - reach[:, None, None]) | (theirs == -1)
    n = chunk.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=chunk.device).tril()
    own = torch.eye(n, dtype=torch.bool, device=chunk.device)
    return ((near & causal & (theirs >= -1) & (mine >= -1)) | own)[:, None]


def _clip_losses(aids: Aids, batch: Batch) -> dict[str, Tensor]:
    """The losses of what clips' tokens must tell."""
    early, late = (aids.heard[name].flatten(0, 1) for name in ("early", "late"))
    some, owner = batch["some"].long().unbind(1)
    closing = late[batch["closing_places"].long()].float()
    seconds, before = batch["group_second"].long(), batch["group_before"].long()
    return {
        "time": time_loss(aids.heads, early[some].float(), seconds[owner]),
        "closing": time_loss(aids.closing_time_heads, closing, seconds),
        "summary": summary_loss(
            aids.summary_heads, closing, batch["group_summary"], batch["group_clean"]
        ),
        "before": before_loss(aids.before_heads, late[some].float(), before[owner])
        + before_loss(aids.before_heads, closing, before),
    }


def _look(
    learner: Learner, keys: Tensor, batch: Batch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Questions read alone look for groups by their raw queries. keys: of the retrieval layer,
    [clip tokens, kv_heads, head_dim]."""
    llm, aids, asked = learner.model.model.language_model, learner.aids, batch["asked_ids"]
    n = asked.shape[1]
    places = torch.arange(n, device=asked.device)
    causal = (
        torch.ones(n, n, dtype=torch.bool, device=asked.device).tril().expand(len(asked), 1, n, n)
    )
    run_layers(llm, llm.embed_tokens(asked), places.expand(3, len(asked), n), causal)
    queries = aids.heard["queries"].float()  # [Q, n, heads, head_dim]
    named_rows, named_places, named_seconds = batch["named_times"].long().unbind(1)
    lost = {
        "named": time_loss(
            aids.heads, aids.heard["early"][named_rows, named_places].float(), named_seconds
        )
    }
    visual = batch["visual_places"].long()  # [groups, 16]
    groups = batch["video_groups"].long()  # [videos, groups]
    owner = batch["owner"].long()
    hits = {}
    for kind, heads in (
        ("look", RETRIEVAL_HEADS),
        ("look_time", TIME_HEADS),
        ("look_next", NEXT_HEADS),
    ):
        rows, at = batch[f"{kind}_question"].long(), batch[f"{kind}_place"].long()
        mine = queries[rows, at]
        scores = [
            _max_sim(mine[:, h], keys[:, h // aids.group_size], visual, groups, owner[rows])
            for h in heads
        ]
        lost[kind], hits[kind] = _look_loss(torch.stack(scores, 1), batch[f"{kind}_groups"])
    lost["find"], hits["find"] = _find_loss(learner, queries, keys, visual, groups, owner, batch)
    return lost, hits


def _max_sim(
    queries: Tensor, keys: Tensor, visual: Tensor, groups: Tensor, owner: Tensor
) -> Tensor:
    """The best match of each query with any token of each group of its video, [n, groups]; NOWHERE
    for none.

    queries: [n, head_dim]; keys: [clip tokens, head_dim]; owner: the video of each query [n].
    """
    per_group = keys[visual.clamp(min=0)].float()  # [groups, 16, head_dim]
    scores = torch.einsum("nd,gtd->ngt", queries, per_group) / queries.shape[-1] ** 0.5
    best = scores.masked_fill(visual < 0, NOWHERE).amax(-1)  # [n, all groups]
    mine = groups[owner]
    found: Tensor = best.gather(1, mine.clamp(min=0)).masked_fill(mine < 0, NOWHERE)
    return found


def _look_loss(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over groups, mean over heads, and how often all heads together are right.
    scores: [n, heads, groups]; wanted: bool [n, groups], some in each row."""
    if not len(scores):
        return scores.sum() * 0, scores.new_ones(())
    lost = missed(
        scores, torch.ones_like(scores, dtype=torch.bool), wanted[:, None].expand_as(scores)
    )
    first = scores.log_softmax(-1).sum(1).argmax(-1, keepdim=True)
    return lost.mean(), wanted.gather(1, first).float().mean()


def _find_loss(
    learner: Learner,
    queries: Tensor,
    keys: Tensor,
    visual: Tensor,
    groups: Tensor,
    owner: Tensor,
    batch: Batch,
) -> tuple[Tensor, Tensor]:
    """The best match of any token of a question, up to where its answer begins, as a session ranks
    by it.
    """
    rows = batch["find_question"].long()
    n = queries.shape[1]
    said = torch.arange(n, device=queries.device)
    said = (said >= learner.num_prefix) & (said < batch["asked_length"][rows][:, None])
    scores = []
    per_group = [
        keys[:, head // learner.aids.group_size][visual.clamp(min=0)].float()
        for head in RETRIEVAL_HEADS
    ]
    for head, tokens in zip(RETRIEVAL_HEADS, per_group, strict=True):
        mine = _find_scores(queries[rows][:, :, head], tokens, visual, groups[owner[rows]], said)
        scores.append(mine)
    return _look_loss(torch.stack(scores, 1), batch["find_groups"])


def _find_scores(
    queries: Tensor, tokens: Tensor, visual: Tensor, mine: Tensor, said: Tensor
) -> Tensor:
    """[n, groups]: the best over a question's tokens and a group's. queries: [n, tokens,
    head_dim].
    """
    flat = tokens.flatten(1).index_select(0, mine.clamp(min=0).flatten())
    own = flat.view(*mine.shape, *tokens.shape[1:])  # [n, groups, 16, head_dim]
    real = (visual[mine.clamp(min=0)] >= 0) & (mine >= 0)[..., None]
    scores = torch.einsum("nqd,ngtd->nqgt", queries, own) / queries.shape[-1] ** 0.5
    best = scores.masked_fill(~real[:, None], NOWHERE).amax(-1)
    found: Tensor = best.masked_fill(~said[:, :, None], NOWHERE).amax(1)
    return found


@dataclass(frozen=True, eq=False)
class Contexts:
    """What stands before each of Q questions, padded to C tokens: their numbers, which are real,
    their groups, [Q, C]; positions [3, Q, C]; where the question begins [Q]."""

    tokens: Tensor
    real: Tensor
    groups: Tensor
    positions: Tensor
    starts: Tensor

    @classmethod
    def of(cls, batch: Batch, num_prefix: int) -> Contexts:
        """The prefix and the chosen chunks, at compact positions."""
        chosen = batch["chosen"].long()  # [Q, K]
        there = chosen >= 0
        number = chosen.clamp(min=0)
        size, extent = (
            batch["chunk_size"].long()[number] * there,
            batch["chunk_extent"].long()[number] * there,
        )
        first = batch["chunk_start"].long()
        steps = batch["slots"].long()
        width = len(steps)
        tokens = (first[number][..., None] + steps).flatten(1)
        real = (steps < size[..., None]).flatten(1)
        tokens = torch.where(real, tokens, 0)
        starts = num_prefix + extent.cumsum(1) - extent
        own = batch["positions"].long().flatten(1)  # [3, clip tokens]
        shift = (starts - own[0][first[number]])[..., None].expand(-1, -1, width).flatten(1)
        positions = own[:, tokens] + shift
        padded = torch.arange(-(-num_prefix // ALIGNED) * ALIGNED, device=chosen.device)
        there = (padded < num_prefix).expand(len(chosen), -1)
        prefix = (padded * (padded < num_prefix)).expand(len(chosen), -1)
        groups = torch.where(real, batch["group"].long().flatten()[tokens], -1)
        return cls(
            torch.cat([prefix, tokens], 1),
            torch.cat([there, real], 1),
            torch.cat([torch.full_like(prefix, -1), groups], 1),
            torch.cat([prefix.expand(3, -1, -1), positions], 2),
            num_prefix + extent.sum(1),
        )


def _answer(
    learner: Learner, raw: RawKV, batch: Batch, contexts: Contexts
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Last states of the questions [Q, n, hidden]; the contexts' rotated keys of each layer [Q,
    kv_heads, C, head_dim]; who sees whom, bool [Q, 1, n, C + n]."""
    llm, skip, asked = learner.model.model.language_model, learner.num_prefix, batch["asked_ids"]
    kind = raw[0][1].dtype
    cosines, sines = (angles.to(kind) for angles in llm.rotary_emb(raw[0][1], contexts.positions))
    gathered = _gathered(raw, contexts.tokens, kind)
    keys = [rotated(k, cosines, sines).transpose(1, 2) for k in gathered[: len(raw)]]
    values = [v.transpose(1, 2) for v in gathered[len(raw) :]]
    n = asked.shape[1] - skip
    own = torch.ones(n, n, dtype=torch.bool, device=asked.device).tril().expand(len(asked), 1, n, n)
    allowed = torch.cat([contexts.real[:, None, None].expand(-1, 1, n, -1), own], dim=-1)
    places = contexts.starts[:, None] + torch.arange(n, device=asked.device)
    cache = filled_cache(zip(keys, values, strict=True))
    hidden = llm.embed_tokens(asked[:, skip:])
    return run_layers(llm, hidden, places.expand(3, -1, -1), allowed, cache=cache), keys, allowed


def _gathered(raw: RawKV, tokens: Tensor, kind: torch.dtype) -> tuple[Tensor, ...]:
    """Keys of all layers, then values, of the tokens [Q, C]: each [Q, C, kv_heads, head_dim]. One
    wide gather: its backward is one addition instead of a sort for every layer."""
    every = [keys for keys, _ in raw] + [values for _, values in raw]
    wide = torch.stack([part.to(kind) for part in every], dim=1).flatten(1)  # [clip tokens, all]
    picked = wide.index_select(0, tokens.flatten())
    return picked.view(*tokens.shape, len(every), *every[0].shape[1:]).unbind(2)


def _target_rows(batch: Batch, skip: int) -> Tensor:
    """Places of the predicting tokens among the questions' tokens after the prefix."""
    width = batch["asked_ids"].shape[1]
    places = batch["target_places"].long()
    return places // width * (width - skip) + places % width - skip


def _reading_losses(
    learner: Learner, keys: Sequence[Tensor], allowed: Tensor, batch: Batch, contexts: Contexts
) -> dict[str, Tensor]:
    """What the attention of the last pass should rest on, and what its names and times should have
    fetched.
    """
    aids, skip = learner.aids, learner.num_prefix
    fetching, reading = keys[RETRIEVAL_LAYER], keys[READ_LAYER]
    first_groups = batch["video_groups"].long()[:, 0][batch["owner"].long()]  # [Q]
    local = torch.where(contexts.groups >= 0, contexts.groups - first_groups[:, None], -1)
    lost = {}
    for kind, name, context, heads in (
        ("read", "read ", reading, READ_HEADS),
        ("fetch", "", fetching, TIME_HEADS),
        ("fetch_name", "", fetching, RETRIEVAL_HEADS),
        ("fetch_next", "", fetching, NEXT_HEADS),
    ):
        rows, at = batch[f"{kind}_question"].long(), batch[f"{kind}_place"].long() - skip
        wanted = batch[f"{kind}_groups"].gather(1, local[rows].clamp(min=0)) & (local[rows] >= 0)
        own = (
            batch["own_places"][rows, skip:]
            if kind == "read"
            else torch.zeros_like(batch["own_places"][rows, skip:])
        )
        lost[kind] = _attention_loss(
            aids, name, context, allowed, heads, rows, at, torch.cat([wanted, own], 1)
        )
    return lost | _told_losses(aids, batch, skip)


def _attention_loss(
    aids: Aids,
    kind: str,
    context: Tensor,
    allowed: Tensor,
    heads: Sequence[int],
    rows: Tensor,
    at: Tensor,
    wanted: Tensor,
) -> Tensor:
    """Minus the log of the attention that tokens (`at` of question `rows`) give to where they
    should look, mean over heads. context: rotated keys [Q, kv_heads, C, head_dim]; wanted: bool [n,
    C + questions' tokens]."""
    if not len(rows):
        return context.sum() * 0
    cosines, sines = aids.heard["rotation"].float()
    queries, own = (
        rotated(aids.heard[kind + name].float(), cosines, sines) for name in ("queries", "keys")
    )
    # [Q, kv_heads, C + n, head_dim]
    keys = torch.cat([context.float(), own.transpose(1, 2)], dim=2)
    seen = allowed[rows, 0, at]
    lost = []
    for head in heads:
        every = torch.einsum("qnd,qcd->qnc", queries[:, :, head], keys[:, head // aids.group_size])
        match = every[rows, at] / keys.shape[-1] ** 0.5
        lost.append(missed(match, seen, wanted & seen))
    return torch.cat(lost).mean()


def _told_losses(aids: Aids, batch: Batch, skip: int) -> dict[str, Tensor]:
    """How badly names and times in questions tell what they have fetched."""
    rows, places, group, first, following = batch["told"].long().unbind(1)
    tokens = aids.heard["fetched"][rows, places - skip].float()
    marks, clean = batch["group_summary"], batch["group_clean"]
    seconds, before = batch["group_second"].long(), batch["group_before"].long()
    named, nexts = first >= 0, following >= 0
    unasked = torch.full_like(before[first.clamp(min=0)], NOT_ASKED)
    return {
        "fetched": summary_loss(aids.fetched_heads, tokens, marks[group], clean[group]),
        "fetched next": summary_loss(
            aids.fetched_next_heads,
            tokens,
            marks[following.clamp(min=0)],
            clean[following.clamp(min=0)] & nexts,
        ),
        "fetched time": time_loss(
            aids.fetched_time_heads,
            tokens,
            torch.where(named, seconds[first.clamp(min=0)], NOT_ASKED),
        ),
        "fetched before": before_loss(
            aids.fetched_before_heads,
            tokens,
            torch.where(named[:, None], before[first.clamp(min=0)], unasked),
        ),
    }


def time_loss(heads: Iterable[nn.Module], tokens: Tensor, seconds: Tensor) -> Tensor:
    """Mean cross-entropy of reading the three pairs of digits of `seconds` [n] off `tokens` [n,
    hidden]; those below 0 are not asked."""
    asked = seconds >= 0
    losses = []
    for head, place in zip(heads, PLACES, strict=True):
        digits = torch.where(asked, seconds.clamp(min=0) // place % 100, NOT_ASKED)
        losses.append(nn.functional.cross_entropy(head(tokens).float(), digits, reduction="sum"))
    return torch.stack(losses).sum() / len(PLACES) / asked.sum().clamp(min=1)


def before_loss(heads: Iterable[nn.Module], tokens: Tensor, truth: Tensor) -> Tensor:
    """How badly tokens [n, hidden] tell the shape and the colour of what was shown before, [n, 2];
    -100: not asked.
    """
    pairs = zip(heads, truth.unbind(1), strict=True)
    losses = [
        nn.functional.cross_entropy(head(tokens).float(), column, reduction="sum")
        for head, column in pairs
    ]
    return torch.stack(losses).sum() / (truth[:, 0] >= 0).sum().clamp(min=1)


def summary_loss(heads: nn.Module, tokens: Tensor, truth: Tensor, clean: Tensor) -> Tensor:
    """How badly `tokens` [n, hidden] tell what n groups show; those of two events are not asked."""
    each = nn.functional.binary_cross_entropy_with_logits(
        heads(tokens).float(), truth.float(), reduction="none"
    )
    weight = clean.float()
    return SUMMARY_WEIGHT * (each.mean(1) * weight).sum() / weight.sum().clamp(min=1)


def missed(scores: Tensor, seen: Tensor, wanted: Tensor) -> Tensor:
    """Minus the log of the share that softmax over what is `seen` gives to what is `wanted`, over
    the last axis.
    """
    logs = scores.masked_fill(~seen, float("-inf")).log_softmax(-1)
    return -logs.masked_fill(~wanted, NOWHERE).logsumexp(-1)


def rotated(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """RoPE on [B, N, heads, head_dim] by angles [B, N, head_dim], halves turned against each
    other.
    """
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosines[:, :, None] + torch.cat([-second, first], dim=-1) * sines[:, :, None]
