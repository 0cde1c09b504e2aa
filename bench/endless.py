"""A stream that goes on for a month under small budgets: what grows, what slows down, and what is
still found.

    python -m bench.endless --days 30 --minutes 10

Chunks are made up: tiny keys and values, of as many tokens as chance will have it. What is measured
does not depend on the model but on how many chunks there have been. They go through the memory as
those of a session do, into window, host, disk and index, four in a pass. Now and then a chunk
carries a code that a question can look for; the same codes come again long after, so that what is
forgotten looks like what is there. Writes JSON and Markdown into `bench/results/`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from bench.machine import describe, save
from bench.report import table
from config import MemoryConfig
from memory.chunk import KVChunk, PositionLayout
from memory.disk_tier import SessionStore
from memory.kv_memory import KVMemory
from memory.records import Kind, NewChunk
from memory.retrieval_index import HeadIndex

RESULTS = Path(__file__).parent / "results"
CHUNK_SECONDS = 8.0  # 16 frames at 2 a second
BATCH = 4  # chunks of one pass, which share a commit
LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 32
MIN_CELLS, MAX_CELLS = 4, 9  # of 4 visual tokens each
PLANTED_EVERY = 50  # chunks
CODE_SCALES = 9.0, 12.0  # of a code among keys of scale 1
NUM_CODES = 2000  # then they come again: later than any budget here remembers
QUESTIONS = 40  # at each reading
THUMBNAIL = np.full((24, 32, 3), 90, np.uint8)
MIB = 1 << 20


@dataclass(frozen=True)
class Reading:
    """What the process has and does at one moment; ms_per_chunk: since the reading before."""

    chunks: int
    days: float
    first_chunk: int
    rss_mib: float
    disk_mib: float
    counted_mib: float
    open_files: int
    ms_per_chunk: float
    search_ms: float
    recall_at_1: float


@dataclass(frozen=True)
class Run:
    """One stream. growth: over the last half of the readings, as a share of the mean, by a fitted
    line.
    """

    name: str
    budget: str
    readings: Sequence[Reading]
    ended: str

    def growth(self, quantity: Callable[[Reading], float]) -> float:
        late = self.readings[len(self.readings) // 2 :]
        values = np.array([quantity(reading) for reading in late])
        if len(late) < 2 or not values.mean():
            return 0.0
        chunks = np.array([reading.chunks for reading in late], np.float64)
        slope = np.polyfit(chunks, values, 1)[0]
        return float(slope * (chunks[-1] - chunks[0]) / values.mean())

    def recall(self, evicted: bool) -> float:
        """Mean over the readings before, or after, anything was forgotten."""
        found = [
            reading.recall_at_1 for reading in self.readings if (reading.first_chunk > 0) == evicted
        ]
        return float(np.mean(found)) if found else float("nan")


class Stream:
    """Made-up chunks, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._codes = torch.nn.functional.normalize(
            torch.randn(NUM_CODES, HEAD_DIM, generator=self._generator), dim=1
        )

    def chunk(self, index: int) -> NewChunk:
        """A text token, then cells of 2 x 2 visual tokens."""
        num_cells = int(torch.randint(MIN_CELLS, MAX_CELLS + 1, (1,), generator=self._generator))
        num_tokens = 1 + 4 * num_cells
        kv = torch.randn(
            2, LAYERS, KV_HEADS, num_tokens, HEAD_DIM, generator=self._generator
        ).bfloat16()
        visual = torch.arange(num_tokens) > 0
        if index % PLANTED_EVERY == 0:
            low, high = CODE_SCALES
            scale = low + (high - low) * float(torch.rand(1, generator=self._generator))
            kv[0, 0, 0, 2] = (scale * self.code_of(index)).bfloat16()
        start = CHUNK_SECONDS * index
        chunk = KVChunk(
            kv[0],
            kv[1],
            cells_layout(num_cells),
            visual,
            start,
            start + CHUNK_SECONDS - 0.5,
            index,
            tuple(start + k for k in range(8)),
        )
        return NewChunk(chunk, kv[0, 0, :1, 1:], THUMBNAIL, 16, 0.1)

    def code_of(self, index: int) -> Tensor:
        return self._codes[index // PLANTED_EVERY % NUM_CODES]


def cells_layout(num_cells: int) -> PositionLayout:
    """Cells side by side in one group, which is two tokens high."""
    place = torch.arange(4 * num_cells)
    rows, columns = place % 4 // 2, place % 2 + place // 4 * 2
    t = torch.ones_like(place)
    visual = torch.stack([t, 1 + rows, 1 + columns])
    positions = torch.cat([torch.zeros(3, 1, dtype=torch.int64), visual], 1)
    return PositionLayout(positions, int(positions.max()) + 1)


def planted(memory: KVMemory, rng: np.random.Generator) -> list[int]:
    """Chunks with a code that are remembered, some of them."""
    first = -(-memory.first_chunk // PLANTED_EVERY) * PLANTED_EVERY
    numbers = np.arange(first, memory.num_chunks, PLANTED_EVERY)
    count = min(QUESTIONS, len(numbers))
    return [int(number) for number in rng.choice(numbers, count, replace=False)]


def ask(memory: KVMemory, stream: Stream, numbers: Sequence[int]) -> tuple[float, float]:
    """The share of chunks that are found first by their code and can be brought; milliseconds of a
    search.
    """
    index, hits, spent = memory.index, 0, 0.0
    assert index is not None
    for number in numbers:
        started = time.perf_counter()
        scores = index.search(stream.code_of(number)[None, None], limit=8)
        spent += time.perf_counter() - started
        best = index.first_chunk + int(scores[0].argmax())
        hits += best == number and memory.get([best])[0].index == number
    return hits / max(1, len(numbers)), 1000 * spent / max(1, len(numbers))


def watch(
    name: str,
    memory: KVMemory,
    folder: Path | None,
    num_chunks: int,
    minutes: float,
    num_readings: int,
    budget: str,
) -> Run:
    """Until there are so many chunks, or the time is up."""
    stream, rng = Stream(seed=0), np.random.default_rng(0)
    readings: list[Reading] = []
    until = time.monotonic() + 60 * minutes
    last, spent, last_chunks = time.monotonic(), 0.0, 0
    ended = ""
    for start in range(0, num_chunks, BATCH):
        chunks = [stream.chunk(index) for index in range(start, start + BATCH)]
        started = time.perf_counter()
        try:
            memory.append_all(chunks)
        except ValueError as error:
            ended = str(error)
            break
        spent += time.perf_counter() - started
        is_over = time.monotonic() >= until or start + BATCH >= num_chunks
        is_due = memory.num_chunks - last_chunks >= num_chunks / num_readings
        if is_due or is_over or time.monotonic() - last >= 60 * minutes / num_readings:
            recall, search_ms = ask(memory, stream, planted(memory, rng))
            count = memory.num_chunks - last_chunks
            readings.append(read(memory, folder, 1000 * spent / count, search_ms, recall))
            last, spent, last_chunks = time.monotonic(), 0.0, memory.num_chunks
        if is_over:
            break
    memory.check_integrity()
    return Run(name, budget, readings, ended)


def read(
    memory: KVMemory, folder: Path | None, ms_per_chunk: float, search_ms: float, recall: float
) -> Reading:
    files = [path for path in folder.rglob("*") if path.is_file()] if folder else []
    counts = memory.counts()
    return Reading(
        chunks=memory.num_chunks,
        days=memory.num_chunks * CHUNK_SECONDS / 86400,
        first_chunk=memory.first_chunk,
        rss_mib=resident_bytes() / MIB,
        disk_mib=sum(path.stat().st_size for path in files) / MIB,
        counted_mib=(
            counts.disk_bytes if folder else memory.host_reserved_bytes + memory.search_bytes
        )
        / MIB,
        open_files=len(list(Path("/proc/self/fd").iterdir())),
        ms_per_chunk=ms_per_chunk,
        search_ms=search_ms,
        recall_at_1=recall,
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(
    days: float, minutes: float, host_mib: float, disk_mib: float, num_readings: int, folder: Path
) -> list[Run]:
    """With a folder, then without one, each for half of the time."""
    num_chunks = round(days * 86400 / CHUNK_SECONDS / BATCH) * BATCH
    config = MemoryConfig(host_bytes=int(host_mib * MIB), disk_bytes=int(disk_mib * MIB))
    device = torch.device("cpu")
    kind = Kind("made up", "bfloat16", LAYERS, KV_HEADS, HEAD_DIM)
    store = SessionStore(folder / "s", kind, {}, config.disk_bytes, config.window_chunks)
    memory = KVMemory(config, device, store, HeadIndex(1, HEAD_DIM, torch.bfloat16))
    budget = f"host {host_mib:g} MiB, disk {disk_mib:g} MiB"
    runs = [
        watch("with a folder", memory, folder / "s", num_chunks, minutes / 2, num_readings, budget)
    ]
    store.check_integrity()
    memory.close()
    memory = KVMemory(config, device, index=HeadIndex(1, HEAD_DIM, torch.bfloat16))
    budget = f"host {host_mib:g} MiB"
    runs.append(
        watch("without a folder", memory, None, num_chunks, minutes / 2, num_readings, budget)
    )
    memory.close()
    return runs


def report(runs: Sequence[Run]) -> list[str]:
    lines: list[str] = []
    head = [
        "",
        "budget",
        "chunks",
        "days",
        "forgotten",
        "RSS",
        "on disk",
        "open files",
        "ms a chunk",
        "recall@1 before",
        "recall@1 after",
        "ended",
    ]
    rows = []
    for one in runs:
        last = one.readings[-1]
        rows.append(
            [
                one.name,
                one.budget,
                f"{last.chunks:,}",
                f"{last.days:.1f}",
                f"{last.first_chunk:,}",
                told(one, last.rss_mib, lambda r: r.rss_mib),
                told(one, last.disk_mib, lambda r: r.disk_mib),
                f"{last.open_files} ({max(r.open_files for r in one.readings)} at most)",
                f"{last.ms_per_chunk:.2f} ({one.growth(lambda r: r.ms_per_chunk):+.1%})",
                f"{one.recall(evicted=False):.3f}",
                f"{one.recall(evicted=True):.3f}",
                one.ended or "never",
            ]
        )
    lines += [*table(head, rows), ""]
    for one in runs:
        lines += [f"## {one.name}", ""]
        head = [
            "days",
            "chunks",
            "first there",
            "RSS MiB",
            "disk MiB",
            "counted MiB",
            "files",
            "ms a chunk",
            "search ms",
            "recall@1",
        ]
        step = max(1, len(one.readings) // 12)
        rows = [
            [
                f"{r.days:.1f}",
                f"{r.chunks:,}",
                f"{r.first_chunk:,}",
                f"{r.rss_mib:.0f}",
                f"{r.disk_mib:.1f}",
                f"{r.counted_mib:.1f}",
                f"{r.open_files}",
                f"{r.ms_per_chunk:.2f}",
                f"{r.search_ms:.1f}",
                f"{r.recall_at_1:.3f}",
            ]
            for r in one.readings[::-step][::-1]
        ]
        lines += [*table(head, rows), ""]
    lines.append(
        "In brackets: growth over the last half of the readings, by a fitted line, as a "
        "share of the mean. On disk is "
        "all of the folder, SQLite's log included; counted is what the budget is compared "
        "with. Recall@1 counts "
        "chunks with a code that are remembered: the search has them first and they can be "
        "brought. Milliseconds "
        f"are of appending, {BATCH} chunks at a time, with everything flushed."
    )
    return lines


def told(one: Run, value: float, quantity: Callable[[Reading], float]) -> str:
    return f"{value:.1f} MiB ({one.growth(quantity):+.1%})"


def main(
    days: Annotated[float, typer.Option(help="Length of the stream at most.")] = 30.0,
    minutes: Annotated[
        float, typer.Option(help="Time to take at most, for both ways together.")
    ] = 10.0,
    host_mib: Annotated[float, typer.Option(help="Budget of the host.")] = 16.0,
    disk_mib: Annotated[float, typer.Option(help="Budget of the folder.")] = 12.0,
    readings: Annotated[int, typer.Option(help="How many readings of each way.", min=4)] = 60,
    place: Annotated[
        Path | None, typer.Option(help="Where the session's folder goes; a temporary one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the results go, without a suffix.")] = RESULTS
    / "endless",
) -> None:
    """Watch for a month, and say what grew."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    with TemporaryDirectory(dir=place) as folder:
        runs = run(days, minutes, host_mib, disk_mib, readings, Path(folder))
    lines = report(runs)
    data = {"runs": [asdict(one) for one in runs]}
    about = {**describe(), "folder": "in memory" if place == Path("/dev/shm") else "on a disk"}
    save(out, "A stream that does not end", about, lines, data)
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
