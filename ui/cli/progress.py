"""How far watching has come: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from streaming.events import Stats
from ui.cli.console import say, stderr
from ui.render import clock

LINE_SECONDS = 10.0
STOPPING = "stopping after the chunk under way; Ctrl-C again quits"


class WatchProgress(Protocol):
    """What watching tells its progress to."""

    def update(self, pts_seconds: float, stats: Stats) -> None:
        """The video has been seen up to `pts_seconds`."""
        ...

    def stopping(self) -> None:
        """Ctrl-C was pressed."""
        ...


class Pace:
    """How fast watching goes: video seconds per second, and the time left."""

    def __init__(self, start_seconds: float, stop_seconds: float | None) -> None:
        """stop_seconds: where watching will end, None if that is unknown."""
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._began = time.monotonic()

    def text(self, pts_seconds: float) -> str:
        """ "0:24 of 10:00, 12.3x realtime, 0:46 left" """
        stop_seconds = self._stop_seconds
        elapsed = max(time.monotonic() - self._began, 1e-3)
        speed = max(pts_seconds - self._start_seconds, 0.0) / elapsed
        total = "" if stop_seconds is None else f" of {clock(stop_seconds)}"
        words = [f"{clock(pts_seconds)}{total}", f"{speed:.1f}x realtime"]
        if stop_seconds is not None and speed > 0:
            words.append(f"{clock(max(stop_seconds - pts_seconds, 0.0) / speed)} left")
        return ", ".join(words)


class Lines:
    """A line every ten seconds, for output that goes to a file or another program."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._last = time.monotonic()

    def update(self, pts_seconds: float, stats: Stats) -> None:
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            say(f"watching: {self._pace.text(pts_seconds)}, {counters(stats)}")

    def stopping(self) -> None:
        say(STOPPING)


class Bar:
    """A bar on a terminal."""

    def __init__(self, pace: Pace, bar: Progress, stop_seconds: float | None) -> None:
        self._pace = pace
        self._bar = bar
        self._task = bar.add_task("", total=stop_seconds)
        self._is_stopping = False

    def update(self, pts_seconds: float, stats: Stats) -> None:
        if not self._is_stopping:
            text = f"{self._pace.text(pts_seconds)}, {counters(stats)}"
            self._bar.update(self._task, completed=pts_seconds, description=text)

    def stopping(self) -> None:
        self._is_stopping = True
        self._bar.update(self._task, description=STOPPING)


@contextmanager
def watch_progress(start_seconds: float, stop_seconds: float | None) -> Iterator[WatchProgress]:
    """Shows how watching goes from a second of the video to another, if that is known."""
    pace = Pace(start_seconds, stop_seconds)
    if not stderr.is_terminal:
        yield Lines(pace)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("watching"),
        BarColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        yield Bar(pace, bar, stop_seconds)


@contextmanager
def counted_progress(verb: str, total: int) -> Iterator[Progress]:
    """A bar with one task of `total` steps; nothing where there is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    disable = not stderr.is_terminal
    with Progress(*columns, console=stderr, transient=True, disable=disable) as bar:
        bar.add_task("", total=total)
        yield bar


def counters(stats: Stats) -> str:
    return f"{stats.chunks} chunks, {stats.tokens:,} tokens"
