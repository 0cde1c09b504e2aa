"""Clips with the faults of real recorders, made on the spot from sound ones.

Knows nothing of the readers under test.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream

from tests.golden import MILLISECOND, Golden, Recipe, make, paint, steady

VideoPacket: TypeAlias = "Packet[VideoStream]"


def restamped(clip: Path, target: Path, change: Callable[[int, VideoPacket], None]) -> Path:
    """The packets of a clip, each changed in place; `change` gets its number and itself."""
    with av.open(str(clip)) as given, av.open(str(target), "w") as taken:
        template = given.streams.video[0]
        stream = taken.add_stream_from_template(template)
        packets = [packet for packet in given.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream = stream
            change(number, packet)
            taken.mux(packet)
    return target


def with_outliers(folder: Path, numbers: Sequence[int], ahead_seconds: float = 37_600.0) -> Golden:
    """A camera's clip in which some pictures are stamped hours ahead. TS, since muxers of others
    want stamps that grow."""
    recipe = Recipe(gop=1, time_base=Fraction(1, 90_000))
    pts = [tick + 90_000_000 for tick in steady(150, 10, recipe.time_base)]
    clip = make(folder / "sound.ts", pts, recipe)
    data = bytearray(clip.path.read_bytes())
    seen = -1
    for start in range(0, len(data), 188):
        if not is_start_of_picture(data, start):
            continue
        seen += 1
        if seen in numbers:
            move_stamps(data, start, round(ahead_seconds * 90_000))
    path = folder / "outlier.ts"
    path.write_bytes(data)
    return Golden(path, clip.pts_seconds)


def is_start_of_picture(data: bytearray, start: int) -> bool:
    """Whether a packet of a transport stream begins a PES packet of video."""
    return bool(data[start + 1] & 0x40) and payload_of(data, start)[:4] == b"\0\0\1\xe0"


def payload_of(data: bytearray, start: int) -> bytes:
    return bytes(data[payload_start(data, start) : start + 188])


def payload_start(data: bytearray, start: int) -> int:
    has_adaptation = data[start + 3] & 0x20
    return start + 4 + (1 + data[start + 4] if has_adaptation else 0)


def move_stamps(data: bytearray, start: int, ticks: int) -> None:
    """Moves the stamps of the PES packet that begins in this packet of a transport stream."""
    pes = payload_start(data, start)
    has_dts = data[pes + 7] & 0x40
    for place in (pes + 9, pes + 14) if has_dts else (pes + 9,):
        write_stamp(data, place, read_stamp(data, place) + ticks)


def read_stamp(data: bytearray, place: int) -> int:
    middle, low = struct.unpack_from(">HH", data, place + 1)
    return int((data[place] >> 1 & 7) << 30 | (middle >> 1) << 15 | low >> 1)


def write_stamp(data: bytearray, place: int, stamp: int) -> None:
    data[place] = data[place] & 0xF1 | (stamp >> 30 & 7) << 1
    low = ((stamp >> 15 & 0x7FFF) << 1 | 1, (stamp & 0x7FFF) << 1 | 1)
    struct.pack_into(">HH", data, place + 1, *low)


def with_sound_from_zero(path: Path, late_seconds: float, sound_seconds: float = 8.0) -> Golden:
    """Sound from 0 s, and pictures that begin later."""
    pts = [tick + round(late_seconds * 1000) for tick in steady(40, 10)]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        assert isinstance(video, VideoStream)
        video.height, video.width = paint(0).shape[:2]
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = video.time_base = MILLISECOND
        sound = container.add_stream("aac", rate=16_000)
        for place in range(round(sound_seconds * 16_000 / 1024)):
            samples = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            samples.sample_rate = 16_000
            samples.pts = place * 1024
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
        for index, tick in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(paint(index), format="rgb24")
            frame.pts, frame.time_base = tick, MILLISECOND
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return Golden(path, tuple(tick / 1000 for tick in pts))


def with_standing_end(path: Path, seconds: float) -> Golden:
    """A screen recording: four seconds of changes, then the last picture until `seconds`."""
    clip = make(path.with_name(f"moving{path.suffix}"), steady(40, 10), Recipe())

    def stand(number: int, packet: VideoPacket) -> None:
        if number == 39:
            assert packet.pts is not None and packet.time_base is not None
            packet.duration = round(seconds / packet.time_base) - packet.pts

    return Golden(restamped(clip.path, path, stand), clip.pts_seconds)


def stamped_alike(path: Path) -> Golden:
    """Every picture at one time, as some cameras stamp them."""
    clip = make(path.with_name("moving.mkv"), steady(75, 25), Recipe("libvpx"))

    def stamp(number: int, packet: VideoPacket) -> None:
        packet.pts = packet.dts = 2946

    return Golden(restamped(clip.path, path, stamp), clip.pts_seconds)


def entries_of_keyframes(data: bytearray) -> tuple[int, list[int]]:
    """Where the list of keyframes of an MP4 is, and its entries (numbers of pictures from 1)."""
    place = data.index(b"stss") + 8
    (count,) = struct.unpack_from(">I", data, place)
    return place, list(struct.unpack_from(f">{count}I", data, place + 4))


def with_unlisted_keyframe(path: Path) -> Golden:
    """The second keyframe is missing from the container's list, as an Android recorder leaves one
    out."""
    options = {"x264-params": "scenecut=0:bframes=0", "forced-idr": "1"}
    clip = make(path, steady(150, 25), Recipe(gop=15, options=options))
    data = bytearray(path.read_bytes())
    place, entries = entries_of_keyframes(data)
    kept = [entry for entry in entries if entry != entries[1]]
    struct.pack_into(f">{1 + len(entries)}I", data, place, len(kept), *kept, 0)
    path.write_bytes(data)
    return clip


def with_false_keyframe(path: Path) -> Golden:
    """A picture that leans on others is listed as a keyframe, as some phones do (MPEG-4)."""
    clip = make(path, steady(250, 25), Recipe("mpeg4", gop=100))
    data = bytearray(path.read_bytes())
    place, entries = entries_of_keyframes(data)
    assert entries == [1, 101, 201]
    struct.pack_into(">3I", data, place + 4, 1, 131, 201)
    path.write_bytes(data)
    return clip


def with_two_videos(path: Path) -> Golden:
    """A cover of one picture, marked as the one to show, beside the film."""
    film = make(path.with_name("film.mp4"), steady(75, 25), Recipe())
    cover = make(path.with_name("cover.mp4"), [0], Recipe("mjpeg", "yuvj420p"))
    with (
        av.open(str(cover.path)) as first,
        av.open(str(film.path)) as second,
        av.open(str(path), "w") as taken,
    ):
        sources = (first, second)
        streams = [taken.add_stream_from_template(given.streams.video[0]) for given in sources]
        for given, stream in zip(sources, streams, strict=True):
            for packet in given.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    taken.mux(packet)
    return Golden(path, film.pts_seconds)
