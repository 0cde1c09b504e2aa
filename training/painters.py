"""Painters of the world that share no drawing code: what one of them does at an edge, no other
does.

Each puts a thing on a canvas of floats. `classic` is the world's own (Pillow, hard edges); `pillow`
draws at four times the size and shrinks; `fields` computes distances to edges; `scikit` fills with
scikit-image. `opencv` is never trained
on: it tells whether the model has learnt shapes or painters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.demo.world import Thing, draw_thing
from training.looks import Array, Canvas, Colour, Look, turn_of

Points = NDArray[np.float64]
Painter = Callable[[Canvas, Thing, float, Look], None]
SUPER = 4  # pixels across that `pillow` and `scikit` draw for each pixel
# Digits as strokes of a pen in a box of 2 by 3, y downwards: what has no font draws these.
STROKES: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    0: (
        (
            (-0.3, -1),
            (0.3, -1),
            (0.6, -0.6),
            (0.6, 0.6),
            (0.3, 1),
            (-0.3, 1),
            (-0.6, 0.6),
            (-0.6, -0.6),
            (-0.3, -1),
        ),
    ),
    1: (((-0.35, -0.6), (0.05, -1), (0.05, 1)),),
    2: (
        (
            (-0.55, -0.6),
            (-0.3, -0.95),
            (0.3, -0.95),
            (0.55, -0.6),
            (0.45, -0.15),
            (-0.6, 1),
            (0.6, 1),
        ),
    ),
    3: (
        (
            (-0.5, -0.85),
            (0, -1),
            (0.45, -0.8),
            (0.45, -0.3),
            (0, -0.05),
            (0.5, 0.2),
            (0.55, 0.7),
            (0.1, 1),
            (-0.55, 0.85),
        ),
    ),
    4: (((0.3, 1), (0.3, -1), (-0.65, 0.4), (0.65, 0.4)),),
    5: (
        (
            (0.5, -1),
            (-0.45, -1),
            (-0.5, -0.1),
            (0.1, -0.25),
            (0.55, 0.1),
            (0.55, 0.65),
            (0.1, 1),
            (-0.55, 0.85),
        ),
    ),
    6: (
        (
            (0.45, -0.9),
            (0, -1),
            (-0.5, -0.5),
            (-0.6, 0.3),
            (-0.35, 0.9),
            (0.2, 1),
            (0.55, 0.65),
            (0.5, 0.15),
            (0, -0.1),
        ),
        ((0, -0.1), (-0.55, 0.25)),
    ),
    7: (((-0.6, -1), (0.6, -1), (-0.1, 1)),),
    8: (
        ((0, -0.1), (-0.45, -0.4), (-0.4, -0.85), (0, -1), (0.4, -0.85), (0.45, -0.4), (0, -0.1)),
        ((0, -0.1), (-0.55, 0.3), (-0.5, 0.8), (0, 1), (0.5, 0.8), (0.55, 0.3), (0, -0.1)),
    ),
    9: (
        (
            (-0.45, 0.9),
            (0, 1),
            (0.5, 0.5),
            (0.6, -0.3),
            (0.35, -0.9),
            (-0.2, -1),
            (-0.55, -0.65),
            (-0.5, -0.15),
            (0, 0.1),
        ),
        ((0, 0.1), (0.55, -0.25)),
    ),
}


def corners(shape: str, look: Look) -> Points:
    """The outline of a shape in the unit circle by the look's proportions, [n, 2], y downwards; of
    rings the outer.
    """
    p = look.proportions
    if shape == "square":
        return np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
    if shape == "diamond":
        wide = 0.6 + 0.2 * p[0]
        return np.array([(0, -1.0), (wide, 0), (0, 1.0), (-wide, 0)])
    if shape == "triangle":
        low, wide = 0.5 + 0.35 * p[1], 0.87 + 0.1 * p[1]
        return np.array([(0, -1.0), (wide, low), (-wide, low)])
    if shape == "cross":
        w = 0.22 + 0.16 * p[2]
        quarter = [(w, -1.0), (w, -w), (1.0, -w), (1.0, w), (w, w), (w, 1.0)]
        return np.array(quarter + [(-u, -v) for u, v in quarter])
    if shape == "star":
        inner = 0.36 + 0.14 * p[3]
        turns = [(math.pi * k / 5, 1.0 if k % 2 == 0 else inner) for k in range(10)]
        return np.array([(r * math.sin(a), -r * math.cos(a)) for a, r in turns])
    if shape == "heart":
        return _heart(p[4])
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _heart(kind: float) -> Points:
    """Two round lobes over a point; `kind` makes it from slim to broad."""
    a = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    y = -(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a)) / 16
    return np.stack([(0.88 + 0.14 * kind) * np.sin(a) ** 3, y * (0.9 + 0.1 * kind)], axis=1)


def hole(look: Look) -> float:
    """Radius of a ring's hole."""
    return 0.5 + 0.22 * look.proportions[5]


