"""Answers under way, generated together: each step appends one token to every one of them.

Answers join and leave between steps. What one of them says never depends on the others: a row sees
its own tokens only, and a sampler's random numbers belong to its answer. Knows nothing of sessions
or of whose turn it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from config import AnswerConfig
from errors import LonglookError
from memory.chunk import KVChunk
from models.decode_cache import CacheRow, DecodeCache
from models.decoder import Decoder
from models.sampling import TextStream, TokenSampler
from models.video_llm import AnswerRequest, PendingAnswer, Turn


class NoNumbersError(LonglookError):
    """What the model computed is not a number."""


def check_numbers(logits: Tensor) -> None:
    """Raises NoNumbersError where a model's numbers have grown beyond its type, or its weights are
    broken: the answer would be empty or noise.
    """
    if not bool(torch.isfinite(logits).any()) or bool(torch.isnan(logits).any()):
        raise NoNumbersError(
            "the model computed no numbers: its weights are damaged, or its numbers too large for "
            "their type, for which bfloat16 or float32 may help"
        )


class BatchedAnswer:
    """One answer of a batch, as far as it has come."""

    def __init__(self, row: CacheRow, options: AnswerConfig, tokenizer: Any) -> None:
        self.row = row
        self.sampler = TokenSampler(options)
        self.last_token = -1
        self.num_tokens = 0
        self.max_tokens = options.max_new_tokens
        self.is_done = False
        self._text = TextStream(tokenizer)
        self._pieces: list[str] = []
        self._tokens: list[int] = []

    def take_text(self) -> str:
        """The text that came since this was last called."""
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    def take_tokens(self) -> list[int]:
        """The token ids that came since this was last called, without the one that ends the
        answer.
        """
        tokens, self._tokens = self._tokens, []
        return tokens

    def push(self, token: int) -> None:
        """Takes the next token."""
        self.last_token = token
        self.num_tokens += 1
        self._tokens.append(token)
        self._pieces.append(self._text.push(token))

    def finish(self) -> None:
        """No token follows."""
        self.is_done = True
        self._pieces.append(self._text.finish())


class AnswerBatch:
    """All answers that one model is giving; one thread at a time."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        question_tokens: Callable[[str, Sequence[Turn]], list[int]],
        stop_tokens: Collection[int],
    ) -> None:
        """question_tokens: a question and earlier turns as token ids, up to where its answer
        begins.
        """
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._question_tokens = question_tokens
        self._stop_tokens = stop_tokens
        self._cache = DecodeCache()
        self._answers: list[BatchedAnswer] = []  # in the order of their rows

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[BatchedAnswer]:
        return iter(list(self._answers))

    @property
    def memory_bytes(self) -> int:
        """Device bytes of the contexts of all answers."""
        return self._cache.memory_bytes

    def memory_bytes_with(self, context: Sequence[KVChunk], options: AnswerConfig) -> int:
        """The same if an answer over `context` joined; its question is taken as short."""
        num_tokens = sum(chunk.num_tokens for chunk in context) + options.max_new_tokens
        return self._cache.memory_bytes_with(context[0].keys, num_tokens)

    def add_all(self, requests: Sequence[AnswerRequest]) -> list[BatchedAnswer]:
        """Prefill several questions in one pass, each after its context: all join, or none."""
        prompts = [self._question_tokens(r.question, r.dialogue) for r in requests]
        rooms = [
            len(tokens) + request.options.max_new_tokens
            for tokens, request in zip(prompts, requests, strict=True)
        ]
        contexts = [request.context for request in requests]
        rows = self._decoder.add_rows(self._cache, contexts, rooms)
        added = [
            BatchedAnswer(row, request.options, self._tokenizer)
            for row, request in zip(rows, requests, strict=True)
        ]
        self._answers += added
        try:
            states = self._decoder.append_prompts(self._cache, rows, prompts)
            ends = torch.tensor([len(tokens) for tokens in prompts]).cumsum(0) - 1
            logits = self._decoder.head(states[ends.to(states.device)])
            check_numbers(logits)
        except BaseException:
            for answer in added:
                self.remove(answer)
            raise
        for answer, token in zip(added, self._choose(added, logits), strict=True):
            self._take(answer, token)
        return added

    def step(self) -> None:
        """One more token of every answer; those that end leave the batch."""
        if not self._answers:
            return
        last = torch.tensor(
            [[answer.last_token] for answer in self._answers], device=self._decoder.device
        )
        logits = self._decoder.next_logits(
            self._cache, [answer.row for answer in self._answers], last
        )
        answers = list(self._answers)
        for answer, token in zip(answers, self._choose(answers, logits), strict=True):
            self._take(answer, token)

    def remove(self, answer: PendingAnswer) -> None:
        """Drop an answer that is not wanted any more; nothing happens if it is done."""
        for number, member in enumerate(self._answers):
            if member is answer:
                self._cache.remove_row(member.row)
                last = self._answers.pop()
                if last is not member:
                    self._answers[number] = last
                return

    def _choose(self, answers: Sequence[BatchedAnswer], logits: Tensor) -> list[int]:
        """The next token of these answers, from logits [answers, vocabulary]; greedy ones come in
        one copy.
        """
        likeliest: list[int] = logits.argmax(-1).tolist()
        return [
            token if answer.sampler.is_greedy else answer.sampler(row)
            for answer, token, row in zip(answers, likeliest, logits, strict=True)
        ]

    def _take(self, answer: BatchedAnswer, token: int) -> None:
        if token not in self._stop_tokens:
            answer.push(token)
            if answer.num_tokens < answer.max_tokens:
                return
        answer.finish()
        self.remove(answer)
