"""Watches a camera or stream from the command line, until Ctrl-C or for a given time."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from getpass import getpass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

import typer

from errors import LonglookError, Notice
from memory.session_names import session_folder
from streaming.event_bus import FellBehind, Published
from streaming.live_watch import LiveHealth, WatchStopped
from streaming.sources.address import Address, parse_address
from streaming.sources.source import (
    SourceDown,
    SourceGap,
    SourceLive,
    SourceThinned,
    Thinning,
)
from ui.cli import opening
from ui.cli.answers import rounded
from ui.cli.console import as_markup, first_interrupt, program, say, stderr, warn, warn_of_notice
from ui.cli.progress import LINE_SECONDS, counters
from ui.cli.watching import Outcome, watch_growing
from ui.cli.wiring import Chosen
from ui.render import clock

if TYPE_CHECKING:
    from streaming.engine import Engine
    from streaming.event_bus import Subscription
    from streaming.live_watch import LiveWatch
    from streaming.session import Session

PASSWORD_VARIABLE = "LONGLOOK_SOURCE_PASSWORD"
TURN_SECONDS = 0.5  # between looks at Ctrl-C and the clock
END_SECONDS = 60.0  # for the chunk under way when it is stopped
STOPPING = "stopping after the chunk under way; Ctrl-C again quits"


def with_login(address: Address, password_file: Path | None) -> Address:
    """The address with the password that was not typed into it, if a user is named.

    Raises LonglookError where there is none and nobody can be asked.
    """
    if password_file is not None:
        return address.with_password(password_in(password_file))
    if not address.user or address.password is not None:
        return address
    if password := os.environ.get(PASSWORD_VARIABLE):
        return address.with_password(password)
    if not sys.stdin.isatty():
        raise LonglookError(
            f"There is no password for {address.user} at {address.host}: give it with "
            f"--password-file or in the environment variable {PASSWORD_VARIABLE}."
        )
    return address.with_password(getpass(f"Password of {address.user} at {address.host}: "))


def password_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").splitlines()[0]
    except OSError as error:
        raise LonglookError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, IndexError) as error:
        raise LonglookError(f"{path} has no password in its first line.") from error


def check_length(seconds: float | None) -> float | None:
    """How long to watch a stream that has no end. Raises LonglookError for no length."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise LonglookError(f"--ask-at needs seconds to watch, more than 0, not {seconds:g}.")
    return seconds


def watch_camera(
    video: str, session: str, chosen: Chosen, password_file: Path | None, as_json: bool
) -> None:
    """`watch` of a live source: until Ctrl-C, which is its usual end."""
    address = with_login(parse_address(video), password_file)
    engine = opening.open_engine(chosen)
    with opening.open_session(engine, session_folder(session), chosen.settings) as opened:
        watch_address(engine, opened, address, session)
        if as_json:
            found = {"seen_seconds": opened.seen_seconds, "gaps": len(opened.timeline.gaps)}
            typer.echo(json.dumps(rounded({**found, "stats": asdict(opened.stats)})))
        again = shlex.join(["watch", address.shown, "--session", session])
        to_ask = shlex.join(["ask", "--session", session])
        say(f"Stopped at {clock(opened.seen_seconds or 0.0)}. To go on: {program()} {again}")
        say(f'To ask: {program()} {to_ask} "..."')


def watch_address(
    engine: Engine,
    session: Session,
    address: Address,
    session_id: str,
    length_seconds: float | None = None,
) -> Outcome:
    """Watches a camera or stream, or a file that grows."""
    if address.is_live:
        return watch_live(engine, session, address, session_id, length_seconds)
    return watch_growing(session, Path(address.place))


def watch_live(
    engine: Engine,
    session: Session,
    address: Address,
    session_id: str,
    length_seconds: float | None = None,
) -> Outcome:
    """Watches until Ctrl-C, or for some seconds; tells what happens as it does.

    Raises LonglookError where watching could not go on.
    """
    with engine.events.subscribe() as events:
        run = LiveRun(engine.watch_live(session, address, session_id), session)
        say(f"Watching {address.shown}; Ctrl-C ends it.")
        outcome = watch_until_stopped([run], events, length_seconds)
    if run.watching.error is not None:
        raise run.watching.error
    if outcome is Outcome.STOPPED and not session.stats.chunks:
        raise KeyboardInterrupt
    return outcome


