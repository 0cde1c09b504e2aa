"""One video file, decoded picture by picture, each with its true time.

Knows nothing of sampling rates, queues or models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from streaming.sources.opening import SourceError, open_video

# pictures per second where a stream tells neither times nor a rate, as FFmpeg assumes
_DEFAULT_RATE = Fraction(25)
_JUMP_SECONDS = 1.0  # times that fall back further than this begin anew; less is jitter
# a keyframe is sought that far before where it should be
_LOOK_BACK_SECONDS = (0.0, 2.0, 10.0, 60.0)


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, still in its codec's own format; `seconds` counts from the first picture
    of the file.
    """

    frame: VideoFrame
    seconds: float


class Clock:
    """Turns time stamps into seconds since the first picture, whatever the container did to them.

    Stamps that fall back (two recordings joined) count on from where they were; missing ones follow
    the nominal rate. `first`: the stamp that means 0 s; None takes the first one seen.
    """

    def __init__(self, time_base: Fraction, rate: Fraction, first: int | None = None) -> None:
        self.first = first
        self.last_seconds: float | None = None
        self.jumps_seconds: list[float] = []  # where stamps fell back
        self._time_base = time_base
        self._spacing_seconds = float(1 / rate)
        self._shift_seconds = 0.0

    def seconds(self, stamp: int | None) -> float:
        """The time of the next picture."""
        next_seconds = (
            0.0 if self.last_seconds is None else self.last_seconds + self._spacing_seconds
        )
        found = next_seconds if stamp is None else self.at(stamp)
        if self.falls_back(found):
            self._shift_seconds += next_seconds - found
            self.jumps_seconds.append(next_seconds)
            found = next_seconds
        self.last_seconds = found
        return found

    def at(self, stamp: int) -> float:
        """The time that a stamp means at this point of the file."""
        if self.first is None:
            self.first = stamp
        return float((stamp - self.first) * self._time_base) + self._shift_seconds

    def falls_back(self, seconds: float) -> bool:
        """Whether a time lies so far before the last picture's that the stamps begin anew."""
        return self.last_seconds is not None and seconds < self.last_seconds - _JUMP_SECONDS

    def stamp(self, seconds: float) -> int:
        """The stamp nearest to a time, in a file whose stamps never fall back."""
        return round(Fraction(seconds) / self._time_base) + (self.first or 0)


