"""Every knob of longlook, in small frozen dataclasses: unit, default, and where the default comes from."""

from __future__ import annotations

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


@dataclass(frozen=True)
class MemoryConfig:
    """What is kept, where, and how much of it comes back for a question."""

    chunk_frames: int = 16  # frames prefilled together (Video-XL-2)
    prefill_chunks: int = 2  # newest chunks (of the window) that a new chunk sees while it is prefilled
    window_chunks: int = 2  # newest chunks, dense on the device, in every answer's context
    recall_chunks: int = 6  # older chunks brought back dense: the best four and the best one's neighbours
    host_bytes: int = 8 << 30  # budget of the host tier
    disk_bytes: int = 64 << 30  # budget of a session's folder, where it has one

    def __post_init__(self) -> None:
        if self.chunk_frames < 1 or self.window_chunks < 1 or self.recall_chunks < 0 or self.prefill_chunks < 0:
            raise ValueError(f"not a memory that can work: {self}")


@dataclass(frozen=True)
class AnswerConfig:
    """How an answer is decoded."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0  # of the sampler, when temperature > 0
    dialogue_turns: int = 4  # earlier turns shown to the model with a new question

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"not a way to decode: {self}")


@dataclass(frozen=True)
class Config:
    read: ReadConfig = field(default_factory=ReadConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)

    def overridden(self, changes: Mapping[str, Mapping[str, Any]]) -> Config:
        """This configuration with some knobs turned: {"memory": {"chunk_frames": 8}}.

        Raises ValueError for a knob that does not exist or cannot stand so.
        """
        sections = {section.name: getattr(self, section.name) for section in fields(self)}
        for name, knobs in changes.items():
            if name not in sections:
                raise ValueError(f"{name!r} is not a section of the configuration: {', '.join(sections)}")
            known = {knob.name for knob in fields(sections[name])}
            if unknown := set(knobs) - known:
                raise ValueError(f"{name} has no {min(unknown)!r}; it has {', '.join(sorted(known))}")
            sections[name] = replace(sections[name], **knobs)
        return Config(**sections)
