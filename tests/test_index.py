"""The index of the retrieval heads' keys: flat it equals plain torch, in lists it finds what flat
finds.
"""

from __future__ import annotations

from typing import Any

import faiss
import pytest
import torch
from torch import Tensor

from memory import retrieval_index as index_module
from memory.retrieval_index import HeadIndex

HEADS, DIM = 2, 16
FLAT, SEGMENT = 100_000, 1500
SPREAD = 0.8  # of keys around the centres they share
CENTRES = torch.randn(HEADS, 60, DIM, generator=torch.Generator().manual_seed(9))
needs_gpu = pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="faiss has no GPU here")


@pytest.fixture(autouse=True)
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 35 lists in a segment of the tests, of which a query visits 12."""
    monkeypatch.setattr(index_module, "LIST_TOKENS", 42)
    monkeypatch.setattr(index_module, "DIMS_FOR_ALL", 3 * DIM)
    monkeypatch.setattr(index_module, "LEARNT_STEP", 1)


def history(num_chunks: int, seed: int = 0) -> list[Tensor]:
    """Keys [heads, n, dim] per chunk, n from 0 to 30, around centres that all keys share, as those
    of a model are.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [(7 * chunk) % 31 for chunk in range(num_chunks)]
    return [_around_centres(size, generator) for size in sizes]


def queries(num_tokens: int = 5, seed: int = 1) -> Tensor:
    return _around_centres(num_tokens, torch.Generator().manual_seed(seed))


def _around_centres(count: int, generator: torch.Generator) -> Tensor:
    picked = torch.randint(CENTRES.shape[1], (count,), generator=generator)
    return CENTRES[:, picked] + SPREAD * torch.randn(HEADS, count, DIM, generator=generator)


def build(
    chunks: list[Tensor], segment_tokens: int, dtype: torch.dtype = torch.float32
) -> HeadIndex:
    index = HeadIndex(HEADS, DIM, dtype, segment_tokens)
    for number, keys in enumerate(chunks):
        index.add(number, keys)
    return index


def plain_maxsim(chunks: list[Tensor], query: Tensor) -> Tensor:
    columns = [
        (query @ keys.transpose(1, 2)).amax(dim=(1, 2))
        if keys.shape[1]
        else torch.full((HEADS,), -torch.inf)
        for keys in chunks
    ]
    return torch.stack(columns, dim=1)


def share_found(limit: int = 4, seeds: range = range(10)) -> float:
    """Which share of the truly best chunks of each head has its true score, and nothing stands
    before them.
    """
    found = 0
    for seed in seeds:
        chunks, query = history(300, seed), queries(1, seed + 100)
        scores, plain = build(chunks, SEGMENT).search(query, limit), plain_maxsim(chunks, query)
        best = plain.topk(limit).indices
        found += int(
            torch.isclose(scores.gather(1, best), plain.gather(1, best), atol=1e-5, rtol=0).sum()
        )
    return found / (HEADS * limit * len(seeds))


def test_a_small_history_is_scored_exactly_everywhere() -> None:
    chunks = history(40)
    found = build(chunks, FLAT).search(queries(), limit=4)
    torch.testing.assert_close(found, plain_maxsim(chunks, queries()), atol=1e-5, rtol=0)


def test_a_missing_token_or_a_swapped_head_would_be_noticed() -> None:
    chunks = history(40)
    found = build(chunks, FLAT).search(queries(), limit=4)
    best_token = int((queries()[0] @ chunks[9][0].T).amax(dim=0).argmax())
    cut = [
        *chunks[:9],
        torch.cat([chunks[9][:, :best_token], chunks[9][:, best_token + 1 :]], dim=1),
        *chunks[10:],
    ]
    assert (found - plain_maxsim(cut, queries())).abs().nan_to_num().max() > 1e-3
    assert (found - plain_maxsim(chunks, queries().flip(0))).abs().nan_to_num().max() > 1e-3


def test_the_lists_find_the_best_chunks() -> None:
    assert share_found() >= 0.99


def test_a_single_list_looked_at_would_miss_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "DIMS_FOR_ALL", 1000 * DIM)
    assert share_found() < 0.9


@pytest.mark.parametrize("limit", [1, 4, 10])
def test_what_is_found_has_its_true_score_and_stands_before_the_rest(limit: int) -> None:
    chunks, query = history(300), queries()
    scores, plain = build(chunks, SEGMENT).search(query, limit), plain_maxsim(chunks, query)
    true = torch.isclose(scores, plain, atol=1e-5, rtol=0).all(0)
    rest = ~true & (plain > -torch.inf).all(0)
    assert limit <= true.sum() < 300 and rest.any()
    least = torch.where(true & plain.isfinite().all(0), plain, torch.inf).amin(1, keepdim=True)
    torch.testing.assert_close(
        scores[:, rest], least.expand(-1, int(rest.sum())), atol=1e-5, rtol=0
    )


