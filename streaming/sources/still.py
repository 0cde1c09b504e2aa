"""Whether a file is a still picture, told by its first bytes.

Phones keep stills in the container of their videos (HEIC), cut into tiles: read as a video, its
first tile would be all there is.
"""

from __future__ import annotations

from pathlib import Path

from streaming.sources.truncation import boxes

_STARTS = (b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")


def is_still_picture(path: Path, start: bytes) -> bool:
    """True for the usual pictures; a PNG may still be an animation, which FFmpeg finds out.

    start: the first 16 bytes of the file.
    """
    if start.startswith(b"\x89PNG"):
        return not _is_animated_png(path)
    if start.startswith(_STARTS) or (start.startswith(b"RIFF") and start[8:12] == b"WEBP"):
        return True
    return start[4:8] == b"ftyp" and _has_items_only(path)


def _has_items_only(path: Path) -> bool:
    """Whether an ISO file holds items, which stills are, and no track."""
    has_items = False
    for kind, _ in boxes(path):
        if kind in (b"moov", b"moof"):
            return False
        has_items |= kind == b"meta"
    return has_items


def _is_animated_png(path: Path) -> bool:
    """Its frame count comes before its pixels."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    return b"acTL" in head.partition(b"IDAT")[0]
