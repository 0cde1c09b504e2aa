"""Calibration finds the head that retrieves, no other, measures it on fresh needles, and keeps what
it found.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from config import MemoryConfig
from models import calibration
from models.calibration import (
    Profile,
    RetrievalHead,
    calibrate,
    find_profile,
    hits,
    make_needles,
    profile_path,
)
from models.loading import load
from models.video_llm import Head
from tests.planted import QUESTION_TOKENS, PlantedModel, code_of
from tests.tiny import noise_frames, save_tiny

COUNT = 12
FPS = 2.0
MEMORY = MemoryConfig(chunk_frames=8)
PLANTED = Head(layer=1, head=2)
HEADS = (
    RetrievalHead(1, 2, 1, 0.5, 2.0, 1.0, 1.0, 1.0),
    RetrievalHead(0, 3, 0, 0.0, 1.0, 1.0, 0.5, 0.75),
)
PROFILE = Profile("planted@0", "float32", 2, HEADS, 36, 0.9, 1.0)


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return PlantedModel(PLANTED, knows=(0, 1), count=COUNT, memory=MEMORY, fps=FPS)


def test_the_planted_head_is_found_with_its_newest_token_and_hits_every_fresh_needle(
    planted: PlantedModel,
) -> None:
    steps: list[tuple[int, int]] = []
    profile = calibrate(
        planted, MEMORY, FPS, COUNT, progress=lambda done, total: steps.append((done, total))
    )
    assert profile is not None
    assert [(head.layer, head.head, head.last_tokens) for head in profile.heads] == [(1, 2, 1)]
    assert (profile.hit4, profile.heads[0].hit4) == (1.0, 1.0)
    assert profile.hit1 > 0.9, "of two things asked for at once, a third may look best"
    assert (profile.num_needles, profile.group_size) == (4 * COUNT, 2)
    assert profile.fits(planted)
    assert steps == [(k + 1, 2 * COUNT) for k in range(2 * COUNT)]


def test_the_hit_rate_is_of_fresh_needles_and_not_of_those_used_to_choose() -> None:
    learned_by_heart = PlantedModel(PLANTED, knows=(0,), count=COUNT, memory=MEMORY, fps=FPS)
    profile = calibrate(learned_by_heart, MEMORY, FPS, COUNT)
    assert profile is not None and profile.hit1 < 0.5, (
        "the second stream's needles were never recognised"
    )


def test_a_model_in_which_no_head_retrieves_gets_no_profile() -> None:
    blind = PlantedModel(None, knows=(), count=COUNT, memory=MEMORY, fps=FPS)
    assert calibrate(blind, MEMORY, FPS, COUNT) is None


def test_needles_differ_from_each_other_and_questions_name_the_one_they_are_about() -> None:
    needles = make_needles(3, 16, 4.0)
    names = [scene.events[0].things[0].name for scene in needles.scenes]
    assert len(set(names)) == 16
    assert [all(names[k] in text for k in right) for text, right in needles.questions] == [
        True
    ] * 64
    assert sum(len(set(right)) == 2 for right in needles.truth) == 16
    again, other = make_needles(3, 16, 4.0), make_needles(4, 16, 4.0)
    assert again.scenes == needles.scenes != other.scenes


def test_every_needle_is_on_screen_for_some_of_the_sampled_frames() -> None:
    for scene in make_needles(0, 64, MEMORY.chunk_frames / FPS).scenes:
        assert sum(scene.event_at(k / FPS) is not None for k in range(MEMORY.chunk_frames)) >= 4


def test_hits_count_how_often_the_right_chunk_is_among_the_best() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    assert float(hits(scores, [(0,), (2,), (1,)], 1)) == pytest.approx(1 / 3), "a tie is no hit"
    assert float(hits(scores, [(0,), (2,), (1,)], 2)) == 1.0
    assert float(hits(scores, [(1,), (1,), (2,)], 2)) == 0.0


def test_a_question_about_two_chunks_is_a_hit_when_both_come_back() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    assert [float(hits(scores, [(0, 2)], best)) for best in (1, 2)] == [1.0, 1.0], (
        "with room for one, one is enough"
    )
    assert [float(hits(scores, [(0, 1)], best)) for best in (1, 2, 3)] == [1.0, 0.0, 1.0]


def test_keys_are_those_of_visual_tokens_and_queries_line_up_with_them(
    planted: PlantedModel,
) -> None:
    chunk = planted.prefill(planted.encode(noise_frames(8)), [], 0)
    keys = PROFILE.keys_of(chunk)
    assert keys.shape == (2, 8, 32) and keys.dtype == torch.float32
    assert torch.equal(keys[0], chunk.keys[1, 1, 1:]) and torch.equal(keys[1], chunk.keys[0, 1, 1:])
    queries = PROFILE.queries_of(planted, "Was there a red star?")
    assert queries.shape == (2, QUESTION_TOKENS, 32)
    assert torch.equal(queries[0], queries[0, -1:].expand(QUESTION_TOKENS, -1)), (
        "asked with one token alone"
    )
    assert torch.equal(queries[0, -1], code_of("red star")), "the newest"
    assert not torch.equal(queries[1, 0], queries[1, -1])


def test_a_real_model_gives_keys_and_queries_of_one_kind(tmp_path: Path) -> None:
    model = load(save_tiny(tmp_path), "cpu")
    chunk = model.prefill(model.encode(noise_frames(4)), [model.prefix()], 0)
    profile = replace(PROFILE, heads=(replace(HEADS[0], layer=2), HEADS[1]))
    keys, queries = profile.keys_of(chunk), profile.queries_of(model, "Was there a red star?")
    assert keys.shape == (2, int(chunk.visual.sum()), 16)
    assert queries.shape[0] == 2 and queries.shape[2] == 16 and queries.dtype == torch.float32
    assert torch.equal(keys[1], chunk.keys[0, 1][chunk.visual])


def test_a_profile_is_kept_and_read_as_it_was(tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "new" / "folder" / "p.json")
    assert Profile.load(tmp_path / "new" / "folder" / "p.json") == PROFILE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '"text"',
        "{}",
        '{"format": 1}',
        "\udcff",
        "format",
        "heads",
        "no heads",
        "spread",
        "extra",
    ],
)
def test_a_file_that_is_no_profile_is_told_in_a_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    PROFILE.save(path)
    edits: dict[str, dict[str, Any]] = {
        "format": {"format": 99},
        "heads": {"heads": [{"layer": 1}]},
        "no heads": {"heads": []},
        "spread": {"heads": [{**json.loads(path.read_text())["heads"][0], "std": 0.0}]},
        "extra": {"surprise": 1},
    }
    if text in edits:
        path.write_text(json.dumps({**json.loads(path.read_text()), **edits[text]}))
    else:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="calibrate again") as error:
        Profile.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_place_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        PROFILE.save(tmp_path / "file" / "p.json")


def test_only_the_profile_of_the_very_model_and_dtype_is_used(
    planted: PlantedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "SHIPPED", tmp_path / "shipped")
    path = profile_path(planted)
    assert path.is_relative_to(tmp_path / "cache") and find_profile(planted) is None
    PROFILE.save(path)
    assert find_profile(planted) == PROFILE
    for wrong in (replace(PROFILE, dtype="bfloat16"), replace(PROFILE, model_id="planted@1")):
        wrong.save(path)
        assert find_profile(planted) is None, "put there under a wrong name"


def test_a_profile_made_here_goes_before_the_one_shipped(
    planted: PlantedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "SHIPPED", tmp_path / "shipped")
    shipped, made = replace(PROFILE, hit1=0.5), replace(PROFILE, hit1=0.75)
    shipped.save(tmp_path / "shipped" / profile_path(planted).name)
    assert find_profile(planted) == shipped
    made.save(profile_path(planted))
    assert find_profile(planted) == made
