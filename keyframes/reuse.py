"""The vision tower's work of one stream, with what is new measured and everything else used again.

Ties together `novelty`, `references` and `vit_cacher`. Knows nothing of models beyond their tower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from config import ReuseConfig
from keyframes.novelty import small
from keyframes.references import References
from keyframes.vit_cacher import Encoded, VisionTower, VitCacher


class FeatureReuse:
    """Holds what one stream needs; its groups come in order."""

    def __init__(self, tower: VisionTower, config: ReuseConfig) -> None:
        self._cacher = VitCacher(tower, config)
        self._references = References(tower.frames_per_group, tower.merge_size, config)

    def encode(self, patches: Tensor, images: Sequence[NDArray[np.uint8]], grid: tuple[int, int]) -> Encoded:
        """The features of consecutive groups.

        patches: [g, T, values], as the tower reads them. images: their frames, uint8 [H, W, 3]; the last group may lack
        frames, where the last one was repeated. grid: (rows, columns) of the T patches.
        """
        return self._cacher.encode(patches, *self._references.follow(small(images, grid, patches.device)))
