"""One decoded picture and the moment it belongs to, and which pictures of a stream are taken.

Knows nothing of codecs, files or cameras: a source makes frames, everything behind it reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

ROUNDING_SECONDS = 0.002


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
            raise ValueError(
                f"a frame needs uint8 [H, W, 3], not {self.image.dtype} {list(self.image.shape)}"
            )

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    def __repr__(self) -> str:
        return f"Frame({self.index} at {self.pts_seconds:.3f} s, {self.width}x{self.height})"


def next_tick_seconds(pts_seconds: float, fps: float) -> float:
    """Where a sample at `fps` that began at 0 goes on behind the picture it took at
    `pts_seconds`.
    """
    return (math.floor((pts_seconds + ROUNDING_SECONDS) * fps) + 1) / fps


def previous_tick_seconds(before_seconds: float, fps: float) -> float:
    """The last tick of a sample at `fps` that lies before a time."""
    return (math.ceil((before_seconds - ROUNDING_SECONDS) * fps) - 1) / fps


class Sampler:
    """Picks pictures of a stream at a rate by their times, never by counting them.

    Ticks lie at origin_seconds + k / fps, and the first picture at or after a tick is taken, with
    its own time. So each is taken once at most, however long it stays: slides slower than `fps` are
    not repeated. Containers round times to milliseconds; a picture that little before its tick
    counts as on it.
    """

    def __init__(self, fps: float, origin_seconds: float = 0.0) -> None:
        self._fps = fps
        self._origin_seconds = origin_seconds - ROUNDING_SECONDS
        self._next_tick = 0

    def takes(self, pts_seconds: float) -> bool:
        """Whether the next picture of the stream, at `pts_seconds`, is one of the sample."""
        tick = math.floor((pts_seconds - self._origin_seconds) * self._fps)
        if tick < self._next_tick:
            return False
        self._next_tick = tick + 1
        return True


def in_parts(frames: Iterable[Frame], count: int) -> Iterator[list[Frame]]:
    """Runs of `count` frames; the last one may be shorter."""
    frames = iter(frames)
    return iter(lambda: list(islice(frames, count)), [])


@dataclass(frozen=True)
class Gap:
    """A stretch of a stream of which no pictures came, half-open; reason: in a word or two.

    stop_seconds is infinite while none have come again.
    """

    start_seconds: float
    stop_seconds: float
    reason: str
