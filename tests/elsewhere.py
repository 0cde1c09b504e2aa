"""What a session answers on the CPU and on a device that is not it, under several settings: one
line of JSON.

Run as a process of its own: torch does not forget a device.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from models.partial_vit import RaggedAttention
from models.qwen3_vl import Qwen3VL
from streaming.engine import load_engine
from streaming.events import Answer
from streaming.reader import Reader
from streaming.sources.file import FileSource
from tests.pretended import NAME, pretended_device
from ui.cli.opening import open_session
from ui.cli.settings import Settings

SAMPLE = Path(__file__).parents[1] / "samples" / "one_minute.mp4"
SECONDS = 12.0
QUESTIONS = ("What is shown at 5 seconds?", "When did the red square show up?")
SMALL: dict[str, Any] = {"window_chunks": 1, "recall_chunks": 2}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "as it comes": {},
    "every token, 16 bits, reuse": {
        "prune": {"strategy": "none"},
        "memory": {"kv_bits": 16},
        "reuse": {"strategy": "novelty"},
    },
    "borders at cuts": {
        "memory": {"borders": "cuts", "recall": "auto"},
    },
    "little memory": {
        "memory": {**SMALL, "disk_bytes": 1 << 21},
    },
    "no retrieval heads, sampled": {"memory": SMALL, "answer": {"temperature": 0.8, "top_p": 0.9}},
}


def answers(device: str, way: str) -> list[str]:
    """Watched into a folder and asked, then opened again and asked."""
    engine = load_engine("demo", device, "float32", WAYS[way])
    if "no retrieval heads" in way:
        engine.profile = None
    found = []
    with TemporaryDirectory() as folder:
        for read_only in (False, True):
            with open_session(engine, Path(folder) / "s", Settings(), read_only) as session:
                if not read_only:
                    with Reader(FileSource(SAMPLE, 2.0, stop_seconds=SECONDS)) as reader:
                        list(session.watch(reader))
                events = [event for question in QUESTIONS for event in session.ask(question)]
            found += [event.text for event in events if isinstance(event, Answer)]
    return found


def counted(of: type, method: str) -> Any:
    """Counts the calls of a method, which does what it did."""
    return patch.object(of, method, autospec=True, side_effect=getattr(of, method))


@contextmanager
def forgotten_patches() -> Iterator[None]:
    """The patches of every group stay on the CPU."""
    on_device = Qwen3VL._on_device

    def forgotten(model: Qwen3VL, groups: Any) -> Any:
        return on_device(model, groups).cpu()

    with patch.object(Qwen3VL, "_on_device", forgotten):
        yield


def complaint() -> str:
    try:
        with forgotten_patches():
            answers(NAME, "as it comes")
    except RuntimeError as error:
        return str(error)
    return ""


def main() -> None:
    torch.set_num_threads(1)
    here = {way: answers("cpu", way) for way in WAYS}
    with pretended_device():
        with counted(RaggedAttention, "attend") as in_part:
            there = {way: answers(NAME, way) for way in WAYS}
        told = complaint()
    json.dump(
        {"here": here, "there": there, "calls": in_part.call_count, "complaint": told}, sys.stdout
    )


if __name__ == "__main__":
    main()
