"""The README cannot drift: its commands exist and parse, its tree is the tree, its example says what is said."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from app import app
from models.loading import DEMO_FOLDER

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"<!-- example output: begin.*?-->\n(.*?)<!-- example output: end -->", re.DOTALL)


def commands(start: str) -> list[list[str]]:
    """What stands behind `start` on the lines of code that begin with it, as a shell splits them."""
    lines = [line for block in BLOCKS for line in block.splitlines() if line.startswith(start + " ")]
    return [shlex.split(line, comments=True)[len(start.split()) :] for line in lines]


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to it is unknown")
    return [name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def tree() -> dict[str, str]:
    """The paths of the README's tree, folders with a slash at their end, and what is said of each."""
    (block,) = [block for block in BLOCKS if block.startswith("app.py ")]
    found, folder = {}, ""
    for line in block.splitlines():
        name, _, purpose = line.strip().partition(" ")
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            found[name] = purpose.strip()
        else:
            found[folder + name] = purpose.strip()
    return found


def test_every_call_of_the_command_line_parses() -> None:
    group: Any = typer.main.get_command(app)
    calls = commands(".venv/bin/python app.py")
    assert {call[0] for call in calls} == set(group.commands), "every command is shown"
    for name, *arguments in calls:
        if arguments != ["--help"]:
            group.commands[name].make_context(name, list(arguments))


def test_a_call_with_an_unknown_option_would_be_noticed() -> None:
    group: Any = typer.main.get_command(app)
    with pytest.raises(Exception, match="--fsp"):
        group.commands["ask"].make_context("ask", ["clip.mp4", "What?", "--fsp", "1"])


def test_every_make_target_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {call[0] for call in commands("make")} | set(re.findall(r"`make ([a-z]+)`", README))
    assert {"run", "test", "ask", "check"} <= named <= targets


def test_every_file_named_exists() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    played = [word for call in commands(".venv/bin/python app.py") for word in call if word.startswith("samples/")]
    assert linked and played
    assert not [name for name in linked + played if not (REPOSITORY / name).is_file()]


def test_the_tree_shows_every_source_file_and_no_other_with_a_purpose() -> None:
    shown = tree()
    sources = {name for name in tracked_files() if name.endswith(".py") and not name.startswith("tests/")}
    wanted = {name for name in sources if not name.endswith("__init__.py")}
    files = {name for name in shown if not name.endswith("/")}
    assert files == wanted, f"missing: {sorted(wanted - files)}; gone: {sorted(files - wanted)}"
    assert all(shown[name] for name in files)
    assert all((REPOSITORY / name).is_dir() for name in shown if name.endswith("/"))


def test_defaults_that_are_told_are_the_defaults() -> None:
    from config import Config

    config = Config()
    assert f"({config.read.fps:g} a second by default)" in README
    assert f"Every {config.memory.chunk_frames} frames" in README


def test_the_example_says_what_the_command_says() -> None:
    (shown,) = EXAMPLE.findall(README)
    if not shown.strip() or not (DEMO_FOLDER / "config.json").is_file():
        pytest.skip("the embedded model's weights, or what they say, are not in this checkout yet")
    call = commands(".venv/bin/python app.py")[0]
    testing = importlib.import_module("typer.testing")
    told = testing.CliRunner().invoke(
        app, [str(REPOSITORY / word) if word.startswith("samples/") else word for word in call]
    )
    assert told.exit_code == 0, told.stderr
    for answer in told.stdout.splitlines():
        assert answer in shown
