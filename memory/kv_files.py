"""Bytes of keys and values in files: appended, flushed, read back and checked.

    kv-dense-00000000.bin   |chunk 0|chunk 1|chunk 2|     full: chunk 3 begins the next one
    kv-dense-00000003.bin   |chunk 3|chunk 4|

Knows nothing of what the bytes mean or which of them count; `disk_tier.py` keeps the books.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from memory.plain_files import kv_names, open_descriptor, open_file
from memory.records import Place


class DamagedBytesError(RuntimeError):
    """The bytes on disk are not those that were written."""


class Segments:
    """The files of one kind of bytes: appended to, named by their first chunk, dropped as a
    whole.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    @contextmanager
    def writer(self, must_flush: bool = True) -> Iterator[SegmentWriter]:
        """For a few chunks' bytes. must_flush: whether they have to outlast a loss of power."""
        writer = SegmentWriter(self._folder, self._path, must_flush)
        try:
            yield writer
        finally:
            writer.close()

    def read(self, place: Place) -> Tensor:
        """uint8 [num_bytes] on the CPU. Raises DamagedBytesError."""
        return read_bytes(self._path(place.segment), place.offset, place.num_bytes, place.checksum)

    def cut(self, sizes: Mapping[int, int]) -> None:
        """Takes away all bytes but the first so many of each file."""
        wanted = {self._path(segment).name: num_bytes for segment, num_bytes in sizes.items()}
        for name in kv_names(self._folder):
            if name.startswith(f"{self._name}-"):
                cut(self._folder / name, wanted.get(name, 0))

    def drop(self, segment: int) -> None:
        self._path(segment).unlink(missing_ok=True)

    def _path(self, segment: int) -> Path:
        return self._folder / f"{self._name}-{segment:08d}.bin"


class SegmentWriter:
    """Appends to files, each opened once, and makes all of it safe in one go."""

    def __init__(self, folder: Path, path_of: Callable[[int], Path], must_flush: bool) -> None:
        self._folder = folder
        self._path_of = path_of
        self._must_flush = must_flush
        self._handles: dict[int, int] = {}
        self._has_new_file = False

    def append(self, segment: int, offset: int, data: memoryview) -> Place:
        """Writes the next bytes of a file, of which `offset` have been written before."""
        handle = self._handles.get(segment)
        if handle is None:
            path = self._path_of(segment)
            self._has_new_file |= not os.path.lexists(path)
            handle = open_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            self._handles[segment] = handle
            if os.fstat(handle).st_size != offset:
                raise OSError(errno.EIO, f"{path.name} was changed by somebody else")
        done = 0
        while done < len(data):
            done += os.write(handle, data[done:])
        return Place(segment, offset, len(data), zlib.crc32(data))

    def flush(self) -> None:
        """All bytes are safe on the disk afterwards."""
        if not self._must_flush:
            return
        for handle in self._handles.values():
            os.fsync(handle)
        if self._has_new_file:
            sync_folder(self._folder)

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def read_bytes(path: Path, offset: int, num_bytes: int, checksum: int) -> Tensor:
    """uint8 [num_bytes] on the CPU. Raises DamagedBytesError where they are missing or their
    checksum is another.
    """
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
