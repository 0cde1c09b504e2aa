"""A video file as a stream of frames, sampled by time.

Says what was wrong with the file as it goes. Knows nothing of threads (see `reader.py`) or models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from frames import Frame, Sampler
from streaming.sources.opening import SourceError
from streaming.sources.pictures import Picture, VideoFile
from streaming.sources.probe import SourceInfo, probe
from streaming.sources.truncation import ends_inside_a_unit

__all__ = ["EmptyStretchError", "FileSource", "SourceError", "SourceInfo", "probe"]

_SEEK_FROM_SECONDS = 5.0  # a start before that is reached sooner by decoding
_CLAIM_SLACK_SECONDS = 1.0  # headers round, and sound may end a little before what they claim
# can be wound, and tell their duration
_INDEXED_CONTAINERS = ("mov", "matroska", "avi", "flv", "asf")


class EmptyStretchError(SourceError):
    """The stretch asked for has no picture; the video may have others."""


class FileSource:
    """The frames of a video file, `fps` a second of its own time; see `Sampler` for which pictures
    are taken.

    Only pictures whose time lies in [start_seconds, stop_seconds) are given; times count from the
    first picture of the file whatever the start. only_keyframes: of the file's own keyframes only,
    and nothing but those that are taken is decoded; how many there are is up to who made the file.
    `warnings` grows while reading, one sentence each; `progress` with every packet read. Raises
    SourceError at once where the file cannot be watched, ValueError for a rate or stretch that
    makes no sense.
    """

    def __init__(
        self,
        path: Path | str,
        fps: float = 2.0,
        start_seconds: float = 0.0,
        stop_seconds: float | None = None,
        only_keyframes: bool = False,
    ) -> None:
        if fps <= 0:
            raise ValueError(f"fps must be positive, not {fps}")
        if start_seconds < 0 or (stop_seconds is not None and stop_seconds <= start_seconds):
            raise ValueError(f"not a stretch of video: {start_seconds} s to {stop_seconds} s")
        self.info = probe(path)
        self.warnings = _warnings_of_kind(self.info)
        self._fps = fps
        self._start_seconds = start_seconds
        self._stop_seconds = float("inf") if stop_seconds is None else stop_seconds
        self._only_keyframes = only_keyframes
        self._video: VideoFile | None = None
        self._size = (self.info.width, self.info.height)
        self._closed = False

    @property
    def progress(self) -> int:
        """Grows as long as the file is being read, whether or not a frame comes of it."""
        return 0 if self._video is None else self._video.packets_read

    def frames(self) -> Iterator[Frame]:
        """The sampled frames in order. Raises EmptyStretchError where the stretch asked for has
        none.
        """
        damage = _Damage(self.info.path.name, self.warnings)
        index = 0
        wanted = Sampler(self._fps, self._start_seconds).takes if self._only_keyframes else None
        with VideoFile(self.info.path, self.info.first_stamp, damage.add, wanted) as video:
            self._video = video
            for picture in self._sampled(video):
                yield self._frame(video, picture, index)
                index += 1
            damage.sum_up()
            self._warn_of_jumps(video)
        if not index and not self._closed:
            raise EmptyStretchError(
                f"{self.info.path.name} shows nothing from {self._start_seconds:g} s on."
            )

    def close(self) -> None:
        """End `frames()` soon and for good; may be called from any thread."""
        self._closed = True
        if self._video is not None:
            self._video.stop()

    def _sampled(self, video: VideoFile) -> Iterator[Picture]:
        sampler = Sampler(self._fps, self._start_seconds)
        last_seconds = 0.0
        for picture in self._pictures(video):
            if self._closed or picture.seconds >= self._stop_seconds:
                return
            last_seconds = picture.seconds
            if sampler.takes(picture.seconds):
                yield picture
        self._warn_of_end(video, last_seconds)

    def _pictures(self, video: VideoFile) -> Iterator[Picture]:
        if self._start_seconds < _SEEK_FROM_SECONDS or not self.info.container.startswith(
            _INDEXED_CONTAINERS
        ):
            return video.pictures()
        return video.pictures_from(self._start_seconds)

    def _frame(self, video: VideoFile, picture: Picture, index: int) -> Frame:
        frame = Frame(video.rgb(picture), picture.seconds, index)
        size = (frame.width, frame.height)
        if size != self._size:
            before, now = (f"{width}x{height}" for width, height in (self._size, size))
            self.warnings.append(
                f"The pictures of {self.info.path.name} change from {before} to {now} at "
                f"{picture.seconds:.1f} s."
            )
            self._size = size
        return frame

    def _warn_of_jumps(self, video: VideoFile) -> None:
        for at_seconds in video.clock.jumps_seconds:
            self.warnings.append(
                f"The times of {self.info.path.name} begin anew at {at_seconds:.1f} s; we count on."
            )

    def _warn_of_end(self, video: VideoFile, last_seconds: float) -> None:
        """Compare what was there with what the container promised."""
        name, container = self.info.path.name, self.info.container
        claimed_seconds = (
            (video.container.duration or 0) / 1e6
            if container.startswith(_INDEXED_CONTAINERS)
            else 0.0
        )
        if video.end_seconds < claimed_seconds - _CLAIM_SLACK_SECONDS:
            told = f" of {claimed_seconds:.1f} s"
        elif ends_inside_a_unit(self.info.path, container):
            told = ", in the middle of its data"
        else:
            return
        self.warnings.append(
            f"{name} breaks off at {last_seconds:.1f} s{told}; it was used up to there."
        )


class _Damage:
    """Says at once where a file is first damaged, and at the end how often in all."""

    def __init__(self, name: str, warnings: list[str]) -> None:
        self._name = name
        self._warnings = warnings
        self._places = 0
        self._last_seconds = 0.0

    def add(self, seconds: float) -> None:
        self._places += 1
        self._last_seconds = seconds
        if self._places == 1:
            self._warnings.append(
                f"{self._name} is damaged at {seconds:.1f} s; what could be decoded was used."
            )

    def sum_up(self) -> None:
        if self._places > 1:
            told = (
                f"is damaged in {self._places} places in all, the last at "
                f"{self._last_seconds:.1f} s"
            )
            self._warnings.append(f"{self._name} {told}.")


def _warnings_of_kind(info: SourceInfo) -> list[str]:
    """What is known to be off before a picture is shown."""
    warnings = []
    if info.hdr:
        warnings.append(
            f"{info.path.name} is HDR ({info.hdr}); its colours are read without tone mapping."
        )
    if info.first_stamp is None:
        warnings.append(
            f"{info.path.name} carries no times; {info.rate:g} pictures a second are assumed."
        )
    return warnings
