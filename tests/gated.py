"""A video LLM that thinks nothing and waits where a test tells it to: for tests of who has the
device when.

It keeps to `models.video_llm.VideoLLM`: one layer, one head, a token per group of two frames.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from config import AnswerConfig, ReuseConfig
from frames import Frame
from memory.chunk import KVChunk, PositionLayout
from models.video_llm import Head, Turn, VisualGroup
from tests.one_by_one import OneByOne

WORDS = ("one ", "two ", "three")


class Gate:
    """Closed from the start; whoever comes to it is counted and waits until it is opened."""

    def __init__(self, is_open: bool = False) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        if is_open:
            self._open.set()

    def pass_through(self) -> None:
        self.reached.set()
        assert self._open.wait(60), "nobody opened the gate"

    def open(self) -> None:
        self._open.set()


class GatedModel(OneByOne):
    """`log` tells what ran on the device, in order; `gates` holds the chunks (by number) and words
    that wait.

    broken: chunks and words that raise a RuntimeError instead.
    """

    model_id = "gated@0"
    device = torch.device("cpu")
    dtype = torch.float32
    frames_per_group = 2
    num_layers = num_heads = num_kv_heads = 1
    head_dim = 4

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gates: dict[int | str, Gate] = {}
        self.broken: set[int | str] = set()
        # question, chunks of its context, dialogue
        self.asked: list[tuple[str, list[int], list[Turn]]] = []

    def prefix(self) -> KVChunk:
        return _chunk(1, 0.0, 0.0, -1)

    def reuse(self, config: ReuseConfig) -> None:
        return None

    def encode(self, frames: Sequence[Frame]) -> list[VisualGroup]:
        times = [frame.pts_seconds for frame in frames]
        pairs = [times[i : i + 2] for i in range(0, len(times), 2)]
        return [
            VisualGroup(torch.zeros(1, 4), (), (1, 1), pair[0], pair[0], pair[-1]) for pair in pairs
        ]

    def prefill(
        self, groups: Sequence[VisualGroup], context: Sequence[KVChunk], index: int
    ) -> KVChunk:
        self._do(index, f"chunk {index}")
        return _chunk(len(groups), groups[0].start_seconds, groups[-1].stop_seconds, index)

    def question_queries(self, question: str, heads: Sequence[Head]) -> Tensor:
        return torch.zeros(len(heads), 1, self.head_dim)

    def all_question_queries(self, question: str) -> Tensor:
        return torch.zeros(1, 1, 1, self.head_dim)

    def doubt(self, question: str, context: Sequence[KVChunk], dialogue: Sequence[Turn]) -> float:
        return 1.0

    def answer(
        self,
        question: str,
        context: Sequence[KVChunk],
        dialogue: Sequence[Turn],
        options: AnswerConfig,
    ) -> Iterator[str]:
        self.asked.append((question, [chunk.index for chunk in context], list(dialogue)))
        for word in WORDS:
            self._do(word, f"{question}: {word.strip()}")
            yield word

    def _do(self, key: int | str, line: str) -> None:
        if key in self.gates:
            self.gates[key].pass_through()
        if key in self.broken:
            raise RuntimeError(f"the device failed at {line}")
        self.log.append(line)


def _chunk(num_tokens: int, start_seconds: float, stop_seconds: float, index: int) -> KVChunk:
    keys = torch.full((1, 1, num_tokens, 4), float(index))
    layout = PositionLayout(torch.arange(num_tokens).expand(3, -1).contiguous(), num_tokens)
    visual = torch.full((num_tokens,), index >= 0)
    return KVChunk(keys, keys.clone(), layout, visual, start_seconds, stop_seconds, index)
