"""The command that searches captioned archives."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from archive.ledger import read_entries
from errors import LonglookError
from ui.cli import opening
from ui.cli.console import as_markup, say, show_table
from ui.cli.wiring import Chosen, with_options
from ui.render import clock

NOTHING_FOUND = 1


@with_options()
def search(
    text: Annotated[str, typer.Argument(help="What to look for, in words.", show_default=False)],
    folder: Annotated[
        Path,
        typer.Option("--in", help="A folder that `longlook caption` wrote.", show_default=False),
    ],
    chosen: Chosen,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Most results.")] = 10,
    verify: Annotated[
        bool,
        typer.Option(
            help="Look at the best 20 again and leave out those where it is not to be seen."
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per result, a line each.")
    ] = False,
) -> None:
    """Find moments in captioned videos.

    What was seen counts first (the keys of the model's retrieval heads), then the words of the
    captions. The best moments are looked at again, so a list of results ends.

    Exit code 0: something was found; 1: nothing was; 2: a mistake in the call.

    \b
    Examples:
      longlook search "a cyan heart and a yellow diamond" --in captions
      longlook search "a yellow square" --in captions --limit 3 --json
      longlook search "someone opens a door" --in captions --model Qwen/Qwen3-VL-4B-Instruct
    """
    if limit < 1:
        raise LonglookError("--limit needs at least 1")
    if not text.strip():
        raise LonglookError("There is nothing to search for.")
    read_entries(folder)
    engine = opening.open_engine(chosen)
    from archive.search import Search

    archive = Search(folder)
    started = time.perf_counter()
    moments = archive.find(engine, text, limit, verify)
    seconds = time.perf_counter() - started
    if as_json:
        for moment in moments:
            typer.echo(json.dumps(asdict(moment), ensure_ascii=False))
    elif moments:
        table = Table("video", "when", "sure", "caption")
        for moment in moments:
            when = f"{clock(moment.start_seconds)}–{clock(moment.stop_seconds)}"
            sure = "" if moment.probability is None else f"{100 * moment.probability:.0f} %"
            table.add_row(as_markup(moment.video), when, sure, as_markup(moment.caption))
        show_table(table)
    say(f"{len(moments) or 'Nothing'} found in {seconds:.1f} s.")
    if not moments:
        raise typer.Exit(NOTHING_FOUND)
