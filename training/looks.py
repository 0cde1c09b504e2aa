"""How a scene looks, apart from what it shows: painter, proportions, palette, background, frame
shape, light, damage.

A look is drawn from the scene's own seed, so that a scene is painted the same wherever that
happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.demo.world import COLOURS, OUTLINE, Scene, Thing, background

Colour = tuple[float, float, float]
Array = NDArray[np.float32]

CLASSIC = "classic"
AS_THE_WORLD = 0.2  # share of scenes that look as the world itself paints them
PAINTERS = ("classic", "pillow", "fields", "scikit")  # what training sees
LEFT_OUT = "opencv"  # what tells whether it has learnt shapes rather than painters
# What a person would call by the colour's name, as (least, most) of red, green and blue.
PALETTES: dict[str, tuple[Colour, Colour]] = {
    "red": ((185, 0, 0), (255, 55, 60)),
    "green": ((0, 125, 0), (75, 205, 90)),
    "blue": ((0, 20, 150), (65, 105, 255)),
    "yellow": ((230, 205, 0), (255, 245, 80)),
    "purple": ((105, 15, 125), (170, 75, 215)),
    "orange": ((240, 115, 0), (255, 155, 50)),
    "white": ((225, 225, 225), (255, 255, 255)),
    "cyan": ((0, 190, 200), (90, 245, 255)),
}
PHOTOS = (
    *(
        "astronaut.png",
        "coffee.png",
        "chelsea.png",
        "rocket.jpg",
        "brick.png",
        "grass.png",
        "gravel.png",
    ),
    *(
        "ihc.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "camera.png",
        "page.png",
        "text.png",
    ),
    *("hubble_deep_field.jpg", "clock_motion.png"),
)
# (rows, columns) of 16-pixel tokens that frames are resized to, with the shape of the video (width
# / height) that comes to it and how often it is painted. Sides are rounded down: 640 x 360 and 854
# x 480 differ.
SQUARE = (4, 4)
ASPECTS = {
    SQUARE: 1.0,
    (3, 5): 640 / 360,
    (2, 5): 854 / 480,
    (2, 6): 854 / 364,
    (3, 4): 640 / 480,
    (4, 3): 480 / 640,
    (5, 3): 360 / 640,
    (5, 2): 480 / 854,
}
GRID_SHARES = (0.68, 0.1, 0.05, 0.03, 0.05, 0.03, 0.04, 0.02)
# radians, most
TURNS = {"square": 0.22, "diamond": 0.2, "cross": 0.35, "heart": 0.5, "triangle": 0.6, "star": 0.6}


@dataclass(frozen=True)
class Look:
    """Everything about the pictures of a scene that no question asks for.

    grid: rows and columns of tokens of its frames. letterbox: share of the height that the picture
    takes, 1 for all.
    outline: width as a share of the radius, 0 for none. proportions: of the shapes. pace: of moving
    things, 1 as fast as the world's. pan: widths a second by which the background slides. drift:
    how light and white balance swing over the scene. jpeg: quality, 0 for none; video: quality of
    H.264, 0 for none. scale: pixels painted for each that the model sees.
    """

    seed: int
    painter: str
    grid: tuple[int, int] = SQUARE
    letterbox: float = 1.0
    outline: float = 0.0
    ink: Colour = (0.0, 0.0, 0.0)
    palette: tuple[tuple[str, Colour], ...] = tuple(COLOURS.items())
    proportions: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    turn: float = 0.0
    backdrop: str = "world"
    pace: float = 1.0
    pan: float = 0.0
    shadow: float = 0.0
    light: float = 0.0
    drift: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0
    video: int = 0
    scale: float = 2.0

    def colour(self, name: str) -> Colour:
        return dict(self.palette)[name]


def look_of(seed: int, painters: Sequence[str] = PAINTERS) -> Look:
    """The look that belongs to a scene's seed."""
    rng = np.random.default_rng([seed, 41])
    if CLASSIC in painters and rng.random() < AS_THE_WORLD:
        return Look(
            seed,
            CLASSIC,
            outline=OUTLINE,
            video=int(rng.integers(18, 33)) if rng.random() < 0.5 else 0,
        )
    painter = str(rng.choice(list(painters)))
    grid = list(ASPECTS)[int(rng.choice(len(ASPECTS), p=GRID_SHARES))]
    damage = rng.random()
    backdrop_kind = str(
        rng.choice(["world", "flat", "gradient", "photo", "clutter"], p=[0.3, 0.22, 0.2, 0.2, 0.08])
    )
    pans = backdrop_kind in ("photo", "clutter") and rng.random() < 0.4
    return Look(
        seed=seed,
        painter=painter,
        grid=grid,
        letterbox=float(rng.uniform(0.56, 0.8)) if grid == SQUARE and rng.random() < 0.08 else 1.0,
        outline=float(rng.choice([0.0, rng.uniform(0.04, 0.14)], p=[0.65, 0.35])),
        ink=(0.0, 0.0, 0.0) if rng.random() < 0.6 else tuple(rng.uniform(0, 90, 3).tolist()),
        palette=_palette(rng),
        proportions=tuple(rng.uniform(0, 1, 6).tolist()),
        turn=float(rng.choice([0.0, 1.0], p=[0.4, 0.6])),
        backdrop=backdrop_kind,
        pan=float(rng.uniform(-0.15, 0.15)) if pans else 0.0,
        pace=float(rng.uniform(0.6, 1.0)) if rng.random() < 0.5 else 1.0,
        shadow=float(rng.uniform(0.2, 0.6)) if rng.random() < 0.15 else 0.0,
        light=float(rng.uniform(-0.35, 0.35)) if rng.random() < 0.25 else 0.0,
        drift=float(rng.uniform(0.02, 0.14)) if rng.random() < 0.3 else 0.0,
        blur=float(rng.uniform(0.3, 1.6)) if rng.random() < 0.25 else 0.0,
        noise=float(rng.uniform(1, 12)) if rng.random() < 0.4 else 0.0,
        jpeg=int(rng.integers(25, 95)) if damage < 0.35 else 0,
        video=int(rng.integers(18, 36)) if damage > 0.65 else 0,
        scale=float(rng.choice([1.5, 2.0, 2.5, 3.5], p=[0.3, 0.4, 0.2, 0.1])),
    )


