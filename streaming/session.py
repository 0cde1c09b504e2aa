"""One stream's memory and dialogue: `watch` fills it, `ask` questions it. This is the whole system
at a glance.

Knows nothing of where frames come from or how events are shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from config import Config
from errors import LonglookError, Notice
from frames import Frame, Gap
from keyframes.chunk_builder import ChunkBuilder, ChunkFrames, build_chunks
from keyframes.frame_diff import FrameDiff
from memory.carriers import Carriers
from memory.chunk import KVChunk
from memory.disk_tier import ChunkLostError, SessionError, SessionStore, as_jpeg
from memory.kv_memory import RETRY_SECONDS, KVMemory, MemoryCounts, MemoryFullError
from memory.records import KeyframeRecord, NewChunk
from memory.retrieval_index import HeadIndex
from memory.timeline import Timeline
from models.calibration import Profile
from models.video_llm import AnswerRequest, Turn, VideoLLM, num_visual_tokens
from streaming.batching import BATCH_FRAMES, batch_chunks, max_pass_tokens
from streaming.each import MAX_ROWS, SpanRow, answer_rows, greedy, pack_rows
from streaming.events import (
    MAX_QUESTION_CHARACTERS,
    Answer,
    AnswerPiece,
    AskEvent,
    Evidence,
    Keyframe,
    Stats,
    Thumbnail,
    Watched,
    WatchEvent,
)
from streaming.ingest import (
    LIVE_SHARE,
    Ingest,
    PrefilledChunk,
    PrefillWork,
    PreparedChunk,
)
from streaming.live_chunks import LiveChunks
from streaming.retriever import (
    LONGEST_FRAME_SECONDS,
    Retrieved,
    Retriever,
    gaps_near,
    in_stream_time,
)
from streaming.sources.source import Fingerprint
from streaming.span_prompts import ChunkSpan, SpanAnswer, SpanPrompt
from streaming.time_query.expressions import clock
from streaming.time_query.spans import (
    time_beyond,
)

T = TypeVar("T")
THUMBNAIL_SIDE = 192  # pixels of the longer side


class SessionClosedError(LonglookError):
    """The session was closed by another thread."""


@dataclass(frozen=True)
class StaticTail:
    """Frames since the newest chunk, which showed nothing new: how many, the seconds that
    processing them took, and the keyframes that belong to no chunk yet.
    """

    num_frames: int = 0
    watch_seconds: float = 0.0
    keyframes: tuple[KeyframeRecord, ...] = ()

    def extended(
        self, num_frames: int, seconds: float, keyframes: Sequence[Keyframe]
    ) -> StaticTail:
        records = [
            KeyframeRecord(keyframe.pts_seconds, keyframe.kind, picture, len(picture))
            for keyframe in keyframes
            for picture in [as_jpeg(keyframe.image)]
        ]
        return StaticTail(
            self.num_frames + num_frames,
            self.watch_seconds + seconds,
            (*self.keyframes, *records),
        )


class DeviceOwner(Protocol):
    """What a session needs of the engine, which alone uses the device."""

    model: VideoLLM
    profile: Profile | None

    def run(self, work: Callable[[], T]) -> T:
        """Runs something short on the device's thread."""
        ...

    def prefill(
        self, work: PrefillWork, num_tokens: int, is_live: bool
    ) -> Future[list[PrefilledChunk]]:
        """Chunks go through tower and LLM when it is their turn."""
        ...

    def run_in_background(self, run_part: Callable[[], bool]) -> Future[None]:
        """Work in short parts, when live watching and questions leave time."""
        ...

    def answer(self, retrieve: Callable[[], AnswerRequest]) -> Iterator[str]:
        """An answer piece by piece; `retrieve` is called on the device's thread."""
        ...


