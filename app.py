"""The command line of longlook.

Turns words into calls and events into lines: answers on standard output, everything else on standard error. A user's
mistake is one sentence and exit code 2.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from errors import LonglookError
from memory.session_names import session_folder, sessions_root
from streaming.events import Answer, AnswerPiece, Notice, Stats, Watched
from streaming.file_source import EmptyStretchError, FileSource, SourceInfo, probe
from streaming.frames import Frame, next_tick_seconds
from streaming.reader import Reader
from ui.render import VIDEO_SUFFIXES, clock, evidence_row

if TYPE_CHECKING:  # torch takes seconds to import: help and mistakes should not wait for it
    from memory.folders import Summary
    from streaming.engine import Engine
    from streaming.session import Session

SAMPLES = Path(__file__).parent / "samples"
Settings = dict[str, dict[str, Any]]
USER_MISTAKE = 2
ADVICE = {"memory.host_bytes": "--host-budget", "memory.disk_bytes": "--disk-budget"}
INTERRUPTED = 130
GIB = 1 << 30
CONTROL = ("Cc", "Cs", "Zl", "Zp")  # categories: control, undecoded bytes, separators of lines
# Characters without a width that reverse the text after them, and so can disguise a name.
TURN_TEXT = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
END_SLACK_SECONDS = 1.0  # containers round their durations

app = typer.Typer(
    help="Watch a video of any length and answer questions about any moment of it, on a single GPU or none.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
sessions = typer.Typer(help="The sessions kept on this machine.", no_args_is_help=True)
app.add_typer(sessions, name="sessions")
said = Console(stderr=True, highlight=False, emoji=False)

ModelName = Annotated[
    str, typer.Option("--model", "-m", help="demo (embedded), a folder, or a hub id such as Qwen/Qwen3-VL-4B-Instruct.")
]
Device = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Fps = Annotated[float | None, typer.Option(help="Frames looked at per second of video. \\[default: 2]")]
ChunkFrames = Annotated[int | None, typer.Option(help="Frames remembered together. \\[default: 16; demo 8]")]
RecallChunks = Annotated[int | None, typer.Option(help="Older chunks brought back for a question. \\[default: 6]")]
Recall = Annotated[
    str | None,
    typer.Option(
        help="always looks back, never answers from the last seconds alone, auto does so where the model is sure. "
        "\\[default: always]"
    ),
]
HostBudget = Annotated[float | None, typer.Option(help="GiB of host memory for what was seen. \\[default: 8]")]
DiskBudget = Annotated[
    float | None, typer.Option(help="GiB of disk for a session; beyond, the oldest loses details. \\[default: 64]")
]
KvBits = Annotated[
    int | None,
    typer.Option(help="16 keeps what was seen as computed, 8 in half the memory or less. \\[default: 16; demo 8]"),
]
Prune = Annotated[
    str | None,
    typer.Option(
        help="Which visual tokens to keep. novelty: skip static frames and keep a share of the tokens of the others; "
        "stc, uniform, merge, coverage: keep a share in every frame; none: keep all. \\[default: none; demo novelty]"
    ),
]
Reuse = Annotated[
    str | None,
    typer.Option(
        help="Re-encode only what changed since a reference frame. novelty: the patches that changed; keys: those "
        "that STC picks, by their keys; none: encode everything. \\[default: none]"
    ),
]
PruneBudget = Annotated[
    float | None,
    typer.Option(help="Fraction of a frame's tokens that --prune keeps, up to 1. \\[default: 0.33; demo 0.5]"),
]
SESSION_HELP = "Where to keep what was watched: a name, or a folder written with a slash (./trip)."
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON.")]
SessionName = Annotated[str, typer.Argument(help="Its name, or its folder with a slash.", metavar="SESSION")]


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longlook {version('longlook')}")
        raise typer.Exit


@app.callback()
def every_command(
    wants_version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass  # its options are answered by their callbacks


@app.command()
def ask(
    context: typer.Context,
    video: Annotated[str, typer.Argument(help="The video file; may be left out with --session.", metavar="VIDEO")],
    questions: Annotated[list[str] | None, typer.Argument(help="One or more questions.", metavar="QUESTION")] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help=SESSION_HELP)] = None,
    ask_at: Annotated[
        float | None, typer.Option(help="Stop watching at this second, then ask.")
    ] = None,
    skim: Annotated[
        bool, typer.Option("--skim", help="Decode only the file's own keyframes: quick, but rough.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per question, a line each.")] = False,
    model: ModelName = "demo",
    device: Device = "auto",
    dtype: Dtype = "auto",
    fps: Fps = None,
    chunk_frames: ChunkFrames = None,
    recall_chunks: RecallChunks = None,
    recall: Recall = None,
    host_budget: HostBudget = None,
    disk_budget: DiskBudget = None,
    kv_bits: KvBits = None,
    reuse: Reuse = None,
    prune: Prune = None,
    prune_budget: PruneBudget = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens. \\[default: 256; demo 64]")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest word. \\[default: 0]")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the likeliest words of this share. \\[default: 1]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler. \\[default: 0]")] = None,
) -> None:
    """Watch a video, then answer questions about it.

    Answers go to standard output, everything else to standard error.

    Ctrl-C while watching stops there and answers from what was seen; a second one quits.

    With --session and no video, what was kept is asked, even while another process goes on watching.

    \b
    Examples:
      longlook ask clip.mp4 "When does the red circle appear?"
      longlook ask clip.mp4 "What is shown at 0:50?" "Was there a red circle?" --json
      longlook ask clip.mp4 "What is shown now?" --ask-at 30
      longlook ask clip.mp4 "Is there a purple triangle?" --skim
      longlook ask holiday.mp4 "Who comes in?" --model Qwen/Qwen3-VL-4B-Instruct
      longlook ask --session trip "When does the red circle appear?"
    """
    with told_plainly():
        folder = None if session is None else session_folder(session)
        path, asked = video_and_questions(video, questions or [], session)
        if not asked:
            raise typer.BadParameter("there is no question", context)
        if ask_at is not None and path is None:
            raise LonglookError("--ask-at needs a video to be watched up to there.")
        if skim and session is not None:
            raise LonglookError("--skim is for a first look; a session keeps what was watched properly.")
        stop_seconds = checked_moment(ask_at, probe(path)) if path else None
        settings: Settings = {
            "read": {"fps": fps},
            "memory": {
                "chunk_frames": chunk_frames,
                "recall_chunks": recall_chunks,
                "recall": recall,
                "host_bytes": in_bytes("--host-budget", host_budget),
                "disk_bytes": in_bytes("--disk-budget", disk_budget),
                "kv_bits": kv_bits,
            },
            "reuse": {"strategy": reuse},
            "prune": {"strategy": prune, "budget": prune_budget},
            "answer": {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed},
        }
        engine = open_engine(model, device, dtype, settings)
        with open_session(engine, folder, settings, read_only=path is None) as opened:
            if path and watch_on(opened, path, stop_seconds, skim):
                say("Stopped; answering from what was seen so far.")
            for question in asked:
                if as_json:
                    typer.echo(json.dumps(asked_silently(opened, question)))
                else:
                    show_answer(opened, question)


@app.command()
def watch(
    video: Annotated[Path, typer.Argument(help="The video file.", metavar="SOURCE")],
    session: Annotated[str, typer.Option("--session", "-s", help=SESSION_HELP)],
    as_json: Annotated[bool, typer.Option("--json", help="At the end, one line of JSON with counters.")] = False,
    model: ModelName = "demo",
    device: Device = "auto",
    dtype: Dtype = "auto",
    fps: Fps = None,
    chunk_frames: ChunkFrames = None,
    host_budget: HostBudget = None,
    disk_budget: DiskBudget = None,
    kv_bits: KvBits = None,
    reuse: Reuse = None,
    prune: Prune = None,
    prune_budget: PruneBudget = None,
) -> None:
    """Watch a video into a session that stays, to be asked now or later.

    Ctrl-C stops, and the same command goes on where it stopped. Nothing that was watched is lost, whatever happens to
    this process, but the chunk under way.

    \b
    Examples:
      longlook watch clip.mp4 --session trip
      longlook watch clip.mp4 --session ./trip --disk-budget 20
      longlook ask --session trip "When does the red circle appear?"
    """
    with told_plainly():
        folder = session_folder(session)
        probe(video)
        settings: Settings = {
            "read": {"fps": fps},
            "memory": {
                "chunk_frames": chunk_frames,
                "host_bytes": in_bytes("--host-budget", host_budget),
                "disk_bytes": in_bytes("--disk-budget", disk_budget),
                "kv_bits": kv_bits,
            },
            "reuse": {"strategy": reuse},
            "prune": {"strategy": prune, "budget": prune_budget},
        }
        engine = open_engine(model, device, dtype, settings)
        with open_session(engine, folder, settings) as opened:
            stopped = watch_on(opened, video)
            seen = clock(opened.seen_seconds or 0.0)
            if as_json:
                typer.echo(json.dumps({"seen_seconds": opened.seen_seconds, "stats": asdict(opened.stats)}))
        if stopped:
            words = shlex.join(["watch", str(video), "--session", session])
            said.print(f"Stopped at {seen}. To go on: {program()} {as_markup(words)}", soft_wrap=True)
            raise typer.Exit(INTERRUPTED)
        words = shlex.join(["ask", "--session", session])
        said.print(f'Watched up to {seen}. To ask: {program()} {as_markup(words)} "..."', soft_wrap=True)


@app.command()
def serve(
    video: Annotated[Path | None, typer.Argument(help="A video offered first; else the bundled samples.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    model: ModelName = "demo",
    device: Device = "auto",
    dtype: Dtype = "auto",
    fps: Fps = None,
    reuse: Reuse = None,
    prune: Prune = None,
    prune_budget: PruneBudget = None,
) -> None:
    """Open the page: upload a video or take a sample, watch it being seen, ask.

    Everything stays on this machine unless --host says otherwise: there is no log-in.

    \b
    Examples:
      longlook serve
      longlook serve clip.mp4 --port 8000
      longlook serve --model Qwen/Qwen3-VL-4B-Instruct --device cuda
    """
    with told_plainly():
        samples = [video] if video else sorted(SAMPLES.glob("*.mp4"))
        for sample in samples:
            probe(sample)  # says at once what is wrong with it
        settings: Settings = {
            "read": {"fps": fps},
            "reuse": {"strategy": reuse},
            "prune": {"strategy": prune, "budget": prune_budget},
        }
        engine = open_engine(model, device, dtype, settings)
        from ui import demo as page  # Gradio takes seconds to import
        from ui.render import ModelInfo

        page.serve(
            engine,
            samples,
            model=ModelInfo(model, is_demo=model == "demo"),
            config=engine.config.read,
            preload=True,
            host=host,
            port=port,
            on_ready=lambda address: said.print(f"longlook is at [bold]{address}[/] (Ctrl-C ends it)"),
        )


@app.command()
def calibrate(
    model: ModelName = "demo",
    device: Device = "auto",
    dtype: Dtype = "auto",
    needles: Annotated[int, typer.Option(help="Chunks of each needle stream.", min=8, max=64)] = 48,
    seed: Annotated[int, typer.Option(help="Seed of the needles; the check uses the next one.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where the profile goes. \\[default: the user's cache]")] = None,
) -> None:
    """Find the attention heads of a checkpoint that look things up, and say how often they find them.

    The profile is kept and used from then on. hit@1 and hit@4 are measured on needles that were not used to choose.

    \b
    Examples:
      longlook calibrate --model Qwen/Qwen3-VL-4B-Instruct --device cuda
      longlook calibrate --model ./my-checkpoint --needles 64
    """
    with told_plainly():
        from models.calibration import calibrate as run
        from models.calibration import profile_path
        from streaming.engine import load_model

        with said.status(f"loading {as_markup(model)}"):
            loaded, config = load_model(model, device, dtype)
        with progress_bar("calibrating") as bar:
            task = bar.add_task("", total=2 * needles)
            profile = run(
                loaded,
                config.memory,
                config.read.fps,
                needles,
                seed,
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        if profile is None:
            raise LonglookError(
                f"no head of {loaded.model_id} retrieves; all of them together, which find less, will be used"
            )
        path = out or profile_path(loaded)
        profile.save(path)
        table = Table("layer", "head", "asked with", "hit@1", "hit@4")
        for head in profile.heads:
            asked = f"last {head.last_tokens}" if head.last_tokens else "all tokens"
            table.add_row(str(head.layer), str(head.head), asked, f"{head.hit1:.2f}", f"{head.hit4:.2f}")
        table.add_row("all", "", "", f"{profile.hit1:.2f}", f"{profile.hit4:.2f}")
        Console(emoji=False).print(table)
        checked = f"{profile.num_needles} fresh questions over {needles} chunks"
        said.print(f"{checked}; profile kept in {as_markup(str(path))}")


@sessions.command("list")
def list_sessions(
    root: Annotated[Path | None, typer.Argument(help="The folder they are in. \\[default: the user's data]")] = None,
    as_json: AsJson = False,
) -> None:
    """What is kept: every session below a folder.

    \b
    Examples:
      longlook sessions list
      longlook sessions list . --json
    """
    from memory.folders import sessions_in, summary

    with told_plainly():
        root = root or sessions_root()
    found = []
    for folder in sessions_in(root):
        try:
            found.append(summary(folder))
        except LonglookError as error:
            say(str(error))
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in found]))
    elif not found:
        said.print(f"No sessions in {as_markup(str(root))}.", soft_wrap=True)
    else:
        table = Table("session", "source", "seen", "chunks", "on disk", "questions", "")
        for item in found:
            table.add_row(*map(as_markup, session_row(item)))
        Console(emoji=False).print(table)


@sessions.command("info")
def show_session(session: SessionName, as_json: AsJson = False) -> None:
    """What one session holds.

    \b
    Examples:
      longlook sessions info trip
      longlook sessions info ./trip --json
    """
    with told_plainly():
        folder = session_folder(session)
        from memory.folders import summary

        found = asdict(summary(folder))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for name, value in found.items():
            typer.echo(f"{name.replace('_', ' '):<17} {printable(str(value))}")


@sessions.command("delete")
def delete_session(
    session: SessionName, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False
) -> None:
    """Delete a session for good.

    \b
    Examples:
      longlook sessions delete trip
      longlook sessions delete ./trip --yes
    """
    with told_plainly():
        folder = session_folder(session)
        from memory.folders import delete, summary
        from memory.store import SessionError, check_is_session

        check_is_session(folder)
        try:
            found = summary(folder)
            told = f"{folder}, {clock(found.seen_seconds)} of {found.source or 'nothing yet'}"
        except SessionError as error:  # it may be damaged, and can be thrown away all the same
            say(str(error))
            told = str(folder)
        if not yes:
            typer.confirm(f"Delete {printable(told)}?", abort=True, err=True)
        delete(folder)
        said.print(f"Deleted {as_markup(told)}.", soft_wrap=True)


def session_row(item: Summary) -> list[str]:
    source = Path(item.source).name if item.source else ""
    state = "being watched" if item.being_watched else ""
    size = f"{item.disk_bytes / (1 << 20):.1f} MiB"
    return [
        Path(item.folder).name,
        source,
        clock(item.seen_seconds),
        str(item.chunks),
        size,
        str(item.questions),
        state,
    ]


def open_engine(model: str, device: str, dtype: str, settings: Settings) -> Engine:
    """The engine, with what the user has set; says what will be missing."""
    from streaming.engine import load_engine

    given = {section: {k: v for k, v in knobs.items() if v is not None} for section, knobs in settings.items()}
    with said.status(f"loading {as_markup(model)}"):
        engine = load_engine(model, device, dtype, given)
    if engine.profile is None:
        say(f"No retrieval heads are known for {model}: all heads together look things up, which finds less.")
        say(f"To find them, once: {program()} calibrate --model {model}")
    return engine


def checked_moment(seconds: float | None, info: SourceInfo) -> float | None:
    """`seconds` where it lies inside the video; raises LonglookError where not."""
    if seconds is None:
        return None
    length = info.duration_seconds
    if not 0 < seconds < math.inf:
        raise LonglookError(f"--ask-at needs seconds from the video's beginning, more than 0, not {seconds:g}.")
    if length is not None and seconds > length + END_SLACK_SECONDS:
        raise LonglookError(f"--ask-at {seconds:g} lies beyond the end of {info.path.name} at {length:.1f} s.")
    return seconds


def in_bytes(option: str, gib: float | None) -> int | None:
    if gib is None:
        return None
    if not 0 <= gib < 1 << 20:
        raise LonglookError(f"{option} needs a number of GiB, not {gib:g}.")
    return int(gib * GIB)


def video_and_questions(first: str, others: Sequence[str], session: str | None) -> tuple[Path | None, list[str]]:
    """What the words of `ask` mean: with a session, the first one may be a question already."""
    if session is not None and not is_file(first) and Path(first).suffix.lower() in VIDEO_SUFFIXES.split(","):
        raise LonglookError(f"There is no file {first}.")
    is_video = session is None or (bool(others) and is_file(first))
    video, questions = (Path(first), list(others)) if is_video else (None, [first, *others])
    if not all(question.strip() for question in questions):
        raise LonglookError("A question is empty.")
    if any("\ud800" <= character <= "\udfff" for question in questions for character in question):
        raise LonglookError("A question is not valid UTF-8.")
    return video, questions


def is_file(word: str) -> bool:
    """Whether a word is the path of a file; a question too long for one is none."""
    try:
        return Path(word).is_file()
    except OSError:
        return False


@contextmanager
def open_session(
    engine: Engine, folder: Path | None, settings: Settings, read_only: bool = False
) -> Iterator[Session]:
    """A session of this run, or the one that is kept in a folder; closed at the end.

    Raises LonglookError where a kept one has other settings than those asked for.
    """
    session = engine.open(folder, read_only)
    try:
        for section, knobs in settings.items():
            for knob, value in knobs.items():
                kept = getattr(getattr(session.config, section), knob)
                if value not in (None, kept):
                    raise LonglookError(
                        f"This session began with {knob} {shown(kept)}, which cannot become {shown(value)} now."
                    )
        yield session
    finally:
        session.close()


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def watch_on(session: Session, video: Path, stop_seconds: float | None = None, skim: bool = False) -> bool:
    """Watches what a session has not seen of a video yet; gives whether Ctrl-C stopped it."""
    read, seen_seconds = session.config.read, session.seen_seconds
    session.follow(str(video.resolve()))
    if seen_seconds is None:
        start_seconds = 0.0
    else:
        start_seconds = next_tick_seconds(seen_seconds, read.fps)
        if stop_seconds is not None and seen_seconds > stop_seconds:
            raise LonglookError(f"This session has seen {seen_seconds:.1f} s already; --ask-at cannot go back.")
        if stop_seconds is not None and start_seconds >= stop_seconds:
            return False
        said.print(f"Going on at {clock(start_seconds)}.")
    source = FileSource(video, read.fps, start_seconds, stop_seconds, only_keyframes=skim)
    try:
        with Reader(source, read.queue_frames, read.stall_seconds) as reader:
            return drained(session, reader, source, stop_seconds)
    except EmptyStretchError:
        if seen_seconds is None:
            raise
        said.print(f"{as_markup(video.name)} has been watched to its end.")
        return False


class Stopped(Exception):  # noqa: N818 - no error
    """Ctrl-C was pressed."""


def until(stopped: Event, frames: Iterable[Frame]) -> Iterator[Frame]:
    """Ends without an end, so that frames that do not fill a chunk are read again when watching goes on."""
    for frame in frames:
        if stopped.is_set():
            raise Stopped
        yield frame


def drained(session: Session, reader: Reader, source: FileSource, stop_seconds: float | None) -> bool:
    """Drains `session.watch` behind a progress bar, to the end, `stop_seconds` or Ctrl-C, which gives true."""
    known = [seconds for seconds in (source.info.duration_seconds, stop_seconds) if seconds is not None]
    stopped = Event()
    told = 0
    with progress_bar("watching") as bar:
        task = bar.add_task("", total=round(min(known)) if known else None)

        def stop() -> None:
            stopped.set()
            bar.update(task, description="stopping after what is under way; Ctrl-C again quits")

        with first_interrupt(stop):
            frames = until(stopped, reader) if session.is_kept else takewhile(lambda _: not stopped.is_set(), reader)
            with suppress(Stopped):
                for event in session.watch(frames, ahead=True):
                    if isinstance(event, Watched) and not stopped.is_set():
                        bar.update(task, completed=round(event.pts_seconds), description=counters(event.stats))
                    elif isinstance(event, Notice):
                        say(with_advice(event.text, event.knob))
                    told = say_new(source.warnings, told)
    say_new(source.warnings, told)
    if stopped.is_set() and not session.stats.chunks:
        raise KeyboardInterrupt
    return stopped.is_set()


@contextmanager
def first_interrupt(do: Callable[[], None]) -> Iterator[None]:
    """While the block runs the first Ctrl-C calls `do`, and only the next one interrupts.

    A chunk under way is finished, so that memory is whole.
    """

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        do()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def program() -> str:
    """How this program was started, for hints that can be pasted."""
    words = [sys.argv[0]]
    if words[0].endswith(".py"):
        words.insert(0, sys.executable)
    here = f"{Path.cwd()}{os.sep}"
    return " ".join(word.removeprefix(here) for word in words)


def printable(text: str, also: str = "") -> str:
    r"""`text` with control characters as escapes (\x1b): no name or answer commands the terminal.

    also: control characters that stay.
    """
    pieces = []
    for character in text:
        is_command = unicodedata.category(character) in CONTROL or character in TURN_TEXT
        pieces.append(ascii(character)[1:-1] if is_command and character not in also else character)
    return "".join(pieces)


def as_markup(text: str, also: str = "") -> str:
    """`text` for the console, which shows it as it is: no markup, no commands (`printable`)."""
    return escape(printable(text, also))


def with_advice(text: str, knob: str) -> str:
    """A sentence of the library with the option that helps, if one does."""
    return f"{text} Give more with {ADVICE[knob]}." if knob in ADVICE else text


def say(text: str) -> None:
    """A line of advice on standard error."""
    said.print(as_markup(text, also="\n"), style="yellow", soft_wrap=True)


def say_new(warnings: Sequence[str], told: int) -> int:
    """Says the warnings behind the first `told`; gives how many have been told now."""
    for warning in warnings[told:]:
        say(warning)
    return len(warnings)


def show_answer(session: Session, question: str) -> None:
    """The answer as it is generated, then its evidence."""
    said.print(f"\n[bold]{as_markup(question)}[/]")
    for event in session.ask(question):
        if isinstance(event, AnswerPiece):
            typer.echo(printable(event.text, also="\n\t"), nl=False)
        elif isinstance(event, Answer):
            typer.echo("")
            for item in event.evidence:
                span, why, score = evidence_row(item)
                said.print(f"  [dim]{span:<17} {why:<10} {score:>6}[/]".rstrip())
        elif isinstance(event, Notice):
            say(with_advice(event.text, event.knob))


def asked_silently(session: Session, question: str) -> dict[str, Any]:
    """The finished answer as plain data."""
    events = list(session.ask(question))
    for event in events:
        if isinstance(event, Notice):
            say(with_advice(event.text, event.knob))
    answer = next(event for event in events if isinstance(event, Answer))
    evidence = [asdict(item) for item in answer.evidence]
    return {"question": answer.question, "answer": answer.text, "evidence": evidence, "stats": asdict(answer.stats)}


def counters(stats: Stats) -> str:
    return f"{stats.chunks} chunks, {stats.tokens:,} tokens"


def progress_bar(verb: str) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=said,
        transient=True,
    )


@contextmanager
def told_plainly() -> Iterator[None]:
    """A user's mistake becomes one sentence and exit code 2, Ctrl-C a quiet end; our own errors keep a traceback."""
    try:
        yield
    except LonglookError as error:
        said.print(as_markup(with_advice(str(error), error.knob), also="\n"), style="red", soft_wrap=True)
        raise typer.Exit(USER_MISTAKE) from error
    except KeyboardInterrupt as stop:
        said.print("Stopped.")
        raise typer.Exit(INTERRUPTED) from stop


def main() -> None:
    """Entry point: quiet libraries, our own log on standard error."""
    for name, value in {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ.setdefault(name, value)
    handler = RichHandler(console=said, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    app(prog_name="longlook")


if __name__ == "__main__":
    main()
