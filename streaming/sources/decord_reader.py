"""decord in a child process that may die without harm; asked by picture number.

Knows nothing of times beyond those that decord tells.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHILD = Path(__file__).with_name("decord_child.py")
NUM_THREADS = 4  # each holds pictures
PATIENCE_SECONDS = 20.0  # of a reply; a jump in a long stretch without keyframes takes seconds
LONGEST_HEADER = 1 << 24  # bytes; the keyframes of a long file are listed in it


class DecordError(Exception):
    """decord failed on this file, or its process did; another reader may not."""


class DecordReader:
    """An open file in decord's process. Close it.

    times: float64 [n], seconds, as decord counts them. keyframes: numbers of pictures.
    """

    def __init__(self, path: Path) -> None:
        threads = min(NUM_THREADS, os.cpu_count() or 1)
        # -P: the folder of the script holds no modules for it
        command = [sys.executable, "-P", str(CHILD), os.fspath(path.resolve()), str(threads)]
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
        )
        self._unread = b""
        self._end = weakref.finalize(self, end_process, self._process)
        try:
            header, data = self._receive()
            self.times = np.frombuffer(data, np.float64)
            self.keyframes = [int(key) for key in header["keyframes"]]
        except BaseException:
            self.close()
            raise

    def pictures(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """The pictures of these numbers: uint8 [n, H, W, 3]. Raises DecordError."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(list(numbers)).encode() + b"\n")
        except OSError as error:
            raise DecordError("its process has ended") from error
        header, data = self._receive()
        return np.frombuffer(data, np.uint8).reshape(header["shape"])

    def close(self) -> None:
        self._end()

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self._unread:
            if len(self._unread) > LONGEST_HEADER:
                raise DecordError("its process speaks another language")
            self._unread += self._read(deadline)
        line, _, rest = self._unread.partition(b"\n")
        header = json.loads(line)
        if "error" in header:
            raise DecordError(header["error"])
        pieces, num_missing = [rest], header["num_bytes"] - len(rest)
        while num_missing > 0:
            pieces.append(self._read(deadline))
            num_missing -= len(pieces[-1])
        self._unread = b""
        return header, b"".join(pieces)

    def _read(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        ready, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(handle, 1 << 20) if ready else b""
        if not piece:
            raise DecordError("its process has ended" if ready else "it takes too long")
        return piece


def end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
