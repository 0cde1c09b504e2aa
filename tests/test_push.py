"""Pictures pushed over a real WebSocket: times, gaps, one sender at a time, and what is refused."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from frames import Frame
from streaming.engine import Engine
from streaming.reader import Reader
from streaming.sources.push import MAX_JPEG_BYTES, PictureError, Pushed, PushedSource, read_jpeg
from streaming.sources.source import SourceDown, SourceEvent, SourceGap
from tests.golden import paint, read_paint
from tests.servers.process import free_port
from tests.waiting import wait_until
from tests.watching import tiny_engine
from ui.push_door import push_router

PATIENCE_SECONDS = 60.0


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(paint(number)).save(file, "JPEG", quality=90)
    return file.getvalue()


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def frames_of(source: PushedSource) -> tuple[list[Frame], threading.Thread]:
    """The frames so far, taken on a thread."""
    found: list[Frame] = []
    reader = Reader(source, when_full="drop_oldest")

    def view() -> None:
        for frame in reader:
            found.append(frame)

    thread = threading.Thread(target=view, daemon=True)
    thread.start()
    return found, thread


def push_and_wait(source: PushedSource, frames: list[Frame], number: int, taken: float) -> Pushed:
    before = len(frames)
    pushed = source.push(jpeg(number), taken)
    if pushed is Pushed.TAKEN:
        wait_until(lambda: len(frames) > before, PATIENCE_SECONDS)
    return pushed


def test_pictures_keep_the_distances_at_which_they_were_taken_whatever_the_senders_clock() -> None:
    clock, events = HandClock(), list[SourceEvent]()
    source = PushedSource("push", 10.0, tell=events.append, clock=clock)
    frames, thread = frames_of(source)
    source.attach()
    sender_ahead = 7200.0
    for number in range(10):
        late = 0.3 if number == 5 else 0.0
        clock.now = 1000.0 + number * 0.1 + late
        push_and_wait(source, frames, number, sender_ahead + number * 0.1)
        clock.now -= late
    assert [read_paint(frame.image) for frame in frames] == list(range(10))
    times = [frame.pts_seconds for frame in frames]
    assert times == pytest.approx([number * 0.1 for number in range(10)], abs=0.01)
    source.detach()
    clock.now += 30.0
    source.attach()
    push_and_wait(source, frames, 11, 5.0)
    (gap,) = [event for event in events if isinstance(event, SourceGap)]
    assert (gap.start_seconds, gap.stop_seconds) == pytest.approx((0.9, 30.9), abs=0.05)
    assert [event for event in events if isinstance(event, SourceDown)]
    source.close()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_a_rate_is_kept_and_nothing_piles_up() -> None:
    clock = HandClock()
    source = PushedSource("push", 1.0, clock=clock)
    source.attach()
    found = []
    for number in range(3):
        clock.now += 0.25
        found.append(source.push(jpeg(number), number * 0.25))
    assert found == [Pushed.TAKEN, Pushed.BUSY, Pushed.BUSY], "nobody takes the first one"
    frames, thread = frames_of(source)
    wait_until(lambda: len(frames) == 1, PATIENCE_SECONDS)
    assert source.push(jpeg(3), 0.75) is Pushed.NOT_SAMPLED
    source.close()
    thread.join(PATIENCE_SECONDS)


def test_what_is_no_picture_or_too_large_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(PictureError, match="no JPEG"):
        read_jpeg(b"GIF89a" + bytes(100))
    with pytest.raises(PictureError, match="no JPEG"):
        read_jpeg(jpeg(1)[:100])
    with pytest.raises(PictureError, match="at most"):
        read_jpeg(bytes(MAX_JPEG_BYTES + 1))
    file = io.BytesIO()
    Image.new("L", (6000, 6000)).save(file, "JPEG", quality=10)
    with pytest.raises(PictureError, match="too large"):
        read_jpeg(file.getvalue())


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    engine = tiny_engine(checkpoint)
    yield engine
    engine.stop()


class Door:
    """An application with the route, on a real port; `allowed` is its log-in."""

    def __init__(self) -> None:
        self.sources: dict[str, PushedSource] = {}
        self.allowed = True
        app = FastAPI()
        app.include_router(push_router(self.sources.get, self.may_enter))
        self.port = free_port()
        config = uvicorn.Config(app, "127.0.0.1", self.port, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, PATIENCE_SECONDS)

    def may_enter(self, socket: WebSocket) -> bool:
        return self.allowed

    def connect(self, session: str = "desk", **options: Any) -> ClientConnection:
        found: ClientConnection = connect(f"ws://127.0.0.1:{self.port}/push/{session}", **options)
        return found

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE_SECONDS)


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


def send(socket: ClientConnection, number: int, taken: float) -> dict[str, Any]:
    socket.send(struct.pack(">d", taken * 1000) + jpeg(number))
    found: dict[str, Any] = json.loads(socket.recv(PATIENCE_SECONDS))
    return found


def close_code(socket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(PATIENCE_SECONDS)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def test_a_session_is_filled_over_a_socket_and_goes_on_after_a_break(
    engine: Engine, door: Door
) -> None:
    session = engine.open()
    watching = engine.watch_pushed(session, "desk")
    assert isinstance(watching.feed, PushedSource)
    door.sources["desk"] = watching.feed
    began = time.time()

    def fill(chunks: int) -> None:
        with door.connect() as socket:
            number, wanted = 0, session.stats.chunks + chunks
            while session.stats.chunks < wanted:
                answer = send(socket, number, time.time() - began)
                assert answer["n"] == number + 1 and answer["pushed"] in {p.value for p in Pushed}
                number += 1

    fill(2)
    wait_until(lambda: bool(session.timeline.gaps), PATIENCE_SECONDS)
    fill(1)
    assert session.stats.frames_read >= 12
    watching.stop()
    assert watching.join(PATIENCE_SECONDS) and watching.error is None
    session.close()


def test_strangers_second_senders_and_nonsense_are_turned_away(door: Door) -> None:
    source = PushedSource("push")
    door.sources["desk"] = source
    host = f"127.0.0.1:{door.port}"
    with door.connect("nobody") as socket:
        assert close_code(socket) == 4404
    with door.connect(origin="http://evil.example") as socket:
        assert close_code(socket) == 4403
    door.allowed = False
    with door.connect() as socket:
        assert close_code(socket) == 4403
    door.allowed = True
    with door.connect(origin=f"http://{host}") as socket:
        assert send(socket, 1, 0.0)["pushed"] == "taken"
        with door.connect() as second:
            assert close_code(second) == 4409
    with door.connect() as socket:
        wait_until(lambda: source.health.state.value == "down", PATIENCE_SECONDS)
        socket.send(struct.pack(">d", 0.0) + b"nonsense")
        assert close_code(socket) == 1003
