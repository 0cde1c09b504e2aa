"""The recall step of the binding stage: questions are answered from what the model's own heads bring back of a video.

As a session does it: the chunks of a video are prefilled once; a question, read alone, ranks them by its raw queries;
it is answered behind the planned chunks at compact positions, look-alikes among them. Chunks that hold the answer come
in any case, so that there is always something to learn from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from memory.recall_policy import evidence, head_norms, plan_recall
from models.decoder import filled_cache
from models.demo.world import WorldEvent
from training.aids import (
    NEXT_HEADS,
    READ_HEADS,
    READ_LAYER,
    RETRIEVAL_HEADS,
    RETRIEVAL_LAYER,
    TIME_HEADS,
    Aids,
    Learner,
    Step,
    answering,
    before_loss,
    missed,
    rotated,
    showing,
    source,
    summary_loss,
    surroundings,
    time_loss,
)
from training.bind import (
    KEPT_TOKENS,
    Batch,
    ClipMaker,
    Stage,
    StoredChunk,
    TokenRow,
    collate,
    draw_questions,
    through_layers,
)
from training.optimiser import mixed_precision
from training.questions import Facts, Question, ask_presence
from training.scenes import GROUPS_PER_CHUNK, Moment

ROW_CHUNKS = 6  # chunks that are prefilled in one row; a row's first ones have seen none before them
ROW_GROUPS = ROW_CHUNKS * GROUPS_PER_CHUNK
TOTAL_CHUNKS = 36  # of all videos of a step
NOISE = 0.7  # of the evidence, in standard deviations: which chunks come should vary
DOUBTED = 3  # questions on whether the thing is there that look-alikes are taken for
MOST_HOLDERS = 3  # chunks of one event that come in any case
WHOLE_VIDEO = ("first", "last", "caption")  # families that need all of a video, not what is recalled of it
OF_THE_NAMED = ("when", "direction", "count_with", "after", "before")  # families whose answer the name has fetched
NOWHERE = -1e4  # how well a token matches that does not count

Groups = NDArray[np.bool_]  # marks of a video's groups
RawKV = Sequence[tuple[Tensor, Tensor]]  # of each layer: keys and values of all clip tokens, [tokens, kv_heads, dim]


@dataclass(frozen=True, eq=False)
class Video:
    """Chunks in time order with questions about all of them."""

    chunks: Sequence[StoredChunk]
    questions: Sequence[Question]
    facts: Facts

    @classmethod
    def of(cls, chunks: Sequence[StoredChunk], questions: Sequence[Question]) -> Video:
        return cls(chunks, questions, Facts([moment for chunk in chunks for moment in chunk.truth]))

    @property
    def moments(self) -> Sequence[Moment]:
        """The truth of every group."""
        return self.facts.moments

    def named(self, name: str) -> Groups:
        """The groups that show a thing of this name."""
        return self.showing(self.facts.by_name.get(name, ()))

    def showing(self, events: Collection[WorldEvent]) -> Groups:
        return showing(self.moments, events)

    def answering(self, question: Question) -> list[Groups]:
        return answering(self.moments, question)


@dataclass(frozen=True, eq=False)
class Videos:
    """Videos of one length as they are prefilled, and their questions, each alone behind the prefix.

    clips: rows of chunks, all of whose tokens are numbered through. asked: one row for each question; `owners` tells
    whose it is. places: the numbers of the tokens of each video's chunks. offsets: where each clip token stands from
    the beginning of its chunk, [3, tokens]. moments: its group in its video, -1 for none. extents: of the chunks.
    before: shape and colour of what each group saw before it, as `surroundings` has them: [videos, groups, 2].
    """

    videos: Sequence[Video]
    clips: Batch
    asked: Batch
    owners: Sequence[int]
    places: Sequence[Sequence[NDArray[np.intp]]]
    offsets: NDArray[np.int64]
    moments: NDArray[np.int64]
    extents: Sequence[Sequence[int]]
    before: Tensor
    prefix_tokens: int

    @property
    def questions(self) -> list[tuple[Video, Question, TokenRow]]:
        """Every question with its video and its row."""
        questions = [question for (question,) in self.asked.questions]
        videos = [self.videos[v] for v in self.owners]
        return list(zip(videos, questions, self.asked.rows, strict=True))


@dataclass(frozen=True, eq=False)
class Contexts:
    """What stands before each of Q questions, padded to C tokens: their numbers, which of them are real, and their
    groups in the video, [Q, C]; positions [3, Q, C]; where the question begins [Q]."""

    tokens: Tensor
    real: Tensor
    moments: NDArray[np.int64]
    positions: Tensor
    starts: Tensor


def step(learner: Learner, stage: Stage, rng: np.random.Generator) -> Step:
    """Questions about some videos, answered from what is recalled of them."""
    model, aids, maker = learner.model, learner.aids, learner.maker
    length = int(rng.integers(stage.chunks[0], stage.chunks[1] + 1))
    tokens = int(rng.choice(KEPT_TOKENS)) if maker.prunes(rng, stage) else None
    drawn = [draw(maker, stage, rng, length, tokens) for _ in range(max(1, TOTAL_CHUNKS // length))]
    made = arrange(maker, drawn, rng.choice([0, 1, 2, 99], len(drawn), p=[0.05, 0.15, 0.7, 0.1]).tolist())
    with mixed_precision():
        raw = prefill(model, aids, learner.features, made)
        helped = aids.clip_losses(made.clips)
        looks, hit, found = look(model, aids, raw[RETRIEVAL_LAYER][0], made)
        helped |= looks | {"named": aids.named_loss(made.asked)}
        by_chunk = found.view(*found.shape[:2], length, GROUPS_PER_CHUNK).amax(-1)
        asked = zip(made.questions, by_chunk, strict=True)
        contexts = assemble(made, [chosen(video, question, s, rng) for (video, question, _), s in asked])
        logits, keys, allowed = answer(model, raw, made, contexts)
        helped |= reading_losses(aids, keys, allowed, made, contexts)
    return Step(made.asked, logits, helped, hit)


def draw(maker: ClipMaker, stage: Stage, rng: np.random.Generator, length: int, tokens: int | None = None) -> Video:
    """A video of so many chunks. tokens: of each group, as a pruner leaves them; None: all of all groups."""
    whole = replace(stage, hidden=0.0)
    draw_chunks = maker.video if tokens is None else partial(_pruned_video, maker, tokens=tokens)
    chunks, name = draw_chunks(rng, whole, length)
    video = Video.of(chunks, [])
    count = max(2, stage.questions * length // TOTAL_CHUNKS)
    questions = draw_questions(rng, video.facts, count, WHOLE_VIDEO)
    doubted = [ask_presence(rng, video.facts, name) for _ in range(DOUBTED)] if name else []
    return replace(video, questions=[*questions, *doubted])


def _pruned_video(
    maker: ClipMaker, rng: np.random.Generator, stage: Stage, length: int, tokens: int
) -> tuple[list[StoredChunk], str | None]:
    """What a pruner leaves, put together in chunks of one size, the newest of them."""
    left: list[StoredChunk] = []
    needed, tried = length * GROUPS_PER_CHUNK, 2 * length
    while sum(len(chunk.groups) for chunk in left) < needed:
        chunks, name = maker.video(rng, stage, tried)
        left, tried = maker.thinned(rng, chunks, tokens), 2 * tried
    groups = [group for chunk in left for group in chunk.groups][-needed:]
    truth = [moment for chunk in left for moment in chunk.truth][-needed:]
    kept = [places for chunk in left for places in chunk.kept or ()][-needed:]
    cuts = [slice(k, k + GROUPS_PER_CHUNK) for k in range(0, needed, GROUPS_PER_CHUNK)]
    return [StoredChunk(tuple(groups[cut]), tuple(truth[cut]), kept=tuple(kept[cut])) for cut in cuts], name


def arrange(maker: ClipMaker, videos: Sequence[Video], reaches: Sequence[int]) -> Videos:
    """Videos of one length in rows; reaches: how many chunks before its own each of a video's chunks sees."""
    length = len(videos[0].chunks)
    parts = [
        (maker.sequence(video.chunks[k : k + ROW_CHUNKS], []), list[Question](), reach)
        for video, reach in zip(videos, reaches, strict=True)
        for k in range(0, length, ROW_CHUNKS)
    ]
    clips = collate(parts)
    width, rows_each = clips.ids.shape[1], len(parts) // len(videos)
    offsets, moments = clips.positions.flatten(1).numpy().copy(), np.full(clips.ids.numel(), -1)
    places = []
    for b, (row, _, _) in enumerate(parts):
        chunk, moment = np.array(row.chunk), np.array(row.moment)
        moments[b * width : b * width + len(chunk)] = np.where(moment < 0, -1, moment + b % rows_each * ROW_GROUPS)
        for k in range(chunk.max() + 1):
            tokens = b * width + np.flatnonzero(chunk == k)
            places.append(tokens)
            offsets[:, tokens] -= offsets[0, tokens[0]]
    asked = [(v, question) for v, video in enumerate(videos) for question in video.questions]
    return Videos(
        videos,
        clips,
        collate([(maker.sequence([], [question]), [question], 0) for _, question in asked]),
        [v for v, _ in asked],
        [places[v * length : (v + 1) * length] for v in range(len(videos))],
        offsets,
        moments,
        [[maker.chunk_extent(chunk) for chunk in video.chunks] for video in videos],
        torch.tensor([pair for row, _, reach in parts for pair in surroundings(row, reach)]).view(len(videos), -1, 2),
        len(maker.prefix),
    )