def placed(
    thing: Thing, look: Look, spot: tuple[float, float, float], scale: float = 1.0
) -> Points:
    """A shape's corners in pixels, turned."""
    x, y, radius = spot
    turn = turn_of(thing, look)
    spun = corners(thing.shape, look) @ np.array(
        [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
    )
    return np.asarray(spun * radius * scale + np.array([x, y]))


def paint_classic(canvas: Canvas, thing: Thing, seconds: float, look: Look) -> None:
    """As the world paints: the canvas' middle square is its frame, unless it is letterboxed."""
    height, width = canvas.pixels.shape[:2]
    image = Image.fromarray(canvas.pixels.clip(0, 255).astype(np.uint8))
    x, y, radius = canvas.spot(thing, seconds, look.pace)
    side = min(height, width)
    moved = Thing(
        thing.shape, thing.colour, 2 * radius / side, x / side, y / side, "still", thing.digit
    )
    fill = tuple(round(v) for v in look.colour(thing.colour))
    draw_thing(ImageDraw.Draw(image), moved, 0.0, side, fill, (0, 0, 0))
    canvas.pixels[:] = np.asarray(image)


def paint_pillow(canvas: Canvas, thing: Thing, seconds: float, look: Look) -> None:
    """Masks drawn at four times the size and shrunk."""
    x, y, radius = canvas.spot(thing, seconds, look.pace)
    box = _box(canvas, x, y, radius)
    if box is None:
        return
    left, top, right, bottom = box
    local = ((x - left) * SUPER, (y - top) * SUPER, radius * SUPER)
    size = ((right - left) * SUPER, (bottom - top) * SUPER)
    for scale, ink in _layers(thing, look):
        mask = Image.new("L", size)
        draw = ImageDraw.Draw(mask)
        if thing.digit is not None:
            _pillow_digit(draw, thing.digit, local, scale, look)
        elif thing.shape in ("circle", "ring"):
            _pillow_disc(draw, local[0], local[1], local[2] * scale, 255)
            if thing.shape == "ring":
                _pillow_disc(draw, local[0], local[1], local[2] * (hole(look) + 1 - scale), 0)
        else:
            draw.polygon(
                [tuple(corner) for corner in placed(thing, look, local, scale).tolist()], 255
            )
        small = mask.resize((right - left, bottom - top), Image.Resampling.BOX)
        _blend(canvas, box, np.asarray(small).astype(np.float32) / 255, ink)


def _pillow_disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, ink: int) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), ink)


def _pillow_digit(
    draw: ImageDraw.ImageDraw,
    digit: int,
    spot: tuple[float, float, float],
    scale: float,
    look: Look,
) -> None:
    x, y, radius = spot
    weight = radius * (0.03 + 0.1 * look.proportions[0])
    bold = max(0, round(weight + (scale - 0.86) * radius * 0.3))
    draw.text(
        (x, y), str(digit), 255, _font(round(2 * radius)), "mm", stroke_width=bold, stroke_fill=255
    )


@lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=pixels)


def paint_fields(canvas: Canvas, thing: Thing, seconds: float, look: Look) -> None:
    """How far each pixel lies from the edge decides how much of it is covered."""
    x, y, radius = canvas.spot(thing, seconds, look.pace)
    box = _box(canvas, x, y, radius)
    if box is None:
        return
    left, top, right, bottom = box
    v, u = np.mgrid[top:bottom, left:right].astype(np.float64) + 0.5
    distance = _distance(thing, look, (u - x) / radius, (v - y) / radius) * radius
    edge = max(1.0, 0.02 * radius)
    if look.outline:
        _blend(canvas, box, np.clip(0.5 - distance / edge, 0, 1), look.ink)
        distance = distance + look.outline * radius
    _blend(canvas, box, np.clip(0.5 - distance / edge, 0, 1), look.colour(thing.colour))


