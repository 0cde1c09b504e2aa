"""How much of each patch is new against what was last kept, in [0, 1]; and what of a picture its neighbour explains.

Works on small copies of the pictures, a few samples per patch, in batches on the device. Knows nothing of keyframes,
tokens or models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

SAMPLES = 4  # along a patch's side
NOISE_LEVELS = (4.0, 11.0)  # of 255, as a sample's change: what is taken for noise in any picture, and at most
PLAIN_LEVELS = 16.0  # a change of so much makes a patch without texture wholly new
SHIFT_LEVELS = 32.0  # global brightness may shift by so much ...
GAIN_RANGE = (0.5, 2.0)  # ... and be scaled so far without being news
REACH = 2  # samples that a thing may move between neighbouring pictures
ROWS_PER_SAMPLE = 2  # read of a picture; all of them would cost time and average little more noise away


def small(images: Sequence[NDArray[np.uint8]], grid: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Pictures uint8 [H, W, 3] of any sizes -> int16 [n, 3, rows * SAMPLES, columns * SAMPLES], on the device.

    grid: (rows, columns) of patches; a vision tower's own, or a coarser one.
    """
    size = (grid[0] * SAMPLES, grid[1] * SAMPLES)
    return torch.cat([_shrunk(image, size) for image in images]).to(device).to(torch.int16)


def _shrunk(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    read = image[:: max(1, image.shape[0] // (ROWS_PER_SAMPLE * size[0]))]
    rows = torch.from_numpy(np.array(read, order="C"))  # a picture may be read-only or run backwards in memory
    return interpolate(rows.permute(2, 0, 1)[None], size=size, mode="bilinear", antialias=True)


def novelty(pictures: Tensor, reference: Tensor) -> Tensor:
    """Change per patch, float32 [n, rows, columns] in [0, 1].

    pictures: small ones [n, 3, h, w]; reference: [3, h, w], or one for each [n, 3, h, w].
    The mean squared difference, global brightness and noise taken off, over the variance of both patches: 0 where they
    are the same, about 1 where they have nothing in common.
    """
    new, old = pictures.float(), reference.float().expand(pictures.shape)
    error = _per_patch((new - _relit(old, new)).square())
    allowed = _variance(new) + _variance(old) + PLAIN_LEVELS**2
    return ((error - _noise(error)) / allowed).clamp(0, 1)


def _relit(old: Tensor, new: Tensor) -> Tensor:
    """`old` in the light of `new`: one gain and one shift for the whole picture, within bounds and where that helps.

    Tukey's resistant line through the patches' means: medians over the darkest and the brightest third of them,
    so that what has really changed does not pull at it.
    """
    before, after = _per_patch(old).flatten(1), _per_patch(new).flatten(1)
    before, order = before.sort(1)
    after = after.gather(1, order)
    third = -(-before.shape[1] // 3)
    dark, bright = slice(0, third), slice(-third, None)
    apart = _median(before[:, bright]) - _median(before[:, dark])
    rise = _median((after - before)[:, bright]) - _median((after - before)[:, dark])
    gain = torch.where(apart > PLAIN_LEVELS, 1 + rise / apart.clamp(min=1), 1).clamp(*GAIN_RANGE)
    shift = _median(after - gain * before).clamp(-SHIFT_LEVELS, SHIFT_LEVELS)
    helps = _median((after - gain * before - shift).abs()) < _median((after - before).abs())
    gain, shift = torch.where(helps, gain, 1)[:, :, None, None], torch.where(helps, shift, 0)[:, :, None, None]
    return gain * old + shift


def _median(values: Tensor) -> Tensor:
    """Of every row, [n, 1]."""
    return values.median(1, keepdim=True).values


def _noise(error: Tensor) -> Tensor:
    """What of the patches' errors [n, rows, columns] is noise: twice what the calmest quarter shows, within bounds."""
    least, most = (level**2 for level in NOISE_LEVELS)
    calm = error.flatten(1).kthvalue(1 + error[0].numel() // 4, 1).values
    return (2 * calm).clamp(least, most)[:, None, None]


def _per_patch(samples: Tensor) -> Tensor:
    return avg_pool2d(samples.mean(1, keepdim=True), SAMPLES)[:, 0]


def _variance(picture: Tensor) -> Tensor:
    """Within each patch, mean over the colours."""
    return (_per_patch(picture.square()) - avg_pool2d(picture, SAMPLES).square().mean(1)).clamp(min=0)


class Kept:
    """The content last kept of every patch, which new pictures are compared with; so slow drift adds up."""

    def __init__(self) -> None:
        self._reference: Tensor | None = None

    def novelty(self, pictures: Tensor) -> Tensor:
        """[n, rows, columns] of small pictures; all 1 where nothing has been kept yet."""
        if self._reference is None:
            n, _, height, width = pictures.shape
            return torch.ones(n, height // SAMPLES, width // SAMPLES, device=pictures.device)
        return novelty(pictures, self._reference)

    def keep(self, picture: Tensor, patches: Tensor | None = None) -> None:
        """Keep one small picture [3, h, w]; or only the patches that are true in bool [rows, columns]."""
        if patches is None or self._reference is None:
            self._reference = picture.clone()
            return
        where = patches.repeat_interleave(SAMPLES, 0).repeat_interleave(SAMPLES, 1)
        self._reference = torch.where(where, picture, self._reference)


def unexplained(run: Tensor) -> Tensor:
    """What neighbours in a run of small pictures [n + 1, 3, h, w] don't find in each other: int16 [n, h, w], in levels.

    A sample is explained where it lies between the least and the greatest of the other picture within REACH samples,
    so pans, zooms, shake and things that move explain themselves, and a cut does not. The worst colour counts, and the
    worse of looking back and looking ahead.
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

    The border between the unchanged and the changed patches of a picture, as it lies in that picture.
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
