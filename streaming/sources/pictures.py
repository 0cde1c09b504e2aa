"""One video file, decoded picture by picture, each with its true time.

Knows nothing of sampling rates, queues or models.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from streaming.sources.clock import Clock, Timeline
from streaming.sources.decoder_memory import DECODERS, decoder_bytes
from streaming.sources.display import Display
from streaming.sources.opening import open_video
from streaming.sources.trouble import SourceError

# pictures per second where a stream tells neither times nor a rate, as FFmpeg assumes
_DEFAULT_RATE = Fraction(25)
_HIGHEST_RATE = 480  # a greater one is the unit of the container's clock
# a keyframe is sought that far before where it should be
_LOOK_BACK_SECONDS = (0.0, 2.0, 10.0, 60.0)


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, still in its codec's own format; `seconds` counts from the first picture
    of the file.
    """

    frame: VideoFrame
    seconds: float


class VideoFile:
    """An open file and its best video stream. Close it, or use it in a `with`.

    zero_stamp: the stamp that means 0 s; None takes that of the first picture. ignore_stamps: for a
    file whose stamps say nothing: its pictures follow the nominal rate.
    keyframes_at: decode keyframes only, and of those the ones whose seconds it accepts; it is asked
    once for each.
    on_damage: called with the time in seconds of each packet not decoded and each picture decoded
    in part. Raises SourceError where the file is missing, is no video, has no video stream, or
    where there is no memory left to decode it.
    """

    def __init__(
        self,
        path: Path,
        zero_stamp: int | None = None,
        on_damage: Callable[[float], None] | None = None,
        keyframes_at: Callable[[float], bool] | None = None,
        ignore_stamps: bool = False,
    ) -> None:
        self._path = path
        self._keyframes_at = keyframes_at
        self._ignore_stamps = ignore_stamps
        self.container, self.stream = open_video(path)
        self._release = self._reserve_memory()
        self._file_bytes = _size_of(path, 0)
        self.rate = _rate(self.stream)
        self.time_base = _fraction(self.stream.time_base) or Fraction(1, 90_000)
        self.clock = Clock(self.time_base, self.rate, zero_stamp)
        self._timeline: Timeline[VideoFrame] = Timeline(self.clock)
        self.video_packets = 0  # of our stream
        self.is_encrypted = False  # known once a packet was read
        self.packets_read = 0  # of any stream: tells a slow file from a stuck one
        self.end_seconds = 0.0  # end of the last packet of any stream, on the container's own clock
        self.num_corrected = 0  # pictures whose stamps lay far ahead of their neighbours'
        self._on_damage = on_damage or (lambda seconds: None)
        self._display = Display(_fraction(self.stream.sample_aspect_ratio))
        self._stopped = False

    def pictures(self, from_keyframe: bool = False) -> Iterator[Picture]:
        """The pictures from here to the end, in the order they are shown; damaged packets are
        skipped.

        from_keyframe: after a seek, leave out what is not whole: packets before the first keyframe,
        and the pictures shown before it, which lean on earlier ones.
        """
        earliest = None if from_keyframe else float("-inf")
        for packet in self.packets():
            if not self._is_wanted(packet):
                continue
            if earliest is None:
                if not packet.is_keyframe:
                    continue
                earliest = self._packet_seconds(packet) - 1e-6
            yield from (picture for picture in self._decode(packet) if picture.seconds >= earliest)
        if not self._stopped and earliest is not None:
            rest = itertools.chain(self._decode(None), self._last_pictures())
            yield from (picture for picture in rest if picture.seconds >= earliest)

    def pictures_from(self, seconds: float) -> Iterator[Picture]:
        """The pictures from the last keyframe that can be found at or before `seconds`, to the end.

        Containers without an index land anywhere near, and some list keyframes that are none; then
        we look further back, and at last begin at the beginning. Only for files whose stamps never
        fall back.
        """
        for back_seconds in _LOOK_BACK_SECONDS:
            if seconds <= back_seconds or not self._seek(seconds - back_seconds):
                break
            pictures = self.pictures(from_keyframe=True)
            first = next(pictures, None)
            if first is not None and first.seconds <= seconds and _stands_alone(first.frame):
                return itertools.chain([first], pictures)
        self.rewind()
        return self.pictures()

    def packets(self) -> Iterator[Packet[Stream]]:
        """The packets of our stream from here to the end, without the empty ones that Theora is
        full of.

        A broken index can promise packets for ever: we stop when there are more of them than the
        file has bytes, or when they weigh twice as much. A file that is still being recorded grows.
        """
        num_packets = num_bytes = 0
        try:
            for packet in self.container.demux():
                num_packets, num_bytes = num_packets + 1, num_bytes + packet.size
                if self._exceeds_file(num_packets, num_bytes):
                    self._on_damage(self.clock.last_seconds or 0.0)
                    return
                if self._stopped:
                    return
                self.packets_read += 1
                self._note_end(packet)
                if packet.stream_index == self.stream.index and packet.size:
                    self.video_packets += 1
                    self.is_encrypted |= packet.has_sidedata("encryption_info")
                    yield packet
        except FFmpegError:
            self._on_damage(self.clock.last_seconds or 0.0)
        except IndexError:
            # PyAV 15 to 18 ends so where a stream turned up on the way; all packets have been read
            # by then
            return

    def rewind(self) -> None:
        """Begin again; works for every container."""
        self.container.close()
        self.container, self.stream = open_video(self._path)
        self._restart(Clock(self.time_base, self.rate, self.clock.first))

    def stop(self) -> None:
        """End `pictures()` soon; may be called from any thread."""
        self._stopped = True

    def rgb(self, picture: Picture) -> NDArray[np.uint8]:
        """The picture as a player shows it, uint8 [H, W, 3]. Raises SourceError for a kind of
        colours that is not known here.
        """
        try:
            return self._display.rgb(picture.frame)
        except FFmpegError as error:
            raise SourceError(f"The colours of {self._path.name} cannot be read.") from error

    def stamp_of(self, found: VideoFrame | Packet[Stream]) -> int | None:
        """Its time in the stream's unit, or None where it has none or it says nothing."""
        return None if self._ignore_stamps else stamp_of(found)

    def close(self) -> None:
        self.container.close()
        self._release()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reserve_memory(self) -> Callable[[], None]:
        """Takes its part of what decoders may hold; one thread needs less than several."""
        release = DECODERS.reserve(decoder_bytes(self.stream))
        if release is None:
            self.stream.codec_context.thread_count = 1
            release = DECODERS.reserve(decoder_bytes(self.stream))
        if release is None:
            needed_bytes = decoder_bytes(self.stream)
            self.container.close()
            raise SourceError(
                f"There is no memory left to decode {self._path.name}, which takes up to "
                f"{needed_bytes >> 20} MB; close another video first."
            )
        weakref.finalize(self, release)  # for a file that nobody closed
        return release

    def _exceeds_file(self, num_packets: int, num_bytes: int) -> bool:
        """Whether more was read than there is; a file that is being recorded has grown."""
        if num_packets <= self._file_bytes and num_bytes <= 2 * self._file_bytes:
            return False
        self._file_bytes = _size_of(self._path, self._file_bytes)
        return num_packets > self._file_bytes or num_bytes > 2 * self._file_bytes

    def _seek(self, seconds: float) -> bool:
        try:
            self.container.seek(self.clock.stamp(seconds), stream=self.stream)
        except FFmpegError:
            return False
        self.clock.last_seconds = None
        self._restart(self.clock)
        return True

    def _restart(self, clock: Clock) -> None:
        self.clock = clock
        self._timeline = Timeline(clock)

    def _decode(self, packet: Packet[Stream] | None) -> list[Picture]:
        try:
            frames = self.stream.codec_context.decode(packet)
        except FFmpegError:
            self._on_damage(self._packet_seconds(packet))
            return []
        pictures: list[Picture] = []
        for frame in frames:
            if self._keyframes_at is not None and not _stands_alone(frame):
                continue  # a container may list pictures as keyframes that lean on others
            for timed, seconds in self._timeline.add(frame, self.stamp_of(frame)):
                pictures.append(Picture(timed, seconds))
        for picture in pictures:
            if picture.frame.is_corrupt:
                self._on_damage(picture.seconds)
        self.num_corrected = self._timeline.num_corrected
        return pictures

    def _last_pictures(self) -> Iterator[Picture]:
        """Those that were held back until more is known of their times."""
        for frame, seconds in self._timeline.flush():
            yield Picture(frame, seconds)

    def _is_wanted(self, packet: Packet[Stream]) -> bool:
        """Whether to decode it. A keyframe whose time is missing or falls back has one only when it
        is decoded.
        """
        if self._keyframes_at is None or not packet.is_keyframe:
            return self._keyframes_at is None
        stamp = self.stamp_of(packet)
        if stamp is None:
            return True
        seconds = self.clock.at(stamp)
        if self.clock.falls_back(seconds) or self.clock.runs_ahead(seconds):
            return True
        return self._keyframes_at(seconds)

    def _packet_seconds(self, packet: Packet[Stream] | None) -> float:
        stamp = None if packet is None else self.stamp_of(packet)
        if stamp is None or self.clock.first is None:
            return self.clock.last_seconds or 0.0
        return self.clock.at(stamp)

    def _note_end(self, packet: Packet[Stream]) -> None:
        if packet.pts is not None and packet.time_base:
            end = float(packet.pts + (packet.duration or 0)) * float(packet.time_base)
            self.end_seconds = max(self.end_seconds, end)


def _stands_alone(frame: VideoFrame) -> bool:
    """Whether a picture leans on no other, whatever the container says of its packet."""
    return frame.key_frame or frame.pict_type == PictureType.I


def stamp_of(found: VideoFrame | Packet[Stream]) -> int | None:
    """Its time in the stream's unit, or None.

    Some AVI files tell decoding times only; a decoded picture carries the one of the moment it came
    out.
    """
    return found.pts if found.pts is not None else found.dts


def _size_of(path: Path, otherwise: int) -> int:
    """In bytes; a file may be deleted while it is read."""
    try:
        return path.stat().st_size
    except OSError:
        return otherwise


def _rate(stream: VideoStream) -> Fraction:
    """Pictures per second; some containers only say how finely they count."""
    rate = _fraction(stream.average_rate) or _fraction(stream.guessed_rate)
    return rate if rate and 0 < rate <= _HIGHEST_RATE else _DEFAULT_RATE


def _fraction(found: Fraction | None) -> Fraction | None:
    """PyAV gives fractions or None up to 18, and rationals of its own, 0 where unknown, from 19
    on.
    """
    return Fraction(found.numerator, found.denominator) if found else None
