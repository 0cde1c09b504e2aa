"""How much memory decoders may hold in this process, and how many threads that leaves each.

A few kilobytes of video can ask for gigabytes: a decoder keeps every picture that others lean on,
and one more for each of its threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from av.video.stream import VideoStream

LEAST_PROCESS_BYTES = 3 << 30  # of all files that are open at a time, on a small machine
PROCESS_SHARE = 4  # a larger machine may give a part of its memory
FILE_BYTES = 512 << 20  # of one file, as far as fewer threads can help
MOST_THREADS = 16  # FFmpeg's own limit, beyond which it gains nothing
# Pictures that a decoder keeps at most, for others to lean on.
REFERENCES = {"h264": 16, "hevc": 16, "vvc": 16, "vp9": 8, "av1": 8}
FEW_REFERENCES = 3
BITS_UNKNOWN = 24  # per pixel, before a picture has been decoded: 4:2:0 in 10 bits


class DecoderMemory:
    """What the open files of a process may hold together. Reserve before decoding."""

    def __init__(self, num_bytes: int) -> None:
        self._free_bytes = num_bytes
        self._lock = threading.Lock()

    def reserve(self, num_bytes: int) -> Callable[[], None] | None:
        """Gives what to call once to give it back; None if there is not so much left."""
        with self._lock:
            if num_bytes > self._free_bytes:
                return None
            self._free_bytes -= num_bytes
        is_held = [True]

        def give_back() -> None:
            with self._lock:
                if is_held:
                    is_held.clear()
                    self._free_bytes += num_bytes

        return give_back


def process_bytes() -> int:
    """What the decoders of a process may hold on this machine."""
    physical_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(LEAST_PROCESS_BYTES, physical_bytes // PROCESS_SHARE)


DECODERS = DecoderMemory(process_bytes())


def picture_bytes(stream: VideoStream) -> int:
    """Of one decoded picture in the codec's own format."""
    found = stream.codec_context.format
    bits = found.padded_bits_per_pixel if found else BITS_UNKNOWN
    return stream.width * stream.height * bits // 8


def num_references(stream: VideoStream) -> int:
    return REFERENCES.get(stream.codec_context.codec.canonical_name, FEW_REFERENCES)


def num_threads(stream: VideoStream) -> int:
    """How many threads may decode: one for each core, fewer for very large pictures."""
    cores = min(os.cpu_count() or 1, MOST_THREADS)
    fitting = FILE_BYTES // max(1, picture_bytes(stream)) - num_references(stream)
    return max(1, min(cores, fitting))


def decoder_bytes(stream: VideoStream) -> int:
    """What decoding a stream takes at most, on the threads that it has."""
    threads = stream.codec_context.thread_count
    return picture_bytes(stream) * (num_references(stream) + threads)
