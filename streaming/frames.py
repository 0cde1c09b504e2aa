"""One decoded picture and the moment it belongs to.

Knows nothing of codecs, files or cameras: a source makes frames, everything behind it reads them.
"""

from __future__ import annotations

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
