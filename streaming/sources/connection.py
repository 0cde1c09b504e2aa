"""One connection to a live source: opens it with the right options, decodes, and closes it.

All of it happens on one thread: to close a container that another thread reads from ends the
process. Every call has a time-out, and a stream whose read timed out is of no use any more.
FFmpeg's log level is never touched: with it set, its threads and ours wait for each other for ever.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from streaming.sources.address import Address, Kind
from streaming.sources.display import display_matrix, upright
from streaming.sources.hosts import resolve
from streaming.sources.source import Timing
from streaming.sources.stream_clock import Arrival, StreamClock
from streaming.sources.trouble import Trouble, TroubleError
from streaming.sources.web import open_web

MAX_PIXELS = 8192 * 8192  # a header can claim any size; this one takes 200 MB a picture
DEFAULT_RATE = 25.0  # where a stream names none, as FFmpeg assumes
MAX_RATE = 240.0  # some streams name their clock's rate instead
_ARRIVAL_FORMATS = ("mpjpeg", "mjpeg", "image2", "jpeg_pipe")  # their stamps are made up
_OPTIONS: dict[Kind, dict[str, str]] = {
    # over TCP, and over UDP where the camera has no TCP
    "rtsp": {
        "rtsp_flags": "prefer_tcp",
        "allowed_media_types": "video",
        "protocol_whitelist": "rtsp,rtsps,rtp,srtp,tcp,udp,tls,crypto",
    },
    # probing takes five seconds without the limit
    "rtmp": {"analyzeduration": "1000000", "protocol_whitelist": "rtmp,rtmps,tcp,tls"},
    "rtmp-listen": {
        "analyzeduration": "1000000",
        "listen": "1",
        "protocol_whitelist": "rtmp,tcp",
    },
    "udp": {"protocol_whitelist": "udp,rtp"},
    "device": {},
}
_FORMATS: dict[Kind, str] = {"udp": "mpegts", "rtmp": "flv", "rtmp-listen": "flv"}
_DEVICES = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}


@dataclass(frozen=True, eq=False)
class Shot:
    """A decoded picture and when it was taken, in seconds of the session."""

    picture: VideoFrame
    seconds: float


class Connection:
    """Use it in a `with`, on one thread. Raises TroubleError and errors for `trouble_of`."""

    def __init__(
        self,
        address: Address,
        allow_private: bool,
        timing: Timing,
        now: Callable[[], float],
        stopped: threading.Event,
    ) -> None:
        """now: seconds of the session. stopped: nothing more is wanted."""
        self._timing = timing
        self._now = now
        self._stopped = stopped
        self.num_damaged = 0  # packets
        self.num_decoded = 0  # pictures
        self.num_packets = 0
        self.overload_seconds = 0.0
        self.camera_clock_seconds: float | None = None
        self._container = open_container(address, allow_private, timing, stopped)
        try:
            self.stream = video_stream(self._container)
        except BaseException:
            self._container.close()
            raise
        by_arrival = self._container.format.name in _ARRIVAL_FORMATS
        self._clock = StreamClock(now(), by_arrival)
        self._paused = now()  # when a packet was waited for last
        self._step_seconds = 1.0 / usual_rate(self.stream)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    @property
    def lag_seconds(self) -> float:
        return self._clock.lag_seconds

    def skip_to_keyframes(self, wanted: bool) -> None:
        """Decodes keyframes only, or everything again; takes effect with the next packet."""
        self.stream.codec_context.skip_frame = "NONKEY" if wanted else "DEFAULT"

    def shots(self, is_wanted: Callable[[float], bool]) -> Iterator[Shot | None]:
        """The pictures with their times, and None for each packet, so that the caller stays awake.

        is_wanted: whether a picture of this relative time is worth holding until times are known;
        holding all of them takes hundreds of megabytes.
        """
        held: list[tuple[VideoFrame, int]] = []  # with their places among the arrivals
        num_arrivals = 0
        last_picture = self._now()
        for packet, waited in self._packets():
            yield None
            pictures = self._decode(packet)
            if pictures:
                last_picture = self._now()
            elif self._now() - last_picture > self._timing.no_picture:
                raise TroubleError(Trouble.NO_PICTURE)  # the codec changed, for one
            for picture in pictures:
                arrival = self._arrival(picture, waited)
                times = self._clock.seconds(arrival)
                if not times or len(times) > 1 or held:
                    if times or is_wanted(arrival.stamp or 0.0):
                        held.append((picture, num_arrivals))
                    num_arrivals += 1
                if not times:
                    continue
                if not held:
                    yield Shot(picture, times[0])
                for earlier, place in held:
                    yield Shot(earlier, times[place])
                held = []

    def _packets(self) -> Iterator[tuple[Packet[Any], float]]:
        """Every packet and how long it was waited for."""
        packets = self._container.demux(self.stream)
        while not self._stopped.is_set():
            asked = time.monotonic()
            packet = next(packets, None)
            waited = time.monotonic() - asked
            if packet is None or not packet.size:
                return
            self.num_packets += 1
            self._count_overload(waited)
            self._note_camera_clock(packet)
            yield packet, waited

    def _decode(self, packet: Packet[Any]) -> list[VideoFrame]:
        try:
            pictures = self.stream.codec_context.decode(packet)
        except FFmpegError:
            self.num_damaged += 1  # before the first keyframe every packet is
            return []
        self.num_decoded += len(pictures)
        return pictures

    def _arrival(self, picture: VideoFrame, waited: float) -> Arrival:
        stamp = None
        if picture.pts is not None and picture.time_base is not None:
            stamp = float(picture.pts * picture.time_base)
        return Arrival(stamp, self._now(), waited, self._step_seconds)

    def _count_overload(self, waited: float) -> None:
        """We are to blame for a lag only if no packet had to be waited for all the while."""
        if waited > 0.001:
            self._paused = self._now()
        self.overload_seconds = self._now() - self._paused

    def _note_camera_clock(self, packet: Packet[Any]) -> None:
        """What the camera says the time is, which may be wrong; told in RTCP sender reports."""
        started = getattr(self._container, "start_time_realtime", None)
        if started and packet.pts is not None and packet.time_base is not None:
            taken = started / 1e6 + float(packet.pts * packet.time_base)
            self.camera_clock_seconds = taken - time.time()


def open_container(
    address: Address, allow_private: bool, timing: Timing, stopped: threading.Event
) -> InputContainer:
    """The open container of an address that was checked."""
    if not allow_private and address.kind not in ("rtsp", "rtmp", "http"):
        raise TroubleError(Trouble.NOT_ALLOWED)
    if address.kind == "device":
        return open_device(address.place, timing)
    if address.kind == "http":
        return open_web(address, allow_private, timing.open, timing.read, stopped)
    if address.host and address.kind != "rtmp-listen":
        numbers = resolve(address.host, address.port, allow_private)
        if not allow_private:
            address = address.at_host(numbers[0])  # the name could mean another machine by now
    started = time.monotonic()
    try:
        container: InputContainer = av.open(
            address.url,
            format=_FORMATS.get(address.kind),
            options=dict(_OPTIONS[address.kind]),
            timeout=(timing.open, timing.read),
        )
    except av.error.InvalidDataError as error:
        # what FFmpeg says of an RTSP server that accepts and then says nothing
        if time.monotonic() - started >= timing.open:
            raise TroubleError(Trouble.TIMED_OUT) from error
        raise
    return container


def open_device(place: str, timing: Timing) -> InputContainer:
    """A webcam by its number, or by what its system calls it."""
    system = _DEVICES.get(sys.platform)
    if system is None:
        raise TroubleError(Trouble.UNSUPPORTED)
    name = place
    if place.isdigit():
        name = {"v4l2": f"/dev/video{place}", "avfoundation": place}.get(system, f"video={place}")
    container: InputContainer = av.open(name, format=system, timeout=(timing.open, timing.read))
    return container


def video_stream(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise TroubleError(Trouble.NO_VIDEO)
    if stream.codec_context is None:
        raise TroubleError(Trouble.CODEC)
    if stream.width * stream.height > MAX_PIXELS:
        raise TroubleError(Trouble.CODEC)
    stream.thread_type = "SLICE"  # frame threads keep pictures back, one for each
    return stream


def as_rgb(picture: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """The picture as uint8 [H, W, 3], upright."""
    image = reformatter.reformat(picture, format="rgb24").to_ndarray()
    return upright(image.astype(np.uint8, copy=False), display_matrix(picture))


def usual_rate(stream: VideoStream) -> float:
    """Pictures a second as the stream claims, within reason."""
    rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
    return rate if 0 < rate <= MAX_RATE else DEFAULT_RATE
