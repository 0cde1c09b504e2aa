"""Session folders that a stranger made: whatever is planted there, files elsewhere stay."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from app import app
from memory.disk_tier import SessionError, SessionStore, open_database
from memory.plain_files import DATABASE
from memory.records import row_checksum
from memory.session_db import OLDER_FACTS, text_checksum
from streaming.events import Answer, AnswerPiece, Stats
from tests.clips import write_clip
from tests.test_bank import make_chunk, tokens_of
from tests.test_store import KIND, PICTURE, keys_for
from tests.tiny import save_tiny

JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
PAGE_BYTES = 4096
LOCK_PAGE = (1 << 30) // PAGE_BYTES + 1
SECRET = b"precious, and long enough to be cut " * 100_000
COMMANDS = ("list", "info", "delete", "ask", "watch")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", 8)


@pytest.fixture(scope="module")
def half_watched(model: str, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of two chunks that can go on; not to be written into."""
    folder = tmp_path_factory.mktemp("sessions") / "half"
    options = ["--model", model, "--chunk-frames", "4", "--max-tokens", "4"]
    result = run("ask", clip, "What?", "--ask-at", 4, "--session", folder, *options)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def folder(half_watched: Path, tmp_path: Path) -> Path:
    """A copy of it, to plant something in."""
    return Path(shutil.copytree(half_watched, tmp_path / "sessions" / "s"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What the user has elsewhere, under the names that a session uses."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("00000000.jpg", "00000002.jpg", "holiday.jpg", "kv-dense-00000000.bin", "lock"):
        (home / name).write_bytes(SECRET)
    shutil.copytree(tmp_path / "home", tmp_path / "untouched")
    return home


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def do(command: str, folder: Path, model: str, clip: Path) -> Result:
    """One of COMMANDS on a session."""
    if command == "list":
        return run("sessions", "list", folder.parent)
    if command == "info":
        return run("sessions", "info", folder)
    if command == "delete":
        return run("sessions", "delete", folder, "--yes")
    if command == "ask":
        return run("ask", "--session", folder, "What?", "--model", model, "--max-tokens", 4)
    return run("watch", clip, "--session", folder, "--model", model)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_unharmed(home: Path) -> bool:
    return content(home) == content(home.parent / "untouched")


def assert_refused(command: str, result: Result) -> None:
    """One sentence, and exit code 2; a list says it and goes on with the other sessions."""
    assert result.exit_code == (0 if command == "list" else 2), result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit | None)
    (sentence,) = (line for line in result.stderr.splitlines() if "cannot be used" in line)
    assert sentence.endswith(".")


# A rollback journal, on which SQLite acts before anything else.


def journal_that_deletes(victim: Path, database: Path) -> bytes:
    """A rollback journal whose super-journal is `victim`, which SQLite deletes afterwards."""
    num_pages = database.stat().st_size // PAGE_BYTES
    header = struct.pack(">8s5I", JOURNAL_MAGIC, 0, 0, num_pages, 512, PAGE_BYTES).ljust(512, b"\0")
    name = os.fsencode(victim)
    return (
        header
        + struct.pack(f">I{len(name)}s2I", LOCK_PAGE, name, len(name), sum(name))
        + JOURNAL_MAGIC
    )


def plant_journal(folder: Path, victim: Path) -> None:
    data = journal_that_deletes(victim, folder / DATABASE)
    (folder / f"{DATABASE}-journal").write_bytes(data)


def test_the_planted_journal_deletes_a_file_where_nothing_guards_it(
    folder: Path, home: Path
) -> None:
    """Negative control of the tests below."""
    plant_journal(folder, home / "holiday.jpg")
    db = sqlite3.connect(folder / DATABASE)
    assert db.execute("SELECT count(*) FROM chunks").fetchone() == (2,)
    db.close()
    assert not (home / "holiday.jpg").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_planted_journal_deletes_nothing(
    folder: Path, home: Path, model: str, clip: Path, command: str
) -> None:
    plant_journal(folder, home / "holiday.jpg")
    result = do(command, folder, model, clip)
    assert is_unharmed(home)
    if command == "watch":  # the journal of a session means nothing, so its writer takes it away
        assert result.exit_code == 0 and not (folder / f"{DATABASE}-journal").exists()
    else:
        assert_refused(command, result)


def test_the_journal_of_another_program_is_left_to_it(tmp_path: Path) -> None:
    """Where the database has no write-ahead log, its journal may be needed to mend it."""
    folder = tmp_path / "s"
    folder.mkdir()
    db = sqlite3.connect(folder / DATABASE)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    journal = folder / f"{DATABASE}-journal"
    journal.write_bytes(b"theirs")
    before = content(folder)
    with pytest.raises(SessionError, match="journal"):
        SessionStore(folder)
    assert content(folder) == {**before, "lock": b""}


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_a_journal_of_any_kind_is_refused(folder: Path, home: Path, kind: str) -> None:
    journal = folder / f"{DATABASE}-journal"
    if kind == "folder":
        journal.mkdir()
    else:
        journal.symlink_to(home / ("holiday.jpg" if kind == "link" else "nothing"))
    with pytest.raises(SessionError, match="cannot be used"):
        SessionStore(folder, read_only=True)
    assert is_unharmed(home)


def test_a_session_never_has_a_journal_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill while it is made could leave one, which readers refuse."""
    seen: list[bool] = []

    def watched(folder: Path, read_only: bool) -> sqlite3.Connection:
        db = open_database(folder, read_only)
        journal = folder / f"{DATABASE}-journal"

        def look() -> int:
            seen.append(journal.exists())
            return 0

        db.set_progress_handler(look, 1)
        return db

    monkeypatch.setattr("memory.disk_tier.open_database", watched)
    SessionStore(tmp_path / "s", KIND, {}).close()
    assert len(seen) > 100 and not any(seen)


# Links and pipes.


def plant_link(name: str, target: str = "") -> Callable[[Path, Path], None]:
    """Puts a link to something in the user's home in place of `name`."""

    def plant(folder: Path, home: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(home / target)

    return plant


def plant_pipe(name: str) -> Callable[[Path, Path], None]:
    def plant(folder: Path, home: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    return plant


PLANTED = {
    "thumbs is a link": plant_link("thumbs"),
    "kv is a link": plant_link("kv-dense-00000000.bin", "kv-dense-00000000.bin"),
    "sparse kv is a link": plant_link("kv-sparse-00000000.bin", "kv-dense-00000000.bin"),
    "kv of a chunk to come is a link": plant_link("kv-dense-00000002.bin", "holiday.jpg"),
    "lock is a link": plant_link("lock", "lock"),
    "lock is a link to nothing": plant_link("lock", "made by a link"),
    "database is a link": plant_link(DATABASE, "holiday.jpg"),
    "wal is a link": plant_link(f"{DATABASE}-wal", "holiday.jpg"),
    "wal is a link to nothing": plant_link(f"{DATABASE}-wal", "made by a link"),
    "shm is a link": plant_link(f"{DATABASE}-shm", "made by a link"),
    "lock is a pipe": plant_pipe("lock"),
    "kv is a pipe": plant_pipe("kv-dense-00000000.bin"),
    "thumbs is a pipe": plant_pipe("thumbs"),
    "database is a pipe": plant_pipe(DATABASE),
    "wal is a pipe": plant_pipe(f"{DATABASE}-wal"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", PLANTED)
def test_links_and_pipes_are_refused_and_not_followed(
    folder: Path, home: Path, model: str, clip: Path, what: str, command: str
) -> None:
    PLANTED[what](folder, home)
    result = do(command, folder, model, clip)
    assert is_unharmed(home)
    assert_refused(command, result)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_a_link_is_refused(
    folder: Path, home: Path, model: str, clip: Path, command: str
) -> None:
    link = home.parent / "links" / "s"
    link.parent.mkdir()
    link.symlink_to(folder)
    before = content_of_session(folder)
    assert_refused(command, do(command, link, model, clip))
    assert content_of_session(folder) == before


def content_of_session(folder: Path) -> dict[str, bytes]:
    """All but what SQLite makes beside a database while it is open."""
    files = {path for path in folder.rglob("*") if path.is_file()}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if "-shm" not in path.name
    }


@pytest.mark.parametrize("number", [2, 3])
def test_a_picture_is_not_written_through_a_link(
    folder: Path, home: Path, model: str, clip: Path, number: int
) -> None:
    """Of a chunk to come: the link goes, the picture is a file of its own, watching goes on."""
    picture = folder / "thumbs" / f"{number:08d}.jpg"
    picture.symlink_to(home / "00000002.jpg")
    result = do("watch", folder, model, clip)
    assert result.exit_code == 0, result.output
    assert is_unharmed(home)
    assert picture.is_file() and not picture.is_symlink()


def test_a_link_that_comes_while_watching_is_not_written_through(folder: Path, home: Path) -> None:
    """After everything was checked: the file itself is opened without following."""
    shutil.rmtree(folder)
    store = SessionStore(folder, KIND, {})
    chunk = make_chunk(0, tokens_of(0))
    for name, target in (("kv-dense-00000000.bin", "kv-dense-00000000.bin"), ("thumbs", "")):
        plant_link(name, target)(folder, home)
        with pytest.raises(SessionError, match="is a link"):
            store.append(chunk, keys_for(chunk), PICTURE, 16, 0.25)
    store.close()
    assert is_unharmed(home)
    (folder / "thumbs").unlink()
    store = SessionStore(folder, KIND, {})
    store.append(chunk, keys_for(chunk), PICTURE, 16, 0.25)
    store.check_integrity()
    store.close()


# Deleting.


def test_deleting_takes_names_of_our_own_and_no_others(
    folder: Path, home: Path, model: str, clip: Path
) -> None:
    others = ("kv-notes.bin", f"{DATABASE}.bak", "film.mp4", "thumbs/holiday.jpg", "thumbs/1.jpg")
    for name in others:
        (folder / name).write_bytes(SECRET)
    (folder / "thumbs" / "00000077.jpg").symlink_to(home / "00000000.jpg")
    (folder / "album").symlink_to(home)
    result = do("delete", folder, model, clip)
    assert result.exit_code == 0, result.output
    left = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.parent.name != "album"
    }
    assert left == {*others, "thumbs", "album"}
    assert is_unharmed(home)


@pytest.mark.parametrize("what", ["a fact is missing", "a record has changed"])
def test_a_damaged_session_can_be_deleted(folder: Path, model: str, clip: Path, what: str) -> None:
    if what == "a fact is missing":
        set_fact(folder, "layers", None)
    else:
        change(folder, "UPDATE chunks SET start_seconds = 5 WHERE number = 0")
    result = do("delete", folder, model, clip)
    assert result.exit_code == 0 and "is damaged" in result.stderr
    assert not folder.exists()


def test_a_session_of_our_own_is_deleted_whole(folder: Path, model: str, clip: Path) -> None:
    assert do("delete", folder, model, clip).exit_code == 0
    assert not folder.exists()


# The database. Everything in it may be as a stranger likes it, checksums included.

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
ROWS = {
    "facts": "'fact ' || x AS name, hex(zeroblob(1000)) AS value",
    "chunks": "x AS number",
    "index_keys": "x AS number, zeroblob(99) AS data",
    "turns": "x AS number, 'a' AS question, 'b' AS answer",
}
SCHEMAS = {
    **{
        f"{name} is an endless view": [
            f"DROP TABLE {name}",
            f"CREATE VIEW {name} AS {ENDLESS} SELECT {columns} FROM n",
        ]
        for name, columns in ROWS.items()
    },
    "a trigger": [
        "CREATE TRIGGER fill AFTER INSERT ON turns BEGIN"
        " INSERT INTO facts VALUES ('x', zeroblob(1000000000), 0); END"
    ],
    "an index over an expression": ["CREATE INDEX slow ON chunks (hex(zeroblob(1000)))"],
    "a table more": ["CREATE TABLE others (x)"],
    "a table less": ["DROP TABLE turns"],
    "a column more": ["ALTER TABLE turns ADD COLUMN more"],
    "another program's": [*(f"DROP TABLE {name}" for name in ROWS), "CREATE TABLE bookmarks (url)"],
}


def change(folder: Path, *commands: str) -> None:
    db = sqlite3.connect(folder / DATABASE)
    for command in commands:
        db.execute(command)
    db.commit()
    db.close()


def assert_is_told(command: str, result: Result) -> None:
    """As `assert_refused`, in whichever words."""
    assert result.exit_code == (0 if command == "list" else 2), result.output
    assert isinstance(result.exception, SystemExit | None) and "Traceback" not in result.output
    advice = (
        "No ",
        "To find them, once:",
    )  # of sessions that are not there, and of a model's heads
    (sentence,) = (line for line in result.stderr.splitlines() if not line.startswith(advice))
    assert 10 < len(sentence) < 400


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_tables_that_are_not_ours_are_refused_unread(
    folder: Path, model: str, clip: Path, schema: str, command: str
) -> None:
    change(folder, *SCHEMAS[schema])
    database = (folder / DATABASE).read_bytes()
    result = do(command, folder, model, clip)
    assert_is_told(command, result)
    assert "has a database that is not of longlook" in result.stderr
    assert (folder / DATABASE).read_bytes() == database


def test_an_endless_view_has_no_end_where_nothing_guards_it(folder: Path) -> None:
    """Negative control of the test above."""
    change(folder, *SCHEMAS["turns is an endless view"])
    db = sqlite3.connect(folder / DATABASE)
    rows = db.execute("SELECT question FROM turns")
    assert sum(1 for _ in zip(rows, range(100_000), strict=False)) == 100_000
    db.close()


def test_an_older_format_is_told(folder: Path, model: str, clip: Path) -> None:
    change(folder, "DROP TABLE facts", OLDER_FACTS, "INSERT INTO facts VALUES ('format', '3')")
    result = do("info", folder, model, clip)
    assert_is_told("info", result)
    assert "is of format 3, and this longlook reads format 5" in result.stderr
    result = do("delete", folder, model, clip)
    assert result.exit_code == 0 and not folder.exists(), "what cannot be read can be deleted"


def test_the_format_without_keyframes_is_told(folder: Path, model: str, clip: Path) -> None:
    change(folder, "DROP TABLE keyframes", "UPDATE facts SET value = '4' WHERE name = 'format'")
    result = do("info", folder, model, clip)
    assert_is_told("info", result)
    assert "is of format 4, and this longlook reads format 5" in result.stderr


KEYFRAMES = {
    "another size of picture": "UPDATE keyframes SET picture = x'00'",
    "text for a picture": "UPDATE keyframes SET picture = 'abc'",
    "another time": "UPDATE keyframes SET pts_seconds = 7.0",
    "another kind": "UPDATE keyframes SET kind = 'scene'",
    "another chunk": "UPDATE keyframes SET chunk = chunk + 1000",
}


@pytest.mark.parametrize("what", KEYFRAMES)
def test_keyframes_that_have_changed_are_told(
    folder: Path, model: str, clip: Path, what: str
) -> None:
    change(folder, KEYFRAMES[what])
    for command in ("info", "ask", "watch"):
        result = do(command, folder, model, clip)
        assert_is_told(command, result)
        assert "is damaged: keyframe 1 has changed" in result.stderr


FACTS: dict[str, list[str | bytes | None]] = {
    "format": [None, "3"],
    "settings": [
        None,
        "5",
        "[1]",
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"memory": 5}',
        '{"read": {"fps": NaN}}',
        '{"read": {"fps": 1e999}}',
        '{"no": {}}',
        b"{}",
        '{"memory": {"chunk_frames": %s}}' % ("9" * 400),
    ],
    "kv_bits": [None, "7", "", "x" * 1000],
    "model_id": [None],
    "dtype": [None, "tensor", "load", ""],
    "layers": [None, "0", "-1", "x", "9" * 5000, "1e3"],
    "kv_heads": [None, "999999999999"],
    "head_dim": [None, "inf"],
    "seen seconds": ["inf", "nan", "-1", "x"],
    "still since": ["5", "[]", '["a", 1, 2]', "[1, 1, NaN]", "[2, -1, 0.0]", "[" * 100_000],
    "first dense": ["-3", "x", "1.5"],
}


def set_fact(folder: Path, name: str, value: str | bytes | None) -> None:
    """With the checksum that belongs to it; None takes the fact away."""
    db = sqlite3.connect(folder / DATABASE)
    db.execute("DELETE FROM facts WHERE name = ?", (name,))
    if value is not None:
        checksum = text_checksum(name, value) if isinstance(value, str) else 0
        db.execute("INSERT INTO facts VALUES (?, ?, ?)", (name, value, checksum))
    db.commit()
    db.close()


@pytest.mark.parametrize("name", FACTS)
def test_facts_that_cannot_be_are_told_in_a_sentence(
    folder: Path, model: str, clip: Path, name: str
) -> None:
    known = fact_of(folder, name)
    for value in FACTS[name]:
        set_fact(folder, name, value)
        assert_is_told("ask", do("ask", folder, model, clip))
    set_fact(folder, name, known)
    assert do("ask", folder, model, clip).exit_code == 0


def fact_of(folder: Path, name: str) -> str | None:
    db = sqlite3.connect(folder / DATABASE)
    row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    db.close()
    return None if row is None else str(row[0])


COLUMNS = (
    "number",
    "start_seconds",
    "stop_seconds",
    "num_frames",
    "watch_seconds",
    "extent",
    "thumb_bytes",
    "group_starts",
    "places",
    "positions",
    "visual",
)


def places_with(change_place: Callable[[NDArray[np.int64]], None]) -> Callable[[bytes], bytes]:
    def changed(blob: bytes) -> bytes:
        places = np.frombuffer(blob, np.int64).reshape(3, 4).copy()
        change_place(places)
        return places.tobytes()

    return changed


def put(row: int, column: int, value: int) -> Callable[[NDArray[np.int64]], None]:
    def change_place(places: NDArray[np.int64]) -> None:
        places[row, column] = value

    return change_place


RECORDS: dict[str, list[Any]] = {
    "start_seconds": [None, "text", math.inf, -math.inf, 1e300, b"bytes"],
    "stop_seconds": [None, "text", math.inf, -5.0],
    "num_frames": [None, "text", -1, 1.5],
    "watch_seconds": [None, "text", -1.0, math.inf],
    "extent": [None, "text", -1, 0, 1 << 40, 1.5],
    "thumb_bytes": [None, "text", -5],
    "group_starts": [None, b"123", np.array([math.nan]).tobytes()],
    "places": [
        None,
        b"",
        b"12345678",
        lambda blob: blob[:-8],
        lambda blob: blob + blob,
        places_with(put(0, 2, -5)),
        places_with(put(0, 2, 1 << 60)),
        places_with(put(0, 2, 6 << 30)),
        places_with(put(1, 2, 6 << 30)),
        places_with(put(2, 2, 6 << 30)),
        places_with(put(0, 0, -1)),
        places_with(put(0, 1, -1)),
    ],
    "positions": [None, b"", b"1234", lambda blob: blob[:-12], lambda blob: b"\xff" * len(blob)],
    "visual": [None, b"", lambda blob: blob + b"\1"],
}


def change_record(folder: Path, column: str, value: Any) -> None:
    """Of chunk 1, with the checksum that belongs to it. value: or a function of what is there."""
    db = sqlite3.connect(folder / DATABASE)
    row = list(db.execute(f"SELECT {', '.join(COLUMNS)} FROM chunks WHERE number = 1").fetchone())
    place = COLUMNS.index(column)
    row[place] = value(row[place]) if callable(value) else value
    blobs = [blob or b"" for blob in row[7:]]
    checksum = row_checksum(tuple(row[:7]), tuple(blobs))
    assignments = ", ".join(f"{name} = ?" for name in COLUMNS)
    db.execute(f"UPDATE chunks SET {assignments}, checksum = ? WHERE number = 1", (*row, checksum))
    db.commit()
    db.close()


@pytest.mark.parametrize("column", RECORDS)
def test_records_that_cannot_be_are_told_in_a_sentence(
    folder: Path, half_watched: Path, model: str, clip: Path, column: str
) -> None:
    for value in RECORDS[column]:
        change_record(folder, column, value)
        for command in ("info", "ask"):
            assert_is_told(command, do(command, folder, model, clip))
        shutil.copy(half_watched / DATABASE, folder / DATABASE)
    change_record(folder, column, lambda value: value)
    assert do("ask", folder, model, clip).exit_code == 0, "what is as it was is answered from"


def test_one_bad_folder_hides_no_other(
    folder: Path, half_watched: Path, model: str, clip: Path
) -> None:
    for name in ("a", "z"):
        shutil.copytree(half_watched, folder.parent / name)
    set_fact(folder, "layers", None)
    result = run("sessions", "list", folder.parent, "--json")
    assert [Path(item["folder"]).name for item in json.loads(result.stdout)] == ["a", "z"]
    assert_is_told("list", result)


@pytest.mark.parametrize(
    "command",
    [
        "UPDATE turns SET answer = answer || '.'",
        "UPDATE turns SET question = NULL",
        "UPDATE turns SET number = 7",
        "UPDATE facts SET value = value || ' ' WHERE name = 'source'",
        "UPDATE facts SET value = 'other@1' WHERE name = 'model_id'",
        "UPDATE facts SET checksum = NULL WHERE name = 'settings'",
    ],
)
def test_dialogue_and_facts_are_under_a_checksum(
    folder: Path, model: str, clip: Path, command: str
) -> None:
    change(folder, command)
    for what in ("info", "ask"):
        result = do(what, folder, model, clip)
        assert_is_told(what, result)
        assert "is damaged" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "DELETE FROM index_keys WHERE number = 1",
        "DELETE FROM index_keys WHERE number = 0",
        "UPDATE index_keys SET data = NULL WHERE number = 1",
    ],
)
def test_index_keys_that_are_missing_are_told(folder: Path, command: str) -> None:
    change(folder, command)
    store = SessionStore(folder, read_only=True)
    with pytest.raises(SessionError, match="is damaged"):
        list(store.index_keys(1))
    store.close()


# The terminal.

COMMANDS_TO_A_TERMINAL = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202efilm\r.mp4"


@pytest.mark.parametrize("command", ["list", "info", "delete"])
def test_a_name_in_a_session_commands_no_terminal(
    folder: Path, model: str, clip: Path, command: str
) -> None:
    set_fact(folder, "source", f"/x/{COMMANDS_TO_A_TERMINAL}")
    result = do(command, folder, model, clip)
    assert result.exit_code == 0, result.output
    shown = result.stdout + result.stderr
    assert "pwned" in shown and "\\x1b" in shown
    assert not set("\x1b\x07\x9b\u202e\r") & set(shown)


def test_a_file_name_and_an_answer_command_no_terminal(
    model: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("ask", tmp_path / "a\x1b]0;pwned\x07.mp4", "What?", "--model", model)
    assert result.exit_code == 2 and "\x1b" not in result.output and "pwned" in result.output
    answer = (AnswerPiece("one\x1b[2J\ntwo"), Answer("What?", "", (), Stats()))
    monkeypatch.setattr("streaming.session.Session.ask", lambda session, question: iter(answer))
    result = run("ask", clip, "What?", "--model", model)
    assert result.stdout == "one\\x1b[2J\ntwo\n"
