"""What one more batch through a vision tower costs on this device, by the clock.

On a CPU that is known (`models/towers.py`). A GPU computes so fast that a batch costs mostly the starting of its
kernels, which depends on the whole machine, so there it is measured once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from models.towers import Tower

GROUPS = 8  # in the larger of two batches, whose difference tells what a patch costs
RUNS = 5  # of which the fastest counts
LEAST_SHARE = 1e-3  # of a patch's average cost: what one more costs at least, so that the price stays finite


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, the device's work included."""
    return min(_seconds(run) for _ in range(RUNS))


def timed_price(
    tower: Tower, patches: Tensor, grid: tuple[int, int], clock: Callable[[Callable[[], object]], float] = fastest
) -> float:
    """The time that refreshing one token takes, in patches of the stock forward.

    patches: [1, T, values], of a grid (rows, columns); what they show makes no difference. clock: tells the seconds
    of a run.
    """
    count = patches.shape[1]
    token = torch.zeros(1, count // tower.merge_size**2, dtype=torch.bool, device=patches.device)
    token[0, 0] = True
    reference = tower.whole(patches, grid, [0])[1][0]
    several = patches.repeat(GROUPS, 1, 1)
    batch = clock(lambda: tower.refreshed(patches, reference, token))
    one = clock(lambda: tower.whole(patches, grid, []))
    many = clock(lambda: tower.whole(several, grid, []))
    average = many / (GROUPS * count)
    each = (many - one) / ((GROUPS - 1) * count)
    return batch / max(each, LEAST_SHARE * average)


def _seconds(run: Callable[[], object]) -> float:
    _wait()
    started = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    """For what the device is still at."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
