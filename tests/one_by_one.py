"""What models made for tests do with several chunks: nothing but `prefill`, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from config import AnswerConfig
from frames import Frame
from keyframes.frame_group import FrameGroup
from keyframes.reuse import FeatureReuse
from memory.chunk import KVChunk
from models.video_llm import (
    AnswerRequest,
    ChoiceRequest,
    PendingAnswer,
    PrefillRequest,
    Turn,
    VisualGroup,
)


class OneByOne:
    """`prefill_batch` and `answer_batch` for a model that has `prefill` and `answer`.

    A group has one token, whatever its size.
    """

    def num_group_tokens(self, height: int, width: int) -> int:
        return 1

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        return 4, 4

    def cut_patches(
        self, groups: Sequence[Sequence[Frame]]
    ) -> list[tuple[Tensor, tuple[int, int]]]:
        """No patches: `encode` looks at the pictures themselves."""
        return [(torch.empty(0), (4, 4)) for _ in groups]

    def encode(self, frames: Sequence[Frame]) -> list[VisualGroup]:
        raise NotImplementedError

    def encode_groups(
        self, groups: Sequence[FrameGroup], reuse: FeatureReuse | None = None
    ) -> list[VisualGroup]:
        return self.encode([frame for group in groups for frame in group.frames])

    def prefill(
        self, groups: Sequence[VisualGroup], context: Sequence[KVChunk], index: int
    ) -> KVChunk:
        raise NotImplementedError

    def prefill_batch(self, requests: Sequence[PrefillRequest]) -> list[list[KVChunk]]:
        return [
            [
                self.prefill(groups, request.prefix, number)
                for number, groups in enumerate(request.runs, request.index)
            ]
            for request in requests
        ]

    def answer(
        self,
        question: str,
        context: Sequence[KVChunk],
        dialogue: Sequence[Turn],
        options: AnswerConfig,
    ) -> Iterator[str]:
        raise NotImplementedError

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[list[float]]:
        return [[1 / len(request.choices)] * len(request.choices) for request in requests]

    def answer_batch(self) -> AnswersByTurns:
        return AnswersByTurns(self.answer)


class GeneratedAnswer:
    """An answer whose text comes from a generator, a piece at a step."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self.is_done = False
        self._pieces = pieces
        self._text = ""

    def step(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            self.is_done = True
        else:
            self._text += piece

    def take_text(self) -> str:
        text, self._text = self._text, ""
        return text


class AnswersByTurns:
    """`models.video_llm.AnswerBatch` for a model that has `answer`: every step takes the next piece
    of each.
    """

    def __init__(self, answer: Callable[..., Iterator[str]]) -> None:
        self._answer = answer
        self._answers: list[GeneratedAnswer] = []

    memory_bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def memory_bytes_with(self, context: Sequence[KVChunk], options: AnswerConfig) -> int:
        return 0

    def add_all(self, requests: Sequence[AnswerRequest]) -> list[GeneratedAnswer]:
        return [self._add(request) for request in requests]

    def _add(self, request: AnswerRequest) -> GeneratedAnswer:
        pieces = self._answer(request.question, request.context, request.dialogue, request.options)
        answer = GeneratedAnswer(pieces)
        answer.step()
        if not answer.is_done:
            self._answers.append(answer)
        return answer

    def step(self) -> None:
        for answer in list(self._answers):
            answer.step()
            if answer.is_done:
                self._answers.remove(answer)

    def remove(self, answer: PendingAnswer) -> None:
        self._answers = [other for other in self._answers if other is not answer]
