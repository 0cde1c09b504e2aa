"""What a video file says of itself, checked by decoding its first picture.

Knows nothing of sampling or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from streaming.sources.display import display_matrix
from streaming.sources.opening import check_sides, video_streams
from streaming.sources.pictures import Picture, VideoFile, stamp_of
from streaming.sources.trouble import SourceError

_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # FFmpeg's AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67
# Sound often begins a little before the pictures, by what its coder needs; nobody sees that.
_LATE_SLACK_SECONDS = 0.1
_PACKETS_LOOKED_AT = 32
_FEW_PACKETS = 8  # too few to say anything of a file
_UNREADABLE_SHARE = 0.8  # of the first packets, from which on a file is not worth watching
_STILL_CONTAINERS = ("gif", "apng")


@dataclass(frozen=True)
class SourceInfo:
    """A video file in figures.

    width, height: of the first picture, upright and with square pixels.
    duration_seconds: as claimed, None where unknown; good for a progress bar, no more.
    rate: pictures per second, on average or by name.
    zero_stamp: the stamp that means 0 s, in the container's own unit: of the first picture or of
    the sound before it, as players count; None where the file has no times.
    start_seconds: the first picture on the container's own clock. late_seconds: how long after 0 s
    it comes up.
    has_times: False where the stamps are missing or all alike.
    hdr: "PQ" or "HLG" where the pictures are HDR.
    num_videos: streams that could be watched, of which this is one.
    """

    path: Path
    container: str
    codec: str
    width: int
    height: int
    rate: float
    duration_seconds: float | None
    zero_stamp: int | None
    start_seconds: float
    late_seconds: float
    has_times: bool
    is_turned: bool
    hdr: str | None
    num_videos: int


def probe(path: Path | str) -> SourceInfo:
    """Open a file, decode its first picture, close it. Raises SourceError where it cannot be
    watched.
    """
    path = Path(path)
    damage = _DamageCount()
    with VideoFile(path, on_damage=damage.add) as video:
        pictures = video.pictures()
        first = next(pictures, None)
        if video.is_encrypted:
            raise SourceError(f"{path.name} is encrypted and cannot be watched.")
        if first is None:
            raise SourceError(f"No picture of {path.name} could be decoded.")
        if damage.places:
            _check_readable(video, pictures, damage, path.name)
        packets = islice(video.packets(), _PACKETS_LOOKED_AT)
        return _describe(path, video, first, [stamp_of(packet) for packet in packets])


class _DamageCount:
    def __init__(self) -> None:
        self.places = 0

    def add(self, seconds: float) -> None:
        self.places += 1


def _check_readable(
    video: VideoFile, pictures: Iterator[Picture], damage: _DamageCount, name: str
) -> None:
    """Raises SourceError where hardly a packet after the first picture can be decoded.

    Grey pictures come out of such a file all the same. Packets before the first picture do not
    count: a recording may begin between keyframes.
    """
    damage.places, before = 0, video.video_packets
    for _ in pictures:
        if video.video_packets - before >= _PACKETS_LOOKED_AT:
            break
    looked_at = video.video_packets - before
    if looked_at >= _FEW_PACKETS and damage.places > _UNREADABLE_SHARE * looked_at:
        raise SourceError(f"Nearly nothing of {name} can be decoded: it is damaged or encrypted.")


def open_as_probed(
    info: SourceInfo,
    on_damage: Callable[[float], None] | None = None,
    keyframes_at: Callable[[float], bool] | None = None,
) -> VideoFile:
    """The file again, with its times counted as its probe found right."""
    return VideoFile(
        info.path, info.zero_stamp, on_damage, keyframes_at, ignore_stamps=not info.has_times
    )


def _describe(path: Path, video: VideoFile, first: Picture, stamps: list[int | None]) -> SourceInfo:
    """stamps: of a few packets after the first picture's."""
    height, width = video.rgb(first).shape[:2]
    check_sides(width, height, path.name)
    container = video.container.format.name
    if container in _STILL_CONTAINERS and not stamps:
        raise SourceError(f"{path.name} is a picture, and longlook watches videos.")
    stamp = stamp_of(first.frame)
    has_times = stamp is not None and not (stamps and set(stamps) == {stamp})
    start_seconds = 0.0 if stamp is None else float(stamp * video.time_base)
    late_seconds = _late_seconds(video, start_seconds) if has_times else 0.0
    zero_stamp = None
    if stamp is not None and has_times:
        zero_stamp = stamp - round(late_seconds / video.time_base)
    return SourceInfo(
        path=path,
        container=container,
        codec=video.stream.codec_context.codec.canonical_name,
        width=width,
        height=height,
        rate=float(video.rate),
        duration_seconds=_duration_seconds(video, start_seconds, late_seconds, has_times),
        zero_stamp=zero_stamp,
        start_seconds=start_seconds,
        late_seconds=late_seconds,
        has_times=has_times,
        is_turned=display_matrix(first.frame)[1] != 0,
        hdr=_HDR_TRANSFERS.get(int(video.stream.codec_context.color_trc)),
        num_videos=len(video_streams(video.container)),
    )


def _late_seconds(video: VideoFile, start_seconds: float) -> float:
    """How long after the earliest stream the first picture comes, 0 where that is nearly nothing.

    A player starts with the earliest stream, so the times that people name count from there.
    """
    begins, lasts = video.container.start_time, video.container.duration  # in microseconds
    if begins is None or not lasts:
        return 0.0
    late_seconds = start_seconds - begins / 1e6
    is_late = _LATE_SLACK_SECONDS < late_seconds < lasts / 1e6
    return late_seconds if is_late else 0.0


def _duration_seconds(
    video: VideoFile, start_seconds: float, late_seconds: float, has_times: bool
) -> float | None:
    if not has_times:
        return video.stream.frames / float(video.rate) if video.stream.frames else None
    if video.stream.duration:
        return float(video.stream.duration * video.time_base) + late_seconds
    if not video.container.duration:
        return None
    seconds = video.container.duration / 1e6  # in microseconds
    counts_from_zero = (
        video.container.format.name.startswith("matroska") and seconds > start_seconds
    )
    return seconds - (start_seconds - late_seconds) if counts_from_zero else seconds
