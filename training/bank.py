"""A bank of rendered scenes, made once and used by every stage of the training.

Frames come out as the model will see them: painted at twice the size, half of the scenes sent through H.264, then
resized as the preprocessing does. Beside them stands what each token of the picture shows, for the seeing stage.
"""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.demo.world import COLOURS, MOTIONS, SHAPES, Scene, Thing, draw_thing, render
from training.scenes import FRAMES_PER_GROUP, GROUPS_PER_CHUNK, group_times, random_scene

SIDE = 64  # pixels of a frame as the demo model sees it
PAINT_SIDE = 128  # pixels of a frame as the world paints it
GRID = 4  # tokens along a side
CELL = SIDE // GRID
COLOUR_NAMES = tuple(COLOURS)
MOTION_NAMES = tuple(MOTIONS)
# What a token shows, as class numbers (0 is "nothing", -1 is "not asked"): one column each.
LABELS = {"shape": 10, "colour": 9, "motion": 6, "digit": 11, "centre": 2, "frames": 4}


@dataclass(frozen=True, eq=False)
class Bank:
    """frames: uint8 [groups, 2, 64, 64, 3]; labels: int8 [groups, 16, 6]; scenes with their first group's number."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.int8]
    scenes: list[Scene]
    first_group: list[int]


def build(folder: Path, chunks: int, seed: int, workers: int = 2, shards: int = 16) -> Bank:
    """The bank in `folder`, made where it is missing (a shard at a time, so it resumes)."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder / f"shard-{seed}-{k}.pkl", chunks // shards, seed * 1000 + k) for k in range(shards)]
    missing = [job for job in jobs if not job[0].exists()]
    if missing:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(_make_shard, *zip(*missing, strict=True)))
    parts = [pickle.loads(path.read_bytes()) for path, _, _ in jobs]
    scenes = [scene for part in parts for scene in part[2]]
    sizes = [len(group_times(scene)) for scene in scenes]
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()
    return Bank(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), scenes, first)


def _make_shard(path: Path, chunks: int, seed: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    frames, labels, scenes, made = [], [], [], 0
    while made < chunks:
        length = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
        scene = random_scene(rng, length)
        frames.append(scene_frames(scene, rng))
        labels.append(scene_labels(scene))
        scenes.append(scene)
        made += length
    partial = path.with_suffix(".part")
    partial.write_bytes(pickle.dumps((np.concatenate(frames), np.concatenate(labels), scenes)))
    partial.rename(path)


def scene_frames(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [groups, 2, 64, 64, 3]."""
    times = [t for pair in group_times(scene) for t in pair]
    painted = np.stack([render(scene, t, PAINT_SIDE) for t in times])
    if rng.random() < 0.5:
        painted = through_codec(painted, int(rng.integers(18, 33)))
    pixels = torch.from_numpy(painted).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(pixels, size=(SIDE, SIDE), mode="bicubic", antialias=True)
    rounded = small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return rounded.reshape(-1, FRAMES_PER_GROUP, SIDE, SIDE, 3)


def through_codec(frames: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    """The frames after H.264 at this quality: [n, H, W, 3] in, the same shape out."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=2, options={"crf": str(crf), "preset": "ultrafast", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as back:
        return np.stack([np.asarray(frame.to_ndarray(format="rgb24")) for frame in back.decode(video=0)])


def scene_labels(scene: Scene) -> NDArray[np.int8]:
    """int8 [groups, 16, 6]: what each token of each group shows, in the columns of `LABELS`."""
    return np.stack([_group_labels(scene, pair) for pair in group_times(scene)])


def _group_labels(scene: Scene, times: tuple[float, float]) -> NDArray[np.int8]:
    events = [scene.event_at(t) for t in times]
    things = list(dict.fromkeys(thing for event in events if event for thing in event.things))
    covered = np.zeros((len(times), len(things) + 1, GRID * GRID), dtype=np.int64)
    centres = np.zeros(GRID * GRID, dtype=np.int8)
    for f, (event, t) in enumerate(zip(events, times, strict=True)):
        if event is None:
            continue
        ids = Image.new("L", (SIDE, SIDE))
        draw = ImageDraw.Draw(ids)
        for thing in event.things:
            number = things.index(thing) + 1
            draw_thing(draw, thing, t - event.start_seconds, SIDE, number, number)
            if f == 0 or event is not events[0]:
                x, y = thing.centre(t - event.start_seconds)
                centres[min(GRID - 1, int(y * GRID)) * GRID + min(GRID - 1, int(x * GRID))] = 1
        cells = np.asarray(ids).reshape(GRID, CELL, GRID, CELL).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
        covered[f] = np.stack([(cells == n).sum(axis=1) for n in range(len(things) + 1)])
    steady = events[0] is events[1]
    return np.stack([_token_label(covered[:, 1:, c], things, bool(centres[c]), steady) for c in range(GRID * GRID)])


def _token_label(covered: NDArray[np.int64], things: list[Thing], centre: bool, steady: bool) -> NDArray[np.int8]:
    """One token's row; covered: pixels of each thing in each frame, [2, things]."""
    total = covered.sum(axis=0)
    best = int(total.argmax()) if total.size else 0
    if total.size == 0 or total[best] < 24:
        unsure = -1 if total.size and total[best] > 4 else 0
        return np.array([unsure, unsure, unsure, unsure, int(centre), unsure], dtype=np.int8)
    if total.size > 1 and np.partition(total, -2)[-2] > total[best] // 2:
        return np.array([-1, -1, -1, -1, int(centre), -1], dtype=np.int8)
    thing = things[best]
    shape = 9 if thing.digit is not None else SHAPES.index(thing.shape) + 1
    motion = MOTION_NAMES.index(thing.motion) + 1 if steady else -1
    digit = 0 if thing.digit is None else thing.digit + 1
    frames = int(covered[0, best] > 8) + 2 * int(covered[1, best] > 8)
    return np.array([shape, COLOUR_NAMES.index(thing.colour) + 1, motion, digit, int(centre), frames], dtype=np.int8)


def num_chunks(scene: Scene) -> int:
    return len(group_times(scene)) // GROUPS_PER_CHUNK
