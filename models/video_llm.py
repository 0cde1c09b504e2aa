"""What longlook asks of a video LLM, and the small records that pass between the two.

A model is shared and immutable; everything that belongs to one stream lives in its session. Knows
nothing of
transformers: `models/decoder.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from config import AnswerConfig, ReuseConfig
from frames import Frame
from keyframes.frame_group import FrameGroup
from keyframes.pruner import TokenSelection
from keyframes.reuse import FeatureReuse
from memory.chunk import KVChunk

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Head:
    """One attention head: `layer` and `head` count from 0, `head` among the query heads."""

    layer: int
    head: int


@dataclass(frozen=True, eq=False)
class VisualGroup:
    """What the vision tower makes of one group of frames.

    embeddings: [n, hidden], one row per visual token, row-major over its grid.
    deepstack: one [n, hidden] per early LLM layer that takes vision features directly (Qwen3-VL);
    empty elsewhere.
    grid: (rows, columns) of all tokens that the tower made.
    pts_seconds: the time written before the group, as the model was trained on it.
    start_seconds, stop_seconds: time of the first and of the last frame of the group.
    kept: int64 [n] on the CPU, the places in the grid of the tokens that are still there,
    ascending; none may be left.
        None where all are.
    """

    embeddings: Tensor
    deepstack: tuple[Tensor, ...]
    grid: tuple[int, int]
    pts_seconds: float
    start_seconds: float
    stop_seconds: float
    kept: Tensor | None = None

    def __post_init__(self) -> None:
        rows, columns = self.grid
        n = rows * columns if self.kept is None else len(self.kept)
        if any(len(features) != n for features in (self.embeddings, *self.deepstack)):
            raise ValueError(
                f"{n} tokens of a {rows} x {columns} grid need as many features: "
                f"{len(self.embeddings)}"
            )
        if self.kept is not None and not _ascend(self.kept, rows * columns):
            raise ValueError(
                f"not places in a {rows} x {columns} grid, in order: {self.kept.tolist()}"
            )

    @property
    def places(self) -> Tensor:
        """Where the tokens stand in the grid, row-major: int64 [n]."""
        return torch.arange(self.grid[0] * self.grid[1]) if self.kept is None else self.kept

    @property
    def num_pruned(self) -> int:
        return self.grid[0] * self.grid[1] - len(self.embeddings)

    def pruned(self, stays: TokenSelection) -> VisualGroup:
        """What stays of a whole group."""
        assert self.kept is None, "pruned already"
        embeddings, *deepstack = (
            stays.select(features) for features in (self.embeddings, *self.deepstack)
        )
        return replace(self, embeddings=embeddings, deepstack=tuple(deepstack), kept=stays.places)


def _ascend(places: Tensor, stop: int) -> bool:
    borders = torch.cat([torch.tensor([-1]), places, torch.tensor([stop])])
    return bool((borders.diff() > 0).all())


def split_into_groups(items: Sequence[T], size: int) -> list[list[T]]:
    """Frames, or what is known of each, as a model takes `size` of them together; the last one is
    repeated where the last group lacks some.
    """
    groups = [list(items[k : k + size]) for k in range(0, len(items), size)]
    if groups:
        groups[-1] += groups[-1][-1:] * (size - len(groups[-1]))
    return groups


def cut_groups(frames: Sequence[Frame], model: VideoLLM) -> list[FrameGroup]:
    """The groups of frames of which nothing is measured, ready for the tower."""
    groups = split_into_groups(frames, model.frames_per_group)
    cut = model.cut_patches(groups)
    return [
        FrameGroup(group, patches=patches, grid=grid)
        for group, (patches, grid) in zip(groups, cut, strict=True)
    ]


def num_visual_tokens(model: VideoLLM, frames: Sequence[Frame]) -> int:
    """Of consecutive frames before pruning, all as large as the first."""
    height, width = frames[0].image.shape[:2]
    num_groups = -(-len(frames) // model.frames_per_group)
    return num_groups * model.num_group_tokens(height, width)


@dataclass(frozen=True)
class Turn:
    """One finished question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, eq=False)
class AnswerRequest:
    """One question with its context, which begins with the prefix."""

    question: str
    context: Sequence[KVChunk]
    dialogue: Sequence[Turn]
    options: AnswerConfig


@dataclass(frozen=True, eq=False)
class ChoiceRequest:
    """One question that has a closed set of answers, with its context, which begins with the
    prefix.

    choices: the answers, each in one or more spellings whose probabilities are summed.
    """

    question: str
    context: Sequence[KVChunk]
    choices: Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class PrefillRequest:
    """Consecutive chunks of one stream that are to be prefilled.

    runs: the groups of each chunk. prefix: chunks that each of them sees.
    recent: the newest chunks so far, oldest first. num_recent: how many chunks before it, of
    `recent` and of the request itself, each one sees. index: number of the first chunk.
    """

    runs: Sequence[Sequence[VisualGroup]]
    prefix: Sequence[KVChunk]
    recent: Sequence[KVChunk]
    num_recent: int
    index: int


