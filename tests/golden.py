"""Clips whose frame number is painted into the pixels, so that a test can tell which picture it was
given.

Encodes and reads the paint; knows nothing of the readers under test.
"""

from __future__ import annotations

import bisect
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

WIDTH, HEIGHT = 160, 96
COLUMNS, ROWS = 4, 4  # 16 cells, one bit each, the lowest at the top left
ZERO, ONE = (20, 40, 170), (250, 220, 50)  # blue and yellow: a swap of red and blue shows
MILLISECOND = Fraction(1, 1000)
TICK = Fraction(1, 90_000)
# keyframes and B-frames exactly where the recipe says
ORDERED = {"x264-params": "b-adapt=0:scenecut=0"}
OPEN_GOP = "open-gop=1:bframes=3:b-adapt=0:scenecut=0:keyint=12:min-keyint=12"

os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder is chatty


@dataclass(frozen=True)
class Recipe:
    """How a clip is coded. `options` go to the encoder, `container_options` to the muxer."""

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    container: str | None = None  # None: told by the file's suffix
    gop: int = 12
    b_frames: int = 0
    time_base: Fraction = MILLISECOND
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    draw: Callable[[int], NDArray[np.uint8]] = lambda index: paint(index)


@dataclass(frozen=True)
class Golden:
    """A clip and its truth: the i-th picture shown wears number `first + i` and comes up at
    `pts_seconds[i]`.
    """

    path: Path
    pts_seconds: tuple[float, ...]
    first: int = 0

    def number_at(self, seconds: float) -> int:
        """The number shown at a time."""
        return self.first + bisect.bisect_right(self.pts_seconds, seconds + 1e-6) - 1


