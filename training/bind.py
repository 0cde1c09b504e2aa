"""Clips for the binding stage: chunks of the bank's scenes put at times anywhere within a day, with
their questions.

Some chunks are hidden from the questions, as recall will later do; some clips are without the
tokens that show nothing new, as a pruner leaves them; long videos are full of look-alikes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from models.demo.world import Scene
from training.bank import GRIDS
from training.questions import FAMILIES, Facts, Question, ask
from training.scenes import CHUNK_SECONDS, GROUPS_PER_CHUNK, Moment, moments
from training.unchanged import Worth

DAY_SECONDS = 86_400
LOOK_ALIKES = 0.7  # share of recalled scenes that show a thing of the same shape or colour
# share of recalled videos whose look-alikes are what the model takes most for one thing
DECEPTIVE = 0.6
TOLD_APART = 0.5  # share of these that show this thing as well
KEPT_TOKENS = (4, 6, 8, 10)  # of a group, in a pruned clip
STRANGE = 0.08  # share of questions with a word that nobody knows
SQUARE_CLIPS = 0.7  # share of clips with square frames; the others are of one other shape each


@dataclass(frozen=True)
class Stage:
    """A step of the curriculum: how long the clips are and how they were remembered."""

    name: str
    # groups of the single chunk of a short clip (inclusive), when chunks == (1, 1)
    groups: tuple[int, int]
    chunks: tuple[int, int]  # chunks of a clip, inclusive
    hidden: float = 0.0  # share of chunks the questions do not see
    far: float = 1.0  # chance that scenes of one clip lie far apart in time
    # a video of look-alikes at random places, answered from what is recalled of it
    recalled: bool = False
    # share of clips without the groups that show nothing new, and with few tokens of the others
    pruned: float = 0.0
    questions: int = 12  # for each clip; of recalled videos for each chunk


@dataclass(frozen=True)
class StoredChunk:
    """One chunk of the bank placed in a stream: its groups' numbers and truth, and the tokens each
    kept (None: all).
    """

    groups: tuple[int, ...]
    truth: tuple[Moment, ...]
    hidden: bool = False
    kept: tuple[NDArray[np.intp], ...] | None = None
    # rows and columns of tokens of each group; None: square
    grids: tuple[tuple[int, int], ...] | None = None

    def grid(self, k: int) -> tuple[int, int]:
        """Rows and columns of tokens of the k-th group."""
        return GRIDS[0] if self.grids is None else self.grids[k]


class ClipMaker:
    """Draws clips and their questions from a bank's scenes."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        first_group: Sequence[int],
        tokenizer: PreTrainedTokenizerFast,
        worth: Worth | None = None,
        grids: Sequence[int] | None = None,
    ) -> None:
        """worth: what a pruner would keep of the bank; None: nothing is pruned. grids: number of
        each scene's grid;
        None: all are square."""
        self.scenes, self.first_group, self.tokenizer = scenes, first_group, tokenizer
        self._worth = worth
        self._grids = [0] * len(scenes) if grids is None else list(grids)
        # scenes taken for showing a thing, once `lookalikes` knows
        self.mistaken: Mapping[str, Sequence[int]] = {}
        self._of_grid = [
            [n for n, g in enumerate(self._grids) if g == k] for k in range(len(GRIDS))
        ]
        self._others = [k for k in range(1, len(GRIDS)) if self._of_grid[k]]
        self._showing = numbers_by(scenes, words_of)
        self.named = numbers_by(scenes, names_of)

    def _draw_grid(self, rng: np.random.Generator) -> int:
        if not self._others or (self._of_grid[0] and rng.random() < SQUARE_CLIPS):
            return 0
        return self._others[int(rng.integers(len(self._others)))]

    def chunks(
        self, rng: np.random.Generator, stage: Stage, wanted: int | None = None
    ) -> list[StoredChunk]:
        """A clip of `wanted` chunks: scenes in time order, close together or hours apart."""
        wanted = wanted or int(rng.integers(stage.chunks[0], stage.chunks[1] + 1))
        start, far = _random_start(rng), rng.random() < stage.far
        pool = self._of_grid[self._draw_grid(rng)]
        parts: list[StoredChunk] = []
        while len(parts) < wanted:
            number = pool[int(rng.integers(len(pool)))]
            parts += self.scene_chunks(rng, number, start, stage)
            start += self.scenes[number].duration_seconds + _random_gap(rng, far)
        return parts[:wanted]

    def video(
        self, rng: np.random.Generator, stage: Stage, wanted: int
    ) -> tuple[list[StoredChunk], str | None]:
        """Chunks of look-alikes at random places of a long video, and what they are all taken for,
        if anything.
        """
        name, numbers, alike = self._look_alikes(rng)
        seconds = sum(self.scenes[n].duration_seconds for n in numbers)
        while seconds < wanted * CHUNK_SECONDS:
            which = (
                alike[int(rng.integers(len(alike)))]
                if rng.random() < LOOK_ALIKES
                else range(len(self.scenes))
            )
            numbers.append(which[int(rng.integers(len(which)))])
            seconds += self.scenes[numbers[-1]].duration_seconds
        rng.shuffle(numbers)
        lengths = [self.scenes[n].duration_seconds for n in numbers]
        parts: list[StoredChunk] = []
        for number, start in zip(numbers, _recalled_starts(rng, lengths), strict=True):
            parts += self.scene_chunks(rng, number, start, stage)
        return parts[-wanted:], name

    def _look_alikes(
        self, rng: np.random.Generator
    ) -> tuple[str | None, list[int], list[Sequence[int]]]:
        """A thing, scenes that must come, and lists to draw others from: those of a list show
        things of one shape or of one colour; or all are taken for showing the thing, which then may
        come as well."""
        if not self.mistaken or rng.random() >= DECEPTIVE:
            return (
                None,
                [],
                [self._showing[str(word)] for word in rng.choice(list(self._showing), 2)],
            )
        name = str(rng.choice(list(self.mistaken)))
        shown = self.named.get(name, [])
        return (
            name,
            [int(rng.choice(shown))] if shown and rng.random() < TOLD_APART else [],
            [self.mistaken[name]],
        )

    def prunes(self, rng: np.random.Generator, stage: Stage) -> bool:
        """Whether the next clip is a pruned one."""
        return self._worth is not None and rng.random() < stage.pruned

    def thinned(
        self, rng: np.random.Generator, chunks: Sequence[StoredChunk], tokens: int
    ) -> list[StoredChunk]:
        """The chunks as a pruner leaves them: without the groups that show nothing new against the
        one before, and with so many tokens of each of the others. Chunks of which nothing is left
        are left out."""
        assert self._worth is not None
        news = self._worth.news[int(rng.integers(len(self._worth.news)))]
        thin, previous = [], -1
        for chunk in chunks:
            stay = []
            for k, group in enumerate(chunk.groups):
                stay += [k] if news[group] or group != previous + 1 else []
                previous = group
            if stay:
                groups = tuple(chunk.groups[k] for k in stay)
                kept = tuple(
                    np.sort(self._worth.order[group, :tokens]).astype(np.intp) for group in groups
                )
                truth, grids = (
                    tuple(chunk.truth[k] for k in stay),
                    tuple(chunk.grid(k) for k in stay),
                )
                thin.append(replace(chunk, groups=groups, truth=truth, kept=kept, grids=grids))
        return thin

    def scene_chunks(
        self, rng: np.random.Generator, number: int, start: float, stage: Stage
    ) -> list[StoredChunk]:
        """The chunks of a scene that starts at this second."""
        scene, first, grid = (
            self.scenes[number],
            self.first_group[number],
            GRIDS[self._grids[number]],
        )
        truth = moments(scene, start)
        if stage.chunks == (1, 1):
            count = int(rng.integers(stage.groups[0], stage.groups[1] + 1))
            skip = int(rng.integers(len(truth) - count + 1))
            span = range(skip, skip + count)
            return [
                StoredChunk(
                    tuple(first + k for k in span),
                    tuple(truth[k] for k in span),
                    grids=(grid,) * count,
                )
            ]
        cuts = range(0, len(truth), GROUPS_PER_CHUNK)
        return [
            StoredChunk(
                tuple(first + k for k in range(c, c + GROUPS_PER_CHUNK)),
                tuple(truth[c : c + GROUPS_PER_CHUNK]),
                bool(rng.random() < stage.hidden),
                grids=(grid,) * GROUPS_PER_CHUNK,
            )
            for c in cuts
        ]


