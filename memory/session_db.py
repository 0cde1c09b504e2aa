"""The SQLite file of a session: its tables, facts and dialogue under checksums, what is refused.

A stranger may have made the file. It has exactly the tables below and nothing else: no views or
triggers, which could compute without an end. Knows nothing of keys and values.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sqlite3
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from memory.timeline import GAP, OPEN_GAP, TIE, is_gap, is_open_gap, is_tie

FORMAT = "5"
BUSY_SECONDS = (
    30.0  # a reader's turn of dialogue and the writer's chunk wait so long for each other
)
MAX_ROW_BYTES = 64 << 20  # index keys of a chunk have 2 MB with a large model
PAGE_BYTES = 4096  # SQLite's
LOG_SHARE = 16  # the log is written back when it has this part of the budget, or MAX_LOG_PAGES
MIN_LOG_PAGES, MAX_LOG_PAGES = 16, 1000  # the latter is SQLite's default
MAX_SIZE = 1 << 20  # of each of a model's sizes
SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER)",
    "CREATE TABLE chunks (number INTEGER PRIMARY KEY, start_seconds REAL, stop_seconds REAL,"
    " num_frames INTEGER, watch_seconds REAL, extent INTEGER, thumb_bytes INTEGER,"
    " group_starts BLOB, places BLOB, positions BLOB, visual BLOB, checksum INTEGER)",
    "CREATE TABLE index_keys (number INTEGER PRIMARY KEY, data BLOB, checksum INTEGER)",
    "CREATE TABLE keyframes (number INTEGER PRIMARY KEY, chunk INTEGER, pts_seconds REAL,"
    " kind TEXT, picture BLOB, picture_checksum INTEGER, checksum INTEGER)",
    "CREATE TABLE turns (number INTEGER PRIMARY KEY, question TEXT, answer TEXT, checksum INTEGER)",
)
OLDER_FACTS = "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)"  # up to format 3
DTYPES = ("float64", "float32", "bfloat16", "float16")
KV_BITS = ("16", "8")
REQUIRED_FACTS = (
    "format",
    "settings",
    "kv_bits",
    "model_id",
    "dtype",
    "layers",
    "kv_heads",
    "head_dim",
)


KeyframeRow = tuple[int, float, str]  # chunk, pts_seconds, kind


class DamagedDatabaseError(ValueError):
    """What the database says cannot be; the message ends the sentence "FOLDER is damaged: "."""


class ForeignDatabaseError(ValueError):
    """The database is not one of this format; the message ends a sentence about its folder."""


class OtherFormatError(ForeignDatabaseError):
    """It is a session of another longlook."""

    def __init__(self, found: object) -> None:
        super().__init__(f"is of format {found}, and this longlook reads format {FORMAT}")


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Opens the file, whose folder `memory/plain_files.py` has checked; a query reads it first.

    mode: as in an SQLite URI, with what may follow it there.
    """
    uri = f"file:{quote(str(path))}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    db.execute("PRAGMA synchronous = FULL")
    return db


def connect_read_only(path: Path) -> sqlite3.Connection:
    """For questions, which are kept where that is possible.

    SQLite reads a write-ahead log with the help of a file beside it, which it makes. On a medium
    that cannot be written it needs to be told that nothing will change, and where a log was left
    behind by a kill that would not be true: then the file beside it has to be there.
    """
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return connect(path, "rw")
    log = path.with_name(f"{path.name}-wal")
    has_log = log.exists() and log.stat().st_size > 0
    return connect(path, "ro" if has_log else "ro&immutable=1")


