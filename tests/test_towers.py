"""A tower computed in part equals the stock one where everything is recomputed, and stays near it where little is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from keyframes.vit_cacher import Features, Reference
from models.timing import GROUPS, LEAST_SHARE, timed_price
from models.towers import alike, mixed, taken
from tests.towers import Tiny, distance, tiny_qwen, tiny_siglip

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=[tiny_qwen, tiny_siglip], ids=["qwen3-vl", "siglip"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return request.param()  # type: ignore[no-any-return]


def reference_of(tiny: Tiny, patches: Tensor) -> Reference:
    _, (reference,) = tiny.tower.whole(patches, tiny.grid, [0], outputs=True)
    return reference


def chosen(tiny: Tiny, *tokens: Sequence[int]) -> Tensor:
    """bool [g, n]: of each group these tokens."""
    marks = torch.zeros(len(tokens), tiny.num_tokens, dtype=torch.bool)
    for row, places in zip(marks, tokens, strict=True):
        row[list(places)] = True
    return marks


@pytest.mark.parametrize("price", [0.0, 1e6])  # the others alone; all together
@pytest.mark.parametrize("keep", [[], [1], [2, 0], [0, 1, 2]])
def test_a_whole_pass_equals_the_stock_tower(
    tiny: Tiny, keep: list[int], price: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.tower, "batch_price", price)
    patches = tiny.patches(3)
    features, references = tiny.tower.whole(patches, tiny.grid, keep)
    stock, _ = tiny.stock(patches)
    for row, reference in zip(keep, references, strict=True):
        assert distance(reference.features, tiny.stock(patches[row : row + 1])[0]) < TOLERANCE
    assert len(features.deepstack) == len(stock.deepstack)
    assert distance(features, stock) < TOLERANCE
    assert distance(features, tiny.stock(patches.roll(1, 0))[0]) > 0.01


def test_recomputing_every_token_equals_the_stock_tower_whatever_the_reference(tiny: Tiny) -> None:
    reference, patches = reference_of(tiny, tiny.patches(1, seed=1)), tiny.patches(2, seed=2)
    stock, _ = tiny.stock(patches)
    everything = chosen(tiny, *[range(tiny.num_tokens)] * 2)
    assert distance(tiny.tower.refreshed(patches, reference, everything), stock) < TOLERANCE
    assert distance(tiny.tower.refreshed_by_keys(patches, reference, 1.0), stock) < TOLERANCE
    but_one = everything.clone()
    but_one[1, 2] = False
    assert distance(tiny.tower.refreshed(patches, reference, but_one), stock) > 0.01
    assert distance(tiny.tower.refreshed_by_keys(patches, reference, 0.9), stock) > 0.01


def test_what_is_as_in_the_reference_is_right_whichever_tokens_are_recomputed(tiny: Tiny) -> None:
    patches = tiny.patches(1)
    reference = reference_of(tiny, patches)
    twice = patches.expand(2, -1, -1)
    stock, _ = tiny.stock(twice)
    for tokens in ([[0], [3]], [[4, 1], [2]]):
        assert distance(tiny.tower.refreshed(twice, reference, chosen(tiny, *tokens)), stock) < TOLERANCE
    assert distance(tiny.tower.refreshed_by_keys(twice, reference, 0.25), stock) < TOLERANCE


def test_groups_with_little_and_with_much_new_are_in_a_batch_as_they_are_alone(tiny: Tiny) -> None:
    """Batches of unlike groups are padded and taken apart inside."""
    reference, patches = reference_of(tiny, tiny.patches(1, seed=1)), tiny.patches(5, seed=2)
    marks = chosen(tiny, [3], [0, 1, 2, 4, 5], [2, 5], [0], [1, 2, 3])
    together = tiny.tower.refreshed(patches, reference, marks)
    for row in range(5):
        alone = tiny.tower.refreshed(patches[row : row + 1], reference, marks[row : row + 1])
        assert distance(alone, together.alone(row)) < TOLERANCE
        assert distance(alone, together.alone((row + 1) % 5)) > 0.01


def test_groups_that_attend_together_are_alike_in_size() -> None:
    counts = [1, 7, 2, 3, 8]
    fresh = torch.arange(9) < torch.tensor(counts)[:, None]
    for few, sizes in ((1, [[1], [2, 3], [7], [8]]), (3, [[1, 2, 3], [7], [8]]), (9, [[1, 7, 2, 3, 8]])):
        batches = alike(fresh, few)
        assert sorted(batch.filled.sum(1).tolist() for batch in batches) == sizes
        assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(sum(counts)))


def test_only_the_recomputed_tokens_differ_from_the_reference(tiny: Tiny) -> None:
    reference = reference_of(tiny, tiny.patches(1, seed=1))
    features = tiny.tower.refreshed(tiny.patches(1, seed=2), reference, chosen(tiny, [1, 4]))
    pairs = [(features.embeddings, reference.features.embeddings)]
    pairs += list(zip(features.deepstack, reference.features.deepstack, strict=True))
    for ours, before in pairs:
        differing = (ours - before).abs().amax((0, 2)) > 0
        assert differing.nonzero().flatten().tolist() == [1, 4]


def partly_changed(tiny: Tiny, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A group and the one behind it [1, T, values] each, where `tokens` show something else and the rest little."""
    before = tiny.patches(1)
    after = before + 0.02 * tiny.patches(1, seed=1)
    patches = chosen(tiny, tokens).repeat_interleave(tiny.tower.merge_size**2, 1)
    after[patches] = tiny.patches(1, seed=2)[patches]
    return before, after


