"""Every knob of longlook, in small frozen dataclasses: unit, default, and where the default comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class ReadConfig:
    """How a source is read."""

    fps: float = 2.0  # frames sampled per second of video; Qwen3-VL's own video default
    queue_frames: int = 32  # frames decoded ahead of the model
    stall_seconds: float = 20.0  # a decoder that gives nothing for so long is given up

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 60:
            raise ValueError(f"fps must lie in (0, 60], not {self.fps}")
        if self.queue_frames < 1 or not 0 < self.stall_seconds < math.inf:
            raise ValueError(f"not a way to read: {self}")


@dataclass(frozen=True)
class MemoryConfig:
    """What is kept, where, and how much of it comes back for a question."""

    chunk_frames: int = 16  # frames prefilled together (Video-XL-2)
    borders: str = "full"  # a chunk ends when it is "full"; with "cuts", at a cut in its second half as well
    prefill_chunks: int = 2  # newest chunks (of the window) that a new chunk sees while it is prefilled
    window_chunks: int = 2  # newest chunks, dense on the device, in every answer's context
    recall_chunks: int = 6  # older chunks brought back dense at most: the best four and the best one's neighbours
    recall_margin: float = 0.75  # standard deviations of evidence up to which a chunk may stand behind the best one
    sparse_chunks: int = 0  # older chunks brought back sparse: beside the dense ones, and a thin sample of the rest
    sparse: str = "pooled"  # what the sparse level keeps of visual tokens: "pooled" 2 x 2, or the quarter "salient"
    context_tokens: int = 4096  # most tokens of an answer's context; the question comes on top
    carrier_tokens: int = 0  # timestamp tokens of earlier chunks that a new chunk sees beyond `prefill_chunks`
    recall: str = "always"  # "auto" answers from the window where the model is sure, "never" always does
    sure_below: float = 0.6  # the model's doubt up to which "auto" takes it for sure
    kv_bits: int = 16  # keys and values on host and disk: 16 as computed, 8 rounded (`memory/kv_codec.py` bounds it)
    host_bytes: int = 8 << 30  # budget of the host tier
    disk_bytes: int = 64 << 30  # budget of a session's folder, where it has one

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
        choices = {
            "borders": ("full", "cuts"),
            "sparse": ("pooled", "salient"),
            "recall": ("auto", "always", "never"),
            "kv_bits": (16, 8),
        }
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} must be at least {number}, not {getattr(self, name)}")
        for name, words in choices.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(map(str, words))}, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class ReuseConfig:
    """How the vision tower's work on a keyframe is used again for the frames behind it."""

    strategy: str = "none"  # which patches are recomputed: "novelty" (ours), "keys" (STC: keys that moved most)
    refresh_share: float = 0.75  # of a group's tokens: one in which more have changed is computed whole
    still_below: float = 0.15  # novelty up to which a token counts as unchanged

    def __post_init__(self) -> None:
        if self.strategy not in ("none", "novelty", "keys"):
            raise ValueError(f"strategy must be one of none, novelty, keys, not {self.strategy!r}")
        if not 0 < self.refresh_share <= 1:
            raise ValueError(f"refresh_share must lie in (0, 1], not {self.refresh_share}")
        if not 0 <= self.still_below <= 1:
            raise ValueError(f"still_below must lie in [0, 1], not {self.still_below}")


@dataclass(frozen=True)
class PruneConfig:
    """Which visual tokens of a group go on to the LLM."""

    strategy: str = "none"  # "novelty" (ours), "stc" (dual anchor), "uniform", "merge" (ToMe), "coverage" (diversity)
    budget: float = 0.33  # of a group's tokens that stay (STC: 64 of 196); for "novelty" of those that show news
    still_below: float = 0.15  # novelty up to which a patch counts as unchanged
    refresh_seconds: float = 60.0  # a still picture goes on once in so long

    def __post_init__(self) -> None:
        strategies = ("none", "novelty", "stc", "uniform", "merge", "coverage")
        if self.strategy not in strategies:
            raise ValueError(f"strategy must be one of {', '.join(strategies)}, not {self.strategy!r}")
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget must lie in (0, 1], not {self.budget}")
        if not 0 <= self.still_below <= 1:
            raise ValueError(f"still_below must lie in [0, 1], not {self.still_below}")
        if not self.refresh_seconds > 0:
            raise ValueError(f"refresh_seconds must be more than 0, not {self.refresh_seconds}")


@dataclass(frozen=True)
class AnswerConfig:
    """How an answer is decoded."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0  # of the sampler, when temperature > 0
    dialogue_turns: int = 4  # earlier turns shown to the model with a new question
    context_bytes: int = 8 << 30  # device memory for the contexts of answers under way; beyond it questions wait

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"an answer needs room for a token at least, not for {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.context_bytes < 0:
            raise ValueError(f"context_bytes must be 0 or more, not {self.context_bytes}")
        if not 0 <= self.seed < 1 << 63 or self.dialogue_turns < 0:
            raise ValueError(f"neither seed nor dialogue_turns can be negative or huge: {self}")


@dataclass(frozen=True)
class Config:
    read: ReadConfig = field(default_factory=ReadConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)

    def overridden(self, changes: Mapping[str, Mapping[str, Any]]) -> Config:
        """This configuration with some knobs turned: {"memory": {"chunk_frames": 8}}.

        Raises ValueError for a knob that does not exist or cannot stand so.
        """
        sections = {section.name: getattr(self, section.name) for section in fields(self)}
        for name, knobs in changes.items():
            if name not in sections:
                raise ValueError(f"{name!r} is not a section of the configuration: {', '.join(sections)}")
            if not isinstance(knobs, Mapping):
                raise ValueError(f"{name} needs knobs by name, not {knobs!r}")
            known = {knob.name for knob in fields(sections[name])}
            if unknown := set(knobs) - known:
                raise ValueError(f"{name} has no {min(unknown)!r}; it has {', '.join(sorted(known))}")
            for knob, value in knobs.items():
                _check_kind(f"{name}.{knob}", value, getattr(sections[name], knob))
            sections[name] = replace(sections[name], **knobs)
        return Config(**sections)


def _check_kind(name: str, value: Any, default: int | float | str) -> None:
    """A word where the default is one, whole numbers where it is one, else any number that is finite."""
    if isinstance(default, str):
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a word, not {value!r}")
        return
    kinds = int if isinstance(default, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        wanted = "whole number" if kinds is int else "number"
        raise ValueError(f"{name} must be a {wanted}, not {value!r}")
