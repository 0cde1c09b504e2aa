"""The rivals that the benches measure against do what their papers say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from bench.rivals.pruners import RIVALS, MergedSelection, PrunedByRival, RivalPruner
from bench.rivals.stc import KeysCacher, KeysReference, KeysTower
from config import ReuseConfig
from keyframes.pruner import num_kept_tokens
from keyframes.vit_cacher import Features, Work
from models.qwen3_vl import Qwen3VL
from tests.test_pruner import N, features
from tests.tiny import noise_frames
from tests.towers import Tiny, distance, tiny_qwen, tiny_siglip

TOLERANCE = 1e-5
WHOLE, REFRESHED, STILL = Work.WHOLE, Work.REFRESHED, Work.STILL


def pruner(strategy: str, budget: float) -> RivalPruner:
    return RIVALS[strategy](budget)


@pytest.mark.parametrize("strategy", RIVALS)
@pytest.mark.parametrize("share", [0.01, 0.25, 0.6, 1.0])
def test_a_fixed_share_stays_in_order_each_place_once(strategy: str, share: float) -> None:
    one = pruner(strategy, budget=share)
    for number in range(3):
        places = one.keep(features(number)).places
        assert len(places) == num_kept_tokens(share, N) and bool((places.diff() > 0).all())
        assert int(places[0]) >= 0 and int(places[-1]) < N


def test_stc_keeps_what_is_unlike_its_frame_and_its_past() -> None:
    z = features(0).mul(0.1) + torch.eye(8)[0]
    z[[4, 11]] = torch.eye(8)[1]
    assert {4, 11} == set(pruner("stc", budget=2 / N).keep(z).places.tolist())
    stc = pruner("stc", budget=1 / N)
    for _ in range(20):
        stc.keep(torch.eye(8)[1].expand(N, 8))
    half = torch.cat([torch.eye(8)[1].expand(13, 8), torch.eye(8)[2].expand(11, 8)])
    assert int(stc.keep(half).places[0]) >= 13
    assert int(pruner("stc", budget=1 / N).keep(half).places[0]) >= 13
    most = torch.cat([torch.eye(8)[1].expand(11, 8), torch.eye(8)[2].expand(13, 8)])
    assert int(pruner("stc", budget=1 / N).keep(most).places[0]) < 11
    assert int(stc.keep(most).places[0]) >= 11, "the past outweighs the frame"


def test_uniform_gives_every_cell_its_turn() -> None:
    uniform = pruner("uniform", budget=0.25)
    kept = [uniform.keep(features(0)).places.tolist() for _ in range(4)]
    assert sorted(place for places in kept for place in places) == list(range(N))


def test_merging_joins_what_is_alike_and_every_token_counts_once() -> None:
    kinds = normalize(features(1, 4), dim=-1)
    which = torch.arange(N) // 6
    kept = pruner("merge", budget=4 / N).keep(kinds[which] + 0.01 * features(2))
    assert isinstance(kept, MergedSelection) and len(kept.places) == 4
    for owner in range(4):
        assert len(set(which[kept.owners == owner].tolist())) == 1
        assert int(kept.owners[kept.places[owner]]) == owner, (
            "a mean stands at the place of one of its own"
        )


def test_coverage_takes_one_of_each_kind_before_a_second_of_any() -> None:
    kinds = torch.eye(8)[:5]
    which = torch.tensor([0] * 16 + [1] * 5 + [2, 3, 4])
    places = pruner("coverage", budget=5 / N).keep(kinds[which]).places
    assert sorted(which[places].tolist()) == [0, 1, 2, 3, 4]


def test_a_model_that_a_rival_prunes_gives_what_stays_of_the_same_groups(tiny: Qwen3VL) -> None:
    frames = noise_frames(4, 64, 96)
    rival = PrunedByRival(tiny, pruner("uniform", 0.5))
    for pruned, whole in zip(rival.encode(frames), tiny.encode(frames), strict=True):
        assert pruned.num_pruned == 3 and pruned.pts_seconds == whole.pts_seconds
        assert torch.equal(pruned.embeddings, whole.embeddings[pruned.places])


def test_merged_tokens_are_the_means_of_all_that_they_stand_for(tiny: Qwen3VL) -> None:
    frames = noise_frames(2, 64, 96)
    (whole,) = tiny.encode(frames)
    (merged,) = PrunedByRival(tiny, pruner("merge", 0.5)).encode(frames)
    assert merged.num_pruned == 3
    sums = [features.sum(0) for features in (whole.embeddings, *whole.deepstack)]
    for kept, total in zip((merged.embeddings, *merged.deepstack), sums, strict=True):
        shares = torch.linalg.lstsq(kept.T, total[:, None]).solution[:, 0]
        assert torch.allclose(shares.sum(), torch.tensor(6.0), atol=1e-3), "every token counts once"
        assert torch.allclose(kept.T @ shares, total, atol=1e-3)


@pytest.fixture(
    name="tower", scope="module", params=[tiny_qwen, tiny_siglip], ids=["qwen", "siglip"]
)
def _tower(request: pytest.FixtureRequest) -> Tiny:
    return request.param()  # type: ignore[no-any-return]


def reference_of(tower: Tiny, patches: Tensor) -> KeysReference:
    return KeysTower(tower.tower).compute_reference(patches, tower.grid)


def by_keys(tower: Tiny, patches: Tensor, reference: KeysReference, *counts: int) -> Features:
    """So many patches of each group are recomputed."""
    keys_tower = KeysTower(tower.tower)
    return keys_tower.forward_by_keys(patches, tower.grid, reference, torch.tensor(counts))


def test_recomputing_every_patch_equals_the_stock_tower_whatever_the_reference(tower: Tiny) -> None:
    reference, patches = reference_of(tower, tower.patches(1, seed=1)), tower.patches(2, seed=2)
    stock, _ = tower.stock(patches)
    assert distance(by_keys(tower, patches, reference, *[tower.num_patches] * 2), stock) < TOLERANCE
    fewer = [tower.num_patches - 2] * 2
    assert distance(by_keys(tower, patches, reference, *fewer), stock) > 0.01


def test_a_reference_equals_the_stock_tower_and_is_right_for_the_same_picture(tower: Tiny) -> None:
    patches = tower.patches(1)
    reference = reference_of(tower, patches)
    assert distance(reference.features, tower.stock(patches)[0]) < TOLERANCE
    twice = patches.expand(2, -1, -1)
    assert distance(by_keys(tower, twice, reference, 6, 3), tower.stock(twice)[0]) < TOLERANCE


def test_a_group_is_in_a_batch_as_it_is_alone(tower: Tiny) -> None:
    reference, patches = reference_of(tower, tower.patches(1, seed=1)), tower.patches(3, seed=2)
    counts = (12, 4, 8)
    together = by_keys(tower, patches, reference, *counts)
    for row, count in enumerate(counts):
        alone = by_keys(tower, patches[row : row + 1], reference, count)
        assert distance(alone, together.alone(row)) < TOLERANCE
        more = by_keys(tower, patches[row : row + 1], reference, count + 4)
        assert distance(more, together.alone(row)) > 0.01


def nearness(a: Tensor, b: Tensor) -> float:
    return float(cosine_similarity(a, b, dim=-1).mean())


def test_layer_by_layer_keys_find_what_changed(tower: Tiny) -> None:
    before = tower.patches(1)
    after = before + 0.02 * tower.patches(1, seed=1)
    size = tower.tower.merge_size**2
    after[:, size : 3 * size] = tower.patches(1, seed=2)[:, size : 3 * size]
    reference = reference_of(tower, before)
    (_, old), (_, stock) = tower.stock(before), tower.stock(after)
    counts = torch.tensor([2 * size])
    layers = KeysTower(tower.tower).layers_by_keys(after, tower.grid, reference, counts)
    ours = [nearness(a, b) for a, b in zip(layers, stock, strict=True)]
    control = [nearness(a, b) for a, b in zip(old, stock, strict=True)]
    assert all(a > 0.98 for a in ours), ours
    assert all(a > b for a, b in zip(ours, control, strict=True)), (ours, control)


def encoded(
    cacher: KeysCacher, tower: Tiny, counts: Sequence[int], at: Sequence[int], patches: Tensor
) -> tuple[Features, tuple[Work, ...]]:
    size = tower.tower.frames_per_group
    novelty = torch.zeros(len(counts) * size, tower.num_patches)
    for group, count in enumerate(counts):
        novelty[group * size : (group + 1) * size, :: tower.tower.merge_size**2][:, :count] = 0.9
    marks = [k % size == 0 and k // size in at for k in range(len(novelty))]
    found = cacher.encode(patches, tower.grid, novelty, marks)
    return found.features, found.work


def test_it_follows_the_same_plan_from_call_to_call(tower: Tiny) -> None:
    cacher = KeysCacher(tower.tower, ReuseConfig("novelty", 0.5, 0.1))
    patches = tower.patches(1).expand(5, -1, -1).clone()
    patches[2:] = tower.patches(1, seed=3)
    features, work = encoded(cacher, tower, [0, 0, 0, 2, 0], [0, 2], patches)
    assert work == (WHOLE, STILL, WHOLE, REFRESHED, STILL)
    assert distance(features, tower.stock(patches)[0]) < TOLERANCE
    features, work = encoded(cacher, tower, [0, 1], [], patches[3:])
    assert work == (STILL, REFRESHED)
    assert distance(features, tower.stock(patches[3:])[0]) < TOLERANCE


@pytest.mark.parametrize("make", [tiny_qwen, tiny_siglip], ids=["qwen3-vl", "siglip"])
def test_with_everything_recomputed_a_stream_equals_the_stock_tower(
    make: Callable[[], Tiny],
) -> None:
    tiny = make()
    patches = tiny.patches(5)
    novelty = torch.ones(5 * tiny.tower.frames_per_group, tiny.num_patches)
    marks = [k == 0 for k in range(len(novelty))]
    stock, _ = tiny.stock(patches)
    everything = KeysCacher(tiny.tower, ReuseConfig("novelty", refresh_share=1.0, still_below=0.0))
    found = everything.encode(patches, tiny.grid, novelty, marks)
    assert found.work == (WHOLE, *[REFRESHED] * 4)
    assert distance(found.features, stock) < TOLERANCE
    novelty *= 0.5
    novelty[:, 0] = 1.0
    little = KeysCacher(tiny.tower, ReuseConfig("novelty", refresh_share=0.9, still_below=0.6))
    assert distance(little.encode(patches, tiny.grid, novelty, marks).features, stock) > 0.01