def prefill(model: Qwen3VLForConditionalGeneration, aids: Aids, features: tuple[Tensor, Tensor], made: Videos) -> RawKV:
    """All clips through the LLM, each chunk in view of those before it."""
    through_layers(model, *features, made.clips)
    return aids.raw_keys_and_values()


def look(
    model: Qwen3VLForConditionalGeneration, aids: Aids, keys: Tensor, made: Videos
) -> tuple[dict[str, Tensor], dict[str, float], Tensor]:
    """Questions read alone look for groups by their raw queries: the losses, how often they are right, and the MaxSim
    of each question with the groups of its video [Q, heads, groups].

    keys: of the retrieval layer, [clip tokens, kv_heads, head_dim].
    """
    llm, asked = model.model.language_model, made.asked
    llm(
        inputs_embeds=llm.embed_tokens(asked.ids),
        attention_mask=asked.allowed,
        position_ids=asked.positions,
        use_cache=False,
    )
    queries, visual = aids.heard["queries"].float(), keys[made.clips.visual.flatten()].float()
    own = torch.arange(len(queries)), slice(None), torch.tensor(made.owners)
    by_head = [
        (queries[:, :, head] @ visual[:, head // aids.group_size].T / visual.shape[-1] ** 0.5)
        .view(*queries.shape[:2], len(made.videos), len(made.videos[0].moments), -1)[own]
        .amax(-1)
        for head in (*RETRIEVAL_HEADS, *TIME_HEADS, *NEXT_HEADS)
    ]
    sizes = [len(RETRIEVAL_HEADS), len(TIME_HEADS), len(NEXT_HEADS)]
    for_names, for_times, for_next = torch.split(torch.stack(by_head, dim=2), sizes, dim=2)  # [Q, n, heads, groups]
    predicted = asked.targets != -100
    said = predicted.cumsum(1) == predicted  # what comes up to where the answer begins
    said[:, : made.prefix_tokens] = False
    found = for_names.masked_fill(~said[:, :, None, None], NOWHERE).amax(1)
    wanted = _wanted_looks(made)
    lost, hit = {}, {}
    for kind, scores in (
        ("look", for_names),
        ("look for time", for_times),
        ("look for next", for_next),
        ("find", found[:, None]),
    ):
        lost[kind], hit[kind] = _look_loss(scores, wanted[kind])
    return lost, hit, found.detach()


Look = tuple[int, int, Groups]  # question, place of a token in its row, groups of its video to look at


def _wanted_looks(made: Videos) -> dict[str, list[Look]]:
    wanted: dict[str, list[Look]] = {"look": [], "look for time": [], "look for next": [], "find": []}
    for q, (video, question, row) in enumerate(made.questions):
        wanted["look"] += [(q, n, video.named(name)) for n, name in row.names]
        answers = video.answering(question)
        wanted["look for time"] += [(q, n, answers[0]) for n in row.times.values()]
        if question.family == "after":
            wanted["look for next"].append((q, row.names[0][0], video.showing(question.events[1:])))
        wanted["find"] += [(q, 0, groups) for groups in answers if question.second is None]
    return {kind: [look for look in looks if look[2].any()] for kind, looks in wanted.items()}


def _look_loss(scores: Tensor, looks: Sequence[Look]) -> tuple[Tensor, float]:
    """Cross-entropy over groups, mean over heads, and how often all heads together are right.

    scores: [Q, n, heads, groups].
    """
    if not looks:
        return scores.sum() * 0, 1.0
    rows, at = (torch.tensor([look[k] for look in looks]) for k in (0, 1))
    right = torch.from_numpy(np.stack([groups for _, _, groups in looks]))
    mine = scores[rows, at]  # [looks, heads, groups]
    lost = missed(mine, torch.ones_like(mine, dtype=torch.bool), right[:, None].expand_as(mine))
    first = mine.log_softmax(-1).sum(1).argmax(-1, keepdim=True)
    return lost.mean(), float(right.gather(1, first).float().mean())


def chosen(video: Video, question: Question, scores: Tensor, rng: np.random.Generator) -> list[int]:
    """The chunks of a question's context, ascending: as a session plans them by noisy evidence, and those that hold the
    answer."""
    timed = question.second is not None
    parts = video.answering(question) if timed else [video.showing([e]) for e in question.events]
    holders = [np.unique(groups.nonzero()[0] // GROUPS_PER_CHUNK)[:MOST_HOLDERS].tolist() for groups in parts]
    needed = {index for indices in holders for index in indices}
    noisy = np.array(evidence(scores, head_norms(scores, [1.0] * len(scores))))
    noisy += NOISE * rng.normal(size=len(noisy))
    named = [range(index, index + 1) for index in needed] if timed else []
    window, most = int(rng.choice([0, 1, 2], p=[0.1, 0.1, 0.8])), int(rng.integers(2, 9))
    return sorted(needed | {*plan_recall(noisy.tolist(), named, len(video.chunks), window, most).indices})


def assemble(made: Videos, chosen: Sequence[Sequence[int]]) -> Contexts:
    """The prefix and the chosen chunks before each question, at compact positions."""
    runs = []
    for v, indices in zip(made.owners, chosen, strict=True):
        starts = [*accumulate((made.extents[v][index] for index in indices), initial=made.prefix_tokens)]
        parts = [np.arange(made.prefix_tokens), *(made.places[v][index] for index in indices)]
        shifts = np.repeat([0, *starts[:-1]], [len(part) for part in parts])
        numbers = np.concatenate(parts)
        runs.append((numbers, made.offsets[:, numbers] + shifts, starts[-1]))
    shape = (len(runs), max(len(numbers) for numbers, _, _ in runs))
    tokens, real = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    positions = np.zeros((3, *shape), dtype=np.int64)
    for q, (numbers, places, _) in enumerate(runs):
        n = len(numbers)
        tokens[q, :n], real[q, :n], positions[:, q, :n] = numbers, True, places
    moments = np.where(real, made.moments[tokens], -1)
    ends = torch.tensor([end for _, _, end in runs])
    return Contexts(torch.from_numpy(tokens), torch.from_numpy(real), moments, torch.from_numpy(positions), ends)


def answer(
    model: Qwen3VLForConditionalGeneration, raw: RawKV, made: Videos, contexts: Contexts
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Logits where answers are predicted; the contexts' rotated keys of each layer [Q, kv_heads, C, head_dim]; who sees
    whom, bool [Q, 1, n, C + n]."""
    llm, asked, skip = model.model.language_model, made.asked, made.prefix_tokens
    kind = raw[0][1].dtype
    cosines, sines = (angles.to(kind) for angles in llm.rotary_emb(raw[0][1], contexts.positions))
    keys = [rotated(k.to(kind)[contexts.tokens], cosines, sines).transpose(1, 2) for k, _ in raw]
    values = [v[contexts.tokens].transpose(1, 2) for _, v in raw]
    own = asked.allowed[:, :, skip:, skip:]
    allowed = torch.cat([contexts.real[:, None, None].expand(-1, 1, own.shape[2], -1), own], dim=-1)
    states = llm(
        inputs_embeds=llm.embed_tokens(asked.ids[:, skip:]),
        attention_mask=allowed,
        position_ids=asked.positions[:, :, skip:] - skip + contexts.starts[:, None],
        past_key_values=filled_cache(zip(keys, values, strict=True)),
        use_cache=True,
    ).last_hidden_state
    return model.lm_head(states[asked.targets[:, skip:] != -100]).float(), keys, allowed


def reading_losses(
    aids: Aids, keys: Sequence[Tensor], allowed: Tensor, made: Videos, contexts: Contexts
) -> dict[str, Tensor]:
    """What the attention of the last pass should rest on, and what its names and times should have fetched."""
    reading = _Reading(made, contexts)
    fetching, answering_from = keys[RETRIEVAL_LAYER], keys[READ_LAYER]
    return {
        "read": _attention_loss(aids, "read ", answering_from, allowed, READ_HEADS, reading.answers),
        "fetch": _attention_loss(aids, "", fetching, allowed, TIME_HEADS, reading.times),
        "fetch name": _attention_loss(aids, "", fetching, allowed, RETRIEVAL_HEADS, reading.names),
        "fetch next": _attention_loss(aids, "", fetching, allowed, NEXT_HEADS, reading.nexts),
        **_told_losses(aids, made, reading),
    }


Place = tuple[int, int, NDArray[np.bool_]]  # question, a token's place in it, which of C + n tokens to attend to


@dataclass(frozen=True)
class Told:
    """What a name or a time in a question should tell once it has looked: the group of its video that shows it; for
    names of one event, the group it begins with; for "after", a group of what comes next."""

    question: int
    place: int
    group: int
    first: int | None = None
    next: int | None = None


class _Reading:
    """What each question's tokens should attend to in their context: its answer's, the times and names in it. And what
    these should tell."""

    def __init__(self, made: Videos, contexts: Contexts) -> None:
        self.answers: list[Place] = []
        self.times: list[Place] = []
        self.names: list[Place] = []
        self.nexts: list[Place] = []
        self.told: list[Told] = []
        self._skip, self._context = made.prefix_tokens, contexts.tokens.shape[1]
        self._width = self._context + made.asked.ids.shape[1] - self._skip
        for q, asked in enumerate(made.questions):
            self._add(q, *asked, contexts.moments[q])

    def _add(self, q: int, video: Video, question: Question, row: TokenRow, moments: NDArray[np.int64]) -> None:
        speaking = []  # places of what has fetched the answer before it is asked for
        for n in row.times.values():
            groups = video.answering(question)[0]
            self.times.append((q, n - self._skip, self._tokens_of(groups, moments)))
            self.told.append(Told(q, n - self._skip, int(groups.argmax())))
            speaking.append(n - self._skip)
        for n, name in row.names:
            marks = self._tokens_of(video.named(name), moments)
            self.names.append((q, n - self._skip, marks))
            if name in video.facts.once and marks.any():
                self.told.append(_told_of(video, question, name, q, n - self._skip))
                if question.family in OF_THE_NAMED or question.answer == f"the {name}":
                    speaking.append(n - self._skip)
            if question.family == "after":
                following = video.showing(question.events[1:])
                self.nexts.append((q, n - self._skip, self._tokens_of(following, moments)))
        marks = self._tokens_of(source(video.moments, question), moments)
        marks[[self._context + place for place in speaking]] = marks.any()
        self.answers += [(q, n - self._skip, marks) for n, target in enumerate(row.targets) if target != -100]

    def _tokens_of(self, groups: Groups, moments: NDArray[np.int64]) -> NDArray[np.bool_]:
        marks = np.zeros(self._width, dtype=bool)
        marks[: len(moments)] = np.isin(moments, groups.nonzero()[0])
        return marks


def _told_of(video: Video, question: Question, name: str, q: int, place: int) -> Told:
    """What the name of a thing of one event should tell, of it and of what follows it."""
    shown = _views(video, video.facts.once[name])
    following = _views(video, question.events[1]) if question.family == "after" else [None]
    return Told(q, place, shown[0], min(shown), following[0])


def _views(video: Video, event: WorldEvent) -> list[int]:
    """The groups that show an event, those first that show nothing else."""
    shown = [k for k, moment in enumerate(video.moments) if event in moment.events]
    return sorted(shown, key=lambda k: not video.moments[k].clean)


def _attention_loss(
    aids: Aids, kind: str, context: Tensor, allowed: Tensor, heads: Sequence[int], places: Sequence[Place]
) -> Tensor:
    """Minus the log of the attention that tokens give to where they should look, mean over heads.

    context: rotated keys [Q, kv_heads, C, head_dim] of the layer that aids know by `kind`.
    """
    useful = [place for place in places if place[2].any()]
    if not useful:
        return context.sum() * 0
    cosines, sines = aids.heard["rotation"].float()
    queries, own = (rotated(aids.heard[kind + name].float(), cosines, sines) for name in ("queries", "keys"))
    keys = torch.cat([context.float(), own.transpose(1, 2)], dim=2)
    rows, at = (torch.tensor([place[k] for place in useful]) for k in (0, 1))
    wanted = torch.from_numpy(np.stack([marks for _, _, marks in useful]))
    seen = allowed[rows, 0, at]
    lost = []
    for head in heads:
        match = torch.einsum("qnd,qcd->qnc", queries[:, :, head], keys[:, head // aids.group_size])[rows, at]
        lost.append(missed(match / keys.shape[-1] ** 0.5, seen, wanted & seen))
    return torch.cat(lost).mean()


def _told_losses(aids: Aids, made: Videos, reading: _Reading) -> dict[str, Tensor]:
    """How badly names and times in questions tell what they have fetched."""
    told = reading.told
    if not told:
        return {}
    tokens = aids.heard["fetched"][[t.question for t in told], [t.place for t in told]].float()
    owners = [made.owners[t.question] for t in told]
    moments = [made.videos[owner].moments for owner in owners]
    firsts = [(k, t.first) for k, t in enumerate(told) if t.first is not None]
    nexts = [(k, t.next) for k, t in enumerate(told) if t.next is not None]
    helped = {
        "fetched": summary_loss(aids.fetched_heads, tokens, [moments[k][t.group] for k, t in enumerate(told)]),
        "fetched next": summary_loss(
            aids.fetched_next_heads, tokens[[k for k, _ in nexts]], [moments[k][g] for k, g in nexts]
        ),
    }
    if firsts:
        named = tokens[[k for k, _ in firsts]]
        seconds = torch.tensor([moments[k][group].second for k, group in firsts])
        before = torch.stack([made.before[owners[k], group] for k, group in firsts])
        helped["fetched time"] = time_loss(aids.fetched_time_heads, named, seconds)
        helped["fetched before"] = before_loss(aids.fetched_before_heads, named, before)
    return helped
