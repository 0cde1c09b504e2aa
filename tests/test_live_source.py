"""Real cameras on this machine, in processes that are killed, frozen and restarted: every picture
has its right time, what is missing is a gap, and the reason is told.

The pictures wear the time at which they were taken, so a wrong time is seen.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from frames import Frame
from streaming.reader import Reader
from streaming.sources.address import parse_address
from streaming.sources.live import LiveSource
from streaming.sources.source import (
    SourceClosed,
    SourceDown,
    SourceEvent,
    SourceGap,
    SourceLive,
    State,
    Thinning,
    Timing,
)
from streaming.sources.trouble import Trouble
from tests.golden import read_paint
from tests.servers.process import Camera, free_port
from tests.waiting import wait_until

FPS = 25
PATIENCE_SECONDS = 60.0
# Times that a test has to wait out are short; those that a busy machine may need are not.
QUICK = Timing(read=1.0, no_picture=3.0, first_retry=0.1, last_retry=0.5, slow_retry=0.2)
# An HLS playlist is read anew every second.
PATIENT = Timing(read=4.0, no_picture=9.0, first_retry=0.1, last_retry=0.5)
# Encoder, parser and network hold a picture back; a busy machine may by some more.
MAX_LATE_SECONDS = 1.5

pytestmark = pytest.mark.timeout(300)


class Viewer:
    """Reads a source on threads, as watching does, and keeps what it gave."""

    def __init__(self, url: str, timing: Timing = QUICK, fps: float = FPS) -> None:
        self.events: list[SourceEvent] = []
        self.frames: list[Frame] = []
        self.began = time.monotonic()
        self.source = LiveSource(parse_address(url), fps, tell=self.events.append, timing=timing)
        self._reader = Reader(self.source, when_full="drop_oldest")
        self._thread = threading.Thread(target=self._view, daemon=True)
        self._thread.start()

    def _view(self) -> None:
        for frame in self._reader:
            self.frames.append(frame)

    def see(self, count: int) -> None:
        """Waits for so many more frames."""
        wanted = len(self.frames) + count
        wait_until(lambda: len(self.frames) >= wanted, PATIENCE_SECONDS)

    def wait_for(self, kind: type[SourceEvent], count: int = 1) -> None:
        wait_until(lambda: len(self.told(kind)) >= count, PATIENCE_SECONDS)

    def miss(self, seconds: float) -> None:
        """Waits until nothing has been seen for so long."""
        seen = self.frames[-1].pts_seconds
        wait_until(lambda: self.source.now_seconds - seen > seconds, PATIENCE_SECONDS)

    def told(self, kind: type[SourceEvent]) -> list[SourceEvent]:
        return [event for event in self.events if isinstance(event, kind)]

    def trouble(self) -> Trouble:
        """The first one that was told of."""
        self.wait_for(SourceDown)
        (first, *_) = self.told(SourceDown)
        assert isinstance(first, SourceDown)
        return first.trouble

    def close(self) -> None:
        self._reader.close()
        self._thread.join(PATIENCE_SECONDS)

    def lateness(self, camera: Camera) -> list[float]:
        """Of every frame, by how much its time is later than what it wears."""
        found = []
        for frame in self.frames:
            number = read_paint(frame.image)
            assert number >= 0, "the paint can't be read"
            taken = camera.epoch + number / FPS
            found.append(self.began + frame.pts_seconds - taken)
        return found


@contextmanager
def viewing(url: str, timing: Timing = QUICK, fps: float = FPS) -> Iterator[Viewer]:
    viewer = Viewer(url, timing, fps)
    try:
        yield viewer
    finally:
        viewer.close()


def check_times(viewer: Viewer, camera: Camera, max_late: float = MAX_LATE_SECONDS) -> None:
    """Every picture is at the moment it was taken, and times grow."""
    late = viewer.lateness(camera)
    assert all(-0.2 <= seconds <= max_late for seconds in late), (min(late), max(late))
    times = [frame.pts_seconds for frame in viewer.frames]
    assert times == sorted(set(times))
    assert [frame.index for frame in viewer.frames] == list(range(len(times)))


@contextmanager
def camera_at(kind: str) -> Iterator[tuple[Camera, str]]:
    """A running camera of some kind, and its address."""
    if kind == "rtsp":
        with Camera("rtsp") as camera:
            yield camera, f"rtsp://127.0.0.1:{camera.port}/cam"
    elif kind == "rtsp-udp":
        with Camera("rtsp", "--udp-only") as camera:
            yield camera, f"rtsp://127.0.0.1:{camera.port}/cam"
    elif kind in ("ts", "m3u8", "mjpeg"):
        with Camera("web") as camera:
            yield camera, f"http://127.0.0.1:{camera.port}/live.{kind}"
    elif kind == "udp":
        url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        with Camera("push", url) as camera:
            yield camera, url
    else:
        url = f"rtmp://127.0.0.1:{free_port()}/live/in"
        with Camera("push", url) as camera:
            yield camera, f"{url}?listen=1"


KINDS = ("rtsp", "rtsp-udp", "ts", "m3u8", "mjpeg", "udp", "rtmp-in")


@pytest.mark.parametrize("kind", KINDS)
def test_a_camera_that_dies_and_comes_back_leaves_a_gap_in_the_right_place(kind: str) -> None:
    timing = PATIENT if kind == "m3u8" else QUICK
    with camera_at(kind) as (camera, url), viewing(url, timing) as viewer:
        viewer.see(10)
        camera.kill()
        viewer.wait_for(SourceDown)
        viewer.miss(1.5)
        camera.start()
        viewer.see(10)
        viewer.wait_for(SourceGap)
        check_times(viewer, camera)
        (gap, *_) = viewer.told(SourceGap)
        assert isinstance(gap, SourceGap)
        times = [frame.pts_seconds for frame in viewer.frames]
        inside = [at for at in times if gap.start_seconds < at < gap.stop_seconds]
        assert not inside, "a picture inside the gap"
        assert times[0] < gap.start_seconds < gap.stop_seconds <= times[-1]
        assert gap.reason not in ("", "pictures lost on the way")
    assert viewer.told(SourceClosed)
    assert viewer.source.health.state is State.CLOSED


@pytest.mark.parametrize("kind", ("rtsp", "ts", "m3u8", "mjpeg"))
@pytest.mark.slow
def test_a_camera_that_freezes_is_noticed_and_read_again(kind: str) -> None:
    timing = PATIENT if kind == "m3u8" else QUICK
    with camera_at(kind) as (camera, url), viewing(url, timing) as viewer:
        viewer.see(10)
        camera.freeze()
        viewer.wait_for(SourceDown)
        assert viewer.trouble() in (Trouble.TIMED_OUT, Trouble.ENDED)
        camera.thaw()
        viewer.see(10)
        # a playlist that was frozen is some segments late, and nothing in it says so
        check_times(viewer, camera, 10.0 if kind == "m3u8" else MAX_LATE_SECONDS)
        assert viewer.told(SourceGap)


@pytest.mark.parametrize(
    ("options", "user"),
    (
        (("--login", "cam:s@cr/et:"), "cam:s%40cr%2Fet%3A@"),
        (("--login", "cam:s@cr/et:", "--digest"), "cam:s@cr/et:@"),
        (("--codec", "hevc"), ""),
        (("--burst", "25"), ""),
    ),
)
def test_cameras_with_a_log_in_other_codecs_and_caches(options: tuple[str, ...], user: str) -> None:
    with (
        Camera("rtsp", *options) as camera,
        viewing(f"rtsp://{user}127.0.0.1:{camera.port}/cam") as viewer,
    ):
        viewer.see(15)
        check_times(viewer, camera)
        (live, *_) = viewer.told(SourceLive)
        assert isinstance(live, SourceLive)
        assert live.codec == ("hevc" if "hevc" in options else "h264")
        assert (live.width, live.height) == (160, 96)


def test_stamps_that_jump_keep_the_times_right() -> None:
    options = ("--jump-after", "50", "--jump-seconds", "1000")
    with (
        Camera("rtsp", *options) as camera,
        viewing(f"rtsp://127.0.0.1:{camera.port}/cam") as viewer,
    ):
        viewer.see(75)
        check_times(viewer, camera)


def test_another_codec_and_size_after_a_restart_are_taken_as_they_come() -> None:
    with (
        Camera("web") as camera,
        viewing(f"http://127.0.0.1:{camera.port}/live.ts") as viewer,
    ):
        viewer.see(5)
        camera.kill()
        camera.start("--codec", "hevc", "--scale", "2")
        viewer.wait_for(SourceLive, 2)
        viewer.see(5)
        check_times(viewer, camera)
        assert viewer.frames[-1].width == 320
        codecs = [event.codec for event in viewer.events if isinstance(event, SourceLive)]
        assert codecs == ["h264", "hevc"]


@pytest.mark.parametrize(
    ("path", "trouble"),
    (
        ("nothing-here.ts", Trouble.NOT_FOUND),
        ("video.txt", Trouble.NOT_A_STREAM),
        ("broken", Trouble.SERVER_ERROR),
        ("silent", Trouble.TIMED_OUT),
    ),
)
def test_what_is_wrong_with_a_web_address_is_told(path: str, trouble: Trouble) -> None:
    with (
        Camera("web") as camera,
        viewing(f"http://127.0.0.1:{camera.port}/{path}") as viewer,
    ):
        assert viewer.trouble() is trouble


def test_a_wrong_password_a_wrong_path_and_silence_are_told_apart() -> None:
    silent = Timing(open=1.0, read=1.0, first_retry=0.1, last_retry=0.5, slow_retry=0.2)
    with Camera("rtsp", "--login", "cam:right") as camera:
        for login in ("", "cam:wrong@"):
            with viewing(f"rtsp://{login}127.0.0.1:{camera.port}/cam") as viewer:
                assert viewer.trouble() is Trouble.AUTH_FAILED
        with viewing(f"rtsp://cam:right@127.0.0.1:{camera.port}/none") as viewer:
            assert viewer.trouble() is Trouble.NOT_FOUND
    with viewing(f"rtsp://127.0.0.1:{camera.port}/cam") as viewer:
        assert viewer.trouble() is Trouble.REFUSED
    with (
        Camera("rtsp", "--silent") as camera,
        viewing(f"rtsp://127.0.0.1:{camera.port}/cam", silent) as viewer,
    ):
        assert viewer.trouble() is Trouble.TIMED_OUT
    with viewing("rtsp://no-such-host.invalid/cam") as viewer:
        assert viewer.trouble() is Trouble.NAME_NOT_KNOWN


def test_a_wrong_password_is_not_tried_again_at_once() -> None:
    with (
        Camera("rtsp", "--login", "cam:right") as camera,
        viewing(f"rtsp://cam:wrong@127.0.0.1:{camera.port}/cam", Timing()) as viewer,
    ):
        viewer.wait_for(SourceDown)
        (down,) = viewer.told(SourceDown)
        assert isinstance(down, SourceDown)
        assert down.next_try_seconds >= 20


def test_no_event_of_a_source_and_no_figure_holds_its_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        Camera("rtsp", "--login", "cam:right") as camera,
        viewing(f"rtsp://cam:hushhush@127.0.0.1:{camera.port}/cam?token=hushhush") as viewer,
    ):
        viewer.wait_for(SourceDown, 2)
        told = f"{viewer.events} {viewer.source.health} {viewer.source.title} {caplog.text}"
        assert "hushhush" not in told
        assert "127.0.0.1" in told, "the place itself is told"


def test_a_redirect_is_followed_and_a_stranger_cannot_lead_inside() -> None:
    with Camera("web") as camera:
        base = f"http://127.0.0.1:{camera.port}"
        with viewing(f"{base}/moved/live.mjpeg") as viewer:
            viewer.see(3)
        with viewing(f"{base}/away?file:///etc/passwd") as viewer:
            assert viewer.trouble() is Trouble.NOT_ALLOWED
        with viewing(f"{base}/stranger.m3u8?file:///etc/passwd") as viewer:
            viewer.wait_for(SourceDown)
            assert not viewer.frames


def test_keyframes_alone_are_decoded_while_a_source_is_overloaded() -> None:
    with (
        Camera("rtsp") as camera,
        viewing(f"rtsp://127.0.0.1:{camera.port}/cam") as viewer,
    ):
        viewer.see(10)
        viewer.source.thin(Thinning.KEYFRAMES)
        decoded = viewer.source.health.decoded
        frames = len(viewer.frames)
        viewer.see(3)
        assert viewer.source.health.decoded - decoded <= 5 + len(viewer.frames) - frames
        viewer.source.thin(Thinning.NONE)
        viewer.see(40)
        late = viewer.frames[-10:]
        steps = [b.pts_seconds - a.pts_seconds for a, b in itertools.pairwise(late)]
        assert max(steps) < 0.5, "all pictures are decoded again"
        check_times(viewer, camera)


def test_two_hundred_reconnects_leak_no_descriptor_and_no_thread() -> None:
    hasty = Timing(first_retry=0.001, last_retry=0.001, slow_retry=0.001)
    with (
        Camera("web") as camera,
        viewing(f"http://127.0.0.1:{camera.port}/none", hasty) as viewer,
    ):
        viewer.wait_for(SourceDown, 20)
        descriptors, threads = count_descriptors(), threading.active_count()
        viewer.wait_for(SourceDown, 220)
        assert count_descriptors() <= descriptors + 2
        assert threading.active_count() <= threads + 1


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_thread_that_hangs_is_replaced_and_gives_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    opened: list[int] = []

    def hang(*arguments: object) -> object:
        opened.append(1)
        if len(opened) == 1:
            release.wait(PATIENCE_SECONDS)
        raise ConnectionRefusedError

    monkeypatch.setattr("streaming.sources.connection.open_container", hang)
    events: list[SourceEvent] = []
    source = LiveSource(parse_address("rtsp://127.0.0.1:1/x"), tell=events.append, timing=QUICK)
    reader = Reader(source, stall_seconds=1.0, when_full="drop_oldest")
    consumer = threading.Thread(target=lambda: list(reader), daemon=True)
    consumer.start()

    def troubles() -> list[Trouble]:
        return [event.trouble for event in events if isinstance(event, SourceDown)]

    wait_until(lambda: Trouble.REFUSED in troubles(), PATIENCE_SECONDS)
    assert troubles()[0] is Trouble.STUCK
    release.set()
    reader.close()
    consumer.join(PATIENCE_SECONDS)
    assert not consumer.is_alive()
