"""The reader decodes ahead within bounds, hands errors over, gives a stuck source up, and leaves no
thread behind.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from frames import Frame
from streaming import reader as reader_module
from streaming.reader import Reader, Watchdog
from streaming.sources.file import FileSource, SourceError
from tests.golden import Recipe, make, read_paint, steady

PATIENCE_SECONDS = 60  # with a thread on a busy machine; a limit, not an expectation


def frame(index: int) -> Frame:
    return Frame(np.full((4, 4, 3), index % 256, np.uint8), index / 2, index)


class FakeSource:
    """Gives `count` frames; raises behind them or blocks behind them if told to."""

    def __init__(
        self, count: int | None, error: Exception | None = None, blocks: bool = False
    ) -> None:
        self.given = 0
        self.progress = 0
        self.closed = threading.Event()
        self.released = threading.Event()
        self.ended = threading.Event()
        self._count = count
        self._error = error
        self._blocks = blocks

    def frames(self) -> Iterator[Frame]:
        try:
            for index in itertools.count() if self._count is None else range(self._count):
                if self.closed.is_set():
                    return
                self.given += 1
                self.progress += 1
                yield frame(index)
            if self._blocks:
                self.released.wait(30)
            if self._error is not None:
                raise self._error
        finally:
            self.ended.set()

    def close(self) -> None:
        self.closed.set()


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "reader"]


def test_every_frame_arrives_once_and_in_order() -> None:
    with Reader(FakeSource(500), queue_frames=3) as reader:
        assert [frame.index for frame in reader] == list(range(500))
    assert reader.dropped == 0
    assert reader_threads() == []


def test_the_source_is_held_up_when_the_queue_is_full() -> None:
    source = FakeSource(None)
    with Reader(source, queue_frames=4) as reader:
        for taken, _ in enumerate(itertools.islice(reader, 100), start=1):
            assert source.given <= taken + 4 + 1, "one in the thread's hand, four in the queue"
    assert source.ended.wait(PATIENCE_SECONDS)


def test_a_few_large_frames_fill_the_queue_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_QUEUE_BYTES", 2 * 48)
    source = FakeSource(None)
    with Reader(source, queue_frames=100) as reader:
        for taken, _ in enumerate(itertools.islice(reader, 50), start=1):
            assert source.given <= taken + 2 + 1
        assert reader.dropped == 0


def test_all_readers_of_a_process_share_what_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_QUEUE_BYTES", 8 * 48)
    sources = [FakeSource(None) for _ in range(4)]
    readers = [Reader(source, queue_frames=100) for source in sources]
    frames = [iter(reader) for reader in readers]
    for each in frames:  # from the second on, every one has a smaller share
        next(each)
    for taken in range(2, 30):
        for each, source in zip(frames, sources, strict=True):
            next(each)
            if taken > 10:  # what was ahead when it was alone has been taken
                assert source.given <= taken + 2 + 1, "two in the queue, one in the thread's hand"
    for reader in readers:
        reader.close()


def test_a_live_reader_drops_the_oldest_and_counts_them() -> None:
    source = FakeSource(50)
    with Reader(source, queue_frames=4, when_full="drop_oldest") as reader:
        frames = iter(reader)
        seen = [next(frames).index]
        assert source.ended.wait(PATIENCE_SECONDS)
        seen += [frame.index for frame in frames]
    assert seen[-3:] == [47, 48, 49]
    assert len(seen) <= 5
    assert reader.dropped == 50 - len(seen)


def test_an_error_of_the_source_is_raised_behind_the_frames_before_it() -> None:
    seen: list[int] = []
    with (
        pytest.raises(SourceError, match=r"^the disk is gone$"),
        Reader(FakeSource(5, SourceError("the disk is gone"))) as reader,
    ):
        seen.extend(frame.index for frame in reader)
    assert seen == list(range(5))
    assert reader_threads() == []


def test_an_error_before_the_first_frame_is_raised_too() -> None:
    class Broken(FakeSource):
        def frames(self) -> Iterator[Frame]:
            raise ZeroDivisionError("at once")

    with pytest.raises(ZeroDivisionError, match=r"at once"), Reader(Broken(1)) as reader:
        next(iter(reader))


def test_leaving_early_stops_the_source() -> None:
    source = FakeSource(None)
    with Reader(source, queue_frames=2) as reader:
        for taken in reader:
            if taken.index == 3:
                break
    assert source.closed.is_set()
    assert source.ended.wait(PATIENCE_SECONDS)
    assert reader_threads() == []


def test_an_error_of_the_consumer_stops_the_source_and_is_kept() -> None:
    source = FakeSource(None)
    with pytest.raises(KeyError, match=r"mine"), Reader(source) as reader:
        for _ in reader:
            raise KeyError("mine")
    assert source.ended.wait(PATIENCE_SECONDS)
    assert reader_threads() == []


def test_a_reader_never_iterated_closes_quietly() -> None:
    source = FakeSource(3)
    with Reader(source):
        pass
    assert source.given == 0
    assert source.closed.is_set()


def test_a_stuck_source_is_given_up_after_its_frames() -> None:
    source = FakeSource(3, blocks=True)
    seen: list[int] = []
    with (
        pytest.raises(SourceError, match=r"gave no picture for 1 s"),
        Reader(source, stall_seconds=1.0) as reader,
    ):
        seen.extend(frame.index for frame in reader)
    assert seen == [0, 1, 2]
    source.released.set()
    assert source.ended.wait(PATIENCE_SECONDS), "the thread ends as soon as the source comes back"


def test_progress_without_frames_is_no_stall() -> None:
    watchdog = Watchdog(stall_seconds=20.0, now_seconds=0.0)
    assert not any(
        watchdog.is_stalled(progress, now)
        for progress, now in [(0, 0.0), (0, 19.0), (1, 25.0), (2, 44.0)]
    )
    assert not watchdog.is_stalled(2, 63.9)
    assert watchdog.is_stalled(2, 64.0)


@pytest.mark.parametrize(("queue_frames", "stall_seconds"), [(0, 1.0), (1, 0.0)])
def test_a_reader_needs_room_and_patience(queue_frames: int, stall_seconds: float) -> None:
    with pytest.raises(ValueError, match=r"need room for a frame and time to wait"):
        Reader(FakeSource(1), queue_frames, stall_seconds)


def test_a_file_read_ahead_is_the_file(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", steady(300, 30), Recipe())
    with Reader(FileSource(clip.path, fps=10.0), queue_frames=2) as reader:
        frames = list(reader)
    assert [read_paint(frame.image) for frame in frames] == list(range(0, 300, 3))


def test_leaving_a_file_early_does_not_read_it_to_its_end(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", steady(1000, 30), Recipe())
    source = FileSource(clip.path, fps=30.0)
    with Reader(source, queue_frames=2) as reader:
        next(iter(reader))
    assert 0 < source.progress < 500
    assert reader_threads() == []
