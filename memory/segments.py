"""Bytes of keys and values in files: appended, flushed, read back and checked.

    kv-dense-00000000.bin   |chunk 0|chunk 1|chunk 2|     full: chunk 3 begins the next one
    kv-dense-00000003.bin   |chunk 3|chunk 4|

Knows nothing of what the bytes mean or which of them count; `store.py` keeps the books.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from memory.plain_files import kv_names, open_descriptor, open_file
from memory.records import Place


class DamagedBytesError(RuntimeError):
    """The bytes on disk are not those that were written."""


class Segments:
    """The files of one kind of bytes: appended to, named by their first chunk, dropped as a whole."""

    def __init__(self, folder: Path, name: str, full_bytes: int) -> None:
        """full_bytes: a file of so many takes no other chunk."""
        self._folder = folder
        self._name = name
        self._full_bytes = full_bytes

    def append(self, index: int, data: Tensor, last: Place | None) -> Place:
        """Writes a chunk's bytes behind those of the one before, whose place is `last` where it is still there."""
        segment, offset = (index, 0) if last is None else (last.segment, last.offset + last.num_bytes)
        if offset >= self._full_bytes:
            segment, offset = index, 0
        return Place(segment, offset, data.nbytes, write_bytes(self._path(segment), data))

    def read(self, place: Place) -> Tensor:
        """uint8 [num_bytes] on the CPU. Raises DamagedBytesError."""
        return read_bytes(self._path(place.segment), place.offset, place.num_bytes, place.checksum)

    def cut(self, used: Iterable[int], last: Place | None) -> None:
        """Takes away all bytes but those of the files `used`, of which the newest ends behind `last`."""
        kept = {self._path(segment).name for segment in used}
        for name in kv_names(self._folder):
            if name.startswith(f"{self._name}-") and name not in kept:
                (self._folder / name).unlink()
        if last is not None:
            cut(self._path(last.segment), last.offset + last.num_bytes)

    def drop(self, segment: int) -> None:
        self._path(segment).unlink(missing_ok=True)

    def _path(self, segment: int) -> Path:
        return self._folder / f"{self._name}-{segment:08d}.bin"


def write_bytes(path: Path, data: Tensor) -> int:
    """Appends a tensor's bytes and returns their CRC-32 once they are safe on the disk."""
    is_new = not os.path.lexists(path)
    written = as_bytes(data)
    with os.fdopen(open_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
        file.write(written)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)
    return zlib.crc32(written)


def read_bytes(path: Path, offset: int, num_bytes: int, checksum: int) -> Tensor:
    """uint8 [num_bytes] on the CPU. Raises DamagedBytesError where they are missing or their checksum is another."""
    try:
        with open_file(path, os.O_RDONLY) as handle:
            if os.fstat(handle).st_size < offset + num_bytes:  # before memory is taken for them
                raise DamagedBytesError(f"{path.name} is too short")
            data = torch.empty(num_bytes, dtype=torch.uint8)
            os.lseek(handle, offset, os.SEEK_SET)
            num_read = _fill(handle, as_bytes(data))
    except OSError as error:
        raise DamagedBytesError(f"{path.name} cannot be read: {error.strerror}") from error
    if num_read < num_bytes:
        raise DamagedBytesError(f"{path.name} is too short")
    if zlib.crc32(as_bytes(data)) != checksum:
        raise DamagedBytesError(f"{path.name} has changed: the checksum is wrong")
    return data


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; its own memory when that lies in one piece on the CPU."""
    flat = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]


def cut(path: Path, num_bytes: int) -> None:
    """Takes away what lies beyond `num_bytes`; a file without any goes altogether."""
    if not os.path.lexists(path):
        return
    if num_bytes == 0:
        path.unlink()
        return
    with open_file(path, os.O_WRONLY) as handle:
        if os.fstat(handle).st_size > num_bytes:
            os.ftruncate(handle, num_bytes)


def sync_folder(folder: Path) -> None:
    """Makes the names of new files in a folder safe on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fill(handle: int, room: memoryview) -> int:
    """Reads until `room` is full or the file ends; one call reads 2 GiB at most."""
    done = 0
    while done < len(room) and (count := os.readv(handle, [room[done:]])):
        done += count
    return done
