"""Carries events to whoever listens: the command line, a page, alerts, an API.

Whoever publishes never waits. Each reader has a queue of its own, which is bounded: one that does
not keep up is dropped, and told so. Knows nothing of what the events mean.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_EVENTS = 1024  # waiting for one reader; some minutes of the busiest stream


@dataclass(frozen=True)
class Published:
    """An event of a session, when it happened on the stream's clock and by the clock on the wall.

    stream_seconds: None where the event belongs to no moment of the stream.
    """

    session_id: str
    stream_seconds: float | None
    wall_seconds: float
    event: Any


@dataclass(frozen=True)
class FellBehind:
    """The last event of a reader that did not keep up; so many events were lost to it."""

    num_lost: int


class Subscription:
    """One reader's queue. Iterate it, or take events one by one; close it when done."""

    def __init__(self, bus: EventBus, session_id: str | None, max_events: int) -> None:
        self.session_id = session_id
        self._bus = bus
        self._max_events = max_events
        self._events: deque[Published] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Published]:
        """Until it is closed, by its reader or because it fell behind."""
        while True:
            published = self.take()
            if published is not None:
                yield published
            elif self._is_closed:
                return

    def take(self, timeout_seconds: float | None = None) -> Published | None:
        """The next event; None after the time-out, and where there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._is_closed, timeout_seconds)
            return self._events.popleft() if self._events else None

    @property
    def is_closed(self) -> bool:
        """Whether no event will be added; some may still be waiting."""
        return self._is_closed

    def close(self) -> None:
        """May be called twice, and from another thread than the reader's."""
        self._bus.unsubscribe(self)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def offer(self, published: Published) -> bool:
        """Puts an event in; False once there is no room, and then this was the last one."""
        with self._changed:
            if self._is_closed:
                return False
            has_room = len(self._events) < self._max_events
            if not has_room:
                lost = FellBehind(len(self._events) + 1)
                self._events.clear()
                published = Published(
                    published.session_id, published.stream_seconds, published.wall_seconds, lost
                )
                self._is_closed = True
            self._events.append(published)
            self._changed.notify_all()
            return has_room


class EventBus:
    """Of one engine, for all its sessions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()

    def subscribe(
        self, session_id: str | None = None, max_events: int = MAX_EVENTS
    ) -> Subscription:
        """A new reader of what is published from now on, of one session or of all."""
        if max_events < 1:
            raise ValueError(f"a reader needs room for an event, not for {max_events}")
        subscription = Subscription(self, session_id, max_events)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(
                other for other in self._subscriptions if other is not subscription
            )

    def publish(self, session_id: str, event: Any, stream_seconds: float | None = None) -> None:
        """Never waits for a reader."""
        published = Published(session_id, stream_seconds, time.time(), event)
        for subscription in self._subscriptions:
            if subscription.session_id not in (None, session_id):
                continue
            if not subscription.offer(published):
                self.unsubscribe(subscription)
