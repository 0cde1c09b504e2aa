"""The one table of the options that several commands share. Knows nothing of what they do.

An option that turns a knob of the configuration gets its defaults from there.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from config import Config, Value
from errors import LonglookError
from models.checkpoint import DEMO_FOLDER, read_settings

GIB = 1 << 30
LARGEST_GIB = 1 << 20
DEFAULTS = dict(Config().knobs())
DEMO_DEFAULTS = dict(Config().overridden(read_settings(DEMO_FOLDER)).knobs())


@dataclass(frozen=True)
class Option:
    """One option: as typed, its kind, its help and, where it turns one, its knob.

    in_gib: the number typed is of GiB, the knob's of bytes.
    """

    flag: str
    kind: Any
    help: str
    knob: str = ""
    default: Any = None
    short: str = ""
    in_gib: bool = False

    @property
    def name(self) -> str:
        """Of the parameter."""
        return self.flag.removeprefix("--").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """Of a command's signature, as typer reads it."""
        flags = [self.flag, self.short] if self.short else [self.flag]
        text = f"{self.help} {self._default_text()}" if self.knob else self.help
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=self.default,
            annotation=Annotated[self.kind, typer.Option(*flags, help=text)],
        )

    def value_of_knob(self, typed: Any) -> Value:
        """What was typed, in the unit of the knob. Raises LonglookError for no number of GiB."""
        if not self.in_gib:
            value: Value = typed
            return value
        if not math.isfinite(typed) or not 0 <= typed < LARGEST_GIB:
            raise LonglookError(f"{self.flag} needs a number of GiB, not {typed:g}.")
        return int(typed * GIB)

    def _default_text(self) -> str:
        default, demo = self._shown(DEFAULTS[self.knob]), self._shown(DEMO_DEFAULTS[self.knob])
        both = default if demo == default else f"{default}; demo {demo}"
        return f"\\[default: {both}]"

    def _shown(self, value: Value) -> str:
        if isinstance(value, str):
            return value
        return f"{value / GIB if self.in_gib else value:g}"


GENERAL = (
    Option(
        "--model",
        str,
        "demo (embedded), a folder, or a hub id such as Qwen/Qwen3-VL-4B-Instruct.",
        default="demo",
        short="-m",
    ),
    Option("--device", str, "auto (CUDA if there is one), cpu, cuda or cuda:1.", default="auto"),
    Option("--dtype", str, "auto, float32, bfloat16 or float16.", default="auto"),
)
SETTINGS = (
    Option("--config", Path | None, "A TOML file with settings, as `longlook config` prints it."),
    Option(
        "--set",
        list[str] | None,
        "One setting, such as memory.window_chunks=4; may be given several times.",
    ),
)
READING = (Option("--fps", float | None, "Frames looked at per second of video.", "read.fps"),)
REMEMBERING = (
    Option("--chunk-frames", int | None, "Frames remembered together.", "memory.chunk_frames"),
    Option(
        "--host-budget",
        float | None,
        "GiB of host memory for what was seen.",
        "memory.host_bytes",
        in_gib=True,
    ),
    Option(
        "--disk-budget",
        float | None,
        "GiB of disk for a session; beyond it the oldest loses details.",
        "memory.disk_bytes",
        in_gib=True,
    ),
    Option(
        "--kv-bits",
        int | None,
        "16 keeps what was seen as computed, 8 in half the memory or less.",
        "memory.kv_bits",
    ),
)
SAVING = (
    Option(
        "--reuse",
        str | None,
        "What to encode of a frame. novelty: only the patches that changed since a keyframe; "
        "none: everything.",
        "reuse.strategy",
    ),
    Option(
        "--prune",
        str | None,
        "Which visual tokens to keep. novelty: skip static frames and keep a share of the tokens "
        "of the others; none: keep all.",
        "prune.strategy",
    ),
    Option(
        "--prune-budget",
        float | None,
        "Fraction of a frame's tokens that --prune keeps, up to 1.",
        "prune.budget",
    ),
)
RECALLING = (
    Option(
        "--recall-chunks",
        int | None,
        "Older chunks brought back for a question.",
        "memory.recall_chunks",
    ),
    Option(
        "--recall",
        str | None,
        "always looks back, never answers from the last seconds alone, auto looks back unless "
        "the model is sure.",
        "memory.recall",
    ),
)
ANSWERING = (
    Option("--max-tokens", int | None, "Longest answer, in tokens.", "answer.max_new_tokens"),
    Option(
        "--temperature", float | None, "0 always takes the likeliest word.", "answer.temperature"
    ),
    Option(
        "--top-p", float | None, "Sample among the likeliest words of this share.", "answer.top_p"
    ),
    Option("--seed", int | None, "Seed of the sampler.", "answer.seed"),
)
WATCHING = READING + REMEMBERING + SAVING
EVERYTHING = WATCHING + RECALLING + ANSWERING
FLAGS = {option.knob: option.flag for option in EVERYTHING}
BUDGETS = {option.knob for option in EVERYTHING if option.in_gib}


def advice(knob: str) -> str:
    """The end of a sentence about a knob of which there was too little: the option that helps."""
    return f" Give more with {FLAGS[knob]}." if knob in BUDGETS else ""
