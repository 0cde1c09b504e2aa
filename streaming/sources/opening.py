"""Open a file that a stranger handed us, or say in one sentence why not.

Only ordinary files, only containers that cannot point at other files or hosts, and only codecs that
videos are made with. Knows nothing of decoding.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from streaming.sources.decoder_memory import num_threads
from streaming.sources.display import display_size
from streaming.sources.still import is_still_picture
from streaming.sources.trouble import SourceError
from streaming.sources.truncation import lacks_index

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi,ogg,flv,asf,mpeg,mpegvideo,m4v,h264,hevc,"
    "ivf,obu,gif,apng"
)
# Of the hundreds of decoders in FFmpeg most are for formats of games and of the past. Each is code
# that a stranger's bytes reach, so those that videos are made with have to do.
_CODECS = (
    "h264,hevc,vvc,vp8,vp9,av1,mpeg4,mpeg2video,mpeg1video,h263,msmpeg4v1,msmpeg4v2,msmpeg4v3,"
    "wmv1,wmv2,wmv3,vc1,mjpeg,theora,vp3,flv1,vp6,vp6f,vp6a,prores,dnxhd,dvvideo,rawvideo,ffv1,"
    "huffyuv,ffvhuff,gif,apng,png,svq1,svq3,cinepak"
)
_VIDEO_CODECS = frozenset(_CODECS.split(","))
# Decoders have other names than codecs in places. Those of sound are for FFmpeg, which opens them
# to find out what a file holds; without them it reads megabytes ahead in vain.
_DECODERS = ",".join(
    [
        _CODECS,
        "libdav1d,libaom-av1,libvpx,libvpx-vp9,msmpeg4,flv,mpegvideo",
        "aac,aac_latm,mp3,mp3float,mp2,mp2float,ac3,eac3,dca,opus,vorbis,flac,alac,amrnb,amrwb",
        "pcm_s16le,pcm_s16be,pcm_u8,pcm_s24le,pcm_alaw,pcm_mulaw,wmav1,wmav2",
    ]
)
_LIMITS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_MOST_PIXELS = 8192 * 4608  # 8K with room for odd shapes; more takes a gigabyte to decode
_MOST_PIXELS_OPENING = 1 << 27  # FFmpeg may decode a picture to find out what a file holds
_MOST_SIDES_RATIO = 200  # the length of a picture against its width; models take no more
_PLAYLIST_STARTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<?xml", b"<MPD", b"<asx", b"<ASX")


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """The open container and its best video stream, ready to decode on several threads.

    Raises SourceError where the file is missing, is no video, or has no video stream.
    """
    _check_file(path)
    container = _open(path)
    try:
        stream = _best_stream(container, path.name)
        _check_size(stream, path)
    except SourceError:
        container.close()
        raise
    _prepare(stream)
    return container, stream


def video_streams(container: InputContainer) -> list[VideoStream]:
    """Those that can be watched: no covers, and of codecs that are decoded here."""
    return [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
        and stream.codec_context is not None
        and stream.codec_context.codec.canonical_name in _VIDEO_CODECS
    ]


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise SourceError(f"{path} is a folder, not a video file.")
        if not stat.S_ISREG(path.stat().st_mode):
            # opening a pipe would wait for ever
            raise SourceError(f"{path} is not an ordinary file.")
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError as error:
        raise SourceError(f"There is no file {path}.") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}.") from error
    if not start:
        raise SourceError(f"{path.name} is empty.")
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(_PLAYLIST_STARTS):
        raise SourceError(
            f"{path.name} is a playlist, not a video; playlists in files are not followed."
        )
    if is_still_picture(path, start):
        raise SourceError(f"{path.name} is a picture, and longlook watches videos.")


def _open(path: Path) -> InputContainer:
    decoding = {"codec_whitelist": _DECODERS, "max_pixels": str(_MOST_PIXELS_OPENING)}
    try:
        name = os.fsdecode(path.resolve())
        container: InputContainer = av.open(name, options={**_LIMITS, **decoding}, **_lenient())
    except FFmpegError as error:
        if lacks_index(path):
            told = "was cut off before its index was written: nothing in it can be played"
            raise SourceError(f"{path.name} {told}.") from error
        raise SourceError(f"{path.name} is not a video file that can be read.") from error
    return container


def _lenient() -> dict[str, Any]:
    """Titles need not be UTF-8; PyAV 19 knows so by itself and has no such argument."""
    return {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def _best_stream(container: InputContainer, name: str) -> VideoStream:
    """FFmpeg's choice, unless that is a single picture and another stream has more."""
    watchable = video_streams(container)
    if not watchable:
        covers = Disposition.attached_pic
        if any(not stream.disposition & covers for stream in container.streams.video):
            raise SourceError(f"{name} holds video of a kind that is not decoded here.")
        found = "has sound but no video" if container.streams.audio else "has no video in it"
        raise SourceError(f"{name} {found}.")
    best = container.streams.best("video")
    chosen = next((stream for stream in watchable if stream is best), watchable[0])
    others = [stream for stream in watchable if not _is_one_picture(stream)]
    return others[0] if others and _is_one_picture(chosen) else chosen


def _is_one_picture(stream: VideoStream) -> bool:
    """Whether it is a cover that is not marked as one. `frames` is 0 where a container does not
    count; then the codec of covers has to do.
    """
    is_picture_codec = stream.codec_context.codec.canonical_name in ("mjpeg", "png")
    return stream.frames == 1 or (stream.frames == 0 and is_picture_codec)


def _check_size(stream: VideoStream, path: Path) -> None:
    name = path.name
    width, height = stream.width, stream.height
    if not width or not height:
        width, height = _claimed_size(path, stream.index)
    if width * height > _MOST_PIXELS:
        raise SourceError(f"The pictures of {name} are too large ({width}x{height}).")
    if not width or not height:
        return  # told by the first picture
    shown = display_size(width, height, stream.sample_aspect_ratio)
    check_sides(*shown, name)


def _claimed_size(path: Path, index: int) -> tuple[int, int]:
    """What the container says of a size that no decoder was let near."""
    options = {**_LIMITS, "codec_whitelist": "none"}
    with av.open(os.fsdecode(path.resolve()), options=options, **_lenient()) as container:
        found = container.streams[index].codec_context
        return (found.width, found.height) if isinstance(found, VideoCodecContext) else (0, 0)


def check_sides(width: int, height: int, name: str) -> None:
    """Raises SourceError for pictures that are hardly more than a line."""
    if max(width, height) > _MOST_SIDES_RATIO * min(width, height):
        raise SourceError(
            f"The pictures of {name} are {width}x{height}: one side is more than "
            f"{_MOST_SIDES_RATIO} times as long as the other."
        )


def _prepare(stream: VideoStream) -> None:
    """Decoding on several threads, within the bounds of memory."""
    context = stream.codec_context
    stream.thread_type = "AUTO"
    context.thread_count = num_threads(stream)
    context.flags |= Flags.unaligned  # crop to the exact size, as Theora may ask for
    # A picture in the middle of a stream may be larger than its header says.
    context.options = {"max_pixels": str(_MOST_PIXELS), "codec_whitelist": _DECODERS}