class VideoFile:
    """An open file and its best video stream. Close it, or use it in a `with`.

    first_stamp: the stamp that means 0 s; None takes that of the first picture.
    keyframes_at: decode keyframes only, and of those the ones whose seconds it accepts; it is asked
    once for each.
    on_damage: called with the time in seconds of each packet not decoded and each picture decoded
    in part. Raises SourceError where the file is missing, is no video, or has no video stream.
    """

    def __init__(
        self,
        path: Path,
        first_stamp: int | None = None,
        on_damage: Callable[[float], None] | None = None,
        keyframes_at: Callable[[float], bool] | None = None,
    ) -> None:
        self._path = path
        self._keyframes_at = keyframes_at
        self.container, self.stream = open_video(path)
        self._file_bytes = path.stat().st_size
        self.rate = _fraction(self.stream.average_rate) or _DEFAULT_RATE
        self.time_base = _fraction(self.stream.time_base) or Fraction(1, 90_000)
        self.clock = Clock(self.time_base, self.rate, first_stamp)
        self.packets_read = 0  # of any stream: tells a slow file from a stuck one
        self.end_seconds = 0.0  # end of the last packet of any stream, on the container's own clock
        self._on_damage = on_damage or (lambda seconds: None)
        self._reformatter = VideoReformatter()
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
            yield from (picture for picture in self._decode(None) if picture.seconds >= earliest)

    def pictures_from(self, seconds: float) -> Iterator[Picture]:
        """The pictures from the last keyframe that can be found at or before `seconds`, to the end.

        Containers without an index land anywhere near; then we look further back, and at last begin
        at the beginning. Only for files whose stamps never fall back.
        """
        for back_seconds in _LOOK_BACK_SECONDS:
            if seconds <= back_seconds or not self._seek(seconds - back_seconds):
                break
            pictures = self.pictures(from_keyframe=True)
            first = next(pictures, None)
            if first is not None and first.seconds <= seconds:
                return itertools.chain([first], pictures)
        self.rewind()
        return self.pictures()

    def packets(self) -> Iterator[Packet[Stream]]:
        """The packets of our stream from here to the end, without the empty ones that Theora is
        full of.

        A broken index can promise packets for ever: we stop when there are more of them than the
        file has bytes, or when they weigh twice as much.
        """
        num_packets = num_bytes = 0
        try:
            for packet in self.container.demux():
                num_packets, num_bytes = num_packets + 1, num_bytes + packet.size
                if num_packets > self._file_bytes or num_bytes > 2 * self._file_bytes:
                    self._on_damage(self.clock.last_seconds or 0.0)
                    return
                if self._stopped:
                    return
                self.packets_read += 1
                self._note_end(packet)
                if packet.stream_index == self.stream.index and packet.size:
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
        self.clock = Clock(self.time_base, self.rate, self.clock.first)

    def stop(self) -> None:
        """End `pictures()` soon; may be called from any thread."""
        self._stopped = True

    def rgb(self, picture: Picture) -> NDArray[np.uint8]:
        """The picture as uint8 [H, W, 3], upright. Raises SourceError for a kind of colours that is
        not known here.
        """
        try:
            image = self._reformatter.reformat(picture.frame, format="rgb24").to_ndarray()
        except FFmpegError as error:
            raise SourceError(f"The colours of {self._path.name} cannot be read.") from error
        return upright(image.astype(np.uint8, copy=False), display_matrix(picture.frame))

    def close(self) -> None:
        self.container.close()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _seek(self, seconds: float) -> bool:
        try:
            self.container.seek(self.clock.stamp(seconds), stream=self.stream)
        except FFmpegError:
            return False
        self.clock.last_seconds = None
        return True

    def _decode(self, packet: Packet[Stream] | None) -> list[Picture]:
        try:
            frames = self.stream.codec_context.decode(packet)
        except FFmpegError:
            self._on_damage(self._packet_seconds(packet))
            return []
        pictures = [Picture(frame, self.clock.seconds(stamp_of(frame))) for frame in frames]
        for picture in pictures:
            if picture.frame.is_corrupt:
                self._on_damage(picture.seconds)
        return pictures

    def _is_wanted(self, packet: Packet[Stream]) -> bool:
        """Whether to decode it. A keyframe whose time is missing or falls back has one only when it
        is decoded.
        """
        if self._keyframes_at is None or not packet.is_keyframe:
            return self._keyframes_at is None
        stamp = stamp_of(packet)
        if stamp is None or self.clock.falls_back(self.clock.at(stamp)):
            return True
        return self._keyframes_at(self.clock.at(stamp))

    def _packet_seconds(self, packet: Packet[Stream] | None) -> float:
        stamp = None if packet is None else stamp_of(packet)
        if stamp is None or self.clock.first is None:
            return self.clock.last_seconds or 0.0
        return self.clock.at(stamp)

    def _note_end(self, packet: Packet[Stream]) -> None:
        if packet.pts is not None and packet.time_base:
            end = float(packet.pts + (packet.duration or 0)) * float(packet.time_base)
            self.end_seconds = max(self.end_seconds, end)


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the container's wish for display, in 1/65536: x' = a x + c y, y' = b x + d
    y.
    """
    found = frame.side_data.get("DISPLAYMATRIX") if frame.rotation else None
    if not isinstance(found, SideData):
        return 1 << 16, 0, 0, 1 << 16
    a, b, _, c, d, *_ = np.frombuffer(bytes(found)[:36], np.int32).tolist()
    return a, b, c, d


def upright(image: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """`image` [H, W, 3] turned and mirrored as the matrix says, to the nearest right angle;
    contiguous.
    """
    a, b, c, d = matrix
    down, right = (d, a)
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, down, right = image.transpose(1, 0, 2), b, c
    image = image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
    return np.ascontiguousarray(image)


def stamp_of(found: VideoFrame | Packet[Stream]) -> int | None:
    """Its time in the stream's unit, or None.

    Some AVI files tell decoding times only; a decoded picture carries the one of the moment it came
    out.
    """
    return found.pts if found.pts is not None else found.dts


def _fraction(found: Fraction | None) -> Fraction | None:
    """PyAV gives fractions or None up to 18, and rationals of its own, 0 where unknown, from 19
    on.
    """
    return Fraction(found.numerator, found.denominator) if found else None
