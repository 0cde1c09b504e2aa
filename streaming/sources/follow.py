"""A file that still grows, such as a recording under way: read on as it is written.

Times are those of the file, as with any file, and nothing is dropped; it ends once nothing has been
written for a while. Knows nothing of sampling rates but its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from frames import Frame, Sampler
from streaming.sources.clock import Clock
from streaming.sources.connection import as_rgb, usual_rate, video_stream
from streaming.sources.diagnosis import trouble_of
from streaming.sources.pictures import stamp_of
from streaming.sources.trouble import SourceError, TroubleError

POLL_SECONDS = 0.2
QUIET_SECONDS = 20.0  # a recorder that writes less often buffers more than anyone would wait for


class GrowingFile:
    """A file for FFmpeg to read, whose end is waited beyond."""

    def __init__(self, path: Path, quiet_seconds: float, stopped: threading.Event) -> None:
        self._file = path.open("rb")
        self._quiet_seconds = quiet_seconds
        self._stopped = stopped
        self.num_waits = 0  # tells a slow writer from a stuck reader

    def read(self, num_bytes: int) -> bytes:
        """More of the file, as soon as there is some; nothing once it has come to rest."""
        waited = 0.0
        while not self._stopped.is_set():
            if data := self._file.read(num_bytes):
                return data
            if waited >= self._quiet_seconds:
                break
            self._stopped.wait(POLL_SECONDS)
            waited += POLL_SECONDS
            self.num_waits += 1
        return b""

    def close(self) -> None:
        self._file.close()


class FollowSource:
    """The frames of a growing file, `fps` a second of its own time.

    Raises SourceError, from `frames`, for what is no video.
    """

    is_live = False

    def __init__(
        self,
        path: Path | str,
        fps: float = 2.0,
        start_seconds: float = 0.0,
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        self.path = Path(path)
        self.title = f"follow:{self.path}"
        self.warnings: list[str] = []
        self._fps = fps
        self._start_seconds = start_seconds
        self._quiet_seconds = quiet_seconds
        self._stopped = threading.Event()
        self._file: GrowingFile | None = None
        self._num_packets = 0

    @property
    def progress(self) -> int:
        return self._num_packets + (self._file.num_waits if self._file else 0)

    def close(self) -> None:
        self._stopped.set()

    def frames(self) -> Iterator[Frame]:
        try:
            self._file = GrowingFile(self.path, self._quiet_seconds, self._stopped)
        except OSError as error:
            raise SourceError(f"{self.path} cannot be opened: {error.strerror}.") from error
        try:
            with self._open(self._file) as container:
                yield from self._sampled(container)
        except (FFmpegError, TroubleError) as error:
            raise SourceError(
                f"{self.path.name} cannot be followed: {trouble_of(error).code}. MPEG-TS, Matroska "
                "and fragmented MP4 can be read while they are written; plain MP4 cannot."
            ) from error
        finally:
            self._file.close()

    def _open(self, file: GrowingFile) -> InputContainer:
        container = av.open(file)
        assert isinstance(container, InputContainer)
        return container

    def _sampled(self, container: InputContainer) -> Iterator[Frame]:
        stream = video_stream(container)
        assert stream.time_base is not None
        clock = Clock(stream.time_base, Fraction(usual_rate(stream)))
        sampler = Sampler(self._fps)
        reformatter = VideoReformatter()
        index = 0
        for packet in container.demux(stream):
            self._num_packets += 1
            if self._stopped.is_set():
                return
            for picture in stream.codec_context.decode(packet if packet.size else None):
                seconds = clock.seconds(stamp_of(picture))
                if sampler.takes(seconds) and seconds >= self._start_seconds:
                    yield Frame(as_rgb(picture, reformatter), seconds, index)
                    index += 1
