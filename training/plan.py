"""One step of the binding stage as plain arrays: videos as they are prefilled, their questions,
what each is answered from, and where heads should look. Made by worker processes, so that the
device never waits.

As a session does it: the chunks of a video are prefilled once; a question, read alone, ranks them
by its raw queries; it is answered after some of them at compact positions. Which chunks come is
drawn here: those that hold the answer, the newest, and those that look most alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from models.demo.architecture import TOKENS_PER_GROUP
from models.demo.world import COLOURS, MOTIONS, SHAPES, WorldEvent
from training.bind import KEPT_TOKENS, ClipMaker, Stage, StoredChunk, draw_questions
from training.questions import NEXT_SECONDS, Facts, Question, ask_presence
from training.scenes import GROUPS_PER_CHUNK, Moment

# chunks that are prefilled in one row; a row's first ones have seen none before them
ROW_CHUNKS = 6
NOISE = 0.5  # of the evidence: which chunks come should vary
DOUBTED = 3  # questions on whether the thing is there that look-alikes are taken for
MOST_HOLDERS = 3  # chunks of one event that come in any case
WHOLE_VIDEO = ("first", "caption")  # families that need all of a video, not what is recalled of it
OF_THE_END = ("last", "now")  # families that are answered from the newest chunk
# families whose answer the name has fetched
OF_THE_NAMED = ("when", "direction", "count_with", "after", "before")
SOME_TOKENS = 4  # visual tokens that must say their time, so many for each group
NOT_ASKED = -100
SUMMARY = (  # what a closing token is asked for: things, motions, how many
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"digit {n}" for n in range(10)),
    *MOTIONS,
    *(str(n) for n in range(5)),
)
SUMMARY_NUMBER = {name: number for number, name in enumerate(SUMMARY)}
COLOUR_NUMBER = {colour: number for number, colour in enumerate(COLOURS)}

Ints = NDArray[np.int64]
Marks = NDArray[np.bool_]
Plan = dict[str, NDArray[np.generic]]


class Words:
    """Text to tokens, and what questions name."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        ids = tokenizer.convert_tokens_to_ids
        self._backend = tokenizer.backend_tokenizer
        self.opening, self.pad, self.closing = (
            int(ids(token)) for token in ("<|vision_start|>", "<|video_pad|>", "<|vision_end|>")
        )
        self.end, self.seconds, self.then = (
            int(ids(token)) for token in ("<|im_end|>", "seconds", "then")
        )
        self.prefix = self.tokens("<|im_start|>user\n")
        self.header = self.tokens("<|im_end|>\n<|im_start|>assistant\n")
        pairs = [(c, s) for c in COLOURS for s in SHAPES] + [("digit", str(n)) for n in range(10)]
        self._names = {(int(ids(a)), int(ids(b))): f"{a} {b}" for a, b in pairs}
        self.stamp = lru_cache(maxsize=200_000)(self._stamp)

    def tokens(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _stamp(self, tenths: int) -> list[int]:
        return [*self.tokens(f"<{tenths / 10:.1f} seconds>"), self.opening]

    def names(self, asked: Sequence[int]) -> list[tuple[int, str]]:
        """(place of the last token, name) of the things named."""
        found = [(k + 1, self._names.get(pair)) for k, pair in enumerate(pairwise(asked))]
        return [(k, name) for k, name in found if name]


@dataclass(frozen=True, eq=False)
class Asked:
    """A question as tokens after the prefix: where it names things and a time; where the answer
    begins.
    """

    question: Question
    ids: list[int]
    answer: list[int]
    names: list[tuple[int, str]]
    time: int | None

    @classmethod
    def of(cls, words: Words, question: Question) -> Asked:
        text = words.tokens(question.text)
        ids = [*words.prefix, *text, *words.header]
        skip = len(words.prefix)
        names = [(skip + k, name) for k, name in words.names(text)]
        time = (
            ids.index(words.seconds)
            if question.second is not None and words.seconds in ids
            else None
        )
        return cls(question, ids, [*words.tokens(question.answer), words.end], names, time)


@dataclass(frozen=True, eq=False)
class Video:
    """Chunks in time order with questions about those that are not hidden."""

    chunks: Sequence[StoredChunk]
    questions: Sequence[Asked]
    recalled: bool
    moments: list[Moment] = field(init=False)
    everything: Facts = field(init=False)

    def __post_init__(self) -> None:
        moments = [moment for chunk in self.chunks for moment in chunk.truth]
        object.__setattr__(self, "moments", moments)
        object.__setattr__(self, "everything", Facts(moments))
        places: dict[int, list[int]] = {}
        for k, moment in enumerate(moments):
            for event in moment.events:
                places.setdefault(id(event), []).append(k)
        object.__setattr__(self, "_places", places)

    def showing(self, events: Collection[WorldEvent]) -> Marks:
        """The groups that show one of the events."""
        marks = np.zeros(len(self.moments), dtype=bool)
        for event in events:
            marks[self._places.get(id(event), [])] = True  # type: ignore[attr-defined]
        return marks

    def named(self, name: str) -> Marks:
        return self.showing(self.everything.by_name.get(name, ()))

    def at(self, second: int) -> Marks:
        return np.array([moment.second == second for moment in self.moments])

    def answering(self, question: Question) -> list[Marks]:
        """The groups that a question is about; of two things to compare, each is looked for."""
        if question.second is not None:
            return [self.at(question.second)]
        if question.family in ("first_of", "last_of"):
            return [self.showing([event]) for event in question.events]
        return [self.showing(question.events)]

    def source(self, question: Question, told: int = 0) -> Marks:
        """The groups that the next word of the answer is read from: of two events, the one that is
        the answer; of a caption, the one to be told next."""
        if question.second is not None:
            return self.at(question.second)
        events: Sequence[WorldEvent] = question.events
        if question.family == "caption":
            events = events[told : told + 1]
        elif question.family in ("after", "before"):
            events = events[1:]
        elif question.family in ("first_of", "last_of"):
            events = [
                e
                for e in events
                if any(f"the {thing.name}" == question.answer for thing in e.things)
            ]
        return self.showing(events)


def draw_video(
    maker: ClipMaker, words: Words, stage: Stage, rng: np.random.Generator, length: int
) -> Video:
    """A clip or, in recalled stages, a long video, of so many chunks, with its questions."""
    pruned = int(rng.choice(KEPT_TOKENS)) if maker.prunes(rng, stage) else None
    if stage.recalled:
        chunks, name = draw_recalled(maker, rng, stage, length, pruned)
        facts = Facts([moment for chunk in chunks for moment in chunk.truth])
        asked = draw_questions(rng, facts, stage.questions * length, WHOLE_VIDEO)
        asked += [ask_presence(rng, facts, name) for _ in range(DOUBTED)] if name else []
    else:
        chunks = maker.chunks(rng, stage, length)
        chunks = maker.thinned(rng, chunks, pruned) if pruned else chunks
        if len(chunks) == 1:
            chunks = [replace(chunks[0], hidden=False)]
        facts = Facts([moment for chunk in chunks if not chunk.hidden for moment in chunk.truth])
        asked = draw_questions(rng, facts, stage.questions)
    return Video(chunks, [Asked.of(words, question) for question in asked], stage.recalled)


def draw_recalled(
    maker: ClipMaker, rng: np.random.Generator, stage: Stage, length: int, pruned: int | None
) -> tuple[list[StoredChunk], str | None]:
    """Chunks of a long video; where it is pruned, what is left put together in chunks of one size,
    the newest of it.
    """
    if pruned is None:
        return maker.video(rng, stage, length)
    left: list[StoredChunk] = []
    needed, tried = length * GROUPS_PER_CHUNK, 2 * length
    while sum(len(chunk.groups) for chunk in left) < needed:
        chunks, name = maker.video(rng, stage, tried)
        left, tried = maker.thinned(rng, chunks, pruned), 2 * tried
    parts = [
        part
        for chunk in left
        for part in zip(chunk.groups, chunk.truth, chunk.kept or (), chunk.grids or (), strict=True)
    ]
    cuts = [parts[-needed:][k : k + GROUPS_PER_CHUNK] for k in range(0, needed, GROUPS_PER_CHUNK)]
    return [
        StoredChunk(g, t, kept=kept, grids=grids)
        for g, t, kept, grids in (zip(*c, strict=True) for c in cuts)
    ], name


def choose(video: Video, asked: Asked, rng: np.random.Generator) -> list[int]:
    """The chunks of a question's context, ascending."""
    if not video.recalled:
        return [k for k, chunk in enumerate(video.chunks) if not chunk.hidden]
    question, length = asked.question, len(video.chunks)
    timed = question.second is not None
    marks = (
        video.answering(question)
        if timed
        else [video.showing([event]) for event in question.events]
    )
    if question.family in OF_THE_END:
        marks = [np.arange(len(video.moments)) == len(video.moments) - 1]
    needed = {
        k
        for groups in marks
        for k in np.unique(groups.nonzero()[0] // GROUPS_PER_CHUNK)[:MOST_HOLDERS].tolist()
    }
    window, most = int(rng.choice([0, 1, 2], p=[0.1, 0.1, 0.8])), int(rng.integers(2, 9))
    newest = set(range(length - window, length))
    if timed:  # a time is an address: beside it comes what lies beside it
        near = {k + step for k in needed for step in (-1, 1) if 0 <= k + step < length}
        return sorted(needed | newest | near) if rng.random() < 0.5 else sorted(needed | newest)
    scores = alikeness(video, [name for _, name in asked.names]) + NOISE * rng.normal(size=length)
    best = np.argsort(-scores)[: max(0, most - len(needed))].tolist()
    return sorted(needed | newest | set(best))


def alikeness(video: Video, names: Sequence[str]) -> NDArray[np.float64]:
    """How much each chunk shows of the things named: all of one, its colour or its shape."""
    scores = np.zeros(len(video.chunks))
    words = [word for name in names for word in name.split()]
    for k, chunk in enumerate(video.chunks):
        shown = {
            thing for moment in chunk.truth for event in moment.events for thing in event.things
        }
        for thing in shown:
            scores[k] = max(
                scores[k],
                2.0 * (thing.name in names),
                0.8 * (thing.shape in words),
                0.8 * (thing.colour in words),
            )
    return scores


@lru_cache(maxsize=512)
def _layout(stamp: int, grid: tuple[int, int]) -> tuple[Ints, int]:
    """Positions of an unpruned group's tokens from its beginning, [3, n], and how many it takes
    up.
    """
    rows, columns = grid
    cells = np.arange(rows * columns)
    visual = np.stack([np.zeros_like(cells), cells // columns, cells % columns]) + stamp
    extent = stamp + max(grid)
    text = np.tile(np.arange(stamp), (3, 1))
    return np.concatenate([text, visual, np.full((3, 1), extent)], axis=1), extent + 1


@dataclass(eq=False)
class Rows:
    """All videos' chunks as rows of tokens under construction; every list has one entry per row,
    group or chunk.
    """

    words: Words
    ids: list[Ints] = field(default_factory=list)
    positions: list[Ints] = field(default_factory=list)
    chunk: list[Ints] = field(default_factory=list)
    feature: list[Ints] = field(default_factory=list)
    group: list[Ints] = field(default_factory=list)
    reach: list[int] = field(default_factory=list)
    # row, first token, number of tokens
    chunk_spans: list[tuple[int, int, int]] = field(default_factory=list)
    extents: list[int] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    before: list[tuple[int, int]] = field(default_factory=list)

    def add(self, chunks: Sequence[StoredChunk], reach: int) -> None:
        """A row: the prefix and up to `ROW_CHUNKS` chunks, each in view of `reach` before it."""
        prefix = np.array(self.words.prefix)
        nothing = np.full(len(prefix), -1)
        ids, positions = [prefix], [np.tile(np.arange(len(prefix)), (3, 1))]
        chunk_numbers, features, groups = [nothing], [nothing], [nothing]
        place, cursor = len(prefix), len(prefix)
        for number, chunk in enumerate(chunks):
            first, start = place, cursor
            for k, (group, moment) in enumerate(zip(chunk.groups, chunk.truth, strict=True)):
                stamp = self.words.stamp(round(moment.pts_seconds * 10))
                layout, extent = _layout(len(stamp), chunk.grid(k))
                cells = np.arange(layout.shape[1] - len(stamp) - 1)
                if chunk.kept is not None:
                    cells = chunk.kept[k]
                    picked = np.concatenate(
                        [np.arange(len(stamp)), len(stamp) + cells, [layout.shape[1] - 1]]
                    )
                    layout = layout[:, picked]
                size = layout.shape[1]
                tokens = np.full(size, self.words.pad)
                tokens[: len(stamp)], tokens[-1] = stamp, self.words.closing
                feature = np.full(size, -1)
                feature[len(stamp) : -1] = group * TOKENS_PER_GROUP + cells
                ids.append(tokens)
                positions.append(layout + cursor)
                features.append(feature)
                chunk_numbers.append(np.full(size, number))
                groups.append(np.full(size, len(self.moments)))
                self.moments.append(moment)
                place, cursor = place + size, cursor + extent
            self.chunk_spans.append((len(self.ids), first, place - first))
            self.extents.append(cursor - start)
        self.before += surroundings(chunks, reach)
        self.ids.append(np.concatenate(ids))
        self.positions.append(np.concatenate(positions, axis=1))
        self.chunk.append(np.concatenate(chunk_numbers))
        self.feature.append(np.concatenate(features))
        self.group.append(np.concatenate(groups))
        self.reach.append(reach)

    def arrays(self) -> Plan:
        """Padded to one width [R, N]; tokens are numbered through all rows."""
        width = -(-max(len(row) for row in self.ids) // 16) * 16
        groups = _padded(self.group, width, -1)
        features = _padded(self.feature, width, -1)
        places = np.full((len(self.moments), TOKENS_PER_GROUP), -1)
        visual = np.flatnonzero(features.ravel() >= 0)
        owner = groups.ravel()[visual]
        # rows are in the order of their groups
        rank = np.arange(len(visual)) - np.searchsorted(owner, owner)
        places[owner, rank] = visual
        ids = _padded(self.ids, width, 0)
        spans = np.array(self.chunk_spans)
        return {
            "ids": ids,
            "positions": np.stack(
                [_padded([p[axis] for p in self.positions], width, 0) for axis in range(3)]
            ),
            "chunk": _padded(self.chunk, width, -2),
            "reach": np.array(self.reach),
            "feature": features,
            "group": groups,
            "visual_places": places,
            "closing_places": np.flatnonzero(ids.ravel() == self.words.closing),
            "chunk_start": spans[:, 0] * width + spans[:, 1],
            "chunk_size": spans[:, 2],
            "chunk_extent": np.array(self.extents),
            "group_second": np.array([moment.second for moment in self.moments]),
            "group_clean": np.array([moment.clean for moment in self.moments]),
            "group_summary": np.stack([summary(moment) for moment in self.moments]),
            "group_before": np.array(self.before),
        }


def _padded(rows: Sequence[Ints], width: int, filler: int) -> Ints:
    out = np.full((len(rows), width), filler)
    for k, row in enumerate(rows):
        out[k, : len(row)] = row
    return out


def summary(moment: Moment) -> NDArray[np.uint8]:
    """What a group shows as marks in the order of `SUMMARY`."""
    marks = np.zeros(len(SUMMARY), dtype=np.uint8)
    things = [thing for event in moment.events for thing in event.things]
    for thing in things:
        marks[SUMMARY_NUMBER[thing.name]] = 1
        if thing.digit is None:
            marks[SUMMARY_NUMBER[thing.motion]] = 1
    if len(things) < 5:
        marks[SUMMARY_NUMBER[str(len(things))]] = 1
    return marks


def surroundings(chunks: Sequence[StoredChunk], reach: int) -> list[tuple[int, int]]:
    """For every group in which something comes up: shape and colour of what was shown just before
    (0: nothing near); -100 elsewhere, and where that has no one answer or lies out of the group's
    view."""
    around = []
    # events so far, where and when they were last seen
    shown: dict[int, tuple[WorldEvent, int, float]] = {}
    for number, chunk in enumerate(chunks):
        for moment in chunk.truth:
            around.append(_before(moment, number, reach, shown))
            for event in moment.events:
                shown.pop(id(event), None)
                shown[id(event)] = event, number, moment.pts_seconds
    return around


def _before(
    moment: Moment, chunk: int, reach: int, shown: dict[int, tuple[WorldEvent, int, float]]
) -> tuple[int, int]:
    unknown = NOT_ASKED, NOT_ASKED
    if not moment.clean or not moment.events or id(moment.events[0]) in shown:
        return unknown
    latest = next(reversed(shown.values()), None)
    if latest is None or moment.pts_seconds - latest[2] > NEXT_SECONDS:
        return (0, 0) if reach else unknown
    event, place, _ = latest
    if place < chunk - reach or len(event.things) > 1:
        return unknown
    thing = event.things[0]
    shape = len(SHAPES) + 1 if thing.digit is not None else SHAPES.index(thing.shape) + 1
    return shape, COLOUR_NUMBER[thing.colour] + 1


# question, place of a token in its row, groups of its video to look at
Look = tuple[int, int, Marks]


@dataclass(eq=False)
class Looks:
    """Where the tokens of all questions should look, and what they should tell once they have."""

    words: Words
    by_kind: dict[str, list[Look]] = field(
        default_factory=lambda: {
            kind: []
            for kind in (
                "look",
                "look_time",
                "look_next",
                "find",
                "read",
                "fetch",
                "fetch_name",
                "fetch_next",
            )
        }
    )
    # of each question: places that have fetched its answer
    own: dict[int, list[int]] = field(default_factory=dict)
    # question, place, group, first, next
    told: list[tuple[int, int, int, int, int]] = field(default_factory=list)

    def add(
        self, number: int, video: Video, asked: Asked, chosen: Sequence[int], first_group: int
    ) -> None:
        """first_group: number of the video's first group among all."""
        question = asked.question
        shown = np.zeros(len(video.moments), dtype=bool)
        starts = np.cumsum([0, *(len(chunk.groups) for chunk in video.chunks)])
        for k in chosen:
            shown[starts[k] : starts[k + 1]] = True
        speaking = self.own.setdefault(number, [])
        answers = video.answering(question)
        if asked.time is not None:
            self._mark("look_time", number, asked.time, answers[0])
            self._mark("fetch", number, asked.time, answers[0] & shown)
            if answers[0].any():
                self.told.append(
                    (number, asked.time, first_group + int(answers[0].argmax()), -1, -1)
                )
                speaking.append(asked.time)
        elif question.second is None:
            for groups in answers:
                self._mark("find", number, 0, groups)
        for place, name in asked.names:
            self._add_name(number, video, question, place, name, shown, first_group)
        told = 0
        for k, token in enumerate(asked.answer):
            told += token == self.words.then
            marks = video.source(question, told) & shown
            self._mark("read", number, len(asked.ids) - 1 + k, marks)

    def _add_name(
        self,
        number: int,
        video: Video,
        question: Question,
        place: int,
        name: str,
        shown: Marks,
        first_group: int,
    ) -> None:
        named = video.named(name)
        self._mark("look", number, place, named)
        self._mark("fetch_name", number, place, named & shown)
        following = video.showing(question.events[1:2]) if question.family == "after" else None
        if following is not None:
            self._mark("look_next", number, place, following)
            self._mark("fetch_next", number, place, following & shown)
        events = video.everything.by_name.get(name, ())
        if len(events) == 1 and (named & shown).any():
            views = sorted(named.nonzero()[0].tolist(), key=lambda k: not video.moments[k].clean)
            later = (
                sorted(following.nonzero()[0].tolist(), key=lambda k: not video.moments[k].clean)
                if following is not None
                else []
            )
            self.told.append(
                (
                    number,
                    place,
                    first_group + views[0],
                    first_group + min(views),
                    first_group + later[0] if later else -1,
                )
            )
            if question.family in OF_THE_NAMED or question.answer == f"the {name}":
                self.own[number].append(place)

    def _mark(self, kind: str, number: int, place: int, marks: Marks) -> None:
        if marks.any():
            self.by_kind[kind].append((number, place, marks))

    def arrays(self, most_groups: int) -> Plan:
        plan: Plan = {}
        for kind, looks in self.by_kind.items():
            marks = np.zeros((len(looks), most_groups), dtype=bool)
            for k, look in enumerate(looks):
                marks[k, : len(look[2])] = look[2]
            plan[f"{kind}_question"] = np.array([look[0] for look in looks], dtype=np.int64)
            plan[f"{kind}_place"] = np.array([look[1] for look in looks], dtype=np.int64)
            plan[f"{kind}_groups"] = marks
        plan["told"] = np.array(self.told, dtype=np.int64).reshape(-1, 5)
        return plan


def make_plan(
    maker: ClipMaker,
    words: Words,
    stage: Stage,
    rng: np.random.Generator,
    num_chunks: int,
    num_questions: int,
) -> Plan:
    """A step on videos of one length, with about so many chunks and at most so many questions in
    all.
    """
    length = int(rng.integers(stage.chunks[0], stage.chunks[1] + 1))
    videos = [
        draw_video(maker, words, stage, rng, length) for _ in range(max(1, num_chunks // length))
    ]
    rows, looks = Rows(words), Looks(words)
    asked: list[Asked] = []
    owners: list[int] = []
    chosen: list[list[int]] = []
    first_chunk, first_groups = 0, []
    most_groups = max(len(video.moments) for video in videos)
    share = max(1, num_questions // len(videos))
    for number, video in enumerate(videos):
        first_group = len(rows.moments)
        first_groups.append(first_group)
        reach = int(rng.choice([0, 1, 2, 99], p=[0.05, 0.15, 0.7, 0.1]))
        for k in range(0, len(video.chunks), ROW_CHUNKS):
            rows.add(video.chunks[k : k + ROW_CHUNKS], reach)
        for question in video.questions[:share]:
            picked = choose(video, question, rng)
            looks.add(len(asked), video, question, picked, first_group)
            asked.append(question)
            owners.append(number)
            chosen.append([first_chunk + k for k in picked])
        first_chunk += len(video.chunks)
    plan = {**rows.arrays(), **looks.arrays(most_groups), **_questions(words, asked, looks)}
    groups = np.full((len(videos), most_groups), -1)
    for number, (video, first) in enumerate(zip(videos, first_groups, strict=True)):
        groups[number, : len(video.moments)] = first + np.arange(len(video.moments))
    most_chunks = max(1, max((len(picked) for picked in chosen), default=1))
    plan |= {
        "video_groups": groups,
        "owner": np.array(owners),
        "chosen": _padded([np.array(picked, dtype=np.int64) for picked in chosen], most_chunks, -1),
        "slots": np.arange(-(-int(plan["chunk_size"].max()) // 8) * 8),  # for the tokens of a chunk
        "some": _some_tokens(plan["visual_places"], rng),
    }
    return {name: _small(array) for name, array in plan.items()}


def _small(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Half of the bytes for what travels between processes."""
    return array.astype(np.int32) if array.dtype == np.int64 else array


Packed = tuple[Tensor, list[tuple[str, torch.dtype, tuple[int, ...], int]]]


def pack(plan: Plan) -> Packed:
    """All arrays in one, so that a step travels in one piece: bytes, and name, type, shape and
    place of each array.
    """
    contents, parts, place = [], [], 0
    for name, array in plan.items():
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        contents.append((name, torch.from_numpy(array).dtype, array.shape, place))
        padding = -len(raw) % 8
        parts += [raw, np.zeros(padding, dtype=np.uint8)]
        place += len(raw) + padding
    return torch.from_numpy(np.concatenate(parts)), contents


def unpack(packed: Packed, device: torch.device) -> dict[str, Tensor]:
    """The arrays as tensors on a device."""
    whole, contents = packed[0].to(device, non_blocking=True), packed[1]
    batch = {}
    for name, kind, shape, place in contents:
        size = math.prod(shape) * kind.itemsize
        batch[name] = whole[place : place + size].view(kind).view(shape)
    return batch


def _some_tokens(places: NDArray[np.generic], rng: np.random.Generator) -> Ints:
    """Visual tokens that must say their time: [n, 2], the place of each and its group."""
    groups, slots = np.nonzero(np.asarray(places) >= 0)
    picked = rng.permutation(len(groups))[: SOME_TOKENS * len(places)]
    return np.stack(
        [np.asarray(places)[groups[picked], slots[picked]], groups[picked]], axis=1
    ).astype(np.int64)


def _questions(words: Words, asked: Sequence[Asked], looks: Looks) -> Plan:
    """The questions' tokens [Q, n], what each is to predict, and which of a row have fetched what
    its answer needs.
    """
    width = -(-max(len(a.ids) + len(a.answer) - 1 for a in asked) // 8) * 8 + len(words.prefix)
    ids, targets, own = (np.full((len(asked), width), filler) for filler in (0, NOT_ASKED, 0))
    lengths = []
    for q, one in enumerate(asked):
        tokens = [*one.ids, *one.answer[:-1]]
        ids[q, : len(tokens)] = tokens
        targets[q, len(one.ids) - 1 : len(tokens)] = one.answer
        own[q, looks.own.get(q, [])] = 1
        lengths.append(len(one.ids))
    flat = targets.ravel()
    named = [
        (q, one.time, one.question.second) for q, one in enumerate(asked) if one.time is not None
    ]
    return {
        "asked_ids": ids,
        "asked_length": np.array(lengths),
        "own_places": own.astype(bool),
        "target_places": np.flatnonzero(flat != NOT_ASKED),
        "target_ids": flat[flat != NOT_ASKED],
        "target_weight": np.concatenate([_word_weights(one) for one in asked]),
        "family": np.array([_family_number(one.question.family) for one in asked]),
        "named_times": np.array(named, dtype=np.int64).reshape(-1, 3),
    }


def _word_weights(asked: Asked) -> NDArray[np.float32]:
    """A long answer weighs more than a short one, but less than its words would."""
    n = len(asked.answer)
    return np.full(n, n**-0.5, dtype=np.float32)


def _family_number(family: str) -> int:
    from training.questions import FAMILIES

    return list(FAMILIES).index(family)
