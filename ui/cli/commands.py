"""ask, watch, serve, calibrate and config."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from errors import LonglookError
from memory.session_names import session_folder
from models.checkpoint import check_can_be_had
from streaming.sources.address import is_address, parse_address
from streaming.sources.file import probe
from ui.cli import opening, options
from ui.cli.answers import answer_as_json, is_seen_to_its_end, rounded, say_how_far, show_answer
from ui.cli.cameras import cameras_in, watch_cameras
from ui.cli.console import BROKEN_OFF, INTERRUPTED, loading, program, say, show_table, stderr
from ui.cli.live import check_length, watch_address, watch_camera, with_login
from ui.cli.progress import counted_progress
from ui.cli.settings import as_toml
from ui.cli.watching import Outcome, watch_video
from ui.cli.wiring import Chosen, with_options
from ui.render import clock

if TYPE_CHECKING:
    from models.calibration import Profile
    from streaming.session import Session

PasswordFile = Annotated[
    Path | None, typer.Option(help="A file with the password of the camera.", metavar="FILE")
]
SAMPLES = Path(__file__).resolve().parents[2] / "samples"
SESSION_HELP = "Where to keep what was watched: a name, or a folder written with a slash (./trip)."


@with_options(*options.EVERYTHING)
def ask(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[VIDEO] QUESTION...",
            help="A video file, camera or stream, which may be left out with --session, and "
            "one or more questions.",
            show_default=False,
        ),
    ],
    chosen: Chosen,
    session: Annotated[str | None, typer.Option("--session", "-s", help=SESSION_HELP)] = None,
    ask_at: Annotated[
        float | None, typer.Option(help="Stop watching at this second, then ask.")
    ] = None,
    skim: Annotated[
        bool, typer.Option("--skim", help="Decode only the file's own keyframes: quick, but rough.")
    ] = False,
    password_file: PasswordFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per question, a line each.")
    ] = False,
) -> None:
    """Watch a video, then answer questions about it.

    Answers go to standard output, everything else to standard error.

    Ctrl-C while watching stops there and answers from what was seen; a second one quits.

    With --session and no video, what was kept is asked, even while another process goes on
    watching.

    \b
    Examples:
      longlook ask clip.mp4 "When does the red circle appear?"
      longlook ask clip.mp4 "What is shown at 0:50?" "Was there a red circle?" --json
      longlook ask clip.mp4 "What is shown now?" --ask-at 30
      longlook ask clip.mp4 "Is there a purple triangle?" --skim
      longlook ask holiday.mp4 "Who comes in?" --model Qwen/Qwen3-VL-4B-Instruct
      longlook ask --session trip "When does the red circle appear?"
    """
    folder = None if session is None else session_folder(session)
    video, questions = opening.video_and_questions(words, session)
    if not questions:
        raise typer.BadParameter("there is no question", context)
    address = parse_address(video) if video is not None and is_address(video) else None
    if skim and session is not None:
        raise LonglookError(
            "--skim is for a first look; a session keeps what was watched properly."
        )
    if address is not None:
        address = with_login(address, password_file)
        stop_seconds = check_length(ask_at)
    else:
        stop_seconds = check_file(video, folder, ask_at)
    engine = opening.open_engine(chosen)
    is_read_only = video is None
    with opening.open_session(engine, folder, chosen.settings, is_read_only) as opened:
        outcome = Outcome.NOTHING_NEW
        if address is not None:
            outcome = watch_address(engine, opened, address, session or "", stop_seconds)
        elif video is not None:
            outcome = watch_video(opened, Path(video), stop_seconds, skim)
        if outcome is Outcome.STOPPED:
            say("Stopped; answering from what was seen so far.")
        duration = opening.duration_of(video or opened.source)
        for question in questions:
            if as_json:
                typer.echo(answer_as_json(opened, question, duration))
            else:
                show_answer(opened, question, len(questions) > 1)
            if not skim:
                say_how_far(opened, duration)
    if outcome is Outcome.BROKEN_OFF:
        raise typer.Exit(BROKEN_OFF)


def check_file(video: str | None, folder: Path | None, ask_at: float | None) -> float | None:
    """Where to stop watching a file, None at its end. Raises LonglookError for what can't be."""
    if video is not None:
        if folder is not None:
            opening.check_can_be_kept(Path(video))
        return opening.checked_moment(ask_at, probe(video))
    if ask_at is not None:
        raise LonglookError("--ask-at needs a video to be watched up to there.")
    assert folder is not None
    opening.check_is_there(folder)
    return None


