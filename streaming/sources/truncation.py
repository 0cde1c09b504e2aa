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
_MOST_BOXES = 1 << 20  # a day in fragments has 200,000; a file of nothing else would take minutes


def lacks_index(path: Path) -> bool:
    """True for an MP4 or MOV with neither a whole moov nor moof: its recording was cut off before
    it could be finished.
    """
    size = path.stat().st_size
    found = list(boxes(path))
    whole = {kind for kind, stop in found if stop <= size}
    return found[:1] != [] and found[0][0] == b"ftyp" and not whole & {b"moov", b"moof"}


def ends_inside_a_unit(path: Path, format_name: str) -> bool:
    """True where the last MP4 box, AVI chunk or transport-stream packet is cut; False where a
    container cannot tell, and where the file has gone.
    """
    try:
        return _ends_inside_a_unit(path, format_name)
    except OSError:  # deleted or moved while it was read
        return False


def _ends_inside_a_unit(path: Path, format_name: str) -> bool:
    size = path.stat().st_size
    if format_name == "mpegts":
        return all(size % unit for unit in _TRANSPORT_PACKET_BYTES)
    if format_name == "avi":
        with path.open("rb") as file:
            return size < int.from_bytes(file.read(8)[4:], "little") + 8
    if format_name.startswith("mov"):
        return any(stop > size for _, stop in boxes(path))
    return False


def boxes(path: Path) -> Iterator[tuple[bytes, int]]:
    """Kind and end (exclusive, in bytes; beyond the file where cut) of each outermost box of an
    MP4.
    """
    with path.open("rb") as file:
        start, size, num_boxes = 0, path.stat().st_size, 0
        while start < size and num_boxes < _MOST_BOXES:
            num_boxes += 1
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
