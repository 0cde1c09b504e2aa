"""Pictures of a file re-read at random: the one shown at each moment asked for.

By decord where it is proven exact, else by winding PyAV to a keyframe and decoding on; where times
are missing or begin anew, by reading from the start. Measured on decord2 3.4: wherever pictures
lean back over a keyframe (open GOPs, whatever the codec), and wherever a seek does not land on the
keyframe that the packets name, it shows pictures 2 to 18 places off, so those files are not for it.
Knows nothing of sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from frames import Frame
from streaming.sources.decord_reader import DecordError, DecordReader
from streaming.sources.packets import PacketScan, scan
from streaming.sources.pictures import Picture
from streaming.sources.probe import SourceInfo, open_as_probed, probe
from streaming.sources.trouble import SourceError

BackendName = Literal["decord", "seek", "in order"]
# a picture, uint8 [H, W, 3] upright, and its time in seconds
Shown = tuple[NDArray[np.uint8], float]

# times this near are one: no container counts more coarsely than in milliseconds
_SAME_SECONDS = 0.0005
_SAME_LEVELS = 2.0  # mean difference allowed between two decoders' pictures of one moment, of 255
_DECODE_ON_SECONDS = 3.0  # to a moment nearer than that, decoding on is no dearer than winding
_DECORD_BATCH = 8  # pictures at a time
# decord2 3.4 fails on HEVC and is off by pictures on MPEG-2 and -4
_DECORD_CODECS = ("h264", "vp8", "vp9", "av1")
# bytes that leave its guessing no choice
_DECORD_STARTS = {"mov": (4, b"ftyp"), "matroska": (0, b"\x1aE\xdf\xa3")}
# decord reads all of a file when it opens it, and so does a scan of its packets
_DECORD_FILE_BYTES = 256 << 20
_INDEXED_CONTAINERS = ("mov", "matroska", "avi")  # whose times never fall back


class Moments:
    """Random access to one file. Close it, or use it in a `with`: decord holds hundreds of
    megabytes in a process of its own.

    backend: None probes, as does "decord"; "seek" and "in order" force, for tests and measurements.
    Opening reads the packets of a file once, undecoded, unless it is large and has an index. Raises
    SourceError where the file cannot be watched.
    """

    def __init__(self, path: Path | str, backend: BackendName | None = None) -> None:
        self.info = probe(path)
        self._backend = self._open(backend)

    def _open(self, backend: BackendName | None) -> _Backend:
        if backend == "in order":
            return _PyAV(self.info, winds=False)
        if backend == "seek" or self._is_large():
            is_indexed = self.info.container.startswith(_INDEXED_CONTAINERS)
            winds = self.info.has_times and (is_indexed or scan(self.info).are_timed)
            return _PyAV(self.info, winds)
        packets = scan(self.info)
        if not packets.are_timed:
            return _PyAV(self.info, winds=False)
        return _exact_decord(self.info, packets) or _PyAV(self.info, winds=True)

    def _is_large(self) -> bool:
        """Whether the file is too large to be read for a few pictures, as decord does."""
        try:
            return self.info.path.stat().st_size > _DECORD_FILE_BYTES
        except OSError as error:
            raise SourceError(f"{self.info.path.name} is gone.") from error

    @property
    def backend(self) -> BackendName:
        """How pictures are found now; a damaged file may turn "decord" into "seek"."""
        return self._backend.name

    def at(self, seconds: Sequence[float]) -> list[Frame]:
        """The pictures shown at these times, in the order asked for.

        Times count from the first picture, as everywhere; before it, it is shown, and after the
        last one, the last. `pts_seconds` of a frame is when its picture came up, `index` its place
        in the list.
        """
        order = sorted(range(len(seconds)), key=seconds.__getitem__)
        wanted = [max(seconds[place], 0.0) for place in order]
        try:
            found = self._backend.shown_at(wanted)
        except DecordError:
            self._backend.close()
            self._backend = _PyAV(self.info, winds=True)
            found = self._backend.shown_at(wanted)
        frames = [
            Frame(image, pts_seconds, place)
            for place, (image, pts_seconds) in zip(order, found, strict=True)
        ]
        return sorted(frames, key=lambda frame: frame.index)

    def close(self) -> None:
        self._backend.close()

    def __enter__(self) -> Moments:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Backend(Protocol):
    name: BackendName

    def shown_at(self, seconds: Sequence[float]) -> list[Shown]:
        """The pictures shown at these ascending times."""
        ...

    def close(self) -> None: ...


class _PyAV:
    """Winds to a keyframe and decodes on; or reads from the start, where winding is not to be
    trusted.
    """

    def __init__(self, info: SourceInfo, winds: bool) -> None:
        self.name: BackendName = "seek" if winds else "in order"
        self._winds = winds
        self._file = open_as_probed(info)
        self._pictures: Iterator[Picture] = iter(())
        self._here: Picture | None = None
        self._next: Picture | None = None

    def shown_at(self, seconds: Sequence[float]) -> list[Shown]:
        return [self._shown_at(moment + _SAME_SECONDS) for moment in seconds]

    def close(self) -> None:
        self._file.close()

    def _shown_at(self, seconds: float) -> Shown:
        if not self._is_ahead(seconds):
            self._wind(seconds)
        while self._next is not None and self._next.seconds <= seconds:
            self._here, self._next = self._next, next(self._pictures, None)
        if self._here is None:
            raise SourceError("The file changed while it was read: its pictures are gone.")
        return self._file.rgb(self._here), self._here.seconds

    def _is_ahead(self, seconds: float) -> bool:
        if self._here is None or seconds < self._here.seconds:
            return False
        return (
            not self._winds
            or self._next is None
            or seconds < self._next.seconds + _DECODE_ON_SECONDS
        )

    def _wind(self, seconds: float) -> None:
        if self._winds:
            self._pictures = self._file.pictures_from(seconds)
        else:
            self._file.rewind()
            self._pictures = self._file.pictures()
        self._here, self._next = next(self._pictures, None), next(self._pictures, None)


class _Decord:
    """decord's reader, asked by picture number; the times are ours. `times`: float64 [n],
    ascending, in seconds.
    """

    name: BackendName = "decord"

    def __init__(self, path: Path, times: NDArray[np.float64]) -> None:
        self._times = times
        self._reader = DecordReader(path)

    def shown_at(self, seconds: Sequence[float]) -> list[Shown]:
        numbers = (
            np.searchsorted(self._times, np.asarray(seconds) + _SAME_SECONDS, side="right") - 1
        )
        numbers = numbers.clip(0, len(self._times) - 1).tolist()
        found: list[Shown] = []
        for start in range(0, len(numbers), _DECORD_BATCH):
            batch = numbers[start : start + _DECORD_BATCH]
            images = self._reader.pictures(batch)
            for image, number in zip(images, batch, strict=True):
                found.append((image.copy(), float(self._times[number])))
        return found

    def has_times(self) -> bool:
        """Whether decord counts the pictures as we do, and puts each where we do (its times are
        float32).
        """
        theirs = self._reader.times
        if len(theirs) != len(self._times):
            return False
        ours = self._times - self._times[0]
        return bool(np.allclose(theirs - theirs[0], ours, rtol=2.0**-22, atol=_SAME_SECONDS))

    def has_keyframes(self, numbers: Sequence[int]) -> bool:
        """Whether decord lists the keyframes that the packets name."""
        return self._reader.keyframes == list(numbers)

    def close(self) -> None:
        self._reader.close()


def _exact_decord(info: SourceInfo, packets: PacketScan) -> _Decord | None:
    """decord on this file, if it counts, times and decodes as PyAV does."""
    is_plain = packets.are_as_claimed and packets.can_be_wound and info.codec in _DECORD_CODECS
    if not is_plain or packets.lean_back or not _starts_for_decord(info):
        return None
    try:
        decord = _Decord(info.path, packets.times)
    except (OSError, DecordError):
        return None
    with ExitStack() as undo:
        undo.callback(decord.close)
        if _is_exact(decord, info, packets):
            undo.pop_all()
            return decord
    return None


def _is_exact(decord: _Decord, info: SourceInfo, packets: PacketScan) -> bool:
    try:
        return (
            decord.has_times()
            and decord.has_keyframes(packets.keyframes)
            and _same_pictures(decord, info, packets.times)
        )
    except (OSError, DecordError):
        return False


def _starts_for_decord(info: SourceInfo) -> bool:
    for container, (offset, mark) in _DECORD_STARTS.items():
        if info.container.startswith(container):
            with info.path.open("rb") as file:
                return file.read(offset + len(mark))[offset:] == mark
    return False


def _same_pictures(decord: _Decord, info: SourceInfo, times: NDArray[np.float64]) -> bool:
    """Compare the first picture and one further on: colours, rotation, and where a jump lands."""
    moments = [0.0, float(times[len(times) * 2 // 3])]
    with closing(_PyAV(info, winds=True)) as pyav:
        pairs = zip(decord.shown_at(moments), pyav.shown_at(moments), strict=True)
        return all(_is_near(theirs, ours) for (theirs, _), (ours, _) in pairs)


def _is_near(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    return (
        one.shape == other.shape
        and float(np.abs(one.astype(np.int16) - other).mean()) <= _SAME_LEVELS
    )
