"""Reads a source ahead of its consumer, on one thread, through one bounded queue.

When the queue is full, `wait` holds the source up (files), `drop_oldest` throws the oldest frame
away and counts it (live). Errors of the source are raised at the consumer. A source that stands
still is given up, or read by another thread if it is live. Knows nothing of files or codecs.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Literal, Protocol

from frames import Frame
from streaming.sources.trouble import SourceError

QUEUE_FRAMES = 32  # decoded ahead of the model: a pass of a small model takes as many
STALL_SECONDS = 20.0  # a disk that wakes up, or a network drive, is slow for a few seconds only
_QUEUE_BYTES = 512 << 20  # no more pixels wait in this process, however large: 20 frames of 4K
_JOIN_SECONDS = 5.0  # a thread inside a C call is not waited for any longer
_JOIN_LIVE_SECONDS = 1.0  # one that waits for a camera ends by itself when its read times out
IDLE_SECONDS = 0.5  # between calls of `on_idle`


class Source(Protocol):
    """Where frames come from."""

    @property
    def progress(self) -> int:
        """Grows as long as the source is at work, whether or not a frame comes of it."""
        ...

    def frames(self) -> Iterator[Frame]:
        """The frames in order; called on the reader's thread."""
        ...

    def close(self) -> None:
        """End `frames()` soon; called from another thread."""
        ...


class Watchdog:
    """Tells when something that should move has stood still for too long."""

    def __init__(self, stall_seconds: float, now_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._progress: int | None = None
        self._moved_seconds = now_seconds

    def is_stalled(self, progress: int, now_seconds: float) -> bool:
        """Step with the current progress and time."""
        if progress != self._progress:
            self._progress, self._moved_seconds = progress, now_seconds
        return now_seconds - self._moved_seconds >= self._stall_seconds


class Reader:
    """Iterate it once, best in a `with`; leaving stops the source and joins the thread.

    The queue holds `queue_frames`, or fewer of very large ones. `dropped` counts the frames thrown
    away. Raises, while iterating, whatever the source raised, after the frames before it; and
    SourceError when the source has neither given a frame nor made progress for `stall_seconds` of
    waiting. A decoder that hangs inside a C call cannot be ended: its daemon thread is left behind,
    and goes with the process. With `drop_oldest` the source is live: it is never given up, but read
    by another thread, in a call of `frames` that supersedes the one that hangs.

    on_idle: called now and then by the consumer's thread while it waits for a frame.
    """

    def __init__(
        self,
        source: Source,
        queue_frames: int = QUEUE_FRAMES,
        stall_seconds: float = STALL_SECONDS,
        when_full: Literal["wait", "drop_oldest"] = "wait",
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        if queue_frames < 1 or stall_seconds <= 0:
            raise ValueError(
                f"need room for a frame and time to wait, not {queue_frames} and {stall_seconds} s"
            )
        self.dropped = 0
        self._source = source
        self._queue_frames = queue_frames
        self._stall_seconds = stall_seconds
        self._drops = when_full == "drop_oldest"
        self._queue: deque[Frame] = deque()
        self._queue_bytes = 0
        self._changed = threading.Condition()
        self._ended = False  # the thread will put nothing more
        self._stopping = False  # the consumer wants nothing more
        self._gave_up = False
        self._error: Exception | None = None
        self._on_idle = on_idle
        self._thread = self._new_thread()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        _OPEN.add(self)
        self._thread.start()
        try:
            while (frame := self._take()) is not None:
                yield frame
        finally:
            self.close()

    def close(self) -> None:
        """Stop reading and join the thread. Frames still waiting are thrown away."""
        _OPEN.discard(self)
        with self._changed:
            self._stopping = True
            self._queue.clear()
            self._changed.notify_all()
        self._source.close()
        if self._thread.is_alive() and not self._gave_up:
            self._thread.join(_JOIN_LIVE_SECONDS if self._drops else _JOIN_SECONDS)

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._fill, name="reader", daemon=True)

    def _is_superseded(self) -> bool:
        """Whether this thread hung, and another one reads in its place."""
        return threading.current_thread() is not self._thread

    def _fill(self) -> None:
        """The thread: every frame into the queue, and the end in any case."""
        try:
            frames = self._source.frames()
            for frame in frames:
                if not self._put(frame):
                    break
            if isinstance(frames, Generator):
                frames.close()
        except Exception as error:  # noqa: BLE001 - not handled but handed over: the consumer raises it
            if not self._is_superseded():
                self._error = error
        finally:
            with self._changed:
                if not self._is_superseded():
                    self._ended = True
                self._changed.notify_all()

    def _put(self, frame: Frame) -> bool:
        """False when the consumer has gone."""
        with self._changed:
            while self._is_full(frame) and not self._stopping:
                if self._drops:
                    self._pop()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._stopping or self._is_superseded():
                return False
            self._queue.append(frame)
            self._queue_bytes += frame.image.nbytes
            self._changed.notify_all()
            return True

    def _is_full(self, frame: Frame) -> bool:
        share_bytes = _QUEUE_BYTES // max(1, len(_OPEN))
        too_heavy = bool(self._queue) and self._queue_bytes + frame.image.nbytes > share_bytes
        return len(self._queue) >= self._queue_frames or too_heavy

    def _pop(self) -> Frame:
        frame = self._queue.popleft()
        self._queue_bytes -= frame.image.nbytes
        self._changed.notify_all()
        return frame

    def _take(self) -> Frame | None:
        """The next frame, None at the end."""
        watchdog = Watchdog(self._stall_seconds, time.monotonic())
        slice_seconds = min(self._stall_seconds / 8, IDLE_SECONDS)
        while True:
            with self._changed:
                if not self._queue and not self._ended:
                    self._changed.wait(slice_seconds)
                if self._queue:
                    return self._pop()
                if self._ended:
                    break
            if self._on_idle is not None:
                self._on_idle()
            if watchdog.is_stalled(self._source.progress, time.monotonic()):
                self._give_up()
                watchdog = Watchdog(self._stall_seconds, time.monotonic())
        if self._error is not None:
            raise self._error
        return None

    def _give_up(self) -> None:
        """A thread inside a C call can't be ended; a live source is read on by another one."""
        if not self._drops:
            self._gave_up = True
            raise SourceError(
                f"The source gave no picture for {self._stall_seconds:g} s; it was given up."
            )
        with self._changed:
            self._thread = self._new_thread()
        self._thread.start()


_OPEN: weakref.WeakSet[Reader] = weakref.WeakSet()  # readers share the bytes that may wait
