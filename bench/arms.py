"""The ways to answer that the recall bench compares; all see the same frames through the same
model.

Each opponent is fed chunk by chunk and gives the context for a question; ours is the session
itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.asked import Asked
from bench.report import LAST_FRAMES, OURS, SHORT_CLIP, WINDOW
from config import AnswerConfig
from frames import Frame
from memory.chunk import KVChunk
from models.video_llm import VideoLLM, VisualGroup
from streaming.engine import Engine
from streaming.events import Answer
from streaming.session import Session
from streaming.time_query.spans import in_seconds
from training.scenes import CHUNK_SECONDS
from training.streams import Stream

RECENT_FRAMES = 4
UNIFORM_FRAMES = 64
Ranked = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Said:
    """One answer: what it cost, and the stretches of video it rests on, best first (empty where
    nothing is ranked).
    """

    text: str
    context_tokens: int
    first_token_seconds: float
    ranked: Ranked = ()


@dataclass(frozen=True, eq=False)
class Context:
    """What a question is answered from. spared_seconds: what making it took, where an earlier
    question had it made.
    """

    chunks: Sequence[KVChunk]
    ranked: Ranked = ()
    spared_seconds: float = 0.0


class Arm(Protocol):
    name: str

    def see(self, frames: Sequence[Frame], session: Session) -> None:
        """The next chunk of the stream, which `session` has just remembered."""
        ...

    def say(self, asked: Asked) -> Said | None:
        """The answer, or None where this way cannot be gone at this length."""
        ...


class Ours:
    """`Session.ask`."""

    name = OURS

    def __init__(self, session: Session) -> None:
        self._session = session

    def see(self, frames: Sequence[Frame], session: Session) -> None:
        pass

    def say(self, asked: Asked) -> Said:
        answer = next(e for e in self._session.ask(asked.question.text) if isinstance(e, Answer))
        ranked = [(e.start_seconds, e.stop_seconds) for e in answer.evidence]
        return Said(
            answer.text, answer.stats.context_tokens, answer.stats.first_token_seconds, ranked
        )


class OursOtherwise:
    """Ours with other memory settings, over the same folder: what was watched once is asked once
    more.

    Its session is opened when the stream has ended, so questions before that get no answer.
    """

    def __init__(
        self, engine: Engine, folder: Path, settings: Mapping[str, Any], end_seconds: float
    ) -> None:
        words = ", ".join(f"{name} {value}" for name, value in settings.items())
        self.name = f"{OURS}, {words}"
        config = engine.config.overridden({"memory": settings})
        self._engine, self._folder, self._end_seconds = (
            Engine(engine.model, engine.profile, config),
            folder,
            end_seconds,
        )
        self._session: Session | None = None

    def see(self, frames: Sequence[Frame], session: Session) -> None:
        pass

    def say(self, asked: Asked) -> Said | None:
        if asked.at_seconds < self._end_seconds:
            return None
        self._session = self._session or self._engine.open(self._folder, read_only=True)
        return Ours(self._session).say(asked)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


@dataclass(eq=False)
class Contexts:
    """Answers from contexts that the arms below build; `context` gives None where it cannot."""

    model: VideoLLM
    options: AnswerConfig
    name: str = ""
    _key: object = None
    _made: Context = field(default_factory=lambda: Context(()))

    def see(self, frames: Sequence[Frame], session: Session) -> None:
        pass

    def context(self, asked: Asked) -> Context | None:
        raise NotImplementedError

    def say(self, asked: Asked) -> Said | None:
        started = time.perf_counter()
        made = self.context(asked)
        if made is None:
            return None
        context = [self.model.prefix(), *made.chunks]
        pieces = self.model.answer(in_seconds(asked.question.text), context, (), self.options)
        text = next(pieces, "")
        first = made.spared_seconds + time.perf_counter() - started
        return Said(
            "".join([text, *pieces]), sum(c.num_tokens for c in context), first, made.ranked
        )

    def _once(self, key: object, make: Callable[[], Sequence[KVChunk]]) -> Context:
        """What `make` gives, kept until another key comes: one context serves all questions at one
        moment.
        """
        if key == self._key:
            return self._made
        started = time.perf_counter()
        chunks = make()
        self._key, self._made = key, Context(chunks, spared_seconds=time.perf_counter() - started)
        return Context(chunks)


@dataclass(eq=False)
class LastFrames(Contexts):
    """The last few frames, prefilled anew."""

    name: str = LAST_FRAMES
    _newest: list[Frame] = field(default_factory=list)

    def see(self, frames: Sequence[Frame], session: Session) -> None:
        self._newest = [*self._newest, *frames][-RECENT_FRAMES:]

    def context(self, asked: Asked) -> Context:
        return self._once(asked.at_seconds, self._prefilled)

    def _prefilled(self) -> list[KVChunk]:
        return [self.model.prefill(self.model.encode(self._newest), [self.model.prefix()], 0)]


@dataclass(eq=False)
class Window(Contexts):
    """The window of the session's memory and nothing else."""

    name: str = WINDOW
    _session: Session | None = None

    def see(self, frames: Sequence[Frame], session: Session) -> None:
        self._session = session

    def context(self, asked: Asked) -> Context:
        assert self._session is not None
        return Context(self._session.memory.window())


