"""What longlook asks of a video LLM, and the small records that pass between the two.

A model is shared and immutable; everything that belongs to one stream lives in its session. Knows nothing of
transformers: `models/decoder.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Protocol

import torch
from torch import Tensor

from config import AnswerConfig, ReuseConfig
from keyframes.pruner import Kept, TokenPruner, means_of
from keyframes.reuse import FeatureReuse
from memory.chunk import KVChunk
from streaming.frames import Frame


@dataclass(frozen=True, order=True)
class Head:
    """One attention head: `layer` and `head` count from 0, `head` among the query heads."""

    layer: int
    head: int


@dataclass(frozen=True, eq=False)
class VisualGroup:
    """What the vision tower makes of one group of frames.

    embeddings: [n, hidden], one row per visual token, row-major over its grid.
    deepstack: one [n, hidden] per early LLM layer that takes vision features directly (Qwen3-VL); empty elsewhere.
    grid: (rows, columns) of all tokens that the tower made.
    pts_seconds: the time written before the group, as the model was trained on it.
    start_seconds, stop_seconds: time of the first and of the last frame of the group.
    kept: int64 [n] on the CPU, the places in the grid of the tokens that are still there, ascending; none may be left.
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
            raise ValueError(f"{n} tokens of a {rows} x {columns} grid need as many features: {len(self.embeddings)}")
        if self.kept is not None and not _ascend(self.kept, rows * columns):
            raise ValueError(f"not places in a {rows} x {columns} grid, in order: {self.kept.tolist()}")

    @property
    def places(self) -> Tensor:
        """Where the tokens stand in the grid, row-major: int64 [n]."""
        return torch.arange(self.grid[0] * self.grid[1]) if self.kept is None else self.kept

    @property
    def num_pruned(self) -> int:
        return self.grid[0] * self.grid[1] - len(self.embeddings)

    def pruned(self, stays: Kept) -> VisualGroup:
        """What stays of a whole group."""
        assert self.kept is None, "pruned already"
        embeddings, *deepstack = (_left(features, stays) for features in (self.embeddings, *self.deepstack))
        return replace(self, embeddings=embeddings, deepstack=tuple(deepstack), kept=stays.places)


def _left(features: Tensor, stays: Kept) -> Tensor:
    if stays.owners is None:
        return features[stays.places.to(features.device)]
    return means_of(features, stays.owners.to(features.device), len(stays.places)).to(features.dtype)


def _ascend(places: Tensor, stop: int) -> bool:
    borders = torch.cat([torch.tensor([-1]), places, torch.tensor([stop])])
    return bool((borders.diff() > 0).all())


def news(
    model: VideoLLM,
    parts: Sequence[Sequence[Frame]],
    pruner: TokenPruner | None,
    reuse: FeatureReuse | None = None,
) -> list[list[VisualGroup]]:
    """Of each of consecutive parts of a stream the groups that go on to the LLM, without the tokens that the pruner
    leaves out. All parts are encoded in one batch; groups don't reach from part to part.

    Those that show nothing new are not encoded at all. Everything goes on where there is no pruner.
    """
    in_groups = [(number, group) for number, part in enumerate(parts) for group in groups_of(part, model)]
    if pruner is not None:
        images = [[frame.image for frame in group] for _, group in in_groups]
        are_new = pruner.news(images, [group[0].pts_seconds for _, group in in_groups])
        in_groups = list(compress(in_groups, are_new))
    encoded = model.encode([frame for _, group in in_groups for frame in group], reuse)
    found: list[list[VisualGroup]] = [[] for _ in parts]
    for (number, _), group in zip(in_groups, encoded, strict=True):
        found[number].append(group if pruner is None else group.pruned(pruner.keep(group.embeddings)))
    return found


def groups_of(frames: Sequence[Frame], model: VideoLLM) -> list[list[Frame]]:
    """Frames as the model takes them together; the last one is repeated where the last group lacks some."""
    size = model.frames_per_group
    groups = [list(frames[k : k + size]) for k in range(0, len(frames), size)]
    if groups:
        groups[-1] += groups[-1][-1:] * (size - len(groups[-1]))
    return groups


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
        """What `encode` needs to use the vision tower's work again along one stream; None where nothing is reused."""
        ...

    def num_group_tokens(self, height: int, width: int) -> int:
        """Visual tokens of one group of frames of this size in pixels. Raises ValueError as `encode` does."""
        ...

    def encode(self, frames: Sequence[Frame], reuse: FeatureReuse | None = None) -> list[VisualGroup]:
        """Frames through the vision tower, one batch for all groups; an odd last frame is repeated."""
        ...

    def prefill(self, groups: Sequence[VisualGroup], context: Sequence[KVChunk], index: int) -> KVChunk:
        """Groups, each behind its timestamp, through the LLM. They see `context`, renumbered, and each other."""
        ...

    def prefill_together(
        self,
        runs: Sequence[Sequence[VisualGroup]],
        head: Sequence[KVChunk],
        near: Sequence[KVChunk],
        reach: int,
        index: int,
    ) -> list[KVChunk]:
        """Consecutive chunks, one of each run of groups, numbered from `index`, in one pass.

        They become what `prefill` makes of them one by one, with `head` and the last `reach` of the chunks so far as
        the context of each; `near` are the newest from before, oldest first.
        """
        ...

    def question_queries(self, question: str, heads: Sequence[Head]) -> Tensor:
        """Raw queries of a question that has seen the prefix only, float32 [len(heads), n, head_dim].

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
        self, question: str, context: Sequence[KVChunk], dialogue: Sequence[Turn], options: AnswerConfig
    ) -> Iterator[str]:
        """The answer as it is generated, piece by piece of text; `context` begins with the prefix."""
        ...