def _distance(thing: Thing, look: Look, u: Points, v: Points) -> Points:
    """Signed distance to the edge of a shape of radius 1, negative inside."""
    turn = turn_of(thing, look)
    u, v = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn)
    if thing.digit is not None:
        pen = 0.1 + 0.16 * look.proportions[0]
        strokes = [
            _to_polyline(u, v, np.array(stroke) * (0.72, 0.85)) for stroke in STROKES[thing.digit]
        ]
        return np.asarray(np.min(strokes, axis=0) - pen)
    round_off = np.hypot(u, v)
    if thing.shape == "circle":
        return np.asarray(round_off - 1)
    if thing.shape == "ring":
        middle = (1 + hole(look)) / 2
        return np.asarray(np.abs(round_off - middle) - (1 - middle))
    outline = corners(thing.shape, look)
    nearest = _to_polyline(u, v, np.concatenate([outline, outline[:1]]))
    return np.asarray(np.where(_inside(u, v, outline), -nearest, nearest))


def _to_polyline(u: Points, v: Points, line: Points) -> Points:
    """Distance of each point to a line of straight pieces."""
    best = np.full(u.shape, np.inf)
    for (ax, ay), (bx, by) in pairwise(line):
        dx, dy = bx - ax, by - ay
        along = np.clip(((u - ax) * dx + (v - ay) * dy) / max(1e-12, dx * dx + dy * dy), 0, 1)
        best = np.minimum(best, (u - ax - along * dx) ** 2 + (v - ay - along * dy) ** 2)
    return np.asarray(np.sqrt(best))