def log_bytes(budget_bytes: int) -> int:
    """What the write-ahead log may take of a folder's budget."""
    return min(budget_bytes // LOG_SHARE, MAX_LOG_PAGES * PAGE_BYTES)


def limit_log(db: sqlite3.Connection, budget_bytes: int) -> None:
    """Keeps the write-ahead log within its part of the folder's budget, see `log_bytes`."""
    pages = max(MIN_LOG_PAGES, log_bytes(budget_bytes) // PAGE_BYTES)
    db.execute(f"PRAGMA wal_autocheckpoint = {pages}")
    db.execute(f"PRAGMA journal_size_limit = {pages * PAGE_BYTES}")


def has_session(db: sqlite3.Connection) -> bool:
    """False for an empty database. Raises ForeignDatabaseError for what is not of this longlook."""
    found = _objects(db)
    if not found or found == _expected_objects():
        return bool(found)
    is_plain = all(kind == "table" or (kind == "index" and sql is None) for kind, _, sql in found)
    has_facts = any(("table", "facts", facts) in found for facts in (OLDER_FACTS, SCHEMA[0]))
    if is_plain and has_facts:
        row = db.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()
        if row is not None and row[0] != FORMAT:
            raise OtherFormatError(row[0])
    raise ForeignDatabaseError("has a database that is not of longlook")


def create_tables(db: sqlite3.Connection, facts: Mapping[str, str]) -> None:
    """In one transaction, so that a folder is a session or is none."""
    db.execute("PRAGMA journal_mode = MEMORY")  # no rollback journal in the folder, not even now
    db.execute("PRAGMA journal_mode = WAL")
    with db:
        db.execute("BEGIN")
        for command in SCHEMA:
            db.execute(command)
        for name, value in facts.items():
            set_fact(db, name, value)
    # The file is a session by itself from now on, also where its log is lost.
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def set_fact(db: sqlite3.Connection, name: str, value: str) -> None:
    row = (name, value, text_checksum(name, value))
    db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", row)


def delete_fact(db: sqlite3.Connection, name: str) -> None:
    db.execute("DELETE FROM facts WHERE name = ?", (name,))


def read_facts(db: sqlite3.Connection) -> dict[str, str]:
    """All facts. Raises DamagedDatabaseError where one has changed, is missing or cannot be."""
    facts: dict[str, str] = {}
    for name, value, checksum in db.execute("SELECT name, value, checksum FROM facts"):
        if not _are_texts(name, value) or text_checksum(name, value) != checksum:
            raise DamagedDatabaseError(f"the fact {str(name)!a} has changed")
        facts[name] = value
    _check_facts(facts)
    return facts


def add_turn(db: sqlite3.Connection, question: str, answer: str) -> None:
    row = (question, answer, text_checksum(question, answer))
    db.execute("INSERT INTO turns (question, answer, checksum) VALUES (?, ?, ?)", row)


def read_turns(db: sqlite3.Connection) -> list[tuple[str, str]]:
    """Questions and answers in order. Raises DamagedDatabaseError where one has changed."""
    turns: list[tuple[str, str]] = []
    rows = db.execute("SELECT number, question, answer, checksum FROM turns ORDER BY number")
    for expected, (number, question, answer, checksum) in enumerate(rows, 1):
        if number != expected:
            raise DamagedDatabaseError(f"answer {expected} of the dialogue is missing")
        if not _are_texts(question, answer) or text_checksum(question, answer) != checksum:
            raise DamagedDatabaseError(f"answer {number} of the dialogue has changed")
        turns.append((question, answer))
    return turns


def add_keyframe(db: sqlite3.Connection, keyframe: KeyframeRow, picture: bytes) -> int:
    """The number of the row."""
    picture_checksum = zlib.crc32(picture)
    checksum = text_checksum(*map(repr, (*keyframe, len(picture), picture_checksum)))
    row = (*keyframe, picture, picture_checksum, checksum)
    cursor = db.execute(
        "INSERT INTO keyframes (chunk, pts_seconds, kind, picture, picture_checksum, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        row,
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def read_keyframes(db: sqlite3.Connection, first_chunk: int) -> list[tuple[int, KeyframeRow, int]]:
    """Number, row and bytes of the picture of those kept with chunks from `first_chunk` on, in
    order. Raises DamagedDatabaseError where one has changed or cannot be.
    """
    found: list[tuple[int, KeyframeRow, int]] = []
    rows = db.execute(
        "SELECT number, chunk, pts_seconds, kind, typeof(picture), length(picture),"
        " picture_checksum, checksum FROM keyframes WHERE chunk >= ? ORDER BY number",
        (first_chunk,),
    )
    for number, chunk, pts_seconds, kind, holds, num_bytes, picture_checksum, checksum in rows:
        row = (chunk, pts_seconds, kind)
        wanted = text_checksum(*map(repr, (*row, num_bytes, picture_checksum)))
        if holds != "blob" or wanted != checksum:
            raise DamagedDatabaseError(f"keyframe {number} has changed")
        if type(chunk) is not int or type(pts_seconds) is not float or not _is_time(pts_seconds):
            raise DamagedDatabaseError(f"keyframe {number} cannot be")
        found.append((number, row, num_bytes))
    return found


def read_keyframe_picture(db: sqlite3.Connection, number: int) -> bytes | None:
    """A JPEG; None where it has gone or changed."""
    row = db.execute(
        "SELECT picture, picture_checksum FROM keyframes WHERE number = ?", (number,)
    ).fetchone()
    if row is None or not isinstance(row[0], bytes) or zlib.crc32(row[0]) != row[1]:
        return None
    return row[0]


def text_checksum(*texts: str) -> int:
    """CRC-32 of texts, which may not be taken for others with the same letters."""
    return zlib.crc32(json.dumps(texts).encode())


def _objects(db: sqlite3.Connection) -> set[tuple[str, str, str | None]]:
    return set(db.execute("SELECT type, name, sql FROM sqlite_master"))


@functools.cache
def _expected_objects() -> set[tuple[str, str, str | None]]:
    """As SQLite writes the schema down, with the indexes that it makes by itself."""
    db = sqlite3.connect(":memory:")
    for command in SCHEMA:
        db.execute(command)
    found = _objects(db)
    db.close()
    return found


def _are_texts(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _check_facts(facts: Mapping[str, str]) -> None:
    for name in REQUIRED_FACTS:
        if name not in facts:
            raise DamagedDatabaseError(f"the fact {name!r} is missing")
    checks: dict[str, Callable[[str], bool]] = {
        "dtype": lambda value: value in DTYPES,
        "kv_bits": lambda value: value in KV_BITS,
        "layers": _is_size,
        "kv_heads": _is_size,
        "head_dim": _is_size,
        "settings": _are_settings,
        "seen seconds": lambda value: _is_time(float(value)),
        "still since": _is_still_since,
        "watched": _is_watched,
        OPEN_GAP: is_open_gap,
        "fingerprint": _is_fingerprint,
    }
    for name, value in facts.items():
        check = checks.get(name) or _check_of_numbered(name)
        if check is not None and not _holds(check, value):
            raise DamagedDatabaseError(f"the fact {name!a} cannot be")


def _check_of_numbered(name: str) -> Callable[[str], bool] | None:
    """Of facts of which there are several."""
    if name.startswith("first "):
        return _is_count
    for prefix, check in ((GAP, is_gap), (TIE, is_tie)):
        if name.startswith(prefix):
            return check if name.removeprefix(prefix).isdecimal() else _never
    return None


def _never(value: str) -> bool:
    return False


def _holds(check: Callable[[str], bool], value: str) -> bool:
    try:
        return check(value)
    except (ValueError, TypeError, RecursionError):  # no number, no JSON, or another shape of it
        return False


def _is_size(value: str) -> bool:
    return 1 <= int(value) <= MAX_SIZE


def _is_count(value: str) -> bool:
    return int(value) >= 0


def _is_time(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds >= 0


def _are_settings(value: str) -> bool:
    """A JSON object of plain values; which knobs there are is for `Config` to say."""
    settings = json.loads(value)
    return isinstance(settings, dict) and _is_plain(settings)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(inner) for inner in value.values())
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 63)


def _is_still_since(value: str) -> bool:
    chunks, frames, seconds = json.loads(value)
    return type(chunks) is type(frames) is int and min(chunks, frames) >= 0 and _is_time(seconds)


def _is_fingerprint(value: str) -> bool:
    digest, num_bytes = json.loads(value)
    return isinstance(digest, str) and type(num_bytes) is int and num_bytes >= 0


def _is_watched(value: str) -> bool:
    frames, seconds = json.loads(value)
    return type(frames) is int and frames >= 0 and _is_time(seconds)
