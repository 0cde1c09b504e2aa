"""Synthetic clips with known hard cuts: photos seen by a camera that cuts, fades, flashes, pans,
zooms or shakes.

Photos are those that scikit-image ships. Every clip is noisy and goes through a real H.264 encoder.
Knows nothing of who looks at them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "brick", "grass", "gravel")
WIDTH, HEIGHT, FPS = 640, 360, 30
NOISE_LEVELS = (1.0, 4.0)
CRF = "28"

Picture = NDArray[np.uint8]
# progress in [0, 1) -> centre x and y in [-1, 1], zoom from 1
Camera = Callable[[float], tuple[float, float, float]]


@dataclass(frozen=True)
class Shot:
    """`num_frames` of one place. `into_next`: frames of a fade to the next shot, 0 for a hard cut;
    through: its colour, or None for a dissolve. flashes: frame -> added light, in levels."""

    photo: str
    mirrored: bool
    camera: Camera
    num_frames: int
    into_next: int = 0
    through: int | None = None
    flashes: tuple[tuple[int, float], ...] = ()

    def picture(self, frame: int) -> NDArray[np.float32]:
        """[HEIGHT, WIDTH, 3]; the camera goes on beyond the last frame, for dissolves."""
        photo = _photo(self.photo, self.mirrored)
        x, y, zoom = self.camera(frame / self.num_frames)
        width = min(photo.width, photo.height * WIDTH / HEIGHT) / (1.3 * max(1.0, zoom))
        height = width * HEIGHT / WIDTH
        left, top = (photo.width - width) * (0.5 + x / 2), (photo.height - height) * (0.5 + y / 2)
        box = (left, top, left + width, top + height)
        seen = photo.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box)
        return np.asarray(seen, np.float32) + dict(self.flashes).get(frame, 0.0)


KINDS = ("cuts", "fades", "flashes", "pans", "zooms", "handheld")


def script(kind: str, seed: int, seconds: float = 10.0) -> list[Shot]:
    """The shots of a clip of one of KINDS; raises ValueError for another."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    rng = np.random.default_rng([KINDS.index(kind), seed])
    shots: list[Shot] = []
    while sum(shot.num_frames for shot in shots) < seconds * FPS:
        others = [photo for photo in PHOTOS if not shots or photo != shots[-1].photo]
        shots.append(_shot(kind, str(rng.choice(others)), rng))
    return shots


def _shot(kind: str, photo: str, rng: np.random.Generator) -> Shot:
    num_frames = int(rng.uniform(*((0.5, 2.5) if kind == "cuts" else (1.5, 4.0))) * FPS)
    camera = {"pans": _pan, "zooms": _zoom, "handheld": _handheld}.get(kind, _drift)(
        rng, num_frames
    )
    into_next, through = 0, None
    flashes: tuple[tuple[int, float], ...] = ()
    if kind == "fades":
        into_next = int(rng.uniform(0.4, 1.5) * FPS)
        through = (None, 0, 0, 255)[rng.integers(4)]
    if kind == "flashes":
        flashes = _flashes(rng, num_frames)
    return Shot(photo, bool(rng.integers(2)), camera, num_frames, into_next, through, flashes)


def _drift(rng: np.random.Generator, num_frames: int) -> Camera:
    x, y, dx, dy = rng.uniform(-0.5, 0.5, 4)
    return lambda t: (x + 0.3 * dx * t, y + 0.3 * dy * t, 1.2)


def _pan(rng: np.random.Generator, num_frames: int) -> Camera:
    """To and fro across the photo, slow at the turns, up to 20 pixels from frame to frame."""
    turns, y, start = (
        rng.uniform(0.3, 1.0) * num_frames / FPS,
        rng.uniform(-0.5, 0.5),
        rng.uniform(0, 2 * math.pi),
    )
    return lambda t: (math.sin(start + math.pi * turns * t), y, 1.3)


