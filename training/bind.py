"""The binding stage: the LLM learns to answer from what the (frozen) tower sees, over ever longer clips.

Clips are put together from the bank: chunks of scenes at times anywhere within a day, prefilled apart or in view of
their predecessors, some of them hidden from the questions, as recall will later do; some without the tokens that show
nothing new, as a pruner leaves them. All questions of a clip share one
sequence, each with its own view: the clip and itself, at positions that restart behind the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from models.demo.architecture import GRID, TOKENS_PER_GROUP
from models.demo.world import COLOURS, SHAPES, Scene
from training.questions import FAMILIES, Facts, Question, ask
from training.scenes import CHUNK_SECONDS, GROUPS_PER_CHUNK, Moment, moments
from training.unchanged import Worth

DAY_SECONDS = 86_400
CLIP = -1  # the owner of a token that belongs to the clip rather than to one question
PREFIX_CHUNK = -1
LOOK_ALIKES = 0.7  # share of recalled scenes that show a thing of the same shape or colour
DECEPTIVE = 0.7  # share of recalled videos whose look-alikes are what the model takes most for one thing
TOLD_APART = 0.5  # share of these that show this thing as well
KEPT_TOKENS = (4, 6, 8, 10)  # of a group, in a pruned clip


@dataclass(frozen=True)
class Stage:
    """A step of the curriculum: how long the clips are and how they were remembered."""

    name: str
    groups: tuple[int, int]  # groups of the single chunk of a short clip (inclusive), when chunks == (1, 1)
    chunks: tuple[int, int]  # chunks of a clip, inclusive
    hidden: float = 0.0  # share of chunks the questions do not see
    far: float = 1.0  # chance that scenes of one clip lie far apart in time
    recalled: bool = False  # a video of look-alikes at random places, answered from what is recalled of it
    pruned: float = 0.0  # share of clips without the groups that show nothing new, and with few tokens of the others
    questions: int = 12
    batch: int = 16


@dataclass(frozen=True)
class StoredChunk:
    """One chunk of the bank placed in a stream: its groups' numbers and truth, and the tokens each kept (None: all)."""

    groups: tuple[int, ...]
    truth: tuple[Moment, ...]
    hidden: bool = False
    kept: tuple[NDArray[np.intp], ...] | None = None


@dataclass(eq=False)
class TokenRow:
    """A clip with its questions as one row of tokens; every list has one entry per token, unless it says otherwise."""

    ids: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    chunk: list[int] = field(default_factory=list)  # PREFIX_CHUNK, or number of the chunk; the last one for questions
    owner: list[int] = field(default_factory=list)  # CLIP or number of the question
    seen: list[bool] = field(default_factory=list)  # visible to questions
    feature: list[int] = field(default_factory=list)  # number among all tokens of the bank for visual ones, else -1
    targets: list[int] = field(default_factory=list)  # token to predict next, -100 where nothing is asked
    moments: list[Moment] = field(default_factory=list)  # truth of every group, one entry per group
    moments_seen: list[bool] = field(default_factory=list)
    moments_chunk: list[int] = field(default_factory=list)
    moment: list[int] = field(default_factory=list)  # number of the group among `moments`, -1 outside of them
    names: list[tuple[int, str]] = field(default_factory=list)  # where a question has named a thing, and which
    times: dict[int, int] = field(default_factory=dict)  # where a question has named a time, by number of the question

    def add(
        self,
        token: int,
        position: tuple[int, int, int],
        chunk: int,
        owner: int,
        seen: bool,
        feature: int = -1,
        moment: int = -1,
    ) -> None:
        self.ids.append(token)
        self.positions.append(position)
        self.chunk.append(chunk)
        self.owner.append(owner)
        self.seen.append(seen)
        self.feature.append(feature)
        self.moment.append(moment)
        self.targets.append(-100)