def draw_questions(
    rng: np.random.Generator, facts: Facts, count: int, leave: Collection[str] = ()
) -> list[Question]:
    """At most so many questions, their families drawn by weight; some families may be left out."""
    names = [family for family in FAMILIES if family not in leave]
    weights = np.array([FAMILIES[family] for family in names])
    questions: list[Question] = []
    for family in rng.choice(len(names), 3 * count, p=weights / weights.sum()).tolist():
        if len(questions) == count:
            break
        made = ask(rng, facts, names[family], strange=STRANGE)
        if made is not None:
            questions.append(made)
    return questions


def numbers_by(
    scenes: Sequence[Scene], texts_of: Callable[[Scene], Iterable[str]]
) -> dict[str, list[int]]:
    """The numbers of the scenes that have a text."""
    found: dict[str, list[int]] = {}
    for number, scene in enumerate(scenes):
        for text in dict.fromkeys(texts_of(scene)):  # in order: every process draws the same
            found.setdefault(text, []).append(number)
    return found


def words_of(scene: Scene) -> list[str]:
    """Shapes and colours that a scene shows."""
    return [
        word
        for event in scene.events
        for thing in event.things
        for word in (thing.shape, thing.colour)
    ]


def names_of(scene: Scene) -> list[str]:
    """Things that a scene shows."""
    return [thing.name for event in scene.events for thing in event.things]


