"""From logits to text: choosing a token, and turning tokens into text as they come.

Knows nothing of video or caches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from config import AnswerConfig

BROKEN = "\ufffd"  # what a tokenizer writes for a character whose bytes are not all there yet
# tokens that may wait for one character: a whole one has at most four bytes, the rest are stray
MOST_HELD = 8
# shown tokens kept as left context, since a token's text can depend on the one before
KEPT_TOKENS = 4


class TokenSampler:
    """Picks the next token: the likeliest at temperature 0, else drawn from a seeded generator."""

    def __init__(self, options: AnswerConfig) -> None:
        self._generator = (
            torch.Generator().manual_seed(options.seed) if options.temperature > 0 else None
        )
        self._warpers = LogitsProcessorList()
        if options.temperature > 0:
            self._warpers.append(TemperatureLogitsWarper(float(options.temperature)))
            if options.top_p < 1:
                self._warpers.append(TopPLogitsWarper(float(options.top_p)))

    @property
    def is_greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self._generator is None

    def __call__(self, logits: Tensor) -> int:
        """A token id from float logits [vocabulary]."""
        if self._generator is None:
            return int(logits.argmax())
        scores = self._warpers(torch.empty(1, 0, dtype=torch.long), logits[None].float().cpu())
        return int(torch.multinomial(scores.softmax(dim=-1)[0], 1, generator=self._generator))


class TextStream:
    """Text of a growing run of tokens, each piece once, in time linear in the tokens; never half a
    character.

    Lag: text whose last character is incomplete waits for the next tokens, at most eight.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # the kept left context, then what is not shown yet
        self._held = 0  # how many of them are not shown
        self._shown = ""  # text of the left context

    def push(self, token: int) -> str:
        """The text that `token` completes, maybe empty."""
        self._tokens.append(token)
        self._held += 1
        text = self._text(self._tokens)
        if text.endswith(BROKEN) and self._held < MOST_HELD:
            return ""
        return self._show(text)

    def finish(self) -> str:
        """What is left when no token follows; an incomplete character is dropped."""
        return self._show(self._text(self._tokens)) if self._held else ""

    def _show(self, text: str) -> str:
        piece = text[len(self._shown) :]
        self._tokens, self._held = self._tokens[-KEPT_TOKENS:], 0
        self._shown = self._text(self._tokens)
        return piece.replace(BROKEN, "")

    def _text(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)
