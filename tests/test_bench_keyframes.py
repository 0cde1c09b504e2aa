"""The cut bench makes clips with the cuts it says, matches as it says, and fails when ours is
behind.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.keyframes import (
    OURS,
    Score,
    batches,
    f1,
    matched,
    real_clips,
    report,
    targets,
    told_cuts,
)
from bench.shots import FPS, HEIGHT, KINDS, WIDTH, Shot, cuts_seconds, rendered, script, write
from streaming.sources.pictures import VideoFile
from tests.clips import write_clip

SCORE = Score("real", "a.mp4", OURS, 8, (1.0,), (3.0,), 100, 0.01)


def test_a_true_cut_takes_the_nearest_one_found_and_no_other_may_have_it() -> None:
    assert matched([1.05, 1.0, 5.0, 7.0], [1.01, 3.0, 5.09], [7.05]) == (2, (3.0,), (1.05,))
    assert matched([], [2.0], []) == (0, (2.0,), ())
    assert matched([1.0], [0.95, 1.05], []) == (1, (1.05,), ())


def test_precision_recall_and_f1_are_pooled_over_clips() -> None:
    assert f1([SCORE]) == pytest.approx((8 / 9, 8 / 9, 8 / 9))
    assert f1([SCORE, replace(SCORE, hits=2, missed=(), false=())])[1] == pytest.approx(10 / 11)
    assert f1([replace(SCORE, hits=0, missed=(), false=())]) == (1.0, 1.0, 1.0)


def test_ours_must_be_as_good_as_the_better_one_and_faster_than_the_faster_one() -> None:
    better = replace(SCORE, way="Adaptive", hits=9, missed=(), cpu_seconds=0.03)
    faster = replace(SCORE, way="Content", hits=1, cpu_seconds=0.02)
    assert [t.is_met for t in targets([SCORE, better, faster])] == [False, True]
    assert [t.is_met for t in targets([replace(SCORE, cpu_seconds=0.025), faster, better])] == [
        False,
        False,
    ]
    assert [t.is_met for t in targets([SCORE, faster])] == [True, True]
    assert any("| real | ours | 100 | 9 | 1 | 1 |" in line for line in report([SCORE]))


def test_truth_counts_from_the_first_picture_and_leaves_out_what_is_not_there(
    tmp_path: Path,
) -> None:
    write_clip(tmp_path / "a.mp4", 2)
    told = {
        "_how": "by eye",
        "a.mp4": {"hard_cuts": [[8, 1.0]], "ambiguous": [[12, 1.5]]},
        "gone.mp4": {"hard_cuts": []},
    }
    (tmp_path / "cuts.json").write_text(json.dumps(told))
    (clip,) = real_clips(tmp_path, [tmp_path / "cuts.json"])
    assert (clip.cuts, clip.ambiguous) == ((1.0,), (1.5,))
    (tmp_path / "a.json").write_text(json.dumps([{"start_s": 0.0}, {"start_s": 1.25}]))
    assert told_cuts(tmp_path / "a.json", tmp_path)["a.mp4"]["hard_cuts"] == [1.25]


@pytest.mark.parametrize("kind", KINDS)
def test_a_synthetic_clip_jumps_at_its_cuts_and_nowhere_else_but_in_flashes(kind: str) -> None:
    seed = next(
        seed
        for seed in range(200, 250)
        if kind == "fades" or len(cuts_seconds(script(kind, seed, 2.0))) > 0
    )
    shots = script(kind, seed, 2.0)
    cuts = {round(seconds * FPS) for seconds in cuts_seconds(shots)}
    assert bool(cuts) == (kind != "fades")
    flashed = {
        k + start for start, shot in zip(starts(shots), shots, strict=True) for k, _ in shot.flashes
    }
    assert bool(flashed) == (kind == "flashes")
    before, jumps = None, []
    for number, picture in enumerate(rendered(shots, seed)):
        if before is not None and number not in flashed and number - 1 not in flashed:
            jumps.append((float(np.abs(picture.astype(np.float32) - before).mean()), number))
        before = picture.astype(np.float32)
    largest = {number for _, number in sorted(jumps)[len(jumps) - len(cuts) :]}
    assert largest == cuts


def starts(shots: list[Shot]) -> list[int]:
    return [sum(shot.num_frames for shot in shots[:k]) for k in range(len(shots))]


def test_a_written_clip_has_the_frames_of_its_script(tmp_path: Path) -> None:
    cuts = write(tmp_path / "c.mp4", "cuts", 200, 0.5)
    assert cuts == cuts_seconds(script("cuts", 200, 0.5))
    with VideoFile(tmp_path / "c.mp4") as video:
        frames = [frame for batch in batches(video) for frame in batch]
    assert len(frames) == sum(shot.num_frames for shot in script("cuts", 200, 0.5))
    assert (frames[0].height, frames[0].width) == (HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="kind"):
        script("explosions", 1)
