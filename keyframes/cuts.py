"""Hard cuts of a stream, told from motion, fades and flashes by looking a few pictures back and
ahead.

Small pictures (`keyframes/novelty.py`) come in batches, are judged `LAG_FRAMES` later, and are
forgotten soon after, so a stream need not end. Knows nothing of times or keyframes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from keyframes.novelty import NOISE_LEVELS, REACH, motion_residual, novelty

LAG_FRAMES = 4  # looked ahead, and as many looked back
# Longer than LAG_FRAMES take at the rate of a camera; at two frames a second, no other frame is so
# near, and each may be the first of a shot.
PEAK_SECONDS = 0.3  # a cut stands out among all frames so near
FLASH_SECONDS = 0.3  # a flash lasts no longer
CUT_SHARE = 0.5  # of a picture that its predecessor does not explain
CUT_RATIO = 3.6  # times what the pictures around leave unexplained ...
CALM_LEVELS = 0.5  # ... or this, in levels, where they stand still
ALIKE_RATIO = 0.5  # of what a cut leaves unexplained: pictures of two shots differ by more
JERK_SAMPLES = (4, 8)  # down and right: a camera may be pushed so far from one picture to the next
LIT_NOVELTY = 0.2  # mean over a picture: less is the same place in another light
# left unexplained over LAG_FRAMES while nothing moves fast and the light is steady
STILL_LEVELS = 1.0


@dataclass(frozen=True, eq=False)
class CutDecision:
    """A small picture [3, h, w] with its verdict. ahead: the one LAG_FRAMES later, or the last
    one.
    """

    picture: Tensor
    is_cut: bool
    ahead: Tensor

    @property
    def is_still(self) -> bool:
        """Whether what it shows stays: no fade, flash or fast motion is under way."""
        ((_, levels),) = frame_residuals(torch.stack([self.picture, self.ahead]))
        return levels <= STILL_LEVELS


@dataclass(frozen=True, eq=False)
class _Seen:
    """share and levels: of what its predecessor leaves unexplained of it."""

    picture: Tensor
    seconds: float
    share: float
    levels: float


class CutFinder:
    """One stream's cuts: `step` with pictures as they come, `flush` at the end; each is judged
    once, in order.
    """

    def __init__(self) -> None:
        # | LAG_FRAMES + 1 judged | LAG_FRAMES waiting |, the next to be judged at `_judged`;
        # fewer at the beginning
        self._run: list[_Seen] = []
        self._judged = 0

    def step(self, pictures: Tensor, seconds: Sequence[float]) -> list[CutDecision]:
        """The verdicts that these pictures [n, 3, h, w] allow: on all but the newest LAG_FRAMES.

        seconds: when each was taken.
        """
        run = torch.cat([self._run[-1].picture[None] if self._run else pictures[:1], pictures])
        self._run += [
            _Seen(picture, at, *gap)
            for picture, at, gap in zip(pictures, seconds, frame_residuals(run), strict=True)
        ]
        return self._judge(max(self._judged, len(self._run) - LAG_FRAMES))

    def flush(self) -> list[CutDecision]:
        """The verdicts on the newest pictures."""
        return self._judge(len(self._run))

    def _judge(self, stop: int) -> list[CutDecision]:
        """Those up to `stop` (half-open); then forgets what no later verdict looks at."""
        last = len(self._run) - 1
        found = [
            CutDecision(
                self._run[k].picture, self._is_cut(k), self._run[min(k + LAG_FRAMES, last)].picture
            )
            for k in range(self._judged, stop)
        ]
        forgotten = max(0, stop - LAG_FRAMES - 1)
        del self._run[:forgotten]
        self._judged = stop - forgotten
        return found

    def _is_cut(self, k: int) -> bool:
        """A lonely peak of what is unexplained, with nothing alike on both of its sides."""
        seen, earlier, later = (
            self._run[k],
            self._run[max(0, k - LAG_FRAMES) : k],
            self._run[k + 1 : k + 1 + LAG_FRAMES],
        )
        if seen.share < CUT_SHARE or not earlier:
            return False
        around = median(other.levels for other in earlier + later)
        if seen.levels < CUT_RATIO * (around + CALM_LEVELS):
            return False
        before = [other for other in earlier if seen.seconds - other.seconds <= PEAK_SECONDS]
        after = [other for other in later if other.seconds - seen.seconds <= PEAK_SECONDS]
        is_peak = all(other.levels < seen.levels for other in before) and all(
            other.levels <= seen.levels for other in after
        )
        return is_peak and not self._is_flash(k) and not self._is_same_place(k)

    def _is_flash(self, k: int) -> bool:
        """Whether one begins or ends here: the picture before comes back, or this one was there
        before.
        """
        before, here = self._run[k - 1], self._run[k]
        later = self._run[k + 1 : k + 1 + LAG_FRAMES]
        earlier = self._run[max(0, k - 1 - LAG_FRAMES) : k - 1]
        comes_back = [s.picture for s in later if s.seconds - before.seconds <= FLASH_SECONDS]
        was_there = [s.picture for s in earlier if here.seconds - s.seconds <= FLASH_SECONDS]
        return self._is_among(before.picture, comes_back, k) or self._is_among(
            here.picture, was_there, k
        )

    def _is_among(self, picture: Tensor, others: list[Tensor], k: int) -> bool:
        """Whether one of the others shows the same as it, in another light or moved a little."""
        if not others:
            return False
        lit = bool(novelty(torch.stack(others), picture).mean((1, 2)).min() < LIT_NOVELTY)
        return lit or self._is_moved(picture, others, k)

    def _is_same_place(self, k: int) -> bool:
        """Whether the camera was jerked, or the light switched."""
        before, here = self._run[k - 1].picture, self._run[k].picture
        if novelty(here[None], before).mean() < LIT_NOVELTY:
            return True
        return self._is_moved(*shifted_crops(before, here), k)

    def _is_moved(self, picture: Tensor, others: list[Tensor], k: int) -> bool:
        """Whether one of the others is much more like it than the pictures before and behind the
        border at `k`.
        """
        between = torch.stack([one for other in others for one in (picture, other)])
        return any(self._is_alike(*gap, k) for gap in frame_residuals(between)[::2])

    def _is_alike(self, share: float, levels: float, k: int) -> bool:
        seen = self._run[k]
        return share < ALIKE_RATIO * seen.share and levels < ALIKE_RATIO * seen.levels


def frame_residuals(run: Tensor) -> list[tuple[float, float]]:
    """What neighbours in a run of small pictures [n + 1, 3, h, w] leave unexplained of each other:
    its share of the samples, and the mean in levels."""
    rest = motion_residual(run).flatten(1)
    count = rest.shape[1]
    shares, levels = (rest > NOISE_LEVELS[0]).sum(1).tolist(), rest.sum(1).tolist()
    return [(share / count, level / count) for share, level in zip(shares, levels, strict=True)]


def shifted_crops(one: Tensor, other: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The middle of one small picture [3, h, w], and where in the other it would be for every push
    of the camera.
    """
    down, right = JERK_SAMPLES
    height, width = one.shape[1] - 2 * down, one.shape[2] - 2 * right
    corners = itertools.product(
        range(0, 2 * down + 1, REACH * 2), range(0, 2 * right + 1, REACH * 2)
    )
    middle = one[:, down : down + height, right : right + width]
    return middle, [other[:, y : y + height, x : x + width] for y, x in corners]
