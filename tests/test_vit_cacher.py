"""Keyframes are computed whole; what follows costs as much as is new in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from config import ReuseConfig
from keyframes.vit_cacher import (
    PREVIOUS,
    Features,
    Reference,
    VitCacher,
    Work,
    num_tokens_in_share,
    plan,
    token_novelty,
)
from tests.towers import Tiny, distance, tiny_qwen, tiny_siglip

ROWS, COLUMNS = 4, 4  # patches; a token is one patch
WHOLE, REFRESHED, STILL = Work.WHOLE, Work.REFRESHED, Work.STILL
CONFIG = ReuseConfig(refresh_share=0.25, still_below=0.1)  # 4 of 16 tokens


class FakeTower:
    """Features are the patches themselves, and every call is written down."""

    merge_size = 1

    def __init__(self, frames_per_group: int = 1) -> None:
        self.frames_per_group = frames_per_group
        self.calls: list[str] = []
        self.chosen: list[Tensor] = []  # bool [g, n] of each walk

    def forward_partial(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        chosen: Tensor,
        bases: Sequence[int],
        before: Reference | None,
        keep: Sequence[int],
    ) -> tuple[Features, list[Reference]]:
        self.calls.append(f"walk {chosen.sum(1).tolist()}")
        self.chosen.append(chosen)
        old = [
            before.features.embeddings[0] if base == PREVIOUS and before else patches[base]
            for base in bases
        ]
        made = torch.where(chosen[..., None], patches, torch.stack(old))
        return Features(made), [Reference(Features(made[k : k + 1]), torch.empty(0)) for k in keep]


def changes(*counts: int) -> Tensor:
    """Novelty [frames, patches] of each frame: so many patches changed, from the first on."""
    maps = torch.zeros(len(counts), ROWS * COLUMNS)
    for row, count in zip(maps, counts, strict=True):
        row[:count] = torch.linspace(0.9, 0.5, count)
    return maps


def patches_of(count: int) -> Tensor:
    """Group k shows k + 1 everywhere."""
    return torch.arange(1.0, count + 1).reshape(-1, 1, 1).expand(-1, ROWS * COLUMNS, 2).clone()


def keyframes(count: int, *at: int) -> list[bool]:
    return [k in at for k in range(count)]


def run(
    cacher: VitCacher, counts: Sequence[int], at: Sequence[int], patches: Tensor | None = None
) -> tuple[Tensor, tuple[Work, ...]]:
    encoded = cacher.encode(
        patches_of(len(counts)) if patches is None else patches,
        (ROWS, COLUMNS),
        changes(*counts),
        keyframes(len(counts), *at),
    )
    return encoded.features.embeddings, encoded.work


def test_a_frame_with_nothing_new_skips_the_tower() -> None:
    tower = FakeTower()
    cacher = VitCacher(tower, CONFIG)
    features, work = run(cacher, [0, 0, 0], [0])
    assert work == (WHOLE, STILL, STILL)
    assert tower.calls == ["walk [16, 0, 0]"]
    assert (features == 1).all()
    tower.calls.clear()
    features, work = run(cacher, [0, 0], [])
    assert work == (STILL, STILL) and tower.calls == [] and (features == 1).all()


def test_all_frames_of_a_call_are_one_batch_with_their_references() -> None:
    tower = FakeTower()
    _, work = run(VitCacher(tower, CONFIG), [0, 3, 1, 9, 0, 2, 4, 0], [0, 4])
    assert work == (WHOLE, REFRESHED, REFRESHED, WHOLE, WHOLE, REFRESHED, REFRESHED, STILL)
    assert tower.calls == ["walk [16, 3, 1, 16, 16, 2, 4, 0]"]


def test_the_changed_tokens_are_recomputed_and_no_others() -> None:
    tower = FakeTower()
    features, _ = run(VitCacher(tower, CONFIG), [0, 3, 1], [0])
    (chosen,) = tower.chosen
    assert [row.nonzero().flatten().tolist() for row in chosen[1:]] == [[0, 1, 2], [0]]
    assert (features[1, :3] == 2).all() and (features[1, 3:] == 1).all()


def test_a_frame_with_more_new_than_is_recomputed_is_computed_whole_and_later_ones_still_build_on_the_keyframe() -> (  # noqa: E501
    None
):
    tower = FakeTower()
    features, work = run(VitCacher(tower, CONFIG), [0, 4, 5, 1, 0], [0])
    assert work == (WHOLE, REFRESHED, WHOLE, REFRESHED, STILL)
    assert (features[2] == 3).all() and (features[4] == 1).all()
    assert set(features[3].flatten().tolist()) == {1.0, 4.0}


def test_the_reference_is_carried_from_call_to_call() -> None:
    tower = FakeTower()
    cacher = VitCacher(tower, CONFIG)
    run(cacher, [0, 5], [0])
    features, work = run(cacher, [0, 1, 0], [])
    assert work == (STILL, REFRESHED, STILL)
    assert (features[0] == 1).all()
    features, work = run(cacher, [0, 0], [1])
    assert work == (STILL, WHOLE)
    features, work = run(cacher, [0], [])
    assert work == (STILL,) and (features == 2).all(), "the newer keyframe is the reference now"


def test_the_first_frame_of_a_stream_is_a_reference_unsaid() -> None:
    _, work = run(VitCacher(FakeTower(), CONFIG), [0, 0], [])
    assert work == (WHOLE, STILL)


def test_another_grid_begins_anew() -> None:
    cacher = VitCacher(FakeTower(), CONFIG)
    run(cacher, [0], [0])
    other = torch.zeros(1, ROWS * COLUMNS, 2), (ROWS // 2, 2 * COLUMNS), changes(0), [False]
    assert cacher.encode(*other).work == (WHOLE,)
    assert cacher.encode(*other).work == (STILL,)


def test_the_novelty_of_a_keyframe_itself_is_not_read() -> None:
    _, work = run(VitCacher(FakeTower(), CONFIG), [0, 16, 0], [1])
    assert work == (WHOLE, WHOLE, STILL)


def test_change_inside_the_reference_group_is_new_to_what_follows() -> None:
    tower = FakeTower(frames_per_group=2)
    _, work = run(VitCacher(tower, CONFIG), [0, 2, 0, 0], [0], patches_of(2))
    assert work == (WHOLE, REFRESHED), (
        "the group repeats its first frame, but its reference does not"
    )
    assert tower.chosen[0][1].nonzero().flatten().tolist() == [0, 1]
    _, work = run(VitCacher(tower, CONFIG), [0, 0, 0, 0], [0], patches_of(2))
    assert work == (WHOLE, STILL)


def test_change_inside_the_reference_group_is_remembered_from_call_to_call() -> None:
    cacher = VitCacher(FakeTower(frames_per_group=2), CONFIG)
    run(cacher, [0, 2], [0], patches_of(1))
    assert run(cacher, [0, 0], [], patches_of(1))[1] == (REFRESHED,)
    run(cacher, [0, 0], [0], patches_of(1))
    assert run(cacher, [0, 0], [], patches_of(1))[1] == (STILL,)


@pytest.mark.parametrize("calls", [1, 3])
def test_nothing_builds_on_a_group_with_a_cut_inside(calls: int) -> None:
    cacher = VitCacher(FakeTower(frames_per_group=2), CONFIG)
    counts, at = [0, 0, 0, 16, 0, 0, 0, 0], [0, 3]
    if calls == 1:
        features, work = run(cacher, counts, at, patches_of(4))
    else:
        runs = [([0, 0, 0, 16], [0, 3]), ([0, 0], []), ([0, 0], [])]
        parts = [
            run(cacher, few, keys, torch.full((len(few) // 2, 16, 2), k))
            for k, (few, keys) in enumerate(runs, 2)
        ]
        features, work = (
            torch.cat([part for part, _ in parts]),
            sum((done for _, done in parts), ()),
        )
    assert work == (WHOLE, WHOLE, WHOLE, STILL)
    assert (features[3] == 3).all()


def test_the_novelty_of_a_token_is_that_of_its_newest_patch() -> None:
    novelty = torch.zeros(2, 24)
    novelty[0, 11], novelty[1, 12], novelty[1, 15] = 0.7, 0.2, 0.3
    tokens = token_novelty(novelty, merge_size=2)
    assert torch.equal(tokens, torch.tensor([[0, 0, 0.7, 0, 0, 0], [0, 0, 0, 0.3, 0, 0]]))


def test_one_changed_token_is_never_too_many() -> None:
    assert num_tokens_in_share(3, 0.25) == 1
    assert num_tokens_in_share(196, 0.25) == 49
    steps = plan(changes(0, 1)[:, None, :3], [True, False], None, CONFIG)
    assert [step.work for step in steps] == [WHOLE, REFRESHED]


@pytest.mark.parametrize(
    ("frames", "groups", "marks"),
    [(2, 3, 2), (2, 2, 3), (3, 3, 2)],
    ids=["groups", "marks", "frames"],
)
def test_what_does_not_fit_together_is_refused(frames: int, groups: int, marks: int) -> None:
    cacher = VitCacher(FakeTower(), CONFIG)
    with pytest.raises(ValueError, match="do not fit"):
        cacher.encode(patches_of(groups), (ROWS, COLUMNS), changes(*[0] * frames), [False] * marks)


@pytest.mark.parametrize(
    "knobs", [{"strategy": "magic"}, {"refresh_share": 0.0}, {"still_below": 1.5}]
)
def test_settings_that_make_no_sense_are_refused(knobs: dict[str, str | float]) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        ReuseConfig(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [tiny_qwen, tiny_siglip], ids=["qwen3-vl", "siglip"])
def test_with_everything_recomputed_a_stream_equals_the_stock_tower(
    make: Callable[[], Tiny],
) -> None:
    tiny = make()
    patches = tiny.patches(5)
    novelty = torch.ones(5 * tiny.tower.frames_per_group, tiny.num_patches)
    marks = [k == 0 for k in range(len(novelty))]
    stock, _ = tiny.stock(patches)
    everything = VitCacher(tiny.tower, ReuseConfig("novelty", refresh_share=1.0, still_below=0.0))
    encoded = everything.encode(patches, tiny.grid, novelty, marks)
    assert encoded.work == (WHOLE, *[REFRESHED] * 4)
    assert distance(encoded.features, stock) < 1e-5
    novelty *= 0.5
    novelty[:, 0] = 1.0
    little = VitCacher(tiny.tower, ReuseConfig("novelty", refresh_share=0.9, still_below=0.6))
    encoded = little.encode(patches, tiny.grid, novelty, marks)
    assert encoded.work == (WHOLE, *[REFRESHED] * 4)
    assert distance(encoded.features, stock) > 0.01