class VideoLLM(Protocol):
    """A video LLM as longlook drives it. All methods run without gradients on `device`."""

    model_id: str
    device: torch.device
    dtype: torch.dtype
    frames_per_group: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def prefix(self) -> KVChunk:
        """The prompt before the video, prefilled: chunk -1."""
        ...

    def reuse(self, config: ReuseConfig) -> FeatureReuse | None:
        """What `encode_groups` needs to use the vision tower's work again along one stream; None
        where nothing is reused.
        """
        ...

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that the vision tower reads of a frame of this size in
        pixels. Raises LonglookError for a frame that it cannot read.
        """
        ...

    def num_group_tokens(self, height: int, width: int) -> int:
        """Visual tokens of one group of frames of this size in pixels. Raises
        LonglookError as `patch_grid` does.
        """
        ...

    def cut_patches(
        self, groups: Sequence[Sequence[Frame]]
    ) -> list[tuple[Tensor, tuple[int, int]]]:
        """The patches of each group as the tower reads them, uint8 [T, values] on the CPU, and
        their grid. Does not touch the device; any thread may call it.
        """
        ...

    def encode_groups(
        self, groups: Sequence[FrameGroup], reuse: FeatureReuse | None = None
    ) -> list[VisualGroup]:
        """Groups with their patches through the vision tower, those of one size in one batch.

        reuse: of the one stream that all of them belong to, in order.
        """
        ...

    def encode(self, frames: Sequence[Frame]) -> list[VisualGroup]:
        """Frames that nobody has prepared: grouped, cut and through the vision tower; an odd last
        frame is repeated.
        """
        ...

    def prefill(
        self, groups: Sequence[VisualGroup], context: Sequence[KVChunk], index: int
    ) -> KVChunk:
        """Groups, each behind its timestamp, through the LLM. They see `context`, renumbered, and
        each other.
        """
        ...

    def prefill_batch(self, requests: Sequence[PrefillRequest]) -> list[list[KVChunk]]:
        """The chunks of several requests, of one stream or of many, in one pass.

        They are what `prefill` makes of each run alone. Raises ValueError for a run without groups.
        """
        ...

    def question_queries(self, question: str, heads: Sequence[Head]) -> Tensor:
        """Raw queries of a question that has seen the prefix only, float32 [len(heads), n,
        head_dim].

        One per token of the question and the header of its answer, the newest last.
        """
        ...

    def all_question_queries(self, question: str) -> Tensor:
        """The same of every head, float32 [layers, heads, n, head_dim]."""
        ...

    def doubt(self, question: str, context: Sequence[KVChunk], dialogue: Sequence[Turn]) -> float:
        """How unsure the model is of an answer's first token, from 0 (sure) to 1."""
        ...

    def answer(
        self,
        question: str,
        context: Sequence[KVChunk],
        dialogue: Sequence[Turn],
        options: AnswerConfig,
    ) -> Iterator[str]:
        """One answer by itself, piece by piece of text; `context` begins with the prefix."""
        ...

    def answer_batch(self) -> AnswerBatch:
        """An empty batch of answers."""
        ...

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[list[float]]:
        """How probable each choice of each request is, relative to its other choices; in one
        batch. Raises LonglookError for a choice that the model has no words for.
        """
        ...


class PendingAnswer(Protocol):
    """One answer of a batch, as far as it has come."""

    is_done: bool

    def take_text(self) -> str:
        """The text that came since this was last called."""
        ...


class AnswerBatch(Protocol):
    """Answers that one model is giving at the same time; what one says never depends on the
    others.
    """

    @property
    def memory_bytes(self) -> int:
        """Device bytes of their contexts."""
        ...

    def __len__(self) -> int: ...

    def memory_bytes_with(self, context: Sequence[KVChunk], options: AnswerConfig) -> int:
        """The same if an answer over `context` joined."""
        ...

    def add_all(self, requests: Sequence[AnswerRequest]) -> Sequence[PendingAnswer]:
        """Answers join in one pass, all of them or none; each has its first token then, or is done.
        Contexts begin with the prefix.
        """
        ...

    def step(self) -> None:
        """One more token of every answer; those that end leave."""
        ...

    def remove(self, answer: PendingAnswer) -> None:
        """Drop an answer that is not wanted any more; nothing happens if it is done."""
        ...
