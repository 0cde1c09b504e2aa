"""Hard cuts of a stream, told from motion, fades and flashes by looking a few pictures back and ahead.

Small pictures (`keyframes/novelty.py`) come in batches, are judged `LAG_FRAMES` later, and are forgotten soon after, so
a stream need not end. Knows nothing of times or keyframes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keyframes.novelty import NOISE_LEVELS, unexplained

LAG_FRAMES = 4  # looked ahead, and as many looked back
CUT_SHARE = 0.5  # of a picture that its predecessor does not explain
CUT_RATIO = 3.6  # times what the pictures around leave unexplained ...
CALM_LEVELS = 0.5  # ... or this, in levels, where they stand still
RETURN_RATIO = 0.5  # of a cut's levels: the other side of it would not come back so closely
STILL_LEVELS = 0.3  # left unexplained while nothing moves and the light is steady


@dataclass(frozen=True, eq=False)
class Judged:
    """A small picture [3, h, w] with its verdict. is_still: it stays as it is for the pictures looked ahead."""

    picture: Tensor
    is_cut: bool
    is_still: bool


@dataclass(frozen=True, eq=False)
class _Seen:
    """share and levels: of what its predecessor leaves unexplained of it."""

    picture: Tensor
    share: float
    levels: float


class CutFinder:
    """One stream's cuts: `step` with pictures as they come, `flush` at the end; every picture is judged once, in order."""

    def __init__(self) -> None:
        # | LAG_FRAMES + 1 judged | LAG_FRAMES waiting |, the next to be judged at `_judged`; fewer at the beginning
        self._run: list[_Seen] = []
        self._judged = 0

    def step(self, pictures: Tensor) -> list[Judged]:
        """The verdicts that these pictures [n, 3, h, w] allow: on all but the newest LAG_FRAMES."""
        run = torch.cat([self._run[-1].picture[None] if self._run else pictures[:1], pictures])
        rest = unexplained(run).flatten(1)
        count = rest.shape[1]
        shares, levels = (rest > NOISE_LEVELS[0]).sum(1).tolist(), rest.sum(1).tolist()
        for picture, share, level in zip(pictures, shares, levels, strict=True):
            self._run.append(_Seen(picture, share / count, level / count))
        return self._judge(max(self._judged, len(self._run) - LAG_FRAMES))

    def flush(self) -> list[Judged]:
        """The verdicts on the newest pictures."""
        return self._judge(len(self._run))

    def _judge(self, stop: int) -> list[Judged]:
        """Those up to `stop` (half-open); then forgets what no later verdict looks at."""
        found = [Judged(self._run[k].picture, self._is_cut(k), self._is_still(k)) for k in range(self._judged, stop)]
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
        around = [other.levels for other in earlier + later]
        stands_out = seen.levels >= CUT_RATIO * (sum(around) / len(around) + CALM_LEVELS)
        is_peak = all(o.levels < seen.levels for o in earlier) and all(o.levels <= seen.levels for o in later)
        return stands_out and is_peak and not self._returns(k)

    def _returns(self, k: int) -> bool:
        """Whether a flash begins or ends here: the picture before comes back, or this one was there before."""
        before, here = self._run[k - 1], self._run[k]
        pairs = [(before, other) for other in self._run[k + 1 : k + 1 + LAG_FRAMES]]
        pairs += [(other, here) for other in self._run[max(0, k - 1 - LAG_FRAMES) : k - 1]]
        return any(apart(one.picture, other.picture) < RETURN_RATIO * here.levels for one, other in pairs)

    def _is_still(self, k: int) -> bool:
        return all(seen.levels <= STILL_LEVELS for seen in self._run[k : k + 1 + LAG_FRAMES])


def apart(one: Tensor, other: Tensor) -> float:
    """What two small pictures [3, h, w] leave unexplained of each other, mean in levels."""
    return float(unexplained(torch.stack([one, other])).float().mean())
