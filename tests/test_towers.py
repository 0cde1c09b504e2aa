"""A tower computed in part equals the stock one where everything is recomputed, and stays near it
where little is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from keyframes.vit_cacher import PREVIOUS, Features, Reference
from models import partial_vit
from models.partial_vit import RaggedAttention, feature_rows
from tests.towers import Tiny, distance, tiny_qwen, tiny_siglip

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=[tiny_qwen, tiny_siglip], ids=["qwen3-vl", "siglip"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return request.param()  # type: ignore[no-any-return]


def chosen(tiny: Tiny, *tokens: Sequence[int]) -> Tensor:
    """bool [g, n]: of each group these tokens."""
    marks = torch.zeros(len(tokens), tiny.num_tokens, dtype=torch.bool)
    for row, places in zip(marks, tokens, strict=True):
        row[list(places)] = True
    return marks


def whole(
    tiny: Tiny, patches: Tensor, keep: Sequence[int] = ()
) -> tuple[Features, list[Reference]]:
    """Everything computed, with references of the groups in `keep`."""
    everything = chosen(tiny, *[range(tiny.num_tokens)] * len(patches))
    return tiny.tower.forward_partial(
        patches, tiny.grid, everything, range(len(patches)), None, keep
    )


def reference_of(tiny: Tiny, patches: Tensor) -> Reference:
    return whole(tiny, patches, [0])[1][0]


def refreshed(tiny: Tiny, patches: Tensor, reference: Reference, marks: Tensor) -> Features:
    """Groups that all build on one from before."""
    return tiny.tower.forward_partial(
        patches, tiny.grid, marks, [PREVIOUS] * len(patches), reference
    )[0]


@pytest.mark.parametrize("keep", [[], [1], [2, 0], [0, 1, 2]])
def test_a_whole_walk_equals_the_stock_tower(tiny: Tiny, keep: list[int]) -> None:
    patches = tiny.patches(3)
    features, references = whole(tiny, patches, keep)
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
    assert distance(refreshed(tiny, patches, reference, everything), stock) < TOLERANCE
    but_one = everything.clone()
    but_one[1, 2] = False
    assert distance(refreshed(tiny, patches, reference, but_one), stock) > 0.01


def test_what_is_as_in_the_reference_is_right_whichever_tokens_are_recomputed(tiny: Tiny) -> None:
    patches = tiny.patches(1)
    reference = reference_of(tiny, patches)
    twice = patches.expand(2, -1, -1)
    stock, _ = tiny.stock(twice)
    for tokens in ([[0], [3]], [[4, 1], [2]]):
        assert distance(refreshed(tiny, twice, reference, chosen(tiny, *tokens)), stock) < TOLERANCE


@pytest.mark.parametrize("call_work", [0, 2**30], ids=["attending apart", "attending together"])
def test_groups_with_little_and_with_much_new_are_in_a_batch_as_they_are_alone(
    tiny: Tiny, call_work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_vit, "CALL_WORK", call_work)
    reference, patches = reference_of(tiny, tiny.patches(1, seed=1)), tiny.patches(6, seed=2)
    marks = chosen(tiny, [3], [0, 1, 2, 4, 5], [2, 5], [], [0], [1, 2, 3])
    together = refreshed(tiny, patches, reference, marks)
    assert torch.equal(together.embeddings[3], reference.features.embeddings[0]), (
        "nothing of it was computed"
    )
    for row in (0, 1, 2, 4, 5):
        alone = refreshed(tiny, patches[row : row + 1], reference, marks[row : row + 1])
        assert distance(alone, together.alone(row)) < TOLERANCE
        assert distance(alone, together.alone((row + 1) % 6)) > 0.01


def test_groups_go_with_what_they_build_on_as_they_go_behind_it(tiny: Tiny) -> None:
    """Two groups computed whole, others that build on either or on one from before, all in one
    walk.
    """
    before, patches = reference_of(tiny, tiny.patches(1, seed=1)), tiny.patches(6, seed=2)
    everything = range(tiny.num_tokens)
    marks = chosen(tiny, [1], everything, [0, 2], everything, [3], [4, 5])
    bases = [PREVIOUS, 1, 1, 3, 1, 3]
    together, (last,) = tiny.tower.forward_partial(patches, tiny.grid, marks, bases, before, [3])
    references = {
        PREVIOUS: before,
        1: reference_of(tiny, patches[1:2]),
        3: reference_of(tiny, patches[3:4]),
    }
    for row, base in enumerate(bases):
        alone = refreshed(tiny, patches[row : row + 1], references[base], marks[row : row + 1])
        assert distance(alone, together.alone(row)) < TOLERANCE
        if base != row:
            wrong = references[3 if base != 3 else 1]
            elsewhere = refreshed(tiny, patches[row : row + 1], wrong, marks[row : row + 1])
            assert distance(elsewhere, together.alone(row)) > 0.01
    assert distance(last.features, references[3].features) < TOLERANCE
    assert float((last.pairs - references[3].pairs).abs().max()) < TOLERANCE
    assert float((last.pairs - references[1].pairs).abs().max()) > 0.01


def test_only_the_recomputed_tokens_differ_from_the_reference(tiny: Tiny) -> None:
    reference = reference_of(tiny, tiny.patches(1, seed=1))
    features = refreshed(tiny, tiny.patches(1, seed=2), reference, chosen(tiny, [1, 4]))
    for ours, before in zip(features, reference.features, strict=True):
        differing = (ours - before).abs().amax((0, 2)) > 0
        assert differing.nonzero().flatten().tolist() == [1, 4]


def partly_changed(tiny: Tiny, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A group and the one behind it [1, T, values] each, where `tokens` show something else and the
    rest little.
    """
    before = tiny.patches(1)
    after = before + 0.02 * tiny.patches(1, seed=1)
    patches = chosen(tiny, tokens).repeat_interleave(tiny.tower.merge_size**2, 1)
    after[patches] = tiny.patches(1, seed=2)[patches]
    return before, after


