"""Pictures with texture, made on the spot: each seed is another place, larger than what the camera
sees of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 144, 256
MARGIN = 64  # pixels of the place beyond every border of the picture

Picture = NDArray[np.uint8]


def place(seed: int) -> Picture:
    """uint8 [HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN, 3]: soft blobs under finer ones."""
    rng = np.random.default_rng(seed)
    size = (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(30, 225, (*cells, 3), np.uint8)).resize(
                size, Image.Resampling.BICUBIC
            )
        )
        for cells in ((5, 8), (25, 40))
    ]
    return (0.6 * layers[0] + 0.4 * layers[1]).astype(np.uint8)


def view(of: Picture, right: int = 0, down: int = 0) -> Picture:
    """What the camera sees, moved by so many pixels: [HEIGHT, WIDTH, 3]."""
    return of[
        MARGIN + down : MARGIN + down + HEIGHT, MARGIN + right : MARGIN + right + WIDTH
    ].copy()


def noisy(picture: Picture, seed: int, levels: float = 6.0) -> Picture:
    return lit(picture + np.random.default_rng(seed).normal(0, levels, picture.shape))


def lit(picture: Picture | NDArray[np.float64], gain: float = 1.0, shift: float = 0.0) -> Picture:
    return (picture * gain + shift).clip(0, 255).astype(np.uint8)
