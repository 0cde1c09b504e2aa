"""Opens what a command needs, cheap checks first: a video, a session's folder, an engine."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from config import Value
from errors import LonglookError
from memory.plain_files import DATABASE
from models.checkpoint import check_can_be_had, recommended_config
from streaming.events import MAX_QUESTION_CHARACTERS
from streaming.sources.address import is_address, parse_address
from streaming.sources.file import SourceInfo, probe
from ui.cli.console import loading, program, warn
from ui.cli.settings import Settings
from ui.cli.wiring import Chosen
from ui.render import VIDEO_SUFFIXES

if TYPE_CHECKING:  # torch takes seconds to import: help and mistakes should not wait for it
    from streaming.engine import Engine
    from streaming.session import Session

END_SLACK_SECONDS = 1.0  # containers round their durations


def video_path(word: str) -> Path:
    """The path of a video file. Raises LonglookError for anything else."""
    if is_address(word):
        raise LonglookError(f"{parse_address(word).shown} is no file, and only files can be taken.")
    return Path(word)


def video_and_questions(words: Sequence[str], session: str | None) -> tuple[str | None, list[str]]:
    """What the words of `ask` mean: with a session, the first one may be a question already."""
    first, others = words[0], words[1:]
    if session is not None and is_mistyped_file(first):
        raise LonglookError(f"There is no file {first}.")
    is_video = session is None or is_address(first) or is_file(first)
    video = first if is_video else None
    questions = list(others if is_video else words)
    for question in questions:
        check_question(question)
    return video, questions


def check_question(question: str) -> None:
    """Raises LonglookError for what no model can be asked."""
    if not question.strip():
        raise LonglookError("A question is empty.")
    if any("\ud800" <= letter <= "\udfff" for letter in question):
        raise LonglookError("A question is not valid UTF-8.")
    if len(question.strip()) > MAX_QUESTION_CHARACTERS:
        raise LonglookError(
            f"A question has {len(question):,} characters; at most "
            f"{MAX_QUESTION_CHARACTERS:,} are read."
        )


def check_can_be_kept(video: Path) -> None:
    """Raises LonglookError for a video whose name a session cannot note down."""
    try:
        str(video.resolve()).encode()
    except UnicodeEncodeError as error:
        raise LonglookError(
            f"A session cannot keep {str(video)!a}: its name is not UTF-8; rename it."
        ) from error


def is_mistyped_file(word: str) -> bool:
    """Whether a word can only be meant as a path, and there is no such file."""
    if is_file(word):
        return False
    has_suffix = Path(word).suffix.lower() in VIDEO_SUFFIXES.split(",")
    is_path = "/" in word and not any(letter.isspace() or letter == "?" for letter in word)
    return has_suffix or is_path


def is_file(word: str) -> bool:
    """Whether a word is the path of a file; a question too long for one is none."""
    try:
        return Path(word).is_file()
    except OSError:
        return False


def checked_moment(seconds: float | None, info: SourceInfo) -> float | None:
    """`seconds` if it lies inside the video; raises LonglookError if not."""
    if seconds is None:
        return None
    length = info.duration_seconds
    if not 0 < seconds < math.inf:
        raise LonglookError(
            f"--ask-at needs seconds from the video's beginning, more than 0, not {seconds:g}."
        )
    if length is not None and seconds > length + END_SLACK_SECONDS:
        raise LonglookError(
            f"--ask-at {seconds:g} lies beyond the end of {info.path.name} at {length:.1f} s."
        )
    return seconds


def check_is_there(folder: Path) -> None:
    """Raises LonglookError where no session can be; what is in the folder is looked at later."""
    if not os.path.lexists(folder / DATABASE):
        raise LonglookError(f"There is no session in {folder}.")


def check_port(host: str, port: int) -> None:
    """Raises LonglookError if nothing can listen there."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = places[0]
        with socket.socket(family, kind, protocol) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
    except OSError as error:
        raise LonglookError(
            f"Nothing can listen on {host} port {port}: is a page open there already?"
        ) from error


def open_engine(chosen: Chosen) -> Engine:
    """The engine, with what the user has set; says what will be missing."""
    recommended_config(chosen.model)
    check_can_be_had(chosen.model)
    with loading(chosen.model):
        from streaming.engine import load_engine

        engine = load_engine(chosen.model, chosen.device, chosen.dtype, chosen.settings.nested())
    if engine.profile is None:
        warn(
            f"No retrieval heads are known for {chosen.model}: all heads together look things up, "
            "which finds less."
        )
        warn(f"To find them, once: {program()} calibrate --model {chosen.model}")
    return engine


@contextmanager
def open_session(
    engine: Engine, folder: Path | None, settings: Settings, read_only: bool = False
) -> Iterator[Session]:
    """A session of this run, or the one that is kept in a folder; closed at the end.

    Raises LonglookError if a kept one has other settings than those asked for.
    """
    session = engine.open(folder, read_only)
    try:
        in_force = dict(session.config.knobs())
        for setting in settings:
            kept = in_force[setting.knob]
            if setting.value != kept:
                raise LonglookError(
                    f"{setting.typed} cannot become {shown(setting.value)}: this session began "
                    f"with {shown(kept)}."
                )
        yield session
    finally:
        session.close()


def shown(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def duration_of(source: str | None) -> float | None:
    """The length of a session's video, None where it is not known or the file has gone."""
    if source is None or is_address(source):
        return None
    try:
        return probe(Path(source)).duration_seconds
    except LonglookError:
        return None