def nearness(a: Tensor, b: Tensor) -> float:
    return float(cosine_similarity(a, b, dim=-1).mean())


def test_layer_by_layer_recomputing_what_changed_is_near_the_stock_tower_and_recomputing_the_rest_is_not(
    tiny: Tiny,
) -> None:
    changed, others = [1, 2], [0, 3]
    before, after = partly_changed(tiny, changed)
    reference = reference_of(tiny, before)
    (_, old), (_, stock) = tiny.stock(before), tiny.stock(after)

    def by_layer(tokens: Sequence[int]) -> list[float]:
        """Over all patches: those recomputed, and the reference's in between."""
        marks = chosen(tiny, tokens)
        fresh = tiny.tower.refreshed_layers(after, reference, marks)
        patches = marks.repeat_interleave(tiny.tower.merge_size**2, 1)
        return [
            nearness(mixed(hidden[0], patches, part[0]), right)
            for hidden, part, right in zip(old, fresh, stock, strict=True)
        ]

    ours, control = by_layer(changed), by_layer(others)
    assert all(a > 0.98 for a in ours), ours
    assert all(a > b + 0.02 for a, b in zip(ours, control, strict=True)), (ours, control)


def test_layer_by_layer_keys_find_what_changed(tiny: Tiny) -> None:
    before, after = partly_changed(tiny, [1, 2])
    reference = reference_of(tiny, before)
    (_, old), (_, stock) = tiny.stock(before), tiny.stock(after)
    count = 2 * tiny.tower.merge_size**2
    ours = [
        nearness(a, b) for a, b in zip(tiny.tower.refreshed_by_keys_layers(after, reference, count), stock, strict=True)
    ]
    control = [nearness(a, b) for a, b in zip(old, stock, strict=True)]
    assert all(a > 0.98 for a in ours), ours
    assert all(a > b for a, b in zip(ours, control, strict=True)), (ours, control)


def test_a_reference_is_the_same_alone_and_among_others(tiny: Tiny) -> None:
    patches, later = tiny.patches(3), tiny.patches(1, seed=1)
    _, (alone,) = tiny.tower.whole(patches[1:2], tiny.grid, [0])
    _, (last, among) = tiny.tower.whole(patches, tiny.grid, [2, 1])
    tokens = chosen(tiny, [0, 2])
    wanted = tiny.tower.refreshed(later, alone, tokens)
    assert distance(wanted, tiny.tower.refreshed(later, among, tokens)) < TOLERANCE
    assert distance(wanted, tiny.tower.refreshed(later, last, tokens)) > 0.01


def test_siglip_has_places_for_its_own_grid_only() -> None:
    tiny = tiny_siglip()
    with pytest.raises(ValueError, match="5 x 5 patches, not 4 x 5"):
        tiny.tower.whole(tiny.patches(1)[:, :20], (4, 5), [])


def test_each_row_of_a_batch_has_its_own_choice() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    assert taken(x, torch.tensor([[2], [0]]))[:, 0].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert Features(x).deepstack == ()


# What a batch costs


def test_a_batch_costs_as_many_patches_as_could_be_computed_meanwhile(tiny: Tiny) -> None:
    def price(batch: float, one: float, many: float) -> float:
        seconds = iter([batch, one, many])

        def clock(run: Callable[[], object], device: torch.device) -> float:
            run()
            return next(seconds)

        return timed_price(tiny.tower, tiny.patches(1), tiny.grid, clock)

    count = (GROUPS - 1) * tiny.num_patches
    assert price(3.0, 2.0, 2.0 + count) == pytest.approx(3.0)
    assert price(6.0, 2.0, 2.0 + 2 * count) == pytest.approx(3.0)
    assert price(6.0, 2.0, 2.0) == pytest.approx(3.0 * GROUPS * tiny.num_patches / LEAST_SHARE), (
        "many cost as much as one"
    )


def test_the_clock_finds_a_price_on_any_device(tiny: Tiny) -> None:
    assert 0 < timed_price(tiny.tower, tiny.patches(1), tiny.grid) < float("inf")
