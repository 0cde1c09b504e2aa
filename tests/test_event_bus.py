"""The bus: every reader gets every event in order, a slow one is dropped and told, and whoever
publishes never waits.
"""

from __future__ import annotations

import threading
import time

import pytest

from streaming.event_bus import EventBus, FellBehind


def test_every_reader_gets_what_is_published_of_its_session() -> None:
    bus = EventBus()
    with bus.subscribe() as everything, bus.subscribe("door") as door:
        before = time.time()
        bus.publish("door", "opened", 1.5)
        bus.publish("yard", "cat")
        assert [everything.take(0).event for _ in range(2)] == ["opened", "cat"]  # type: ignore[union-attr]
        found = door.take(0)
        assert found is not None and (found.event, found.stream_seconds) == ("opened", 1.5)
        assert found.session_id == "door" and before <= found.wall_seconds <= time.time()
        assert door.take(0) is None


def test_a_slow_reader_is_dropped_and_told_and_the_others_go_on() -> None:
    bus = EventBus()
    with bus.subscribe(max_events=3) as slow, bus.subscribe() as quick:
        for number in range(10):
            bus.publish("door", number)
        (last,) = list(slow)
        assert last.event == FellBehind(4), "three that waited, and the one too many"
        assert slow.is_closed
        assert [quick.take(0).event for _ in range(10)] == list(range(10))  # type: ignore[union-attr]


def test_a_reader_that_keeps_up_loses_nothing() -> None:
    bus = EventBus()
    found: list[int] = []
    subscription = bus.subscribe(max_events=2000)
    reader = threading.Thread(target=lambda: found.extend(item.event for item in subscription))
    reader.start()
    for number in range(1000):
        bus.publish("door", number)
    subscription.close()
    reader.join(30)
    assert found == list(range(1000))


def test_publishing_while_readers_come_and_go_fails_nowhere() -> None:
    bus = EventBus()
    stopped = threading.Event()

    def come_and_go() -> None:
        while not stopped.is_set():
            with bus.subscribe(max_events=5) as subscription:
                subscription.take(0.001)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        bus.publish("door", number)
    stopped.set()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_a_reader_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="room"):
        EventBus().subscribe(max_events=0)