@dataclass(eq=False)
class Uniform(Contexts):
    """Frames taken evenly from the whole stream, in pairs of neighbours since the model fuses two,
    prefilled anew.

    Questions before the stream's end get what was taken so far.
    """

    name: str = f"{UNIFORM_FRAMES} uniform frames"
    chunk_groups: int = 4
    duration_seconds: float = 0.0
    _groups: list[VisualGroup] = field(default_factory=list)

    def see(self, frames: Sequence[Frame], session: Session) -> None:
        size = self.model.frames_per_group
        for k in range(0, len(frames) - size + 1, size):
            step = self.duration_seconds * size / UNIFORM_FRAMES
            if (
                frames[k].pts_seconds
                >= (len(self._groups) + 0.5) * step - 0.5 * CHUNK_SECONDS / self.chunk_groups
            ):
                self._groups += self.model.encode(frames[k : k + size])

    def context(self, asked: Asked) -> Context | None:
        if not self._groups:
            return None
        return self._once(
            len(self._groups), lambda: prefilled_whole(self.model, self._groups, self.chunk_groups)
        )


@dataclass(eq=False)
class FullAttention(Contexts):
    """Every chunk sees all before it, and the question everything, where the whole stream has at
    most `max_tokens`.
    """

    name: str = "full attention"
    max_tokens: int = 0
    duration_seconds: float = 0.0
    _chunks: list[KVChunk] = field(default_factory=list)
    _fits: bool = True

    def see(self, frames: Sequence[Frame], session: Session) -> None:
        newest = session.memory.newest
        if newest.index == 0:
            self._fits = (
                newest.num_tokens * self.duration_seconds / CHUNK_SECONDS <= self.max_tokens
            )
        if self._fits:
            context = [self.model.prefix(), *self._chunks]
            self._chunks.append(
                self.model.prefill(self.model.encode(frames), context, newest.index)
            )

    def context(self, asked: Asked) -> Context | None:
        return Context(self._chunks) if self._fits else None


@dataclass(eq=False)
class MeanKeys(Contexts):
    """The window, and as many older chunks as ours recalls, dense, chosen by mean keys over all
    heads (ReKV's score).

    Per layer: the mean raw query of the question times the mean raw key of the chunk's visual
    tokens, summed over heads. One choice for all layers, so layers are made comparable first
    (standardised over the chunks).
    """

    name: str = "mean keys, all heads"
    recall_chunks: int = 0
    _means: list[Tensor] = field(default_factory=list)  # each [layers, kv_heads, head_dim]
    _session: Session | None = None

    def see(self, frames: Sequence[Frame], session: Session) -> None:
        self._session = session
        if session.memory.num_chunks == len(self._means):
            return  # nothing was new
        newest = session.memory.newest
        self._means.append(
            newest.keys[:, :, newest.visual.to(newest.keys.device)]
            .float()
            .mean(2)
            .nan_to_num()
            .cpu()
        )

    def context(self, asked: Asked) -> Context:
        assert self._session is not None
        memory = self._session.memory
        scores = self._scores(in_seconds(asked.question.text))
        ranked = scores.argsort(descending=True).tolist()
        window = set(memory.window_indices)
        recalled = [index for index in ranked if index not in window][: self.recall_chunks]
        spans = memory.spans()
        return Context(
            memory.get(sorted([*recalled, *window])),
            [chunk_span(spans, index) for index in ranked[:4]],
        )

    def _scores(self, question: str) -> Tensor:
        # [layers, heads, head_dim]
        queries = self.model.all_question_queries(question).mean(2).cpu()
        layers, _, dim = queries.shape
        grouped = queries.view(layers, self.model.num_kv_heads, -1, dim).sum(2)
        products = torch.einsum("lhd,clhd->lc", grouped, torch.stack(self._means))
        spread = (
            products.std(1, keepdim=True).clamp(min=1e-6)
            if products.shape[1] > 1
            else torch.ones(layers, 1)
        )
        return ((products - products.mean(1, keepdim=True)) / spread).mean(0)


@dataclass(eq=False)
class ShortClip(Contexts):
    """The ceiling, which no stream can have: a short clip around the true event, prefilled
    alone.
    """

    name: str = SHORT_CLIP
    stream: Stream | None = None
    side: int = 0
    fps: float = 0.0
    chunk_groups: int = 4

    def context(self, asked: Asked) -> Context:
        return self._once(asked.clip_seconds, lambda: self._prefilled(*asked.clip_seconds))

    def _prefilled(self, start: float, stop: float) -> list[KVChunk]:
        assert self.stream is not None
        times = [k / self.fps for k in range(round(start * self.fps), round(stop * self.fps))]
        frames = [Frame(self.stream.at(t, self.side), t, k) for k, t in enumerate(times)]
        return prefilled_whole(self.model, self.model.encode(frames), self.chunk_groups)


def prefilled_whole(
    model: VideoLLM, groups: Sequence[VisualGroup], chunk_groups: int
) -> list[KVChunk]:
    """Groups in chunks, each in view of all before it: what one prefill of everything gives."""
    chunks: list[KVChunk] = []
    for k in range(0, len(groups), chunk_groups):
        chunks.append(
            model.prefill(groups[k : k + chunk_groups], [model.prefix(), *chunks], len(chunks))
        )
    return chunks


def chunk_span(spans: Sequence[tuple[float, float]], index: int) -> tuple[float, float]:
    """A chunk holds until the next one starts."""
    return spans[index][0], spans[index + 1][0] if index + 1 < len(spans) else spans[index][1]


def make_arms(
    engine: Engine, session: Session, stream: Stream, side: int, full_tokens: int
) -> list[Arm]:
    model, config, seconds = engine.model, engine.config, stream.duration_seconds
    options = config.answer
    groups = config.memory.chunk_frames // model.frames_per_group
    return [
        LastFrames(model, options),
        Window(model, options),
        Uniform(model, options, chunk_groups=groups, duration_seconds=seconds),
        FullAttention(model, options, max_tokens=full_tokens, duration_seconds=seconds),
        MeanKeys(model, options, recall_chunks=config.memory.recall_chunks),
        Ours(session),
        ShortClip(
            model, options, stream=stream, side=side, fps=config.read.fps, chunk_groups=groups
        ),
    ]
