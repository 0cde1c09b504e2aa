"""Whether a file's bytes stop before its container says they should.

Reads a few headers and nothing else; knows nothing of codecs or pictures.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# plain, with arrival times (Blu-ray), with error correction
_TRANSPORT_PACKET_BYTES = (188, 192, 204)


def lacks_index(path: Path) -> bool:
    """True for an MP4 or MOV with neither moov nor moof: its recording was cut off before it could
    be finished.
    """
    kinds = [kind for kind, _ in _boxes(path)]
    return b"ftyp" in kinds[:1] and b"moov" not in kinds and b"moof" not in kinds


def ends_inside_a_unit(path: Path, format_name: str) -> bool:
    """True where the last MP4 box, AVI chunk or transport-stream packet is cut; False where a
    container cannot tell.
    """
    size = path.stat().st_size
    if format_name == "mpegts":
        return all(size % unit for unit in _TRANSPORT_PACKET_BYTES)
    if format_name == "avi":
        with path.open("rb") as file:
            return size < int.from_bytes(file.read(8)[4:], "little") + 8
    if format_name.startswith("mov"):
        return any(stop > size for _, stop in _boxes(path))
    return False


def _boxes(path: Path) -> Iterator[tuple[bytes, int]]:
    """Kind and end (exclusive, in bytes; beyond the file where cut) of each outermost box of an
    MP4.
    """
    with path.open("rb") as file:
        start, size = 0, path.stat().st_size
        while start < size:
            kind, length = _box_header(file, start)
            if not kind.isalnum() or length == 1:
                return  # padding, or no MP4 at all
            stop = start + length if length else size
            yield kind, stop
            start = stop


def _box_header(file: BinaryIO, start: int) -> tuple[bytes, int]:
    """Kind and length of the box at `start`; length 0 means up to the end of the file, kind is
    empty where none is.
    """
    file.seek(start)
    header = file.read(16)
    if len(header) < 8:
        return b"", 0
    length, kind = struct.unpack(">I4s", header[:8])
    if length == 1 and len(header) == 16:
        length = struct.unpack(">Q", header[8:])[0]
    return (kind, length) if length == 0 or length >= 8 else (b"", 0)
