"""The command line of longlook: registers the commands. What they do is in `ui/cli/`."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version
from typing import Annotated

import typer
from rich.logging import RichHandler

from ui.cli import caption, commands, search, sessions
from ui.cli.console import stderr
from ui.cli.wiring import PlainCommand

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",  # its retries are told in one sentence of ours
    "TOKENIZERS_PARALLELISM": "false",
}

app = typer.Typer(
    help="Watch a video of any length and answer questions about any moment of it, "
    "on a single GPU or none.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = {
    "ask": commands.ask,
    "watch": commands.watch,
    "caption": caption.caption,
    "search": search.search,
    "serve": commands.serve,
    "calibrate": commands.calibrate,
    "config": commands.show_config,
}
for name, command in COMMANDS.items():
    app.command(name, cls=PlainCommand)(command)
app.add_typer(sessions.app, name="sessions")


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longlook {version('longlook')}")
        raise typer.Exit


@app.callback()
def every_command(
    wants_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass  # its options are answered by their callbacks


def main() -> None:
    """Entry point: quiet libraries, our own log on standard error."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    handler = RichHandler(console=stderr, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    app(prog_name="longlook")


if __name__ == "__main__":
    main()