class ClipMaker:
    """Draws clips and their questions from a bank's scenes."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        first_group: Sequence[int],
        tokenizer: PreTrainedTokenizerFast,
        worth: Worth | None = None,
    ) -> None:
        """worth: what a pruner would keep of the bank; None: nothing is pruned."""
        self.scenes, self.first_group, self.tokenizer = scenes, first_group, tokenizer
        self._worth = worth
        self.mistaken: Mapping[str, Sequence[int]] = {}  # scenes taken for showing a thing, once `lookalikes` knows
        ids = tokenizer.convert_tokens_to_ids
        self.vision = (int(ids("<|vision_start|>")), int(ids("<|video_pad|>")), int(ids("<|vision_end|>")))
        self.end = int(ids("<|im_end|>"))
        self.seconds = int(ids("seconds"))
        self.prefix = self.tokens("<|im_start|>user\n")
        self.header = self.tokens("<|im_end|>\n<|im_start|>assistant\n")
        pairs = [(c, s) for c in COLOURS for s in SHAPES] + [("digit", str(n)) for n in range(10)]
        self._names = {(int(ids(a)), int(ids(b))): f"{a} {b}" for a, b in pairs}
        self._showing = numbers_by(scenes, words_of)
        self.named = numbers_by(scenes, names_of)

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def chunks(self, rng: np.random.Generator, stage: Stage, wanted: int | None = None) -> list[StoredChunk]:
        """A clip of `wanted` chunks: scenes in time order, close together or hours apart."""
        wanted = wanted or int(rng.integers(stage.chunks[0], stage.chunks[1] + 1))
        start, far = _random_start(rng), rng.random() < stage.far
        parts: list[StoredChunk] = []
        while len(parts) < wanted:
            number = int(rng.integers(len(self.scenes)))
            parts += self.scene_chunks(rng, number, start, stage)
            start += self.scenes[number].duration_seconds + _random_gap(rng, far)
        return parts[:wanted]

    def video(self, rng: np.random.Generator, stage: Stage, wanted: int) -> tuple[list[StoredChunk], str | None]:
        """Chunks of look-alikes at random places of a long video, and what they are all taken for, if anything."""
        name, numbers, alike = self._look_alikes(rng)
        while sum(self.scenes[n].duration_seconds for n in numbers) < wanted * CHUNK_SECONDS:
            which = alike[int(rng.integers(len(alike)))] if rng.random() < LOOK_ALIKES else range(len(self.scenes))
            numbers.append(which[int(rng.integers(len(which)))])
        rng.shuffle(numbers)
        lengths = [self.scenes[n].duration_seconds for n in numbers]
        parts: list[StoredChunk] = []
        for number, start in zip(numbers, _recalled_starts(rng, lengths), strict=True):
            parts += self.scene_chunks(rng, number, start, stage)
        return parts[-wanted:], name

    def _look_alikes(self, rng: np.random.Generator) -> tuple[str | None, list[int], list[Sequence[int]]]:
        """A thing, scenes that must come, and lists to draw others from: those of a list show things of one shape or of
        one colour; or all are taken for showing the thing, which then may come as well."""
        if not self.mistaken or rng.random() >= DECEPTIVE:
            return None, [], [self._showing[str(word)] for word in rng.choice(list(self._showing), 2)]
        name = str(rng.choice(list(self.mistaken)))
        shown = self.named.get(name, [])
        return name, [int(rng.choice(shown))] if shown and rng.random() < TOLD_APART else [], [self.mistaken[name]]

    def prunes(self, rng: np.random.Generator, stage: Stage) -> bool:
        """Whether the next clip is a pruned one."""
        return self._worth is not None and rng.random() < stage.pruned

    def thinned(self, rng: np.random.Generator, chunks: Sequence[StoredChunk], tokens: int) -> list[StoredChunk]:
        """The chunks as a pruner leaves them: without the groups that show nothing new against the one before, and with
        so many tokens of each of the others. Chunks of which nothing is left are left out."""
        assert self._worth is not None
        news = self._worth.news[int(rng.integers(len(self._worth.news)))]
        thin, previous = [], -1
        for chunk in chunks:
            stay = []
            for k, group in enumerate(chunk.groups):
                stay += [k] if news[group] or group != previous + 1 else []
                previous = group
            groups = tuple(chunk.groups[k] for k in stay)
            kept = tuple(np.sort(self._worth.order[group, :tokens]).astype(np.intp) for group in groups)
            thin += (
                [replace(chunk, groups=groups, truth=tuple(chunk.truth[k] for k in stay), kept=kept)] if stay else []
            )
        return thin

    def scene_chunks(self, rng: np.random.Generator, number: int, start: float, stage: Stage) -> list[StoredChunk]:
        """The chunks of a scene that starts at this second."""
        scene, first = self.scenes[number], self.first_group[number]
        truth = moments(scene, start)
        if stage.chunks == (1, 1):
            count = int(rng.integers(stage.groups[0], stage.groups[1] + 1))
            skip = int(rng.integers(len(truth) - count + 1))
            span = range(skip, skip + count)
            return [StoredChunk(tuple(first + k for k in span), tuple(truth[k] for k in span))]
        cuts = range(0, len(truth), GROUPS_PER_CHUNK)
        return [
            StoredChunk(
                tuple(first + k for k in range(c, c + GROUPS_PER_CHUNK)),
                tuple(truth[c : c + GROUPS_PER_CHUNK]),
                bool(rng.random() < stage.hidden),
            )
            for c in cuts
        ]

    def draw(
        self, rng: np.random.Generator, stage: Stage, wanted: int | None = None
    ) -> tuple[TokenRow, list[Question], int]:
        """One clip with its questions, and how many chunks before its own each chunk was prefilled with."""
        reach = int(rng.choice([0, 1, 2, 99], p=[0.05, 0.15, 0.6, 0.2]))
        chunks = self.chunks(rng, stage, wanted)
        if self.prunes(rng, stage):
            chunks = self.thinned(rng, chunks, int(rng.choice(KEPT_TOKENS)))
        facts = Facts([m for chunk in chunks if not chunk.hidden for m in chunk.truth])
        questions = draw_questions(rng, facts, stage.questions)
        return self.sequence(chunks, questions), questions, reach

    def sequence(self, chunks: Sequence[StoredChunk], questions: Sequence[Question]) -> TokenRow:
        row = TokenRow()
        for k, token in enumerate(self.prefix):
            row.add(token, (k, k, k), PREFIX_CHUNK, CLIP, True)
        cursor = len(self.prefix)
        for number, chunk in enumerate(chunks):
            length = self.chunk_extent(chunk)
            # A hidden chunk stood right before its successor when that was prefilled; later the gap is closed.
            start = max(len(self.prefix), cursor - length) if chunk.hidden else cursor
            self._add_chunk(row, chunk, number, start)
            cursor = cursor if chunk.hidden else start + length
        for number, question in enumerate(questions):
            self._add_question(row, question, number, len(chunks), cursor)
        return row

    def _add_question(self, row: TokenRow, question: Question, number: int, chunk: int, start: int) -> None:
        asked = self.tokens(question.text) + self.header
        answer = [*self.tokens(question.answer), self.end]
        named = [self._names.get(pair) for pair in pairwise(asked)]
        row.names += [(len(row.ids) + k + 1, name) for k, name in enumerate(named) if name]
        if question.second is not None:
            row.times[number] = len(row.ids) + asked.index(self.seconds)
        for k, token in enumerate(asked + answer[:-1]):
            row.add(token, (start + k,) * 3, chunk, number, False)
        row.targets[-len(answer) :] = answer

    def _stamp(self, moment: Moment) -> list[int]:
        return self.tokens(f"<{moment.pts_seconds:.1f} seconds>")

    def chunk_extent(self, chunk: StoredChunk) -> int:
        """Positions that a chunk takes up."""
        return sum(len(self._stamp(m)) + 2 + GRID for m in chunk.truth)

    def _add_chunk(self, row: TokenRow, chunk: StoredChunk, number: int, start: int) -> None:
        at, seen = start, not chunk.hidden
        opening, pad, closing = self.vision
        first = len(row.moments)
        row.moments += chunk.truth
        row.moments_seen += [seen] * len(chunk.truth)
        row.moments_chunk += [number] * len(chunk.truth)
        for k, (group, moment) in enumerate(zip(chunk.groups, chunk.truth, strict=True), first):
            for token in [*self._stamp(moment), opening]:
                row.add(token, (at, at, at), number, CLIP, seen, moment=k)
                at += 1
            for cell in range(TOKENS_PER_GROUP) if chunk.kept is None else chunk.kept[k - first].tolist():
                feature = group * TOKENS_PER_GROUP + cell
                row.add(pad, (at, at + cell // GRID, at + cell % GRID), number, CLIP, seen, feature, k)
            at += GRID
            row.add(closing, (at, at, at), number, CLIP, seen, moment=k)
            at += 1


def draw_questions(rng: np.random.Generator, facts: Facts, count: int, leave: Collection[str] = ()) -> list[Question]:
    """At most so many questions, their families drawn by weight; some families may be left out."""
    names = [family for family in FAMILIES if family not in leave]
    weights = np.array([FAMILIES[family] for family in names])
    questions: list[Question] = []
    for family in rng.choice(names, 3 * count, p=weights / weights.sum()):
        made = ask(rng, facts, str(family))
        if made is not None and len(questions) < count:
            questions.append(made)
    return questions


def numbers_by(scenes: Sequence[Scene], texts_of: Callable[[Scene], Iterable[str]]) -> dict[str, list[int]]:
    """The numbers of the scenes that have a text."""
    found: dict[str, list[int]] = {}
    for number, scene in enumerate(scenes):
        for text in dict.fromkeys(texts_of(scene)):  # in order: every process draws the same
            found.setdefault(text, []).append(number)
    return found


def words_of(scene: Scene) -> list[str]:
    """Shapes and colours that a scene shows."""
    return [word for event in scene.events for thing in event.things for word in (thing.shape, thing.colour)]


def names_of(scene: Scene) -> list[str]:
    """Things that a scene shows."""
    return [thing.name for event in scene.events for thing in event.things]


def _random_start(rng: np.random.Generator) -> float:
    """Anywhere in a day, often near its beginning (videos are short), whole seconds more often than not."""
    start = (
        float(rng.uniform(0, DAY_SECONDS)) if rng.random() < 0.5 else float(np.exp(rng.uniform(0, np.log(4000))) - 1)
    )
    return float(int(start)) + (float(rng.integers(10)) / 10 if rng.random() < 0.3 else 0.0)


def _recalled_starts(rng: np.random.Generator, lengths: Sequence[float]) -> list[float]:
    """Where scenes of these lengths begin in a video of 40 seconds to a day: in order, the last at its end."""
    video_seconds = float(np.exp(rng.uniform(np.log(40), np.log(DAY_SECONDS))))
    free = max(0.0, video_seconds - sum(lengths))
    gaps = sorted(float(gap) for gap in rng.uniform(0, free, len(lengths) - 1))
    step = 100.0 if rng.random() < 0.25 else CHUNK_SECONDS  # hundreds apart, only the last digits are the same
    before = np.cumsum([0.0, *lengths[:-1]])
    fraction = float(rng.integers(10)) / 10 if rng.random() < 0.3 else 0.0
    return [float(gap // step * step + done) + fraction for gap, done in zip([*gaps, free], before, strict=True)]


def _random_gap(rng: np.random.Generator, far: bool) -> float:
    if rng.random() < 0.35:
        return 0.0
    if far:
        return float(int(np.exp(rng.uniform(np.log(10), np.log(8000)))))
    return float(CHUNK_SECONDS * rng.integers(0, 12))


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded rows: ids [B, N], positions [3, B, N], allowed [B, 1, N, N], visual [B, N], numbers of the visual tokens
    among all of the bank in row order, targets [B, N]."""

    ids: Tensor
    positions: Tensor
    allowed: Tensor
    visual: Tensor
    features: Tensor
    targets: Tensor
    questions: list[list[Question]]
    owner: Tensor
    rows: list[TokenRow]
    reaches: list[int]  # how many chunks back each row's chunks saw