def test_chunks_asked_for_have_their_true_scores_as_well() -> None:
    chunks, query = history(300), queries()
    index, plain = build(chunks, SEGMENT), plain_maxsim(chunks, query)
    also = range(20, 60)
    torch.testing.assert_close(
        index.search(query, 1, also)[:, also], plain[:, also], atol=1e-5, rtol=0
    )
    assert (index.search(query, 1)[:, also] - plain[:, also]).abs().nan_to_num().max() > 1e-3


def test_one_chunk_that_holds_all_the_best_tokens_does_not_hide_the_others() -> None:
    chunks = history(200, seed=3)
    query = queries(num_tokens=1)
    chunks[50] = query.expand(HEADS, 500, DIM) * 10
    found, plain = build(chunks, SEGMENT).search(query, limit=4), plain_maxsim(chunks, query)
    best = plain.topk(4).indices
    torch.testing.assert_close(found.gather(1, best), plain.gather(1, best), atol=1e-4, rtol=0)


def test_lists_begin_with_the_first_token_too_many_and_newer_chunks_are_flat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_module, "SPARE", 1)
    chunks = list(
        torch.split(_around_centres(8 * 100, torch.Generator().manual_seed(5)), 100, dim=1)
    )
    index, in_lists = HeadIndex(HEADS, DIM, segment_tokens=500), []
    for number, keys in enumerate(chunks):
        index.add(number, keys)
        in_lists.append(
            (index.host_bytes - index.num_tokens * HEADS * DIM * 4) // (HEADS * (DIM + 8))
        )
    assert in_lists == [0, 0, 0, 0, 0, 600, 600, 600]
    scores, plain = index.search(queries(1), 1), plain_maxsim(chunks, queries(1))
    torch.testing.assert_close(scores[:, 6:], plain[:, 6:], atol=1e-5, rtol=0)
    assert not torch.allclose(scores[:, :6], plain[:, :6], atol=1e-5)


def test_an_index_filled_anew_finds_the_same() -> None:
    chunks = history(300)
    assert torch.equal(
        build(chunks, SEGMENT).search(queries(), 4), build(chunks, SEGMENT).search(queries(), 4)
    )


def test_lists_are_learnt_once_for_each_segment_from_a_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_module, "LEARNT_STEP", 4)
    monkeypatch.setattr(index_module, "LIST_TOKENS", 4 * 42)
    learnt: list[int] = []
    train = faiss.IndexIVF.train

    def counted(index: Any, keys: Any) -> None:
        learnt.append(len(keys))
        train(index, keys)

    monkeypatch.setattr(faiss.IndexIVF, "train", counted)
    chunks = history(300)
    assert build(chunks, SEGMENT).num_tokens > 2 * SEGMENT
    assert len(learnt) == 2 * HEADS and all(
        SEGMENT // 4 <= count <= SEGMENT // 4 + 8 for count in learnt
    )


def test_half_precision_keys_are_kept_as_they_are_in_half_the_bytes() -> None:
    chunks = [keys.bfloat16() for keys in history(20)]
    index = build(chunks, FLAT, torch.bfloat16)
    plain = plain_maxsim([keys.float() for keys in chunks], queries().bfloat16().float())
    torch.testing.assert_close(
        index.search(queries().bfloat16(), limit=4), plain, atol=1e-5, rtol=0
    )
    assert index.host_bytes == sum(keys.nbytes for keys in chunks)


def test_chunks_without_tokens_are_never_found() -> None:
    empty = torch.zeros(HEADS, 0, DIM)
    for segment_tokens in (50, FLAT):
        found = build([empty, *history(20)[1:], empty], segment_tokens).search(queries(), limit=30)
        assert found[:, [0, -1]].eq(-torch.inf).all()
        assert found[:, 1:-1].isfinite().all()
    assert build([empty], 1).search(queries(), limit=1).eq(-torch.inf).all()
    assert HeadIndex(HEADS, DIM).search(queries(), limit=1).shape == (HEADS, 0)


def test_the_bytes_are_those_of_the_keys_and_of_the_lists() -> None:
    index = build(history(300), SEGMENT)
    assert (index.num_chunks, index.num_tokens) == (
        300,
        sum(keys.shape[1] for keys in history(300)),
    )
    true_bytes = index.num_tokens * HEADS * DIM * 4
    on_host = [
        faiss.index_gpu_to_cpu(i) if index.device_bytes else i
        for s in index._segments
        for i in s.indexes
    ]
    list_bytes = sum(faiss.serialize_index(lists).nbytes for lists in on_host)
    assert list_bytes == pytest.approx(index.host_bytes + index.device_bytes - true_bytes, rel=0.2)