def nearness(a: Tensor, b: Tensor) -> float:
    return float(cosine_similarity(a, b, dim=-1).mean())


def test_layer_by_layer_recomputing_what_changed_is_near_the_stock_tower_and_recomputing_the_rest_is_not(  # noqa: E501
    tiny: Tiny,
) -> None:
    changed, others = [1, 2], [0, 3]
    before, after = partly_changed(tiny, changed)
    reference = reference_of(tiny, before)
    (_, old), (_, stock) = tiny.stock(before), tiny.stock(after)

    def by_layer(tokens: Sequence[int]) -> list[float]:
        """Over all patches: those recomputed, and the reference's in between."""
        marks = chosen(tiny, tokens)
        patches = marks.repeat_interleave(tiny.tower.merge_size**2, 1)
        found = []
        layers = tiny.tower.partial_layers(
            after, tiny.grid, marks, feature_rows(marks, [PREVIOUS]), reference
        )
        for hidden, part, right in zip(old, layers, stock, strict=True):
            mixed = hidden.clone()
            mixed[patches] = part
            found.append(nearness(mixed, right))
        return found

    ours, control = by_layer(changed), by_layer(others)
    assert all(a > 0.98 for a in ours), ours
    assert all(a > b + 0.02 for a, b in zip(ours, control, strict=True)), (ours, control)


def test_a_reference_is_the_same_alone_and_among_others(tiny: Tiny) -> None:
    patches, later = tiny.patches(3), tiny.patches(1, seed=1)
    alone = reference_of(tiny, patches[1:2])
    _, (last, among) = whole(tiny, patches, [2, 1])
    tokens = chosen(tiny, [0, 2])
    wanted = refreshed(tiny, later, alone, tokens)
    assert distance(wanted, refreshed(tiny, later, among, tokens)) < TOLERANCE
    assert distance(wanted, refreshed(tiny, later, last, tokens)) > 0.01


def test_siglip_has_places_for_its_own_grid_only() -> None:
    tiny = tiny_siglip()
    with pytest.raises(ValueError, match="5 x 5 patches, not 4 x 5"):
        tiny.tower.forward_partial(
            tiny.patches(1)[:, :20], (4, 5), torch.ones(1, 20, dtype=torch.bool), [0]
        )


# Rows


def test_tokens_that_are_not_computed_stand_where_their_base_does() -> None:
    marks = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1]]).bool()
    assert feature_rows(marks, [PREVIOUS, 1, 1, PREVIOUS]).tolist() == [
        [5, 0, 7],
        [1, 2, 3],
        [1, 2, 3],
        [5, 6, 4],
    ]


def test_groups_that_attend_together_are_alike_in_size() -> None:
    counts = [1, 7, 0, 2, 3, 8]
    fresh = torch.arange(9) < torch.tensor(counts)[:, None]
    for few, sizes in (
        (1, [[1], [2, 3], [7], [8]]),
        (3, [[1, 2, 3], [7], [8]]),
        (9, [[1, 2, 3, 7, 8]]),
    ):
        found = RaggedAttention.of(fresh, torch.arange(6)[:, None].expand(-1, 9), few)
        assert [
            sorted(len(set(rows)) for rows in batch.rows.tolist()) for batch in found.batches
        ] == sizes
        stands = [counts[int(row)] for batch in found.batches for row in batch.seen[:, 0]]
        assert stands == [len(set(rows)) for batch in found.batches for rows in batch.rows.tolist()]


@pytest.mark.parametrize("few", [1, 3, 9])
def test_every_row_gets_its_own_result(few: int) -> None:
    """An attention that gives every query back with the first thing it sees."""
    fresh = torch.arange(9) < torch.tensor([1, 7, 0, 2, 3, 8])[:, None]
    groups = torch.arange(6)[:, None].expand(-1, 9)
    rows = torch.arange(21.0)[:, None]
    pairs = torch.arange(6.0)[:, None, None].expand(-1, 2, 1)
    seen = RaggedAttention.of(fresh, groups, few).attend(
        lambda q, keys, _: 10 * q + keys[:, :1], rows, pairs
    )
    owners = fresh.nonzero()[:, 0]
    assert seen[:, 0].tolist() == (10 * rows[:, 0] + owners).tolist()
    assert all(a < b for a, b in pairwise(seen[:, 0].tolist()))
