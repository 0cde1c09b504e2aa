"""How much of each patch is new against what was last kept, in [0, 1]; and what of a picture its
neighbour explains.

Works on small copies of the pictures, a few samples per patch, in batches on the device. Knows
nothing of keyframes, tokens or models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, interpolate, pad

SAMPLES = 4  # along a patch's side
# of 255, as a sample's change: what is taken for noise in any picture, and at most
NOISE_LEVELS = (4.0, 11.0)
PLAIN_LEVELS = 16.0  # a change of so much makes a patch without texture wholly new
SHIFT_LEVELS = 32.0  # global brightness may shift by so much ...
GAIN_RANGE = (0.5, 2.0)  # ... and be scaled so far without being news
REACH = 2  # samples that a thing may move between neighbouring pictures
# read of a picture; all of them would cost time and average little more noise away
ROWS_PER_SAMPLE = 2


def downsample(
    images: Sequence[NDArray[np.uint8]], grid: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Pictures uint8 [H, W, 3] of any sizes -> int16 [n, 3, rows * SAMPLES, columns * SAMPLES], on
    the device.

    grid: (rows, columns) of patches; a vision tower's own, or a coarser one.
    """
    size = (grid[0] * SAMPLES, grid[1] * SAMPLES)
    runs = [list(run) for _, run in groupby(images, lambda image: image.shape)]
    return torch.cat([_downsample_one_size(run, size) for run in runs]).to(device).to(torch.int16)


