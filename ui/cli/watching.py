"""Watches a file into a session, with progress, until its end, a given second or Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from errors import LonglookError, Notice
from frames import Frame, next_tick_seconds
from streaming.events import Watched
from streaming.reader import Reader
from streaming.sources.file import EmptyStretchError, FileSource, probe
from streaming.sources.fingerprint import fingerprint
from streaming.sources.follow import FollowSource
from ui.cli.console import first_interrupt, say, warn_of_new, warn_of_notice
from ui.cli.progress import WatchProgress, watch_progress
from ui.render import clock

if TYPE_CHECKING:
    from streaming.session import Session


class Outcome(Enum):
    """How watching ended."""

    WATCHED = "to its end, or to the second asked for"
    BROKEN_OFF = "before its end, since it could not be kept"
    STOPPED = "by Ctrl-C"
    NOTHING_NEW = "it had been watched before"


class StopWatching(Exception):  # noqa: N818 - no error
    """Ctrl-C was pressed."""


def watch_video(
    session: Session, video: Path, stop_seconds: float | None = None, skim: bool = False
) -> Outcome:
    """Watches what a session has not seen of a video yet."""
    read, seen_seconds = session.config.read, session.seen_seconds
    if session.is_kept:
        session.follow(str(video.resolve()), fingerprint(probe(video)))
    start_seconds = 0.0
    if seen_seconds is not None:
        start_seconds = next_tick_seconds(seen_seconds, read.fps)
        if stop_seconds is not None and seen_seconds > stop_seconds:
            raise LonglookError(
                f"This session has seen {seen_seconds:.1f} s already; --ask-at cannot go back."
            )
        if stop_seconds is not None and start_seconds >= stop_seconds:
            return Outcome.NOTHING_NEW
    source = FileSource(video, read.fps, start_seconds, stop_seconds, only_keyframes=skim)
    ends = [end for end in (source.info.duration_seconds, stop_seconds) if end is not None]
    try:
        with (
            Reader(source) as reader,
            watch_progress(start_seconds, min(ends, default=None)) as progress,
        ):
            frames = announced(reader, start_seconds)
            return watch_with_progress(session, frames, source, progress)
    except EmptyStretchError:
        if seen_seconds is None:
            raise
        return Outcome.NOTHING_NEW


def watch_growing(session: Session, path: Path) -> Outcome:
    """Watches a file that is still written, until nothing is added for a while."""
    read, seen_seconds = session.config.read, session.seen_seconds
    start_seconds = 0.0 if seen_seconds is None else next_tick_seconds(seen_seconds, read.fps)
    source = FollowSource(path, read.fps, start_seconds)
    session.follow(source.title)
    with Reader(source) as reader, watch_progress(start_seconds, None) as progress:
        frames = announced(reader, start_seconds)
        return watch_with_progress(session, frames, source, progress, ahead=False)


class Delivery:
    """Frames on their way to a session: how far they have come."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames = frames
        self._has_ended = False
        self._last_seconds = 0.0

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._frames:
            yield frame
            self._last_seconds = frame.pts_seconds
        self._has_ended = True

    def is_complete(self, seen_seconds: float | None) -> bool:
        """Whether all frames have become part of what was seen."""
        return self._has_ended and (seen_seconds or 0.0) >= self._last_seconds


def announced(frames: Iterable[Frame], start_seconds: float) -> Iterator[Frame]:
    """The frames; says where watching goes on once it is known that there is one."""
    is_announced = start_seconds == 0
    for frame in frames:
        if not is_announced:
            say(f"Going on at {clock(start_seconds)}.")
            is_announced = True
        yield frame


def stop_on_event(stopped: Event, frames: Iterable[Frame]) -> Iterator[Frame]:
    """Ends with an exception, so that frames that do not fill a chunk are read again later."""
    for frame in frames:
        if stopped.is_set():
            raise StopWatching
        yield frame


def watch_with_progress(
    session: Session,
    frames: Iterable[Frame],
    source: FileSource | FollowSource,
    progress: WatchProgress,
    ahead: bool = True,
) -> Outcome:
    """Drains `session.watch`; tells of warnings and notices as they come."""
    stopped = Event()
    num_told = 0
    given = Delivery(frames)
    if session.is_kept:
        wanted = stop_on_event(stopped, given)
    else:
        wanted = takewhile(lambda _: not stopped.is_set(), given)
    with first_interrupt(stop_calmly(stopped, progress)), suppress(StopWatching):
        for event in session.watch(wanted, ahead=ahead):
            if isinstance(event, Watched):
                progress.update(event.pts_seconds, event.stats)
            elif isinstance(event, Notice):
                warn_of_notice(event)
            num_told = warn_of_new(source.warnings, num_told)
    warn_of_new(source.warnings, num_told)
    if not stopped.is_set():
        is_complete = given.is_complete(session.seen_seconds)
        return Outcome.WATCHED if is_complete else Outcome.BROKEN_OFF
    if not session.stats.chunks:
        raise KeyboardInterrupt
    return Outcome.STOPPED


def stop_calmly(stopped: Event, progress: WatchProgress) -> Callable[[], None]:
    """What the first Ctrl-C does."""

    def stop() -> None:
        stopped.set()
        progress.stopping()

    return stop
