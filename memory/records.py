"""What is written down of a session and of each of its chunks, and how it stands in a table.

Knows nothing of files, databases or models.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memory.chunk import PositionLayout

TOKEN_BYTES = 13  # of a record: four for each of a token's three positions and one for its mark


@dataclass(frozen=True)
class Kind:
    """What all chunks of a session have in common; a folder has chunks of one kind only.

    dtype: of keys and values, as torch names it: "bfloat16".
    """

    model_id: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


@dataclass(frozen=True, eq=False)
class StoredChunk:
    """The record of a chunk: everything but its keys and values; tensors on the CPU.

    num_frames: of video. watch_seconds: that it took to make.
    segment: the file's first chunk; the keys and values are its `num_bytes` bytes from `offset` on.
    dense: whether they are still there.
    """

    index: int
    start_seconds: float
    stop_seconds: float
    num_frames: int
    watch_seconds: float
    layout: PositionLayout
    visual: Tensor
    segment: int
    offset: int
    num_bytes: int
    kv_checksum: int
    thumb_bytes: int
    dense: bool = True

    @property
    def record_bytes(self) -> int:
        """Of record and thumbnail."""
        return TOKEN_BYTES * self.layout.num_tokens + self.thumb_bytes

    def row(self) -> tuple[Any, ...]:
        """As it stands in the table `chunks`."""
        plain = (
            self.index, self.start_seconds, self.stop_seconds, self.num_frames, self.watch_seconds, self.layout.extent,
            self.segment, self.offset, self.num_bytes, self.kv_checksum, self.thumb_bytes,
        )  # fmt: skip
        positions = self.layout.positions.to(torch.int32).numpy().tobytes()
        visual = self.visual.numpy().tobytes()
        return (*plain, positions, visual, row_checksum(plain, positions, visual), int(self.dense))

    @classmethod
    def of_row(cls, row: tuple[Any, ...]) -> StoredChunk:
        """Raises ValueError for a row that is not as it was written."""
        *plain, positions, visual, checksum, dense = row
        if row_checksum(tuple(plain), positions, visual) != checksum:
            raise ValueError(f"the record of chunk {plain[0]} is damaged")
        index, start, stop, num_frames, seconds, extent, segment, offset, num_bytes, kv_checksum, thumb_bytes = plain
        places = torch.from_numpy(np.frombuffer(positions, np.int32).reshape(3, -1).astype(np.int64))
        marks = torch.from_numpy(np.frombuffer(visual, np.bool_).copy())
        layout = PositionLayout(places, extent)
        where = (segment, offset, num_bytes, kv_checksum, thumb_bytes)
        return cls(index, start, stop, num_frames, seconds, layout, marks, *where, dense=bool(dense))


def row_checksum(plain: tuple[Any, ...], positions: bytes, visual: bytes) -> int:
    return zlib.crc32(visual, zlib.crc32(positions, zlib.crc32(repr(plain).encode())))
