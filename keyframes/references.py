"""Which frames the vision tower's work is reused from: a picture that has settled, once the last such one is outlived.

A group of frames in which much has changed becomes what later groups are compared with, and is computed whole, if
nothing much moves in it: something large that passes by leaves the old reference in place, which fits again when it
has gone. Knows nothing of towers; scenes and their cuts are the business of `keyframes/detector.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from config import ReuseConfig
from keyframes.novelty import Patches, change
from keyframes.vit_cacher import share_of, token_novelty

OUTLIVED = 0.25  # of a group's tokens: with more that changed, a settled picture is worth a reference of its own
MOVING = 0.125  # of a group's tokens: so many may move in a reference, and are refreshed for ever after


class References:
    """Follows one stream, a few groups at a time."""

    def __init__(self, frames_per_group: int, merge_size: int, config: ReuseConfig) -> None:
        self._size, self._merge_size, self._config = frames_per_group, merge_size, config
        self._reference: Patches | None = None
        self._own: Tensor | None = None  # change per patch inside the reference's group
        self._latest: Patches | None = None

    def follow(self, patches: Patches) -> tuple[Tensor, list[bool]]:
        """Novelty per patch against the last keyframe, float32 [n, patches], and which frames are keyframes.

        patches: of n frames, whole groups of consecutive ones; a token's next to each other.
        """
        marks = [False] * len(patches)
        if self._latest is None or self._latest.grid != patches.grid:
            self._reference = self._own = None
            self._latest = patches[:1]
        moved = change(patches, self._latest.followed_by(patches[:-1]))
        new = torch.ones_like(moved) if self._reference is None else change(patches, self._reference)
        for start in range(0, len(patches), self._size):
            stop = start + self._size
            if self._outlived(new[start:stop]) and (self._reference is None or self._settled(moved[stop - 1])):
                marks[start] = True
                self._reference, self._own = patches[start : start + 1], moved[start + 1 : stop]
                new[start:] = change(patches[start:], self._reference)
        self._latest = patches[-1:]
        return new, marks

    def _outlived(self, change: Tensor) -> bool:
        """Whether much has changed in a group of frames; what moved in the reference is changed."""
        own = change[:0] if self._own is None else self._own
        return self._changed_more(torch.cat([change, own]), OUTLIVED)

    def _settled(self, moved: Tensor) -> bool:
        return not self._changed_more(moved[None], MOVING)

    def _changed_more(self, change: Tensor, share: float) -> bool:
        """Whether more than a share of the tokens have changed in any of the frames [n, patches]."""
        tokens = token_novelty(change, self._merge_size).amax(0)
        return int((tokens > self._config.still_below).sum()) > share_of(len(tokens), share)
