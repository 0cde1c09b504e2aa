"""The vision tower's work of one stream, with what is new measured and everything else used again.

Ties together `novelty`, `references` and `vit_cacher`. Knows nothing of models beyond their tower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from config import ReuseConfig
from keyframes.novelty import Patches, average_patches, stats_of_samples
from keyframes.references import References
from keyframes.vit_cacher import Encoded, VisionTower, VitCacher

COLOURS = 3


class FeatureReuse:
    """Holds what one stream needs; its groups come in order."""

    def __init__(
        self,
        tower: VisionTower,
        config: ReuseConfig,
        mean: Sequence[float] = (0.5,) * 3,
        std: Sequence[float] = (0.5,) * 3,
    ) -> None:
        """mean, std: how the tower's patches are normalised, per colour, for values in [0, 1]."""
        self._frames_per_group, self._mean, self._std = tower.frames_per_group, mean, std
        self._cacher = VitCacher(tower, config)
        self._references = References(tower.frames_per_group, tower.merge_size, config)

    def encode(self, patches: Tensor, grid: tuple[int, int]) -> Encoded:
        """The features of consecutive groups: patches [g, T, values] as the tower reads them, of a
        grid (rows, columns). What is new is told from these patches themselves."""
        return self._cacher.encode(
            patches, grid, *self._references.follow(self.measured(patches, grid))
        )

    def measured(self, patches: Tensor, grid: tuple[int, int]) -> Patches:
        """Of every frame of the groups."""
        groups, count, values = patches.shape
        side = math.isqrt(values // (COLOURS * self._frames_per_group))
        cells = patches.reshape(groups, count, COLOURS, self._frames_per_group, side, side)
        samples = average_patches(cells).movedim(3, 1).flatten(0, 1)
        scale, shift = (
            255 * torch.tensor(x, device=patches.device)[:, None] for x in (self._std, self._mean)
        )
        return stats_of_samples(torch.addcmul(shift, samples, scale), grid)
