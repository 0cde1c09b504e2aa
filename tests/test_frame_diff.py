"""A frame is read once: cuts, keyframes and changed patches are told from the same samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from frames import Frame
from keyframes import frame_diff
from keyframes.detector import KeyframeDetector, keyframes_of
from keyframes.frame_diff import FrameDiff, analysis_grid, join_patches, measure_frames
from keyframes.novelty import change, downsample
from keyframes.reuse import KeyframeNovelty, novelty_of_patches
from tests.scenery import place, view
from tests.test_detector import frames_of, shot


def cells(height: int, width: int) -> tuple[int, int]:
    return 16, 28


def measured(frames: list[Frame]) -> list[FrameDiff]:
    return measure_frames(frames, cells)


@pytest.mark.parametrize(
    ("patches", "expected"),
    [((8, 8), (16, 16)), ((14, 26), (14, 26)), ((4, 6), (16, 24)), ((28, 28), (28, 28))],
)
def test_change_is_told_in_whole_parts_of_the_towers_patches(
    patches: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert analysis_grid(patches) == expected
    assert expected[0] % patches[0] == expected[1] % patches[1] == 0


def test_each_picture_is_downsampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(images: Any, grid: Any) -> Any:
        sizes.append(len(images))
        return downsample(images, grid)

    monkeypatch.setattr(frame_diff, "downsample", counted)
    frames = [*frames_of(shot(1, 5)), *(Frame(view(place(2))[:100], 9.0, k) for k in range(3))]
    assert len(measured(frames)) == 8 and sizes == [5, 3], "one batch for each size"


def test_in_a_batch_a_frame_is_measured_as_it_is_alone() -> None:
    frames = frames_of(shot(1, 4))
    for together, alone in zip(
        measured(frames), (measured([frame])[0] for frame in frames), strict=True
    ):
        assert together.patches is not None and alone.patches is not None
        assert torch.equal(together.coarse, alone.coarse)
        assert torch.equal(together.patches.samples, alone.patches.samples)
    first, second = measured(frames)[:2]
    assert not torch.equal(first.coarse, second.coarse)


def test_cuts_are_told_from_the_finer_samples_as_from_a_downsample_of_their_own() -> None:
    frames = frames_of(shot(1, 12) + shot(2, 9, speed=4) + shot(3, 20, speed=-3) + shot(1, 12))
    found = []
    for diffs in (measured(frames), measure_frames(frames)):
        detector = KeyframeDetector()
        judged = [*detector.judge(diffs), *detector.flush()]
        found.append(keyframes_of(judged))
    assert found[0] == found[1] and [k.index for k in found[0] if k.kind == "cut"] == [12, 21, 41]


def as_keyframe(diff: FrameDiff) -> FrameDiff:
    return FrameDiff(diff.frame, diff.patches, diff.coarse, "cut")


def test_every_map_is_against_the_last_keyframe() -> None:
    diffs = measured(frames_of(shot(1, 3) + shot(2, 3)))
    diffs[3] = as_keyframe(diffs[3])
    maps = KeyframeNovelty().measure(diffs)
    for number, reference in ((1, 0), (2, 0), (4, 3), (5, 3)):
        patches = join_patches([diffs[number]])
        wanted = change(patches, join_patches([diffs[reference]])).reshape(16, 28)
        assert torch.allclose(maps[number], wanted, atol=1e-6)
        wrong = change(patches, join_patches([diffs[3 - reference]])).reshape(16, 28)
        assert not torch.allclose(maps[number], wrong, atol=0.1)
    assert float(maps[3].max()) == 0.0, "a keyframe is compared with itself"


def test_maps_in_parts_are_those_of_the_whole_and_a_late_keyframe_counts_from_then_on() -> None:
    diffs = measured(frames_of(shot(1, 3) + shot(2, 5)))
    marked = [as_keyframe(diff) if k == 3 else diff for k, diff in enumerate(diffs)]
    whole, parts = KeyframeNovelty(), KeyframeNovelty()
    together = whole.measure(marked)
    apart = torch.cat([parts.measure(marked[k : k + 2]) for k in range(0, 8, 2)])
    assert torch.allclose(together, apart, atol=1e-6)
    late = KeyframeNovelty()
    late.measure(diffs[:6])
    late.keep(diffs[3])
    assert torch.allclose(late.measure(diffs[6:]), together[6:], atol=1e-6)
    unaware = KeyframeNovelty()
    unaware.measure(diffs[:6])
    assert not torch.allclose(unaware.measure(diffs[6:]), together[6:], atol=0.1)


def test_a_patch_is_as_new_as_the_newest_of_its_cells_and_patches_of_a_token_are_neighbours() -> (
    None
):
    cells_map = torch.zeros(1, 8, 12)  # a grid of 4 x 6 patches, two cells along a side
    cells_map[0, 3, 10] = 0.7  # patch (1, 5)
    cells_map[0, 2, 11] = 0.2  # the same
    cells_map[0, 6, 0] = 0.4  # patch (3, 0)
    by_patch = novelty_of_patches(cells_map, (4, 6), merge_size=1)
    assert by_patch.nonzero()[:, 1].tolist() == [6 + 5, 18]
    assert by_patch[0, [11, 18]].tolist() == pytest.approx([0.7, 0.4])
    by_token = novelty_of_patches(cells_map, (4, 6), merge_size=2)
    # tokens row by row: (1, 5) is the last patch of token 2, (3, 0) the third of token 3
    assert by_token.nonzero()[:, 1].tolist() == [2 * 4 + 3, 3 * 4 + 2]


def test_frames_that_nobody_asks_about_in_cells_have_none() -> None:
    (diff,) = measure_frames([Frame(np.zeros((20, 30, 3), np.uint8), 0.0, 0)])
    assert diff.patches is None and tuple(diff.coarse.shape) == (3, 36, 64)
    with pytest.raises(AssertionError, match="not measured"):
        join_patches([diff])
