"""Frames that a browser or a program pushes: JPEG pictures with the time they were taken.

The sender's clock is used for distances only, as it may be wrong by hours. Between two senders
there is a gap, as with any camera. Knows nothing of the way they come.
"""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from errors import LonglookError
from frames import Frame
from streaming.sources.live_times import LiveTimes
from streaming.sources.source import (
    SourceClosed,
    SourceDown,
    SourceHealth,
    SourceLive,
    SourceThinned,
    State,
    Tell,
    Thinning,
)
from streaming.sources.stream_clock import Arrival, StreamClock
from streaming.sources.trouble import Trouble

MAX_JPEG_BYTES = 4 << 20
MAX_PIXELS = 4096 * 4096  # checked in the header, before anything is decoded
WAIT_SLICE_SECONDS = 1.0  # between signs of life while nothing comes
SENDER_BUSY = "Somebody else sends into this session already."


class Pushed(Enum):
    """What became of a pushed picture."""

    TAKEN = "taken"
    NOT_SAMPLED = "not sampled"
    STALE = "stale"
    BUSY = "busy"


class PictureError(LonglookError):
    """What was pushed is no picture that is taken here."""


class PushedSource:
    """A live source that is fed with `push`, from any thread, by one sender at a time."""

    is_live = True

    def __init__(
        self,
        title: str,
        fps: float = 2.0,
        *,
        tell: Tell | None = None,
        start_seconds: float = 0.0,
        seen_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.warnings: list[str] = []
        self.progress = 0
        self.health = SourceHealth()
        self._tell = tell or (lambda event: None)
        self._clock = clock
        self._started = clock() - start_seconds
        self._times = LiveTimes(fps, seen_seconds, self._tell)
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._stream_clock: StreamClock | None = None  # None while nobody sends
        self._index = 0
        self._is_closed = False

    @property
    def now_seconds(self) -> float:
        """The session's clock."""
        return self._clock() - self._started

    def attach(self) -> None:
        """A sender has come. Raises LonglookError where there is another one."""
        with self._changed:
            if self._stream_clock is not None:
                raise LonglookError(SENDER_BUSY)
            self._stream_clock = StreamClock(self.now_seconds, by_arrival=False)

    def detach(self) -> None:
        """The sender has gone; another one, or the same, may come."""
        with self._changed:
            if self._stream_clock is None:
                return
            self._stream_clock = None
            self._times.missed = Trouble.ENDED.code
            self._update(state=State.DOWN, trouble=Trouble.ENDED)
        self._tell(SourceDown(self.now_seconds, Trouble.ENDED, 0.0))

    def push(self, jpeg: bytes, taken_seconds: float) -> Pushed:
        """The next picture, and when it was taken by the sender's clock.

        Raises PictureError for what is no JPEG, or too large; LonglookError without `attach`.
        """
        picture = read_jpeg(jpeg)
        with self._changed:
            if self._stream_clock is None:
                raise LonglookError("Nobody has been let in to send.")
            if self._frames:  # the one before has not been taken yet
                return Pushed.BUSY
            # never from a cache, so there is nothing to hold
            arrival = Arrival(taken_seconds, self.now_seconds, WAIT_SLICE_SECONDS, 0.0)
            (seconds,) = self._stream_clock.seconds(arrival)
            self._update(
                decoded=self.health.decoded + 1, lag_seconds=self._stream_clock.lag_seconds
            )
            return self._admit(picture, seconds)

    def _admit(self, picture: Image.Image, seconds: float) -> Pushed:
        is_first = self.health.state is not State.LIVE
        if is_first:
            connections = self.health.connections + 1
            self._update(state=State.LIVE, trouble=None, connections=connections)
            self._tell(SourceLive(seconds, "jpeg", picture.width, picture.height))
        admitted = self._times.admit(seconds, is_first)
        if admitted is None:
            self._update(stale=self.health.stale + 1)
            return Pushed.STALE
        if not self._times.is_sampled(admitted, self.health.thinning):
            return Pushed.NOT_SAMPLED
        image = np.asarray(picture.convert("RGB"), np.uint8)
        self._frames.append(Frame(image, admitted, self._index))
        self._index += 1
        self._update(sampled=self.health.sampled + 1)
        self._changed.notify_all()
        return Pushed.TAKEN

    def thin(self, level: Thinning) -> None:
        if level is not self.health.thinning:
            self._update(thinning=level)
            self._tell(SourceThinned(self.now_seconds, level))

    def retry_now(self) -> None:
        """There is nothing to try: the sender comes by itself."""

    def frames(self) -> Iterator[Frame]:
        try:
            while True:
                self.progress += 1
                with self._changed:
                    if not self._frames and not self._is_closed:
                        self._changed.wait(WAIT_SLICE_SECONDS)
                    if self._is_closed:
                        return
                    frame = self._frames.popleft() if self._frames else None
                if frame is not None:
                    yield frame
        finally:
            self._update(state=State.CLOSED)
            self._tell(SourceClosed(self.now_seconds))

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _update(self, **changes: Any) -> None:
        self.health = replace(self.health, **changes)


def read_jpeg(data: bytes) -> Image.Image:
    """The picture, decoded. Size and kind are checked first. Raises PictureError."""
    if len(data) > MAX_JPEG_BYTES:
        raise PictureError(f"A picture has at most {MAX_JPEG_BYTES:,} bytes, not {len(data):,}.")
    try:
        picture = Image.open(io.BytesIO(data), formats=("JPEG",))
        if picture.width * picture.height > MAX_PIXELS:
            raise PictureError(f"A picture of {picture.width}x{picture.height} is too large.")
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError("What was sent is no JPEG picture.") from error
    return picture
