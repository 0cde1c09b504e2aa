"""Answers that are generated as one batch are those generated one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from config import AnswerConfig
from memory.chunk import KVChunk
from models.answer_batch import AnswerBatch, BatchedAnswer
from models.decode_cache import COLUMN_STEP, CacheRow, DecodeCache, RowsAttention
from models.qwen3_vl import Qwen3VL
from models.video_llm import AnswerRequest
from tests.tiny import noise_frames

TOLERANCE, NOTICED = 1e-5, 1e-3
QUESTIONS = (
    "What colour is the square?",
    "When?",
    "Is there a star in it, or was there one before?",
    "Where?",
    "How?",
)
OPTIONS = (
    AnswerConfig(max_new_tokens=14),
    AnswerConfig(max_new_tokens=5),
    AnswerConfig(max_new_tokens=20),
    AnswerConfig(max_new_tokens=12, temperature=1.5, seed=7),
    AnswerConfig(max_new_tokens=9),
)


@pytest.fixture(scope="module")
def contexts(tiny: Qwen3VL) -> list[list[KVChunk]]:
    """Contexts of one to five chunks, all different."""
    chunks: list[KVChunk] = []
    for number in range(5):
        groups = tiny.encode(noise_frames(2 + 2 * (number % 2), seed=number))
        chunks.append(tiny.prefill(groups, [tiny.prefix()], number))
    return [[tiny.prefix(), *chunks[number:]] for number in range(5)]


@pytest.fixture(scope="module")
def alone(tiny: Qwen3VL, contexts: Sequence[Sequence[KVChunk]]) -> list[list[int]]:
    """The tokens of every answer, generated one by one."""
    requests = zip(QUESTIONS, contexts, OPTIONS, strict=True)
    return [
        list(tiny.answer_tokens(question, context, (), options))
        for question, context, options in requests
    ]


def add(
    tiny: Qwen3VL, batch: AnswerBatch, contexts: Sequence[Sequence[KVChunk]], number: int
) -> BatchedAnswer:
    request = AnswerRequest(QUESTIONS[number], contexts[number], (), OPTIONS[number])
    return batch.add_all([request])[0]


def finished(batch: AnswerBatch, answers: Sequence[BatchedAnswer]) -> list[list[int]]:
    while len(batch):
        batch.step()
    assert all(answer.is_done for answer in answers)
    return [answer.take_tokens() for answer in answers]


def test_a_batch_gives_the_tokens_of_each_answer_alone(
    tiny: Qwen3VL, contexts: list[list[KVChunk]], alone: list[list[int]]
) -> None:
    batch = tiny.answer_batch()
    answers = [add(tiny, batch, contexts, number) for number in range(5)]
    assert finished(batch, answers) == alone
    assert len({tuple(tokens) for tokens in alone}) == 5, (
        "they differ, so a mix-up would be noticed"
    )


@pytest.mark.parametrize("order", [[3, 0, 4, 1, 2], [1, 2, 0, 3, 4]])
def test_answers_join_at_any_step(
    tiny: Qwen3VL, contexts: list[list[KVChunk]], alone: list[list[int]], order: list[int]
) -> None:
    batch = tiny.answer_batch()
    answers: dict[int, BatchedAnswer] = {}
    for number in order:
        answers[number] = add(tiny, batch, contexts, number)
        batch.step()
        batch.step()
    assert finished(batch, [answers[number] for number in range(5)]) == alone


def test_an_answer_that_is_dropped_leaves_the_others_as_they_are(
    tiny: Qwen3VL, contexts: list[list[KVChunk]], alone: list[list[int]]
) -> None:
    batch = tiny.answer_batch()
    answers = [add(tiny, batch, contexts, number) for number in range(5)]
    batch.step()
    batch.remove(answers[0])
    batch.remove(answers[3])
    batch.remove(answers[0])  # nothing happens
    assert len(batch) == 3
    rest = [1, 2, 4]
    assert finished(batch, [answers[number] for number in rest]) == [
        alone[number] for number in rest
    ]


def test_logits_of_a_batch_are_those_of_one_row(
    tiny: Qwen3VL, contexts: list[list[KVChunk]]
) -> None:
    assert _largest_gap(tiny, contexts) < TOLERANCE


def test_a_row_that_saw_its_neighbours_room_would_be_noticed(
    tiny: Qwen3VL, contexts: list[list[KVChunk]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RowsAttention.__init__

    def blind(
        self: RowsAttention,
        keys: Tensor,
        values: Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
    ) -> None:
        made(self, keys, values, lengths, counts)
        self._mask = torch.ones_like(self._mask)

    monkeypatch.setattr(RowsAttention, "__init__", blind)
    assert _largest_gap(tiny, contexts) > NOTICED


def _largest_gap(tiny: Qwen3VL, contexts: Sequence[Sequence[KVChunk]]) -> float:
    """Between logits of one token appended to every row together and to each alone, in parts of the
    largest logit.
    """
    decoder = tiny._decoder
    tokens = torch.arange(40, 45)[:, None]
    cache = DecodeCache()
    rows = [decoder.add_row(cache, context, 3) for context in contexts]
    together = decoder.next_logits(cache, rows, tokens)
    gaps = []
    for number, context in enumerate(contexts):
        own = DecodeCache()
        row = decoder.add_row(own, context, 3)
        single = decoder.next_logits(own, [row], tokens[number : number + 1])[0]
        gaps.append(float((together[number] - single).abs().max() / single.abs().max()))
    return max(gaps)


PROMPTS = ([40], [41, 42, 43, 44, 45, 46], [47, 48], [49, 50, 51], [52, 53, 54, 55])


def test_prompts_of_different_lengths_in_one_pass_give_the_states_of_each_alone(
    tiny: Qwen3VL, contexts: list[list[KVChunk]]
) -> None:
    assert _largest_prompt_gap(tiny, contexts) < TOLERANCE


def test_padding_that_took_the_place_of_tokens_would_be_noticed(
    tiny: Qwen3VL, contexts: list[list[KVChunk]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RowsAttention.__init__

    def shifted(
        self: RowsAttention,
        keys: Tensor,
        values: Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
    ) -> None:
        made(self, keys, values, lengths, counts)
        self._tokens = self._tokens.clamp(max=0)

    monkeypatch.setattr(RowsAttention, "__init__", shifted)
    assert _largest_prompt_gap(tiny, contexts) > NOTICED


def _largest_prompt_gap(tiny: Qwen3VL, contexts: Sequence[Sequence[KVChunk]]) -> float:
    """Between the hidden states of prompts appended together, twice, and one by one."""
    decoder = tiny._decoder
    cache = DecodeCache()
    rows = decoder.add_rows(cache, contexts, [2 * len(prompt) for prompt in PROMPTS])
    together = [decoder.append_prompts(cache, rows, PROMPTS) for _ in range(2)]
    gaps = []
    at = 0
    for context, prompt in zip(contexts, PROMPTS, strict=True):
        own = DecodeCache()
        row = decoder.add_row(own, context, 2 * len(prompt))
        for states in together:
            single = decoder.append_prompts(own, [row], [prompt])
            part = states[at : at + len(prompt)]
            gaps.append(float((part - single).abs().max() / single.abs().max()))
        at += len(prompt)
    return max(gaps)


def test_tokens_that_were_taken_back_leave_no_trace(
    tiny: Qwen3VL, contexts: list[list[KVChunk]]
) -> None:
    decoder = tiny._decoder
    cache = DecodeCache()
    rows = decoder.add_rows(cache, contexts, [2 * len(prompt) for prompt in PROMPTS])
    fresh = decoder.append_prompts(cache, rows, PROMPTS)
    cache.drop_last(rows, [len(prompt) for prompt in PROMPTS])
    again = decoder.append_prompts(cache, rows, PROMPTS)
    assert torch.equal(fresh, again)
    further = decoder.append_prompts(cache, rows, PROMPTS)  # not taken back: they are seen
    assert not torch.equal(again, further)


def test_answers_that_join_together_say_what_each_says_alone(
    tiny: Qwen3VL, contexts: list[list[KVChunk]], alone: list[list[int]]
) -> None:
    batch = tiny.answer_batch()
    first = add(tiny, batch, contexts, 0)  # under way before the others come
    rest = batch.add_all(
        [
            AnswerRequest(QUESTIONS[number], contexts[number], (), OPTIONS[number])
            for number in range(1, 5)
        ]
    )
    assert finished(batch, [first, *rest]) == alone


def test_answers_that_find_no_room_together_leave_the_others_as_they_were(
    tiny: Qwen3VL,
    contexts: list[list[KVChunk]],
    alone: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = tiny.answer_batch()
    first = add(tiny, batch, contexts, 0)
    made = DecodeCache.add_row

    def full(self: DecodeCache, *arguments: Any) -> CacheRow:
        if self.num_rows == 3:
            raise torch.OutOfMemoryError
        return made(self, *arguments)

    monkeypatch.setattr(DecodeCache, "add_row", full)
    with pytest.raises(torch.OutOfMemoryError):
        batch.add_all(
            [AnswerRequest(QUESTIONS[n], contexts[n], (), OPTIONS[n]) for n in range(1, 5)]
        )
    assert len(batch) == 1
    assert finished(batch, [first]) == [alone[0]]


def test_a_row_takes_no_more_tokens_than_it_has_room_for(
    tiny: Qwen3VL, contexts: list[list[KVChunk]]
) -> None:
    cache = DecodeCache()
    row = tiny._decoder.add_row(cache, contexts[0], 1)
    tiny._decoder.next_logits(cache, [row], torch.tensor([[40]]))
    with pytest.raises(ValueError, match="room"):
        tiny._decoder.next_logits(cache, [row], torch.tensor([[40]]))


def test_buffers_are_allocated_ahead_and_go_with_the_last_answer(
    tiny: Qwen3VL, contexts: list[list[KVChunk]]
) -> None:
    cache = DecodeCache()
    first = tiny._decoder.add_row(cache, contexts[4], 3)
    columns = tiny.num_layers * tiny.num_kv_heads * tiny.head_dim * COLUMN_STEP * 4
    assert cache.memory_bytes == 2 * columns
    second = tiny._decoder.add_row(cache, contexts[0], 3)
    third = tiny._decoder.add_row(cache, contexts[1], 3)
    held = cache.memory_bytes
    assert held == 2 * 4 * columns, "rows double"
    tiny._decoder.next_logits(cache, [first, second, third], torch.tensor([[40], [41], [42]]))
    assert cache.memory_bytes == held, "a token is written in place"
    for row in (second, first, third):
        cache.remove_row(row)
    assert cache.memory_bytes == 0 and cache.num_rows == 0


def test_text_comes_once_and_whole(tiny: Qwen3VL, contexts: list[list[KVChunk]]) -> None:
    batch = tiny.answer_batch()
    answers = [add(tiny, batch, contexts, number) for number in range(3)]
    texts = [answer.take_text() for answer in answers]
    while len(batch):
        batch.step()
        texts = [text + answer.take_text() for text, answer in zip(texts, answers, strict=True)]
    wanted = ["".join(tiny.answer(QUESTIONS[k], contexts[k], (), OPTIONS[k])) for k in range(3)]
    assert texts == wanted
