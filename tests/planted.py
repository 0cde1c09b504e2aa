"""A video LLM with one planted retrieval head: for tests of whether calibration finds what is
there, and only that.

It recognises the needles' pictures by their bytes and writes a code of what they show into the keys
of one KV head; the planted query head asks with the code of what the question names. All other keys
and queries are seeded noise.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from config import AnswerConfig, MemoryConfig, ReuseConfig
from frames import Frame
from memory.chunk import KVChunk, PositionLayout
from models.calibration import FRAME_SIDE, make_needles
from models.demo.world import render
from models.video_llm import Head, Turn, VisualGroup
from tests.one_by_one import OneByOne

QUESTION_TOKENS = 6
CODE_SCALE = 10.0
EARLIER_SCALE = 8.0  # of what the planted head asks for with its earlier tokens, which leads astray


class PlantedModel(OneByOne):
    """planted: the query head that retrieves, asking with its newest token only; None for a model
    without one.

    knows: seeds of the needles whose pictures it recognises, `count` chunks each.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    frames_per_group = 2
    num_layers, num_heads, num_kv_heads, head_dim = 3, 4, 2, 32

    def __init__(
        self,
        planted: Head | None,
        knows: Sequence[int],
        count: int,
        memory: MemoryConfig,
        fps: float,
    ) -> None:
        self.model_id = "planted@0"
        self._planted = planted
        self._noise = torch.Generator().manual_seed(5)
        self._shown: dict[bytes, str] = {}
        for seed in knows:
            for scene in make_needles(seed, count, memory.chunk_frames / fps).scenes:
                for k in range(memory.chunk_frames):
                    if event := scene.event_at(k / fps):
                        picture = render(scene, k / fps, FRAME_SIDE)
                        self._shown[_digest(picture.tobytes())] = event.things[0].name

    def prefix(self) -> KVChunk:
        return self._chunk(torch.zeros(1, self.head_dim), 0.0, 0.0, -1)

    def reuse(self, config: ReuseConfig) -> None:
        return None

    def encode(self, frames: Sequence[Frame]) -> list[VisualGroup]:
        groups = [frames[i : i + 2] for i in range(0, len(frames), 2)]
        return [self._group(group) for group in groups]

    def prefill(
        self, groups: Sequence[VisualGroup], context: Sequence[KVChunk], index: int
    ) -> KVChunk:
        codes = torch.cat([group.embeddings for group in groups])
        return self._chunk(codes, groups[0].start_seconds, groups[-1].stop_seconds, index)

    def question_queries(self, question: str, heads: Sequence[Head]) -> Tensor:
        queries = self.all_question_queries(question)
        return torch.stack([queries[head.layer, head.head] for head in heads])

    def all_question_queries(self, question: str) -> Tensor:
        queries = self._random(self.num_layers, self.num_heads, QUESTION_TOKENS)
        if self._planted and (named := re.findall(r"(?:the|a) (\w+ \w+)", question)):
            asking = queries[self._planted.layer, self._planted.head]
            asking[:-1] *= EARLIER_SCALE
            asking[-1] = torch.stack([code_of(name) for name in named]).sum(0)
        return queries

    def doubt(self, question: str, context: Sequence[KVChunk], dialogue: Sequence[Turn]) -> float:
        return 1.0

    def answer(
        self,
        question: str,
        context: Sequence[KVChunk],
        dialogue: Sequence[Turn],
        options: AnswerConfig,
    ) -> Iterator[str]:
        yield "I only look things up."

    def _group(self, frames: Sequence[Frame]) -> VisualGroup:
        names = [self._shown.get(_digest(frame.image.tobytes())) for frame in frames]
        codes = [code_of(name) if name else torch.zeros(self.head_dim) for name in names]
        start, stop = frames[0].pts_seconds, frames[-1].pts_seconds
        return VisualGroup(torch.stack(codes), (), (1, len(codes)), start, start, stop)

    def _chunk(
        self, codes: Tensor, start_seconds: float, stop_seconds: float, index: int
    ) -> KVChunk:
        """A token of text, which shouts in every head and must be ignored, then one token per
        code.
        """
        n = 1 + len(codes)
        keys = self._random(self.num_layers, self.num_kv_heads, n)
        if self._planted:
            group_size = self.num_heads // self.num_kv_heads
            keys[self._planted.layer, self._planted.head // group_size, 1:] = codes
        keys[:, :, 0] = 1e3
        visual = torch.arange(n) > 0 if index >= 0 else torch.zeros(n, dtype=torch.bool)
        layout = PositionLayout(torch.arange(n).expand(3, n).contiguous(), n)
        return KVChunk(keys, keys.clone(), layout, visual, start_seconds, stop_seconds, index)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, self.head_dim, generator=self._noise)


def code_of(name: str) -> Tensor:
    """A direction of its own for every name: [head_dim]."""
    seed = int.from_bytes(_digest(name.encode())[:4], "little")
    return CODE_SCALE * torch.nn.functional.normalize(
        torch.randn(PlantedModel.head_dim, generator=torch.Generator().manual_seed(seed)), dim=0
    )


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
