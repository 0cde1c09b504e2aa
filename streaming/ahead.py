"""How many chunks of a stream go through the model together: as many as take a moment.

A small model costs less per call than per frame, and a large one makes everybody wait for as long as a call takes. So
the number follows the clock. Knows nothing of models or memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice

from streaming.frames import Frame

AHEAD_FRAMES = 64  # taken together at most
AHEAD_BYTES = 256 << 20  # of their pictures
GROWTH = 8  # times as many chunks as the last time, at most: one call's time tells little of much larger ones
AHEAD_SECONDS = 0.25  # that chunks taken together may take, and that may pass while they are gathered

Part = Sequence[Frame]


def together(parts: Iterator[Part], most: int, seconds: float = AHEAD_SECONDS) -> Iterator[list[Part]]:
    """All parts in order, in batches: one at first, then as many as take half of `seconds`, up to `most`.

    What is done with a batch is timed until the next one is asked for. Where the parts end in an error, those that came
    before it come first.
    """
    count = 1
    while True:
        batch: list[Part] = []
        try:
            gather(parts, count, seconds, batch)
        except Exception:
            if batch:
                yield batch
            raise
        if not batch:
            return
        started = time.perf_counter()
        yield batch
        took = time.perf_counter() - started
        fitting = int(count * seconds / 2 / max(took, seconds / 1000))
        if took > seconds or fitting > count:
            count = min(max(1, fitting), GROWTH * count, most)


def gather(parts: Iterator[Part], count: int, seconds: float, batch: list[Part]) -> None:
    """Fills `batch` with the next `count` parts; with fewer where they are large or slow to come."""
    stop = time.perf_counter() + seconds
    num_bytes = 0
    for part in islice(parts, count):
        batch.append(part)
        num_bytes += sum(frame.image.nbytes for frame in part)
        if num_bytes >= AHEAD_BYTES or time.perf_counter() > stop:
            return
