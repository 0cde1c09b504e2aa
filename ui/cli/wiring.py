"""Builds a command's signature from the table of options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.core import TyperArgument, TyperCommand

from ui.cli.console import user_errors
from ui.cli.options import GENERAL, SETTINGS, Option
from ui.cli.settings import Settings, from_file, from_options, from_words

Command = Callable[..., None]


class PlainCommand(TyperCommand):
    """Shows its arguments in the usage line as they are written: VIDEO, [MODEL]."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [param for param in self.params if isinstance(param, TyperArgument)]
        names = [argument.metavar or str(argument.name).upper() for argument in arguments]
        return [self.options_metavar or "", *names]


@dataclass(frozen=True)
class Chosen:
    """What the shared options of a call say."""

    model: str
    device: str
    dtype: str
    settings: Settings
    config_file: Path | None = None


def with_options(*options: Option, model: bool = True) -> Callable[[Command], Command]:
    """A command with these options, those for any knob and those that choose a model.

    The command gets them as `chosen`. What a user can mend is told in one sentence.
    model: False for a command that is given its model in another way, or needs none.
    """
    shared = [*(GENERAL if model else ()), *options, *SETTINGS]

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [parameter for parameter in own if parameter.name != "chosen"]
        parameters += [option.parameter() for option in shared]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            with user_errors():
                typed = {option.name: given.pop(option.name) for option in shared}
                command(**given, chosen=chosen_from(shared, typed))

        del run.__wrapped__  # its signature is not ours
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def chosen_from(options: Sequence[Option], typed: dict[str, Any]) -> Chosen:
    """Checks what was typed. Raises LonglookError."""
    path = typed["config"]
    settings = Settings(
        [
            *(from_file(path) if path else ()),
            *from_words(typed["set"] or ()),
            *from_options(options, typed),
        ]
    )
    return Chosen(
        typed.get("model", "demo"),
        typed.get("device", "auto"),
        typed.get("dtype", "auto"),
        settings,
        path,
    )
