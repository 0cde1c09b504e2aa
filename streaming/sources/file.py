"""A video file as a stream of frames, sampled by time.

Says what was wrong with the file as it goes. Knows nothing of threads (see `reader.py`) or models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from frames import ROUNDING_SECONDS, Frame, Sampler, previous_tick_seconds
from streaming.sources.pictures import Picture, VideoFile
from streaming.sources.probe import SourceInfo, open_as_probed, probe
from streaming.sources.trouble import SourceError
from streaming.sources.truncation import ends_inside_a_unit

__all__ = ["EmptyStretchError", "FileSource", "SourceError", "SourceInfo", "probe"]

_SEEK_FROM_SECONDS = 5.0  # a start before that is reached sooner by decoding
_CLAIM_SLACK_SECONDS = 1.0  # headers round, and sound may end a little before what they claim
_ALIKE_SHARE = 0.1  # of pictures without a time of their own, from which on it is told
_STANDS_SECONDS = 5.0  # of a last picture, from which on it is looked at once more
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
        with open_as_probed(self.info, damage.add, wanted) as video:
            self._video = video
            for picture in self._sampled(video, damage):
                yield self._frame(video, picture, index)
                index += 1
            damage.sum_up()
            self._warn_of_times(video)
        if not index and not self._closed:
            raise EmptyStretchError(
                f"{self.info.path.name} shows nothing from {self._start_seconds:g} s on."
            )

    def close(self) -> None:
        """End `frames()` soon and for good; may be called from any thread."""
        self._closed = True
        if self._video is not None:
            self._video.stop()

    def _sampled(self, video: VideoFile, damage: _Damage) -> Iterator[Picture]:
        sampler = Sampler(self._fps, self._start_seconds)
        last: Picture | None = None
        for picture in self._pictures(video):
            if self._closed:
                return
            if picture.seconds >= self._stop_seconds:
                yield from self._standing(last, self._stop_seconds)
                return
            last = picture
            if sampler.takes(picture.seconds):
                yield picture
        self._warn_of_end(video, last.seconds if last else 0.0)
        if not damage.places and not self._closed:
            yield from self._standing(last, min(self._end_seconds(video, last), self._stop_seconds))

    def _standing(self, last: Picture | None, until_seconds: float) -> Iterator[Picture]:
        """The last picture once more where it stands for long, at its last tick.

        Screen recorders write nothing while nothing moves. Without this a film would end for us
        where its last change was.
        """
        if last is None or until_seconds - last.seconds < _STANDS_SECONDS:
            return
        tick_seconds = previous_tick_seconds(until_seconds, self._fps)
        if tick_seconds > max(last.seconds, self._start_seconds) + ROUNDING_SECONDS:
            yield Picture(last.frame, tick_seconds)

    def _end_seconds(self, video: VideoFile, last: Picture | None) -> float:
        """Where the last picture ends for a player, no later than what the file claims."""
        claimed_seconds = self.info.duration_seconds
        if last is None or claimed_seconds is None or not self.info.has_times:
            return 0.0
        found = last.seconds + float((last.frame.duration or 0) * video.time_base)
        if not video.clock.jumps_seconds and not video.num_corrected:
            zero_seconds = self.info.start_seconds - self.info.late_seconds
            found = max(found, video.end_seconds - zero_seconds)
        return min(found, claimed_seconds)

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

    def _warn_of_times(self, video: VideoFile) -> None:
        name = self.info.path.name
        for at_seconds in video.clock.jumps_seconds:
            self.warnings.append(
                f"The times of {name} begin anew at {at_seconds:.1f} s; we count on."
            )
        for before_seconds, after_seconds in video.clock.gaps_seconds:
            self.warnings.append(
                f"{name} has no pictures from {before_seconds:.1f} s to {after_seconds:.1f} s."
            )
        if video.num_corrected:
            self.warnings.append(
                f"{name} stamps {video.num_corrected} of its pictures far from the others; they "
                "were put between their neighbours."
            )
        if video.clock.num_alike > _ALIKE_SHARE * video.clock.num_pictures:
            self.warnings.append(
                f"{video.clock.num_alike} of {video.clock.num_pictures} pictures of {name} have "
                "the same time as the one before them."
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
        self.places = 0
        self._last_seconds = 0.0

    def add(self, seconds: float) -> None:
        self.places += 1
        self._last_seconds = seconds
        if self.places == 1:
            self._warnings.append(
                f"{self._name} is damaged at {seconds:.1f} s; what could be decoded was used."
            )

    def sum_up(self) -> None:
        if self.places > 1:
            told = (
                f"is damaged in {self.places} places in all, the last at {self._last_seconds:.1f} s"
            )
            self._warnings.append(f"{self._name} {told}.")


def _warnings_of_kind(info: SourceInfo) -> list[str]:
    """What is known to be off before a picture is shown."""
    warnings = []
    if info.hdr:
        warnings.append(
            f"{info.path.name} is HDR ({info.hdr}); its colours are read without tone mapping."
        )
    if not info.has_times:
        warnings.append(
            f"{info.path.name} carries no times; {info.rate:g} pictures a second are assumed."
        )
    if info.late_seconds:
        warnings.append(
            f"The pictures of {info.path.name} begin at {info.late_seconds:.1f} s, later than its "
            "sound."
        )
    if info.num_videos > 1:
        warnings.append(
            f"{info.path.name} holds {info.num_videos} videos; that of {info.width}x{info.height} "
            f"({info.codec}) is watched."
        )
    return warnings
