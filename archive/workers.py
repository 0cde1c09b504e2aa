"""Runs videos in processes of their own, so that a crash in a decoder costs one video.

A worker that dies is replaced. Its video is tried once more, then given up with a reason. Knows
nothing of what a video is: it hands tasks to a function and results back.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch


class Task(Protocol):
    """Something to be done by name."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Update:
    """What a worker says of a task on the way, or at its end.

    is_end: nothing follows. reason: why the task failed, one sentence; empty if it did not.
    num_crashes: processes that this task has ended.
    """

    name: str
    value: Any = None
    is_end: bool = False
    reason: str = ""
    num_crashes: int = 0


Run = Callable[[Any, Task], Iterator[Any]]  # (what a worker has made once, a task): values


def run_tasks(
    tasks: Sequence[Task],
    make: Callable[[], Any],
    run: Run,
    num_workers: int,
    max_attempts: int,
    on_begin: Callable[[str], None],
) -> Iterator[Update]:
    """Yields what the tasks say, as it comes. `make` and `run` are called in the workers, and must
    be importable there. on_begin: called with a task's name before a worker gets it.

    Closing the iterator ends the workers.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(tasks)
    crashes = {task.name: 0 for task in tasks}
    workers = [_Worker(context, make, run) for _ in range(min(num_workers, len(tasks)))]
    try:
        while waiting or any(worker.task for worker in workers):
            for worker in workers:
                if worker.task is None and waiting:
                    on_begin(waiting[0].name)
                    worker.give(waiting.popleft())
            ready = wait([worker.connection for worker in workers if worker.task])
            for number, worker in enumerate(workers):
                if worker.connection not in ready:
                    continue
                task = worker.task
                assert task is not None
                try:
                    update: Update = worker.connection.recv()
                except (EOFError, ConnectionError):
                    workers[number] = _Worker(context, make, run)
                    worker.end()
                    crashes[task.name] += 1
                    if crashes[task.name] < max_attempts:
                        waiting.append(task)
                        continue
                    times = crashes[task.name]
                    update = Update(
                        task.name,
                        is_end=True,
                        reason=f"it ended its process {times} times ({worker.exit_words()})",
                        num_crashes=times,
                    )
                if update.is_end:
                    worker.task = None
                yield update
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One process, with the task that it has."""

    def __init__(self, context: Any, make: Callable[[], Any], run: Run) -> None:
        self.task: Task | None = None
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, make, run), daemon=True)
        self._process.start()
        other.close()  # so that the end of the process is the end of the pipe

    def give(self, task: Task) -> None:
        self.task = task
        with suppress(BrokenPipeError, ConnectionError):  # it is dead; receiving says so
            self.connection.send(task)

    def end(self) -> None:
        self.task = None
        if self._process.is_alive():
            self._process.terminate()
        self._process.join()
        self.connection.close()

    def exit_words(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"signal {signal.Signals(-code).name}"
        return f"exit code {code}"


def _work(connection: Connection, make: Callable[[], Any], run: Run) -> None:
    """The process: one task after the other, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)  # two threads a worker on a busy machine take many times as long
    made = make()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            for value in run(made, task):
                connection.send(Update(task.name, value))
            connection.send(Update(task.name, is_end=True))
        except BrokenPipeError:
            return
        except Exception as error:  # noqa: BLE001  a row of the result, with its reason
            connection.send(Update(task.name, is_end=True, reason=_reason(error)))


def _reason(error: Exception) -> str:
    words = str(error).strip().splitlines() or [""]
    return words[0] if isinstance(error, ValueError) else f"{type(error).__name__}: {words[0]}"
