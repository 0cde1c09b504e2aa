"""Hard cuts of a stream, told from motion, fades and flashes by looking a few pictures back and ahead.

Small pictures (`keyframes/novelty.py`) come in batches, are judged `LAG_FRAMES` later, and are forgotten soon after, so
a stream need not end. Knows nothing of times or keyframes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from keyframes.novelty import NOISE_LEVELS, novelty, unexplained

LAG_FRAMES = 4  # looked ahead, and as many looked back
CUT_SHARE = 0.5  # of a picture that its predecessor does not explain
CUT_RATIO = 3.6  # times what the pictures around leave unexplained ...
CALM_LEVELS = 0.5  # ... or this, in levels, where they stand still
ALIKE_RATIO = 0.5  # of what a cut leaves unexplained: pictures of two shots differ by more
JERK_SAMPLES = (4, 8)  # down and right: a camera may be pushed so far from one picture to the next
LIT_NOVELTY = 0.2  # mean over a picture: less is the same place in another light
STILL_LEVELS = 1.0  # left unexplained over LAG_FRAMES while nothing moves fast and the light is steady


@dataclass(frozen=True, eq=False)
class Judged:
    """A small picture [3, h, w] with its verdict. ahead: the one LAG_FRAMES later, or the last one."""

    picture: Tensor
    is_cut: bool
    ahead: Tensor

    @property
    def is_still(self) -> bool:
        """Whether what it shows stays: no fade, flash or fast motion is under way."""
        ((_, levels),) = apart(torch.stack([self.picture, self.ahead]))
        return levels <= STILL_LEVELS


@dataclass(frozen=True, eq=False)
class _Seen:
    """share and levels: of what its predecessor leaves unexplained of it."""

    picture: Tensor
    share: float
    levels: float

    def is_beyond(self, one: Tensor, other: Tensor) -> bool:
        """Whether two pictures [3, h, w] are much more alike than this one and its predecessor."""
        share, levels = apart(torch.stack([one, other]))[0]
        much = share < ALIKE_RATIO * self.share and levels < ALIKE_RATIO * self.levels
        return much or bool(novelty(one[None], other).mean() < LIT_NOVELTY)


class CutFinder:
    """One stream's cuts: `step` with pictures as they come, `flush` at the end; each is judged once, in order."""

    def __init__(self) -> None:
        # | LAG_FRAMES + 1 judged | LAG_FRAMES waiting |, the next to be judged at `_judged`; fewer at the beginning
        self._run: list[_Seen] = []
        self._judged = 0

    def step(self, pictures: Tensor) -> list[Judged]:
        """The verdicts that these pictures [n, 3, h, w] allow: on all but the newest LAG_FRAMES."""
        run = torch.cat([self._run[-1].picture[None] if self._run else pictures[:1], pictures])
        self._run += [_Seen(picture, *gap) for picture, gap in zip(pictures, apart(run), strict=True)]
        return self._judge(max(self._judged, len(self._run) - LAG_FRAMES))

    def flush(self) -> list[Judged]:
        """The verdicts on the newest pictures."""
        return self._judge(len(self._run))

    def _judge(self, stop: int) -> list[Judged]:
        """Those up to `stop` (half-open); then forgets what no later verdict looks at."""
        last = len(self._run) - 1
        found = [
            Judged(self._run[k].picture, self._is_cut(k), self._run[min(k + LAG_FRAMES, last)].picture)
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
        around = [other.levels for other in earlier + later]
        stands_out = seen.levels >= CUT_RATIO * (sum(around) / len(around) + CALM_LEVELS)
        is_peak = all(o.levels < seen.levels for o in earlier) and all(o.levels <= seen.levels for o in later)
        return stands_out and is_peak and not self._is_flash(k) and not self._is_same_place(k)

    def _is_flash(self, k: int) -> bool:
        """Whether one begins or ends here: the picture before comes back, or this one was there before."""
        before, here = self._run[k - 1], self._run[k]
        pairs = [(before, other) for other in self._run[k + 1 : k + 1 + LAG_FRAMES]]
        pairs += [(other, here) for other in self._run[max(0, k - 1 - LAG_FRAMES) : k - 1]]
        return any(here.is_beyond(one.picture, other.picture) for one, other in pairs)

    def _is_same_place(self, k: int) -> bool:
        """Whether the camera was jerked, or the light switched."""
        before, here = self._run[k - 1].picture, self._run[k]
        return any(here.is_beyond(*pair) for pair in shifted(before, here.picture))


def apart(run: Tensor) -> list[tuple[float, float]]:
    """What neighbours in a run of small pictures [n + 1, 3, h, w] leave unexplained of each other: its share of the
    samples, and the mean in levels."""
    rest = unexplained(run).flatten(1)
    count = rest.shape[1]
    shares, levels = (rest > NOISE_LEVELS[0]).sum(1).tolist(), rest.sum(1).tolist()
    return [(share / count, level / count) for share, level in zip(shares, levels, strict=True)]


def shifted(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What two small pictures [3, h, w] would have in common if the camera had been pushed, for every such push."""
    down, right = JERK_SAMPLES
    for y, x in itertools.product((-down, 0, down), (-right, -right // 2, 0, right // 2, right)):
        yield _moved(one, y, x), _moved(other, -y, -x)


def _moved(picture: Tensor, y: int, x: int) -> Tensor:
    """Without the first y rows and x columns; the last ones where negative."""
    height, width = picture.shape[1:]
    return picture[:, max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)]
