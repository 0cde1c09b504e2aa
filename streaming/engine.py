"""The one owner of model and device: serves many sessions from one thread.

Knows nothing of files, pages or what is asked. Whose turn it is says `streaming/scheduler.py`.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from config import Config
from errors import LonglookError
from memory.disk_tier import SessionStore
from memory.kv_memory import NO_DEVICE_MEMORY, MemoryFullError
from memory.records import Kind
from models.calibration import Profile, find_profile
from models.checkpoint import recommended_config
from models.loading import load
from models.video_llm import AnswerRequest, PendingAnswer, VideoLLM
from streaming.batching import max_pass_tokens
from streaming.event_bus import EventBus
from streaming.ingest import PrefilledChunk, PrefillWork, run_prefills
from streaming.live_watch import LiveFeed, LiveWatch
from streaming.scheduler import BackgroundJob, Job, PrefillJob, QueryJob, Scheduler, Step
from streaming.session import Session
from streaming.sources.address import Address
from streaming.sources.push import PushedSource
from streaming.sources.source import DEFAULT_TIMING, Tell, Timing

T = TypeVar("T")
IDLE_SECONDS = 5.0  # after which the worker thread ends; the next job starts another
STOP_SECONDS = 20.0  # at most that a process waits at its end for the step under way
MAX_WAITING_QUESTIONS = 64
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()  # that have a worker


@atexit.register
def _stop_all() -> None:
    """A thread that the interpreter ends in the middle of an operator of torch takes the process
    down with it.
    """
    for engine in list(_ENGINES):
        engine.stop()


class AnswerStream:
    """One answer on its way from the device's thread to who asked: pieces of text, then None or an
    error.
    """

    def __init__(self) -> None:
        self.request: AnswerRequest | None = None  # None before the context is retrieved
        self.pending: PendingAnswer | None = None  # None while there is no room for it
        self.is_dropped = False
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def deliver(self) -> bool:
        """Hands over what is new; whether the answer is done."""
        assert self.pending is not None
        is_done = self.pending.is_done
        if text := self.pending.take_text():
            self._pieces.put(text)
        if is_done:
            self._pieces.put(None)
        return is_done

    def fail(self, error: BaseException) -> None:
        """Ends the answer with an error."""
        self._pieces.put(error)

    def next_piece(self) -> str | None:
        """Waits for the next piece; None at the end. Raises what the answer ended with."""
        piece = self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        return piece


class Engine:
    """A loaded model with its retrieval profile, shared by the sessions it opens.

    All device work is done by one worker thread. It starts with a job and ends when nothing came
    for a while.
    """

    def __init__(
        self, model: VideoLLM, profile: Profile | None, config: Config | None = None
    ) -> None:
        """profile: which heads retrieve, from `models.calibration`; without one, attention over all
        heads chooses.
        """
        self.model = model
        self.profile = profile
        self.config = config or Config()
        self.scheduler = Scheduler(max_pass_tokens(model.device.type))
        self.events = EventBus()
        self._worker: threading.Thread | None = None
        self._batch = model.answer_batch()
        self._answers: list[AnswerStream] = []  # under way
        self._waiting: list[AnswerStream] = []  # for room on the device, in the order of coming

    def open(self, folder: Path | None = None, read_only: bool = False) -> Session:
        """A session: one stream's memory and dialogue, new or as it was left in `folder`, and kept
        there.

        read_only: for questions about a folder that another process may be watching; nothing can be
        watched. Raises SessionError (a LonglookError) for a folder that cannot be used so.
        """
        self.run(self.model.prefix)
        if folder is None:
            return Session(self, self.config)
        memory = self.config.memory
        with ExitStack() as undo:
            store = SessionStore(
                folder,
                kind_of(self.model),
                kept_settings(self.config),
                memory.disk_bytes,
                memory.window_chunks,
                read_only,
                memory.kv_bits,
            )
            undo.callback(store.close)
            session = Session(self, self.config.overridden(store.settings), store)
            undo.pop_all()
        return session

    def watch_live(
        self,
        session: Session,
        address: Address,
        session_id: str,
        allow_private: bool = True,
        timing: Timing = DEFAULT_TIMING,
    ) -> LiveWatch:
        """Begins to watch a camera or stream into a session, on threads of their own.

        What happens is published on `events` under `session_id`. allow_private: the source may be
        a machine of the local network. Raises SessionError where the session has another source.
        """
        fps = session.config.read.fps

        # where nothing live is watched, av need not be there
        from streaming.sources.live import LiveSource

        def open_feed(tell: Tell, now_seconds: float, seen_seconds: float | None) -> LiveFeed:
            return LiveSource(
                address,
                fps,
                tell=tell,
                allow_private=allow_private,
                start_seconds=now_seconds,
                seen_seconds=seen_seconds,
                timing=timing,
            )

        return self._watch_feed(session, address.shown, session_id, open_feed)

    def watch_pushed(self, session: Session, session_id: str) -> LiveWatch:
        """Begins to watch what is pushed into the returned watch's `feed`, a `PushedSource`."""
        title = f"push:{session_id}"
        fps = session.config.read.fps

        def open_feed(tell: Tell, now_seconds: float, seen_seconds: float | None) -> PushedSource:
            return PushedSource(
                title, fps, tell=tell, start_seconds=now_seconds, seen_seconds=seen_seconds
            )

        return self._watch_feed(session, title, session_id, open_feed)

    def _watch_feed(
        self,
        session: Session,
        title: str,
        session_id: str,
        open_feed: Callable[[Tell, float, float | None], LiveFeed],
    ) -> LiveWatch:
        session.follow(title)
        watching = LiveWatch(session, session_id, open_feed, self.events)
        watching.start()
        return watching

    def run(self, work: Callable[[], T]) -> T:
        """Runs something short on the device's thread, before the next pass; gives its result or
        raises its error.
        """
        if self._is_worker():
            return work()
        job = QueryJob(work)
        self._add(job)
        result: T = job.done.result()
        return result

    def prefill(
        self, work: PrefillWork, num_tokens: int, is_live: bool
    ) -> Future[list[PrefilledChunk]]:
        """Chunks go through tower and LLM when it is their turn, maybe in a pass with other
        streams'.
        """
        job = PrefillJob(work, num_tokens, is_live)
        self._add(job)
        return job.done

    def run_in_background(self, run_part: Callable[[], bool]) -> Future[None]:
        """Work in short parts, each called on the device's thread when live watching and questions
        leave time, until one gives True.
        """
        job = BackgroundJob(run_part)
        self._add(job)
        return job.done

    def answer(self, retrieve: Callable[[], AnswerRequest]) -> Iterator[str]:
        """An answer piece by piece, generated in one batch with all others that are under way.

        retrieve: gives the question with its context; called on the device's thread, as it needs
        the model. A caller that closes the iterator frees the answer's place at the next step.
        Raises LonglookError if too many questions are waiting already.
        """
        if self.scheduler.num_queries + len(self._waiting) >= MAX_WAITING_QUESTIONS:
            raise LonglookError(
                f"{MAX_WAITING_QUESTIONS} questions are waiting already; ask again in a moment"
            )
        stream = AnswerStream()
        try:
            self.run(lambda: self._begin_answer(stream, retrieve))
            while (piece := stream.next_piece()) is not None:
                yield piece
        finally:
            stream.is_dropped = True

    def step(self) -> None:
        """One step of the worker: the next batch, run and accounted for."""
        batch = self.scheduler.next_batch()
        if batch is None:
            return
        step, jobs = batch
        started = time.perf_counter()
        try:
            for job in jobs:
                if isinstance(job, QueryJob):
                    _complete(job.done, job.run)
            if step is Step.DECODE:
                self._decode()
            elif step is Step.PREFILL:
                self._prefill([job for job in jobs if isinstance(job, PrefillJob)])
            for job in jobs:
                if isinstance(job, BackgroundJob):
                    self._run_part(job)
        except BaseException as error:
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            raise
        self._drop_abandoned()
        self._admit()
        self.scheduler.complete(step, time.perf_counter() - started, len(self._answers))

    def _begin_answer(self, stream: AnswerStream, retrieve: Callable[[], AnswerRequest]) -> None:
        """The answer joins the batch at once if there is room for it, else when others have
        ended.
        """
        stream.request = retrieve()
        self._waiting.append(stream)
        self._admit()

    def _admit(self) -> None:
        """Lets waiting answers join in the order of their coming, as far as their contexts fit on
        the device.
        """
        while self._waiting:
            stream = self._waiting[0]
            request = stream.request
            assert request is not None
            needed_bytes = self._batch.memory_bytes_with(request.context, request.options)
            if self._answers and needed_bytes > self.config.answer.context_bytes:
                return
            self._waiting.pop(0)
            if stream.is_dropped:
                continue
            try:
                (stream.pending,) = self._batch.add_all([request])
            except Exception as error:  # noqa: BLE001  told to who asked, where it is raised again
                stream.fail(_told(error))
                continue
            if not stream.deliver():
                self._answers.append(stream)

    def _decode(self) -> None:
        try:
            self._batch.step()
        except Exception as error:  # noqa: BLE001  told to all who asked, where it is raised again
            for stream in self._answers:
                stream.fail(_told(error))
                stream.is_dropped = True
            return
        self._answers = [stream for stream in self._answers if not stream.deliver()]

    def _drop_abandoned(self) -> None:
        for stream in self._answers:
            if stream.is_dropped and stream.pending is not None:
                self._batch.remove(stream.pending)
        self._answers = [stream for stream in self._answers if not stream.is_dropped]
        self._waiting = [stream for stream in self._waiting if not stream.is_dropped]

    def _prefill(self, jobs: Sequence[PrefillJob]) -> None:
        """Several streams in one pass; if that fails, each by itself, so that one cannot fail the
        others.
        """
        try:
            results = run_prefills(self.model, [job.work for job in jobs])
        except Exception as error:  # noqa: BLE001  told to who watches, where it is raised again
            if len(jobs) == 1:
                jobs[0].done.set_exception(_told(error))
                return
            for job in jobs:
                self._prefill([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.done.set_result(result)

    def _run_part(self, job: BackgroundJob) -> None:
        try:
            is_done = job.run_part()
        except Exception as error:  # noqa: BLE001  raised again where the result is waited for
            job.done.set_exception(_told(error))
            return
        if is_done:
            job.done.set_result(None)
        else:
            self.scheduler.add(job)

    def _add(self, job: Job) -> None:
        if self.scheduler.add(job):
            threads = torch.get_num_threads()
            self._worker = threading.Thread(
                target=self._work, args=(threads,), name="device", daemon=True
            )
            _ENGINES.add(self)
            self._worker.start()

    def stop(self) -> None:
        """Ends the worker after the step under way; nothing can be watched or asked any more."""
        self.scheduler.stop()
        if self._worker is not None and not self._is_worker():
            self._worker.join(STOP_SECONDS)

    def _is_worker(self) -> bool:
        return threading.current_thread() is self._worker

    def _work(self, num_threads: int) -> None:
        """The worker thread; num_threads: of torch's operators, which torch keeps for each thread
        that calls them.
        """
        torch.set_num_threads(num_threads)
        try:
            with torch.no_grad():
                while self.scheduler.wait(IDLE_SECONDS):
                    self.step()
        except BaseException as error:
            self._fail_all(error)
            raise

    def _fail_all(self, error: BaseException) -> None:
        """Raises the error wherever something is waited for: the worker ends, and nobody may wait
        for it for ever.
        """
        for job in self.scheduler.abandon():
            job.done.set_exception(error)
        for stream in [*self._answers, *self._waiting]:
            stream.fail(error)
        self._batch = self.model.answer_batch()
        self._answers, self._waiting = [], []


def _complete(done: Future[T], run: Callable[[], T]) -> None:
    try:
        done.set_result(run())
    except Exception as error:  # noqa: BLE001  raised again where the result is waited for
        done.set_exception(_told(error))


def _told(error: Exception) -> Exception:
    """The error as its caller should see it: a device without memory is something that a person can
    mend.
    """
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    full = MemoryFullError(NO_DEVICE_MEMORY)
    full.__cause__ = error
    return full


def kept_settings(config: Config) -> dict[str, dict[str, Any]]:
    """What a session that goes on keeps, so that it becomes what it would have been without the
    break.
    """
    knobs = (
        "chunk_frames",
        "max_chunk_seconds",
        "borders",
        "prefill_chunks",
        "window_chunks",
        "carrier_tokens",
        "kv_bits",
    )
    memory = {knob: getattr(config.memory, knob) for knob in knobs}
    return {
        "read": {"fps": config.read.fps},
        "memory": memory,
        "prune": asdict(config.prune),
        "reuse": asdict(config.reuse),
    }


def kind_of(model: VideoLLM) -> Kind:
    """What the chunks of this model's sessions have in common."""
    dtype = str(model.dtype).removeprefix("torch.")
    return Kind(model.model_id, dtype, model.num_layers, model.num_kv_heads, model.head_dim)


def load_engine(
    model: str = "demo",
    device: str = "auto",
    dtype: str = "auto",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Engine:
    """An engine for a model by name, with its profile where it has one; arguments as for
    `load_model`.
    """
    loaded, config = load_model(model, device, dtype, settings)
    return Engine(loaded, find_profile(loaded), config)


def load_model(
    model: str = "demo",
    device: str = "auto",
    dtype: str = "auto",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[VideoLLM, Config]:
    """A model by name, and the defaults, changed by what the checkpoint recommends, changed by
    `settings`.

    Raises ModelError for a model that cannot be had, LonglookError for settings that make no sense.
    """
    config = recommended_config(model).overridden(settings or {})
    return load(model, device, dtype), config
