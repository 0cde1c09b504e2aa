"""A camera whose pictures wear the time: picture n of its clock, encoded while it is shown.

The clock counts pictures since `epoch` on the machine's monotonic clock, so a test knows when each
picture was taken, and a camera that is started again goes on counting.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from types import MappingProxyType
from typing import Any

import av
import numpy as np
from av.packet import Packet
from numpy.typing import NDArray

from tests.golden import paint

ENCODERS = {"h264": "libx264", "hevc": "libx265", "mjpeg": "mjpeg"}
OPTIONS = {
    "h264": {"preset": "ultrafast", "tune": "zerolatency"},
    "hevc": {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x265-params": "log-level=none:pools=none:frame-threads=1:bframes=0",
    },
    "mjpeg": {"q:v": "3"},
}


@dataclass(frozen=True)
class CameraSettings:
    """How a camera films. burst: pictures from before a client came that it is sent at once.

    jump_after, jump_seconds: after so many pictures the stamps jump.
    """

    epoch: float
    fps: int = 25
    codec: str = "h264"
    gop: int = 25
    scale: int = 1
    burst: int = 0
    jump_after: int = 0
    jump_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Shot:
    """One encoded picture: `number` on the camera's clock, `stamp` in pictures since the start."""

    number: int
    stamp: int
    packet: Packet[Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--epoch", type=float, default=0.0)
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--codec", default="h264", choices=sorted(ENCODERS))
    parser.add_argument("--gop", type=int, default=25)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--burst", type=int, default=0)
    parser.add_argument("--jump-after", type=int, default=0)
    parser.add_argument("--jump-seconds", type=float, default=0.0)


def settings_of(arguments: argparse.Namespace) -> CameraSettings:
    return CameraSettings(
        arguments.epoch,
        arguments.fps,
        arguments.codec,
        arguments.gop,
        arguments.scale,
        arguments.burst,
        arguments.jump_after,
        arguments.jump_seconds,
    )


def encoder_of(settings: CameraSettings) -> Any:
    """An encoder without delay; every keyframe carries its parameter sets."""
    context: Any = av.CodecContext.create(ENCODERS[settings.codec], "w")
    set_up(context, settings)
    return context


def set_up(encoder: Any, settings: CameraSettings) -> None:
    """encoder: a codec context, or a stream of a container that is written."""
    encoder.height, encoder.width = picture(0, settings.scale).shape[:2]
    encoder.pix_fmt = "yuvj420p" if settings.codec == "mjpeg" else "yuv420p"
    encoder.framerate = Fraction(settings.fps)
    encoder.time_base = Fraction(1, settings.fps)
    encoder.gop_size = settings.gop
    encoder.thread_count = 1
    encoder.options = OPTIONS[settings.codec]


def picture(number: int, scale: int) -> NDArray[np.uint8]:
    return paint(number % (1 << 16)).repeat(scale, axis=0).repeat(scale, axis=1)


def film(
    settings: CameraSettings, stopped: threading.Event | None = None, encoder: Any = None
) -> Iterator[Shot]:
    """The pictures from now on, each given when it is due; first the burst, at once."""
    encoder = encoder or encoder_of(settings)
    first = int((time.monotonic() - settings.epoch) * settings.fps) - settings.burst
    number = first
    while stopped is None or not stopped.is_set():
        due = settings.epoch + number / settings.fps
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        frame = av.VideoFrame.from_ndarray(picture(number, settings.scale), format="rgb24")
        frame.pts = number - first
        for packet in encoder.encode(frame):
            stamp = number - first
            if settings.jump_after and stamp >= settings.jump_after:
                stamp += round(settings.jump_seconds * settings.fps)
            yield Shot(number, stamp, packet)
        number += 1


def mux(
    settings: CameraSettings,
    file: Any,
    format: str,
    num_pictures: int | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Films into a file, or to an address, until it fails or so many pictures are written."""
    options = {"flush_packets": "1", **options}
    with av.open(file, "w", format=format, options=options) as container:
        stream: Any = container.add_stream(ENCODERS[settings.codec], rate=settings.fps)
        set_up(stream, settings)
        for shot in islice(film(settings, encoder=stream), num_pictures):
            packet = shot.packet
            assert packet.pts is not None and packet.dts is not None
            ticks = (shot.stamp - packet.pts) if packet.time_base == stream.time_base else 0
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            container.mux(packet)