def _random_start(rng: np.random.Generator) -> float:
    """Anywhere in a day, often near its beginning (videos are short), whole seconds more often than
    not.
    """
    start = (
        float(rng.uniform(0, DAY_SECONDS))
        if rng.random() < 0.5
        else float(np.exp(rng.uniform(0, np.log(4000))) - 1)
    )
    return float(int(start)) + (float(rng.integers(10)) / 10 if rng.random() < 0.3 else 0.0)


def _recalled_starts(rng: np.random.Generator, lengths: Sequence[float]) -> list[float]:
    """Where scenes of these lengths begin in a video of 40 seconds to a day: in order, the last at
    its end.
    """
    video_seconds = float(np.exp(rng.uniform(np.log(40), np.log(DAY_SECONDS))))
    free = max(0.0, video_seconds - sum(lengths))
    gaps = sorted(float(gap) for gap in rng.uniform(0, free, len(lengths) - 1))
    # hundreds apart, only the last digits are the same
    step = 100.0 if rng.random() < 0.25 else CHUNK_SECONDS
    before = np.cumsum([0.0, *lengths[:-1]])
    fraction = float(rng.integers(10)) / 10 if rng.random() < 0.3 else 0.0
    return [
        float(gap // step * step + done) + fraction
        for gap, done in zip([*gaps, free], before, strict=True)
    ]


def _random_gap(rng: np.random.Generator, far: bool) -> float:
    if rng.random() < 0.35:
        return 0.0
    if far:
        return float(int(np.exp(rng.uniform(np.log(10), np.log(8000)))))
    return float(CHUNK_SECONDS * rng.integers(0, 12))


def pick_stage(rng: np.random.Generator, stages: Sequence[tuple[Stage, float]]) -> Stage:
    """One of the stages, by their weights."""
    weights = np.array([w for _, w in stages])
    return stages[int(rng.choice(len(stages), p=weights / weights.sum()))][0]
