"""One stream's memory and dialogue: `watch` fills it, `ask` questions it. This is the whole system at a glance.

Knows nothing of where frames come from or how events are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from config import Config
from memory.address import chunk_ranges, in_seconds, named_spans
from memory.bank import KVMemory, MemoryFullError
from memory.chunk import KVChunk
from memory.index import HeadIndex
from memory.recall import RecallPlan, evidence, plan_recall
from models.base import Turn, VideoLLM
from models.calibration import Profile
from streaming.events import Answer, AnswerPiece, AskEvent, Evidence, Notice, Stats, Thumbnail, Watched, WatchEvent
from streaming.frames import Frame

THUMBNAIL_SIDE = 192  # pixels of the longer side
TakeTurn = Callable[[bool], AbstractContextManager[None]]


class Session:
    """Made by `Engine.open`. `watch` and `ask` may run in different threads; each takes the device in turn."""

    def __init__(self, model: VideoLLM, profile: Profile | None, config: Config, take_turn: TakeTurn) -> None:
        self._model, self._profile, self._config, self._take_turn = model, profile, config, take_turn
        self._memory = KVMemory(config.memory, model.device)
        self._index = HeadIndex(len(profile.heads), model.head_dim) if profile else None
        self._dialogue: list[Turn] = []
        self._stats = Stats()

    def watch(self, frames: Iterable[Frame]) -> Iterator[WatchEvent]:
        """Remembers the frames chunk by chunk, telling after each chunk; may be called again for what comes later."""
        for part in in_parts(frames, self._config.memory.chunk_frames):
            started = time.perf_counter()
            try:
                with self._take_turn(False):
                    self._remember(part)
                    self._count(frames=len(part), seconds=time.perf_counter() - started)
            except MemoryFullError as error:
                yield Notice(f"{error} Watching ended there; questions are answered from what was seen.")
                return
            yield thumbnail(part[len(part) // 2])
            yield Watched(part[-1].pts_seconds, self._stats)

    def ask(self, question: str) -> Iterator[AskEvent]:
        """Answers from all that has been watched so far: pieces of text as they come, then the whole with its evidence.

        Raises ValueError for an empty question or where nothing has been watched.
        """
        question = question.strip()
        if not question:
            raise ValueError("the question is empty")
        if not self._memory.num_chunks:
            raise ValueError("nothing has been watched yet")
        started = time.perf_counter()
        with self._take_turn(True):
            plan = self._recall(question)
            context = [self._model.prefix(), *self._memory.get(plan.indices)]
            shown = self._evidence(plan)
        text = ""
        for piece in self._answer(question, context, started):
            text += piece
            yield AnswerPiece(piece)
        self._dialogue.append(Turn(question, text))
        yield Answer(question, text, shown, self._stats)

    @property
    def stats(self) -> Stats:
        return self._stats

    @property
    def memory(self) -> KVMemory:
        """What is remembered; to be read, and not while `watch` or `ask` is running."""
        return self._memory

    @property
    def dialogue(self) -> tuple[Turn, ...]:
        return tuple(self._dialogue)

    def close(self) -> None:
        """Gives the memory back; may be called twice."""
        with self._take_turn(True):
            self._memory.close()

    def _remember(self, frames: Sequence[Frame]) -> None:
        """One chunk: through the vision tower, through the LLM in view of its predecessors, into memory."""
        reach = self._config.memory.prefill_chunks
        context = [self._model.prefix(), *(self._memory.window()[-reach:] if reach else [])]
        groups = self._model.encode(frames)
        chunk = self._model.prefill(groups, context, self._memory.num_chunks)
        self._memory.append(chunk)
        if self._index is not None and self._profile is not None:
            self._index.add(chunk.index, self._profile.keys_of(chunk))

    def _recall(self, question: str) -> RecallPlan:
        """What comes back for the question: named times and the chunks whose keys it looks for, with the window."""
        memory, spans = self._config.memory, self._memory.spans()
        named = chunk_ranges(named_spans(question, spans[-1][1]), spans)
        scores = None
        if self._index is not None and self._profile is not None:
            queries = self._profile.queries_of(self._model, in_seconds(question))
            found = self._index.search(queries, limit=memory.recall_chunks + memory.window_chunks)
            scores = evidence(found.scores, self._profile.norms)
        return plan_recall(scores, named, len(spans), memory.window_chunks, memory.recall_chunks)

    def _answer(self, question: str, context: Sequence[KVChunk], started: float) -> Iterator[str]:
        options = self._config.answer
        earlier = self._dialogue[-options.dialogue_turns :] if options.dialogue_turns else []
        pieces = self._model.answer(in_seconds(question), context, earlier, options)
        first = True
        while True:
            with self._take_turn(True):
                piece = next(pieces, None)
            if first:
                self._stats = replace(
                    self._stats,
                    first_token_seconds=time.perf_counter() - started,
                    context_tokens=sum(chunk.num_tokens for chunk in context),
                )
                first = False
            if piece is None:
                return
            yield piece

    def _evidence(self, plan: RecallPlan) -> tuple[Evidence, ...]:
        """The plan's chunks, those of named times first, then the best by score."""
        spans = self._memory.spans()
        ends = [start for start, _ in spans[1:]] + [spans[-1][1]]
        found = [Evidence(spans[c.index][0], ends[c.index], c.score, c.why) for c in plan.chunks]
        return tuple(sorted(found, key=lambda e: (e.why != "named time", -e.score)))

    def _count(self, frames: int, seconds: float) -> None:
        memory, prefix = self._memory, self._model.prefix()
        self._stats = replace(
            self._stats,
            frames_read=self._stats.frames_read + frames,
            chunks=memory.num_chunks,
            tokens=memory.num_tokens,
            watch_seconds=self._stats.watch_seconds + seconds,
            device_bytes=memory.device_bytes + prefix.memory_bytes,
            host_bytes=memory.host_bytes + (self._index.index_bytes if self._index else 0),
        )


def in_parts(frames: Iterable[Frame], count: int) -> Iterator[list[Frame]]:
    """Runs of `count` frames; the last one may be shorter."""
    part: list[Frame] = []
    for frame in frames:
        part.append(frame)
        if len(part) == count:
            yield part
            part = []
    if part:
        yield part


def thumbnail(frame: Frame) -> Thumbnail:
    image = Image.fromarray(frame.image)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    small: NDArray[np.uint8] = np.asarray(image)
    return Thumbnail(frame.pts_seconds, small)
