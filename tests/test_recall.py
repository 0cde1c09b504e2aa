"""The recall policy: which chunks come back for a question, and why."""

from __future__ import annotations

import math

import pytest
import torch

from memory.recall_policy import (
    HeadNorm,
    PlannedChunk,
    RecallPlan,
    evidence,
    fit,
    head_norms,
    plan_recall,
)


def plan(
    scores: list[float] | None, named: list[range] | None = None, num_chunks: int | None = None
) -> RecallPlan:
    """With a window of 2 and room for 3."""
    if num_chunks is None:
        assert scores is not None
        num_chunks = len(scores)
    return plan_recall(scores, named or [], num_chunks, window_chunks=2, recall_chunks=3)


def reasons(of: RecallPlan) -> dict[int, str]:
    return {chunk.index: chunk.why for chunk in of.chunks}


def test_the_best_chunks_come_back_in_time_order_before_the_window() -> None:
    got = plan([0.1, 5.0, 0.2, 9.0, 0.3, 7.0, 0.0, 0.0])
    assert got.indices == [1, 3, 5, 6, 7]
    assert got.chunks[1] == PlannedChunk(3, 9.0, "recalled")
    assert reasons(got)[7] == "recent"


def test_a_window_chunk_with_the_best_score_takes_no_room_and_comes_once() -> None:
    assert plan([3.0, 2.0, 1.0, 0.0, 9.0, 9.0]).indices == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("num_chunks", range(6))
@pytest.mark.parametrize("known", [True, False])
def test_a_short_history_comes_back_whole(num_chunks: int, known: bool) -> None:
    assert plan([0.0] * num_chunks if known else None, num_chunks=num_chunks).indices == list(
        range(num_chunks)
    )
    assert plan([0.0] * 6).indices != list(range(6))


def test_where_a_time_is_named_only_it_and_what_lies_beside_it_come_back_however_well_others_score() -> (  # noqa: E501
    None
):
    scores = [9.0, 8.0, 7.0, 0.0, 0.0, 0.0, 0.0]
    got = plan(scores, named=[range(3, 4)])
    assert reasons(got) == {2: "recalled", 3: "named time", 4: "recalled", 5: "recent", 6: "recent"}
    assert reasons(plan(scores)) == {
        0: "recalled",
        1: "recalled",
        2: "recalled",
        5: "recent",
        6: "recent",
    }


def test_a_named_time_inside_the_window_takes_no_room() -> None:
    got = plan([9.0, 8.0, 7.0, 0.0, 0.0], named=[range(4, 5)])
    assert reasons(got) == {3: "recent", 4: "named time"}


def test_a_long_named_time_is_spread_over_and_the_best_of_each_stretch_is_taken() -> None:
    scores = [0.0] * 32
    scores[2], scores[13], scores[28] = 1.0, 2.0, 99.0
    got = plan(scores, named=[range(1, 19)])
    assert got.indices == [2, 10, 13, 30, 31]
    assert set(reasons(got).values()) == {"named time", "recent"}


def test_a_named_time_that_reaches_into_the_window_spends_its_room_on_older_chunks() -> None:
    assert plan([0.0] * 32, named=[range(20, 32)]).indices == [21, 24, 28, 30, 31]


def test_a_moment_is_not_lost_beside_a_long_time() -> None:
    got = plan([0.0] * 32, named=[range(29), range(5, 6)])
    assert 5 in got.indices
    assert len(got.indices) == 5


def test_more_named_times_than_room_keep_the_first_named() -> None:
    assert plan([0.0] * 32, named=[range(i, i + 1) for i in (9, 3, 20, 15, 1)]).indices == [
        3,
        9,
        20,
        30,
        31,
    ]


def test_without_scores_the_past_is_sampled_evenly() -> None:
    assert plan(None, num_chunks=32).indices == [5, 15, 25, 30, 31]