def watch_all(engine: Engine, runs: Sequence[LiveRun]) -> Outcome:
    """Watches several cameras until Ctrl-C, or until all of them failed."""
    with engine.events.subscribe() as events:
        return watch_until_stopped(runs, events)


@dataclass(frozen=True, eq=False)
class LiveRun:
    """A session that is being filled."""

    watching: LiveWatch
    session: Session


def watch_until_stopped(
    runs: Sequence[LiveRun], events: Subscription, length_seconds: float | None = None
) -> Outcome:
    """Tells what happens until Ctrl-C, for some seconds, or until nothing is watched any more."""
    stopped = Event()
    line = LiveLine(names_session=len(runs) > 1)
    with first_interrupt(lambda: stop_calmly(stopped)), stop_on_terminate(stopped):
        stop_at = math.inf if length_seconds is None else monotonic() + length_seconds
        while not stopped.is_set() and monotonic() < stop_at:
            if not any(run.watching.is_running for run in runs):
                break
            if (published := events.take(TURN_SECONDS)) is not None:
                tell(published, names_session=len(runs) > 1)
            line.update(runs)
        for run in runs:
            run.watching.stop()
        for run in runs:
            if not run.watching.join(END_SECONDS):
                warn("The chunk under way takes too long; it is left out.")
    return Outcome.STOPPED if stopped.is_set() else Outcome.WATCHED


def stop_calmly(stopped: Event) -> None:
    say(STOPPING)
    stopped.set()


@contextmanager
def stop_on_terminate(stopped: Event) -> Iterator[None]:
    """A camera is mostly watched by a service, which is ended with SIGTERM: as calmly as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class LiveLine:
    """How it goes, every ten seconds: for a log, and for who looks on."""

    def __init__(self, names_session: bool) -> None:
        self._names_session = names_session
        self._last = monotonic()

    def update(self, runs: Sequence[LiveRun]) -> None:
        if monotonic() - self._last < LINE_SECONDS:
            return
        self._last = monotonic()
        for run in runs:
            name = f"{run.watching.session_id}: " if self._names_session else ""
            say(f"{name}{as_line(run.watching.health)}, {counters(run.session.stats)}")


def as_line(health: LiveHealth) -> str:
    """ "live, seen up to 0:42, 3.1 s behind, 4 frames dropped" """
    source = health.source
    words = [
        source.state.value if source.trouble is None else f"down ({source.trouble.code})",
        f"seen up to {clock(health.seen_seconds)}",
        f"{health.lag_seconds:.1f} s behind",
    ]
    if health.dropped_busy:
        words.append(f"{health.dropped_busy} frames dropped (busy)")
    if source.damaged:
        words.append(f"{source.damaged} damaged packets")
    if source.thinning is not Thinning.NONE:
        words.append(source.thinning.text)
    return ", ".join(words)


def tell(published: Published, names_session: bool = False) -> None:
    """One event as a line, with the time by the clock on the wall."""
    event = published.event
    name = as_markup(f"{published.session_id}: ") if names_session else ""
    if isinstance(event, Notice):
        warn_of_notice(event)
    elif isinstance(event, FellBehind):
        warn(f"{event.num_lost} messages were lost; watching goes on.")
    elif (text := sentence_of(event)) is not None:
        at = datetime.fromtimestamp(published.wall_seconds)
        stderr.print(f"[dim]{at:%H:%M:%S}[/] {name}{as_markup(text)}", soft_wrap=True)


def sentence_of(event: object) -> str | None:
    """What a person should know of an event of a source; None for others."""
    if isinstance(event, SourceLive):
        return f"Live: {event.codec}, {event.width}x{event.height}."
    if isinstance(event, SourceDown):
        trouble = event.trouble
        return (
            f"Down: {trouble.code} ({trouble.advice}). Next try in {event.next_try_seconds:.0f} s."
        )
    if isinstance(event, SourceGap):
        length = event.stop_seconds - event.start_seconds
        start = clock(event.start_seconds)
        return f"Nothing was seen for {length:.1f} s from {start} on ({event.reason})."
    if isinstance(event, SourceThinned):
        if event.level is Thinning.NONE:
            return "It keeps up again: all pictures are taken."
        return f"Too much to do: {event.level.text} from now on."
    if isinstance(event, WatchStopped) and event.error:
        return event.error
    return None
