"""What is asked of spans of a stream, and what is answered: small records, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from errors import LonglookError


@dataclass(frozen=True)
class ChunkSpan:
    """Chunks from number `start` to before number `stop`."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise LonglookError(f"{self.start} to {self.stop} is no span of chunks")


@dataclass(frozen=True)
class SpanPrompt:
    """What is asked of every span.

    mode: "text" for words of the model's own, "yes_no", or "choice" of one of `choices`.
    """

    text: str
    mode: Literal["text", "yes_no", "choice"] = "text"
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise LonglookError("the prompt is empty")
        if self.mode == "choice" and len(set(self.choices)) < 2:
            raise LonglookError("a choice needs two different answers at least")


@dataclass(frozen=True)
class SpanAnswer:
    """What the model says of one span.

    probability: of "yes" with the mode "yes_no", of the chosen answer with "choice"; relative to
    the other allowed answers. None for text.
    is_partial: the run was cancelled before this text was complete.
    is_lost: the chunks can't be had any more, so there is no answer.
    """

    span: ChunkSpan
    prompt: SpanPrompt
    text: str
    probability: float | None = None
    is_partial: bool = False
    is_lost: bool = False