def test_the_plan_never_exceeds_its_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    for num_chunks in range(0, 60, 7):
        scores = torch.randn(num_chunks, generator=generator).tolist()
        named = [range(i, min(num_chunks, i + 9)) for i in range(0, num_chunks, 11)]
        for recall_chunks in range(6):
            got = plan_recall(
                scores, named, num_chunks, window_chunks=3, recall_chunks=recall_chunks
            )
            assert len(got.indices) == min(num_chunks, 3 + recall_chunks)
            assert got.indices == sorted(set(got.indices))


def test_room_beyond_the_best_four_goes_to_the_neighbours_of_the_best_and_then_to_the_next() -> (
    None
):
    scores = [0.0, 3.0, 0.0, 0.0, 9.0, 0.0, 8.0, 0.0, 7.0, 0.0, 6.0, 0.0, 0.0]
    recalled = [
        plan_recall(scores, [], 13, window_chunks=1, recall_chunks=room).indices[:-1]
        for room in range(3, 8)
    ]
    assert recalled == [
        [4, 6, 8],
        [4, 6, 8, 10],
        [4, 5, 6, 8, 10],
        [3, 4, 5, 6, 8, 10],
        [1, 3, 4, 5, 6, 8, 10],
    ]


def test_an_event_over_several_chunks_brings_what_lies_before_and_after_all_of_them() -> None:
    scores = [0.0] * 14
    scores[1], scores[6], scores[7], scores[10] = 5.0, 8.0, 9.0, 7.0
    whole = plan_recall(scores, [], 14, window_chunks=1, recall_chunks=6)
    assert whole.indices == [1, 5, 6, 7, 8, 10, 13]
    scores[6] = 0.0  # now 7 is alone, and 6 comes as its neighbour
    scores[11] = 1.0
    assert plan_recall(scores, [], 14, window_chunks=1, recall_chunks=6).indices == [
        1,
        6,
        7,
        8,
        10,
        11,
        13,
    ]
    scores[5:10] = [7.5, 8.0, 9.0, 8.5, 0.0]  # the best is in the middle of the run
    assert plan_recall(scores, [], 14, window_chunks=1, recall_chunks=6).indices == [
        4,
        5,
        6,
        7,
        8,
        9,
        13,
    ]


def test_the_best_chunk_at_either_end_has_one_neighbour() -> None:
    first = plan_recall(
        [9.0, 0.0, 1.0, 2.0, 3.0, 4.0, 0.0], [], 7, window_chunks=1, recall_chunks=5
    )
    last = plan_recall([4.0, 3.0, 2.0, 1.0, 0.0, 9.0, 0.0], [], 7, window_chunks=1, recall_chunks=5)
    assert first.indices == [0, 1, 3, 4, 5, 6]
    assert last.indices == [0, 1, 2, 4, 5, 6]


def test_of_equal_chunks_the_newer_is_recalled() -> None:
    assert plan([1.0] * 10).indices == [5, 6, 7, 8, 9]


def test_evidence_is_the_weighted_mean_of_normalised_heads() -> None:
    scores = torch.tensor([[10.0, 20.0, 30.0], [1.0, 0.0, 2.0]])
    norms = [HeadNorm(mean=10.0, std=10.0, weight=3.0), HeadNorm(mean=0.0, std=1.0, weight=1.0)]
    assert evidence(scores, norms) == pytest.approx([0.25, 0.75, 2.0])


def test_a_head_with_large_numbers_does_not_drown_the_other() -> None:
    scores = torch.tensor([[1000.0, 1010.0, 990.0, 1000.0], [0.0, 0.0, 0.0, 5.0]])
    raw = scores.sum(dim=0).argmax()
    fair = evidence(scores, [HeadNorm(1000.0, 10.0), HeadNorm(0.0, 1.0)])
    assert (int(raw), fair.index(max(fair))) == (1, 3)


def test_chunks_without_tokens_get_finite_evidence_that_never_wins() -> None:
    scores = torch.tensor([[-torch.inf, 4.0, 2.0], [-torch.inf, -torch.inf, -torch.inf]])
    got = evidence(scores, [HeadNorm(0.0, 1.0), HeadNorm(0.0, 1.0)])
    assert all(map(math.isfinite, got))
    assert got == pytest.approx([1.0, 2.0, 1.0])


