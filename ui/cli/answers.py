"""Answers as lines of text or as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from errors import Notice
from frames import Gap
from streaming.events import Answer, AnswerPiece, Evidence
from ui.cli.console import printable, say, stderr, warn_of_notice
from ui.cli.opening import END_SLACK_SECONDS
from ui.render import clock, evidence_row

if TYPE_CHECKING:
    from memory.timeline import Timeline
    from streaming.session import Session

DECIMALS = 3  # of seconds and scores in JSON


def show_answer(session: Session, question: str, is_one_of_several: bool) -> None:
    """The answer as it is generated, then its evidence; of several, after its question."""
    if is_one_of_several:
        typer.echo(f"Q: {printable(question.strip())}")
        typer.echo("A: ", nl=False)
    for event in session.ask(question):
        if isinstance(event, AnswerPiece):
            typer.echo(printable(event.text, also="\n\t"), nl=False)
        elif isinstance(event, Answer):
            typer.echo("")
            for item in event.evidence:
                show_evidence(item, session.timeline)
            for gap in event.gaps:
                say(gap_sentence(gap, session.timeline))
        elif isinstance(event, Notice):
            warn_of_notice(event)


def show_evidence(evidence: Evidence, timeline: Timeline) -> None:
    """One stretch, by the clock on the wall where the session knows it."""
    span, why, score = evidence_row(evidence)
    if timeline.has_wall_clock:
        start, stop = (
            moment(seconds, timeline) for seconds in (evidence.start_seconds, evidence.stop_seconds)
        )
        span = f"{start} to {stop}"
    row = f"  {span:<17} {why:<10} {score:>6}"
    stderr.print(f"[dim]{row.rstrip()}[/]", soft_wrap=True)


def moment(seconds: float, timeline: Timeline) -> str:
    """A second of a session by the clock on the wall, with the day if that is another one."""
    wall_seconds = timeline.wall_at(seconds)
    if wall_seconds is None:
        return clock(seconds)
    when = datetime.fromtimestamp(wall_seconds)
    is_today = when.date() == datetime.now().date()
    return f"{when:%H:%M:%S}" if is_today else f"{when:%Y-%m-%d %H:%M:%S}"


def gap_sentence(gap: Gap, timeline: Timeline) -> str:
    start = moment(gap.start_seconds, timeline)
    if math.isinf(gap.stop_seconds):
        return f"Nothing has been seen since {start} ({gap.reason})."
    return f"Nothing was seen from {start} to {moment(gap.stop_seconds, timeline)} ({gap.reason})."


def gap_as_dict(gap: Gap) -> dict[str, Any]:
    """For JSON, which has no infinity: a gap that is still open has no end."""
    found = asdict(gap)
    if math.isinf(gap.stop_seconds):
        found["stop_seconds"] = None
    return found


def answer_as_json(session: Session, question: str, duration_seconds: float | None) -> str:
    """The finished answer as one line."""
    events = list(session.ask(question))
    for event in events:
        if isinstance(event, Notice):
            warn_of_notice(event)
    answer = next(event for event in events if isinstance(event, Answer))
    found = {
        "question": answer.question,
        "answer": answer.text,
        "evidence": [asdict(item) for item in answer.evidence],
        "gaps": [gap_as_dict(gap) for gap in answer.gaps],
        "seen_seconds": session.seen_seconds,
        "duration_seconds": duration_seconds,
        "stats": asdict(answer.stats),
    }
    return json.dumps(rounded(found))


def say_how_far(session: Session, duration_seconds: float | None) -> None:
    """Says so where the answer does not rest on the whole video."""
    if is_seen_to_its_end(session, duration_seconds):
        return
    seen = moment(session.seen_seconds or 0.0, session.timeline)
    total = "" if duration_seconds is None else f" of {clock(duration_seconds)}"
    say(f"watched up to {seen}{total}")


def is_seen_to_its_end(session: Session, duration_seconds: float | None) -> bool:
    """False where the length is unknown."""
    if duration_seconds is None:
        return False
    slack = END_SLACK_SECONDS + 1 / session.config.read.fps
    return (session.seen_seconds or 0.0) + slack >= duration_seconds


def rounded(value: Any) -> Any:
    """Plain data with all numbers rounded for people."""
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
