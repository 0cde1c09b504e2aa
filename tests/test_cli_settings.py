"""Every knob can be turned, by a file, `--set` or an option, and says where its value comes
from.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

from app import COMMANDS, app
from config import Config
from errors import LonglookError
from models.checkpoint import recommended_settings
from ui.cli import options
from ui.cli.options import EVERYTHING, GENERAL, GIB, SETTINGS, Option
from ui.cli.settings import Setting, Settings, as_toml, from_file, from_options, from_words
from ui.cli.wiring import chosen_from


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def printed(*arguments: object) -> dict[str, Any]:
    """What `longlook config` prints, read as TOML."""
    result = run("config", *arguments)
    assert result.exit_code == 0, result.stderr
    return tomllib.loads(result.stdout)


def origins(*arguments: object) -> dict[str, str]:
    """Knob by knob, where `longlook config` says that it comes from."""
    found, section = {}, ""
    for line in run("config", *arguments).stdout.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line:
            setting, _, origin = line.partition("#")
            found[f"{section}.{setting.split(' = ')[0]}"] = origin.strip()
    return found


@pytest.fixture
def checkpoint_folder(tmp_path: Path) -> Path:
    """What looks like a checkpoint that recommends two knobs."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    recommended = {"memory": {"chunk_frames": 9, "recall_chunks": 3}}
    (folder / "longlook.json").write_text(json.dumps(recommended))
    return folder


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    path.write_text("[memory]\nchunk_frames = 10\nwindow_chunks = 3\n[read]\nfps = 1\n")
    return path


# The table.


def test_every_option_turns_a_knob_that_exists_and_is_written_once() -> None:
    knobs = dict(Config().knobs())
    assert all(option.knob in knobs for option in EVERYTHING)
    flags = Counter(option.flag for option in (*GENERAL, *SETTINGS, *EVERYTHING))
    assert flags and set(flags.values()) == {1}
    sources = [path.read_text() for path in sorted(Path(options.__file__).parent.glob("*.py"))]
    for flag in (option.flag for option in EVERYTHING):
        assert sum(f'"{flag}"' in text for text in sources) == 1, f"{flag} is written twice"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reaches_every_knob(command: str) -> None:
    group: Any = typer.main.get_command(app)
    flags = {flag for parameter in group.commands[command].params for flag in parameter.opts}
    assert {"--config", "--set"} <= flags


def test_the_help_tells_the_defaults_that_are_in_force() -> None:
    def help_of(flag: str) -> str:
        (option,) = [option for option in EVERYTHING if option.flag == flag]
        (info,) = option.parameter().annotation.__metadata__
        return str(info.help)

    assert help_of("--chunk-frames").endswith("[default: 16; demo 8]")
    assert help_of("--host-budget").endswith("[default: 8]")
    assert help_of("--prune").endswith("[default: none; demo novelty]")