def test_norms_are_those_of_the_scores_seen() -> None:
    norms = head_norms(torch.tensor([[1.0, 3.0, -torch.inf], [5.0, 5.0, 5.0]]), weights=[2.0, 1.0])
    assert (norms[0].mean, norms[0].std, norms[0].weight) == pytest.approx((2.0, math.sqrt(2), 2.0))
    assert norms[1].std > 0
    with pytest.raises(ValueError, match="no spread"):
        head_norms(torch.tensor([[1.0]]), weights=[1.0])


def test_scores_for_another_history_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores cannot rank 3 chunks"):
        plan([1.0, 2.0], num_chunks=3)


def levels(of: RecallPlan) -> dict[int, str]:
    return {chunk.index: chunk.why for chunk in of.chunks if chunk.level == "sparse"}


def test_neighbours_come_sparse_and_after_them_an_even_sample_of_the_rest() -> None:
    scores = [0.0] * 40
    scores[10], scores[30] = 9.0, 5.0
    got = plan_recall(scores, [], 40, window_chunks=1, recall_chunks=2, sparse_chunks=7)
    assert [c.index for c in got.chunks if c.level == "dense"] == [10, 30, 39]
    assert {i: why for i, why in levels(got).items() if why == "beside"} == dict.fromkeys(
        (9, 11, 29, 31), "beside"
    )
    assert [i for i, why in levels(got).items() if why == "sample"] == [5, 19, 33]
    assert got.indices == sorted(set(got.indices))
    few = plan_recall(scores, [], 40, window_chunks=1, recall_chunks=2, sparse_chunks=2)
    assert levels(few) == {9: "beside", 11: "beside"}


def test_no_chunk_comes_at_both_levels_and_the_window_is_never_sparse() -> None:
    for num_chunks in range(14):
        got = plan_recall(
            [1.0] * num_chunks, [], num_chunks, window_chunks=2, recall_chunks=3, sparse_chunks=4
        )
        assert got.indices == sorted(set(got.indices))
        assert len(got.indices) == min(num_chunks, 9)
        assert not set(levels(got)) & {num_chunks - 1, num_chunks - 2}


def test_a_plan_is_cut_to_its_tokens_by_importance() -> None:
    scores = [0.0, 9.0, 0.0, 5.0, 0.0, 7.0, 0.0, 0.0, 0.0]
    wanted = plan_recall(scores, [], 9, window_chunks=2, recall_chunks=3, sparse_chunks=2)
    assert levels(wanted) == {0: "beside", 2: "beside"}

    def cut(most_tokens: int) -> dict[int, str]:
        return {c.index: c.level for c in fit(wanted, lambda index: (100, 30), most_tokens).chunks}

    assert cut(560) == {
        0: "sparse",
        1: "dense",
        2: "sparse",
        3: "dense",
        5: "dense",
        7: "dense",
        8: "dense",
    }
    assert cut(530) == {1: "dense", 2: "sparse", 3: "dense", 5: "dense", 7: "dense", 8: "dense"}
    assert cut(430) == {1: "dense", 3: "sparse", 5: "dense", 7: "dense", 8: "dense"}
    assert cut(200) == {7: "dense", 8: "dense"}
    assert cut(140) == {7: "sparse", 8: "dense"}
    assert cut(10) == {8: "sparse"}


def test_chunks_that_are_gone_are_passed_over_even_where_their_time_is_named() -> None:
    gone = {0, 1, 5, 19}
    scores = [20.0 - index for index in range(20)]
    for given in (scores, None):
        plan = plan_recall(given, [range(4, 7)], 20, window_chunks=2, recall_chunks=6, gone=gone)
        assert not gone.intersection(plan.indices)
        assert {4, 6, 18} <= set(plan.indices)
        assert plan.indices == [3, 4, 6, 7, 18]
    others = plan_recall(scores, [], 20, window_chunks=2, recall_chunks=6, gone=gone)
    assert len(others.indices) == 7, "what is gone leaves its place to others"
    assert {0, 1, 5} & set(plan_recall(scores, [], 20, 2, 6).indices), (
        "they would have come otherwise"
    )
