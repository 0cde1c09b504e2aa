"""What is written down of a session and of each of its chunks, and how it stands in a table.

Knows nothing of files, databases or models.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memory.chunk import PositionLayout

Kept = Literal["dense", "sparse", "exact"]
KEPT: tuple[Kept, ...] = ("dense", "sparse", "exact")  # the last for a window of chunks that are rounded otherwise
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


class Place(NamedTuple):  # of which a session has tens of thousands; made several times faster than a dataclass
    """Bytes in a file that is named by its first chunk, and their CRC-32; none where `num_bytes` is 0."""

    segment: int
    offset: int = 0
    num_bytes: int = 0
    checksum: int = 0


@dataclass(frozen=True, eq=False)
class StoredChunk:
    """The record of a chunk: everything but its keys and values; tensors on the CPU.

    num_frames: of video, with those just before it that showed nothing new. watch_seconds: that all these took.
    places: of its keys and values by what they are, see `KEPT`. Whether they are still there is not for one record to
    say: the oldest go first.
    """

    index: int
    start_seconds: float
    stop_seconds: float
    group_starts: tuple[float, ...]
    num_frames: int
    watch_seconds: float
    layout: PositionLayout
    visual: Tensor
    thumb_bytes: int
    places: dict[Kept, Place]

    @property
    def record_bytes(self) -> int:
        """Of record and thumbnail."""
        return TOKEN_BYTES * self.layout.num_tokens + self.thumb_bytes

    def row(self) -> tuple[Any, ...]:
        """As it stands in the table `chunks`."""
        plain = (
            self.index, self.start_seconds, self.stop_seconds, self.num_frames, self.watch_seconds, self.layout.extent,
            self.thumb_bytes,
        )  # fmt: skip
        places = np.array([self.places[kept] for kept in KEPT], np.int64).tobytes()
        positions = self.layout.positions.to(torch.int32).numpy().tobytes()
        visual = self.visual.numpy().tobytes()
        blobs = (np.array(self.group_starts).tobytes(), places, positions, visual)
        return (*plain, *blobs, row_checksum(plain, blobs))

    @classmethod
    def of_row(cls, row: tuple[Any, ...]) -> StoredChunk:
        """Raises ValueError for a row that is not as it was written."""
        *plain, starts, places, positions, visual, checksum = row
        if row_checksum(tuple(plain), (starts, places, positions, visual)) != checksum:
            raise ValueError(f"the record of chunk {plain[0]} is damaged")
        index, start, stop, num_frames, seconds, extent, thumb_bytes = plain
        where = np.frombuffer(places, np.int64).reshape(len(KEPT), -1).tolist()
        stands = torch.from_numpy(np.frombuffer(positions, np.int32).reshape(3, -1).astype(np.int64))
        marks = torch.from_numpy(np.frombuffer(visual, np.bool_).copy())
        layout = PositionLayout(stands, extent)
        by_kept = {kept: Place(*numbers) for kept, numbers in zip(KEPT, where, strict=True)}
        group_starts = tuple(np.frombuffer(starts).tolist())
        return cls(index, start, stop, group_starts, num_frames, seconds, layout, marks, thumb_bytes, by_kept)


def row_checksum(plain: tuple[Any, ...], blobs: tuple[bytes, ...]) -> int:
    checksum = zlib.crc32(repr(plain).encode())
    for blob in blobs:
        checksum = zlib.crc32(blob, checksum)
    return checksum