def test_an_option_is_taken_in_its_own_unit_and_checked() -> None:
    budget = Option("--budget", float | None, "", "memory.host_bytes", in_gib=True)
    assert budget.value_of_knob(0.5) == GIB // 2
    for wrong in (-1.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(LonglookError, match="--budget needs a number of GiB, not"):
            budget.value_of_knob(wrong)
    assert budget.parameter().kind is inspect.Parameter.KEYWORD_ONLY


# Precedence.


def test_later_sources_win_and_each_value_says_where_it_comes_from(
    checkpoint_folder: Path, toml: Path
) -> None:
    plain = origins(checkpoint_folder)
    assert plain["memory.chunk_frames"] == plain["memory.recall_chunks"] == "longlook.json"
    assert set(plain.values()) == {"longlook.json", "default"}
    assert set(plain) == {knob for knob, _ in Config().knobs()}
    words = [checkpoint_folder, "--config", toml]
    assert printed(*words)["memory"]["chunk_frames"] == 10
    words += ["--set", "memory.chunk_frames=11", "--set", "memory.window_chunks=5"]
    assert printed(*words)["memory"]["chunk_frames"] == 11
    words += ["--chunk-frames", 12]
    found = printed(*words)
    memory = found["memory"]
    assert (memory["chunk_frames"], memory["window_chunks"], memory["recall_chunks"]) == (12, 5, 3)
    assert found["read"]["fps"] == 1
    told = origins(*words)
    assert told["memory.chunk_frames"] == "--chunk-frames"
    assert told["memory.window_chunks"] == "--set"
    assert told["read.fps"] == str(toml)
    assert told["memory.recall_chunks"] == "longlook.json"
    assert told["answer.seed"] == "default"


def test_of_two_settings_of_one_knob_the_last_counts() -> None:
    settings = Settings(from_words(["answer.seed=1", "answer.seed=2"]))
    assert settings.nested() == {"answer": {"seed": 2}}


def test_what_is_printed_can_be_given_back(tmp_path: Path) -> None:
    first = run("config", "demo", "--set", "memory.borders=cuts", "--temperature", 0.5).stdout
    (tmp_path / "kept.toml").write_text(first)
    assert printed("demo", "--config", tmp_path / "kept.toml") == tomllib.loads(first)
    assert tomllib.loads(first)["memory"]["borders"] == "cuts"
    changes = tomllib.loads(as_toml("demo", Settings()))
    assert Config().overridden(changes) == Config().overridden(recommended_settings("demo"))


@pytest.mark.parametrize("knob", [knob for knob, _ in Config().knobs()])
def test_every_knob_of_any_model_is_turned_by_set(knob: str) -> None:
    """Hub ids included, which nobody needs to have here."""
    value = dict(Config().knobs())[knob]
    section, _, name = knob.partition(".")
    word = "never" if knob == "memory.recall" else str(value)
    found = printed("Qwen/Qwen3-VL-4B-Instruct", "--set", f"{knob}={word}")
    assert found[section][name] == (word if knob == "memory.recall" else value)
    assert type(found[section][name]) is type(value)


# Mistakes.


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[memory]\nchunk_frames = 0\n", "memory.chunk_frames in {} must be at least 1, not 0"),
        ("[memory]\nwindow = 3\n", "memory.window in {} is not a knob; memory has borders"),
        ("[memory]\nborders = 3\n", "memory.borders in {} must be a word, not 3"),
        ("[answer]\nseed = true\n", "answer.seed in {} must be a whole number, not True"),
        ("[memry]\nborders = 3\n", "{} has 'memry', which is no section; there are [read], "),
        ("fps = 3\n", "{} has 'fps', which is no section"),
        ("read = 3\n", "{} has 'read', which is no section"),
        ("[memory\n", "{} is not TOML: "),
        ("\xff", "{} is not TOML: it is not UTF-8."),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence_that_names_it(
    text: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_bytes(text.encode("latin-1"))
    result = run("config", "--config", path)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert told.format(path) in line


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(LonglookError, match="cannot be read: No such file"):
        list(from_file(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("memory.window_chunks", "--set memory.window_chunks is no setting"),
        ("window_chunks=3", "--set window_chunks=3 is no setting"),
        ("memory.=3", "--set memory. is not a knob"),
        ("memory.window_chunks=", "--set memory.window_chunks must be a whole number, not ''"),
        ("memory.window_chunks=1.5", "--set memory.window_chunks must be a whole number"),
        ("read.fps=nan", "--set read.fps must be a number, not nan"),
        ("read.fps=fast", "--set read.fps must be a number, not 'fast'"),
        ("prune.strategy=best", "--set prune.strategy must be one of none, novelty"),
    ],
)
def test_a_mistake_in_a_word_names_what_was_typed(word: str, told: str) -> None:
    with pytest.raises(LonglookError) as error:
        Settings(from_words([word]))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_of_an_earlier_source_is_told_even_if_a_later_one_would_win() -> None:
    with pytest.raises(LonglookError, match=r"--set memory\.chunk_frames must be at least 1"):
        Settings(
            [
                *from_words(["memory.chunk_frames=0"]),
                Setting("memory.chunk_frames", 4, "--chunk-frames", "--chunk-frames"),
            ]
        )


def test_the_options_that_were_not_typed_turn_nothing() -> None:
    typed = {option.name: None for option in (*EVERYTHING, *SETTINGS)}
    assert not list(from_options(EVERYTHING, typed))
    chosen = chosen_from(EVERYTHING, {**typed, "fps": 3.0, "host_budget": 1.0})
    assert chosen.settings.nested() == {"read": {"fps": 3.0}, "memory": {"host_bytes": GIB}}
    assert (chosen.model, chosen.device, chosen.dtype) == ("demo", "auto", "auto")


def test_a_name_with_a_line_break_does_not_break_the_toml(tmp_path: Path) -> None:
    path = tmp_path / "a\nseed = 5 # .toml"
    path.write_text("[answer]\nseed = 1\n")
    assert printed("--config", path)["answer"]["seed"] == 1


def test_a_longlook_json_that_makes_no_sense_is_told(checkpoint_folder: Path) -> None:
    wrong = {
        '{"memory": {"chunk_frames": 0}}': "memory.chunk_frames must be at least 1",
        '{"memory": 3}': "memory is a section",
        "[1, 2]": "makes no sense",
        "{": "makes no sense",
    }
    for text, told in wrong.items():
        (checkpoint_folder / "longlook.json").write_text(text)
        result = run("config", checkpoint_folder)
        assert result.exit_code == 2 and told in result.stderr
        assert f"the longlook.json of {checkpoint_folder}" in result.stderr
