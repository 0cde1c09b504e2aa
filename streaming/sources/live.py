"""A camera or network stream that is read for as long as anyone wants, whatever happens to it.

    connecting -> live -> down (for a while) -> connecting ... -> closed

The end of a stream and a dead server look the same, so every end means to connect again. What was
missed is told as a gap, and the session's clock goes on meanwhile. Knows nothing of queues.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from frames import Frame, Sampler
from streaming.sources.address import Address
from streaming.sources.connection import Connection, Shot, as_rgb
from streaming.sources.diagnosis import trouble_of
from streaming.sources.live_times import LiveTimes
from streaming.sources.source import (
    DEFAULT_TIMING,
    SourceClosed,
    SourceDown,
    SourceHealth,
    SourceLive,
    SourceThinned,
    State,
    Tell,
    Thinning,
    Timing,
)
from streaming.sources.trouble import Trouble, TroubleError

WAIT_SLICE_SECONDS = 1.0  # between signs of life while down


class _Superseded(Exception):  # noqa: N818  no error
    """Another thread reads the source now."""


class LiveSource:
    """Frames of a live source, `fps` a second of its own time, with times of the session.

    start_seconds: of the session, now. seen_seconds: up to which it was watched before, if it was:
    what lies between the two is a gap. tell: is called on the reading thread, and must not wait.
    `frames` may be called again, on another thread, where the first one hangs; that one then gives
    nothing more. Raises ValueError for a rate that makes no sense.
    """

    is_live = True

    def __init__(
        self,
        address: Address,
        fps: float = 2.0,
        *,
        tell: Tell | None = None,
        allow_private: bool = True,
        start_seconds: float = 0.0,
        seen_seconds: float | None = None,
        timing: Timing = DEFAULT_TIMING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if fps <= 0:
            raise ValueError(f"fps must be positive, not {fps}")
        self.title = address.shown
        self.warnings: list[str] = []
        self.progress = 0
        self.health = SourceHealth()
        self._address = address
        self._fps = fps
        self._tell = tell or (lambda event: None)
        self._allow_private = allow_private
        self._timing = timing
        self._clock = clock
        self._started = clock() - start_seconds
        self._times = LiveTimes(fps, seen_seconds, self._tell)
        self._index = 0
        self._reader = 0  # which call of `frames` is in charge
        self._closed = threading.Event()
        self._hurry = threading.Event()
        self._random = random.Random()
        self._reformatter = VideoReformatter()

    @property
    def now_seconds(self) -> float:
        """The session's clock."""
        return self._clock() - self._started

    def close(self) -> None:
        """Ends `frames` at its next picture, or when its read times out."""
        self._closed.set()
        self._hurry.set()

    def retry_now(self) -> None:
        """Connects at once where it waits to do so."""
        self._hurry.set()

    def thin(self, level: Thinning) -> None:
        """Gives fewer pictures from the next one on, or all of them again."""
        if level is not self.health.thinning:
            self._update(thinning=level)
            self._tell(SourceThinned(self.now_seconds, level))

    def frames(self) -> Iterator[Frame]:
        self._reader += 1
        reader = self._reader
        if reader > 1:
            self._go_down(Trouble.STUCK, 0.0)
        try:
            yield from self._connected_again_and_again(reader)
        except _Superseded:
            return
        finally:  # also where nobody wants more frames
            if reader == self._reader:
                self._update(state=State.CLOSED)
                self._tell(SourceClosed(self.now_seconds))

    def _connected_again_and_again(self, reader: int) -> Iterator[Frame]:
        num_failures = 0
        while not self._closed.is_set():
            self._update(state=State.CONNECTING)
            num_before = self.health.connections
            trouble = yield from self._connected(reader)
            self._check_in_charge(reader)
            if self._closed.is_set():
                return
            num_failures = 0 if self.health.connections > num_before else num_failures
            num_failures += 1
            self._wait(trouble, num_failures, reader)

    def _connected(self, reader: int) -> Generator[Frame, None, Trouble]:
        """The frames of one connection; returns why it ended."""
        self.progress += 1
        try:
            with Connection(
                self._address, self._allow_private, self._timing, self._now, self._closed
            ) as connection:
                yield from self._read(connection, reader)
        except (FFmpegError, OSError, ValueError, TroubleError, EOFError, LookupError) as error:
            return trouble_of(error)
        return Trouble.ENDED

    def _now(self) -> float:
        return self.now_seconds

    def _read(self, connection: Connection, reader: int) -> Iterator[Frame]:
        only_keyframes = False
        before = self.health
        held = Sampler(self._fps)
        for shot in connection.shots(held.takes):
            self._check_in_charge(reader)
            self.progress += 1
            if self.health.thinning.only_keyframes is not only_keyframes:
                only_keyframes = not only_keyframes
                connection.skip_to_keyframes(only_keyframes)
            self._update(
                decoded=before.decoded + connection.num_decoded,
                damaged=before.damaged + connection.num_damaged,
                lag_seconds=connection.lag_seconds,
                overload_seconds=connection.overload_seconds,
                camera_clock_seconds=connection.camera_clock_seconds,
            )
            if shot is not None:
                yield from self._frame_of(shot, connection)

    def _frame_of(self, shot: Shot, connection: Connection) -> Iterator[Frame]:
        """The frame, if it is its turn. Caches of servers repeat pictures, which are stale."""
        is_first = self.health.state is not State.LIVE
        if is_first:
            self._go_live(shot.picture, connection)
        seconds = self._times.admit(shot.seconds, is_first)
        if seconds is None:
            self._update(stale=self.health.stale + 1)
        elif self._times.is_sampled(seconds, self.health.thinning):
            yield Frame(as_rgb(shot.picture, self._reformatter), seconds, self._index)
            self._index += 1
            self._update(sampled=self.health.sampled + 1)

    def _go_live(self, picture: VideoFrame, connection: Connection) -> None:
        self._update(state=State.LIVE, trouble=None, connections=self.health.connections + 1)
        codec = connection.stream.codec_context.codec.canonical_name
        self._tell(SourceLive(self.now_seconds, codec, picture.width, picture.height))

    def _wait(self, trouble: Trouble, num_failures: int, reader: int) -> None:
        """Down for a while that grows with every failure, a little shorter or longer each time."""
        timing = self._timing
        seconds = min(timing.last_retry, timing.first_retry * 2.0 ** min(num_failures - 1, 20))
        if trouble.is_slow:
            seconds = max(seconds, timing.slow_retry)
        seconds *= self._random.uniform(0.75, 1.25)
        self._go_down(trouble, seconds)
        stop = self._clock() + seconds
        self._hurry.clear()
        while not self._closed.is_set() and (left := stop - self._clock()) > 0:
            self.progress += 1
            self._check_in_charge(reader)
            if self._hurry.wait(min(left, WAIT_SLICE_SECONDS)):
                return

    def _go_down(self, trouble: Trouble, next_try_seconds: float) -> None:
        self._times.missed = trouble.code
        self._update(state=State.DOWN, trouble=trouble)
        self._tell(SourceDown(self.now_seconds, trouble, next_try_seconds))

    def _check_in_charge(self, reader: int) -> None:
        if reader != self._reader:
            raise _Superseded

    def _update(self, **changes: Any) -> None:
        self.health = replace(self.health, **changes)