class Session:
    """Made by `Engine.open`. `watch` and `ask` may run in different threads.

    Memory, index and counters change under a lock, which nobody holds while waiting for the device.
    """

    def __init__(
        self, engine: DeviceOwner, config: Config, store: SessionStore | None = None
    ) -> None:
        """store: what has been seen and said before, and where it is kept from now on; closed with
        the session.
        """
        model, profile = engine.model, engine.profile
        self._engine, self._model, self._profile, self._config = engine, model, profile, config
        self._lock = threading.RLock()
        self._committed = threading.Condition(self._lock)
        # chunks that are not in memory yet
        self._under_way: Future[list[PrefilledChunk]] | None = None
        self._store = store
        index = HeadIndex(len(profile.heads), model.head_dim, model.dtype) if profile else None
        self._memory = KVMemory(config.memory, model.device, store, index, self._lock)
        self._timeline = Timeline(store)
        self._retriever = Retriever(model, profile, self._memory, config)
        self._carriers = Carriers(config.memory.carrier_tokens, self._still_there)
        self._ingest: Ingest | None = None  # None if it must begin anew
        # held while chunks are prefilled and committed: by who watches, or by a question that takes
        # what has come in since
        self._ingesting = threading.Lock()
        self._live: LiveChunks[ChunkFrames] | None = None  # while a live source is watched
        self._events_of_questions: list[WatchEvent] = []  # of chunks that a question took
        self._waits_for_first = False  # the first chunk is under way
        self._dialogue: list[Turn] = []
        self._stats = Stats()
        self._counts = self._memory.counts()
        self._closed = False
        self._closing = threading.Event()
        self._num_pruned = 0
        self._group_tokens = 0  # of the newest group, before pruning
        self._seen_seconds = 0.0
        self._static_tail = StaticTail()
        if store is not None:
            self._restore(store)

    @property
    def keyframes(self) -> list[KeyframeRecord]:
        """Of everything that is remembered, in order."""
        return [*self._memory.keyframes, *self._static_tail.keyframes]

    def keyframe_picture(self, keyframe: KeyframeRecord) -> bytes | None:
        """A small JPEG; None where it had to make room."""
        return self._memory.keyframe_picture(keyframe)

    def watch(self, frames: Iterable[Frame], ahead: bool = False) -> Iterator[WatchEvent]:
        """Remembers the frames chunk by chunk, telling of each; may be called again for what comes
        later.

        ahead: frames are available without waiting (a file), so several chunks of a small model may
        share a pass (`streaming/batching.py`). They become what they would be one by one. Ends
        where the frames end or the session is closed; and, told in a Notice, where device or folder
        keep failing. An error leaves what was remembered before it as it was. With a folder, a
        chunk that was told of is safe on the disk.
        """
        yield from self._discarded()
        yield from self._losses()
        batches = self._watch_ahead(frames) if ahead else self._watch_live(frames)
        try:
            for events in batches:
                yield from events
        except SessionClosedError:
            return
        except (MemoryFullError, SessionError) as error:
            text = f"{error} Watching ended there; questions are answered from what was seen."
            yield Notice(text, error.knob)
        finally:
            batches.close()
            self._let_first_question_go()

    def _watch_ahead(self, frames: Iterable[Frame]) -> Generator[list[WatchEvent]]:
        """The events of each pass over frames that need not be waited for."""
        memory = self._config.memory
        # a chunk is carried on only when it is in memory
        max_chunks = 1
        if memory.carrier_tokens == 0:
            max_chunks = max(1, BATCH_FRAMES // memory.chunk_frames)
        count_tokens = partial(num_visual_tokens, self._model)
        max_tokens = max_pass_tokens(self._model.device.type)
        ingest = self._begin_ingest()
        self._waits_for_first = not self._memory.num_chunks
        chunks = build_chunks(frames, ingest.chunk_builder(is_live=False), ingest.measure)
        batches = batch_chunks(chunks, max_chunks, count_tokens, max_tokens)
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches, None)
            except Exception:
                self._ingest = None  # what it has measured of the frames is of no use
                raise
            if batch is None:
                return
            events: list[WatchEvent] = []
            try:
                self._ingest_chunks(ingest, batch, started, False, events)
            except Exception:
                yield events
                raise
            yield events

    def _watch_live(self, frames: Iterable[Frame]) -> Generator[list[WatchEvent]]:
        """The events of each chunk of frames that have to be waited for."""
        ingest = self._begin_ingest()
        builder = ingest.chunk_builder(is_live=True)
        live = LiveChunks(
            frames,
            builder,
            lambda frame: builder.add(ingest.measure([frame])),
            self._config.memory.max_chunk_seconds * LIVE_SHARE,
        )
        self._live = live
        try:
            while True:
                started = time.perf_counter()
                if not live.wait():
                    break
                events: list[WatchEvent] = []
                try:
                    with self._ingesting:
                        events += self._take_events_of_questions()
                        chunks = live.take_complete()
                        if chunks:
                            self._ingest_chunks(ingest, chunks, started, True, events)
                except Exception:
                    yield events
                    raise
                yield events
            yield self._take_events_of_questions()
            yield self._keep_late_keyframes(builder)
        finally:
            self._live = None
            live.stop()

    def ask(self, question: str) -> Iterator[AskEvent]:
        """Answers from all that has been watched so far: pieces of text as they come, then the
        whole with its evidence.

        Waits for the pass under way (a chunk, or a few small ones). Of a live source, what has come
        in so far is prefilled first, so that "now" is the last frame; of a file, the first chunk is
        waited for. An answer that is abandoned leaves no trace in the dialogue. Raises
        LonglookError for a question that is empty or too long, where nothing has been watched, and
        when closed.
        """
        question = question.strip()
        if not question:
            raise LonglookError("the question is empty")
        if len(question) > MAX_QUESTION_CHARACTERS:
            raise LonglookError(
                f"the question has {len(question):,} characters; at most "
                f"{MAX_QUESTION_CHARACTERS:,} are read"
            )
        started = time.perf_counter()
        self._take_in_what_came()
        evidence: list[Evidence] = []
        text = ""
        with self._lock:
            asked, notices = in_stream_time(question, self._timeline, self.seen_seconds or 0.0)
        yield from notices
        for piece in self._engine.answer(partial(self._retrieve, asked, evidence)):
            if not text:
                self._count_first_token(time.perf_counter() - started)
                yield from self._losses()
            text += piece
            yield AnswerPiece(piece)
        yield from self._losses()
        yield from self._times_not_seen(asked)
        yield from self._keep(Turn(question, text))
        yield Answer(question, text, tuple(evidence), self._stats, self._gaps_near(evidence))

    def each(
        self,
        prompts: Sequence[SpanPrompt],
        spans: Sequence[ChunkSpan],
        max_new_tokens: int = 64,
        cancel: threading.Event | None = None,
        max_rows: int = MAX_ROWS,
    ) -> Iterator[SpanAnswer]:
        """Puts every prompt to every span of chunks, as background work; the answers come span by
        span. max_rows: of a batch. See `streaming/each.py`.

        Raises LonglookError for a span that was not watched, and when closed.
        """
        self._check_askable()
        for span in spans:
            if span.stop > self._memory.num_chunks:
                raise LonglookError(
                    f"chunk {span.stop - 1} has not been watched; there are "
                    f"{self._memory.num_chunks} chunks"
                )
        batches = (self._span_rows(batch) for batch in pack_rows(spans, prompts, max_rows))
        options = greedy(self._config.answer, max_new_tokens)
        return answer_rows(self._engine, batches, options, cancel or threading.Event())

    def _span_rows(self, batch: Sequence[tuple[ChunkSpan, SpanPrompt]]) -> list[SpanRow]:
        """The rows of one batch with their contexts, read from host and disk in this thread."""
        contexts = {span: self._span_context(span) for span, _ in batch}
        return [SpanRow(span, prompt, contexts[span]) for span, prompt in batch]

    def _span_context(self, span: ChunkSpan) -> list[KVChunk]:
        """The prefix and the chunks of a span; empty if one of them can't be had any more."""
        with self._lock:
            self._check_open()
            chunks = [self._still_there(index) for index in range(span.start, span.stop)]
        found = [chunk for chunk in chunks if chunk is not None]
        return [self._model.prefix(), *found] if len(found) == len(chunks) else []

    @property
    def stats(self) -> Stats:
        return self._stats

    @property
    def memory(self) -> KVMemory:
        """What is remembered; to be read, and not while `watch` or `ask` is running."""
        return self._memory

    @property
    def config(self) -> Config:
        """A session that goes on keeps the settings it began with."""
        return self._config

    @property
    def is_kept(self) -> bool:
        """Whether this session stays in a folder."""
        return self._store is not None

    @property
    def source(self) -> str | None:
        """Where the frames of a kept session come from, if that has been said."""
        return None if self._store is None else self._store.source

    @property
    def seen_seconds(self) -> float | None:
        """Time of the last frame watched, None where there is none."""
        newest = self._memory.stop_seconds
        return None if newest is None else max(newest, self._seen_seconds)

    @property
    def timeline(self) -> Timeline:
        """Gaps and wall-clock times; to be changed with `change_timeline`."""
        return self._timeline

    def change_timeline(self, change: Callable[[Timeline], None]) -> None:
        """Changes it while nobody reads it."""
        with self._lock:
            self._check_open()
            change(self._timeline)

    @property
    def dialogue(self) -> tuple[Turn, ...]:
        return tuple(self._dialogue)

    def close(self) -> None:
        """Gives the memory back, after the chunk under way; may be called twice, and while another
        thread watches.
        """
        with self._lock:
            was_closed, self._closed = self._closed, True
            self._carriers.close()
            self._committed.notify_all()
        self._closing.set()
        live = self._live
        if live is not None:
            live.stop()
        self._memory.stop()
        if self._store is not None and not was_closed:
            self._keep_seen(self._store)
        self._memory.close()

    def _gaps_near(self, evidence: Sequence[Evidence]) -> tuple[Gap, ...]:
        with self._lock:
            return gaps_near(evidence, self._timeline)

    def _keep_seen(self, store: SessionStore) -> None:
        """Says how far was watched: static frames after the newest chunk need not be seen again."""
        if store.read_only:
            return
        with suppress(SessionError):
            self._static_tail = self._with_keyframes_stored(store)
            if self._seen_seconds > store.seen_seconds:
                tail = self._static_tail
                store.set_seen(self._seen_seconds, (tail.num_frames, tail.watch_seconds))

    def follow(self, source: str, fingerprint: Fingerprint | None = None) -> None:
        """Says where the frames to be watched come from. Raises SessionError where those so far
        came from elsewhere, or from another recording of that name.
        """
        if self._store is None:
            return
        if self._store.source not in (None, source):
            raise SessionError(
                f"{self._store.folder} is a session with {self._store.source}, not with {source}."
            )
        if fingerprint is not None and not self._is_same_recording(fingerprint):
            raise SessionError(
                f"{source} is another recording than the one that was watched into "
                f"{self._store.folder}: it begins otherwise, or is shorter."
            )
        known = None
        if fingerprint is not None:
            known = (fingerprint.first_packets, fingerprint.num_bytes)
        self._store.set_source(source, known)

    def _is_same_recording(self, fingerprint: Fingerprint) -> bool:
        known = None if self._store is None else self._store.fingerprint
        return known is None or Fingerprint(*known).can_become(fingerprint)

    def _now(self) -> float:
        """Time of the last frame watched, where there is one."""
        assert self.seen_seconds is not None
        return self.seen_seconds

    def _check_askable(self) -> None:
        self._check_open()
        if not self._memory.num_chunks:
            raise LonglookError("nothing has been watched yet")

    def _take_in_what_came(self) -> None:
        """Frames that have come in become part of what is asked about, before a question is.

        Only if no chunk is under way: the one that is shows what came last, and a question waits
        for one pass, not for two, and never for the disk.
        """
        live = self._live
        if live is not None and self._ingesting.acquire(blocking=False):
            try:
                self._ingest_what_came(live)
            finally:
                self._ingesting.release()
            live.wake()
        with self._committed:
            while self._waits_for_first and not self._closed:
                self._committed.wait()

    def _ingest_what_came(self, live: LiveChunks[ChunkFrames]) -> None:
        ingest = self._ingest
        if ingest is None:
            return
        try:
            for chunk in live.take_all():
                started = time.perf_counter()
                self._ingest_chunks(ingest, [chunk], started, True, self._events_of_questions)
        except Exception as error:  # noqa: BLE001  told to who watches, where it is raised again
            live.fail(error)

    def _take_events_of_questions(self) -> list[WatchEvent]:
        """What happened when a question took what had come in; told to who watches."""
        events, self._events_of_questions = self._events_of_questions, []
        return events

    def _let_first_question_go(self) -> None:
        with self._committed:
            self._waits_for_first = False
            self._committed.notify_all()

    def _begin_ingest(self) -> Ingest:
        with self._lock:
            self._check_open()
            self._ingest = self._ingest or Ingest(self._model, self._config)
            return self._ingest

    def _ingest_chunks(
        self,
        ingest: Ingest,
        chunks: Sequence[ChunkFrames],
        started: float,
        is_live: bool,
        events: list[WatchEvent],
    ) -> None:
        """Prefills the chunks and keeps them. One in which nothing changed only extends the span of
        the newest chunk.

        started: when the frames were first waited for, by `time.perf_counter`. events: what
        happened is appended. After an error the ingest begins anew.
        """
        with self._lock:
            self._check_open()
            self._ingest = None
            self._waits_for_first = not self._memory.num_chunks
        try:
            self._ingest_prepared(ingest, ingest.prepare(chunks), started, is_live, events)
        finally:
            self._let_first_question_go()
        self._ingest = ingest

    def _ingest_prepared(
        self,
        ingest: Ingest,
        prepared: Sequence[PreparedChunk],
        started: float,
        is_live: bool,
        events: list[WatchEvent],
    ) -> None:
        frames = [frame for chunk in prepared for frame in chunk.frames]
        num_tokens = num_visual_tokens(self._model, frames)
        results = self._prefill_with_retries(ingest, prepared, num_tokens, is_live)
        try:
            self._commit(results, started, events)
        finally:
            self._let_questions_in()

    def _prefill_with_retries(
        self, ingest: Ingest, prepared: Sequence[PreparedChunk], num_tokens: int, is_live: bool
    ) -> list[PrefilledChunk]:
        for seconds in RETRY_SECONDS:  # the device may be full of answers that end soon
            try:
                return self._prefill(ingest, prepared, num_tokens, is_live)
            except MemoryFullError:
                if self._closing.wait(seconds):
                    raise
                ingest.forget_reference()
        return self._prefill(ingest, prepared, num_tokens, is_live)

    def _prefill(
        self, ingest: Ingest, prepared: Sequence[PreparedChunk], num_tokens: int, is_live: bool
    ) -> list[PrefilledChunk]:
        with self._lock:
            self._check_open()
            work = self._prefill_work(ingest, prepared)
        self._under_way = self._engine.prefill(work, num_tokens, is_live)
        try:
            return self._under_way.result()
        except BaseException:
            self._let_questions_in()
            raise

    def _let_questions_in(self) -> None:
        """What the model has seen can be asked about now."""
        with self._committed:
            self._under_way = None
            self._waits_for_first = self._waits_for_first and not self._memory.num_chunks
            self._committed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError("this session is closed")

    def _prefill_work(self, ingest: Ingest, prepared: Sequence[PreparedChunk]) -> PrefillWork:
        """The chunks with what they see: the prefix, carriers and the newest chunks."""
        memory, index = self._config.memory, self._memory.num_chunks
        num_recent = min(memory.prefill_chunks, memory.window_chunks)
        recent = self._memory.window()[-num_recent:] if num_recent else []
        prefix = [self._model.prefix(), *self._carriers.before(index - len(recent))]
        return PrefillWork(ingest, prepared, prefix, recent, num_recent, index)

    def _commit(
        self, results: Sequence[PrefilledChunk], started: float, events: list[WatchEvent]
    ) -> None:
        """Several chunks share a commit. If that fails each has its own, so that those before the
        failing one stay.
        """
        try:
            events += self._remember(results, started)
        except SessionClosedError:
            raise
        except Exception:
            if len(results) == 1:
                raise
            for result in results:
                events += self._remember([result], started)
                started = time.perf_counter()

    def _remember(self, results: Sequence[PrefilledChunk], started: float) -> list[WatchEvent]:
        """Keeps the chunks, or extends the newest one; says what that changed."""
        self._check_open()
        pictures = [thumbnail(result.prepared.frames) for result in results]
        keyframes = [keyframe_events(result.prepared.keyframes) for result in results]
        new = self._new_chunks(results, pictures, keyframes, time.perf_counter() - started)
        try:
            counts = iter(self._memory.append_all(new, self._let_questions_in) if new else [])
        except ValueError as error:
            if self._closed:
                raise SessionClosedError("this session is closed") from error
            raise
        seconds = time.perf_counter() - started
        events: list[WatchEvent] = []
        with self._lock:
            self._check_open()
            for result, picture, found in zip(results, pictures, keyframes, strict=True):
                before = self._counts
                if result.chunk is not None:
                    self._counts = next(counts)
                self._count_watched(result, found, seconds)
                events += self._eviction_notices(before)
                events.append(picture)
                events += found
                events.append(Watched(self._seen_seconds, self._stats))
                seconds = 0.0
        return [*events, *self._losses()]

    def _new_chunks(
        self,
        results: Sequence[PrefilledChunk],
        pictures: Sequence[Thumbnail],
        keyframes: Sequence[Sequence[Keyframe]],
        seconds: float,
    ) -> list[NewChunk]:
        """What is kept of the chunks; frames that showed nothing new are counted with the chunk
        after them.
        """
        chunks: list[NewChunk] = []
        tail = self._static_tail
        for result, picture, found in zip(results, pictures, keyframes, strict=True):
            tail = tail.extended(len(result.prepared.frames), seconds, found)
            seconds = 0.0
            if result.chunk is not None:
                keys = self._profile.keys_of(result.chunk) if self._profile else None
                new = NewChunk(
                    result.chunk,
                    keys,
                    picture.image,
                    tail.num_frames,
                    tail.watch_seconds,
                    result.prepared.frames[-1].pts_seconds,
                    tail.keyframes,
                )
                chunks.append(new)
                tail = StaticTail()
        return chunks

    def _count_watched(
        self, result: PrefilledChunk, keyframes: Sequence[Keyframe], seconds: float
    ) -> None:
        """Everything that a chunk in memory, or one without anything new, changes here."""
        frames = result.prepared.frames
        if result.chunk is None:
            self._static_tail = self._static_tail.extended(len(frames), seconds, keyframes)
        else:
            self._static_tail = StaticTail()
        self._count_pruned(result)
        self._seen_seconds = frames[-1].pts_seconds
        self._count(len(frames), seconds)

    def _keep_late_keyframes(self, builder: ChunkBuilder) -> list[WatchEvent]:
        """Keyframes among the last frames, which were known too late for the last chunk."""
        found = keyframe_events(builder.take_late_keyframes())
        with self._lock:
            self._static_tail = self._static_tail.extended(0, 0.0, found)
            if self._store is not None:
                with suppress(SessionError):  # then they are kept with the next chunk
                    self._static_tail = self._with_keyframes_stored(self._store)
            self._count(0, 0.0)
        return list(found)

    def _with_keyframes_stored(self, store: SessionStore) -> StaticTail:
        """The tail without its keyframes, which are kept with the newest chunk from now on."""
        tail = self._static_tail
        if not self._memory.num_chunks:
            return tail
        store.add_keyframes(tail.keyframes)
        self._counts = self._memory.counts()
        return replace(tail, keyframes=())

    def _count_pruned(self, result: PrefilledChunk) -> None:
        """Adds pruned tokens: those dropped inside groups, plus every skipped group, counted at the
        size of the last kept one."""
        self._group_tokens = result.group_tokens or self._group_tokens
        prepared = result.prepared
        skipped = -(-len(prepared.frames) // self._model.frames_per_group) - len(prepared.groups)
        self._num_pruned += result.num_pruned + skipped * self._group_tokens

    def _still_there(self, index: int) -> KVChunk | None:
        """A chunk, sparse where that is all there is, or None where it has gone from the disk."""
        with suppress(ChunkLostError):
            return None if self._memory.is_evicted(index) else self._memory.get([index])[0]
        return self._still_there(index)

    def retrieve(self, question: str) -> Retrieved:
        """What a question would be answered from now; for measurements, while nobody watches."""
        with self._lock:
            return self._retriever.retrieve(question, self._now(), self._earlier())

    def _retrieve(self, question: str, evidence: list[Evidence]) -> AnswerRequest:
        """The question as the model gets it, with its context; evidence: what the answer will rest
        on is appended.

        Called on the device's thread.
        """
        with self._committed:
            while self._under_way is not None and self._under_way.done():
                self._committed.wait()  # what the model has seen is part of what is asked about
            self._check_askable()
            found = self._retriever.retrieve(question, self._now(), self._earlier())
            evidence += found.evidence
            num_tokens = sum(chunk.num_tokens for chunk in found.context)
            self._stats = replace(self._stats, context_tokens=num_tokens)
            return AnswerRequest(
                found.question, found.context, self._earlier(), self._config.answer
            )

    def _earlier(self) -> list[Turn]:
        turns = self._config.answer.dialogue_turns
        return self._dialogue[-turns:] if turns else []

    def _count_first_token(self, seconds: float) -> None:
        with self._lock:
            self._stats = replace(self._stats, first_token_seconds=seconds)

    def _times_not_seen(self, question: str) -> Iterator[Notice]:
        """Says so where a question names a time that has not been watched."""
        seen_seconds = self.seen_seconds
        if seen_seconds is None:  # closed meanwhile
            return
        seconds = time_beyond(question, seen_seconds + LONGEST_FRAME_SECONDS)
        if seconds is not None:
            yield Notice(
                f"{clock(seconds)} was not seen: what has been watched ends at "
                f"{clock(seen_seconds)}."
            )

    def _keep(self, turn: Turn) -> Iterator[Notice]:
        """Puts a turn into the dialogue; says so where it cannot be kept on the disk as well."""
        self._dialogue.append(turn)
        if self._store is None:
            return
        try:
            self._store.add_turn(turn.question, turn.answer)
        except SessionError as error:
            yield Notice(f"This answer was not kept: {error}")

    def _discarded(self) -> Iterator[Notice]:
        """Says so where watching was killed before it had noted down all that it had seen."""
        if self._store is not None and self._store.num_discarded:
            number, self._store.num_discarded = self._store.num_discarded, 0
            yield Notice(
                f"Watching was ended before {number} chunk(s) had been noted down; they are "
                "watched again."
            )

    def _losses(self) -> Iterator[Notice]:
        """What was found to be lost since this was last said."""
        yield from self._memory.take_notices()

    def _eviction_notices(self, before: MemoryCounts) -> Iterator[Notice]:
        """What had to make room on the disk for the newest chunk."""
        now = self._counts
        budget = (
            f"The disk budget of {self._config.memory.disk_bytes / (1 << 30):.3g} GiB is full: "
            f"what was seen before"
        )
        if now.disk_forgotten_chunks > before.disk_forgotten_chunks:
            yield Notice(f"{budget} {now.disk_starts_seconds:.0f} s can't be recalled now.")
        dense_before = before.disk_forgotten_chunks + before.sparse_chunks
        if now.disk_forgotten_chunks + now.sparse_chunks > dense_before:
            seconds = now.dense_starts_seconds
            yield Notice(f"{budget} {seconds:.0f} s is now remembered sparse, with fewer details.")

    def _restore(self, store: SessionStore) -> None:
        """Index, dialogue and counters as they were; nothing is encoded again."""
        if self._profile is not None:
            self._memory.fill_index(stored_keys(store, self._profile, self._still_there))
        elif store.heads and not store.read_only:
            # chunks to come will have no keys; a profile makes all of them anew
            store.replace_index("", [])
        self._dialogue += [Turn(question, answer) for question, answer in store.turns()]
        self._seen_seconds = store.seen_seconds
        num_frames, watch_seconds = store.still_since
        self._static_tail = StaticTail(num_frames, watch_seconds)
        self._counts = self._memory.counts()
        self._count(store.frames_watched, store.watch_seconds)

    def _count(self, frames: int, seconds: float) -> None:
        counts, on_device = (
            self._counts,
            self._carriers.memory_bytes + self._model.prefix().memory_bytes,
        )
        self._stats = replace(
            self._stats,
            frames_read=self._stats.frames_read + frames,
            chunks=counts.chunks,
            tokens=counts.tokens,
            visual_tokens=counts.visual_tokens,
            pruned_tokens=self._num_pruned,
            keyframes=self._memory.num_keyframes + len(self._static_tail.keyframes),
            watch_seconds=self._stats.watch_seconds + seconds,
            device_bytes=counts.device_bytes + on_device,
            host_bytes=counts.host_bytes,
            disk_bytes=counts.disk_bytes,
            sparse_chunks=counts.sparse_chunks,
            forgotten_chunks=counts.forgotten_chunks,
        )


def stored_keys(
    store: SessionStore, profile: Profile, still_there: Callable[[int], KVChunk | None]
) -> Iterator[Tensor]:
    """The index keys of every chunk for the heads of this profile; those of other heads are made
    anew from the KV.
    """
    heads = repr([(head.layer, head.head) for head in profile.heads])
    if store.heads != heads:
        numbers = range(store.chunks.first, store.num_chunks)
        remade = (keys_again(still_there(index), profile, store.kind.head_dim) for index in numbers)
        if store.read_only:
            yield from remade
            return
        store.replace_index(heads, remade)
    yield from store.index_keys(len(profile.heads))


def keys_again(chunk: KVChunk | None, profile: Profile, head_dim: int) -> Tensor:
    """Of one chunk; none where it cannot be had any more."""
    return torch.empty(len(profile.heads), 0, head_dim) if chunk is None else profile.keys_of(chunk)


def thumbnail(frames: Sequence[Frame]) -> Thumbnail:
    """A small picture of the middle frame."""
    frame = frames[len(frames) // 2]
    return Thumbnail(frame.pts_seconds, small_picture(frame))


def keyframe_events(diffs: Sequence[FrameDiff]) -> list[Keyframe]:
    """The keyframes among frames, with small pictures."""
    return [
        Keyframe(diff.pts_seconds, diff.keyframe, small_picture(diff.frame))
        for diff in diffs
        if diff.keyframe is not None
    ]


def small_picture(frame: Frame) -> NDArray[np.uint8]:
    image = Image.fromarray(frame.image)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    small: NDArray[np.uint8] = np.asarray(image)
    return small
