"""What is said while and after watching: how far, how fast, how long still, and what is missing."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from app import app
from streaming.events import Stats
from tests.clips import write_clip
from tests.tiny import save_tiny
from ui.cli import progress
from ui.cli.answers import rounded
from ui.cli.console import warn_of_new
from ui.cli.progress import Bar, Lines, Pace, counted_progress, watch_progress

REPOSITORY = Path(__file__).resolve().parent.parent
STATS = Stats(chunks=3, tokens=1234)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", 12)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the progress says."""
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


# How far, how fast, how long still.


def test_the_pace_says_how_far_how_fast_and_how_long_still(stopped_clock: Clock) -> None:
    pace = Pace(60.0, 600.0)
    stopped_clock.now += 10
    assert pace.text(180.0) == "3:00 of 10:00, 12.0x realtime, 0:35 left"
    assert pace.text(60.0) == "1:00 of 10:00, 0.0x realtime", "no time left is known yet"
    assert pace.text(660.0).endswith("0:00 left"), "a container may claim too little"


def test_a_source_without_a_length_has_no_time_left(stopped_clock: Clock) -> None:
    pace = Pace(0.0, None)
    stopped_clock.now += 10
    assert pace.text(5.0) == "0:05, 0.5x realtime"


def test_a_file_or_a_program_gets_a_line_every_ten_seconds(
    stopped_clock: Clock, told: list[str]
) -> None:
    lines = Lines(Pace(0.0, 600.0))
    for second in range(1, 36):
        stopped_clock.now += 1
        lines.update(2.0 * second, STATS)
    assert len(told) == 3
    assert told[0] == "watching: 0:20 of 10:00, 2.0x realtime, 4:50 left, 3 chunks, 1,234 tokens"
    lines.stopping()
    assert "Ctrl-C again quits" in told[-1]


def test_a_terminal_gets_a_bar_with_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(progress, "stderr", Console(file=shown, force_terminal=True, width=120))
    with watch_progress(0.0, 600.0) as bar:
        assert isinstance(bar, Bar)
        bar.update(300.0, STATS)
        bar._bar.refresh()
        assert "5:00 of 10:00" in shown.getvalue() and "x realtime" in shown.getvalue()
        assert "left" in shown.getvalue()
        bar.stopping()
        bar.update(301.0, STATS)
        bar._bar.refresh()
    assert "Ctrl-C again quits" in shown.getvalue() and "5:01" not in shown.getvalue()


def test_nothing_but_lines_goes_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(progress, "stderr", Console(file=shown))
    with watch_progress(0.0, 600.0) as lines:
        assert isinstance(lines, Lines)
        lines.update(1.0, STATS)
    with counted_progress("calibrating", 4) as bar:
        bar.update(bar.task_ids[0], completed=2, total=4)
    assert shown.getvalue() == ""


def test_warnings_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("ui.cli.console.warn", shown.append)
    assert warn_of_new(["a"], 0) == 1
    assert warn_of_new(["a", "b"], 1) == 2
    assert shown == ["a", "b"]


def test_numbers_for_people_are_rounded_and_nothing_else_changes() -> None:
    given = {"a": [1.23456, {"b": (2.0004, 3, None, True, "4.56789")}]}
    assert rounded(given) == {"a": [1.235, {"b": [2.0, 3, None, True, "4.56789"]}]}


# What an answer does not rest on.


def test_an_answer_to_a_part_says_how_far_was_watched(model: str, clip: Path) -> None:
    words = ["ask", clip, "What?", "--model", model, "--chunk-frames", 4, "--max-tokens", 4]
    part, whole = run(*words, "--ask-at", 6), run(*words)
    assert part.exit_code == whole.exit_code == 0
    assert "watched up to 0:05 of 0:12" in part.stderr.splitlines()
    assert "watched up to" not in whole.stderr
    (found,) = map(json.loads, run(*words, "--ask-at", 6, "--json").stdout.splitlines())
    assert (found["seen_seconds"], found["duration_seconds"]) == (5.5, 12.0)
    for output in (part.stdout + part.stderr).splitlines():
        assert output and output == output.rstrip(), "no blank lines, no trailing spaces"


