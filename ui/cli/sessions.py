"""sessions list, info and delete."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from errors import LonglookError
from frames import Gap
from memory.plain_files import DATABASE_FILES, is_left_over
from memory.session_names import session_folder, sessions_root
from ui.cli.answers import gap_as_dict
from ui.cli.console import as_markup, printable, say, show_table, user_errors, warn
from ui.cli.opening import check_is_there
from ui.cli.wiring import PlainCommand
from ui.render import clock, size

if TYPE_CHECKING:
    from memory.folders import Summary

AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON.")]
SessionName = Annotated[
    str, typer.Argument(help="Its name, or its folder with a slash.", metavar="SESSION")
]
HEADS = ("session", "source", "seen", "frames", "on disk", "questions", "model", "changed")

SHOWN_GAPS = 10  # the newest; --json has them all

app = typer.Typer(help="The sessions kept on this machine.", no_args_is_help=True)


@app.command("list", cls=PlainCommand)
def list_sessions(
    root: Annotated[
        Path | None,
        typer.Argument(
            help="The folder they are in. \\[default: the user's data]", metavar="[FOLDER]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What is kept: every session below a folder.

    \b
    Examples:
      longlook sessions list
      longlook sessions list . --json
    """
    with user_errors():
        root = root or sessions_root()
        found = summaries(root)
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in found]))
    elif not found:
        say(f"No sessions in {root}.")
    else:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for head in HEADS:
            table.add_column(head, overflow="fold")  # a name is wrapped, never cut
        for item in found:
            table.add_row(*map(as_markup, session_row(item)))
        show_table(table)


def summaries(root: Path) -> list[Summary]:
    """Of all sessions below a folder that can be read; says what is wrong with the others."""
    from memory.folders import sessions_in, summary

    found = []
    for folder in sessions_in(root):
        try:
            found.append(summary(folder))
        except LonglookError as error:
            warn(str(error))
    return found


@app.command("info", cls=PlainCommand)
def show_session(session: SessionName, as_json: AsJson = False) -> None:
    """What one session holds.

    \b
    Examples:
      longlook sessions info trip
      longlook sessions info ./trip --json
    """
    with user_errors():
        folder = session_folder(session)
        check_is_there(folder)
        from memory.folders import summary

        found = summary(folder)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"gaps": [gap_as_dict(gap) for gap in found.gaps]}))
        return
    for name, value in asdict(found).items():
        if name != "gaps" and value is not None:
            typer.echo(f"{name.replace('_', ' '):<17} {printable(shown(name, value))}")
    typer.echo(f"{'gaps':<17} {len(found.gaps)}")
    for gap in found.gaps[-SHOWN_GAPS:]:
        typer.echo(f"{'':<17} {printable(gap_row(gap))}")
    typer.echo(f"{'changed':<17} {changed(folder)}")


def gap_row(gap: Gap) -> str:
    """A gap for people; the time is that of the session."""
    stop = clock(gap.stop_seconds) if math.isfinite(gap.stop_seconds) else "now"
    return f"{clock(gap.start_seconds)} to {stop} ({gap.reason})"


def shown(name: str, value: object) -> str:
    """A figure of a session for people."""
    if name.endswith("_bytes") and isinstance(value, int):
        return size(value)
    if name.endswith("_seconds") and isinstance(value, float):
        return clock(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


@app.command("delete", cls=PlainCommand)
def delete_session(
    session: SessionName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a session for good.

    \b
    Examples:
      longlook sessions delete trip
      longlook sessions delete ./trip --yes
    """
    with user_errors():
        folder = session_folder(session)
        is_rest = is_left_over(folder)
        if not is_rest:
            check_is_there(folder)
        from memory.disk_tier import check_is_session
        from memory.folders import delete, summary

        what = f"{folder}, the rest of a session"
        if not is_rest:
            check_is_session(folder)
            what = str(folder)
            try:
                found = summary(folder)
                seen = clock(found.seen_seconds)
                what = f"{folder}, {seen} of {found.source or 'nothing yet'}"
            except LonglookError as error:  # a damaged one can be thrown away all the same
                warn(str(error))
        if not yes:
            typer.confirm(f"Delete {printable(what)}?", abort=True, err=True)
        delete(folder)
        say(f"Deleted {what}.")


def session_row(item: Summary) -> list[str]:
    folder = Path(item.folder)
    state = ", being watched" if item.being_watched else ""
    return [
        folder.name,
        Path(item.source).name if item.source else "",
        f"{clock(item.seen_seconds)}{state}",
        f"{item.frames:,}",
        size(item.disk_bytes),
        str(item.questions),
        item.model_id.partition("@")[0],
        changed(folder),
    ]


def changed(folder: Path) -> str:
    """When something was last kept in a session: day and minute, local time."""
    times = [path.stat().st_mtime for name in DATABASE_FILES if (path := folder / name).exists()]
    return f"{datetime.fromtimestamp(max(times)):%Y-%m-%d %H:%M}" if times else ""
