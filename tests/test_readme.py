"""The README and its pages cannot drift: their commands exist and parse, the tree is the tree, the
example says what is said.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from app import app

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)  # and what it leads to
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(
    r"<!-- example output: begin.*?-->\n(.*?)<!-- example output: end -->", re.DOTALL
)

# What the samples show: see the timelines in samples/*.json. "now" is 0:30.
ANSWERS = {
    "When does the yellow square appear?": "at 45 seconds",
    "What colour is the heart?": "cyan",
    "What is shown at 0:30?": "a yellow star",
    "Describe what is shown at 30 seconds.": "a yellow star moving down",
    "What is shown now?": "a yellow star",
    "Is there a red square?": "yes",
    "Was there a red circle?": "yes",
    "When did the red square show up?": "at 60 seconds",
    "What is shown at 7:42?": "a yellow diamond",
    "When does the red circle appear?": "at 56 seconds",
    "What is shown at 0:50?": "a cyan triangle",
    "Is there a purple triangle?": "yes",
}
LINES_OF_EXAMPLE = [
    "Q: When does the yellow square appear?",
    "A: at 45 seconds",
    "Q: What colour is the heart?",
    "A: cyan",
    "Q: What is shown at 0:30?",
    "A: a yellow star",
]


def commands(start: str) -> list[list[str]]:
    """What stands behind `start` on the lines of code that begin with it, as a shell splits
    them.
    """
    lines = [
        line for block in BLOCKS for line in block.splitlines() if line.startswith(start + " ")
    ]
    return [shlex.split(line, comments=True)[len(start.split()) :] for line in lines]


def in_repository(word: str) -> str:
    return str(REPOSITORY / word) if word.startswith("samples/") else word


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to it is unknown")
    return [name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def tree() -> dict[str, str]:
    """The paths of the README's tree, folders with a slash at their end, and what is said of
    each.
    """
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


def help_examples() -> list[list[str]]:
    """The calls that the command line's own help shows, without the name of the program."""
    files = sorted((REPOSITORY / "ui" / "cli").glob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in files]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("longlook ")]


def test_every_call_of_the_command_line_parses() -> None:
    group: Any = typer.main.get_command(app)
    calls = commands(".venv/bin/longlook")
    assert {call[0] for call in calls} == set(group.commands), "every command is shown"
    assert {call[0] for call in help_examples()} == set(group.commands), (
        "every command has examples"
    )
    for name, *arguments in calls + help_examples():
        if arguments != ["--help"] and name != "sessions":
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
    linked = {
        page.parent / name
        for page in PAGES
        for name in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    }
    played = {
        REPOSITORY / word
        for call in commands(".venv/bin/longlook")
        for word in call
        if word.startswith("samples/")
    }
    assert linked and played
    assert not [path for path in linked | played if not path.is_file()]
    named = {path.resolve() for path in linked}
    assert not [page for page in PAGES[1:] if page not in named], "a page that nothing leads to"


def test_the_tree_shows_every_source_file_and_no_other_with_a_purpose() -> None:
    shown = tree()
    sources = {
        name for name in tracked_files() if name.endswith(".py") and not name.startswith("tests/")
    }
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
    call = commands(".venv/bin/longlook")[0]
    told = CliRunner().invoke(app, [in_repository(word) for word in call])
    assert told.exit_code == 0, told.stderr
    assert told.stdout.splitlines() == LINES_OF_EXAMPLE
    lines = [line.strip() for line in shown.splitlines() if line.strip(" `")]
    for printed in told.stdout.splitlines() + told.stderr.splitlines():
        assert printed.strip() in ["", *lines]


class Surroundings:
    """A folder with the files that examples name, a home of its own, and the commands run in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "samples").symlink_to(REPOSITORY / "samples")
        (folder / "clip.mp4").symlink_to(REPOSITORY / "samples" / "one_minute.mp4")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
        self.served: list[list[Path]] = []
        monkeypatch.setattr("ui.cli.opening.check_port", lambda *_: None)
        monkeypatch.setattr("ui.demo.serve", lambda _, samples, **__: self.served.append(samples))

    def run(self, call: list[str]) -> list[str]:
        """The lines that a call prints to standard output; it must succeed."""
        told = CliRunner().invoke(app, call, input="y\n")
        assert told.exit_code == 0, (call, told.stderr)
        return told.stdout.splitlines()


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    return Surroundings(tmp_path, monkeypatch)


def questions_of(call: list[str]) -> list[str]:
    return [word for word in call if word in ANSWERS or word.endswith(("?", "."))]


def runs_here(call: list[str]) -> bool:
    """Whether a call needs nothing but the embedded model and the samples, and ends by itself in
    time.
    """
    return call[0] != "calibrate" and not any("Qwen" in word or "holiday" in word for word in call)


def answers_in(lines: list[str]) -> list[str]:
    """The answers on standard output, plain, each after its question, or as JSON."""
    found = []
    for line in lines:
        if line.startswith("{"):
            found.append(json.loads(line)["answer"])
        elif not line.startswith("Q: "):
            found.append(line.removeprefix("A: "))
    return found


def check_answers(surroundings: Surroundings, calls: list[list[str]]) -> None:
    """Run the calls in order; all questions of `ask` must be answered as the samples' timelines
    say.
    """
    for call in filter(runs_here, calls):
        lines = surroundings.run(call)
        if call[0] == "ask" and call[1:] != ["--help"]:
            assert answers_in(lines) == [ANSWERS[question] for question in questions_of(call)], call


@pytest.mark.timeout(900)
def test_every_command_of_the_readme_runs_and_every_question_is_answered_right(
    surroundings: Surroundings,
) -> None:
    check_answers(surroundings, commands(".venv/bin/longlook"))
    assert surroundings.served


@pytest.mark.timeout(600)
def test_every_example_of_the_help_runs_and_every_question_is_answered_right(
    surroundings: Surroundings,
) -> None:
    examples = help_examples()
    watching_first = sorted(examples, key=lambda call: call[0] != "watch")
    check_answers(surroundings, watching_first)
    assert surroundings.served


def test_every_question_shown_is_in_the_table_of_answers() -> None:
    asked = [call for call in commands(".venv/bin/longlook") + help_examples() if call[0] == "ask"]
    questions = {question for call in filter(runs_here, asked) for question in questions_of(call)}
    questions |= {call[-1].removeprefix("Q=") for call in commands("make") if call[0] == "ask"}
    assert questions == set(ANSWERS)
