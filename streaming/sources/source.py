"""What every source of frames has, and what a live one tells as it goes.

Knows nothing of threads, models or memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from frames import Frame
from streaming.sources.trouble import Trouble


@dataclass(frozen=True)
class SourceLive:
    """Pictures come, from now on or again."""

    seconds: float
    codec: str
    width: int
    height: int


@dataclass(frozen=True)
class SourceDown:
    """No pictures come; it will be tried again in `next_try_seconds`."""

    seconds: float
    trouble: Trouble
    next_try_seconds: float


@dataclass(frozen=True)
class SourceGap:
    """Nothing was seen from `start_seconds` to `stop_seconds` of the session; pictures are back.

    reason: in a word or two.
    """

    start_seconds: float
    stop_seconds: float
    reason: str


@dataclass(frozen=True)
class SourceThinned:
    """Fewer pictures are taken from now on, as there is too much to do; or all of them again."""

    seconds: float
    level: Thinning


@dataclass(frozen=True)
class SourceClosed:
    """There will be no more pictures."""

    seconds: float


SourceEvent = SourceLive | SourceDown | SourceGap | SourceThinned | SourceClosed
Tell = Callable[[SourceEvent], None]


class Thinning(Enum):
    """How many pictures an overloaded source still gives. `share` is that of the usual rate."""

    NONE = ("all pictures", 1.0, False)
    HALF = ("every second picture", 0.5, False)
    QUARTER = ("every fourth picture", 0.25, False)
    KEYFRAMES = ("keyframes only", 0.25, True)

    def __init__(self, text: str, share: float, only_keyframes: bool) -> None:
        self.text = text
        self.share = share
        self.only_keyframes = only_keyframes


class State(Enum):
    CONNECTING = "connecting"
    LIVE = "live"
    DOWN = "down"
    CLOSED = "closed"


@dataclass(frozen=True)
class SourceHealth:
    """How a source is doing, in figures that only grow, and its state now.

    decoded: pictures. sampled: frames given. damaged: packets that could not be decoded.
    stale: pictures of a time that had been seen already. lag_seconds: from the moment a picture
    should have come to the moment it did. overload_seconds: of reading without a pause.
    camera_clock_seconds: how far the camera's clock is ahead of ours, None where it tells none.
    """

    state: State = State.CONNECTING
    trouble: Trouble | None = None
    connections: int = 0
    decoded: int = 0
    sampled: int = 0
    damaged: int = 0
    stale: int = 0
    lag_seconds: float = 0.0
    overload_seconds: float = 0.0
    thinning: Thinning = Thinning.NONE
    camera_clock_seconds: float | None = None


class Source(Protocol):
    """Where frames come from."""

    @property
    def is_live(self) -> bool:
        """Whether frames come in their own time and are lost if nobody takes them."""
        ...

    @property
    def title(self) -> str:
        """What to call it; holds no password."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What was wrong so far, a sentence each; grows."""
        ...

    @property
    def progress(self) -> int:
        """Grows as long as the source is at work, whether or not a frame comes of it."""
        ...

    @property
    def health(self) -> SourceHealth: ...

    def frames(self) -> Iterator[Frame]:
        """The frames in order; called on the reader's thread."""
        ...

    def close(self) -> None:
        """End `frames()` soon; called from any thread."""
        ...


@dataclass(frozen=True)
class Fingerprint:
    """first_packets: hash of the first packets, what they hold and when they are shown.
    num_bytes: of the file.
    """

    first_packets: str
    num_bytes: int

    def can_become(self, later: Fingerprint) -> bool:
        """Whether a file that was as this one could be the same recording, longer by now."""
        return self.first_packets == later.first_packets and self.num_bytes <= later.num_bytes


@dataclass(frozen=True)
class Timing:
    """Seconds of everything that is waited for.

    first_retry, last_retry: back-off after a failure. slow_retry: after one that trying again
    would make worse. no_picture: packets come, but no picture for so long.
    """

    open: float = 8.0
    read: float = 5.0
    no_picture: float = 6.0
    first_retry: float = 0.5
    last_retry: float = 15.0
    slow_retry: float = 30.0


DEFAULT_TIMING = Timing()
