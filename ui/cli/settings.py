"""The settings of one call: from a file, `--set` and options, the later ones first.

Each is checked before anything is loaded, and told of by what the user typed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Config, KnobError
from errors import LonglookError
from models.checkpoint import SETTINGS_FILE, recommended_config, recommended_settings
from ui.cli.options import DEFAULTS, Option

CAMERAS = "camera"  # tables of the same file, which `ui/cli/cameras.py` reads
Nested = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """One knob that the user has turned.

    typed: how the user named it, for sentences. origin: where it comes from, in a word or two.
    """

    knob: str
    value: Any
    typed: str
    origin: str

    def nested(self) -> Nested:
        section, _, name = self.knob.partition(".")
        return {section: {name: self.value}}


class Settings:
    """What the user has turned in one call; of several settings of a knob the last one counts."""

    def __init__(self, settings: Iterable[Setting] = ()) -> None:
        """Raises LonglookError for a knob that does not exist or cannot have this value."""
        self._by_knob: dict[str, Setting] = {}
        for setting in settings:
            check(setting)
            self._by_knob[setting.knob] = setting

    def __iter__(self) -> Iterator[Setting]:
        return iter(self._by_knob.values())

    def nested(self) -> Nested:
        """By section and name, as `Config.overridden` takes them."""
        found: Nested = {}
        for setting in self:
            for section, knobs in setting.nested().items():
                found.setdefault(section, {}).update(knobs)
        return found

    def origin(self, knob: str) -> str | None:
        """Where a knob's value comes from, None if the user has not turned it."""
        setting = self._by_knob.get(knob)
        return None if setting is None else setting.origin


def check(setting: Setting) -> None:
    """Raises LonglookError, in the words of the user, for a setting that makes no sense."""
    try:
        Config().overridden(setting.nested())
    except KnobError as error:
        raise LonglookError(f"{setting.typed} {error.problem}") from error


def from_file(path: Path) -> Iterator[Setting]:
    """The settings of a TOML file. Raises LonglookError where it cannot be read."""
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LonglookError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise LonglookError(f"{path} is not TOML: it is not UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise LonglookError(f"{path} is not TOML: {error}.") from error
    sections.pop(CAMERAS, None)
    for section, knobs in sections.items():
        if not isinstance(knobs, Mapping) or section not in Config.sections():
            known = ", ".join(f"[{name}]" for name in Config.sections())
            raise LonglookError(f"{path} has {section!r}, which is no section; there are {known}.")
        for name, value in knobs.items():
            knob = f"{section}.{name}"
            yield Setting(knob, value, f"{knob} in {path}", str(path))


def from_words(words: Sequence[str]) -> Iterator[Setting]:
    """The settings of `--set KNOB=VALUE`."""
    for word in words:
        knob, equals, value = word.partition("=")
        knob = knob.strip()
        if not equals or "." not in knob:
            raise LonglookError(
                f"--set {word} is no setting; it needs the form memory.window_chunks=4."
            )
        yield Setting(knob, parse(value.strip(), DEFAULTS.get(knob)), f"--set {knob}", "--set")


def parse(text: str, default: object) -> object:
    """A value in the kind of the default, or the text itself where it is none of that kind."""
    if not isinstance(default, int | float):
        return text
    try:
        return type(default)(text)
    except ValueError:
        return text


def from_options(options: Sequence[Option], typed: Mapping[str, Any]) -> Iterator[Setting]:
    """The settings of the options that were typed."""
    for option in options:
        value = typed.get(option.name)
        if option.knob and value is not None:
            yield Setting(option.knob, option.value_of_knob(value), option.flag, option.flag)


def as_toml(model: str, settings: Settings) -> str:
    """What is in force for a model, as TOML, with where each value comes from."""
    config = recommended_config(model).overridden(settings.nested())
    recommended = recommended_settings(model)
    lines: list[str] = []
    for section in config.sections():
        if lines:
            lines.append("")
        lines.append(f"[{section}]")
        for knob, value in config.knobs():
            if not knob.startswith(f"{section}."):
                continue
            name = knob.removeprefix(f"{section}.")
            is_recommended = name in recommended.get(section, {})
            origin = settings.origin(knob) or (SETTINGS_FILE if is_recommended else "default")
            setting = f"{name} = {toml_value(value)}"
            lines.append(f"{setting:<32} # {one_line(origin)}")
    return "\n".join(lines)


def toml_value(value: object) -> str:
    """A number, or one of our words, which need no escapes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def one_line(text: str) -> str:
    """`text` for a comment: a file's name may hold a line break."""
    return "".join(character if character.isprintable() else "?" for character in text)
