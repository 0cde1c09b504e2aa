"""The pruner: what it keeps, that a still picture costs nothing, and that drift adds up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.rivals.pruners import DualAnchorPruner
from config import PruneConfig
from frames import Frame
from keyframes.frame_diff import FrameDiff, measure_frames
from keyframes.pruner import TokenPruner, make_pruner, num_kept_tokens
from streaming.sources.file import FileSource
from tests.golden import HEIGHT, WIDTH, Recipe, make, paint, steady

GRID = (4, 6)
N = 24
CELL = 16  # pixels


def pruner(**knobs: float) -> TokenPruner:
    made = make_pruner(PruneConfig("novelty", **knobs))
    assert made is not None
    return made


def plain(level: int = 100) -> NDArray[np.uint8]:
    """A picture with some texture, the same in every cell."""
    cell = np.full((CELL, CELL, 3), level, np.uint8)
    cell[:: CELL // 2] += 30
    return np.tile(cell, (*GRID, 1))


def with_cells(image: NDArray[np.uint8], places: Sequence[int], level: int) -> NDArray[np.uint8]:
    changed = image.copy()
    for place in places:
        row, column = divmod(place, GRID[1])
        changed[
            row * CELL + 2 : (row + 1) * CELL - 2, column * CELL + 2 : (column + 1) * CELL - 2
        ] = level
    return changed


def features(seed: int, n: int = N) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def cells(height: int, width: int) -> tuple[int, int]:
    """About square ones, 16 along the shorter side."""
    shorter = min(height, width)
    return round(16 * height / shorter), round(16 * width / shorter)


def measured(images: Sequence[NDArray[np.uint8]]) -> list[FrameDiff]:
    return measure_frames([Frame(image, 0.0, 0) for image in images], cells)


def is_news(pruner: TokenPruner, *images: NDArray[np.uint8], at: float = 0.0) -> bool:
    return pruner.select_groups([measured(images)], [at])[0]


def test_the_first_group_is_news_and_what_does_not_change_is_not() -> None:
    novelty, image = pruner(), plain()
    changed = with_cells(image, [3, 14], 200)
    shown = [image, image, changed, changed, image, image]
    assert [is_news(novelty, one, one, at=k) for k, one in enumerate(shown)] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]


def test_what_is_news_is_pruned_as_stc_does_and_the_rest_leaves_no_trace_in_its_anchors() -> None:
    novelty, stc = pruner(budget=0.25), DualAnchorPruner(0.25)
    for number in range(4):
        kept, wanted = novelty.keep(features(number)), stc.keep(features(number))
        assert torch.equal(kept.places, wanted.places) and len(kept.places) == N // 4
        assert not is_news(novelty, plain()) or number == 0


def test_behind_a_change_within_a_group_the_next_is_news_so_that_the_last_one_shows_one_thing() -> (
    None
):
    novelty, image = pruner(), plain()
    changed = with_cells(image, [7], 200)
    groups = [(image, image), (image, changed), (changed, changed), (changed, changed)]
    assert [is_news(novelty, *group, at=k) for k, group in enumerate(groups)] == [
        True,
        True,
        True,
        False,
    ]


def test_slow_drift_adds_up_against_what_went_on_and_would_not_against_the_group_before() -> None:
    novelty, image = pruner(), plain()
    is_news(novelty, image)
    drifting = [with_cells(image, [5], 100 + 3 * step) for step in range(30)]
    times = [
        step for step, picture in enumerate(drifting) if is_news(novelty, picture, at=step / 2)
    ]
    assert 2 <= len(times) <= 20
    for one, other in pairwise(drifting[1:]):
        beside = pruner()
        is_news(beside, one)
        assert not is_news(beside, other)


def test_noise_and_a_change_of_light_are_no_news() -> None:
    rng = np.random.default_rng(0)
    image = (
        np.clip(rng.normal(120, 30, (GRID[0] * 2, GRID[1] * 2, 3)), 0, 255)
        .repeat(8, 0)
        .repeat(8, 1)
    )
    novelty = pruner()
    is_news(novelty, image.astype(np.uint8))
    noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    lighter = np.clip(1.1 * image + 8, 0, 255).astype(np.uint8)
    assert not is_news(novelty, noisy, lighter, at=1)
    assert is_news(novelty, with_cells(noisy, [9], 120), at=2)


def test_a_still_picture_is_news_once_in_every_refresh_time() -> None:
    novelty, image = pruner(refresh_seconds=10.0), plain()
    assert [is_news(novelty, image, at=second) for second in range(30)] == [
        second % 10 == 0 for second in range(30)
    ]


def test_what_comes_next_is_compared_with_the_last_frame_of_a_group() -> None:
    def cell(level: int) -> NDArray[np.uint8]:
        return with_cells(plain(), [5], level)

    def is_news_after(*group: NDArray[np.uint8], then: NDArray[np.uint8]) -> bool:
        novelty = pruner()
        is_news(novelty, *group)
        return is_news(novelty, then, then, at=1)

    much = next(
        level for level in range(100, 200) if is_news_after(cell(100), cell(100), then=cell(level))
    )
    assert not is_news_after(cell(100), cell(much - 1), then=cell(much))


@pytest.mark.parametrize("size", [1, 2])
def test_groups_in_one_call_are_news_as_they_are_one_by_one(size: int) -> None:
    rng = np.random.default_rng(0)
    levels = np.repeat(rng.integers(60, 240, 24), rng.integers(1, 12, 24))
    pictures = [with_cells(plain(), [5], int(level)) for level in levels]
    groups = [tuple(pictures[k : k + size]) for k in range(0, len(pictures) - size + 1, size)]
    times = [k / 2 for k in range(len(groups))]

    def found(step: int) -> list[bool]:
        novelty = pruner(refresh_seconds=2.0)
        cuts = range(0, len(groups), step)
        return [
            new
            for k in cuts
            for new in novelty.select_groups(
                [measured(group) for group in groups[k : k + step]], times[k : k + step]
            )
        ]

    wanted = found(1)
    assert 0.1 < np.mean(wanted) < 0.9
    assert found(len(groups)) == found(5) == wanted


def test_pictures_of_another_size_are_news_where_their_patches_lie_otherwise() -> None:
    novelty, image = pruner(), plain()
    is_news(novelty, image)
    assert is_news(novelty, np.ascontiguousarray(image.swapaxes(0, 1)), at=1)
    assert not is_news(novelty, np.ascontiguousarray(image.swapaxes(0, 1)), at=2)


@pytest.mark.parametrize(("crf", "most"), [(18, 1), (30, 2)])
def test_a_minute_of_a_still_camera_costs_a_group_or_little_more(
    tmp_path: Path, crf: int, most: int
) -> None:
    """Through a real codec, with the noise of a sensor; a clip that changes all the time costs
    nearly everything.
    """
    rng = np.random.default_rng(1)

    def still(index: int) -> NDArray[np.uint8]:
        noise = rng.normal(0, 3, (HEIGHT, WIDTH, 3))
        return np.clip(paint(0b1010_0101_1100_0011) + noise, 0, 255).astype(np.uint8)

    def restless(index: int) -> NDArray[np.uint8]:
        return paint(0xFFFF if index // 2 % 2 else 0)

    found = {}
    for name, draw in (("still", still), ("restless", restless)):
        recipe = Recipe(gop=10, options={"crf": str(crf)}, draw=draw)
        clip = make(tmp_path / f"{name}.mp4", steady(116, 2), recipe)
        found[name] = number_of_news(pruner(), list(FileSource(clip.path, 2.0).frames()))
    assert 1 <= found["still"] <= most
    assert found["restless"] >= 0.95 * 58


def number_of_news(pruner: TokenPruner, frames: Sequence[Frame]) -> int:
    pairs = list(zip(frames[::2], frames[1::2], strict=False))
    return sum(
        pruner.select_groups(
            [measured([a.image, b.image]) for a, b in pairs], [a.pts_seconds for a, _ in pairs]
        )
    )


@pytest.mark.parametrize("share", [0.01, 0.25, 0.6, 1.0])
def test_a_fixed_share_stays_in_order_each_place_once(share: float) -> None:
    one = pruner(budget=share)
    for number in range(3):
        places = one.keep(features(number)).places
        assert len(places) == num_kept_tokens(share, N) and bool((places.diff() > 0).all())
        assert int(places[0]) >= 0 and int(places[-1]) < N


def test_without_a_budget_a_third_stays_and_none_prunes_nothing() -> None:
    assert len(pruner().keep(features(0)).places) == N // 3
    assert make_pruner(PruneConfig()) is None
    with pytest.raises(ValueError, match="strategy must be one of"):
        PruneConfig("best")


def test_pictures_that_are_read_only_or_run_backwards_are_seen_as_they_look() -> None:
    novelty, image = pruner(), with_cells(plain(), [1], 220)
    frozen = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    backwards = np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
    is_news(novelty, image)
    assert not is_news(novelty, frozen, backwards, at=1)
