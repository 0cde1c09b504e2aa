"""A bank of painted scenes, made once by several processes and used by both stages of the training.

Groups are kept as the patches that the tower reads (uint8, in the merge order of the stock
processor), padded to those of the largest grid. Beside them stands what each token shows.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.demo.architecture import MERGE, PATCH
from models.demo.world import Scene
from training.looks import ASPECTS, Look, scene_look
from training.pictures import (
    LABELS,
    resized,
    scene_labels,
    scene_pictures,
    through_codec,
    through_jpeg,
)
from training.scenes import group_times, random_scene, varied_event

log = logging.getLogger("longlook.train")
GRIDS = tuple(ASPECTS)  # rows and columns of tokens, by number
MOST_TOKENS = max(rows * columns for rows, columns in GRIDS)
PATCHES_PER_TOKEN = MERGE * MERGE
PATCH_VALUES = 3 * 2 * PATCH * PATCH
CODECS = ("libx264", "libx264", "libvpx-vp9", "mjpeg")
HAS_CODECS = find_spec("av") is not None
EMPTY = 0.05  # share of scenes that show nothing, beside those that are drawn so
FREE = 0.6  # share of scenes with things of any size


@dataclass(frozen=True, eq=False)
class Bank:
    """patches: uint8 [groups, 64, 384]. labels: int8 [groups, 16, 6], -1 beyond a group's tokens.
    grids: number of each group's grid. scenes with their first group's number."""

    patches: NDArray[np.uint8]
    labels: NDArray[np.int8]
    grids: NDArray[np.int64]
    scenes: list[Scene]
    first_group: list[int]

    @classmethod
    def of(cls, parts: Sequence[Shard]) -> Bank:
        scenes = [scene for part in parts for scene in part.scenes]
        sizes = [len(group_times(scene)) for scene in scenes]
        return cls(
            np.concatenate([part.patches for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.grids for part in parts]),
            scenes,
            [0, *np.cumsum(sizes)[:-1].tolist()],
        )


@dataclass(frozen=True, eq=False)
class Shard:
    """A part of a bank."""

    patches: NDArray[np.uint8]
    labels: NDArray[np.int8]
    grids: NDArray[np.int64]
    scenes: list[Scene]


def build(folder: Path, chunks: int, seed: int, workers: int = 2, shards: int = 16) -> Bank:
    """The bank in `folder`, made where it is missing (a shard at a time, so it resumes)."""
    found = dict(Painting(folder, chunks, seed, workers, shards))
    return Bank.of([found[number] for number in sorted(found)])


class Painting:
    """Begins to paint at once and gives the shards with their numbers as they get ready. The
    processes are forked, so make it before any GPU work."""

    def __init__(self, folder: Path, chunks: int, seed: int, workers: int, shards: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"))
        self._jobs = {
            self._pool.submit(
                _make_shard, folder / f"shard-{seed}-{k}.pkl", chunks // shards, seed * 1000 + k
            ): k
            for k in range(shards)
        }

    def __iter__(self) -> Iterator[tuple[int, Shard]]:
        for job in as_completed(self._jobs):
            if job.cancelled():
                continue
            if job.exception() is not None:
                log.error("shard %d could not be painted: %r", self._jobs[job], job.exception())
            else:
                yield self._jobs[job], pickle.loads(job.result().read_bytes())

    def stop(self) -> None:
        """Begins no other shard."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _make_shard(path: Path, chunks: int, seed: int) -> Path:
    if path.exists():
        return path
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    parts, made = [], 0
    while made < chunks:
        length = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
        scene = random_scene(rng, length, varied_event if rng.random() < FREE else None)
        scene = replace(scene, events=()) if rng.random() < EMPTY else scene
        parts.append(_painted_scene(scene, scene_look(scene)))
        made += length
    shard = Shard(
        np.concatenate([part.patches for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.grids for part in parts]),
        [scene for part in parts for scene in part.scenes],
    )
    partial = path.with_suffix(".part")
    partial.write_bytes(pickle.dumps(shard, protocol=5))
    return partial.rename(path)


def _painted_scene(scene: Scene, look: Look) -> Shard:
    frames = scene_frames(scene, look)
    tokens = look.grid[0] * look.grid[1]
    patches = np.zeros((len(frames), MOST_TOKENS * PATCHES_PER_TOKEN, PATCH_VALUES), dtype=np.uint8)
    patches[:, : tokens * PATCHES_PER_TOKEN] = patchify(frames)
    labels = np.full((len(frames), MOST_TOKENS, len(LABELS)), -1, dtype=np.int8)
    labels[:, :tokens] = scene_labels(scene, look)
    return Shard(patches, labels, np.full(len(frames), GRIDS.index(look.grid)), [scene])


def scene_frames(scene: Scene, look: Look) -> NDArray[np.uint8]:
    """As the model sees them: uint8 [groups, 2, H, W, 3]."""
    return resized(damaged(scene_pictures(scene, look), look), look.grid)


def damaged(pictures: NDArray[np.uint8], look: Look) -> NDArray[np.uint8]:
    """Through the look's codec; where there is none on this machine, through JPEG, which loses in
    the same ways.
    """
    if not look.video:
        return pictures
    if not HAS_CODECS:
        return np.stack([through_jpeg(picture, 100 - 2 * look.video) for picture in pictures])
    return through_codec(pictures, look.video, CODECS[look.seed % len(CODECS)])


def patchify(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [groups, 2, H, W, 3] -> [groups, patches, 384], in the merge order of the stock
    processor.
    """
    groups, times, height, width, channels = frames.shape
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    cells = frames.transpose(0, 4, 1, 2, 3).reshape(
        groups, channels, times, rows, MERGE, PATCH, columns, MERGE, PATCH
    )
    ordered = cells.transpose(0, 3, 6, 4, 7, 1, 2, 5, 8)
    return ordered.reshape(groups, rows * columns * MERGE * MERGE, channels * times * PATCH * PATCH)
