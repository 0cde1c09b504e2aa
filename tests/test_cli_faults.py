"""What people type wrong and what goes wrong meanwhile: a sentence, and an exit code to tell."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app import app
from memory.disk_tier import DiskFullError, SessionStore
from memory.records import NewChunk
from tests.clips import write_clip
from tests.tiny import save_tiny
from ui.cli.console import BROKEN_OFF


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", 12)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [os.fspath(str(argument)) for argument in arguments])


@pytest.fixture
def kept(model: str, clip: Path, tmp_path: Path) -> Path:
    """A session that has seen all of the clip."""
    result = run("watch", clip, "--session", tmp_path / "kept", "--model", model)
    assert result.exit_code == 0, result.stderr
    return tmp_path / "kept"


def refusal(result: Result) -> str:
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("word", ["mising.mp4", "./mising", "no/such/clip", "/mising.mkv"])
def test_what_can_only_be_a_path_is_no_question(kept: Path, word: str) -> None:
    told = refusal(run("ask", "--session", kept, word, "What is shown?"))
    assert told == f"There is no file {word}."


@pytest.mark.parametrize("question", ["Is it 3/4 full?", "red/green?", "Which one, and/or why"])
def test_a_question_may_have_a_slash(model: str, kept: Path, question: str) -> None:
    result = run("ask", "--session", kept, question, "--model", model, "--max-tokens", 2)
    assert result.exit_code == 0, result.stderr


def test_a_file_alone_is_no_question(model: str, clip: Path, kept: Path) -> None:
    result = run("ask", "--session", kept, clip, "--model", model)
    assert result.exit_code == 2 and "there is no question" in result.stderr


def test_a_video_whose_name_is_no_text_is_asked_but_not_kept(
    model: str, clip: Path, tmp_path: Path
) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    Path(odd).write_bytes(clip.read_bytes())
    asked = run("ask", odd, "What?", "--model", model, "--max-tokens", 2)
    assert asked.exit_code == 0, asked.stderr
    for words in (["watch", odd], ["ask", odd, "What?"]):
        told = refusal(run(*words, "--session", tmp_path / "s", "--model", model))
        assert "its name is not UTF-8" in told and told.isprintable()
    assert not (tmp_path / "s").exists(), "and no empty session stays behind"


@pytest.fixture
def _full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the first chunk there is no room on the disk."""
    write = SessionStore.write

    def refused(store: SessionStore, chunks: Sequence[NewChunk]) -> Any:
        if store.num_chunks:
            raise DiskFullError("The disk is full.")
        return write(store, chunks)

    monkeypatch.setattr(SessionStore, "write", refused)
    monkeypatch.setattr("streaming.session.RETRY_SECONDS", ())
    monkeypatch.setattr("memory.kv_memory.RETRY_SECONDS", ())
    yield


def test_watching_that_broke_off_has_an_exit_code_of_its_own(
    model: str, clip: Path, tmp_path: Path, _full_disk: None
) -> None:
    few = ["--session", tmp_path / "s", "--model", model, "--chunk-frames", 4]
    result = run("watch", clip, *few)
    assert result.exit_code == BROKEN_OFF, result.stderr
    assert "Watching ended there" in result.stderr and "To go on:" in result.stderr
    asked = run("ask", clip, "What?", *few, "--max-tokens", 2)
    assert asked.exit_code == BROKEN_OFF and asked.stdout, "it is answered all the same"


def test_a_time_beyond_the_end_is_told_beside_the_answer(model: str, clip: Path) -> None:
    result = run("ask", clip, "What is at 1:02:03?", "--model", model, "--max-tokens", 2)
    assert result.exit_code == 0
    assert "1:02:03 was not seen: what has been watched ends at 0:11." in result.stderr


def test_the_rest_of_a_session_can_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "lock").touch()
    result = run("sessions", "delete", tmp_path / "s", "--yes")
    assert result.exit_code == 0 and "the rest of a session" in result.stderr
    assert not (tmp_path / "s").exists()
