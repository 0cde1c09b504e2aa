"""The pruner's strategies: what each keeps, that a still picture costs next to nothing, and that drift adds up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from config import PruneConfig
from keyframes.pruner import Kept, Seen, TokenPruner, count_of, make_pruner
from streaming.file_source import FileSource
from streaming.frames import Frame
from tests.golden import HEIGHT, WIDTH, Recipe, make, paint, steady

GRID = (4, 6)
N = 24
CELL = 16  # pixels
FIXED = ("stc", "uniform", "merge", "coverage")


def pruner(strategy: str, **knobs: float) -> TokenPruner:
    made = make_pruner(PruneConfig(strategy, **knobs))
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
        changed[row * CELL + 2 : (row + 1) * CELL - 2, column * CELL + 2 : (column + 1) * CELL - 2] = level
    return changed


def seen(*images: NDArray[np.uint8], at: float = 0.0, features: Tensor | None = None) -> Seen:
    return Seen(torch.zeros(N, 8) if features is None else features, GRID, images, at)


def features(seed: int, n: int = N) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def test_the_first_group_stays_whole_and_what_does_not_change_is_dropped() -> None:
    novelty, image = pruner("novelty"), plain()
    assert novelty.keep(seen(image, image)).places.tolist() == list(range(N))
    assert novelty.keep(seen(image, image, at=1)).places.tolist() == []
    changed = with_cells(image, [3, 14], 200)
    assert novelty.keep(seen(changed, changed, at=2)).places.tolist() == [3, 14]
    assert novelty.keep(seen(changed, changed, at=3)).places.tolist() == []
    assert novelty.keep(seen(image, image, at=4)).places.tolist() == [3, 14]


def test_a_change_within_a_group_stays_once_more_so_that_the_last_token_of_a_cell_shows_one_thing() -> None:
    novelty, image = pruner("novelty"), plain()
    changed = with_cells(image, [7], 200)
    novelty.keep(seen(image, image))
    assert novelty.keep(seen(image, changed, at=1)).places.tolist() == [7]
    assert novelty.keep(seen(changed, changed, at=2)).places.tolist() == [7]
    assert novelty.keep(seen(changed, changed, at=3)).places.tolist() == []


def test_slow_drift_adds_up_against_what_was_kept_and_would_not_against_the_group_before() -> None:
    novelty, image = pruner("novelty"), plain()
    novelty.keep(seen(image))
    drifting = [with_cells(image, [5], 100 + 3 * step) for step in range(30)]
    kept = [novelty.keep(seen(picture, at=step / 2)).places.tolist() for step, picture in enumerate(drifting)]
    times = [step for step, places in enumerate(kept) if places == [5]]
    assert 2 <= len(times) <= 20 and all(places in ([], [5]) for places in kept)
    for one, other in pairwise(drifting[1:]):
        beside = pruner("novelty")
        beside.keep(seen(one))
        assert beside.keep(seen(other)).places.tolist() == []


def test_noise_and_a_change_of_light_are_no_news() -> None:
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal(120, 30, (GRID[0] * 2, GRID[1] * 2, 3)), 0, 255).repeat(8, 0).repeat(8, 1)
    novelty = pruner("novelty")
    novelty.keep(seen(image.astype(np.uint8)))
    noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    lighter = np.clip(1.1 * image + 8, 0, 255).astype(np.uint8)
    assert novelty.keep(seen(noisy, lighter, at=1)).places.tolist() == []
    assert novelty.keep(seen(with_cells(noisy, [9], 120), at=2)).places.tolist() == [9]


def test_what_a_budget_leaves_out_comes_with_the_next_group_the_most_changed_first() -> None:
    novelty, image = pruner("novelty", budget=0.25), plain()
    found = [novelty.keep(seen(image, at=step)).places.tolist() for step in range(5)]
    assert [len(places) for places in found] == [6, 6, 6, 6, 0]
    assert sorted(place for places in found for place in places) == list(range(N))
    changed = with_cells(with_cells(image, range(8), 105), [2, 20], 255)
    assert {2, 20} <= set(novelty.keep(seen(changed, at=6)).places.tolist())


def test_a_still_picture_stays_once_in_every_refresh_time() -> None:
    novelty, image = pruner("novelty", refresh_seconds=10.0), plain()
    kept = [len(novelty.keep(seen(image, at=second)).places) for second in range(30)]
    assert kept == [N if second % 10 == 0 else 0 for second in range(30)]


def test_another_grid_begins_anew() -> None:
    novelty, image = pruner("novelty"), plain()
    novelty.keep(seen(image))
    turned = Seen(torch.zeros(N, 8), (6, 4), [image], 1.0)
    assert novelty.keep(turned).places.tolist() == list(range(N))


@pytest.mark.parametrize(("crf", "most"), [(18, 1.0), (30, 1.5)])
def test_a_minute_of_a_still_camera_costs_a_group_or_little_more(tmp_path: Path, crf: int, most: float) -> None:
    """Through a real codec, with the noise of a sensor; a clip that changes all the time costs nearly everything."""
    rng = np.random.default_rng(1)

    def still(index: int) -> NDArray[np.uint8]:
        noise = rng.normal(0, 3, (HEIGHT, WIDTH, 3))
        return np.clip(paint(0b1010_0101_1100_0011) + noise, 0, 255).astype(np.uint8)

    def restless(index: int) -> NDArray[np.uint8]:
        return paint(0xFFFF if index // 2 % 2 else 0)

    kept = {}
    for name, draw in (("still", still), ("restless", restless)):
        recipe = Recipe(gop=10, options={"crf": str(crf)}, draw=draw)
        clip = make(tmp_path / f"{name}.mp4", steady(116, 2), recipe)
        kept[name] = (
            sum(len(k.places) for k in kept_of(pruner("novelty"), list(FileSource(clip.path, 2.0).frames()))) / N
        )
    assert 1 <= kept["still"] <= most
    assert kept["restless"] >= 0.95 * 58


def kept_of(pruner: TokenPruner, frames: Sequence[Frame]) -> list[Kept]:
    pairs = zip(frames[::2], frames[1::2], strict=False)
    return [pruner.keep(seen(a.image, b.image, at=a.pts_seconds)) for a, b in pairs]


@pytest.mark.parametrize("strategy", FIXED)
@pytest.mark.parametrize("share", [0.01, 0.25, 0.6, 1.0])
def test_a_fixed_share_stays_in_order_each_place_once(strategy: str, share: float) -> None:
    one = pruner(strategy, budget=share)
    for number in range(3):
        places = one.keep(seen(plain(), features=features(number))).places
        assert len(places) == count_of(share, N) and bool((places.diff() > 0).all())
        assert int(places[0]) >= 0 and int(places[-1]) < N


def test_without_a_budget_a_quarter_stays_and_none_prunes_nothing() -> None:
    assert len(pruner("uniform").keep(seen(plain())).places) == N // 4
    assert make_pruner(PruneConfig()) is None
    with pytest.raises(ValueError, match="strategy must be one of"):
        PruneConfig("best")


def test_stc_keeps_what_is_unlike_its_frame_and_its_past() -> None:
    z = features(0).mul(0.1) + torch.eye(8)[0]
    z[[4, 11]] = torch.eye(8)[1]
    assert {4, 11} == set(pruner("stc", budget=2 / N).keep(seen(plain(), features=z)).places.tolist())
    stc = pruner("stc", budget=1 / N)
    for _ in range(20):
        stc.keep(seen(plain(), features=torch.eye(8)[1].expand(N, 8)))
    half = torch.cat([torch.eye(8)[1].expand(13, 8), torch.eye(8)[2].expand(11, 8)])
    assert int(stc.keep(seen(plain(), features=half)).places[0]) >= 13
    assert int(pruner("stc", budget=1 / N).keep(seen(plain(), features=half)).places[0]) >= 13
    most = torch.cat([torch.eye(8)[1].expand(11, 8), torch.eye(8)[2].expand(13, 8)])
    assert int(pruner("stc", budget=1 / N).keep(seen(plain(), features=most)).places[0]) < 11
    assert int(stc.keep(seen(plain(), features=most)).places[0]) >= 11, "the past outweighs the frame"


def test_uniform_gives_every_cell_its_turn() -> None:
    uniform = pruner("uniform")
    kept = [uniform.keep(seen(plain())).places.tolist() for _ in range(4)]
    assert sorted(place for places in kept for place in places) == list(range(N))


def test_merging_joins_what_is_alike_and_every_token_counts_once() -> None:
    kinds = normalize(features(1, 4), dim=-1)
    which = torch.arange(N) // 6
    kept = pruner("merge", budget=4 / N).keep(seen(plain(), features=kinds[which] + 0.01 * features(2)))
    assert kept.owners is not None and len(kept.places) == 4
    for owner in range(4):
        assert len(set(which[kept.owners == owner].tolist())) == 1
        assert int(kept.owners[kept.places[owner]]) == owner, "a mean stands at the place of one of its own"


def test_coverage_takes_one_of_each_kind_before_a_second_of_any() -> None:
    kinds = torch.eye(8)[:5]
    which = torch.tensor([0] * 16 + [1] * 5 + [2, 3, 4])
    places = pruner("coverage", budget=5 / N).keep(seen(plain(), features=kinds[which])).places
    assert sorted(which[places].tolist()) == [0, 1, 2, 3, 4]


def test_pictures_that_are_read_only_or_run_backwards_are_seen_as_they_look() -> None:
    novelty, image = pruner("novelty"), with_cells(plain(), [1], 220)
    frozen = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    backwards = np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
    novelty.keep(seen(image))
    assert novelty.keep(seen(frozen, backwards, at=1)).places.tolist() == []
