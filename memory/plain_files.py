"""Opens the files of a session's folder, which a stranger may have made, without harm to others.

Nothing of ours is a link, a pipe or a device: what is one is refused, since writing through a link
would change a file elsewhere and opening a pipe may wait for ever. SQLite is kept from a rollback
journal, because such a journal names other files and SQLite deletes those (its super-journals).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DATABASE = "session.sqlite"
LOCK = "lock"
THUMBS = "thumbs"
JOURNAL = f"{DATABASE}-journal"  # sessions use a write-ahead log and never have one
DATABASE_FILES = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm")
KV_FILE = re.compile(r"kv-(dense|sparse|exact)-(\d{8,})\.bin")
THUMB_FILE = re.compile(r"\d{8,}\.jpg")
HEADER = b"SQLite format 3\0"
WRITE_VERSION = 18  # offset of the header's byte that is 2 in a database with a write-ahead log


def check_folder(folder: Path) -> None:
    """Raises OSError, with a sentence about what is wrong, where `folder` cannot be trusted."""
    _check_is_directory(folder)
    for name in _names(folder):
        if name == THUMBS:
            _check_is_directory(folder / name)
        elif name in (*DATABASE_FILES, LOCK) or KV_FILE.fullmatch(name):
            _check_is_file(folder / name)


def refuse_journal(folder: Path) -> None:
    """For a reader, who changes nothing. Raises OSError where there is a rollback journal."""
    if os.path.lexists(folder / JOURNAL):
        raise OSError(errno.EINVAL, f"it has a {JOURNAL}, which is not of longlook")


def remove_journal(folder: Path) -> None:
    """For the writer, before SQLite acts on it. Raises OSError for the journal of another program.

    To a database with a write-ahead log, and to an empty one, a rollback journal means nothing.
    """
    if not os.path.lexists(folder / JOURNAL):
        return
    if os.path.lexists(folder / DATABASE):
        with open_file(folder / DATABASE, os.O_RDONLY) as handle:
            header = os.read(handle, 100)
        if header and not (header.startswith(HEADER) and header[WRITE_VERSION] == 2):
            refuse_journal(folder)
    (folder / JOURNAL).unlink()


@contextmanager
def open_file(path: Path, flags: int) -> Iterator[int]:
    """The descriptor of a regular file that is no link; closed at the end. Raises OSError."""
    handle = open_descriptor(path, flags)
    try:
        yield handle
    finally:
        os.close(handle)


def open_descriptor(path: Path, flags: int, folder_handle: int | None = None) -> int:
    """As `open_file`, for the caller to close. folder_handle: of the open folder of `path`."""
    # O_NONBLOCK is for pipes only, which would wait for their other end.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666, dir_fd=folder_handle)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refusal(path, "a link") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _refusal(path, "no regular file")
    return handle


def replace_file(path: Path, data: bytes) -> None:
    """Writes a new file in place of what is at `path`; a link goes, not its target."""
    with open_folder(path.parent) as folder_handle:
        name = Path(path.name)
        _unlink(path.name, folder_handle)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(open_descriptor(name, flags, folder_handle), "wb") as file:
            file.write(data)


def delete_files(folder: Path, names: list[str]) -> None:
    """Deletes entries of `folder` by name where they are there; a link goes, not its target."""
    with open_folder(folder) as folder_handle:
        for name in names:
            _unlink(name, folder_handle)


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """The descriptor of a folder that is no link, for names inside it; closed at the end."""
    _check_is_directory(folder)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def is_left_over(folder: Path) -> bool:
    """Whether a folder holds what a session leaves that lost its database, as when it was deleted
    and that was interrupted.
    """
    database = folder / DATABASE
    if os.path.lexists(database):
        found = database.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > 0:
            return False
    return folder.is_dir() and (os.path.lexists(folder / LOCK) or bool(kv_names(folder)))


def kv_names(folder: Path) -> list[str]:
    """Names of our files of keys and values, in order."""
    return sorted(name for name in _names(folder) if KV_FILE.fullmatch(name))


def thumb_names(folder: Path) -> list[str]:
    """Names of our pictures in a folder of thumbnails."""
    return sorted(name for name in _names(folder) if THUMB_FILE.fullmatch(name))


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _check_is_file(path: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise _refusal(path, "a link" if stat.S_ISLNK(mode) else "no regular file")


def _check_is_directory(path: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise _refusal(path, "a link" if stat.S_ISLNK(mode) else "no folder")


def _refusal(path: Path, what: str) -> OSError:
    return OSError(errno.EINVAL, f"{path.name} is {what}")


def _unlink(name: str, folder_handle: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder_handle)
