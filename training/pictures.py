"""From a scene and its look to what the model sees: painted, lit, damaged, resized as the
preprocessing does; and what each token of it shows.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.demo.world import COLOURS, MOTIONS, SHAPES, Scene, Thing, WorldEvent
from training.looks import Array, Canvas, Look, backdrop, make_canvas
from training.painters import BY_NAME, hole, placed
from training.scenes import FRAMES_PER_GROUP, group_times

CELL = 16  # pixels along a token's side
COLOUR_NAMES, MOTION_NAMES = tuple(COLOURS), tuple(MOTIONS)
# What a token shows, as class numbers (0 is "nothing", -1 is "not asked"): one column each.
LABELS = {"shape": 10, "colour": 9, "motion": 6, "digit": 11, "centre": 2, "frames": 4}
SEEN_PIXELS = 24  # of a token's 256, in both frames, from which it shows a thing
INK = 60  # brightness from which a pixel of a picture on black counts
HINT_PIXELS = 4  # up to which it shows nothing


def paint_frame(scene: Scene, seconds: float, look: Look) -> Array:
    """The scene at a moment, before any damage: float32 [height, width, 3]."""
    picture = backdrop(look)
    picture = (
        np.roll(picture, round(look.pan * seconds * picture.shape[1]), axis=1)
        if look.pan
        else picture.copy()
    )
    canvas = make_canvas(look, picture)
    event = scene.event_at(seconds)
    if event is not None:
        for thing in event.things:
            if look.shadow:
                _cast_shadow(canvas, thing, seconds - event.start_seconds, look)
            BY_NAME[look.painter](canvas, thing, seconds - event.start_seconds, look)
    if look.letterbox < 1:
        top, bottom = round(canvas.top), round(canvas.top + canvas.height)
        picture[:top] = picture[bottom:] = 0
    return picture


def _cast_shadow(canvas: Canvas, thing: Thing, seconds: float, look: Look) -> None:
    """A soft dark spot below and beside a thing."""
    x, y, radius = canvas.spot(thing, seconds, look.pace)
    height, width = canvas.pixels.shape[:2]
    v, u = np.ogrid[0:height, 0:width]
    far = ((u - x - 0.12 * radius) ** 2 + (v - y - 0.15 * radius) ** 2) / (1.1 * radius) ** 2
    pixels = canvas.pixels
    pixels *= 1 - look.shadow * np.clip(1.3 - far, 0, 1)[..., None].astype(np.float32)


def scene_pictures(scene: Scene, look: Look) -> NDArray[np.uint8]:
    """All frames of a scene as a decoder would give them, uint8 [frames, height, width, 3]."""
    rng = np.random.default_rng([look.seed, 47])
    times = [t for pair in group_times(scene) for t in pair]
    shift, phase = rng.uniform(-1, 1, 3), rng.uniform(0, 2 * math.pi)
    frames = []
    for t in times:
        picture = paint_frame(scene, t, look)
        frames.append(_as_seen(picture, look, t / scene.duration_seconds, shift, phase, rng))
    return np.stack(frames)


def _as_seen(
    picture: Array,
    look: Look,
    share: float,
    shift: NDArray[np.float64],
    phase: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Uneven light, drift, blur, sensor noise and JPEG, in the order in which a camera meets
    them.
    """
    width = picture.shape[1]
    if look.light:
        picture *= 1 + look.light * np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    if look.drift:
        swing = math.sin(2 * math.pi * share + phase)
        picture *= (1 + look.drift * swing * (0.6 + 0.4 * shift)).astype(np.float32)
    if look.noise:
        picture += look.noise * rng.standard_normal(picture.shape, dtype=np.float32)
    pixels = picture.clip(0, 255).astype(np.uint8)
    if look.blur:
        pixels = _blurred(pixels, look.blur)
    if look.jpeg:
        pixels = through_jpeg(pixels, look.jpeg)
    return pixels


