"""The prune bench compares like with like: the same frames, a pruner anew where its past is not
shown, true ratios.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.progress import Progress

from bench.prune import EncodedOnce, Watching, calm_stream, prune_clip, settings_of
from bench.prune_report import (
    BUSY,
    CALM,
    NONE,
    REUSE,
    Asking,
    Seeing,
    Setting,
    rows_of,
    tables,
    targets,
    write,
)
from config import PruneConfig
from models.loading import load
from models.video_llm import cut_groups
from tests.test_still import scene
from tests.tiny import noise_frames
from tests.watching import tiny_engine
from training.bind import StoredChunk
from training.evaluate import LENGTHS, Clip


def test_the_settings_are_no_pruning_then_every_strategy_at_every_budget() -> None:
    found = [
        (s.name, s.prune.budget)
        for s in settings_of("novelty,stc", "0.5,0.1", PruneConfig("novelty", 0.25))
    ]
    pruned = [("novelty", 0.5), ("novelty", 0.1), ("stc", 0.5), ("stc", 0.1)]
    assert found == [
        ("none", NONE.budget),
        *pruned,
        ("none + reuse", NONE.budget),
        ("novelty + reuse", 0.25),
    ]


def test_the_tower_sees_the_same_frames_once(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(checkpoint)
    once = EncodedOnce(model)
    frames = noise_frames(6)
    once.see(frames)
    groups = cut_groups(frames, model)
    whole, some = once.encode_groups(groups), once.encode_groups([groups[0], groups[2]])
    assert some[0] is whole[0] and some[1] is whole[2] and once.num_layers == model.num_layers
    for one, other in zip(whole, model.encode(frames), strict=True):
        assert (
            torch.equal(one.embeddings, other.embeddings)
            and one.start_seconds == other.start_seconds
        )


@pytest.mark.parametrize(
    ("first_groups", "hidden", "kept"),
    [((0, 2, 4), False, [1, 0, 0]), ((0, 2, 8), False, [1, 0, 1]), ((0, 2, 4), True, [1, 0, 1])],
)
def test_pruning_a_clip_begins_anew_behind_a_gap_and_behind_what_is_not_shown(
    checkpoint: Path, first_groups: tuple[int, ...], hidden: bool, kept: list[int]
) -> None:
    model, frames = load(checkpoint), scene(12)
    parts = [frames[0:4], frames[4:8], frames[8:12]]
    chunks = [StoredChunk((g, g + 1), (), hidden and k == 1) for k, g in enumerate(first_groups)]
    clip = Clip(LENGTHS[0], chunks, parts, [])
    assert [len(part) for part in prune_clip(clip, model, Setting(PruneConfig("novelty")))] == kept


def test_a_surveillance_like_stream_has_one_background_and_fewer_events() -> None:
    calm = calm_stream(0, 600.0)
    assert len({scene.background_seed for scene in calm.scenes}) == 1
    assert all(len(scene.events) <= 1 for scene in calm.scenes) and 5 < len(calm.events()) < len(
        calm.scenes
    )


def asking(setting: str, right: bool, budget: float = NONE.budget, footage: str = CALM) -> Asking:
    return Asking(
        footage, setting, budget, "past", "What?", "a", "a" if right else "b", right, None
    )


def seeing(setting: str, kept: int, budget: float = NONE.budget, footage: str = CALM) -> Seeing:
    return Seeing(footage, setting, budget, 1800.0, 100, kept, kept << 30)


def test_rows_and_targets_are_ratios_to_no_pruning_on_the_same_footage(tmp_path: Path) -> None:
    found: list[Asking | Seeing] = [
        *(asking("none", right) for right in (True, True, True, False)),
        *(asking("novelty", right) for right in (True, True, False, False)),
        seeing("none", 100),
        seeing("novelty", 20),
        *(asking(name, True, footage=BUSY) for name in ("none", "novelty")),
        seeing("none", 100, footage=BUSY),
        seeing("novelty", 60, footage=BUSY),
    ]
    rows = rows_of(found)
    assert [(r.kept, r.right, r.kv_gib_per_hour) for r in rows[:2]] == [
        (1.0, 0.75, 200.0),
        (0.2, 0.5, 40.0),
    ]
    assert [(t.measured, t.is_met) for t in targets(rows, NONE.budget)] == [
        ("20.0%", True),
        ("0.500 beside 0.750, ratio 0.667", False),
        ("60.0%", False),
        ("1.000 beside 1.000, ratio 1.000", True),
    ]
    assert all(t.is_met is None for t in targets(rows[:1], NONE.budget))
    assert "| novelty | 0.33 | 20.0% | 0.500 (4) | 0.667 |  | 40.000 | 0.20 |" in tables(rows)
    write(tmp_path / "prune", found, {"machine": "none"}, NONE.budget)
    assert (
        "| surveillance: tokens kept | at most 25% | 20.0% | yes |"
        in (tmp_path / "prune.md").read_text()
    )
    for footage in (CALM, BUSY):
        ElementTree.parse(tmp_path / f"prune-{footage}.svg")


@pytest.mark.timeout(600)
def test_all_settings_are_asked_the_same_and_tell_what_they_kept(checkpoint: Path) -> None:
    novelty_pruning = PruneConfig("novelty")
    settings = [Setting(), Setting(novelty_pruning)]
    settings.append(Setting(PruneConfig("none", 0.5), rival="uniform"))
    settings.append(Setting(novelty_pruning, REUSE))
    stream = calm_stream(0, 24.0)
    watching = Watching(CALM, stream, tiny_engine(checkpoint), settings, questions=1, side=48)
    with Progress(disable=True) as bar:
        found = list(watching.run(0, bar))
    asked = [item for item in found if isinstance(item, Asking)]
    for setting in settings:
        mine = [a.question for a in asked if a.setting == setting.name]
        assert mine == [a.question for a in asked if a.setting == "none"] and mine
    none, novelty, uniform, reused = (item for item in found if isinstance(item, Seeing))
    assert (
        none.tokens_kept == none.tokens_before == novelty.tokens_before == 2 * uniform.tokens_kept
    )
    assert (reused.setting, reused.tokens_kept) == ("novelty + reuse", novelty.tokens_kept)
    assert novelty.tokens_kept < 0.5 * none.tokens_kept and novelty.kv_bytes < none.kv_bytes