def collate(drawn: Sequence[tuple[TokenRow, list[Question], int]]) -> Batch:
    longest = max(len(row.ids) for row, _, _ in drawn)
    shape = (len(drawn), longest)
    ids, targets, owner = (np.full(shape, value, dtype=np.int64) for value in (0, -100, CLIP))
    positions = np.zeros((3, *shape), dtype=np.int64)
    allowed = np.zeros((len(drawn), 1, longest, longest), dtype=bool)
    allowed[:, :, np.arange(longest), np.arange(longest)] = True
    features = np.full(shape, -1, dtype=np.int64)
    for b, (row, _, reach) in enumerate(drawn):
        n = len(row.ids)
        ids[b, :n], targets[b, :n], owner[b, :n], features[b, :n] = row.ids, row.targets, row.owner, row.feature
        positions[:, b, :n] = np.array(row.positions).T
        allowed[b, 0, :n, :n] = view(row, reach)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(allowed),
        torch.from_numpy(features >= 0),
        torch.from_numpy(features[features >= 0]),
        torch.from_numpy(targets),
        [questions for _, questions, _ in drawn],
        torch.from_numpy(owner),
        [row for row, _, _ in drawn],
        [reach for _, _, reach in drawn],
    )


def view(row: TokenRow, reach: int) -> NDArray[np.bool_]:
    """Who sees whom, [n, n]: clip tokens the prefix and `reach` chunks back; questions the clip and themselves."""
    chunk, owner, seen = np.array(row.chunk), np.array(row.owner), np.array(row.seen)
    of_clip = owner == CLIP
    near = (chunk[None, :] >= chunk[:, None] - reach) | (chunk == PREFIX_CHUNK)[None, :]
    clip_view = of_clip[:, None] & of_clip[None, :] & near
    question_view = ~of_clip[:, None] & ((of_clip & seen)[None, :] | (owner[:, None] == owner[None, :]))
    return np.asarray(np.tri(len(chunk), dtype=bool) & (clip_view | question_view))


