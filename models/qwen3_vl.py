"""The Qwen3-VL family: its prompt, timestamps, positions and vision tower. Stock modules, driven by
`models.decoder`.

A group of frames reads `<1.5 seconds><|vision_start|> n visual tokens <|vision_end|>`, as the
family was trained: the processor the checkpoints were released with writes just this, while later
ones leave one more start and end token around the whole video. Knows nothing of files, memory
policy or sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import AnswerConfig, ReuseConfig
from errors import LonglookError
from frames import Frame
from keyframes.frame_group import FrameGroup
from keyframes.reuse import FeatureReuse
from memory.chunk import KVChunk, PositionLayout
from models.answer_batch import AnswerBatch, BatchedAnswer
from models.cache_layout import concat_positions, packed_context
from models.choices import choose, spelled
from models.decode_cache import CacheRow, DecodeCache
from models.decoder import Decoder
from models.partial_vit import qwen3_vl_tower
from models.pixels import PixelSpec, cut_clip, cut_group, fit_size, normalise_patches
from models.video_llm import (
    AnswerRequest,
    ChoiceRequest,
    Head,
    PrefillRequest,
    Turn,
    VisualGroup,
    cut_groups,
)

VISION_START, VISION_END, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
VIDEO = VISION_START + VIDEO_PAD + VISION_END  # how chat templates write a video
TURN_END = "<|im_end|>"


class Qwen3VL:
    """`models.video_llm.VideoLLM` over a loaded `Qwen3VLForConditionalGeneration`; shared and
    immutable.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pixels: PixelSpec,
        model_id: str,
        template: str | None = None,
    ) -> None:
        """template: a chat template that can write a video; None for the plain format of the
        family.
        """
        text = model.config.text_config
        self.model_id = model_id
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.frames_per_group = pixels.temporal_patch_size
        self.num_layers = int(text.num_hidden_layers)
        self.num_heads = int(text.num_attention_heads)
        self.num_kv_heads = int(text.num_key_value_heads)
        self.head_dim = int(text.head_dim)
        self._visual = model.model.visual
        self._tower = qwen3_vl_tower(self._visual)
        self._decoder = Decoder(model.model.language_model, model.lm_head)
        self._pixels = pixels
        self._prompt = Prompt(tokenizer, template)
        self._stops = self._prompt.stops(model.generation_config)

    def check_template(self) -> None:
        """Writes a chat once; whatever is wrong with the checkpoint's template is raised."""
        self._prompt.prefix()
        self._prompt.question("?", [Turn("?", "!")])

    def prefix(self) -> KVChunk:
        return self._prefix

    @cached_property
    def _prefix(self) -> KVChunk:
        tokens = self._prompt.prefix()
        layout = text_layout(len(tokens))
        raw = self._decoder.prefill(self._decoder.embed(tokens), layout, [])
        return KVChunk(
            keys=torch.stack(raw.keys),
            values=torch.stack(raw.values),
            layout=layout,
            visual=torch.zeros(len(tokens), dtype=torch.bool),
            start_seconds=0.0,
            stop_seconds=0.0,
            index=-1,
        )

    def reuse(self, config: ReuseConfig) -> FeatureReuse | None:
        if config.strategy == "none":
            return None
        return FeatureReuse(self._tower, config)

    def num_group_tokens(self, height: int, width: int) -> int:
        rows, columns = fit_size(height, width, self._pixels)
        return rows * columns // self._pixels.factor**2

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = fit_size(height, width, self._pixels)
        return rows // self._pixels.patch_size, columns // self._pixels.patch_size

    def cut_patches(
        self, groups: Sequence[Sequence[Frame]]
    ) -> list[tuple[Tensor, tuple[int, int]]]:
        cut: list[tuple[Tensor, tuple[int, int]]] = []
        for sizes, run in groupby(groups, lambda group: {frame.image.shape for frame in group}):
            batch = list(run)
            if len(sizes) > 1:
                cut += [
                    cut_group([as_tensor(frame) for frame in group], self._pixels)
                    for group in batch
                ]
                continue
            images = np.stack([frame.image for group in batch for frame in group])
            patches, grid = cut_clip(torch.from_numpy(images), self._pixels)
            cut += [(of_group, grid) for of_group in patches]
        return cut

    @torch.no_grad()
    def encode_groups(
        self, groups: Sequence[FrameGroup], reuse: FeatureReuse | None = None
    ) -> list[VisualGroup]:
        found: list[VisualGroup] = []
        for grid, run in groupby(groups, lambda group: group.grid):
            batch = list(run)
            patches = self._on_device(batch)
            if reuse is None:
                features = self._tower.encode(patches, grid)
            else:
                features = reuse.encode(patches, grid, batch).features
            levels = [level.unbind() for level in features.deepstack]
            for number, (group, embeddings) in enumerate(
                zip(batch, features.embeddings.unbind(), strict=True)
            ):
                deepstack = tuple(level[number] for level in levels)
                found.append(self._group(group.frames, grid, embeddings, deepstack))
        return found

    def encode(self, frames: Sequence[Frame]) -> list[VisualGroup]:
        return self.encode_groups(cut_groups(frames, self))

    def _on_device(self, groups: Sequence[FrameGroup]) -> Tensor:
        """The patches of groups of one grid, [g, T, values], normalised."""
        cut = [group.patches for group in groups if group.patches is not None]
        assert len(cut) == len(groups), "a group without patches cannot be encoded"
        return normalise_patches(torch.stack(cut).to(self.device), self._pixels)

    def prefill(
        self, groups: Sequence[VisualGroup], context: Sequence[KVChunk], index: int
    ) -> KVChunk:
        return self.prefill_batch([PrefillRequest([groups], context, [], 0, index)])[0][0]

    def prefill_batch(self, requests: Sequence[PrefillRequest]) -> list[list[KVChunk]]:
        if not requests or not all(request.runs and all(request.runs) for request in requests):
            raise ValueError("a chunk needs at least one group of frames")
        inputs = [
            [self._prompt.build_inputs(groups) for groups in request.runs] for request in requests
        ]
        flat = [chunk_inputs for of_request in inputs for chunk_inputs in of_request]
        groups = [group for request in requests for run in request.runs for group in run]
        embeddings = self._decoder.embed(
            [token for chunk_inputs in flat for token in chunk_inputs.tokens]
        )
        visual = torch.cat([chunk_inputs.visual for chunk_inputs in flat]).to(self.device)
        embeddings[visual] = torch.cat([group.embeddings for group in groups]).to(embeddings)
        levels = [
            torch.cat(level) for level in zip(*(group.deepstack for group in groups), strict=True)
        ]
        contexts = [
            packed_context(
                request.prefix,
                request.recent,
                [one.layout for one in of_request],
                request.num_recent,
            )
            for request, of_request in zip(requests, inputs, strict=True)
        ]
        raw = self._decoder.prefill_packed(contexts, embeddings, visual, levels)
        lengths = [len(chunk_inputs.tokens) for chunk_inputs in flat]
        keys = iter(torch.split(torch.stack(raw.keys), lengths, dim=2))
        values = iter(torch.split(torch.stack(raw.values), lengths, dim=2))
        return [
            [
                self._chunk(next(keys), next(values), chunk_inputs, run, request.index + number)
                for number, (run, chunk_inputs) in enumerate(
                    zip(request.runs, of_request, strict=True)
                )
            ]
            for request, of_request in zip(requests, inputs, strict=True)
        ]

    @staticmethod
    def _chunk(
        keys: Tensor, values: Tensor, inputs: ChunkInputs, groups: Sequence[VisualGroup], index: int
    ) -> KVChunk:
        """keys, values: [layers, kv_heads, n, head_dim], views of a pass, from which they are
        copied.
        """
        return KVChunk(
            keys=keys.contiguous(),
            values=values.contiguous(),
            layout=inputs.layout,
            visual=inputs.visual,
            start_seconds=groups[0].start_seconds,
            stop_seconds=groups[-1].stop_seconds,
            index=index,
            group_starts=tuple(group.start_seconds for group in groups),
        )

    def question_queries(self, question: str, heads: Sequence[Head]) -> Tensor:
        layers = torch.tensor([head.layer for head in heads], dtype=torch.long)
        return self.all_question_queries(question)[layers, [head.head for head in heads]]

    def all_question_queries(self, question: str) -> Tensor:
        """Raw queries of every head, float32 [layers, heads, n, head_dim]; see
        `question_queries`.
        """
        tokens = self._prompt.question(question, ())
        embeddings = self._decoder.embed(tokens)
        raw = self._decoder.prefill(
            embeddings, text_layout(len(tokens)), [self.prefix()], keep_queries=True
        )
        return torch.stack(raw.queries).float()

    def answer_batch(self) -> AnswerBatch:
        return AnswerBatch(
            self._decoder, self._prompt.tokenizer, self._prompt.question, self._stops
        )

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[list[float]]:
        encode, tokenizer = self._prompt.encode, self._prompt.tokenizer
        sets = [spelled(tokenizer, request.choices, encode) for request in requests]
        prompts = [self._prompt.question(request.question, ()) for request in requests]
        return choose(self._decoder, prompts, requests, sets, self._stops)

    def answer(
        self,
        question: str,
        context: Sequence[KVChunk],
        dialogue: Sequence[Turn],
        options: AnswerConfig,
    ) -> Iterator[str]:
        for answer in self._answer_alone(question, context, dialogue, options):
            if text := answer.take_text():
                yield text

    def answer_tokens(
        self,
        question: str,
        context: Sequence[KVChunk],
        dialogue: Sequence[Turn],
        options: AnswerConfig,
    ) -> Iterator[int]:
        """The token ids of an answer as they are chosen, without the one that ends it."""
        for answer in self._answer_alone(question, context, dialogue, options):
            yield from answer.take_tokens()

    def _answer_alone(
        self,
        question: str,
        context: Sequence[KVChunk],
        dialogue: Sequence[Turn],
        options: AnswerConfig,
    ) -> Iterator[BatchedAnswer]:
        """One answer in a batch of its own, after each of its tokens and at its end."""
        batch = self.answer_batch()
        (answer,) = batch.add_all([AnswerRequest(question, context, dialogue, options)])
        yield answer
        while not answer.is_done:
            batch.step()
            yield answer

    def doubt(self, question: str, context: Sequence[KVChunk], dialogue: Sequence[Turn]) -> float:
        cache = DecodeCache()
        row, tokens = self._begin_answer(cache, question, context, dialogue)
        return self._decoder.uncertainty(cache, row, tokens)

    def first_logits(
        self, question: str, context: Sequence[KVChunk], dialogue: Sequence[Turn] = ()
    ) -> Tensor:
        """Float32 logits [vocabulary] of an answer's first token: how sure the model is before it
        says anything.
        """
        cache = DecodeCache()
        row, tokens = self._begin_answer(cache, question, context, dialogue)
        return self._decoder.next_logits(cache, [row], tokens)[0]

    def last_state(
        self, question: str, context: Sequence[KVChunk], dialogue: Sequence[Turn] = ()
    ) -> Tensor:
        """Float32 [hidden], the LLM's last hidden state where an answer begins."""
        cache = DecodeCache()
        row, tokens = self._begin_answer(cache, question, context, dialogue)
        return self._decoder.last_state(cache, [row], tokens)[0].float()

    def _begin_answer(
        self,
        cache: DecodeCache,
        question: str,
        context: Sequence[KVChunk],
        dialogue: Sequence[Turn],
        max_new_tokens: int = 0,
    ) -> tuple[CacheRow, Tensor]:
        """A row of the cache that holds the context, and the question's tokens [1, n], which come
        next.
        """
        tokens = self._prompt.question(question, dialogue)
        row = self._decoder.add_row(cache, context, len(tokens) + max_new_tokens)
        return row, torch.tensor([tokens], device=self.device)

    def _group(
        self,
        frames: Sequence[Frame],
        grid: tuple[int, int],
        embeddings: Tensor,
        deepstack: tuple[Tensor, ...],
    ) -> VisualGroup:
        start, stop = frames[0].pts_seconds, frames[-1].pts_seconds
        merge = self._pixels.merge_size
        return VisualGroup(
            embeddings=embeddings,
            deepstack=deepstack,
            grid=(grid[0] // merge, grid[1] // merge),
            pts_seconds=(start + stop) / 2,
            start_seconds=start,
            stop_seconds=stop,
        )


@dataclass(frozen=True, eq=False)
class ChunkInputs:
    """What the LLM reads for some groups: n token ids (placeholders at visual places), positions,
    visual marks [n].
    """

    tokens: list[int]
    layout: PositionLayout
    visual: Tensor


class Prompt:
    """Texts around a video as token ids: the part before it, time stamps inside it, questions
    behind it.
    """

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        """Raises ValueError when the tokenizer is not of this family."""
        lacking = {VISION_START, VIDEO_PAD, VISION_END, TURN_END} - set(tokenizer.get_vocab())
        if lacking:
            raise ValueError(f"its tokenizer does not know {min(lacking)}")
        self.tokenizer = tokenizer
        self._template = template
        self._start, self._pad, self._end = tokenizer.convert_tokens_to_ids(
            [VISION_START, VIDEO_PAD, VISION_END]
        )
        self._reserved = [
            str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
        ]

    def prefix(self) -> list[int]:
        """Everything before the video."""
        return self.encode(self._chat([("user", "")])[0])

    def question(self, question: str, dialogue: Sequence[Turn]) -> list[int]:
        """Everything behind the video: earlier turns, the question, the header of the answer."""
        turns = [
            part
            for turn in dialogue
            for part in (("user", turn.question), ("assistant", turn.answer))
        ]
        return self.encode(self._chat([*turns, ("user", question)])[1])

    def build_inputs(self, groups: Sequence[VisualGroup]) -> ChunkInputs:
        """Time stamps and placeholders of the groups, with the stock positions: text counts up in
        all three, a group's tokens stand at one t, rows in h and columns in w, and what follows
        comes after its longer side. Tokens that were not kept leave their places empty."""
        tokens: list[int] = []
        runs: list[PositionLayout] = []
        marks: list[bool] = []
        stamps = self._encode_all([f"<{group.pts_seconds:.1f} seconds>" for group in groups])
        for group, stamp_tokens in zip(groups, stamps, strict=True):
            stamp = [*stamp_tokens, self._start]
            grid = grid_layout(*group.grid, group.places)
            tokens += [*stamp, *[self._pad] * grid.num_tokens, self._end]
            runs += [text_layout(len(stamp)), grid, text_layout(1)]
            marks += [False] * len(stamp) + [True] * grid.num_tokens + [False]
        return ChunkInputs(tokens, PositionLayout(*concat_positions(runs)), torch.tensor(marks))

    def stops(self, generation: Any) -> frozenset[int]:
        """Token ids that end an answer."""
        ends = generation.eos_token_id if generation is not None else None
        found = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}
        found.add(self.tokenizer.convert_tokens_to_ids(TURN_END))
        return frozenset(int(end) for end in found if end is not None)

    def _chat(self, turns: Sequence[tuple[str, str]]) -> tuple[str, str]:
        """The chat with the video at its head, cut where the video stands."""
        plain = [(role, self._plain(text)) for role, text in turns]
        text = self._render(plain) if self._template else render_plainly(plain)
        before, video, after = text.partition(VIDEO)
        if not video:
            raise LonglookError("the checkpoint's chat template does not write a video")
        return before, after

    def _render(self, turns: Sequence[tuple[str, str]]) -> str:
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns
        ]
        messages[0]["content"] = [{"type": "video"}, {"type": "text", "text": turns[0][1]}]
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
        return str(text)

    def _plain(self, text: str) -> str:
        """`text` without control tokens: what a person types must not end a turn or pose as a
        picture.
        """
        while any(token in text for token in self._reserved):
            for token in self._reserved:
                text = text.replace(token, "")
        return text

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, in one call of the tokenizer."""
        return [
            list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ]

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def render_plainly(turns: Sequence[tuple[str, str]]) -> str:
    """The family's chat format, for tokenizers that come without a template."""
    (role, text), *later = turns
    said = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in [(role, VIDEO + text), *later]
    )
    return said + "<|im_start|>assistant\n"


def as_tensor(frame: Frame) -> Tensor:
    """A copy: a decoder's or a rotated picture's memory may be read-only or run backwards."""
    return torch.from_numpy(np.array(frame.image, order="C"))


def text_layout(n: int) -> PositionLayout:
    """n tokens of text: 0 1 2 ... in all three rows."""
    return PositionLayout(torch.arange(n).expand(3, n).contiguous(), n)


def grid_layout(rows: int, columns: int, places: Tensor) -> PositionLayout:
    """The tokens of one group at their `places`, int64 [n]: t stands still, h and w follow the
    grid.
    """
    h, w = places // columns, places % columns
    return PositionLayout(torch.stack([torch.zeros_like(h), h, w]), max(rows, columns))
