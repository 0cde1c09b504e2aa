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
Clock = Callable[[Callable[[], object], torch.device], float]  # the seconds that a run takes on a device


def now(device: torch.device) -> float:
    """The clock's seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several runs."""

    def seconds() -> float:
        started = now(device)
        run()
        return now(device) - started

    return min(seconds() for _ in range(RUNS))


def timed_price(tower: Tower, patches: Tensor, grid: tuple[int, int], clock: Clock = fastest) -> float:
    """The time that refreshing one token takes, in patches of the stock forward.

    patches: [1, T, values], of a grid (rows, columns); what they show makes no difference.
    """
    count, device = patches.shape[1], patches.device
    token = torch.zeros(1, count // tower.merge_size**2, dtype=torch.bool, device=device)
    token[0, 0] = True
    reference = tower.whole(patches, grid, [0])[1][0]
    several = patches.repeat(GROUPS, 1, 1)
    batch = clock(lambda: tower.refreshed(patches, reference, token), device)
    one = clock(lambda: tower.whole(patches, grid, []), device)
    many = clock(lambda: tower.whole(several, grid, []), device)
    average = many / (GROUPS * count)
    each = (many - one) / ((GROUPS - 1) * count)
    return batch / max(each, LEAST_SHARE * average)