def paint(index: int) -> NDArray[np.uint8]:
    """The picture of frame `index`: uint8 [96, 160, 3]; adjacent numbers differ in a whole cell at
    least.
    """
    cells = [ONE if index >> bit & 1 else ZERO for bit in range(COLUMNS * ROWS)]
    grid = np.array(cells, np.uint8).reshape(ROWS, COLUMNS, 3)
    return grid.repeat(HEIGHT // ROWS, axis=0).repeat(WIDTH // COLUMNS, axis=1)


def read_paint(image: NDArray[np.uint8]) -> int:
    """The frame number painted into an upright picture of any size, or -1 where a cell is neither
    blue nor yellow.
    """
    index = 0
    height, width = image.shape[0] // ROWS, image.shape[1] // COLUMNS
    for bit in range(COLUMNS * ROWS):
        row, column = divmod(bit, COLUMNS)
        cell = image[row * height : (row + 1) * height, column * width : (column + 1) * width]
        colour = cell[height // 4 : -height // 4, width // 4 : -width // 4].mean(axis=(0, 1))
        is_zero, is_one = (float(np.abs(colour - truth).max()) < 60 for truth in (ZERO, ONE))
        if not is_zero and not is_one:
            return -1
        index |= int(is_one) << bit
    return index


def steady(count: int, fps: Fraction | int, time_base: Fraction = MILLISECOND) -> list[int]:
    """Times of `count` pictures at a constant rate, in units of `time_base`."""
    return [round(index / Fraction(fps) / time_base) for index in range(count)]


def uneven(count: int, time_base: Fraction = MILLISECOND) -> list[int]:
    """Times of `count` pictures with gaps from 20 ms to 1.8 s."""
    gaps = [0.02, 0.04, 0.04, 0.1, 0.033, 0.3, 0.021, 1.8, 0.05, 0.5, 0.04]
    seconds = np.cumsum([0.0, *(gaps[index % len(gaps)] for index in range(count - 1))])
    return [round(Fraction(str(round(float(second), 6))) / time_base) for second in seconds]


def make(path: Path, pts: Sequence[int], recipe: Recipe = Recipe()) -> Golden:
    """Encode picture i at pts[i] (in units of the recipe's time base)."""
    with av.open(
        str(path), "w", format=recipe.container, options=recipe.container_options
    ) as container:
        stream = _add_stream(container, recipe)
        for packet in _encode(stream, pts, recipe):
            container.mux(packet)
    # run by root, the AV1 encoder makes us real-time
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return Golden(path, tuple(float((tick - pts[0]) * recipe.time_base) for tick in pts))


def _add_stream(container: OutputContainer, recipe: Recipe) -> VideoStream:
    stream = cast(VideoStream, container.add_stream(recipe.codec, rate=30, options=recipe.options))
    sample = recipe.draw(0)
    stream.height, stream.width = sample.shape[:2]
    stream.pix_fmt = recipe.pix_fmt
    stream.gop_size = recipe.gop
    if recipe.b_frames:
        stream.max_b_frames = recipe.b_frames
    stream.codec_context.time_base = recipe.time_base
    stream.time_base = recipe.time_base
    return stream


def _encode(
    stream: VideoStream, pts: Sequence[int], recipe: Recipe
) -> Iterator[Packet[VideoStream]]:
    for index, tick in enumerate(pts):
        frame = av.VideoFrame.from_ndarray(recipe.draw(index), format="rgb24")
        frame.pts = tick
        frame.time_base = recipe.time_base
        yield from stream.encode(frame)
    yield from stream.encode(None)


def make_with_edit_list(path: Path, count: int, fps: int, cut: int) -> Golden:
    """What a lossless cutter writes: data from the keyframe before picture `cut`, an edit list that
    hides the rest.
    """
    recipe = Recipe(gop=10, b_frames=2, time_base=Fraction(1, 512 * fps), options=ORDERED)
    pts = steady(count, fps, recipe.time_base)
    keyframe = pts[cut - cut % recipe.gop]
    with av.open(str(path), "w") as container:
        stream = _add_stream(container, recipe)
        kept = False
        for packet in _encode(stream, pts, recipe):
            kept = kept or packet.pts == keyframe
            if kept and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts - pts[cut], packet.dts - pts[cut]
                container.mux(packet)
    return Golden(path, tuple(index / fps for index in range(count - cut)), first=cut)


def make_turned(path: Path, clockwise_degrees: int) -> Golden:
    """A phone's clip: coded turned one way, with a display matrix that turns it back."""

    def draw(index: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(np.rot90(paint(index), clockwise_degrees // 90))

    clip = make(path, steady(75, 25), Recipe(draw=draw))
    set_rotation(path, clockwise_degrees)
    return clip


def set_rotation(path: Path, clockwise_degrees: int) -> None:
    """Write a display matrix into the track header of an MP4, as phones do: show it turned
    clockwise.
    """
    one = 1 << 16
    a, b, c, d = {
        0: (one, 0, 0, one),
        90: (0, one, -one, 0),
        180: (-one, 0, 0, -one),
        270: (0, -one, one, 0),
    }[clockwise_degrees]
    data = bytearray(path.read_bytes())
    matrix_at = data.index(b"tkhd") + 4 + 40
    assert data[matrix_at - 40] == 0, "a version 0 track header"
    data[matrix_at : matrix_at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def _shifted(pts: list[int], by: int) -> list[int]:
    return [tick + by for tick in pts]


# more of them spin where cores are few
_VP9 = {"deadline": "realtime", "cpu-used": "8", "threads": "1"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:scenecut=0:bframes=3"}

CLIPS: dict[str, tuple[str, list[int], Recipe]] = {
    "constant mp4": (
        "a.mp4",
        steady(90, 30, TICK),
        Recipe(b_frames=2, time_base=TICK, options=ORDERED),
    ),
    "variable mp4": ("b.mp4", uneven(60), Recipe(b_frames=2, options=ORDERED)),
    "open-gop mp4": ("c.mp4", steady(75, 25), Recipe(options={"x264-params": OPEN_GOP})),
    "constant mkv": ("d.mkv", steady(75, 25), Recipe(b_frames=2, options=ORDERED)),
    "variable mkv": ("e.mkv", uneven(60), Recipe(b_frames=2, options=ORDERED)),
    "variable vp9": ("f.webm", uneven(60), Recipe("libvpx-vp9", options=_VP9)),
    "ntsc vp8": ("g.webm", steady(75, Fraction(30_000, 1001)), Recipe("libvpx", options=_VP9)),
    "long-gop ts": (
        "h.ts",
        _shifted(steady(200, 25, TICK), 126_000),
        Recipe(gop=100, b_frames=2, time_base=TICK, options=ORDERED),
    ),
    "variable ts": ("i.ts", uneven(60, TICK), Recipe(gop=300, time_base=TICK)),
    "late mp4": ("j.mp4", _shifted(steady(75, 25), 8333), Recipe()),
    "late mkv": ("k.mkv", _shifted(steady(75, 25), 8333), Recipe()),
    "hevc 10 bit": ("l.mp4", steady(75, 25), Recipe("libx265", "yuv420p10le", options=_X265)),
    "av1": ("m.mp4", steady(75, 25), Recipe("libsvtav1", options={"preset": "10"})),
    "av1 mkv": ("n.mkv", uneven(60), Recipe("libsvtav1", options={"preset": "10"})),
    "mpeg4 avi": (
        "o.avi",
        steady(75, 25, Fraction(1, 25)),
        Recipe("mpeg4", time_base=Fraction(1, 25)),
    ),
    "mpeg4 avi with b-frames": (
        "p.avi",
        steady(75, 25, Fraction(1, 25)),
        Recipe("mpeg4", b_frames=2, time_base=Fraction(1, 25)),
    ),
    "fragmented mp4": (
        "q.mp4",
        uneven(60),
        Recipe(
            b_frames=2, options=ORDERED, container_options={"movflags": "frag_keyframe+empty_moov"}
        ),
    ),
    "4:4:4 mov": ("r.mov", steady(75, 25), Recipe(pix_fmt="yuv444p", b_frames=2)),
    "slides": ("s.mp4", [0, 1000, 4000, 4700, 9000], Recipe(gop=2)),
}
TURNS = {"turned 90": 90, "turned 180": 180, "turned 270": 270}
ALL_CLIPS = (*CLIPS, *TURNS, "edit list")


def make_named(folder: Path, name: str) -> Golden:
    """One of ALL_CLIPS, written into `folder`."""
    if name in TURNS:
        return make_turned(folder / f"{TURNS[name]}.mp4", TURNS[name])
    if name == "edit list":
        return make_with_edit_list(folder / "edit.mp4", 80, 25, 13)
    file_name, pts, recipe = CLIPS[name]
    return make(folder / file_name, pts, recipe)


class GoldenSet:
    """The named clips, each made once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Golden] = {}

    def __getitem__(self, name: str) -> Golden:
        if name not in self._made:
            self._made[name] = make_named(self._folder, name)
        return self._made[name]