def pick_stage(rng: np.random.Generator, stages: Sequence[tuple[Stage, float]]) -> Stage:
    """One of the stages, by their weights."""
    weights = np.array([w for _, w in stages])
    return stages[int(rng.choice(len(stages), p=weights / weights.sum()))][0]


def draw_batch(maker: ClipMaker, stage: Stage, rng: np.random.Generator) -> Batch:
    """Clips of a stage, all of one length, so that little is padding."""
    wanted = int(rng.integers(stage.chunks[0], stage.chunks[1] + 1))
    return collate([maker.draw(rng, stage, wanted) for _ in range(stage.batch)])


def answer_logits(
    model: Qwen3VLForConditionalGeneration, embeddings: Tensor, deepstack: Tensor, batch: Batch
) -> Tensor:
    """Logits at the places where an answer token is predicted."""
    out = through_layers(model, embeddings, deepstack, batch)
    return model.lm_head(out[batch.targets != -100]).float()  # type: ignore[no-any-return]


def through_layers(
    model: Qwen3VLForConditionalGeneration, embeddings: Tensor, deepstack: Tensor, batch: Batch
) -> Tensor:
    """The LLM's last hidden states [B, N, hidden]."""
    llm = model.model.language_model
    hidden = llm.embed_tokens(batch.ids)
    hidden = hidden.masked_scatter(batch.visual[..., None], _tokens(embeddings, batch).to(hidden.dtype))
    states: Tensor = llm(
        inputs_embeds=hidden,
        attention_mask=batch.allowed,
        position_ids=batch.positions,
        visual_pos_masks=batch.visual,
        deepstack_visual_embeds=[_tokens(deepstack, batch)],
        use_cache=False,
    ).last_hidden_state
    return states


def _tokens(features: Tensor, batch: Batch) -> Tensor:
    """The bank's features of every visual token of the batch, in row order, [visual tokens, hidden]."""
    return features.flatten(0, 1)[batch.features].float()


def right_answers(logits: Tensor, batch: Batch) -> Iterator[tuple[Question, bool]]:
    """Every question with whether greedy decoding would give its answer, token for token."""
    asked = batch.targets != -100
    right = torch.zeros_like(batch.targets, dtype=torch.bool)
    right[asked] = logits.argmax(-1) == batch.targets[asked]
    for b, questions in enumerate(batch.questions):
        for number, question in enumerate(questions):
            mine = asked[b] & (batch.owner[b] == number)
            yield question, bool(right[b][mine].all())


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """logits: where answers are predicted. targets: of all tokens, -100 where nothing is."""
    return nn.functional.cross_entropy(logits, targets[targets != -100])
