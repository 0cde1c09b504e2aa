"""How many chunks of a stream go through the model in one pass: as many as a fixed amount of work.

A small model costs less per call than per frame, so several of its chunks share a pass. A large
model makes a question wait for as long as a pass takes, so its chunks go one by one. The limits
count work (visual tokens, bytes of pictures) and not seconds: a run is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from streaming.frames import Frame

# Of one pass. Eight chunks of the embedded model have 512 visual tokens, and more save no time. One
# chunk of a released Qwen3-VL has 768 at its default size: it goes alone.
BATCH_TOKENS = 512
BATCH_FRAMES = 64
# Large pictures take longer to decode than to share a pass would save: 1080p goes one by one.
BATCH_BYTES = 64 << 20

Part = Sequence[Frame]


def batch_chunks(
    parts: Iterator[Part], max_chunks: int, count_tokens: Callable[[Part], int]
) -> Iterator[list[Part]]:
    """Yields all parts in order, in batches of up to `max_chunks` that keep to the limits above.

    parts: the frames of one chunk each. The first one goes alone, so that something is known of a
    stream at once. count_tokens: visual tokens of a part, before pruning.
    A part that exceeds a limit by itself goes alone. Where the parts end in an error, those that
    came before it are yielded first.
    """
    size = 1
    while True:
        batch: list[Part] = []
        try:
            fill_batch(batch, islice(parts, size), count_tokens)
        except Exception:
            if batch:
                yield batch
            raise
        if not batch:
            return
        yield batch
        size = max_chunks


def fill_batch(
    batch: list[Part], parts: Iterator[Part], count_tokens: Callable[[Part], int]
) -> None:
    """Appends parts to `batch` until another one as large as the last would exceed a limit."""
    num_tokens = num_bytes = 0
    for part in parts:
        batch.append(part)
        part_tokens = count_tokens(part)
        part_bytes = sum(frame.image.nbytes for frame in part)
        num_tokens += part_tokens
        num_bytes += part_bytes
        if num_tokens + part_tokens > BATCH_TOKENS or num_bytes + part_bytes > BATCH_BYTES:
            return
