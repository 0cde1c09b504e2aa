"""A camera is killed and restarted while a session watches it and someone asks: the session is
whole, the gap is kept and told, and whoever reads events slowly slows nothing.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from errors import LonglookError, Notice
from frames import Frame, Gap
from memory.disk_tier import SessionError
from memory.folders import summary
from memory.timeline import Timeline
from streaming.engine import Engine
from streaming.event_bus import EventBus
from streaming.events import Answer, WatchEvent
from streaming.live_watch import LiveWatch, WatchStopped, session_now
from streaming.session import Session
from streaming.sources.address import parse_address
from streaming.sources.source import SourceDown, SourceGap, SourceLive, State, Timing
from tests.conftest import REPOSITORY
from tests.servers.process import Camera
from tests.waiting import wait_until
from tests.watching import tiny_engine

PATIENCE_SECONDS = 90.0
QUICK = Timing(read=1.0, no_picture=3.0, first_retry=0.1, last_retry=0.5, slow_retry=0.2)

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    engine = tiny_engine(checkpoint)
    yield engine
    engine.stop()


def answered(session: Session, question: str = "What is shown?") -> tuple[Answer, list[str]]:
    events = list(session.ask(question))
    notices = [event.text for event in events if isinstance(event, Notice)]
    return next(event for event in events if isinstance(event, Answer)), notices


def wait_for_chunks(session: Session, count: int) -> None:
    wanted = session.stats.chunks + count
    wait_until(lambda: session.stats.chunks >= wanted, PATIENCE_SECONDS)


@pytest.mark.slow
def test_a_session_survives_its_camera_and_tells_the_gap(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "door"
    session = engine.open(folder)
    with Camera("rtsp") as camera, engine.events.subscribe("door") as events:
        address = parse_address(f"rtsp://127.0.0.1:{camera.port}/cam")
        watching = engine.watch_live(session, address, "door", timing=QUICK)
        wait_for_chunks(session, 2)
        camera.kill()
        wait_until(lambda: bool(session.timeline.gaps), PATIENCE_SECONDS)
        (gap,) = session.timeline.gaps
        assert math.isinf(gap.stop_seconds), "it is still going on"
        during, _ = answered(session)
        assert during.text and starts(during.gaps) == [gap.start_seconds], "asked while it is down"
        reading = engine.open(folder, read_only=True)
        assert starts(reading.timeline.gaps) == [gap.start_seconds], "known to others, too"
        reading.close()
        seen = session.seen_seconds or 0.0
        wait_until(lambda: watching.feed.now_seconds - seen > 6.0, PATIENCE_SECONDS)
        camera.start()
        wait_for_chunks(session, 2)
        (gap,) = session.timeline.gaps
        assert gap.stop_seconds - gap.start_seconds > 2.0
        after, _ = answered(session)
        assert after.text
        watching.stop()
        assert watching.join(PATIENCE_SECONDS) and watching.error is None
        told = list(iter(lambda: events.take(0), None))
    kinds = [type(item.event) for item in told]
    assert kinds[-1] is WatchStopped and kinds.count(SourceGap) == 1
    assert kinds.index(SourceLive) < kinds.index(SourceDown) < kinds.index(SourceGap)
    assert all(item.session_id == "door" for item in told)
    chunks = [session.memory.spans()[index] for index in range(session.stats.chunks)]
    assert all(not gap.start_seconds < start < gap.stop_seconds for start, _ in chunks)
    session.close()
    found = summary(folder)
    assert found.gaps == (gap,) and found.began is not None
    again = engine.open(folder)
    assert again.timeline.gaps == (gap,)
    assert len(list(again.memory.spans())) == len(chunks), "every chunk is there"
    again.close()


def test_what_was_not_watched_between_two_runs_is_a_gap(engine: Engine, tmp_path: Path) -> None:
    with Camera("web") as camera:
        address = parse_address(f"http://127.0.0.1:{camera.port}/live.ts")
        seen = 0.0
        for run in range(2):
            session = engine.open(tmp_path / "yard")
            if run:  # nobody watches for a while
                wait_until(partial(has_passed, session, seen + 3))
            watching = engine.watch_live(session, address, "yard", timing=QUICK)
            wait_for_chunks(session, 1)
            watching.stop()
            assert watching.join(PATIENCE_SECONDS)
            assert (session.seen_seconds or 0.0) > seen
            seen = session.seen_seconds or 0.0
            gaps = session.timeline.gaps
            assert [gap.reason for gap in gaps] == ["not watched"] * run
            session.close()


def starts(gaps: Sequence[Gap]) -> list[float]:
    """The reason of a gap that is still open may change."""
    return [gap.start_seconds for gap in gaps]


def has_passed(session: Session, seconds: float) -> bool:
    return session_now(session, time.time()) > seconds


def test_a_session_stays_with_its_camera(engine: Engine, tmp_path: Path) -> None:
    session = engine.open(tmp_path / "door")
    session.follow(parse_address("rtsp://cam:one@127.0.0.1/cam").shown)
    with pytest.raises(SessionError, match=r"not with rtsp://127\.0\.0\.1/other"):
        engine.watch_live(session, parse_address("rtsp://127.0.0.1/other"), "door")
    session.follow(parse_address("rtsp://cam:two@127.0.0.1/cam").shown)
    session.close()


class SteadyFeed:
    """A live source in memory: a frame whenever somebody asks for one."""

    is_live = True
    title = "steady"
    progress = 0

    def __init__(self, frames: list[Frame]) -> None:
        from streaming.sources.source import SourceHealth

        self.health = SourceHealth(State.LIVE)
        self._frames = frames

    @property
    def now_seconds(self) -> float:
        return self._frames[-1].pts_seconds

    def frames(self) -> Iterator[Frame]:
        for frame in self._frames:
            self.progress += 1
            yield frame

    def thin(self, level: Any) -> None:
        pass

    def retry_now(self) -> None:
        pass

    def close(self) -> None:
        pass


class PlainSession:
    """Counts frames; fails where it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.timeline = Timeline()
        self.seen_seconds: float | None = None
        self.num_frames = 0
        self._error = error

    def change_timeline(self, change: Callable[[Any], None]) -> None:
        change(self.timeline)

    def watch(self, frames: Iterable[Frame], ahead: bool = False) -> Iterator[WatchEvent]:
        for _ in frames:
            self.num_frames += 1
            yield Notice(f"frame {self.num_frames}")
        if self._error is not None:
            raise self._error


