"""decord on one file, in a process of its own: `python decord_child.py FILE NUM_THREADS`.

decord may abort a process over a damaged file, and reserves room for all that a header claims. Here
it takes nobody with it. Every reply is a line of JSON, {"error"} or what was asked for, and the
bytes of one array. The first one tells of the file; then each line on standard input is a list of
picture numbers, answered with those pictures. Imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, BinaryIO

import decord
import numpy as np
from numpy.typing import NDArray

ADDRESS_SPACE_BYTES = 8 << 30  # mostly libraries and the stacks of threads


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the replies
    decord.logging.set_level(decord.logging.QUIET)
    try:
        serve(sys.argv[1], int(sys.argv[2]), replies)
    except (decord.DECORDError, MemoryError) as error:
        reply(replies, {"error": str(error)})


def serve(path: str, num_threads: int, replies: BinaryIO) -> None:
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=num_threads)
    count = len(reader)
    times = reader.get_frame_timestamp(np.arange(count))[:, 0].astype(np.float64)
    keys = [int(key) for key in reader.get_key_indices()]
    reply(replies, {"count": count, "keyframes": keys}, times)
    for line in sys.stdin:
        pictures = reader.get_batch(json.loads(line)).asnumpy()
        reply(replies, {"shape": pictures.shape}, pictures)


def reply(replies: BinaryIO, header: dict[str, Any], array: NDArray[Any] | None = None) -> None:
    data = b"" if array is None else np.ascontiguousarray(array).tobytes()
    replies.write(json.dumps({**header, "num_bytes": len(data)}).encode() + b"\n")
    replies.write(data)
    replies.flush()


if __name__ == "__main__":
    main()
