"""What the command line says: sentences on standard error, safe for a terminal, and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from errors import LonglookError, Notice
from ui.cli.options import advice

USER_MISTAKE = 2
BROKEN_OFF = 3  # watching ended before the video did
INTERRUPTED = 130
CONTROL = ("Cc", "Cs", "Zl", "Zp")  # categories: control, undecoded bytes, separators of lines
# Characters without a width that reverse the text after them, and so can disguise a name.
TURN_TEXT = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
WIDE = 1000  # columns, more than any table needs

stderr = Console(stderr=True, highlight=False, emoji=False)


def printable(text: str, also: str = "") -> str:
    r"""`text` with control characters as escapes (\x1b): no name or answer commands the terminal.

    also: control characters that stay.
    """
    pieces = []
    for character in text:
        is_command = unicodedata.category(character) in CONTROL or character in TURN_TEXT
        is_escaped = is_command and character not in also
        pieces.append(ascii(character)[1:-1] if is_escaped else character)
    return "".join(pieces)


def as_markup(text: str, also: str = "") -> str:
    """`text` for the console, which shows it as it is: no markup, no commands (`printable`)."""
    return escape(printable(text, also))


def say(text: str) -> None:
    """A line on standard error."""
    stderr.print(as_markup(text), soft_wrap=True)


def warn(text: str) -> None:
    """A line on standard error that stands out."""
    stderr.print(as_markup(text, also="\n"), style="yellow", soft_wrap=True)


def warn_of_notice(notice: Notice) -> None:
    """What a session tells, with the option that helps."""
    warn(notice.text + advice(notice.knob))


def warn_of_new(warnings: Sequence[str], num_told: int) -> int:
    """Tells the warnings after the first `num_told`; gives how many have been told now."""
    for warning in warnings[num_told:]:
        warn(warning)
    return len(warnings)


def show_table(table: Table) -> None:
    """A table on standard output, which keeps whole lines where it is no terminal."""
    console = Console(emoji=False)
    if not console.is_terminal:
        console = Console(emoji=False, width=WIDE)
    console.print(table)


def loading(model: str) -> AbstractContextManager[object]:
    """A sign of life on a terminal while a model is loaded."""
    return stderr.status(f"loading {as_markup(model)}") if stderr.is_terminal else nullcontext()


def program() -> str:
    """How this program was started, for hints that can be pasted."""
    words = [sys.argv[0]]
    if words[0].endswith(".py"):
        words.insert(0, sys.executable)
    here = f"{Path.cwd()}{os.sep}"
    return " ".join(word.removeprefix(here) for word in words)


@contextmanager
def user_errors() -> Iterator[None]:
    """What a user can mend becomes one sentence and exit code 2, Ctrl-C a quiet end.

    Any other error is a bug and keeps its traceback.
    """
    try:
        yield
    except LonglookError as error:
        sentence = str(error) + advice(error.knob)
        stderr.print(as_markup(sentence, also="\n"), style="red", soft_wrap=True)
        raise typer.Exit(USER_MISTAKE) from error
    except KeyboardInterrupt as stop:
        say("Stopped.")
        raise typer.Exit(INTERRUPTED) from stop


@contextmanager
def first_interrupt(do: Callable[[], None]) -> Iterator[None]:
    """While the block runs the first Ctrl-C calls `do`, and only the next one interrupts.

    A chunk under way is finished, so that memory is whole.
    """

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        do()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
