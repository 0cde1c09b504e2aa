"""What a video file says of itself, checked by decoding its first picture.

Knows nothing of sampling or threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streaming.sources.opening import SourceError
from streaming.sources.pictures import Picture, VideoFile, display_matrix, stamp_of

_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # FFmpeg's AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67


@dataclass(frozen=True)
class SourceInfo:
    """A video file in figures.

    width, height: of the upright first picture.
    duration_seconds: as claimed, None where unknown; good for a progress bar, no more.
    rate: pictures per second, on average or by name.
    first_stamp: how the container stamps the first picture, in its own unit; None where it has no
    times.
    start_seconds: the same in seconds.
    hdr: "PQ" or "HLG" where the pictures are HDR.
    """

    path: Path
    container: str
    codec: str
    width: int
    height: int
    rate: float
    duration_seconds: float | None
    first_stamp: int | None
    start_seconds: float
    is_turned: bool
    hdr: str | None


def probe(path: Path | str) -> SourceInfo:
    """Open a file, decode its first picture, close it. Raises SourceError where it cannot be
    watched.
    """
    path = Path(path)
    with VideoFile(path) as video:
        first = next(video.pictures(), None)
        if first is None:
            raise SourceError(f"No picture of {path.name} could be decoded.")
        return _describe(path, video, first)


def _describe(path: Path, video: VideoFile, first: Picture) -> SourceInfo:
    height, width = video.rgb(first).shape[:2]
    stamp = stamp_of(first.frame)
    start_seconds = 0.0 if stamp is None else float(stamp * video.time_base)
    return SourceInfo(
        path=path,
        container=video.container.format.name,
        codec=video.stream.codec_context.codec.canonical_name,
        width=width,
        height=height,
        rate=float(video.rate),
        duration_seconds=_duration_seconds(video, start_seconds),
        first_stamp=stamp,
        start_seconds=start_seconds,
        is_turned=display_matrix(first.frame)[1] != 0,
        hdr=_HDR_TRANSFERS.get(int(video.stream.codec_context.color_trc)),
    )


def _duration_seconds(video: VideoFile, start_seconds: float) -> float | None:
    if video.stream.duration:
        return float(video.stream.duration * video.time_base)
    if not video.container.duration:
        return None
    seconds = video.container.duration / 1e6  # in microseconds
    counts_from_zero = (
        video.container.format.name.startswith("matroska") and seconds > start_seconds
    )
    return seconds - start_seconds if counts_from_zero else seconds
