"""The command that captions archives."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from archive.export import FORMATS, check_formats
from archive.manifest import Video, find_videos
from archive.settings import CAPTION_PROMPT, CaptionSettings, Field, fields_of
from errors import LonglookError
from models.checkpoint import check_can_be_had, recommended_config
from ui.cli import options
from ui.cli.console import INTERRUPTED, as_markup, loading, say, show_table, stderr, warn
from ui.cli.progress import LINE_SECONDS
from ui.cli.wiring import Chosen, with_options
from ui.render import clock

if TYPE_CHECKING:
    from archive.captioner import Archive, Summary
    from archive.captioner import Progress as VideoProgress

SOME_FAILED = 3
SHOWN_FAILURES = 20


@with_options(*options.READING, *options.SAVING)
def caption(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS...",
            help="Videos, folders, patterns, lists of names (.txt), or - for names on standard "
            "input.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the results.", show_default=False)
    ],
    chosen: Chosen,
    prompt: Annotated[str, typer.Option(help="What is asked of every segment.")] = CAPTION_PROMPT,
    question: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", help="A yes-or-no question asked of every segment."),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="A JSON schema: one field per property.")
    ] = None,
    formats: Annotated[
        str, typer.Option(help=f"Of {', '.join(FORMATS)}, with commas between.")
    ] = "jsonl,vtt,srt",
    min_seconds: Annotated[
        float, typer.Option(help="A segment ends at a cut once it is so long.")
    ] = 2.0,
    max_seconds: Annotated[float, typer.Option(help="Longest segment.")] = 8.0,
    max_tokens: Annotated[int, typer.Option(help="Longest caption, in tokens.")] = 64,
    workers: Annotated[int, typer.Option(help="Processes that work side by side.")] = 1,
    shard: Annotated[
        str, typer.Option(help="Which part of the videos this machine does, such as 1/4.")
    ] = "1/1",
) -> None:
    """Caption many videos: what happens when, in files that players and other tools read.

    Ctrl-C or a crash loses the few segments under way; the same command goes on from there. Videos
    that are done are not done again unless they or the settings change.

    Exit code 0: all done; 3: some videos failed, videos.jsonl says why; 2: nothing could begin.

    \b
    Examples:
      longlook caption clip.mp4 --out captions --question "Is there a star?"
      longlook caption "samples/one*.mp4" --out shots --max-seconds 4 --formats vtt,srt
      longlook caption archive/ --out captions --workers 2 --model Qwen/Qwen3-VL-4B-Instruct
    """
    names = [name.strip() for name in formats.split(",") if name.strip()]
    check_formats(names)
    part = parse_shard(shard)
    settings = CaptionSettings(
        prompt, fields(question or [], schema), min_seconds, max_seconds, max_tokens
    )
    if workers < 1:
        raise LonglookError("--workers needs at least 1")
    config = recommended_config(chosen.model).overridden(chosen.settings.nested())
    check_can_be_had(chosen.model)
    videos = find_videos(paths, sys.stdin if "-" in paths else ())
    check_out(out, videos)
    with loading(chosen.model):
        from archive.captioner import Archive, ModelChoice
        from models.loading import identify

    told = {name: value for name, value in config.knobs() if not name.startswith("answer")}
    told |= {"device": chosen.device, "dtype": chosen.dtype}
    fingerprint = settings.fingerprint(identify(chosen.model), told)
    model = ModelChoice(chosen.model, chosen.device, chosen.dtype, chosen.settings.nested())
    with Archive(out, settings, model, fingerprint, names) as archive:
        caption_videos(archive, videos, part, workers)


def caption_videos(
    archive: Archive, videos: Sequence[Video], shard: tuple[int, int], num_workers: int
) -> None:
    """Captions what is to be done and writes the results. Exits with a code that says what is
    missing, if anything is.
    """
    entries = archive.plan(videos, shard)
    say(f"{len(videos)} videos, {len(entries)} of them to be captioned.")
    is_stopped = False
    if entries:
        is_stopped = run_with_progress(len(entries), archive.run(entries, num_workers))
    files = archive.write()
    summary = archive.summary()
    show_summary(summary, files)
    show_failures(archive)
    if is_stopped:
        say("Stopped. The same command goes on from there.")
        raise typer.Exit(INTERRUPTED)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


def parse_shard(text: str) -> tuple[int, int]:
    """Number, from 0, and count of "1/4". Raises LonglookError for anything else."""
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number) - 1, int(count)
    raise LonglookError(f"--shard needs the form 1/4, not {text}.")


def fields(questions: Iterable[str], schema: Path | None) -> tuple[Field, ...]:
    """The questions of `--question` and the properties of `--schema`."""
    asked = [Field(question, question, "boolean") for question in questions]
    if schema is None:
        return tuple(asked)
    try:
        read = json.loads(schema.read_text(encoding="utf-8"))
    except OSError as error:
        raise LonglookError(f"{schema} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise LonglookError(f"{schema} is not JSON: {error}.") from error
    return (*asked, *fields_of(read))


def check_out(out: Path, videos: Iterable[Video]) -> None:
    """Raises LonglookError where results would be mixed with videos."""
    if out.exists() and not out.is_dir():
        raise LonglookError(f"{out} is no folder.")
    own = out.absolute()
    for video in videos:
        if own in video.path.absolute().parents:
            raise LonglookError(f"{video.path} lies in the output folder {out}.")


class ArchiveProgress(Protocol):
    """What captioning tells its progress to."""

    def update(self, video: VideoProgress) -> None: ...


class ArchiveLines:
    """A line every ten seconds, for output that goes to a file or another program."""

    def __init__(self, total: int) -> None:
        self._pace = ArchivePace(total)
        self._last = time.monotonic()

    def update(self, video: VideoProgress) -> None:
        self._pace.update(video)
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            say(f"captioning: {self._pace.text()}")


class ArchiveBar:
    """A bar on a terminal."""

    def __init__(self, total: int, bar: Progress) -> None:
        self._pace = ArchivePace(total)
        self._bar = bar
        self._task = bar.add_task("", total=total)

    def update(self, video: VideoProgress) -> None:
        self._pace.update(video)
        self._bar.update(
            self._task, completed=self._pace.ended, description=as_markup(self._pace.text())
        )


class ArchivePace:
    """How fast captioning goes, and the time left."""

    def __init__(self, total: int) -> None:
        self.ended = 0
        self._total = total
        self._failed = 0
        self._seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def update(self, video: VideoProgress) -> None:
        self._seconds[video.name] = video.seconds
        self.ended += video.is_done
        self._failed += bool(video.reason)

    def text(self) -> str:
        """ "3 of 12 videos, 41.2 s of video a second, 2:10 left, 1 failed" """
        elapsed = max(time.monotonic() - self._began, 1e-3)
        words = [f"{self.ended} of {self._total} videos"]
        words.append(f"{sum(self._seconds.values()) / elapsed:.1f} s of video a second")
        if self.ended:
            words.append(f"{clock(elapsed / self.ended * (self._total - self.ended))} left")
        if self._failed:
            words.append(f"{self._failed} failed")
        return ", ".join(words)


@contextmanager
def archive_progress(total: int) -> Iterator[ArchiveProgress]:
    """Shows how captioning goes."""
    if not stderr.is_terminal:
        yield ArchiveLines(total)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("captioning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        yield ArchiveBar(total, bar)


def run_with_progress(total: int, updates: Iterator[VideoProgress]) -> bool:
    """Captions everything; whether Ctrl-C stopped it."""
    with archive_progress(total) as progress:
        try:
            for video in updates:
                progress.update(video)
                if video.reason:
                    warn(f"{video.name}: {video.reason}")
        except KeyboardInterrupt:
            updates.close()  # type: ignore[attr-defined]
            return True
    return False


def show_summary(summary: Summary, files: Iterable[Path]) -> None:
    counts = [f"{summary.done} done", f"{summary.failed} failed"]
    if summary.waiting:
        counts.append(f"{summary.waiting} waiting")
    say(f"{', '.join(counts)}: {summary.segments} captions for {clock(summary.seconds)} of video.")
    for file in files:
        say(f"  {file}{os.sep if file.is_dir() else ''}")


def show_failures(archive: Archive) -> None:
    """A table of what failed, the first of them."""
    failures = archive.failures()
    if not failures:
        return
    table = Table("video", "why it failed")
    for entry in failures[:SHOWN_FAILURES]:
        table.add_row(as_markup(entry.name), as_markup(entry.reason))
    show_table(table)
    if len(failures) > SHOWN_FAILURES:
        say(f"and {len(failures) - SHOWN_FAILURES} more; videos.jsonl has them all.")
