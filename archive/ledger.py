"""Which videos of an output folder are done: one SQLite file, owned by the process that drives.

An attempt is counted before a video begins, so that one which ends its worker is noticed.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from errors import LonglookError

MAX_ATTEMPTS = 2  # that may end their process, before a video is given up
Status = Literal["waiting", "done", "failed"]
_TABLE = """CREATE TABLE IF NOT EXISTS videos (
    name TEXT NOT NULL, path TEXT NOT NULL, content TEXT NOT NULL, settings TEXT NOT NULL,
    status TEXT NOT NULL, attempts INTEGER NOT NULL, reason TEXT NOT NULL,
    segments INTEGER NOT NULL, seconds REAL NOT NULL, place INTEGER NOT NULL,
    PRIMARY KEY (name))"""
_ALL = (
    "SELECT name, path, content, settings, status, attempts, reason, segments, seconds "
    "FROM videos ORDER BY place"
)


@dataclass(frozen=True)
class Entry:
    """One video of the archive. content: tells its bytes from others'; empty if they can't be
    read. attempts: that began and did not end. seconds: how much video was captioned.
    """

    name: str
    path: str
    content: str
    settings: str
    status: Status = "waiting"
    attempts: int = 0
    reason: str = ""
    segments: int = 0
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """Names the video's files: the same content with the same settings has the same."""
        return f"{self.content}-{self.settings}"


def read_entries(folder: Path) -> list[Entry]:
    """All videos of an output folder, which another process may be writing.

    Raises LonglookError where there is no archive.
    """
    path = folder / "ledger.sqlite"
    if not path.is_file():
        raise LonglookError(f"There are no captions in {folder}.")
    try:
        db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
        try:
            return [Entry(*row) for row in db.execute(_ALL)]
        finally:
            db.close()
    except sqlite3.Error as error:
        raise LonglookError(f"{path} cannot be used: {error}.") from error


class Ledger:
    """The table of one output folder; locked while open.

    Raises LonglookError if another process has it, or if it can't be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise LonglookError(f"{folder} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise LonglookError(f"{folder} is being written by another process.") from error
        self._db = sqlite3.connect(folder / "ledger.sqlite")
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(_TABLE)
            self._db.commit()
        except sqlite3.Error as error:
            self.close()
            raise LonglookError(f"{folder}/ledger.sqlite cannot be used: {error}.") from error

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()
        self._lock.close()

    def plan(self, entries: Sequence[Entry]) -> list[Entry]:
        """Takes up what is wanted now, in this order; gives what is still to be done. What was
        finished with the same content and settings stays; everything else begins anew.
        """
        known = {entry.name: entry for entry in self.entries()}
        with self._db:
            self._db.execute("DELETE FROM videos")
            for place, entry in enumerate(entries):
                old = known.get(entry.name)
                is_same = old is not None and old.key == entry.key
                kept = old if is_same and old is not None and old.status != "failed" else entry
                self._put(kept, place)
        for entry in self.entries():
            if entry.status == "waiting" and entry.attempts >= MAX_ATTEMPTS:
                self.fail(
                    entry.name,
                    "its process ended twice before any of it was done",
                )
        return [entry for entry in self.entries() if entry.status == "waiting"]

    def begin(self, name: str) -> None:
        """Counts an attempt."""
        with self._db:
            self._db.execute("UPDATE videos SET attempts = attempts + 1 WHERE name = ?", (name,))

    def progress(self, name: str) -> None:
        """Something of the video is safe, or it was left in peace: its attempts are forgotten."""
        with self._db:
            self._db.execute("UPDATE videos SET attempts = 0 WHERE name = ?", (name,))

    def finish(self, name: str, segments: int, seconds: float) -> None:
        """A video is done; its results are on the disk."""
        with self._db:
            self._db.execute(
                "UPDATE videos SET status = 'done', attempts = 0, reason = '', segments = ?, "
                "seconds = ? WHERE name = ?",
                (segments, seconds, name),
            )

    def fail(self, name: str, reason: str) -> None:
        """A video is given up, with a sentence why."""
        with self._db:
            self._db.execute(
                "UPDATE videos SET status = 'failed', reason = ? WHERE name = ?", (reason, name)
            )

    def entries(self) -> list[Entry]:
        """All videos in their order."""
        return [Entry(*row) for row in self._db.execute(_ALL)]

    def _put(self, entry: Entry, place: int) -> None:
        self._db.execute(
            "INSERT INTO videos VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.name,
                entry.path,
                entry.content,
                entry.settings,
                entry.status,
                entry.attempts,
                entry.reason,
                entry.segments,
                entry.seconds,
                place,
            ),
        )
