"""A process to be killed: for every line it is given it forks a child that watches seeded noise
into a folder.

    python -m tests.watching CHECKPOINT

with lines {"folder", "budget_bytes", "kv_bits", "at_line", "after_seconds"}.

The child kills itself before it runs the given line of the store's code, or is killed after some
seconds; 0 is never. For each, a line comes back: {"told": newest chunk count it told of, "lines":
of the store it ran, "killed": bool}.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from config import AnswerConfig, Config, MemoryConfig
from models.calibration import Profile, RetrievalHead
from models.loading import load
from streaming.engine import Engine
from streaming.events import Watched
from tests.tiny import noise_frames

STORE_FILES = (
    "disk_tier.py",
    "kv_files.py",
    "records.py",
    "plain_files.py",
    "eviction.py",
    "kv_memory.py",
)
NUM_FRAMES = 38  # the last chunk is shorter


def tiny_engine(checkpoint: Path, **memory: Any) -> Engine:
    """Chunks of four frames; two heads taken for retrieval heads, so that there is something to
    index.
    """
    model = load(checkpoint)
    heads = tuple(RetrievalHead(layer, 1, 0, 0.0, 1.0, 1.0, 1.0, 1.0) for layer in (0, 2))
    profile = Profile(
        model.model_id, "float32", model.num_heads // model.num_kv_heads, heads, 1, 1.0, 1.0
    )
    config = Config(
        memory=MemoryConfig(chunk_frames=4, **memory), answer=AnswerConfig(max_new_tokens=6)
    )
    return Engine(model, profile, config)


class Countdown:
    """Kills this process before the n-th line of the store's code; counts them all."""

    def __init__(self, at_line: int) -> None:
        self._at_line = at_line
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Countdown | None:
        if not frame.f_code.co_filename.endswith(STORE_FILES):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._at_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def watch(engine: Engine, folder: Path, at_line: int, pipe: int) -> None:
    """The child: from where the folder ends to the end of the frames, telling after each chunk."""
    countdown = Countdown(at_line)
    sys.settrace(countdown)
    session = engine.open(folder)
    frames = noise_frames(NUM_FRAMES)[session.stats.frames_read :]
    for event in session.watch(frames):
        if isinstance(event, Watched):
            os.write(pipe, f"{event.stats.chunks} {countdown.lines}\n".encode())
    session.close()
    sys.settrace(None)


def run(engine: Engine, folder: Path, at_line: int, after_seconds: float) -> dict[str, Any]:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        watch(engine, folder, at_line, theirs)
        os._exit(0)
    os.close(theirs)
    said = b""
    kill_at = time.monotonic() + after_seconds if after_seconds else float("inf")
    while select.select([ours], [], [], min(60.0, max(0.0, kill_at - time.monotonic())))[0]:
        piece = os.read(ours, 1 << 16)
        if not piece:
            break
        said += piece
    else:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while piece := os.read(ours, 1 << 16):
        said += piece
    os.close(ours)
    told, lines = ([*map(int, said.split())] or [0, 0])[-2:]
    if status and not os.WIFSIGNALED(status):
        raise RuntimeError(f"the child failed: {status}")
    return {"told": told, "lines": lines, "killed": os.WIFSIGNALED(status)}


def main() -> None:
    torch.set_num_threads(1)
    engine = tiny_engine(Path(sys.argv[1]))
    engine.model.prefix()
    for line in sys.stdin:
        order = json.loads(line)
        memory = replace(
            engine.config.memory, disk_bytes=order["budget_bytes"], kv_bits=order["kv_bits"]
        )
        engine.config = replace(engine.config, memory=memory)
        told = run(engine, Path(order["folder"]), order["at_line"], order["after_seconds"])
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
