"""From a decoded picture, in its codec's own format, to the pixels that a player shows.

Knows nothing of files or times.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

FRAME_PIXELS = 3840 * 2160  # larger pictures are shrunk as they leave the decoder
_ODDEST_PIXEL = 8  # pixels that claim to be longer against their width are a mistake


class Display:
    """Turns the pictures of one stream into RGB, upright, with square pixels."""

    def __init__(self, sample_aspect_ratio: Fraction | None) -> None:
        """sample_aspect_ratio: how wide a pixel is against its height; None is unknown."""
        self._ratio = sample_aspect_ratio
        self._reformatter = VideoReformatter()

    def rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """uint8 [H, W, 3], contiguous. Raises FFmpegError for a kind of colours that is unknown."""
        width, height = shrunk_size(*display_size(frame.width, frame.height, self._ratio))
        image = self._reformatter.reformat(frame, width, height, format="rgb24").to_ndarray()
        return upright(image.astype(np.uint8, copy=False), display_matrix(frame))


def display_size(width: int, height: int, ratio: Fraction | None) -> tuple[int, int]:
    """With square pixels. The side that is squeezed grows, so that nothing is lost."""
    if not ratio or ratio == 1 or not 1 / _ODDEST_PIXEL <= ratio <= _ODDEST_PIXEL:
        return width, height
    if ratio > 1:
        return round(width * ratio), height
    return width, round(height / ratio)


def shrunk_size(width: int, height: int) -> tuple[int, int]:
    """Within FRAME_PIXELS, in the same shape."""
    share = min(1.0, math.sqrt(FRAME_PIXELS / max(1, width * height)))
    if share == 1.0:
        return width, height
    return max(1, int(width * share)), max(1, int(height * share))


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the container's wish for display, in 1/65536: x' = a x + c y, y' = b x + d
    y.
    """
    found = frame.side_data.get("DISPLAYMATRIX") if frame.rotation else None
    if not isinstance(found, SideData):
        return 1 << 16, 0, 0, 1 << 16
    a, b, _, c, d, *_ = np.frombuffer(bytes(found)[:36], np.int32).tolist()
    return a, b, c, d


def upright(image: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """`image` [H, W, 3] turned and mirrored as the matrix says, to the nearest right angle;
    contiguous.
    """
    a, b, c, d = matrix
    down, right = (d, a)
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, down, right = image.transpose(1, 0, 2), b, c
    image = image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
    return np.ascontiguousarray(image)
