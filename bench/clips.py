"""Clips that the benches make themselves, and real ones from files.

Three kinds of footage decide what an ingest costs: a static camera that things pass, a moving
camera, and hard cuts. They are made of smooth random pictures with fine texture and sensor noise,
so that every bench runs on a plain clone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from frames import Frame

FPS = 2.0
COARSE_CELLS = 8  # along a picture's side: the large shapes of a background
TEXTURE_LEVELS = 12.0  # of 255, fine texture that moves with the background
NOISE_LEVELS = 1.5  # of 255, standard deviation of the sensor's noise, anew in every frame
# noise pictures that are used in turn; making one per frame would cost more than the model
NOISE_VARIANTS = 4
PASSING_SECONDS = 6.0  # a thing crosses the picture in so long, then it is empty for as long
PAN_SHARE = 1 / 64  # of the side, by which a moving camera moves between two frames
SHOT_FRAMES = 6  # between two hard cuts
Image = NDArray[np.uint8]
Picture = NDArray[np.float32]


def static_camera(side: int, num_frames: int, seed: int = 0) -> list[Frame]:
    """A scene that does not change, crossed by a plain square for half of the time."""
    rng = np.random.default_rng(seed)
    background = _background(rng, side, side)

    def picture(index: int) -> Picture:
        phase = index / FPS % (2 * PASSING_SECONDS) / PASSING_SECONDS
        return background if phase >= 1 else _with_square(background, phase, index)

    return _frames(rng, picture, side, num_frames)


def moving_camera(side: int, num_frames: int, seed: int = 0) -> list[Frame]:
    """A pan over a wide scene, there and back."""
    rng = np.random.default_rng(seed)
    wide = _background(rng, side, 3 * side)
    step = max(1, round(side * PAN_SHARE))
    most = 2 * side

    def picture(index: int) -> Picture:
        x = index * step % (2 * most)
        x = min(x, 2 * most - x)
        return wide[:, x : x + side]

    return _frames(rng, picture, side, num_frames)


def hard_cuts(side: int, num_frames: int, seed: int = 0) -> list[Frame]:
    """Another scene every three seconds, with a square that moves through each."""
    rng = np.random.default_rng(seed)
    scenes = [_background(rng, side, side) for _ in range(-(-num_frames // SHOT_FRAMES))]

    def picture(index: int) -> Picture:
        shot, inside = divmod(index, SHOT_FRAMES)
        return _with_square(scenes[shot], inside / SHOT_FRAMES, shot)

    return _frames(rng, picture, side, num_frames)


CLIPS: dict[str, Callable[..., list[Frame]]] = {
    "static camera": static_camera,
    "moving camera": moving_camera,
    "hard cuts": hard_cuts,
}


def read_clip(path: Path, num_frames: int, fps: float = FPS) -> list[Frame]:
    """The first frames of a video file, sampled at `fps`."""
    from streaming.reader import Reader
    from streaming.sources.file import FileSource  # needs PyAV, which made clips do without

    with Reader(FileSource(path, fps)) as reader:
        return list(islice(reader, num_frames))


def _background(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Smooth random colours with fine texture, float32 [height, width, 3] in levels."""
    cells = (COARSE_CELLS, max(COARSE_CELLS, COARSE_CELLS * width // height))
    coarse = torch.from_numpy(rng.uniform(30, 225, (1, 3, *cells)).astype(np.float32))
    smooth = interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0]
    texture = rng.normal(0, TEXTURE_LEVELS, (height, width, 1)).astype(np.float32)
    picture: Picture = smooth.permute(1, 2, 0).numpy() + texture
    return picture


def _with_square(background: Picture, phase: float, number: int) -> Picture:
    """The background with a square that has crossed `phase` of the picture; its height and colour
    by `number`.
    """
    side = background.shape[0]
    size = side // 6
    left = round(phase * (side + size)) - size
    top = side // 4 + number // 24 % 3 * size
    picture = background.copy()
    picture[top : top + size, max(0, left) : max(0, left + size)] = (220, 40, 40)
    return picture


def _frames(
    rng: np.random.Generator, picture: Callable[[int], Picture], side: int, num_frames: int
) -> list[Frame]:
    noises = rng.normal(0, NOISE_LEVELS, (NOISE_VARIANTS, side, side, 1)).astype(np.float32)
    return [
        Frame(_as_image(picture(index) + noises[index % NOISE_VARIANTS]), index / FPS, index)
        for index in range(num_frames)
    ]


def _as_image(picture: Picture) -> Image:
    return picture.clip(0, 255).astype(np.uint8)
