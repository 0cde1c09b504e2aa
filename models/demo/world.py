"""A small procedural world: timelines of shapes and digits over varied backgrounds, deterministic
by seed.

Says what is there and paints it. Knows nothing of questions, tokens or training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 165, 50),
    "blue": (35, 70, 225),
    "yellow": (245, 220, 30),
    "purple": (140, 40, 175),
    "orange": (250, 135, 20),
    "white": (250, 250, 250),
    "cyan": (30, 215, 225),
}
MOTIONS = {
    "still": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
BACKGROUNDS = ("plain", "gradient", "noise", "stripes", "checks", "photo")
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "brick", "grass", "gravel")
# of the frame's side per second: four pixels between two frames at 2 fps and 64 pixels
SPEED = 0.14
SMALLEST = 0.22  # size of a thing, unless told otherwise
OUTLINE = 0.1  # of the radius, black: every colour shows on every background


@dataclass(frozen=True)
class Thing:
    """A shape, or a digit shown large. `x`, `y` (of the centre, when the event starts) and `size`
    (diameter) are fractions of the frame's side."""

    shape: str
    colour: str
    size: float
    x: float
    y: float
    motion: str = "still"
    digit: int | None = None

    @property
    def name(self) -> str:
        return f"digit {self.digit}" if self.digit is not None else f"{self.colour} {self.shape}"

    def centre(self, seconds: float) -> tuple[float, float]:
        """Where the centre is, `seconds` after the event's start."""
        dx, dy = MOTIONS[self.motion]
        return self.x + dx * SPEED * seconds, self.y + dy * SPEED * seconds


@dataclass(frozen=True)
class WorldEvent:
    """Things that are shown together from `start_seconds` until `stop_seconds` (half-open)."""

    start_seconds: float
    stop_seconds: float
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Scene:
    """A stretch of time before one background. Events are in time order and never overlap."""

    duration_seconds: float
    background_seed: int
    events: tuple[WorldEvent, ...]

    def event_at(self, seconds: float) -> WorldEvent | None:
        return next((e for e in self.events if e.start_seconds <= seconds < e.stop_seconds), None)


def make_things(
    rng: np.random.Generator, count: int, seconds: float, sizes: tuple[float, float] | None = None
) -> tuple[Thing, ...]:
    """`count` things of different shapes that never touch while they move for `seconds`."""
    shapes = rng.permutation(SHAPES)[:count]
    named = [(str(shape), str(rng.choice(list(COLOURS)))) for shape in shapes]
    return place_things(rng, named, seconds, sizes)


def place_things(
    rng: np.random.Generator,
    named: list[tuple[str, str]],
    seconds: float,
    sizes: tuple[float, float] | None = None,
) -> tuple[Thing, ...]:
    """The (shape, colour) pairs at random places, with random motions, whose swept boxes are apart.

    sizes: least and most of the frame's side; None: as many things leave room for.
    """
    sizes = sizes or (SMALLEST, (0.44, 0.34, 0.3, 0.28)[len(named) - 1])
    while True:
        things: list[Thing] = []
        for shape, colour in named:
            thing = _place_apart(rng, shape, colour, sizes, seconds, things)
            if thing is None:
                break
            things.append(thing)
        if len(things) == len(named):
            return tuple(things)


def make_digit(
    rng: np.random.Generator,
    digit: int,
    colours: Sequence[str] = tuple(COLOURS),
    sizes: tuple[float, float] = (0.6, 0.84),
) -> Thing:
    x, y = rng.uniform(0.42, 0.58, 2)
    colour = str(rng.choice(list(colours)))
    return Thing("digit", colour, float(rng.uniform(*sizes)), float(x), float(y), "still", digit)


def _place_apart(
    rng: np.random.Generator,
    shape: str,
    colour: str,
    sizes: tuple[float, float],
    seconds: float,
    others: list[Thing],
) -> Thing | None:
    for attempt in range(40):
        size = float(rng.uniform(*sizes))
        motion = "still" if attempt > 25 else str(rng.choice(list(MOTIONS)))
        x, y = (float(v) for v in rng.uniform(size / 2, 1 - size / 2, 2))
        thing = Thing(shape, colour, size, x, y, motion)
        left, top, right, bottom = box = _swept_box(thing, seconds)
        inside = left >= 0 and top >= 0 and right <= 1 and bottom <= 1
        if inside and all(_apart(box, _swept_box(other, seconds)) for other in others):
            return thing
    return None


def _swept_box(thing: Thing, seconds: float) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1), r = thing.centre(0.0), thing.centre(seconds), thing.size / 2
    return min(x0, x1) - r, min(y0, y1) - r, max(x0, x1) + r, max(y0, y1) + r


def _apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def render(scene: Scene, seconds: float, side: int) -> NDArray[np.uint8]:
    """The scene at a moment: uint8 [side, side, 3]."""
    image = background(scene.background_seed, side).copy()
    event = scene.event_at(seconds)
    if event is not None:
        draw = ImageDraw.Draw(image)
        for thing in event.things:
            draw_thing(
                draw, thing, seconds - event.start_seconds, side, COLOURS[thing.colour], (0, 0, 0)
            )
    return np.asarray(image)