@with_options(*options.WATCHING)
def watch(
    chosen: Chosen,
    video: Annotated[
        str | None, typer.Argument(help="A video file, camera or stream.", metavar="[VIDEO]")
    ] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help=SESSION_HELP)] = None,
    password_file: PasswordFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="At the end, one line of JSON with counters.")
    ] = False,
) -> None:
    """Watch a video, a camera or a stream into a session that stays, to be asked now or later.

    A camera is watched until Ctrl-C: rtsp://, http:// (HLS, MPEG-TS, MJPEG), udp://, rtmp://,
    device:0, or follow:FILE for a file that still grows. Its password is best not typed: write
    rtsp://user@camera/stream, and it is taken from --password-file, from the environment variable
    LONGLOOK_SOURCE_PASSWORD, or asked for.

    Several cameras at once: a --config file with a table [[camera]] for each, with session, url and
    password_env or password_file.

    Ctrl-C stops, and the same command goes on where it stopped. Nothing that was watched is lost,
    whatever happens to this process, but the chunks of the pass under way.

    \b
    Examples:
      longlook watch clip.mp4 --session trip
      longlook watch clip.mp4 --session ./trip --disk-budget 20
      longlook ask --session trip "When does the red circle appear?"
    """
    cameras = cameras_in(chosen.config_file)
    if video is None and cameras:
        watch_cameras(cameras, chosen)
        return
    if video is None or session is None:
        raise LonglookError(
            "watch needs a video and a --session, or a --config file with [[camera]] tables."
        )
    folder = session_folder(session)
    if is_address(video):
        watch_camera(video, session, chosen, password_file, as_json)
        return
    path = opening.video_path(video)
    opening.check_can_be_kept(path)
    duration = probe(path).duration_seconds
    engine = opening.open_engine(chosen)
    with opening.open_session(engine, folder, chosen.settings) as opened:
        outcome = watch_video(opened, path)
        if as_json:
            found = {"seen_seconds": opened.seen_seconds, "duration_seconds": duration}
            typer.echo(json.dumps(rounded({**found, "stats": asdict(opened.stats)})))
        say_outcome(opened, outcome, path, session, duration)
    if outcome is Outcome.STOPPED:
        raise typer.Exit(INTERRUPTED)
    if outcome is Outcome.BROKEN_OFF:
        raise typer.Exit(BROKEN_OFF)


def say_outcome(
    opened: Session, outcome: Outcome, video: Path, session: str, duration: float | None
) -> None:
    """How far it was watched, and what to type next."""
    seen = clock(opened.seen_seconds or 0.0)
    total = "" if duration is None else f" of {clock(duration)}"
    found = keyframes_text(opened.stats.keyframes)
    to_ask = f'To ask: {program()} {shlex.join(["ask", "--session", session])} "..."'
    if outcome in (Outcome.STOPPED, Outcome.BROKEN_OFF):
        again = shlex.join(["watch", str(video), "--session", session])
        say(f"Stopped at {seen}{total}, {found}. To go on: {program()} {again}")
    elif outcome is Outcome.NOTHING_NEW:
        say(f"{video.name} has been watched to its end before. {to_ask}")
    elif duration is not None and is_seen_to_its_end(opened, duration):
        say(f"Watched {video.name} to its end at {clock(duration)}, {found}. {to_ask}")
    else:
        say(f"Watched {video.name} up to {seen}{total}, {found}. {to_ask}")


def keyframes_text(count: int) -> str:
    return "1 keyframe" if count == 1 else f"{count:,} keyframes"


