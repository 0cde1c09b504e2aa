"""Tasks for worker processes that end them, for tests of who survives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from archive.captioner import caption_task
from streaming.engine import Engine, load_engine


@dataclass(frozen=True)
class Order:
    """What a worker is to do. folder: a file per try goes there."""

    name: str
    what: str
    folder: str


def make_nothing() -> str:
    return "made"


def obey(made: str, order: Any) -> Iterator[str]:
    assert made == "made"
    tries = Path(order.folder)
    number = len(list(tries.glob(f"{order.name}-*")))
    (tries / f"{order.name}-{number}").touch()
    yield "begun"
    if order.what == "exit":
        os._exit(11)
    if order.what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if order.what == "die once" and number == 0:
        os._exit(11)
    if order.what == "mistake":
        raise ValueError("no such thing")
    if order.what == "bug":
        raise KeyError("ours")
    yield f"{order.name} done"


def make_demo() -> Engine:
    torch.set_num_threads(1)
    return load_engine("demo", device="cpu")


def caption_and_die(engine: Engine, task: Any) -> Iterator[tuple[int, float]]:
    """Captions the first batch of a video and ends the process."""
    for progress in caption_task(engine, task):
        yield progress
        os._exit(11)
