"""The vision tower's work of one stream: what is new is computed, everything else is used again.

A keyframe (`keyframes/detector.py`) is the reference of what follows it. What has changed since it
was measured before the tower's turn, see `FrameGroup`; here it is only laid over the tower's
patches. Knows nothing of models beyond their tower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from config import ReuseConfig
from keyframes.frame_diff import FrameDiff, Grid, join_patches
from keyframes.frame_group import FrameGroup
from keyframes.novelty import Patches, change
from keyframes.vit_cacher import Encoded, VisionTower, VitCacher


class KeyframeNovelty:
    """Change of every cell of a stream's frames against the last keyframe."""

    def __init__(self) -> None:
        self._keyframe: Patches | None = None  # or the first frame, while there is none

    def keep(self, diff: FrameDiff) -> None:
        """A frame that has been measured turned out to be a keyframe."""
        self._keyframe = diff.patches

    def measure(self, diffs: Sequence[FrameDiff]) -> Tensor:
        """Maps [frames, rows, columns] in [0, 1] of the next frames, which have one size.

        A keyframe's own map is 0: the frame is what later ones are compared with.
        """
        maps: list[Tensor] = []
        stop = 0
        while stop < len(diffs):
            start = stop
            first = diffs[start]
            if self._is_reference(first):
                self._keyframe = first.patches
            stop = start + 1
            while stop < len(diffs) and not self._is_reference(diffs[stop]):
                stop += 1
            assert self._keyframe is not None
            patches = join_patches(diffs[start:stop])
            maps.append(change(patches, self._keyframe).reshape(-1, *patches.grid))
        return torch.cat(maps)

    def _is_reference(self, diff: FrameDiff) -> bool:
        """Whether later frames are compared with this one; another size begins anew."""
        assert diff.patches is not None, "frames that were not measured in cells"
        is_first = self._keyframe is None or self._keyframe.grid != diff.patches.grid
        return diff.keyframe is not None or is_first


class FeatureReuse:
    """Holds what one stream's tower work needs; its groups come in order."""

    def __init__(self, tower: VisionTower, config: ReuseConfig) -> None:
        self._merge_size = tower.merge_size
        self._cacher = VitCacher(tower, config)

    def encode(self, patches: Tensor, grid: Grid, groups: Sequence[FrameGroup]) -> Encoded:
        """The features of consecutive groups: their patches [g, T, values] as the tower reads them,
        of a grid (rows, columns).
        """
        maps: list[Tensor] = []
        for group in groups:
            assert group.novelty is not None, "nothing was measured of this group"
            maps.append(group.novelty)
        novelty = novelty_of_patches(torch.cat(maps), grid, self._merge_size)
        keyframes = [is_keyframe for group in groups for is_keyframe in group.keyframes]
        anew = [group.starts_anew for group in groups]
        return self._cacher.encode(patches, grid, novelty.to(patches.device), keyframes, anew)


def novelty_of_patches(maps: Tensor, grid: Grid, merge_size: int) -> Tensor:
    """Maps over cells [frames, rows, columns] as those of a tower's patches [frames, T]: the most
    of each patch's cells, patches of a token next to each other.
    """
    rows, columns = grid
    cells = maps.shape[1] // rows
    by_patch = maps.reshape(len(maps), rows, cells, columns, cells).amax((2, 4))
    size = merge_size
    by_token = by_patch.reshape(len(maps), rows // size, size, columns // size, size)
    return by_token.transpose(2, 3).flatten(1)