@with_options(*options.READING, *options.SAVING)
def serve(
    chosen: Chosen,
    video: Annotated[
        str | None,
        typer.Argument(help="A video offered first; else the bundled samples.", metavar="[VIDEO]"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
) -> None:
    """Open the page: upload a video or take a sample, watch it being seen, ask.

    Everything stays on this machine unless --host says otherwise: there is no log-in.

    \b
    Examples:
      longlook serve
      longlook serve clip.mp4 --port 8000
      longlook serve --model Qwen/Qwen3-VL-4B-Instruct --device cuda
    """
    samples = [opening.video_path(video)] if video else sorted(SAMPLES.glob("*.mp4"))
    for sample in samples:
        probe(sample)  # says at once what is wrong with it
    opening.check_port(host, port)
    engine = opening.open_engine(chosen)
    from ui import demo as page  # Gradio takes seconds to import
    from ui.render import ModelInfo

    page.serve(
        engine,
        samples,
        model=ModelInfo(chosen.model, is_demo=chosen.model == "demo"),
        config=engine.config.read,
        preload=True,
        host=host,
        port=port,
        on_ready=lambda address: stderr.print(
            f"longlook is at [bold]{address}[/] (Ctrl-C ends it)"
        ),
    )


@with_options()
def calibrate(
    chosen: Chosen,
    needles: Annotated[int, typer.Option(help="Chunks of each needle stream.", min=8, max=64)] = 48,
    seed: Annotated[
        int, typer.Option(help="Seed of the needles; the check uses the next one.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Where the profile goes. \\[default: the user's cache]")
    ] = None,
) -> None:
    """Find the attention heads of a checkpoint that look things up, and say how often they do.

    The profile is kept and used from then on. hit@1 and hit@4 are measured on needles that were
    not used to choose.

    \b
    Examples:
      longlook calibrate --model Qwen/Qwen3-VL-4B-Instruct --device cuda
      longlook calibrate --model ./my-checkpoint --needles 64
    """
    check_can_be_had(chosen.model)
    if chosen.model == "demo":
        say("The embedded model comes with a profile; this makes it anew.")
    say(f"This asks {2 * needles} questions: minutes on a GPU, longer on a CPU.")
    with loading(chosen.model):
        from models.calibration import calibrate as run
        from models.calibration import profile_path
        from streaming.engine import load_model

        model, config = load_model(
            chosen.model, chosen.device, chosen.dtype, chosen.settings.nested()
        )
    with counted_progress("calibrating", 2 * needles) as bar:
        (task,) = bar.task_ids
        profile = run(
            model,
            config.memory,
            config.read.fps,
            needles,
            seed,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    if profile is None:
        raise LonglookError(
            f"no head of {model.model_id} retrieves; all of them together, which find less, "
            "will be used"
        )
    path = out or profile_path(model)
    profile.save(path)
    show_profile(profile)
    say(f"{profile.num_needles} fresh questions over {needles} chunks; profile kept in {path}")


def show_profile(profile: Profile) -> None:
    """A table of the heads on standard output."""
    table = Table("layer", "head", "asked with", "hit@1", "hit@4")
    for head in profile.heads:
        asked = f"last {head.last_tokens}" if head.last_tokens else "all tokens"
        hits = f"{head.hit1:.2f}", f"{head.hit4:.2f}"
        table.add_row(str(head.layer), str(head.head), asked, *hits)
    table.add_row("all", "", "", f"{profile.hit1:.2f}", f"{profile.hit4:.2f}")
    show_table(table)


@with_options(*options.EVERYTHING, model=False)
def show_config(
    chosen: Chosen,
    model: Annotated[
        str, typer.Argument(help="demo (embedded), a folder, or a hub id.", metavar="[MODEL]")
    ] = "demo",
) -> None:
    """Print what is in force for a model as TOML, and where each value comes from.

    Later ones win: defaults, the checkpoint's longlook.json, --config, --set, options. What is
    printed can be saved, changed and given back with --config.

    \b
    Examples:
      longlook config
      longlook config Qwen/Qwen3-VL-4B-Instruct --set memory.window_chunks=4
      longlook config --prune novelty --prune-budget 0.3
    """
    typer.echo(as_toml(model, chosen.settings))