def _blurred(pixels: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    from PIL import ImageFilter

    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def through_codec(frames: NDArray[np.uint8], crf: int, codec: str = "libx264") -> NDArray[np.uint8]:
    """The frames after a video codec at this quality: [n, H, W, 3] in, the same shape out. H and W
    are even.
    """
    import av
    from av.video.stream import VideoStream

    options = {
        "libx264": {"crf": str(crf), "preset": "ultrafast", "threads": "1"},
        "libvpx-vp9": {
            "crf": str(crf + 10),
            "b": "0",
            "deadline": "realtime",
            "cpu-used": "8",
            "threads": "1",
        },
        "mjpeg": {"qmin": str(max(2, crf // 3)), "qmax": str(max(2, crf // 3)), "threads": "1"},
    }[codec]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = cast(VideoStream, out.add_stream(codec, rate=2, options=options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as back:
        return np.stack(
            [np.asarray(frame.to_ndarray(format="rgb24")) for frame in back.decode(video=0)]
        )


def resized(frames: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """As the preprocessing resizes them to rows and columns of tokens: uint8 [groups, 2, H, W,
    3].
    """
    size = [grid[0] * CELL, grid[1] * CELL]
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    small = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
    return small.permute(0, 2, 3, 1).numpy().reshape(-1, FRAMES_PER_GROUP, *size, 3)


def scene_labels(scene: Scene, look: Look) -> NDArray[np.int8]:
    """int8 [groups, tokens, 6]: what each token of each group shows, in the columns of `LABELS`."""
    return np.stack([_group_labels(scene, pair, look) for pair in group_times(scene)])


def _group_labels(scene: Scene, times: tuple[float, float], look: Look) -> NDArray[np.int8]:
    rows, columns = look.grid
    events = [scene.event_at(t) for t in times]
    things = list(
        {id(thing): thing for event in events if event for thing in event.things}.values()
    )
    covered = np.zeros((len(times), len(things) + 1, rows * columns), dtype=np.int64)
    centres = np.zeros(rows * columns, dtype=np.int8)
    canvas = make_canvas(look, np.zeros((rows * CELL, columns * CELL, 1), dtype=np.float32))
    for f, (event, t) in enumerate(zip(events, times, strict=True)):
        if event is None:
            continue
        ids = _thing_numbers(event, things, t - event.start_seconds, canvas, look)
        if f == 0 or event is not events[0]:
            for thing in event.things:
                x, y, _ = canvas.spot(thing, t - event.start_seconds, look.pace)
                centres[
                    min(rows - 1, int(y // CELL)) * columns + min(columns - 1, int(x // CELL))
                ] = 1
        cells = (
            ids.reshape(rows, CELL, columns, CELL).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
        )
        covered[f] = np.stack([(cells == n).sum(axis=1) for n in range(len(things) + 1)])
    steady = events[0] is events[1]
    labels = [
        _token_label(covered[:, 1:, c], things, bool(centres[c]), steady)
        for c in range(rows * columns)
    ]
    return np.stack(labels)


def _thing_numbers(
    event: WorldEvent, things: list[Thing], seconds: float, canvas: Canvas, look: Look
) -> NDArray[np.uint8]:
    """Which thing each pixel of a small frame shows, numbered from 1."""
    image = Image.new("L", (canvas.pixels.shape[1], canvas.pixels.shape[0]))
    draw = ImageDraw.Draw(image)
    for thing in event.things:
        number = next(n for n, other in enumerate(things, 1) if other is thing)
        x, y, radius = canvas.spot(thing, seconds, look.pace)
        if thing.digit is not None:
            inked = _inked(canvas, thing, seconds, look)
            image.paste(number, (0, 0, image.width, image.height), Image.fromarray(inked))
        else:
            draw.polygon(
                [tuple(corner) for corner in placed(thing, look, (x, y, radius)).tolist()], number
            )
            if thing.shape == "ring":
                inner = radius * hole(look)
                draw.ellipse((x - inner, y - inner, x + inner, y + inner), 0)
    return np.asarray(image)


def _inked(canvas: Canvas, thing: Thing, seconds: float, look: Look) -> NDArray[np.uint8]:
    """Where a digit is, uint8 [height, width], 255 for yes: every painter writes its own."""
    alone = replace(canvas, pixels=np.zeros((*canvas.pixels.shape[:2], 3), dtype=np.float32))
    BY_NAME[look.painter](alone, thing, seconds, look)
    return np.where(alone.pixels.max(-1) > INK, 255, 0).astype(np.uint8)


def _token_label(
    covered: NDArray[np.int64], things: list[Thing], centre: bool, steady: bool
) -> NDArray[np.int8]:
    """One token's row; covered: pixels of each thing in each frame, [2, things]."""
    total = covered.sum(axis=0)
    best = int(total.argmax()) if total.size else 0
    if total.size == 0 or total[best] < SEEN_PIXELS:
        unsure = -1 if total.size and total[best] > HINT_PIXELS else 0
        return np.array([unsure, unsure, unsure, unsure, int(centre), unsure], dtype=np.int8)
    if total.size > 1 and np.partition(total, -2)[-2] > total[best] // 2:
        return np.array([-1, -1, -1, -1, int(centre), -1], dtype=np.int8)
    thing = things[best]
    shape = 9 if thing.digit is not None else SHAPES.index(thing.shape) + 1
    motion = MOTION_NAMES.index(thing.motion) + 1 if steady else -1
    digit = 0 if thing.digit is None else thing.digit + 1
    frames = int(covered[0, best] > 8) + 2 * int(covered[1, best] > 8)
    return np.array(
        [shape, COLOUR_NAMES.index(thing.colour) + 1, motion, digit, int(centre), frames],
        dtype=np.int8,
    )
