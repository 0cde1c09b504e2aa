"""What is measured of a frame, once: one downsample, from which cuts, keyframes, static groups and
changed patches are told.

The full picture is read once, into a few samples per patch. Everything after that works on these
samples. Runs in batches, on the CPU, on the thread that watches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from frames import Frame
from keyframes.novelty import SAMPLES, Patches, downsample, patch_stats

CUT_GRID = (9, 16)  # rows and columns of patches in which cuts and keyframes are looked for
CELLS = 16  # along a picture's shorter side, about, in which change is looked for

KeyframeKind = Literal["head", "cut", "change", "gap", "tail"]
Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class FrameDiff:
    """One frame and what is measured of it.

    patches: statistics of this one frame over a grid of cells, row by row; None where nobody asks
    which cells have changed. coarse: int16 [3, h, w] over CUT_GRID, of the same samples.
    keyframe: of which kind it is one; None for no keyframe, or while that is not known yet.
    """

    frame: Frame
    patches: Patches | None
    coarse: Tensor
    keyframe: KeyframeKind | None = None

    @property
    def pts_seconds(self) -> float:
        return self.frame.pts_seconds


def measure_frames(
    frames: Sequence[Frame], grid_of: Callable[[int, int], Grid] | None = None
) -> list[FrameDiff]:
    """Frames of any sizes, those of one size in one batch.

    grid_of: (height, width) of a frame to the grid in which change is told; without it only what
    cuts and keyframes need is measured.
    """
    found: list[FrameDiff] = []
    for size, run in groupby(frames, lambda frame: (frame.height, frame.width)):
        batch = list(run)
        grid = CUT_GRID if grid_of is None else grid_of(*size)
        pictures = downsample([frame.image for frame in batch], grid)
        patches = None if grid_of is None else patch_stats(pictures)
        coarse = coarsened(pictures)
        for number, frame in enumerate(batch):
            alone = None if patches is None else patches[number : number + 1]
            found.append(FrameDiff(frame, alone, coarse[number]))
    return found


def coarsened(pictures: Tensor) -> Tensor:
    """Small pictures int16 [n, 3, h, w] over CUT_GRID: [n, 3, 9 * SAMPLES, 16 * SAMPLES]."""
    size = (CUT_GRID[0] * SAMPLES, CUT_GRID[1] * SAMPLES)
    if pictures.shape[-2:] == size:
        return pictures
    return (
        interpolate(pictures.float(), size=size, mode="bilinear", antialias=True)
        .round_()
        .to(torch.int16)
    )


def analysis_grid(patch_grid: Grid) -> Grid:
    """The grid in which change is told, for a vision tower's own grid of patches.

    Each patch is a whole number of cells along its side, so that a map over the cells says exactly
    which patches have changed; about CELLS cells lie along the shorter side, or more where the
    tower has more patches.
    """
    cells = max(1, round(CELLS / min(patch_grid)))
    return patch_grid[0] * cells, patch_grid[1] * cells


def join_patches(diffs: Sequence[FrameDiff]) -> Patches:
    """The statistics of frames with one grid, in order."""
    alone = [diff.patches for diff in diffs if diff.patches is not None]
    assert len(alone) == len(diffs), "frames that were not measured in cells"
    samples = torch.cat([patches.samples for patches in alone])
    moments = torch.cat([patches.moments for patches in alone])
    return Patches(samples, moments, alone[0].grid)