def _downsample_one_size(images: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
    """Pictures of one size, of which enough rows are read."""
    every = max(1, images[0].shape[0] // (ROWS_PER_SAMPLE * size[0]))
    rows = torch.from_numpy(np.stack([image[::every] for image in images]))
    return interpolate(rows.permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)


@dataclass(frozen=True, eq=False)
class Patches:
    """Small pictures as novelty reads them, measured once for all comparisons.

    samples: of every patch, all colours together, float32 [n, patches, s].
    moments: their mean, their mean square, and the mean over the colours of each one's squared mean
    [n, 3, patches].
    grid: (rows, columns) of patches; their order is up to who measures.
    """

    samples: Tensor
    moments: Tensor
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, which: slice | Sequence[int]) -> Patches:
        return Patches(self.samples[which], self.moments[which], self.grid)

    def followed_by(self, other: Patches) -> Patches:
        """These pictures and others of the same grid."""
        samples, moments = (
            torch.cat([self.samples, other.samples]),
            torch.cat([self.moments, other.moments]),
        )
        return Patches(samples, moments, self.grid)

    @property
    def mean(self) -> Tensor:
        return self.moments[:, 0]

    @property
    def square(self) -> Tensor:
        return self.moments[:, 1]

    @property
    def variance(self) -> Tensor:
        """Within each patch, mean over the colours: [n, patches]."""
        return (self.moments[:, 1] - self.moments[:, 2]).clamp(min=0)


def patch_stats(pictures: Tensor) -> Patches:
    """Of small pictures [n, 3, h, w], patches row by row."""
    n, colours, height, width = pictures.shape
    grid = (height // SAMPLES, width // SAMPLES)
    cells = pictures.reshape(n, colours, grid[0], SAMPLES, grid[1], SAMPLES)
    samples = (
        cells.permute(0, 2, 4, 1, 3, 5).float().reshape(n, grid[0] * grid[1], colours, SAMPLES**2)
    )
    return stats_of_samples(samples, grid)


def average_patches(pixels: Tensor) -> Tensor:
    """Patches as a vision tower gets them, [..., side, side], as SAMPLES * SAMPLES averages each:
    float32 [..., s].

    One product: pooling proper costs a small tower more than its attention.
    """
    return pixels.flatten(-2).float() @ _averaging_weights(pixels.shape[-1], pixels.device)


@functools.cache
def _averaging_weights(side: int, device: torch.device) -> Tensor:
    """What makes SAMPLES * SAMPLES averages of side * side pixels: [side * side, s]."""
    weights = adaptive_avg_pool1d(torch.eye(side, device=device), SAMPLES)
    return torch.kron(weights, weights)


def stats_of_samples(samples: Tensor, grid: tuple[int, int]) -> Patches:
    """Of what is already as novelty reads it, patches in any order: levels [n, patches, 3, s]."""
    by_colour, flat = samples.mean(3), samples.flatten(2)
    moments = torch.stack(
        [by_colour.mean(2), flat.square().mean(2), by_colour.square().mean(2)], dim=1
    )
    return Patches(flat, moments, grid)


def novelty(pictures: Tensor, reference: Tensor) -> Tensor:
    """`change` of small pictures [n, 3, h, w] against one [3, h, w], or one for each [n, 3, h, w],
    in its place: [n, rows, columns]."""
    new = patch_stats(pictures)
    return change(new, patch_stats(reference.reshape(-1, *pictures.shape[1:]))).reshape(
        -1, *new.grid
    )


def change(new: Patches, old: Patches) -> Tensor:
    """Change per patch, float32 [n, patches] in [0, 1]; `old` is one picture, or one for each.

    The mean squared difference, global brightness and noise taken off, over the variance of both
    patches: 0 where they are the same, about 1 where they have nothing in common.
    """
    error = _error(new, old).clamp(min=0)
    allowed = new.variance + old.variance + PLAIN_LEVELS**2
    return ((error - _noise(error)) / allowed).clamp(0, 1)


def _error(new: Patches, old: Patches) -> Tensor:
    """Mean squared difference of every patch, `old` in the light of `new`: from products, without a
    picture between.
    """
    gain, shift = _fit_gain_bias(new.mean, old.mean)
    product = (new.samples * old.samples).mean(2)
    relit = gain * (gain * old.square - 2 * product + 2 * shift * old.mean)
    return new.square + relit + shift * (shift - 2 * new.mean)


def _fit_gain_bias(after: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """One gain and one shift [n, 1] for the whole picture, within bounds and where that helps;
    patches' means [n, p].

    Tukey's resistant line: medians over the darkest and the brightest third of them, so that what
    has really changed does not pull at it.
    """
    before, order = before.sort(1)
    after = after.gather(1, order.expand_as(after))
    rises = after - before
    third = -(-before.shape[1] // 3)
    dark, bright = slice(0, third), slice(-third, None)
    middle = (third - 1) // 2  # of a third in order is its median
    apart = before[:, bright][:, middle, None] - before[:, middle, None]
    rise = _median(rises[:, bright]) - _median(rises[:, dark])
    gain = torch.where(apart > PLAIN_LEVELS, 1 + rise / apart.clamp(min=1), 1).clamp(*GAIN_RANGE)
    relit = after - gain * before
    shift = _median(relit).clamp(-SHIFT_LEVELS, SHIFT_LEVELS)
    helps = _median((relit - shift).abs()) < _median(rises.abs())
    return torch.where(helps, gain, 1), torch.where(helps, shift, 0)


def _median(values: Tensor) -> Tensor:
    """Of every row, [n, 1]."""
    return values.median(1, keepdim=True).values


def _noise(error: Tensor) -> Tensor:
    """What of the errors [n, patches] is noise, [n, 1]: twice what the calmest quarter shows,
    within bounds.
    """
    least, most = (level**2 for level in NOISE_LEVELS)
    calm = error.kthvalue(1 + error.shape[1] // 4, 1, keepdim=True).values
    return (2 * calm).clamp(least, most)


class ReferenceFrame:
    """The content last kept of every patch, which new pictures are compared with; so slow drift
    adds up.
    """

    def __init__(self) -> None:
        self._reference: Tensor | None = None

    def novelty(self, pictures: Tensor) -> Tensor:
        """[n, rows, columns] of small pictures; all 1 where nothing has been kept yet."""
        if self._reference is None:
            n, _, height, width = pictures.shape
            return torch.ones(n, height // SAMPLES, width // SAMPLES, device=pictures.device)
        return novelty(pictures, self._reference)

    def keep(self, picture: Tensor) -> None:
        """Keep one small picture [3, h, w]."""
        self._reference = picture


def motion_residual(run: Tensor) -> Tensor:
    """What neighbours in a run of small pictures [n + 1, 3, h, w] don't find in each other: int16
    [n, h, w], in levels.

    A sample is explained where it lies between the least and the greatest of the other picture
    within REACH samples, so pans, zooms, shake and things that move explain themselves, and a cut
    does not. The worst colour counts, and the worse of looking back and looking ahead.
    """
    low, high = _bounds(run)
    new, old = run[1:], run[:-1]
    looking_back = torch.maximum(new - high[:-1], low[:-1] - new)
    looking_ahead = torch.maximum(old - high[1:], low[1:] - old)
    return torch.maximum(looking_back, looking_ahead).amax(1).clamp(min=0)


def _bounds(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest around every sample: along the rows, then along the columns."""
    low = high = pictures
    for axis, padding in ((-1, (REACH, REACH, 0, 0)), (-2, (0, 0, REACH, REACH))):
        low = _slide(pad(low, padding, value=255), axis, torch.minimum)
        high = _slide(pad(high, padding, value=0), axis, torch.maximum)
    return low, high


def _slide(padded: Tensor, axis: int, better: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The best of every 2 * REACH + 1 samples in a row."""
    length = padded.shape[axis] - 2 * REACH
    return functools.reduce(better, (padded.narrow(axis, k, length) for k in range(2 * REACH + 1)))


def otsu(maps: Tensor, least: float, most: float, bins: int = 32) -> Tensor:
    """Otsu's threshold of every map, float32 [n], within [least, most]; maps: [n, ...] in [0, 1].

    The border between the unchanged and the changed patches of a picture, as it lies in that
    picture.
    """
    values = (maps.flatten(1) * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(values), bins, device=maps.device).scatter_add_(
        1, values, torch.ones_like(maps.flatten(1))
    )
    below = counts.cumsum(1)
    mass = (counts * torch.arange(bins, device=maps.device)).cumsum(1)
    above = below[:, -1:] - below
    means = mass / below.clamp(min=1) - (mass[:, -1:] - mass) / above.clamp(min=1)
    best = (below * above * means.square()).argmax(1)
    return ((best + 1) / bins).clamp(least, most)