def _inside(u: Points, v: Points, outline: Points) -> NDArray[np.bool_]:
    """Whether a ray to the right crosses the outline an odd number of times."""
    odd = np.zeros(u.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if ay != by:
            odd ^= ((ay > v) != (by > v)) & (u < (bx - ax) * (v - ay) / (by - ay) + ax)
    return odd


def paint_scikit(canvas: Canvas, thing: Thing, seconds: float, look: Look) -> None:
    """scikit-image fills polygons and discs on a finer raster, whose means are how much of a pixel
    is covered.
    """
    from skimage.draw import disk, polygon

    x, y, radius = canvas.spot(thing, seconds, look.pace)
    box = _box(canvas, x, y, radius)
    if box is None:
        return
    left, top, right, bottom = box
    shape = ((bottom - top) * SUPER, (right - left) * SUPER)
    local = ((x - left) * SUPER, (y - top) * SUPER, radius * SUPER)
    for scale, ink in _layers(thing, look):
        fine = np.zeros(shape, dtype=np.float32)
        if thing.digit is not None:
            for part in _segments(thing.digit, look, scale):
                spots = part * local[2] + np.array(local[:2])
                fine[polygon(spots[:, 1], spots[:, 0], shape)] = 1
        elif thing.shape in ("circle", "ring"):
            fine[disk((local[1], local[0]), local[2] * scale, shape=shape)] = 1
            if thing.shape == "ring":
                fine[
                    disk((local[1], local[0]), local[2] * (hole(look) + 1 - scale), shape=shape)
                ] = 0
        else:
            spots = placed(thing, look, local, scale)
            fine[polygon(spots[:, 1], spots[:, 0], shape)] = 1
        cover = fine.reshape(bottom - top, SUPER, right - left, SUPER).mean((1, 3))
        _blend(canvas, box, cover, ink)


LIT = {
    0: "abcdef",
    1: "bc",
    2: "abged",
    3: "abgcd",
    4: "fgbc",
    5: "afgcd",
    6: "afgedc",
    7: "abc",
    8: "abcdefg",
    9: "abcdfg",
}
BARS = {  # of seven segments: both ends
    "a": ((-0.5, -0.9), (0.5, -0.9)),
    "b": ((0.5, -0.9), (0.5, 0.0)),
    "c": ((0.5, 0.0), (0.5, 0.9)),
    "d": ((-0.5, 0.9), (0.5, 0.9)),
    "e": ((-0.5, 0.0), (-0.5, 0.9)),
    "f": ((-0.5, -0.9), (-0.5, 0.0)),
    "g": ((-0.5, 0.0), (0.5, 0.0)),
}


def _segments(digit: int, look: Look, scale: float) -> list[Points]:
    """A digit of seven segments, or of pen strokes, as four-cornered pieces."""
    pen = (0.09 + 0.12 * look.proportions[0]) * scale
    if look.proportions[1] < 0.5:
        lines = [BARS[name] for name in LIT[digit]]
    else:
        lines = [
            pair
            for stroke in STROKES[digit]
            for pair in zip(
                (np.array(stroke) * 0.85)[:-1].tolist(),
                (np.array(stroke) * 0.85)[1:].tolist(),
                strict=True,
            )
        ]
    return [_thick(np.array(start), np.array(stop), pen) for start, stop in lines]


def _thick(start: Points, stop: Points, pen: float) -> Points:
    along = (stop - start) / max(1e-9, float(np.hypot(*(stop - start))))
    aside = np.array([-along[1], along[0]]) * pen
    start, stop = start - along * pen, stop + along * pen
    return np.array([start + aside, stop + aside, stop - aside, start - aside])


def paint_opencv(canvas: Canvas, thing: Thing, seconds: float, look: Look) -> None:
    """OpenCV's own anti-aliased fills, lines and letters, in proportions of their own."""
    import cv2

    x, y, radius = canvas.spot(thing, seconds, look.pace)
    image = np.ascontiguousarray(canvas.pixels.clip(0, 255).astype(np.uint8))
    for scale, ink in _layers(thing, look):
        colour = tuple(float(v) for v in ink)
        if thing.digit is not None:
            _opencv_digit(image, thing.digit, (x, y, radius), colour, scale)
            continue
        if thing.shape in ("circle", "ring"):
            middle, across = (round(x * 16), round(y * 16)), round(radius * scale * 16)
            if thing.shape == "circle":
                cv2.circle(image, middle, across, colour, -1, cv2.LINE_AA, 4)
            else:
                wide = max(2, round(radius * (0.36 - 2 * (1 - scale))))
                cv2.circle(image, middle, round(radius * 0.82 * 16), colour, wide, cv2.LINE_AA, 4)
            continue
        turn = turn_of(thing, look)
        spin = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        spots = OPENCV_SHAPES[thing.shape] @ spin * radius * scale + np.array([x, y])
        cv2.fillPoly(image, [np.round(spots * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)
    canvas.pixels[:] = image


def _opencv_digit(
    image: NDArray[np.uint8],
    digit: int,
    spot: tuple[float, float, float],
    ink: tuple[float, ...],
    scale: float,
) -> None:
    import cv2

    x, y, radius = spot
    size, face = radius / 12, cv2.FONT_HERSHEY_SIMPLEX
    thick = max(2, round(radius * (0.22 if scale < 1 else 0.26)))
    (wide, high), _ = cv2.getTextSize(str(digit), face, size, thick)
    cv2.putText(
        image,
        str(digit),
        (round(x - wide / 2), round(y + high / 2)),
        face,
        size,
        ink,
        thick,
        cv2.LINE_AA,
    )


def _opencv_shapes() -> dict[str, Points]:
    angles = np.pi * np.arange(10) / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.44)
    lobe = np.linspace(np.pi, 2 * np.pi, 16)
    left = np.stack([-0.5 + 0.5 * np.cos(lobe), -0.35 + 0.5 * np.sin(lobe)], 1)
    right = np.stack([0.5 + 0.5 * np.cos(lobe), -0.35 + 0.5 * np.sin(lobe)], 1)
    arm = 0.32
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm), (arm, 1.0)]
    return {
        "square": np.array([(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)]),
        "diamond": np.array([(0, -1.0), (0.72, 0), (0, 1.0), (-0.72, 0)]),
        "triangle": np.array([(0, -0.95), (0.9, 0.7), (-0.9, 0.7)]),
        "cross": np.array(quarter + [(-u, -v) for u, v in quarter]),
        "star": np.stack([reach * np.sin(angles), -reach * np.cos(angles)], 1),
        "heart": np.concatenate([left, right, np.array([(0.95, 0.0), (0.0, 0.95), (-0.95, 0.0)])]),
    }


OPENCV_SHAPES = _opencv_shapes()
BY_NAME: dict[str, Painter] = {
    "classic": paint_classic,
    "pillow": paint_pillow,
    "fields": paint_fields,
    "scikit": paint_scikit,
    "opencv": paint_opencv,
}


def _layers(thing: Thing, look: Look) -> list[tuple[float, Colour]]:
    """What is filled, one over the other: share of the radius, and colour."""
    fill = look.colour(thing.colour)
    return [(1.0, look.ink), (1 - 1.4 * look.outline, fill)] if look.outline else [(1.0, fill)]


def _box(canvas: Canvas, x: float, y: float, radius: float) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the pixels that a thing may touch; None where none is on the
    canvas.
    """
    height, width = canvas.pixels.shape[:2]
    reach = 1.15 * radius + 2
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(width, int(x + reach) + 1), min(height, int(y + reach) + 1)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _blend(
    canvas: Canvas, box: tuple[int, int, int, int], cover: Array | Points, ink: Colour
) -> None:
    left, top, right, bottom = box
    under = canvas.pixels[top:bottom, left:right]
    under += cover[..., None].astype(np.float32) * (np.array(ink, dtype=np.float32) - under)
