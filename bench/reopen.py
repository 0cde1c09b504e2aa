"""How long a kept session takes to be opened again, against its stream's length, and what watching
again would take.

    python -m bench.reopen --hours 1 --hours 10

Every chunk is the same one of the embedded model's shape, written by the store itself; nothing else
is made up. The folder's files are dropped from the system's cache before each opening. Writes JSON
and Markdown into `bench/results/`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.progress import track

from bench.clips import FPS
from bench.ingest import QUESTION, repeated_frames, two_heads
from bench.machine import describe, save
from bench.report import table
from bench.rivals.shapes import random_model
from config import AnswerConfig, Config, MemoryConfig
from frames import Frame
from memory.disk_tier import SessionStore
from memory.kv_memory import KVMemory
from memory.retrieval_index import HeadIndex
from streaming.engine import Engine, kept_settings, kind_of
from streaming.events import Answer

RESULTS = Path(__file__).parent / "results"
CHUNK_FRAMES = 8
CHUNK_SECONDS = CHUNK_FRAMES / FPS
WATCHED_CHUNKS = 24  # really watched, to know what one takes
MIB = 1 << 20


@dataclass(frozen=True)
class Opening:
    """Seconds to open one folder: the parts, each alone, and the whole; then to the first token of
    an answer.
    """

    hours: float
    kv_bits: int
    chunks: int
    disk_bytes: int
    records_seconds: float
    window_seconds: float
    index_seconds: float
    session_seconds: float
    first_token_seconds: float
    watch_again_seconds: float


class Bench:
    """One model, and how long it takes to watch a chunk."""

    def __init__(self, kv_bits: int) -> None:
        memory = MemoryConfig(chunk_frames=CHUNK_FRAMES, kv_bits=kv_bits)
        model, _, side = random_model("demo", torch.device("cpu"), torch.bfloat16)
        self.engine = Engine(
            model, two_heads(model), Config(memory=memory, answer=AnswerConfig(max_new_tokens=1))
        )
        self.frames = list(repeated_frames(side, CHUNK_FRAMES * WATCHED_CHUNKS))
        self.chunk_seconds = self._watched_seconds(self.frames)

    def _watched_seconds(self, frames: list[Frame]) -> float:
        """Median seconds of a chunk, from frames to memory."""
        session = self.engine.open()
        spent: list[float] = []
        for start in range(0, len(frames), CHUNK_FRAMES):
            with stopwatch(spent.append):
                list(session.watch(frames[start : start + CHUNK_FRAMES]))
        self.chunk = session.memory.newest
        session.close()
        return median(spent)

    def write(self, folder: Path, count: int) -> None:
        """A session of `count` chunks."""
        assert self.engine.profile is not None
        keys = self.engine.profile.keys_of(self.chunk)
        self.engine.open(folder).close()
        store = self._store(folder, read_only=False)
        for index in track(range(count), f"writing {count} chunks"):
            start = CHUNK_SECONDS * index
            chunk = replace(
                self.chunk,
                index=index,
                start_seconds=start,
                stop_seconds=start + CHUNK_SECONDS - 1 / FPS,
            )
            store.append(chunk, keys, self.frames[0].image, CHUNK_FRAMES, self.chunk_seconds)
        store.close()

    def measure(self, folder: Path, hours: float) -> Opening:
        assert self.engine.profile is not None
        config, model = self.engine.config.memory, self.engine.model
        spent: list[float] = []
        forget(folder)
        with stopwatch(spent.append):
            store = self._store(folder)
        with stopwatch(spent.append):
            memory = KVMemory(config, torch.device("cpu"), store)
        with stopwatch(spent.append):
            index = HeadIndex(len(self.engine.profile.heads), model.head_dim, model.dtype)
            for number, keys in enumerate(store.index_keys(index.num_heads)):
                index.add(number, keys)
        memory.close()  # and the store with it
        forget(folder)
        with stopwatch(spent.append):
            session = self.engine.open(folder, read_only=True)
        answer = next(event for event in session.ask(QUESTION) if isinstance(event, Answer))
        chunks, disk_bytes = answer.stats.chunks, answer.stats.disk_bytes
        session.close()
        spent += [answer.stats.first_token_seconds, chunks * self.chunk_seconds]
        return Opening(hours, config.kv_bits, chunks, disk_bytes, *spent)

    def _store(self, folder: Path, read_only: bool = True) -> SessionStore:
        config = self.engine.config
        return SessionStore(
            folder, kind_of(self.engine.model), kept_settings(config), read_only=read_only
        )


@contextmanager
def stopwatch(add: Callable[[float], None]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    add(time.perf_counter() - started)


def forget(folder: Path) -> None:
    """Drops a folder's files from the system's cache, so that they are read from the disk."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def report(openings: list[Opening]) -> list[str]:
    head = [
        "hours",
        "bits",
        "chunks",
        "disk MiB",
        "records s",
        "window s",
        "index s",
        "opened after s",
        "first token s",
        "watching again s",
        "ratio",
    ]
    rows = [
        [
            f"{o.hours:g}",
            f"{o.kv_bits}",
            f"{o.chunks}",
            f"{o.disk_bytes / MIB:.0f}",
            f"{o.records_seconds:.2f}",
            f"{o.window_seconds:.2f}",
            f"{o.index_seconds:.2f}",
            f"{o.session_seconds:.2f}",
            f"{o.first_token_seconds:.2f}",
            f"{o.watch_again_seconds:.0f}",
            f"{o.watch_again_seconds / o.session_seconds:.0f}",
        ]
        for o in openings
    ]
    note = (
        f"16 bits are as computed. Watching again is the median of {WATCHED_CHUNKS} chunks "
        f"watched in the same run, "
        "times the chunks; their frames are at hand, so decoding would come on top. The "
        "whole is measured by itself, "
        "files not cached; the parts one after the other, the index after the records with "
        "the database in cache."
    )
    return [*table(head, rows), "", note]


def main(
    hours: Annotated[
        list[float], typer.Option(help="Length of the stream; may be given several times.")
    ] = [1.0, 10.0],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Where the results go, without a suffix.")] = RESULTS
    / "reopen",
) -> None:
    """Write sessions of some lengths, and say how long they take to be opened again."""
    torch.set_grad_enabled(False)
    openings = []
    for kv_bits in (16, 8):
        bench = Bench(kv_bits)
        for length in hours:
            with TemporaryDirectory() as folder:
                bench.write(Path(folder) / "s", round(length * 3600 / CHUNK_SECONDS))
                openings.append(bench.measure(Path(folder) / "s", length))
    about = {**describe(), "shape": "demo, random weights, bfloat16"}
    lines = report(openings)
    save(
        out,
        "Opening a kept session",
        about,
        lines,
        {"openings": [asdict(opening) for opening in openings]},
    )
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
