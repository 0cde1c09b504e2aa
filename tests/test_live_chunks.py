"""A live source is asked about as of its last frame, however slowly its frames come."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import Config, MemoryConfig, PruneConfig, ReuseConfig
from errors import LonglookError
from frames import Frame
from keyframes.chunk_builder import ChunkBuilder, ChunkFrames, ChunkLimits
from keyframes.detector import KeyframeDetector
from keyframes.frame_diff import FrameDiff, measure_frames
from streaming.engine import Engine
from streaming.events import Answer, Watched
from streaming.live_chunks import MAX_COMPLETE, LiveChunks
from streaming.session import Session
from tests.gated import Gate, GatedModel
from tests.test_batching import TOLERANCE, scenes
from tests.tiny import noise_frames
from tests.watching import tiny_engine

FOREVER = 1000.0  # seconds


class Camera:
    """Gives the frames that a test sends, and ends when it says so."""

    def __init__(self) -> None:
        self.num_taken = 0
        self._sent: queue.Queue[Frame | Exception | None] = queue.Queue()

    def send(self, *frames: Frame) -> None:
        for frame in frames:
            self._sent.put(frame)

    def end(self, error: Exception | None = None) -> None:
        self._sent.put(error)

    def frames(self) -> Iterator[Frame]:
        while True:
            frame = self._sent.get(timeout=100)
            if frame is None:
                return
            if isinstance(frame, Exception):
                raise frame
            self.num_taken += 1
            yield frame


def wait_until(condition: threading.Event) -> None:
    assert condition.wait(60)


def live_chunks(camera: Camera, max_frames: int, max_seconds: float) -> LiveChunks[ChunkFrames]:
    limits = ChunkLimits(max_frames, math.inf)
    builder = ChunkBuilder(limits, KeyframeDetector(), waits=False)
    return LiveChunks(
        camera.frames(), builder, lambda frame: builder.add(measure_frames([frame])), max_seconds
    )


def indices(chunks: list[ChunkFrames]) -> list[list[int]]:
    return [[frame.index for frame in chunk] for chunk in chunks]


def all_of(live: LiveChunks[ChunkFrames]) -> list[list[int]]:
    found = []
    while live.wait():
        found += indices(live.take_complete())
    return found


def test_chunks_come_in_order_and_the_rest_at_the_end() -> None:
    camera = Camera()
    camera.send(*noise_frames(7, 8, 8))
    camera.end()
    assert all_of(live_chunks(camera, 3, FOREVER)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_frame_is_not_kept_waiting_for_the_next_one() -> None:
    """By the clock: the next frame may come in a minute, or never."""
    camera = Camera()
    live = live_chunks(camera, 8, max_seconds=0.01)
    for frame in noise_frames(3, 8, 8):
        camera.send(frame)
        assert live.wait() and indices(live.take_complete()) == [[frame.index]]
    camera.end()
    assert not live.wait()


def test_all_that_has_come_can_be_taken_at_any_time() -> None:
    camera = Camera()
    camera.send(*noise_frames(5, 8, 8))
    live = live_chunks(camera, 3, FOREVER)
    taken: list[list[int]] = []
    assert live.wait()
    while sum(map(len, taken)) < 5:
        taken += indices(live.take_all())
    assert [index for chunk in taken for index in chunk] == [0, 1, 2, 3, 4]
    camera.send(*noise_frames(7, 8, 8)[5:])
    camera.end()
    assert all_of(live) == [[5, 6]]


def test_a_source_that_is_too_fast_is_held_up() -> None:
    camera = Camera()
    camera.send(*noise_frames(40, 8, 8))
    camera.end()
    live = live_chunks(camera, 2, FOREVER)
    assert live.wait()
    most = 2 * MAX_COMPLETE + 1
    assert camera.num_taken <= most
    found = all_of(live)
    assert [index for chunk in found for index in chunk] == list(range(40))


def test_an_error_comes_after_the_frames_before_it_and_stopping_ends_a_wait() -> None:
    camera = Camera()
    camera.send(*noise_frames(3, 8, 8))
    camera.end(OSError("unplugged"))
    live = live_chunks(camera, 2, FOREVER)
    found = []
    with pytest.raises(OSError, match="unplugged"):
        while live.wait():
            found += indices(live.take_complete())
    assert found == [[0, 1], [2]]
    waiting = live_chunks(Camera(), 2, FOREVER)
    ended = threading.Event()

    def wait() -> None:
        assert not waiting.wait()
        ended.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    waiting.stop()
    wait_until(ended)


# Sessions


def watching(session: Session, camera: Camera) -> tuple[threading.Thread, list[Watched]]:
    told: list[Watched] = []

    def watch() -> None:
        told.extend(e for e in session.watch(camera.frames()) if isinstance(e, Watched))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread, told


def wait_for_open(session: Session, num_frames: int) -> None:
    """Until the session has so many frames in its open chunk, and nothing under way."""
    pause = threading.Event()
    for _ in range(6000):
        live = session._live
        is_open = live is not None and live._builder.num_open == num_frames
        if live is not None and is_open and not live._complete and not session._ingesting.locked():
            return
        pause.wait(0.01)
    raise AssertionError("the frames were not taken")


def answer_of(session: Session, question: str) -> Answer:
    return next(event for event in session.ask(question) if isinstance(event, Answer))


def slow_settings(**memory: float) -> Config:
    """Nothing ends a chunk but its frames and questions."""
    knobs = {"chunk_frames": 16, "max_chunk_seconds": FOREVER, **memory}
    return Config(memory=MemoryConfig(**knobs))  # type: ignore[arg-type]


def test_a_question_ends_the_open_chunk_and_now_is_the_last_frame() -> None:
    """Fifteen of sixteen frames have come in: they are seen, and what comes later is as well."""
    camera, frames = Camera(), noise_frames(40, 2, 2)
    session = Engine(GatedModel(), None, slow_settings()).open()
    thread, told = watching(session, camera)
    camera.send(*frames[:15])
    wait_for_open(session, 15)
    found = answer_of(session, "What is shown now?")
    assert session.stats.frames_read == 15 and session.seen_seconds == 7.0
    assert found.evidence[0].stop_seconds == 7.5
    camera.send(*frames[15:20])
    wait_for_open(session, 5)
    assert answer_of(session, "What is shown now?").evidence[0].stop_seconds == 10.0
    camera.send(*frames[20:])
    camera.end()
    thread.join(60)
    assert session.memory.spans() == [(0.0, 7.0), (7.5, 9.5), (10.0, 17.5), (18.0, 19.5)]
    assert [event.stats.frames_read for event in told] == [15, 20, 36, 40], "all are told of"
    session.close()


def test_without_a_frame_there_is_nothing_to_ask_about() -> None:
    camera = Camera()
    session = Engine(GatedModel(), None, slow_settings()).open()
    thread, _ = watching(session, camera)
    with pytest.raises(LonglookError, match="nothing has been watched"):
        list(session.ask("What is shown now?"))
    camera.end()
    thread.join(60)


def test_one_frame_a_minute_is_seen_without_the_next_one() -> None:
    camera, told = Camera(), threading.Semaphore(0)
    session = Engine(GatedModel(), None, slow_settings(max_chunk_seconds=0.02)).open()

    def watch() -> None:
        for event in session.watch(camera.frames()):
            if isinstance(event, Watched):
                told.release()

    threading.Thread(target=watch, daemon=True).start()
    for k, frame in enumerate(noise_frames(3, 2, 2)):
        camera.send(replace(frame, pts_seconds=60.0 * k))
        assert told.acquire(timeout=60), "it waits for the next frame"
    assert session.memory.spans() == [(0.0, 0.0), (60.0, 60.0), (120.0, 120.0)]
    camera.end()


def test_a_question_that_waits_for_the_first_chunk_of_a_file_is_answered() -> None:
    model = GatedModel()
    model.gates[0] = first = Gate()
    session = Engine(model, None, slow_settings()).open()
    frames = noise_frames(16, 2, 2)
    watcher = threading.Thread(target=lambda: list(session.watch(frames, ahead=True)), daemon=True)
    watcher.start()
    assert first.reached.wait(60)
    answers: list[Answer] = []
    asker = threading.Thread(target=lambda: answers.append(answer_of(session, "q")), daemon=True)
    asker.start()
    first.open()
    asker.join(60)
    watcher.join(60)
    assert answers[0].text and session.stats.chunks == 1


@pytest.mark.parametrize(("prune", "reuse"), [("none", "none"), ("novelty", "novelty")])
def test_chunks_that_questions_ended_are_those_of_a_plain_run_with_the_same_borders(
    checkpoint: Path, prune: str, reuse: str
) -> None:
    """Also that the borders matter: other ones give other keys."""
    frames, borders = scenes(30), [7, 12, 21]

    def engine() -> Engine:
        made = tiny_engine(checkpoint, max_chunk_seconds=FOREVER)
        memory = replace(made.config.memory, chunk_frames=16)
        made.config = replace(
            made.config, memory=memory, prune=PruneConfig(prune, 0.5), reuse=ReuseConfig(reuse)
        )
        return made

    camera, session = Camera(), engine().open()
    thread, _ = watching(session, camera)
    start = 0
    for stop in borders:
        camera.send(*frames[start:stop])
        wait_for_open(session, stop - start)
        answer_of(session, "What is shown now?")
        start = stop
    camera.send(*frames[start:])
    camera.end()
    thread.join(60)

    plain = engine().open()
    builder_of = plain._begin_ingest().chunk_builder

    class Bordered(ChunkBuilder):
        """Ends chunks at these borders, whoever asks."""

        def add(self, diffs: Sequence[FrameDiff]) -> list[ChunkFrames]:
            (diff,) = diffs
            complete = super().add([diff])
            ends = diff.frame.index + 1 in borders
            return [*complete, *(self.close_open() if ends else [])]

    ingest = plain._begin_ingest()
    stock = builder_of(is_live=True)
    bordered = Bordered(stock._limits, ingest._detector, waits=False)
    ingest.chunk_builder = lambda is_live: bordered  # type: ignore[method-assign]
    list(plain.watch(frames))
    assert plain.memory.spans() == session.memory.spans()
    numbers = range(plain.memory.num_chunks)
    for ours, theirs in zip(session.memory.get(numbers), plain.memory.get(numbers), strict=True):
        assert float((ours.keys - theirs.keys).abs().max()) < TOLERANCE
        assert float((ours.values - theirs.values).abs().max()) < TOLERANCE
    whole = engine().open()
    list(whole.watch(frames))
    assert whole.memory.num_chunks < plain.memory.num_chunks
    one, other = whole.memory.get([1])[0].keys, plain.memory.get([1])[0].keys
    assert one.shape != other.shape or not torch.allclose(one, other, atol=0.01)
