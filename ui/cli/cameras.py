"""Watches several cameras in one process, each into a session of its own, as a TOML file says.

[[camera]]
session = "door"
url = "rtsp://cam@192.168.1.20/stream"
password_env = "DOOR_PASSWORD"      # or password_file = "door.txt"
"""

from __future__ import annotations

import os
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import LonglookError
from memory.session_names import session_folder
from streaming.sources.address import Address, parse_address
from ui.cli import opening
from ui.cli.console import say
from ui.cli.live import LiveRun, password_in, watch_all
from ui.cli.settings import CAMERAS
from ui.cli.watching import Outcome
from ui.cli.wiring import Chosen
from ui.render import clock

if TYPE_CHECKING:
    from streaming.engine import Engine

_KEYS = {"session", "url", "password_env", "password_file"}


@dataclass(frozen=True)
class CameraEntry:
    """One camera of the file: the session it fills, and where it is."""

    session: str
    address: Address


def cameras_in(path: Path | None) -> list[CameraEntry]:
    """The cameras of a settings file, none where it has none. Raises LonglookError."""
    if path is None:
        return []
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get(CAMERAS, [])
    except (OSError, ValueError) as error:
        raise LonglookError(f"{path} cannot be read as TOML.") from error
    if not isinstance(tables, list):
        raise LonglookError(
            f"{path} has [{CAMERAS}]; write [[{CAMERAS}]], as there may be several."
        )
    entries = [_entry(table, path) for table in tables]
    names = [entry.session for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise LonglookError(f"{path} has two cameras for the session {name}.")
    return entries


def _entry(table: dict[str, Any], path: Path) -> CameraEntry:
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        known = ", ".join(sorted(_KEYS))
        raise LonglookError(f"A camera in {path} has {unknown[0]!r}; it may have {known}.")
    for key in ("session", "url"):
        if not isinstance(table.get(key), str):
            raise LonglookError(f"A camera in {path} has no {key}.")
    address = parse_address(table["url"])
    if not address.is_live:
        raise LonglookError(f"{table['url']} in {path} is no camera or stream.")
    if name := table.get("password_env"):
        if name not in os.environ:
            raise LonglookError(
                f"The environment variable {name} of {table['session']} is not set."
            )
        address = address.with_password(os.environ[name])
    elif file := table.get("password_file"):
        address = address.with_password(password_in(path.parent / file))
    return CameraEntry(table["session"], address)


def watch_cameras(entries: list[CameraEntry], chosen: Chosen) -> Outcome:
    """Until Ctrl-C. What fails for one camera leaves the others alone."""
    engine = opening.open_engine(chosen)
    with ExitStack() as opened:
        runs = [_begin(engine, entry, chosen, opened) for entry in entries]
        outcome = watch_all(engine, runs)
        for run in runs:
            seen = clock(run.session.seen_seconds or 0.0)
            say(f"{run.watching.session_id}: stopped at {seen}.")
    return outcome


def _begin(engine: Engine, entry: CameraEntry, chosen: Chosen, opened: ExitStack) -> LiveRun:
    folder = session_folder(entry.session)
    session = opened.enter_context(opening.open_session(engine, folder, chosen.settings))
    watching = engine.watch_live(session, entry.address, entry.session)
    say(f"{entry.session}: watching {entry.address.shown}.")
    return LiveRun(watching, session)
