"""How many cameras one machine keeps up with, while questions come at random.

    python -m bench.live --cameras 1 --cameras 4 --cameras 16 --seconds 60

The cameras are RTSP servers on this machine, each a process of its own that is not counted. What is
told: lag of what is remembered behind now, dropped frames by reason, time to the first token beside
that of an idle machine, CPU and memory of this process. The target is a lag below 2 s.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from bench.machine import ROOT, describe, save
from bench.report import table
from streaming.engine import Engine, load_engine
from streaming.live_watch import LiveWatch
from streaming.session import Session
from streaming.sources.address import parse_address

RESULTS = ROOT / "bench" / "results"
QUESTION = "What is shown now?"
LAG_EVERY_SECONDS = 0.5
TARGET_LAG_SECONDS = 2.0
WARM_UP_SECONDS = 15.0  # until the last camera is connected


@dataclass
class Samples:
    """What was measured while watching."""

    lags: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)


def main(
    cameras: Annotated[list[int] | None, typer.Option(help="How many at once.")] = None,
    seconds: Annotated[float, typer.Option(help="Of watching, for each number.")] = 60.0,
    questions_per_minute: Annotated[float, typer.Option(help="On average, at random.")] = 10.0,
    scale: Annotated[int, typer.Option(help="Pictures are 160x96 times this.")] = 4,
    model: Annotated[str, typer.Option(help="As for longlook.")] = "demo",
    out: Annotated[Path, typer.Option(help="Where the results go.")] = RESULTS / "live",
) -> None:
    """Measure live watching."""
    rows = [
        measure(model, count, seconds, questions_per_minute, scale)
        for count in cameras or [1, 4, 16]
    ]
    heads = [
        "cameras",
        "lag p50 / p95 s",
        "frames",
        "busy / damaged / stale",
        "first token p50 / p95 ms",
        "idle ms",
        "CPU cores",
        "RSS MB",
    ]
    cells = [
        [
            str(row["cameras"]),
            f"{row['lag_p50']:.2f} / {row['lag_p95']:.2f}",
            str(row["sampled"]),
            f"{row['busy']} / {row['damaged']} / {row['stale']}",
            f"{row['first_p50_ms']:.0f} / {row['first_p95_ms']:.0f}",
            f"{row['idle_ms']:.0f}",
            f"{row['cpu_cores']:.2f}",
            f"{row['rss_mb']:.0f}",
        ]
        for row in rows
    ]
    lines = table(heads, cells)
    about = {**describe(), "model": model, "seconds": seconds, "pictures": f"x{scale}"}
    save(out, "Cameras at once", about, lines, {"rows": rows})
    print("\n".join(lines))


def measure(
    model: str, num_cameras: int, seconds: float, questions_per_minute: float, scale: int
) -> dict[str, Any]:
    with TemporaryDirectory() as folder, ExitStack() as running:
        engine = load_engine(model)
        running.callback(engine.stop)
        watches: list[tuple[LiveWatch, Session]] = []
        for number in range(num_cameras):
            port = running.enter_context(camera(scale))
            session = engine.open(Path(folder) / f"camera{number}")
            running.callback(session.close)
            address = parse_address(f"rtsp://127.0.0.1:{port}/cam")
            watching = engine.watch_live(session, address, f"camera{number}")
            running.callback(watching.join, 60.0)
            running.callback(watching.stop)
            watches.append((watching, session))
        wait_for_all(watches)
        cpu_before = cpu_seconds()
        samples = watch(watches, seconds, questions_per_minute)
        cpu = (cpu_seconds() - cpu_before) / seconds
        healths = [watching.health for watching, _ in watches]
        for watching, _ in watches:
            watching.stop()
            watching.join(60.0)
        idle = [first_token_seconds(engine, watches[0][1]) for _ in range(5)]
    return {
        "cameras": num_cameras,
        "lag_p50": percentile(samples.lags, 50),
        "lag_p95": percentile(samples.lags, 95),
        "keeps_up": percentile(samples.lags, 95) < TARGET_LAG_SECONDS,
        "decoded": sum(health.source.decoded for health in healths),
        "sampled": sum(health.source.sampled for health in healths),
        "busy": sum(health.dropped_busy for health in healths),
        "damaged": sum(health.source.damaged for health in healths),
        "stale": sum(health.source.stale for health in healths),
        "questions": len(samples.first_tokens),
        "first_p50_ms": 1000 * percentile(samples.first_tokens, 50),
        "first_p95_ms": 1000 * percentile(samples.first_tokens, 95),
        "idle_ms": 1000 * percentile(idle, 50),
        "cpu_cores": cpu,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class camera:  # noqa: N801  used like a function, in a `with`
    """A server in a process of its own; gives its port."""

    def __init__(self, scale: int) -> None:
        self._scale = scale

    def __enter__(self) -> int:
        command = [sys.executable, "-m", "tests.servers.rtsp", "--scale", str(self._scale)]
        command += ["--epoch", str(time.monotonic())]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def wait_for_all(watches: list[tuple[LiveWatch, Session]]) -> None:
    """Until every camera has been remembered once; then until questions can be asked at all."""
    stop = time.monotonic() + 10 * WARM_UP_SECONDS
    while time.monotonic() < stop and not all(session.stats.chunks for _, session in watches):
        time.sleep(0.1)


def watch(
    watches: list[tuple[LiveWatch, Session]], seconds: float, questions_per_minute: float
) -> Samples:
    """Samples the lag and asks at random times, one question after the other."""
    samples = Samples()
    draw = random.Random(0)
    stop = time.monotonic() + seconds
    ask_at = time.monotonic() + draw.expovariate(questions_per_minute / 60)
    while time.monotonic() < stop:
        samples.lags += [watching.health.lag_seconds for watching, _ in watches]
        if time.monotonic() >= ask_at:
            _, session = draw.choice(watches)
            started = time.perf_counter()
            answer = session.ask(QUESTION)
            next(answer)
            samples.first_tokens.append(time.perf_counter() - started)
            list(answer)
            ask_at += draw.expovariate(questions_per_minute / 60)
        time.sleep(LAG_EVERY_SECONDS)
    return samples


def first_token_seconds(engine: Engine, session: Session) -> float:
    started = time.perf_counter()
    answer = session.ask(QUESTION)
    next(answer)
    seconds = time.perf_counter() - started
    list(answer)
    return seconds


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else 0.0


if __name__ == "__main__":
    typer.run(main)
