"""The same prompts put to many spans of a stream: captions, fields, yes or no.

A span is a run of neighbouring chunks. Its context is the prefix and these chunks, nothing else, so
that what is said of one span never depends on another. All rows (a span with a prompt) go through
the model in batches, as background work: live watching and questions go first. Batches are formed
in the order of the spans, whatever else the device does, so a run can be repeated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol

from config import AnswerConfig
from memory.chunk import KVChunk
from models.video_llm import AnswerBatch, AnswerRequest, ChoiceRequest, PendingAnswer, VideoLLM
from streaming.span_prompts import ChunkSpan, SpanAnswer, SpanPrompt

MAX_ROWS = 32  # of a batch; more gain little (decode of the embedded model: 8 x at 32, 9.5 x at 64)
YES_NO = (("yes",), ("no",))


@dataclass(frozen=True, eq=False)
class SpanRow:
    """One span with one prompt and its context; `context` begins with the prefix, empty: lost."""

    span: ChunkSpan
    prompt: SpanPrompt
    context: Sequence[KVChunk]


class BackgroundRunner(Protocol):
    """What is needed of the engine."""

    model: VideoLLM

    def run_in_background(self, run_part: Callable[[], bool]) -> Future[None]:
        """Calls `run_part` on the device's thread until it gives True."""
        ...


@dataclass(eq=False)
class SpanBatch:
    """The rows that go through the model together, part by part: closed questions first, then one
    token of every text at a time.
    """

    model: VideoLLM
    rows: Sequence[SpanRow]
    options: AnswerConfig
    cancel: threading.Event
    answers: list[SpanAnswer] = field(default_factory=list)  # in the order of the rows, when done
    _closed: dict[int, SpanAnswer] = field(default_factory=dict)
    _texts: dict[int, PendingAnswer] = field(default_factory=dict)
    _pieces: dict[int, list[str]] = field(default_factory=dict)
    _decoding: AnswerBatch | None = None

    def run_part(self) -> bool:
        """The next part of the work; whether it was the last one."""
        if self._decoding is None:
            self._open()
        elif not self.cancel.is_set():
            self._decoding.step()
        self._take_text()
        is_done = self.cancel.is_set() or all(answer.is_done for answer in self._texts.values())
        if is_done:
            self._finish()
        return is_done

    def _open(self) -> None:
        numbered = [(number, row) for number, row in enumerate(self.rows) if row.context]
        self._decoding = self.model.answer_batch()
        closed = [(number, row) for number, row in numbered if row.prompt.mode != "text"]
        if closed and not self.cancel.is_set():
            requests = [_choice_request(row) for _, row in closed]
            for (number, row), shares in zip(closed, self.model.choose(requests), strict=True):
                self._closed[number] = _chosen(row, shares)
        texts = [(number, row) for number, row in numbered if row.prompt.mode == "text"]
        if texts and not self.cancel.is_set():
            added = self._decoding.add_all(
                [AnswerRequest(row.prompt.text, row.context, (), self.options) for _, row in texts]
            )
            self._texts = dict(zip([number for number, _ in texts], added, strict=True))

    def _take_text(self) -> None:
        for number, answer in self._texts.items():
            self._pieces.setdefault(number, []).append(answer.take_text())

    def _finish(self) -> None:
        for number, row in enumerate(self.rows):
            answer = self._closed.get(number)
            if answer is None:
                answer = self._text_answer(number, row)
            self.answers.append(answer)
        self._decoding, self._texts = None, {}

    def _text_answer(self, number: int, row: SpanRow) -> SpanAnswer:
        if not row.context:
            return SpanAnswer(row.span, row.prompt, "", is_lost=True)
        pending = self._texts.get(number)
        text = "".join(self._pieces.get(number, [])).strip()
        is_partial = pending is None or not pending.is_done
        return SpanAnswer(row.span, row.prompt, text, is_partial=is_partial)


def answer_rows(
    engine: BackgroundRunner,
    batches: Iterator[Sequence[SpanRow]],
    options: AnswerConfig,
    cancel: threading.Event,
) -> Iterator[SpanAnswer]:
    """The answers of all rows in their order. The next batch is taken from the iterator, which may
    read it from disk, while the device works on the one before.

    After `cancel` the batch under way ends with what it has, marked partial, and no other begins.
    A caller that closes the iterator cancels as well.
    """
    under_way: tuple[SpanBatch, Future[None]] | None = None
    try:
        for rows in batches:
            batch = SpanBatch(engine.model, rows, options, cancel)
            if under_way is not None:
                yield from _finished(*under_way)
            if cancel.is_set():
                under_way = None
                return
            under_way = batch, engine.run_in_background(batch.run_part)
        if under_way is not None:
            yield from _finished(*under_way)
    except GeneratorExit:
        cancel.set()
        raise


def _finished(batch: SpanBatch, done: Future[None]) -> Iterator[SpanAnswer]:
    done.result()
    yield from batch.answers


def pack_rows(
    spans: Sequence[ChunkSpan], prompts: Sequence[SpanPrompt], max_rows: int
) -> Iterator[list[tuple[ChunkSpan, SpanPrompt]]]:
    """Every span with every prompt, in batches of at most `max_rows`; prompts of a span stay side
    by side, so that its context is rotated once.
    """
    batch: list[tuple[ChunkSpan, SpanPrompt]] = []
    for span in spans:
        for prompt in prompts:
            batch.append((span, prompt))
            if len(batch) == max_rows:
                yield batch
                batch = []
    if batch:
        yield batch


def _choice_request(row: SpanRow) -> ChoiceRequest:
    is_yes_no = row.prompt.mode == "yes_no"
    choices = YES_NO if is_yes_no else tuple((choice,) for choice in row.prompt.choices)
    return ChoiceRequest(row.prompt.text, row.context, choices)


def _chosen(row: SpanRow, shares: Sequence[float]) -> SpanAnswer:
    best = max(range(len(shares)), key=shares.__getitem__)
    if row.prompt.mode == "yes_no":
        return SpanAnswer(row.span, row.prompt, YES_NO[best][0], shares[0])
    return SpanAnswer(row.span, row.prompt, row.prompt.choices[best], shares[best])


def greedy(options: AnswerConfig, max_new_tokens: int) -> AnswerConfig:
    """Options of a text that is the same every time."""
    return replace(options, temperature=0.0, max_new_tokens=max_new_tokens)
