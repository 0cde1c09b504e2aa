"""What is written down of a session and of each of its chunks, and how it stands in a table.

Knows nothing of files, databases or models.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory.chunk import ChunkMeta, KVChunk, PositionLayout
from memory.session_db import DamagedDatabaseError

Kept = Literal["dense", "sparse", "exact"]
# the last for a window of chunks that are rounded otherwise
KEPT: tuple[Kept, ...] = ("dense", "sparse", "exact")
MAX_TOKENS = 1 << 20  # of a chunk; so much is computed for one at most, whatever its record says
ROW_BYTES = 512  # of a record and its row of index keys, beside their contents
KEYFRAME_BYTES = 160  # of a keyframe's record beside its picture
KEYFRAME_KINDS = ("head", "cut", "change", "gap", "tail")
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


# of which a session has tens of thousands; made several times faster than a dataclass
class Place(NamedTuple):
    """Bytes in a file that is named by its first chunk, and their CRC-32; none where `num_bytes` is
    0.
    """

    segment: int
    offset: int = 0
    num_bytes: int = 0
    checksum: int = 0


@dataclass(frozen=True)
class KeyframeRecord:
    """A frame that stands for what a stream shows.

    kind: one of KEYFRAME_KINDS. picture: a JPEG; empty where it is on the disk only.
    picture_bytes: its size, wherever it is. chunk: number of the chunk that it is kept with, and
    evicted with; -1 before that is known. number: of its row on the disk, 0 where there is none.
    """

    pts_seconds: float
    kind: str
    picture: bytes = b""
    picture_bytes: int = 0
    chunk: int = -1
    number: int = 0

    @property
    def num_bytes(self) -> int:
        """Of record and picture."""
        return KEYFRAME_BYTES + self.picture_bytes


@dataclass(frozen=True, eq=False)
class NewChunk:
    """A chunk on its way into memory, with all that is kept of it.

    index_keys: raw keys of the retrieval heads, [heads, n, head_dim]; None without any such heads.
    thumbnail: uint8 [h, w, 3]. num_frames, watch_seconds: as in `StoredChunk`. seen_seconds: time
    of its last frame, which may lie after its last group if it showed nothing new. keyframes: those
    found with it.
    """

    chunk: KVChunk
    index_keys: Tensor | None = None
    thumbnail: NDArray[np.uint8] | None = None
    num_frames: int = 0
    watch_seconds: float = 0.0
    seen_seconds: float = 0.0
    keyframes: tuple[KeyframeRecord, ...] = ()

    @property
    def keyframe_bytes(self) -> int:
        return sum(keyframe.num_bytes for keyframe in self.keyframes)


@dataclass(frozen=True, eq=False)
class StoredChunk:
    """The record of a chunk on the disk.

    num_frames: frames of this chunk plus the static frames before it. watch_seconds: processing
    time of all of them.
    places: where its keys and values are, by level, see `KEPT`. Whether they are still there is not
    for one record to
    say: the oldest go first.
    """

    meta: ChunkMeta
    num_frames: int
    watch_seconds: float
    thumb_bytes: int
    places: dict[Kept, Place]

    @property
    def index(self) -> int:
        return self.meta.index

    @property
    def record_bytes(self) -> int:
        """Of record and thumbnail."""
        return ROW_BYTES + TOKEN_BYTES * self.meta.num_tokens + self.thumb_bytes

    def row(self) -> tuple[Any, ...]:
        """As it stands in the table `chunks`."""
        meta = self.meta
        plain = (
            meta.index,
            meta.start_seconds,
            meta.stop_seconds,
            self.num_frames,
            self.watch_seconds,
            meta.layout.extent,
            self.thumb_bytes,
        )
        places = np.array([self.places[kept] for kept in KEPT], np.int64).tobytes()
        positions = meta.layout.positions.to(torch.int32).numpy().tobytes()
        visual = meta.visual.numpy().tobytes()
        blobs = (np.array(meta.group_starts).tobytes(), places, positions, visual)
        return (*plain, *blobs, row_checksum(plain, blobs))

    @classmethod
    def of_row(cls, row: tuple[Any, ...]) -> StoredChunk:
        """Raises DamagedDatabaseError for a row that is not as it was written, or cannot be."""
        *plain, starts, places, positions, visual, checksum = row
        blobs = (starts, places, positions, visual)
        is_whole = all(isinstance(blob, bytes) for blob in blobs)
        if not is_whole or row_checksum(tuple(plain), blobs) != checksum:
            raise DamagedDatabaseError(f"the record of chunk {plain[0]} has changed")
        try:
            chunk = cls._parse(tuple(plain), blobs)
            chunk._check()
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            raise DamagedDatabaseError(f"the record of chunk {plain[0]} cannot be") from error
        return chunk

    @classmethod
    def _parse(cls, plain: tuple[Any, ...], blobs: tuple[bytes, ...]) -> StoredChunk:
        starts, places, positions, visual = blobs
        index, start, stop, num_frames, seconds, extent, thumb_bytes = plain
        where = np.frombuffer(places, np.int64).reshape(len(KEPT), -1).tolist()
        stands = torch.from_numpy(
            np.frombuffer(positions, np.int32).reshape(3, -1).astype(np.int64)
        )
        marks = torch.from_numpy(np.frombuffer(visual, np.bool_).copy())
        layout = PositionLayout(stands, extent)
        by_kept = {kept: Place(*numbers) for kept, numbers in zip(KEPT, where, strict=True)}
        group_starts = tuple(np.frombuffer(starts).tolist())
        meta = ChunkMeta(index, start, stop, group_starts, layout, marks)
        return cls(meta, num_frames, seconds, thumb_bytes, by_kept)

    def _check(self) -> None:
        """Raises ValueError or TypeError where no chunk could have such a record."""
        meta, layout = self.meta, self.meta.layout
        counts = (self.num_frames, layout.extent, self.thumb_bytes, *chain(*self.places.values()))
        if not all(type(count) is int and 0 <= count < 1 << 62 for count in counts):
            raise ValueError(f"not counts: {counts}")
        times = (meta.start_seconds, meta.stop_seconds, self.watch_seconds, *meta.group_starts)
        if not all(math.isfinite(seconds) for seconds in times) or self.watch_seconds < 0:
            raise ValueError(f"not times: {times}")
        if meta.stop_seconds < meta.start_seconds:
            raise ValueError(f"a chunk cannot stop at {meta.stop_seconds} s before it starts")
        if tuple(meta.visual.shape) != (layout.num_tokens,):
            raise ValueError(f"{layout.num_tokens} tokens need as many marks")
        if max(layout.num_tokens, layout.extent) > MAX_TOKENS or int(layout.positions.min()) < 0:
            raise ValueError(f"not a layout: {layout}")


def row_checksum(plain: tuple[Any, ...], blobs: tuple[bytes, ...]) -> int:
    checksum = zlib.crc32(repr(plain).encode())
    for blob in blobs:
        checksum = zlib.crc32(blob, checksum)
    return checksum
