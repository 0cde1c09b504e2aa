"""Open a file that a stranger handed us, or say in one sentence why not.

Only ordinary files, and only containers that cannot point at other files or hosts. Knows nothing of
decoding.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from errors import LonglookError
from streaming.sources.truncation import lacks_index

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi,ogg,flv,asf,mpeg,mpegvideo,m4v,h264,hevc,ivf,obu"  # noqa: E501
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_MOST_PIXELS = 8192 * 8192  # a picture of that size takes 200 MB; a header can claim any
_PLAYLIST_STARTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<?xml", b"<MPD", b"<asx", b"<ASX")


class SourceError(LonglookError):
    """What was given to watch cannot be watched; the message is one sentence for the user."""


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """The open container and its best video stream, ready to decode on several threads.

    Raises SourceError where the file is missing, is no video, or has no video stream.
    """
    _check_file(path)
    container = _open(path)
    try:
        return container, _best_stream(container, path.name)
    except SourceError:
        container.close()
        raise


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


def _open(path: Path) -> InputContainer:
    try:
        container: InputContainer = av.open(str(path.resolve()), options=_OPTIONS, **_lenient())
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
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        found = "has sound but no video" if container.streams.audio else "has no video in it"
        raise SourceError(f"{name} {found}.")
    if stream.codec_context is None:
        raise SourceError(f"{name} holds video of a kind that cannot be decoded here.")
    if stream.width * stream.height > _MOST_PIXELS:
        raise SourceError(f"The pictures of {name} are too large ({stream.width}x{stream.height}).")
    stream.thread_type = "AUTO"
    stream.codec_context.flags |= Flags.unaligned  # crop to the exact size, as Theora may ask for
    return stream
