"""Every knob of longlook, in small frozen dataclasses: unit, default, and where it comes from.

A knob is named by its section: `memory.chunk_frames`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from errors import LonglookError

Value = int | float | str


class KnobError(LonglookError):
    """A knob that does not exist, or cannot have this value.

    problem: the sentence without the knob's name at its beginning, so that it can be told of
    whatever the user typed.
    """

    def __init__(self, knob: str, problem: str) -> None:
        super().__init__(f"{knob} {problem}")
        self.name = knob
        self.problem = problem


def _check(knob: str, value: Value, is_right: bool, wanted: str) -> None:
    if not is_right:
        raise KnobError(knob, f"must {wanted}, not {value!r}")


def _check_least(section: str, knobs: object, least: Mapping[str, int]) -> None:
    for name, number in least.items():
        value = getattr(knobs, name)
        _check(f"{section}.{name}", value, number <= value < math.inf, f"be at least {number}")


def _check_choice(knob: str, value: Value, choices: Sequence[Value]) -> None:
    _check(knob, value, value in choices, f"be one of {', '.join(map(str, choices))}")


def _check_share(knob: str, value: float) -> None:
    _check(knob, value, 0 < value <= 1, "lie in (0, 1]")


def _check_novelty(knob: str, value: float) -> None:
    _check(knob, value, 0 <= value <= 1, "lie in [0, 1]")


@dataclass(frozen=True)
class ReadConfig:
    """How a source is read."""

    fps: float = 2.0  # frames sampled per second of video; Qwen3-VL's own video default

    def __post_init__(self) -> None:
        _check("read.fps", self.fps, 0 < self.fps <= 60, "lie in (0, 60]")


@dataclass(frozen=True)
class MemoryConfig:
    """What is kept, where, and how much of it comes back for a question."""

    chunk_frames: int = 16  # frames prefilled together (Video-XL-2)
    max_chunk_seconds: float = 8.0  # that a chunk covers at most; half of it for a live source
    borders: str = "full"  # a chunk ends when "full"; with "cuts", at a cut in its second half too
    prefill_chunks: int = 2  # newest chunks (of the window) that a new chunk sees in its prefill
    window_chunks: int = 2  # newest chunks, dense on the device, in every answer's context
    recall_chunks: int = 6  # older chunks recalled dense at most: the best 4, the best's neighbours
    recall_margin: float = 0.75  # drop chunks that score more than this many std below the best one
    sparse_chunks: int = 0  # older chunks recalled sparse: beside the dense ones, and a thin sample
    sparse: str = "pooled"  # what the sparse level keeps: "pooled" 2 x 2, or a quarter, "salient"
    context_tokens: int = 4096  # most tokens of an answer's context; the question comes on top
    carrier_tokens: int = 0  # timestamp tokens of chunks before `prefill_chunks` that a chunk sees
    recall: str = "always"  # "auto" skips recall when the model is sure, "never" always does
    sure_below: float = 0.6  # "auto" skips recall when the model's uncertainty is below this
    kv_bits: int = 16  # KV cache on host and disk: 16 as computed, 8 rounded (`memory/kv_codec.py`)
    host_bytes: int = 8 << 30  # budget of the host tier
    disk_bytes: int = 64 << 30  # budget of a session's folder, if it has one

    def __post_init__(self) -> None:
        least = {
            "chunk_frames": 1,
            "prefill_chunks": 0,
            "window_chunks": 1,
            "recall_chunks": 0,
            "recall_margin": 0,
            "sparse_chunks": 0,
            "context_tokens": 1,
            "carrier_tokens": 0,
            "host_bytes": 0,
            "disk_bytes": 0,
        }
        _check_least("memory", self, least)
        seconds = self.max_chunk_seconds
        _check("memory.max_chunk_seconds", seconds, 0 < seconds < math.inf, "be more than 0")
        _check_choice("memory.borders", self.borders, ("full", "cuts"))
        _check_choice("memory.sparse", self.sparse, ("pooled", "salient"))
        _check_choice("memory.recall", self.recall, ("auto", "always", "never"))
        _check_choice("memory.kv_bits", self.kv_bits, (16, 8))


@dataclass(frozen=True)
class ReuseConfig:
    """How the vision tower's work on a reference frame is used again for the frames after it."""

    strategy: str = "none"  # "novelty" recomputes the patches that changed, "none" all of them
    refresh_share: float = 0.75  # a group of which more tokens have changed is computed in full
    still_below: float = 0.15  # a token counts as unchanged up to this novelty

    def __post_init__(self) -> None:
        _check_choice("reuse.strategy", self.strategy, ("none", "novelty"))
        _check_share("reuse.refresh_share", self.refresh_share)
        _check_novelty("reuse.still_below", self.still_below)


