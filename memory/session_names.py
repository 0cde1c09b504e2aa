"""What a session is called, and the folder that a name stands for. Imports nothing heavy."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from errors import LonglookError

NOT_IN_NAMES = ("Cc", "Cs", "Zl", "Zp")  # control, undecoded bytes, separators of lines


def sessions_root() -> Path:
    """Where sessions are kept that are called by a name. Raises LonglookError without a home."""
    if data_home := os.environ.get("XDG_DATA_HOME"):
        return Path(data_home) / "longlook" / "sessions"
    return _expand_home("~") / ".local" / "share" / "longlook" / "sessions"


def session_folder(name: str) -> Path:
    """A name stands for a folder below `sessions_root`, anything with a slash (./trip) for itself.

    Raises LonglookError for what is no name: nothing, blanks, line breaks or bytes that are no
    text.
    """
    if not name.strip():
        raise LonglookError("A session needs a name, and this one is empty.")
    if any(unicodedata.category(character) in NOT_IN_NAMES for character in name):
        raise LonglookError(
            f"A session's name has no control characters and is UTF-8, not {name!a}."
        )
    path = _expand_home(name)
    if os.sep in name or name in (".", "..", "~"):
        return path.absolute()
    return sessions_root() / path


def _expand_home(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise LonglookError(
            f"There is no home folder for {name}; name the session's folder with a slash."
        ) from error