def feed_of(count: int) -> SteadyFeed:
    import numpy as np

    image = np.zeros((4, 4, 3), np.uint8)
    return SteadyFeed([Frame(image, index / 2, index) for index in range(count)])


def test_a_reader_of_events_that_sleeps_does_not_slow_watching() -> None:
    bus = EventBus()
    session = PlainSession()
    with bus.subscribe(max_events=2) as asleep, bus.subscribe() as awake:
        watching = LiveWatch(session, "x", lambda *_: feed_of(20), bus)
        watching.start()
        assert watching.join(PATIENCE_SECONDS)
        assert session.num_frames == 20
        assert asleep.is_closed
        told = list(iter(lambda: awake.take(0), None))
    assert len(told) == 21 and told[-1].event == WatchStopped()


def test_what_a_user_can_mend_ends_watching_with_a_sentence() -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        error = LonglookError("the disk is full")
        watching = LiveWatch(PlainSession(error), "x", lambda *_: feed_of(3), bus)
        watching.start()
        assert watching.join(PATIENCE_SECONDS)
        assert watching.error is error
        told = list(iter(lambda: events.take(0), None))
    assert told[-1].event == WatchStopped("the disk is full")


def run_command(*words: str, home: Path, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_DATA_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.update(more)
    return subprocess.Popen(
        [sys.executable, "app.py", *words],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def test_a_camera_is_watched_and_asked_from_another_process(tmp_path: Path) -> None:
    """As a person does it: two commands, and the camera is killed and restarted meanwhile."""
    database = tmp_path / "longlook" / "sessions" / "door" / "session.sqlite"
    with Camera("rtsp", "--login", "cam:hushhush", "--digest") as camera:
        url = f"rtsp://cam@127.0.0.1:{camera.port}/cam"
        watching = run_command(
            "watch", url, "-s", "door", home=tmp_path, LONGLOOK_SOURCE_PASSWORD="hushhush"
        )
        lines: list[str] = []
        assert watching.stderr is not None
        reader = threading.Thread(target=lambda: lines.extend(watching.stderr or ()))
        reader.start()
        try:
            wait_until(lambda: has_chunks(database, 1), PATIENCE_SECONDS)
            camera.kill()
            wait_until(lambda: "Down:" in "".join(lines), PATIENCE_SECONDS)
            first = ask_door("What is shown?", tmp_path)
            assert first["answer"] and first["gaps"][-1]["stop_seconds"] is None
            camera.start()
            wait_until(lambda: "Nothing was seen" in "".join(lines), PATIENCE_SECONDS)
            num_chunks = summary(database.parent).chunks
            wait_until(lambda: has_chunks(database, num_chunks + 1), PATIENCE_SECONDS)
            second = ask_door("What happened since midnight?", tmp_path)
            assert second["answer"] and second["seen_seconds"] > first["seen_seconds"]
            assert second["gaps"][0]["stop_seconds"] is not None
        finally:
            watching.send_signal(signal.SIGINT)
            watching.wait(PATIENCE_SECONDS)
            reader.join(PATIENCE_SECONDS)
    assert watching.returncode == 0
    said = "".join(lines)
    assert "Live: h264, 160x96." in said and "To ask:" in said
    assert "hushhush" not in said
    for path in database.parent.rglob("*"):
        if path.is_file():
            assert b"hushhush" not in path.read_bytes(), f"{path} holds the password"


def has_chunks(database: Path, count: int) -> bool:
    """False while the folder is only being made, too."""
    with suppress(SessionError):
        return summary(database.parent).chunks >= count
    return False


def ask_door(question: str, home: Path) -> dict[str, Any]:
    asking = run_command("ask", "-s", "door", question, "--json", home=home)
    out, error = asking.communicate(timeout=PATIENCE_SECONDS)
    assert asking.returncode == 0, error
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_password_that_nobody_gave_is_asked_for_in_a_sentence(tmp_path: Path) -> None:
    command = run_command("watch", "rtsp://cam@127.0.0.1/cam", "-s", "door", home=tmp_path)
    _, error = command.communicate(timeout=PATIENCE_SECONDS)
    assert command.returncode == 2 and "--password-file" in error
    assert "Traceback" not in error