@needs_gpu
def test_a_gpu_finds_what_the_cpu_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = history(300)
    on_gpu = build(chunks, SEGMENT)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    on_cpu = build(chunks, SEGMENT)
    assert on_gpu.device_bytes > 0 == on_cpu.device_bytes
    for seed in range(10):
        query = queries(seed=seed)
        best = plain_maxsim(chunks, query).topk(4).indices
        gpu, cpu = (index.search(query, 4).gather(1, best) for index in (on_gpu, on_cpu))
        torch.testing.assert_close(gpu, cpu, atol=1e-4, rtol=0)


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    index = build(history(3), FLAT)
    with pytest.raises(ValueError, match="chunk 5 cannot follow 3"):
        index.add(5, torch.zeros(HEADS, 1, DIM))
    with pytest.raises(ValueError, match=r"keys need \[2, n, 16\], not \[1, 4, 16\]"):
        index.add(3, torch.zeros(1, 4, DIM))
    with pytest.raises(ValueError, match="queries need"):
        index.search(torch.zeros(HEADS, 1, DIM + 1), limit=1)
    with pytest.raises(ValueError, match="nothing to search for"):
        index.search(torch.zeros(HEADS, 0, DIM), limit=1)


# Chunks that are gone.


def evicted(chunks: list[Tensor], first: int, segment_tokens: int = SEGMENT) -> HeadIndex:
    """An index that has had all chunks and lost the oldest, some of them while it grew."""
    index = HeadIndex(HEADS, DIM, segment_tokens=segment_tokens)
    for number, keys in enumerate(chunks):
        index.add(number, keys)
        index.evict_before(min(first, number // 2))
        index.check_integrity()
    index.evict_before(first)
    index.check_integrity()
    return index


@pytest.mark.parametrize("first", [1, 13, 39, 40])
def test_flat_the_chunks_that_are_left_have_their_scores_and_the_others_none(first: int) -> None:
    chunks = history(40)
    index = evicted(chunks, first, FLAT)
    assert (index.first_chunk, index.num_chunks) == (first, 40)
    wanted = plain_maxsim(chunks, queries())[:, first:]
    torch.testing.assert_close(index.search(queries(), 4), wanted, atol=1e-5, rtol=0)
    assert index.search(queries(), 4).shape == (HEADS, 40 - first)
    assert index.num_tokens == sum(keys.shape[1] for keys in chunks[first:])


@pytest.mark.parametrize("first", [50, 99, 150, 250])
def test_in_lists_the_best_of_what_is_left_is_found(first: int) -> None:
    found = 0
    for seed in range(10):
        chunks, query = history(300, seed), queries(1, seed + 100)
        scores = evicted(chunks, first).search(query, 4)
        best = plain_maxsim(chunks, query)[:, first:].topk(4).indices
        plain = plain_maxsim(chunks, query)[:, first:].gather(1, best)
        found += int(torch.isclose(scores.gather(1, best), plain, atol=1e-5, rtol=0).sum())
    assert found / (HEADS * 4 * 10) >= 0.99


def lookalikes() -> tuple[list[Tensor], Tensor]:
    """400 chunks: the first 240 all match the query better than chunk 250 does, which matches
    better than the rest.
    """
    chunks, query = history(400), queries(1)
    for number in range(240):
        chunks[number] = torch.cat([chunks[number], (3 + 0.01 * number) * query], 1)
    chunks[250] = torch.cat([chunks[250], 2 * query], 1)
    return chunks, query


def test_lookalikes_that_are_gone_do_not_hide_what_is_there() -> None:
    chunks, query = lookalikes()
    index = HeadIndex(HEADS, DIM, segment_tokens=SEGMENT)
    for number, keys in enumerate(chunks):
        index.add(number, keys)
    assert any(segment.first_chunk < 240 < segment.stop for segment in index._segments), (
        "one becomes partly gone"
    )
    assert int(index.search(query, 2).argmax(1).max()) < 240, (
        "they do hide it as long as they are there"
    )
    index.evict_before(240)
    assert index.search(query, 2).argmax(1).tolist() == [10, 10]


def test_what_is_gone_gives_its_bytes_back() -> None:
    chunks = history(300)
    index, sizes = HeadIndex(HEADS, DIM, segment_tokens=SEGMENT), []
    for number in range(3000):
        index.add(number, chunks[number % 300])
        index.evict_before(number - 250)
        sizes.append(index.host_bytes)
    index.check_integrity()
    assert max(sizes[2000:]) <= 1.02 * max(sizes[500:1000]), "it does not grow"
    assert len(index._segments) <= 5 and index.num_tokens < 4000
    index.evict_before(3000)
    assert (index.host_bytes, index.num_tokens, len(index._segments), len(index._blocks)) == (
        0,
        0,
        0,
        0,
    )
    index.add(3000, chunks[7])
    assert index.search(queries(), 1).shape == (HEADS, 1)


def test_the_newest_chunk_can_be_taken_back() -> None:
    chunks = history(60)
    index, same = build(chunks[:40], FLAT), build(chunks[:40], FLAT)
    for number in range(40, 60):
        index.add_flat(number, chunks[number])
    for _ in range(20):
        index.remove_newest()
        index.check_integrity()
    assert torch.equal(index.search(queries(), 4), same.search(queries(), 4))
    assert index.host_bytes == same.host_bytes
    index.add(40, chunks[40])
    torch.testing.assert_close(
        index.search(queries(), 4), plain_maxsim(chunks[:41], queries()), atol=1e-5, rtol=0
    )