def _palette(rng: np.random.Generator) -> tuple[tuple[str, Colour], ...]:
    """Each colour as the world has it, or anywhere that goes by its name."""
    if rng.random() < 0.3:
        return tuple((name, (float(r), float(g), float(b))) for name, (r, g, b) in COLOURS.items())
    drawn = []
    for name, (low, high) in PALETTES.items():
        shares = rng.uniform(0, 1, 3) if name != "white" else np.full(3, rng.uniform())
        drawn.append(
            (name, tuple((np.array(low) + shares * (np.array(high) - np.array(low))).tolist()))
        )
    return tuple(drawn)


@dataclass(frozen=True)
class Canvas:
    """A frame being painted, and where in it the unit square of the world lies, in pixels."""

    pixels: Array
    left: float
    top: float
    width: float
    height: float

    def spot(self, thing: Thing, seconds: float, pace: float = 1.0) -> tuple[float, float, float]:
        """Centre and radius of a thing in pixels, `seconds` into its event."""
        x, y = thing.centre(seconds * pace)
        radius = thing.size * min(self.width, self.height) / 2
        return self.left + x * self.width, self.top + y * self.height, radius


def canvas_size(look: Look) -> tuple[int, int]:
    """Height and width of the pictures as painted."""
    rows, columns = look.grid
    aspect = ASPECTS[look.grid]
    height = math.sqrt(rows * columns / aspect) * 16 * look.scale
    return 2 * round(height / 2), 2 * round(height * aspect / 2)


def make_canvas(look: Look, pixels: Array) -> Canvas:
    height, width = pixels.shape[:2]
    inner = height * look.letterbox
    return Canvas(pixels, 0.0, (height - inner) / 2, width, inner)