def draw_thing(
    draw: ImageDraw.ImageDraw,
    thing: Thing,
    seconds: float,
    side: int,
    fill: tuple[int, ...] | int,
    outline: tuple[int, ...] | int,
) -> None:
    """Paints a thing as it stands `seconds` into its event."""
    cx, cy = (v * side for v in thing.centre(seconds))
    radius = thing.size * side / 2
    if thing.digit is not None:
        font = _font(round(2 * radius))
        edge = max(1, round(radius * OUTLINE / 2))
        place = (cx, cy)
        draw.text(place, str(thing.digit), fill, font, "mm", stroke_width=edge, stroke_fill=outline)
    elif thing.shape in ("circle", "ring"):
        _draw_round(draw, thing.shape, cx, cy, radius, fill, outline)
    else:
        for scale, ink in ((1.0, outline), (1 - 1.6 * OUTLINE, fill)):
            draw.polygon(
                [
                    (cx + radius * scale * u, cy + radius * scale * v)
                    for u, v in polygon(thing.shape)
                ],
                ink,
            )


def _draw_round(
    draw: ImageDraw.ImageDraw,
    shape: str,
    cx: float,
    cy: float,
    radius: float,
    fill: tuple[int, ...] | int,
    outline: tuple[int, ...] | int,
) -> None:
    edge = max(1.0, radius * OUTLINE)
    outer = (cx - radius, cy - radius, cx + radius, cy + radius)
    inner = (outer[0] + edge, outer[1] + edge, outer[2] - edge, outer[3] - edge)
    if shape == "circle":
        draw.ellipse(outer, outline)
        draw.ellipse(inner, fill)
    else:
        band = 0.34 * radius
        draw.ellipse(outer, None, outline, round(band + 2 * edge))
        draw.ellipse(inner, None, fill, round(band))


@lru_cache(maxsize=16)
def polygon(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape in the unit circle, y downwards."""
    if shape == "square":
        return ((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82))
    if shape == "diamond":
        return ((0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0))
    if shape == "triangle":
        return ((0.0, -0.95), (0.95, 0.8), (-0.95, 0.8))
    if shape == "cross":
        quarter = [(0.3, -1.0), (0.3, -0.3), (1.0, -0.3), (1.0, 0.3), (0.3, 0.3), (0.3, 1.0)]
        return tuple(quarter + [(-u, -v) for u, v in quarter])
    if shape == "star":
        turns = [(math.pi * k / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
        return tuple((r * math.sin(a), -r * math.cos(a)) for a, r in turns)
    if shape == "heart":
        turns = [(2 * math.pi * k / 40, 0.0) for k in range(40)]
        return tuple(
            (
                math.sin(a) ** 3,
                -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a))
                / 16,
            )
            for a, _ in turns
        )
    raise ValueError(f"{shape!r} is not a polygon of this world")


@lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=pixels)


def background_kind(seed: int) -> str:
    return str(np.random.default_rng([seed, 7]).choice(BACKGROUNDS))


@lru_cache(maxsize=64)
def background(seed: int, side: int) -> Image.Image:
    """A muted picture to stand behind the events, the same for one seed at every size."""
    kind = background_kind(seed)
    rng = np.random.default_rng([seed, 8])
    base = _muted(rng.uniform(20, 190, 3))
    if kind == "photo":
        return _photo_crop(rng, side)
    v, u = np.mgrid[0:side, 0:side] / side
    angle = rng.uniform(0, 2 * math.pi)
    along = u * math.cos(angle) + v * math.sin(angle)
    other = _muted(np.clip(base + rng.uniform(-60, 60, 3), 0, 220))
    if kind == "plain":
        mix = np.zeros_like(u)
    elif kind == "gradient":
        mix = along - along.min()
    elif kind == "stripes":
        mix = 0.5 + 0.5 * np.sign(np.sin(2 * math.pi * along * rng.integers(3, 9)))
    elif kind == "checks":
        cells = int(rng.integers(3, 9))
        mix = (np.floor(u * cells) + np.floor(v * cells)) % 2
    else:
        grains = rng.uniform(0, 255, (24, 24)).astype(np.uint8)
        mix = (
            np.asarray(Image.fromarray(grains).resize((side, side), Image.Resampling.BILINEAR))
            / 255
        )
    picture = base + (other - base) * np.clip(mix, 0, 1)[..., None]
    return Image.fromarray(picture.astype(np.uint8))


def _muted(colour: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * colour + 0.5 * colour.mean())


def _photo_crop(rng: np.random.Generator, side: int) -> Image.Image:
    """A crop of a photo that scikit-image ships, dimmed and half desaturated."""
    photo = _photo(str(rng.choice(PHOTOS)))
    edge = int(rng.uniform(0.3, 0.9) * min(photo.size))
    left, top = (
        int(rng.integers(0, photo.width - edge + 1)),
        int(rng.integers(0, photo.height - edge + 1)),
    )
    crop = photo.crop((left, top, left + edge, top + edge)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(crop).astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    dimmed = (0.5 * pixels + 0.5 * grey) * rng.uniform(0.4, 0.8) + 10
    return Image.fromarray(dimmed.astype(np.uint8))


@lru_cache(maxsize=16)
def _photo(name: str) -> Image.Image:
    import skimage.data  # heavy, and needed only where clips are made

    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
