"""How many chunks of a stream go through the model in one pass: as many as a fixed amount of work.

A small model costs less per call than per frame, so several of its chunks share a pass. A large
model makes a question wait for as long as a pass takes, so its chunks go one by one. The limits
count work (visual tokens, bytes of pictures) and not seconds: a run is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from frames import Frame

# Visual tokens of one pass. On a CPU, eight chunks of the embedded model have 512, and more save no
# time; one chunk of a released Qwen3-VL has 768 at its default size and goes alone. A GPU mostly
# starts kernels below some thousands; with so many a pass takes a tenth of a second (H100, 4B).
PASS_TOKENS_CPU = 512
PASS_TOKENS_GPU = 8192
BATCH_FRAMES = 64
# Large pictures take longer to decode than to share a pass would save: 1080p goes one by one.
BATCH_BYTES = 64 << 20

Part = TypeVar("Part", bound=Sequence[Frame])


def max_pass_tokens(device_type: str) -> int:
    """How many visual tokens share a pass on such a device: "cpu", "cuda", ..."""
    return PASS_TOKENS_CPU if device_type == "cpu" else PASS_TOKENS_GPU


def batch_chunks(
    parts: Iterator[Part],
    max_chunks: int,
    count_tokens: Callable[[Part], int],
    max_tokens: int = PASS_TOKENS_CPU,
) -> Iterator[list[Part]]:
    """Yields all parts in order, in batches of up to `max_chunks` that keep to the limits above.

    parts: the frames of one chunk each. The first one goes alone, so that something is known of a
    stream at once. count_tokens: visual tokens of a part, before pruning. max_tokens: of a batch.
    A part that exceeds a limit by itself goes alone. Where the parts end in an error, those that
    came before it are yielded first.
    """
    size = 1
    while True:
        batch: list[Part] = []
        try:
            fill_batch(batch, islice(parts, size), count_tokens, max_tokens)
        except Exception:
            if batch:
                yield batch
            raise
        if not batch:
            return
        yield batch
        size = max_chunks


def fill_batch(
    batch: list[Part], parts: Iterator[Part], count_tokens: Callable[[Part], int], max_tokens: int
) -> None:
    """Appends parts to `batch` until another one as large as the last would exceed a limit."""
    num_tokens = num_bytes = 0
    for part in parts:
        batch.append(part)
        part_tokens = count_tokens(part)
        part_bytes = sum(frame.image.nbytes for frame in part)
        num_tokens += part_tokens
        num_bytes += part_bytes
        if num_tokens + part_tokens > max_tokens or num_bytes + part_bytes > BATCH_BYTES:
            return