def test_a_session_says_how_far_it_was_watched_as_long_as_it_is_not_at_its_end(
    model: str, clip: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "trip"
    options = ["--model", model, "--session", folder]
    first = run("ask", clip, "What?", *options, "--chunk-frames", 4, "--ask-at", 6)
    assert first.exit_code == 0, first.stderr
    asked = run("ask", "What?", *options, "--max-tokens", 4)
    assert "watched up to 0:05 of 0:12" in asked.stderr.splitlines()
    watched = run("watch", clip, *options)
    told = re.search(r"Watched .* to its end at 0:12, (\d+) keyframes\. To ask: ", watched.stderr)
    info = json.loads(run("sessions", "info", folder, "--json").stdout)
    assert told is not None and int(told[1]) == info["keyframes"] >= 4
    assert "watched up to" not in run("ask", "What?", *options, "--max-tokens", 4).stderr
    again = run("watch", clip, *options)
    *_, line = again.stderr.splitlines()
    assert line.startswith("colours.mp4 has been watched to its end before. To ask: ")
    assert "Going on" not in again.stderr and "Going on at 0:06." in watched.stderr


def test_a_session_whose_file_has_gone_says_how_far_it_was_watched(
    model: str, clip: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    options = ["--model", model, "--session", tmp_path / "trip"]
    assert run("watch", copy, *options).exit_code == 0
    copy.unlink()
    asked = run("ask", "What?", *options, "--max-tokens", 4)
    assert "watched up to 0:11" in asked.stderr.splitlines()
    (found,) = map(json.loads, run("ask", "What?", *options, "--json").stdout.splitlines())
    assert (found["seen_seconds"], found["duration_seconds"]) == (11.5, None)


def test_sessions_are_listed_with_frames_model_and_day_and_bytes_for_people(
    model: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("watch", clip, "--session", "trip", "--model", model).exit_code == 0
    listed = run("sessions", "list").stdout
    for word in ("frames", "model", "changed", "24", "tiny", time.strftime("%Y-%m-%d"), "kB"):
        assert word in listed
    shown = run("sessions", "info", "trip").stdout
    assert "disk bytes" in shown and "kB" in shown and "seen seconds      0:11" in shown
    assert isinstance(
        json.loads(run("sessions", "info", "trip", "--json").stdout)["disk_bytes"], int
    )


# Mistakes are found before torch.

PROBE = """
    import sys
    sys.argv = ["app.py", *sys.argv[1:]]
    import app
    try:
        app.main()
    finally:
        heavy = {"torch", "transformers", "gradio"} & set(sys.modules)
        print("imported:", *sorted(heavy), file=sys.stderr)
"""


def early(*arguments: object) -> tuple[int, list[str], str]:
    """A call in a process of its own: exit code, lines on standard error, what was imported."""
    command = [sys.executable, "-c", textwrap.dedent(PROBE), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": ""}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "COLUMNS": "200"}
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    *lines, imported = ran.stderr.splitlines()
    return ran.returncode, lines, imported.removeprefix("imported:").strip()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "a knob": (["ask", "CLIP", "What?", "--prune", "foo"], "--prune must be one of none, novelty"),
    "a number": (["ask", "CLIP", "What?", "--fps", "0"], "--fps must lie in (0, 60], not 0.0"),
    "a setting": (["watch", "CLIP", "-s", "x", "--set", "a.b=1"], "--set a.b"),
    "a session": (["ask", "--session", "nosuch", "What?"], "There is no session in"),
    "a session to show": (["sessions", "info", "nosuch"], "There is no session in"),
    "a session to delete": (["sessions", "delete", "nosuch"], "There is no session in"),
    "a file": (["ask", "nosuch.mp4", "What?"], "There is no file nosuch.mp4."),
    "a file to watch": (["watch", "nosuch.mp4", "-s", "x"], "There is no file nosuch.mp4."),
    "an unknown URL": (["ask", "gopher://example.com/a", "What?"], "gopher:// is not a kind"),
    "a URL to bridge": (["watch", "srt://camera:1", "-s", "x"], "SRT is not read directly"),
    "a URL to serve": (["serve", "https://example.com/a.m3u8"], "is no file"),
    "a file on a server": (["ask", "https://example.com/a.mp4", "What?"], "download it first"),
    "a model": (["ask", "CLIP", "What?", "--model", "a/b/c"], "a/b/c is neither a folder"),
    "no network": (
        ["ask", "CLIP", "What?", "--model", "longlook-tests/not-there"],
        "longlook-tests/not-there is not on this machine, and http://127.0.0.1:9 cannot be reached",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_before_torch_is_imported(name: str, clip: Path) -> None:
    words, told = MISTAKES[name]
    code, lines, imported = early(*(clip if word == "CLIP" else word for word in words))
    assert (code, imported) == (2, ""), lines
    (line,) = lines
    assert told in line


def test_a_port_that_is_taken_is_found_before_torch_is_imported(clip: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, lines, imported = early("serve", clip, "--port", port)
    assert (code, imported, len(lines)) == (2, "", 1)
    assert f"Nothing can listen on 127.0.0.1 port {port}" in lines[0]


def test_what_needs_torch_would_be_noticed(clip: Path) -> None:
    code, lines, imported = early("ask", clip, "What?", "--device", "warp")
    assert code == 2 and "warp is not a device" in lines[-1]
    assert "torch" in imported


# The shell.


def test_a_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        environment: dict[str, Any] = {**os.environ, "_LONGLOOK_COMPLETE": "complete_bash"}
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        command = [sys.executable, "app.py"]
        ran = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True
        )
        return ran.stdout.split()

    assert completed("longlook cal") == ["calibrate"]
    assert set(completed("longlook ask --prune")) == {"--prune", "--prune-budget"}


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        (["ask"], "longlook ask [OPTIONS] [VIDEO] QUESTION..."),
        (["watch"], "longlook watch [OPTIONS] [VIDEO]"),
        (["serve"], "longlook serve [OPTIONS] [VIDEO]"),
        (["config"], "longlook config [OPTIONS] [MODEL]"),
        (["calibrate"], "longlook calibrate [OPTIONS]"),
        (["sessions", "list"], "longlook sessions list [OPTIONS] [FOLDER]"),
        (["sessions", "info"], "longlook sessions info [OPTIONS] SESSION"),
    ],
)
def test_the_usage_is_one_plain_line(command: list[str], usage: str) -> None:
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="longlook")
    (line,) = [line for line in result.stdout.splitlines() if "Usage:" in line]
    assert line.strip() == f"Usage: {usage}"
