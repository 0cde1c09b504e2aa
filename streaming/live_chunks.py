"""Chunks of a source that has to be waited for: a camera, a stream, frames that a browser sends.

A thread takes the frames as they come. A chunk is complete by the rules of its builder, or once its
first frame has waited for long enough by the clock, so that a source of one frame a minute is seen,
or when somebody asks. Knows nothing of models, sessions or how frames are measured.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from frames import Frame

MAX_COMPLETE = 2  # chunks that wait to be taken; then the source is held up, or drops frames
Chunk = TypeVar("Chunk")
Diff = TypeVar("Diff")


class Builder(Protocol[Chunk]):
    """What puts frames together to chunks; see `keyframes/chunk_builder.py`."""

    @property
    def num_open(self) -> int: ...
    def finish(self) -> list[Chunk]: ...
    def close_open(self) -> list[Chunk]: ...


class LiveChunks(Generic[Chunk]):
    """`wait` until there is something to take, then `take_complete`; `take_all` may be called by
    another thread at any time. Those who take must take turns, so that chunks stay in order.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        builder: Builder[Chunk],
        add: Callable[[Frame], Sequence[Chunk]],
        max_seconds: float,
    ) -> None:
        """add: puts the next frame into the builder and gives the chunks that it completes.
        max_seconds: by the clock, that a frame waits for the others of its chunk at most.
        """
        self._frames = frames
        self._builder = builder
        self._add = add
        self._max_seconds = max_seconds
        self._changed = threading.Condition()
        self._complete: deque[Chunk] = deque()
        self._opened_at = 0.0  # when the first frame of the open chunk came, by time.monotonic
        self._error: Exception | None = None
        self._failure: Exception | None = None
        self._has_ended = False
        self._is_stopped = False
        self._is_woken = False
        self._thread = threading.Thread(target=self._read, name="live-chunks", daemon=True)
        self._thread.start()

    def wait(self) -> bool:
        """Waits for a complete chunk, for an open one to have waited long enough, or for `wake`.

        False at the end of the frames, when nothing is left to be taken, and after `stop`. Raises
        what the frames ended with, once all of them have been taken.
        """
        with self._changed:
            while not (self._complete or self._is_stopped or self._is_woken or self._is_due()):
                if self._failure is not None:
                    raise self._failure
                if self._has_ended:
                    self._complete.extend(self._builder.finish())
                    if not self._complete:
                        break
                    continue
                self._changed.wait(self._seconds_left())
            if self._is_stopped:
                return False
            if self._complete or self._is_woken or not self._has_ended:
                self._is_woken = False
                return True
            error, self._error = self._error, None
            if error is not None:
                raise error
            return False

    def take_complete(self) -> list[Chunk]:
        """The oldest complete chunk; if there is none and the open one has waited long enough, that
        one. Empty if another thread has taken it.
        """
        with self._changed:
            if not self._complete and self._is_due():
                self._complete.extend(self._builder.close_open())
            taken = [self._complete.popleft()] if self._complete else []
            self._changed.notify_all()
            return taken

    def take_all(self) -> list[Chunk]:
        """All frames that have come so far: the complete chunks and the open one."""
        with self._changed:
            taken = [*self._complete, *self._builder.close_open()]
            self._complete.clear()
            self._changed.notify_all()
            return taken

    def wake(self) -> None:
        """Ends a `wait`, although there may be nothing to take."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Ends it with an error: what another thread has taken could not be kept."""
        with self._changed:
            self._failure = error
            self._complete.clear()
            self._is_woken = False
            self._changed.notify_all()

    def stop(self) -> None:
        """Takes no more frames; the thread ends when the source gives its next one, or ends."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _is_due(self) -> bool:
        return self._builder.num_open > 0 and self._seconds_left() == 0.0

    def _seconds_left(self) -> float | None:
        """Until the open chunk has waited for long enough; None while there is none."""
        if not self._builder.num_open:
            return None
        return max(0.0, self._opened_at + self._max_seconds - time.monotonic())

    def _read(self) -> None:
        """The thread: every frame into the builder."""
        try:
            for frame in self._frames:
                if not self._put(frame):
                    break
            if isinstance(self._frames, Generator):
                self._frames.close()
        except Exception as error:  # noqa: BLE001 - handed over: `wait` raises it
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _put(self, frame: Frame) -> bool:
        """False when nobody wants more."""
        with self._changed:
            while len(self._complete) >= MAX_COMPLETE and not self._is_stopped:
                self._changed.wait()
            if self._is_stopped or self._failure is not None:
                return False
            was_open = self._builder.num_open > 0
            complete = self._add(frame)
            self._complete.extend(complete)
            if complete or not was_open:
                self._opened_at = time.monotonic()
            self._changed.notify_all()
            return True
