"""Captions an archive: the plan, the workers, the ledger, and the results at the end.

    OUT/ledger.sqlite          which videos are done, failed (and why) or waiting
    OUT/parts/KEY.jsonl        the segments of one finished video, a line each
    OUT/parts/KEY.part.jsonl   the same while it is under way; taken up again after a kill
    OUT/thumbnails/KEY/        a picture of every segment
    OUT/captions.jsonl ...     all of them, written anew from the parts at every end

KEY is made of the video's content and the settings, so a video is captioned again exactly when one
of these changed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from archive.export import write_results
from archive.ledger import MAX_ATTEMPTS, Entry, Ledger
from archive.manifest import Video, content_id, shard_of
from archive.runner import Journal, caption_video
from archive.settings import CaptionSettings
from archive.workers import Task, Update, run_tasks
from streaming.engine import Engine, load_engine


@dataclass(frozen=True)
class ModelChoice:
    """Which model every worker loads, and the knobs that were turned."""

    model: str
    device: str
    dtype: str
    settings: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class CaptionTask:
    """One video for a worker."""

    name: str
    path: str
    key: str
    folder: str
    settings: CaptionSettings


@dataclass(frozen=True)
class Progress:
    """One video has come further, or has ended. The seconds are of video."""

    name: str
    segments: int
    seconds: float
    is_done: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Summary:
    """What became of an archive."""

    done: int
    failed: int
    waiting: int
    segments: int
    seconds: float


class Archive:
    """One output folder. Use it in a `with`; raises LonglookError where the folder is taken."""

    def __init__(
        self,
        folder: Path,
        settings: CaptionSettings,
        model: ModelChoice,
        fingerprint: str,
        formats: Sequence[str],
    ) -> None:
        """fingerprint: of settings, model and configuration. formats: see `archive/export.py`."""
        self._folder = folder
        self._settings = settings
        self._model = model
        self._fingerprint = fingerprint
        self._formats = tuple(formats)
        self._ledger = Ledger(folder)
        (folder / "parts").mkdir(exist_ok=True)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.close()

    def plan(self, videos: Sequence[Video], shard: tuple[int, int] = (0, 1)) -> list[Entry]:
        """Takes up the videos; gives those that are to be done. shard: number and count, of
        machines that share an archive.
        """
        entries = [self._entry(video) for video in videos]
        number, count = shard
        if count > 1:
            entries = [entry for entry in entries if shard_of(entry.content, count) == number]
        waiting = self._ledger.plan(entries)
        for entry in waiting:
            if not entry.content:
                self._ledger.fail(entry.name, entry.reason)
        return [entry for entry in waiting if entry.content]

    def run(
        self,
        entries: Sequence[Entry],
        num_workers: int,
        make: Callable[[], Any] | None = None,
    ) -> Iterator[Progress]:
        """Captions the videos; yields how each comes on. Closing the iterator stops the workers,
        and what is finished by then stays.

        make: gives a worker its engine; None: loads the model.
        """
        tasks = [
            CaptionTask(entry.name, entry.path, entry.key, str(self._folder), self._settings)
            for entry in entries
        ]
        make = make or partial(load_worker_engine, self._model)
        seen: dict[str, tuple[int, float]] = {}
        updates = run_tasks(
            tasks, make, caption_task, num_workers, MAX_ATTEMPTS, self._ledger.begin
        )
        try:
            for update in updates:
                yield self._take(update, seen)
        except GeneratorExit:
            for entry in entries:
                self._ledger.progress(entry.name)  # stopped on purpose: no fault of the video
            raise

    def _take(self, update: Update, seen: dict[str, tuple[int, float]]) -> Progress:
        if not update.is_end:
            seen[update.name] = update.value
            self._ledger.progress(update.name)
            return Progress(update.name, *update.value)
        segments, seconds = seen.get(update.name, (0, 0.0))
        if update.reason:
            self._ledger.fail(update.name, update.reason)
        else:
            self._ledger.finish(update.name, segments, seconds)
        return Progress(update.name, segments, seconds, True, update.reason)

    def write(self) -> list[Path]:
        """Writes the results of all finished videos; gives the files."""
        return write_results(self._folder, self._ledger.entries(), self._formats)

    def summary(self) -> Summary:
        """What has become of all videos."""
        entries = self._ledger.entries()
        count = {status: sum(e.status == status for e in entries) for status in ("done", "failed")}
        return Summary(
            count["done"],
            count["failed"],
            len(entries) - sum(count.values()),
            sum(entry.segments for entry in entries),
            sum(entry.seconds for entry in entries),
        )

    def failures(self) -> list[Entry]:
        """The videos that failed, with their reasons."""
        return [entry for entry in self._ledger.entries() if entry.status == "failed"]

    def _entry(self, video: Video) -> Entry:
        try:
            content, reason = content_id(video.path), ""
        except OSError as error:
            content, reason = "", f"{video.path} cannot be read: {error.strerror}."
        return Entry(
            video.name, str(video.path.absolute()), content, self._fingerprint, reason=reason
        )


def load_worker_engine(choice: ModelChoice) -> Engine:
    """The engine of one worker process."""
    return load_engine(choice.model, choice.device, choice.dtype, choice.settings)


def caption_task(engine: Engine, task: Task) -> Iterator[tuple[int, float]]:
    """Captions one video in a worker; yields segments and seconds so far. The finished part is
    published by its name at once.
    """
    assert isinstance(task, CaptionTask)
    parts = Path(task.folder) / "parts"
    # A worker whose driver was killed may still be at its last batch: wait for its end.
    with (parts / f"{task.key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield from _caption(engine, task, parts)


def _caption(engine: Engine, task: CaptionTask, parts: Path) -> Iterator[tuple[int, float]]:
    under_way, finished = parts / f"{task.key}.part.jsonl", parts / f"{task.key}.jsonl"
    if finished.exists():  # another name for the same content
        rows = [json.loads(line) for line in finished.read_text(encoding="utf-8").splitlines()]
        yield len(rows), rows[-1]["stop_seconds"]
        return
    thumbnails = Path(task.folder) / "thumbnails" / task.key
    journal = Journal(under_way)
    num_segments = 0
    for rows in caption_video(engine, Path(task.path), task.settings, journal, thumbnails):
        num_segments += len(rows)
        yield num_segments, rows[-1]["stop_seconds"]
    os.replace(under_way, finished)  # noqa: PTH105  atomic, and says so
