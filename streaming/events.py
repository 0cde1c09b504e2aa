"""All that a session tells the outside: small records, no tensors.

The command line prints them, the page renders them. Knows nothing of models or memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errors import Notice
from frames import Gap

MAX_QUESTION_CHARACTERS = 4000  # a person's is shorter; its times are parsed on the device's thread


@dataclass(frozen=True)
class Stats:
    """Counters of a session. `tokens` counts everything in memory, and `visual_tokens` what of it
    stands for pieces of picture; `pruned_tokens` were left out since the session was opened. The
    seconds are wall-clock. Those to the first token and the tokens of the context are those of the
    last answer. Of `sparse_chunks` only the sparse level is left on the disk, `forgotten_chunks`
    had to make room altogether: they are no longer recalled. `keyframes` are remembered with the
    chunks that are left."""

    frames_read: int = 0
    chunks: int = 0
    tokens: int = 0
    watch_seconds: float = 0.0
    first_token_seconds: float = 0.0
    device_bytes: int = 0
    host_bytes: int = 0
    context_tokens: int = 0
    disk_bytes: int = 0
    forgotten_chunks: int = 0
    sparse_chunks: int = 0
    visual_tokens: int = 0
    pruned_tokens: int = 0
    keyframes: int = 0


@dataclass(frozen=True)
class Watched:
    """A chunk went into memory; the stream has been seen up to `pts_seconds`."""

    pts_seconds: float
    stats: Stats


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A small picture of what was just seen: uint8 [h, w, 3]."""

    pts_seconds: float
    image: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A frame that stands for what the stream shows from there on, told of once that is sure.

    kind: "head" of the stream, "cut" for the first frame of a new shot, "change" where most of the
    picture is new, "gap" where nothing happened for long, "tail". image: uint8 [h, w, 3], small.
    """

    pts_seconds: float
    kind: str
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class AnswerPiece:
    """Newly generated text of the answer under way."""

    text: str


@dataclass(frozen=True)
class Evidence:
    """A stretch of video that was recalled for an answer, half-open; `why` is "recalled", "named
    time" or "recent".

    level: "dense", or "sparse" where fewer details were looked at.
    """

    start_seconds: float
    stop_seconds: float
    score: float
    why: str
    level: str = "dense"


@dataclass(frozen=True)
class Answer:
    """A finished answer; `evidence` is best first.

    gaps: stretches of which nothing was seen that the answer's time touches.
    """

    question: str
    text: str
    evidence: tuple[Evidence, ...]
    stats: Stats
    gaps: tuple[Gap, ...] = ()


WatchEvent = Watched | Thumbnail | Keyframe | Notice
AskEvent = AnswerPiece | Answer | Notice
