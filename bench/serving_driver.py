"""Drives sessions from many threads and prints what they got, as JSON: the part of `bench.serving`
that runs twice.

    python bench/serving_driver.py TREE

Uses nothing but what every version of the code in TREE offers (`load_engine`, `open`, `watch`,
`ask`), so that two versions can be measured with the same file. Run by `bench.serving`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

QUESTION = "Describe what is shown at 20 seconds."
ANSWERS = (1, 2, 4, 8, 16)
SESSIONS = (1, 4, 16)
ROUNDS = 4  # in which all answers are asked at once; the first warms up
WATCH_SECONDS = 6.0  # of each measurement of watching


def main(tree: str) -> None:
    sys.path.insert(0, tree)
    from streaming.engine import load_engine
    from streaming.sources.file import FileSource

    frames = list(FileSource(Path(tree) / "samples" / "one_minute.mp4", 2.0).frames())
    engine = load_engine("demo", "cpu", settings={"answer": {"max_new_tokens": 64}})
    print(json.dumps({"answers": answers(engine, frames), "watching": watching(engine, frames)}))


def answers(engine: Any, frames: list[Any]) -> list[dict[str, float]]:
    """Pieces per second and times to the first piece with so many answers at once."""
    sessions = [engine.open() for _ in range(max(ANSWERS))]
    for session in sessions:
        list(session.watch(frames, True))
    found = []
    for count in ANSWERS:
        rates, first = [], []
        for _ in range(ROUNDS):
            taken: list[tuple[float, int]] = []
            started = time.perf_counter()
            run_all([partial(ask_into, session, taken) for session in sessions[:count]])
            seconds = time.perf_counter() - started
            rates.append(sum(pieces for _, pieces in taken) / seconds)
            first.append([seconds for seconds, _ in taken])
        firsts = sorted(seconds for of_round in first[1:] for seconds in of_round)
        found.append(
            {
                "answers": count,
                "pieces_per_second": max(rates[1:]),
                "first_p50_ms": 1000 * median(firsts),
                "first_p95_ms": 1000 * firsts[int(0.95 * (len(firsts) - 1))],
            }
        )
    for session in sessions:
        session.close()
    return found


def ask_into(session: Any, taken: list[tuple[float, int]]) -> None:
    taken.append(ask(session))


def ask(session: Any) -> tuple[float, int]:
    """Seconds to the first piece of an answer, and its pieces."""
    started = time.perf_counter()
    first, pieces = 0.0, 0
    for event in session.ask(QUESTION):
        if type(event).__name__ == "AnswerPiece":
            first = first or time.perf_counter() - started
            pieces += 1
    return first, pieces


def watching(engine: Any, frames: list[Any]) -> list[dict[str, float]]:
    """Chunks per second of so many sessions, alone and with an answer always under way."""
    asked = engine.open()
    list(asked.watch(frames, True))
    found = []
    for count in SESSIONS:
        alone = chunk_rate(engine, frames, count, None)
        beside = chunk_rate(engine, frames, count, asked)
        found.append({"sessions": count, "chunks_per_second": alone, "beside_an_answer": beside})
    return found


def chunk_rate(engine: Any, frames: list[Any], count: int, asked: Any) -> float:
    """Chunks per second of all sessions together over a few seconds; asked: a session that answers
    meanwhile.
    """
    stop = threading.Event()
    chunks = [0] * count

    def watch(number: int) -> None:
        while not stop.is_set():
            session = engine.open()
            for event in session.watch(frames, True):
                chunks[number] += type(event).__name__ == "Watched"
                if stop.is_set():
                    break
            session.close()

    threads = [
        threading.Thread(target=watch, args=(number,), daemon=True) for number in range(count)
    ]
    if asked is not None:
        threads.insert(0, threading.Thread(target=ask_on, args=(asked, stop), daemon=True))
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(WATCH_SECONDS)
    seen, seconds = sum(chunks), time.perf_counter() - started
    stop.set()
    for thread in threads:
        thread.join()
    return seen / seconds


def ask_on(session: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        ask(session)


def run_all(work: list[Callable[[], object]]) -> None:
    """All at once, each in a thread of its own."""
    threads = [threading.Thread(target=run, daemon=True) for run in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
