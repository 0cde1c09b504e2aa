"""Watches a live source into a session, on a thread of its own, for as long as it is wanted.

What happens is published on the engine's bus: who listens, and how fast, changes nothing here. The
session's clock goes on while the source is down and while nobody watches; what was missed is a gap.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from errors import LonglookError, Notice
from frames import Frame, Gap
from streaming.event_bus import EventBus
from streaming.events import Thumbnail, Watched, WatchEvent
from streaming.overload import OverloadPolicy
from streaming.reader import Reader
from streaming.sources.source import (
    SourceDown,
    SourceEvent,
    SourceGap,
    SourceHealth,
    SourceLive,
    Tell,
    Thinning,
)

LIVE_QUEUE_FRAMES = 32  # 16 s of pictures: an answer or a busy device holds watching up shorter
LIVE_STALL_SECONDS = 40.0  # longer than opening and reading may take together
TIE_SECONDS = 60.0  # between looks at the clock on the wall


class LiveFeed(Protocol):
    """What watching needs of a live source."""

    title: str
    health: SourceHealth
    progress: int

    @property
    def now_seconds(self) -> float: ...
    def frames(self) -> Iterator[Frame]: ...
    def thin(self, level: Thinning) -> None: ...
    def retry_now(self) -> None: ...
    def close(self) -> None: ...


class Timeline(Protocol):
    """Gaps and wall-clock times of a session."""

    @property
    def has_wall_clock(self) -> bool: ...
    def add_gap(self, gap: Gap) -> None: ...
    def open_gap(self, start_seconds: float, reason: str) -> None: ...
    def end_open_gap(self) -> None: ...
    def tie(self, seconds: float, wall_seconds: float) -> None: ...
    def seconds_at(self, wall_seconds: float) -> float | None: ...


class WatchedSession(Protocol):
    """What watching needs of a session."""

    @property
    def seen_seconds(self) -> float | None: ...
    @property
    def timeline(self) -> Any: ...
    def change_timeline(self, change: Callable[[Any], None]) -> None: ...
    def watch(self, frames: Iterable[Frame], ahead: bool = ...) -> Iterator[WatchEvent]: ...


@dataclass(frozen=True)
class WatchStopped:
    """Watching ended; error: why, in a sentence, where nobody wanted it to."""

    error: str = ""


@dataclass(frozen=True)
class LiveHealth:
    """A source's figures, and what became of its frames. lag_seconds: behind now, of what is
    remembered.
    """

    source: SourceHealth
    dropped_busy: int
    lag_seconds: float
    seen_seconds: float


class LiveWatch:
    """One session being filled from one source. `start` it once; `stop` it, then `join` it."""

    def __init__(
        self,
        session: WatchedSession,
        session_id: str,
        open_feed: Callable[[Tell, float, float | None], LiveFeed],
        bus: EventBus,
    ) -> None:
        """open_feed: makes the source, given where it tells its events, the session's time now and
        the time up to which it was watched.
        """
        self.session_id = session_id
        self.error: Exception | None = None
        self._session = session
        self._bus = bus
        self._told: deque[SourceEvent] = deque()  # by the source, not yet in the timeline
        self._policy = OverloadPolicy()
        seen_seconds = session.seen_seconds
        now_seconds = session_now(session, time.time())
        session.change_timeline(lambda timeline: timeline.tie(now_seconds, time.time()))
        self._tied = time.monotonic()
        self._seen_seconds = seen_seconds or 0.0
        self.feed = open_feed(self._on_source_event, now_seconds, seen_seconds)
        self._reader = Reader(
            self.feed, LIVE_QUEUE_FRAMES, LIVE_STALL_SECONDS, "drop_oldest", self._settle
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Takes no more pictures; those that wait are thrown away. Returns at once."""
        self._stopping.set()
        self.feed.close()

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Waits for the chunk under way; whether it is done."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    @property
    def health(self) -> LiveHealth:
        lag_seconds = max(0.0, self.feed.now_seconds - self._seen_seconds)
        return LiveHealth(self.feed.health, self._reader.dropped, lag_seconds, self._seen_seconds)

    def _run(self) -> None:
        stopped = WatchStopped()
        try:
            with self._reader:
                for event in self._session.watch(self._frames()):
                    self._publish(event)
        except LonglookError as error:
            self.error = error
            stopped = WatchStopped(str(error))
        except Exception as error:
            self.error = error
            stopped = WatchStopped("Watching failed; the log says why.")
            raise
        finally:
            self._settle()
            self._bus.publish(self.session_id, stopped, self.feed.now_seconds)

    def _frames(self) -> Iterator[Frame]:
        for frame in self._reader:
            if self._stopping.is_set():
                return
            self._settle()
            yield frame

    def _publish(self, event: WatchEvent) -> None:
        seconds = None
        if isinstance(event, Watched | Thumbnail):
            seconds = event.pts_seconds
        if isinstance(event, Watched):
            self._seen_seconds = event.pts_seconds
        self._bus.publish(self.session_id, event, seconds)

    def _on_source_event(self, event: SourceEvent) -> None:
        """On the reading thread, which must not wait for a disk."""
        self._told.append(event)
        seconds = event.stop_seconds if isinstance(event, SourceGap) else event.seconds
        self._bus.publish(self.session_id, event, seconds)

    def _settle(self) -> None:
        """Brings the timeline up to date, and the source to what can be kept up with."""
        while self._told:
            self._note(self._told.popleft())
        now = self.feed.now_seconds
        if time.monotonic() - self._tied >= TIE_SECONDS:
            self._tied = time.monotonic()
            self._change(lambda timeline: timeline.tie(now, time.time()))
        health = self.feed.health
        self.feed.thin(self._policy.step(now, health.overload_seconds, self._reader.dropped))

    def _note(self, event: SourceEvent) -> None:
        if isinstance(event, SourceGap):
            gap = Gap(event.start_seconds, event.stop_seconds, event.reason)
            self._change(lambda timeline: timeline.add_gap(gap))
        elif isinstance(event, SourceDown):
            start, reason = max(self._seen_seconds, 0.0), event.trouble.code
            self._change(lambda timeline: timeline.open_gap(start, reason))
        elif isinstance(event, SourceLive):
            self._change(lambda timeline: timeline.end_open_gap())

    def _change(self, change: Callable[[Timeline], None]) -> None:
        """A timeline that can't be kept just now must not end watching."""
        try:
            self._session.change_timeline(change)
        except LonglookError as error:
            self._bus.publish(self.session_id, Notice(str(error)))


def session_now(session: WatchedSession, wall_seconds: float) -> float:
    """Where the session's clock stands: it has gone on since it was watched last, by the clock on
    the wall; never before what was seen.
    """
    seen = session.seen_seconds or 0.0
    found = session.timeline.seconds_at(wall_seconds)
    return max(seen, 0.0 if found is None else found)