@dataclass(frozen=True)
class PruneConfig:
    """Which visual tokens of a group go on to the LLM."""

    strategy: str = "none"  # "novelty" skips static groups and thins out the others
    budget: float = 0.33  # share of a group's tokens that stay (STC: 64 of 196)
    still_below: float = 0.15  # a patch counts as unchanged up to this novelty
    refresh_seconds: float = 60.0  # a static picture is kept once in this time

    def __post_init__(self) -> None:
        _check_choice("prune.strategy", self.strategy, ("none", "novelty"))
        _check_share("prune.budget", self.budget)
        _check_novelty("prune.still_below", self.still_below)
        seconds = self.refresh_seconds
        _check("prune.refresh_seconds", seconds, seconds > 0, "be more than 0")


@dataclass(frozen=True)
class AnswerConfig:
    """How an answer is decoded."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0  # of the sampler, when temperature > 0
    dialogue_turns: int = 4  # earlier turns shown to the model with a new question
    context_bytes: int = 8 << 30  # device memory for contexts of answers under way; else they wait

    def __post_init__(self) -> None:
        least = {
            "max_new_tokens": 1,
            "temperature": 0,
            "seed": 0,
            "dialogue_turns": 0,
            "context_bytes": 0,
        }
        _check_least("answer", self, least)
        _check_share("answer.top_p", self.top_p)
        _check("answer.seed", self.seed, self.seed < 1 << 63, "be less than 2^63")


@dataclass(frozen=True)
class Config:
    read: ReadConfig = field(default_factory=ReadConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)

    def overridden(self, changes: Mapping[str, Mapping[str, Any]]) -> Config:
        """This configuration with some knobs turned: {"memory": {"chunk_frames": 8}}.

        Raises KnobError for a knob that does not exist or cannot have this value.
        """
        sections = {name: getattr(self, name) for name in self.sections()}
        for name, knobs in changes.items():
            if name not in sections:
                raise KnobError(name, f"is not a section; there are {', '.join(sections)}")
            if not isinstance(knobs, Mapping):
                raise KnobError(name, f"is a section and needs knobs by name, not {knobs!r}")
            for knob, value in knobs.items():
                _check_kind(f"{name}.{knob}", value, _known_value(sections[name], name, knob))
            sections[name] = replace(sections[name], **knobs)
        return Config(**sections)

    @classmethod
    def sections(cls) -> tuple[str, ...]:
        """The names of the sections, in order."""
        return tuple(section.name for section in fields(cls))

    def knobs(self) -> Iterator[tuple[str, Value]]:
        """Every knob by its name, section by section, with its value."""
        for section in self.sections():
            values = getattr(self, section)
            for knob in fields(values):
                yield f"{section}.{knob.name}", getattr(values, knob.name)


def _known_value(section: Any, name: str, knob: str) -> Value:
    known = sorted(known.name for known in fields(section))
    if knob not in known:
        raise KnobError(f"{name}.{knob}", f"is not a knob; {name} has {', '.join(known)}")
    value: Value = getattr(section, knob)
    return value


def _check_kind(name: str, value: object, default: Value) -> None:
    """A word if the default is one, a whole number if it is one, else any finite number."""
    if isinstance(default, str):
        kind, is_right = "word", isinstance(value, str)
    elif isinstance(default, int):
        kind, is_right = "whole number", _is_finite(value, int)
    else:
        kind, is_right = "number", _is_finite(value, int, float)
    if not is_right:
        raise KnobError(name, f"must be a {kind}, not {value!r}")


def _is_finite(value: object, *kinds: type[int] | type[float]) -> bool:
    """Whether it is a finite number of one of the kinds; True and False are no numbers here."""
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
