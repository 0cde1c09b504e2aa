"""One decoded picture and the moment it belongs to, and which pictures of a stream are taken.

Knows nothing of codecs, files or cameras: a source makes frames, everything behind it reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture of the stream.

    image: uint8 [H, W, 3], RGB, upright.
    pts_seconds: time since the first frame of the source, from the container, never index / fps.
    index: number of this frame among the sampled ones, from 0.
    """

    image: NDArray[np.uint8]
    pts_seconds: float
    index: int

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(f"a frame needs uint8 [H, W, 3], not {self.image.dtype} {list(self.image.shape)}")

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    def __repr__(self) -> str:
        return f"Frame({self.index} at {self.pts_seconds:.3f} s, {self.width}x{self.height})"


class Sampler:
    """Picks pictures of a stream at a rate by their times, never by counting them.

    Ticks lie at origin_seconds + k / fps. A picture is taken when it is the first to reach a tick that no earlier one
    reached. So each picture is taken once at most, with its own time, however long it stays: slides slower than `fps`
    are not repeated. `early_seconds`: how far before its tick a picture still counts as on it, so that rounded time
    stamps cost no picture; give it a part of their spacing.
    """

    def __init__(self, fps: float, origin_seconds: float = 0.0, early_seconds: float = 0.0) -> None:
        self._fps = fps
        self._origin_seconds = origin_seconds - early_seconds
        self._next_tick = 0

    def takes(self, pts_seconds: float) -> bool:
        """Whether the next picture of the stream, at `pts_seconds`, is one of the sample."""
        tick = math.floor((pts_seconds - self._origin_seconds) * self._fps + 1e-6)
        if tick < self._next_tick:
            return False
        self._next_tick = tick + 1
        return True
