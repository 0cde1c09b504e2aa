"""Which frames the vision tower's work is reused from: a picture that has settled, once the last
such one is outlived.

A group of frames in which much has changed becomes what later groups are compared with, and is
computed whole, if nothing much moves in it: something large that passes by leaves the old reference
in place, which fits again when it has gone. Knows nothing of towers; scenes and their cuts are the
business of `keyframes/detector.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from config import ReuseConfig
from keyframes.novelty import Patches, change
from keyframes.vit_cacher import num_tokens_in_share, token_novelty

# A static group becomes the reference once more than this share of its tokens differ from the old
# one.
REFRESH_SHARE = 0.25
# Up to this share of a reference may be in motion; those tokens are recomputed in every later
# frame.
MOVING_SHARE = 0.125


class References:
    """Follows one stream, a few groups at a time."""

    def __init__(self, frames_per_group: int, merge_size: int, config: ReuseConfig) -> None:
        self._size, self._merge_size, self._config = frames_per_group, merge_size, config
        self._reference: Patches | None = None
        self._own: Tensor | None = None  # change per patch inside the reference's group
        self._latest: Patches | None = None

    def follow(self, patches: Patches) -> tuple[Tensor, list[bool]]:
        """Novelty per patch against the last keyframe, float32 [n, patches], and which frames are
        keyframes.

        patches: of n frames, whole groups of consecutive ones; a token's next to each other.
        """
        marks = [False] * len(patches)
        if self._latest is None or self._latest.grid != patches.grid:
            self._reference = self._own = None
            self._latest = patches[:1]
        moved = self._moved(patches, self._latest)
        settled = ~self._share_changed(moved[:, -1:], MOVING_SHARE)
        new = (
            torch.ones_like(patches.mean)
            if self._reference is None
            else change(patches, self._reference)
        )
        number = -1
        while (number := self._next(new, settled, number + 1)) < len(settled):
            start = number * self._size
            marks[start] = True
            self._reference, self._own = patches[start : start + 1], moved[number, : self._size - 1]
            new[start:] = change(patches[start:], self._reference)
        self._latest = patches[-1:]
        return new, marks

    def _moved(self, patches: Patches, before: Patches) -> Tensor:
        """Change from picture to picture inside every group, [g, frames - 1, patches]; of groups of
        one frame against the picture before."""
        if self._size == 1:
            return change(patches, before.followed_by(patches[:-1]))[:, None]
        later = [k for k in range(len(patches)) if k % self._size]
        pairs = change(patches[later], patches[[k - 1 for k in later]])
        return pairs.reshape(-1, self._size - 1, pairs.shape[1])

    def _next(self, new: Tensor, settled: Tensor, first: int) -> int:
        """The next settled group, from `first` on, in which much has changed; how many there are if
        none has.
        """
        if first == len(settled):
            return first
        groups = new.reshape(len(settled), self._size, -1)[first:]
        if self._own is not None:  # what moved in the reference is changed
            groups = torch.cat([groups, self._own.expand(len(groups), -1, -1)], dim=1)
        outlived = self._share_changed(groups, REFRESH_SHARE)
        found = (outlived if self._reference is None else outlived & settled[first:]).nonzero()
        return first + int(found[0]) if len(found) else len(settled)

    def _share_changed(self, change: Tensor, share: float) -> Tensor:
        """Whether more than a share of a group's tokens have changed in any of its frames: bool [g]
        of [g, frames, patches]."""
        tokens = (
            token_novelty(change.flatten(0, 1), self._merge_size)
            .reshape(*change.shape[:2], -1)
            .amax(1)
        )
        return torch.sum(tokens > self._config.still_below, 1) > num_tokens_in_share(
            tokens.shape[1], share
        )
