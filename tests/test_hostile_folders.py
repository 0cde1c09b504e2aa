"""Session folders that a stranger made: whatever is planted in one, files elsewhere stay as they are."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app import app
from memory.store import DATABASE, SessionError, SessionStore
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
    """A rollback journal whose super-journal is `victim`, which SQLite deletes after the rollback."""
    num_pages = database.stat().st_size // PAGE_BYTES
    header = struct.pack(">8s5I", JOURNAL_MAGIC, 0, 0, num_pages, 512, PAGE_BYTES).ljust(512, b"\0")
    name = os.fsencode(victim)
    return header + struct.pack(f">I{len(name)}s2I", LOCK_PAGE, name, len(name), sum(name)) + JOURNAL_MAGIC


def plant_journal(folder: Path, victim: Path) -> None:
    data = journal_that_deletes(victim, folder / DATABASE)
    (folder / f"{DATABASE}-journal").write_bytes(data)


def test_the_planted_journal_deletes_a_file_where_nothing_guards_it(folder: Path, home: Path) -> None:
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


def test_a_session_never_has_a_journal_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a kill while it is made could leave one, which readers refuse."""
    connect = SessionStore._connect
    seen: list[bool] = []

    def watched(store: SessionStore) -> sqlite3.Connection:
        db = connect(store)
        journal = store.folder / f"{DATABASE}-journal"

        def look() -> int:
            seen.append(journal.exists())
            return 0

        db.set_progress_handler(look, 1)
        return db

    monkeypatch.setattr(SessionStore, "_connect", watched)
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
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "-shm" not in path.name}


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


def test_deleting_takes_names_of_our_own_and_no_others(folder: Path, home: Path, model: str, clip: Path) -> None:
    others = ("kv-notes.bin", f"{DATABASE}.bak", "film.mp4", "thumbs/holiday.jpg", "thumbs/1.jpg")
    for name in others:
        (folder / name).write_bytes(SECRET)
    (folder / "thumbs" / "00000077.jpg").symlink_to(home / "00000000.jpg")
    (folder / "album").symlink_to(home)
    result = do("delete", folder, model, clip)
    assert result.exit_code == 0, result.output
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.parent.name != "album"}
    assert left == {*others, "thumbs", "album"}
    assert is_unharmed(home)


def test_a_session_of_our_own_is_deleted_whole(folder: Path, model: str, clip: Path) -> None:
    assert do("delete", folder, model, clip).exit_code == 0
    assert not folder.exists()
