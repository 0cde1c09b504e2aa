"""Search in an archive: by what was seen and said, verified, and ending."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from app import app
from archive.head_keys import LEVELS, sum_of_matches, write_keys
from archive.search import Search, full_text_query, indexable, standardized, things_of
from errors import LonglookError
from streaming.engine import Engine, load_engine

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("demo", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One minute of the embedded model's world, captioned."""
    out = tmp_path_factory.mktemp("captions")
    videos = tmp_path_factory.mktemp("videos")
    (videos / "world.mp4").write_bytes((SAMPLES / "one_minute.mp4").read_bytes())
    result = run("caption", videos, "--out", out, "--max-seconds", 4, "--formats", "jsonl")
    assert result.exit_code == 0, result.output
    return out


def test_a_thing_is_found_where_it_is_to_be_seen(engine: Engine, folder: Path) -> None:
    found = Search(folder).find(engine, "a yellow square", 3)
    best = found[0]
    assert best.start_seconds <= 45.5 < best.stop_seconds, "it appears at 45 seconds"
    assert best.probability is not None and best.probability > 0.9
    assert Path(best.thumbnail).is_file()


def test_what_is_not_there_is_not_found_and_would_be_without_asking_again(
    engine: Engine, folder: Path
) -> None:
    search = Search(folder)
    assert search.find(engine, "a white circle", 5) == []
    assert len(search.find(engine, "a white circle", 5, verify=False)) == 5


def test_several_things_must_all_be_there(engine: Engine, folder: Path) -> None:
    search = Search(folder)
    star = search.find(engine, "a yellow star", 10)
    assert star
    assert search.find(engine, "a yellow star and a white circle", 10) == []


def test_a_video_that_has_gone_is_left_out_of_verified_results(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(folder)
    monkeypatch.setattr(
        search, "_look_again", lambda engine, path, numbers: {}
    )  # as where it can't be read
    assert search.find(engine, "a yellow star", 3) == []
    assert len(search.find(engine, "a yellow star", 3, verify=False)) == 3


def test_keys_of_another_model_are_refused(folder: Path) -> None:
    other = load_engine("demo", device="cpu")
    other.model.model_id = "another@1"
    with pytest.raises(LonglookError, match="captioned with demo@"):
        Search(folder).find(other, "a star", 3)


# --- matches ---


def written(path: Path, *segments: torch.Tensor) -> Path:
    write_keys(path, segments, "owner")
    return path


def test_matches_of_8_bits_are_those_of_the_keys_themselves(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    segments = [torch.randn(2, n, 16, generator=generator) * 5 for n in (3, 10, 1)]
    queries = torch.randn(2, 4, 16, generator=generator)
    got = sum_of_matches(written(tmp_path / "k.npz", *segments), queries, "owner")
    for number, keys in enumerate(segments):
        exact = torch.einsum("hqd,hnd->hqn", queries, keys).amax(2).sum(1)
        allowed = 4 * float(queries.abs().sum(2).max()) * float(keys.abs().max()) / LEVELS
        assert np.abs(got[:, number] - exact.numpy()).max() < allowed
        assert np.abs(got[:, number] - exact.numpy()).max() < 0.02 * float(exact.abs().max())


def test_two_things_need_both_and_the_largest_match_alone_would_not_tell(tmp_path: Path) -> None:
    one, other = torch.eye(8)[0], torch.eye(8)[1]
    only_one = torch.stack([1.5 * one, 1.5 * one])[None]
    both = torch.stack([one, other])[None]
    queries = torch.stack([one, other])[None]
    path = written(tmp_path / "k.npz", only_one, both)
    (scores,) = sum_of_matches(path, queries, "owner")
    assert scores[1] > scores[0]
    largest = [float((queries[0] @ keys[0].T).max()) for keys in (only_one, both)]
    assert largest[0] > largest[1], "the control: max alone prefers the wrong one"


def test_segments_without_tokens_come_last(tmp_path: Path) -> None:
    path = written(tmp_path / "k.npz", torch.zeros(1, 0, 4), torch.ones(1, 2, 4))
    (scores,) = sum_of_matches(path, torch.ones(1, 1, 4), "owner")
    assert scores[0] == -np.inf and standardized(scores)[0] <= standardized(scores)[1]


def test_keys_of_another_owner_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "k.npz", torch.ones(1, 2, 4))
    with pytest.raises(LonglookError, match="captioned with owner"):
        sum_of_matches(path, torch.ones(1, 1, 4), "someone else")


# --- words ---


@pytest.mark.parametrize(
    "text",
    [
        "it's",
        "red-star",
        "NEAR(",
        "AND",
        '"',
        "a * b",
        "star:",
        "-star",
        "(",
        "^x",
        "NOT a OR b",
        "",
    ],
)
def test_what_a_person_types_is_no_query_language(folder: Path, text: str) -> None:
    scores = Search(folder)._said(text)
    assert len(scores) > 10 and np.isfinite(scores).all()


def test_words_of_captions_are_found(folder: Path) -> None:
    search = Search(folder)
    scores = search._said("a yellow star")
    captions = [str(place.row["caption"]) for place in search._places]
    assert "yellow star" in captions[int(scores.argmax())]
    assert (scores[["yellow" not in c and "star" not in c for c in captions]] == 0).all()
    assert full_text_query("the star and the ring") == '"star" OR "ring"'


def test_chinese_and_japanese_are_found_by_pairs_of_letters() -> None:
    assert indexable("赤い星") == "赤い い星"
    assert full_text_query("い星") == '"い星"'


def test_things_are_told_apart() -> None:
    assert things_of("a red star and a blue ring, a dog?") == ["a red star", "a blue ring", "a dog"]
    assert things_of("sandcastle") == ["sandcastle"]


# --- the command ---


def test_the_command_prints_moments_and_says_when_there_is_none(folder: Path) -> None:
    result = run("search", "a yellow star", "--in", folder, "--json", "-n", 1)
    assert result.exit_code == 0
    (found,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert found["video"] == "world.mp4" and "yellow star" in found["caption"]
    result = run("search", "a yellow star", "--in", folder)
    assert "world.mp4" in result.stdout and "found in" in result.stderr
    result = run("search", "a white circle", "--in", folder)
    assert result.exit_code == 1 and "Nothing found" in result.stderr and not result.stdout


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("star", "missing", "no captions in"),
        (" ", "folder", "nothing to search for"),
    ],
)
def test_mistakes_get_one_sentence(
    folder: Path, tmp_path: Path, text: str, place: str, words: str
) -> None:
    where = folder if place == "folder" else tmp_path / place
    result = run("search", text, "--in", where)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