def _zoom(rng: np.random.Generator, num_frames: int) -> Camera:
    x, y = rng.uniform(-0.3, 0.3, 2)
    first, last = rng.permutation([1.0, rng.uniform(1.8, 3.0)])
    return lambda t: (x, y, float(first * (last / first) ** min(t, 1.0)))


def _handheld(rng: np.random.Generator, num_frames: int) -> Camera:
    """A walk that is pulled back, with jerks."""
    steps = rng.normal(0, 0.03, (2 * num_frames, 2)) * (
        1 + 3 * (rng.random((2 * num_frames, 1)) < 0.05)
    )
    walk = np.zeros((2 * num_frames, 2))
    for k in range(1, len(walk)):
        walk[k] = 0.92 * walk[k - 1] + steps[k]
    x, y = rng.uniform(-0.4, 0.4, 2)

    def camera(t: float) -> tuple[float, float, float]:
        dx, dy = walk[min(round(t * num_frames), len(walk) - 1)].clip(-0.5, 0.5)
        return float(x + dx), float(y + dy), 1.3

    return camera


def _flashes(rng: np.random.Generator, num_frames: int) -> tuple[tuple[int, float], ...]:
    """One or two of 1 to 3 frames each, the last of them dying away."""
    found = []
    for start in rng.integers(6, num_frames - 9, rng.integers(1, 3)):
        light = rng.uniform(80, 255)
        found += [(int(start) + k, light * (1.0, 0.9, 0.4)[k]) for k in range(rng.integers(1, 4))]
    return tuple(found)


def cuts_seconds(shots: list[Shot]) -> list[float]:
    """When the first frame behind each hard cut is shown."""
    starts = np.cumsum([shot.num_frames for shot in shots])
    return [
        float(start) / FPS
        for start, shot in zip(starts[:-1], shots[:-1], strict=True)
        if not shot.into_next
    ]


def rendered(shots: list[Shot], seed: int) -> Iterator[Picture]:
    """Every picture of a clip, with fades and noise."""
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, rng.uniform(*NOISE_LEVELS), (2 * HEIGHT, 2 * WIDTH, 3)).astype(np.float32)
    for number, shot in enumerate(shots):
        following = shots[number + 1] if number + 1 < len(shots) else None
        before = shots[number - 1] if number else None
        for frame in range(shot.num_frames):
            picture = _blended(shot, frame, before, following)
            down, right = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
            noisy = picture + grain[down : down + HEIGHT, right : right + WIDTH]
            yield noisy.clip(0, 255).astype(np.uint8)


def _blended(
    shot: Shot, frame: int, before: Shot | None, following: Shot | None
) -> NDArray[np.float32]:
    """A frame with the half of a fade that lies in its shot: the last frames of one, the first of
    the next.
    """
    picture = shot.picture(frame)
    left = shot.num_frames - frame
    if following is not None and left <= shot.into_next // 2:
        share, through = left / (shot.into_next // 2), shot.through
        other = following.picture(0) if through is None else np.float32(through)
        return _mixed(picture, other, share if through is not None else 0.5 + share / 2)
    if before is not None and frame < before.into_next // 2:
        share, through = frame / (before.into_next // 2), before.through
        other = before.picture(before.num_frames) if through is None else np.float32(through)
        return _mixed(picture, other, share if through is not None else 0.5 + share / 2)
    return picture


def _mixed(
    picture: NDArray[np.float32], other: NDArray[np.float32] | np.float32, share: float
) -> NDArray[np.float32]:
    return (share * picture + (1 - share) * other).astype(np.float32)


@functools.lru_cache(maxsize=2 * len(PHOTOS))
def _photo(name: str, mirrored: bool) -> Image.Image:
    import skimage.data  # heavy, and needed only where clips are made

    photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    return photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else photo


def write(path: Path, kind: str, seed: int, seconds: float = 10.0) -> list[float]:
    """An H.264 clip at `path`; gives the times of its hard cuts."""
    shots = script(kind, seed, seconds)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"crf": CRF, "preset": "ultrafast"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in rendered(shots, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return cuts_seconds(shots)