def turn_of(thing: Thing, look: Look) -> float:
    """Radians by which a thing is turned, always the same for one thing of a scene."""
    most = look.turn * TURNS.get(thing.shape, 0.0)
    return most * math.sin(1e4 * (thing.x + 3 * thing.y + 7 * thing.size))


@lru_cache(maxsize=8)
def backdrop(look: Look) -> Array:
    """What stands behind the things of a scene, float32 [height, width, 3]."""
    height, width = canvas_size(look)
    rng = np.random.default_rng([look.seed, 43])
    if look.backdrop == "world":
        side = max(height, width)
        picture = np.asarray(background(look.seed, side))[:height, :width].astype(np.float32)
    elif look.backdrop in ("flat", "gradient"):
        picture = _plain(rng, height, width, look.backdrop == "gradient")
    else:
        picture = photo_crop(rng, height, width)
        if look.backdrop == "clutter":
            picture = _cluttered(rng, picture)
    return picture


def _plain(rng: np.random.Generator, height: int, width: int, graded: bool) -> Array:
    """A flat or slowly changing field of any muted colour, dark grey and light included."""
    ends = [_any_muted(rng) for _ in range(2)]
    v, u = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    angle = rng.uniform(0, 2 * math.pi)
    mix = u * math.cos(angle) + v * math.sin(angle)
    mix = (mix - mix.min()) / max(1e-6, float(np.ptp(mix))) if graded else np.zeros_like(u)
    return np.asarray(ends[0] + (ends[1] - ends[0]) * mix[..., None], dtype=np.float32)


def _any_muted(rng: np.random.Generator) -> Array:
    level, tint = rng.uniform(0, 200), rng.uniform(-28, 28, 3)
    return np.clip(level + tint, 0, 215).astype(np.float32)


@lru_cache(maxsize=1)
def photos() -> tuple[Image.Image, ...]:
    """The photos that scikit-image brings along."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    there = [folder / name for name in PHOTOS if (folder / name).is_file()]
    return tuple(Image.open(path).convert("RGB") for path in there)


def photo_crop(rng: np.random.Generator, height: int, width: int) -> Array:
    """A crop of a photo, anything between dimmed grey and full colour."""
    pictures = photos()
    if not pictures:
        return _plain(rng, height, width, graded=True)
    photo = pictures[int(rng.integers(len(pictures)))]
    edge = float(rng.uniform(0.3, 0.95)) * min(photo.width / width, photo.height / height)
    wide, high = max(2, int(width * edge)), max(2, int(height * edge))
    left, top = (
        int(rng.integers(0, photo.width - wide + 1)),
        int(rng.integers(0, photo.height - high + 1)),
    )
    crop = photo.crop((left, top, left + wide, top + high)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(crop).astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    vivid = rng.uniform(0.2, 1.0)
    return np.asarray(
        (vivid * pixels + (1 - vivid) * grey) * rng.uniform(0.4, 1.0) + rng.uniform(0, 20)
    )


def _cluttered(rng: np.random.Generator, picture: Array) -> Array:
    """Lines, letters and shapeless spots on top: what is in a picture and is no shape of the
    world.
    """
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    size = np.array([image.width, image.height])
    for _ in range(int(rng.integers(2, 9))):
        ink = tuple(int(v) for v in rng.uniform(0, 255, 3))
        start, stop = (tuple((rng.uniform(0, 1, 2) * size).tolist()) for _ in range(2))
        kind = rng.random()
        if kind < 0.4:
            draw.line([start, stop], ink, int(rng.integers(1, 5)))
        elif kind < 0.7:
            angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(6, 11))))
            reach = rng.uniform(0.03, 0.2, len(angles)) * min(size)
            corners = np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None] + np.array(
                start
            )
            draw.polygon([tuple(corner) for corner in corners.tolist()], ink)
        else:
            letters = "".join(rng.choice(list("ABDEFGHKMNPRSTUVWYZ"), int(rng.integers(1, 6))))
            draw.text(start, letters, ink, font_size=int(rng.integers(6, 20)))
    return np.asarray(image).astype(np.float32)


def scene_look(scene: Scene, painters: Sequence[str] = PAINTERS) -> Look:
    return look_of(scene.background_seed, painters)
