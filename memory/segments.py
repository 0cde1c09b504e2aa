"""Bytes of keys and values in files: appended, flushed, read back and checked.

Knows nothing of what the bytes mean or which of them count; `store.py` keeps the books.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class DamagedBytesError(RuntimeError):
    """The bytes on disk are not those that were written."""


def write_bytes(path: Path, parts: Sequence[Tensor]) -> int:
    """Appends the tensors' bytes, one after the other, and returns their CRC-32 once they are safe on the disk."""
    is_new = not path.exists()
    checksum = 0
    with path.open("ab") as file:
        for part in parts:
            data = as_bytes(part)
            file.write(data)
            checksum = zlib.crc32(data, checksum)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)
    return checksum


def read_bytes(path: Path, offset: int, num_bytes: int, checksum: int) -> Tensor:
    """uint8 [num_bytes] on the CPU. Raises DamagedBytesError where they are missing or their checksum is another."""
    data = torch.empty(num_bytes, dtype=torch.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            num_read = _fill(file.fileno(), as_bytes(data))
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
    if not path.exists():
        return
    if num_bytes == 0:
        path.unlink()
    elif path.stat().st_size > num_bytes:
        os.truncate(path, num_bytes)


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
