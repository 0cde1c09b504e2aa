"""The index of the retrieval heads' keys: what FAISS finds equals plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memory import index as index_module
from memory.index import HeadIndex

HEADS, DIM = 2, 16


def history(num_chunks: int, seed: int = 0) -> list[Tensor]:
    """Keys [heads, n, dim] per chunk, n from 0 to 30."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(7 * chunk) % 31 for chunk in range(num_chunks)]
    return [torch.randn(HEADS, size, DIM, generator=generator) for size in sizes]


def queries(num_tokens: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(HEADS, num_tokens, DIM, generator=torch.Generator().manual_seed(seed))


def build(chunks: list[Tensor], exact_tokens: int) -> HeadIndex:
    index = HeadIndex(HEADS, DIM, exact_tokens=exact_tokens)
    for number, keys in enumerate(chunks):
        index.add(number, keys)
    return index


def plain_maxsim(chunks: list[Tensor], query: Tensor) -> Tensor:
    columns = [
        (query @ keys.transpose(1, 2)).amax(dim=(1, 2)) if keys.shape[1] else torch.full((HEADS,), -torch.inf)
        for keys in chunks
    ]
    return torch.stack(columns, dim=1)


def test_a_small_history_is_scored_exactly_everywhere() -> None:
    chunks = history(40)
    found = build(chunks, exact_tokens=10_000).search(queries(), limit=4)
    torch.testing.assert_close(found.scores, plain_maxsim(chunks, queries()), atol=1e-5, rtol=0)
    assert found.exact.all()


def test_a_missing_token_or_a_swapped_head_would_be_noticed() -> None:
    chunks = history(40)
    found = build(chunks, exact_tokens=10_000).search(queries(), limit=4).scores
    best_token = int((queries()[0] @ chunks[9][0].T).amax(dim=0).argmax())
    cut = [*chunks[:9], torch.cat([chunks[9][:, :best_token], chunks[9][:, best_token + 1 :]], dim=1), *chunks[10:]]
    assert (found - plain_maxsim(cut, queries())).abs().nan_to_num().max() > 1e-3
    assert (found - plain_maxsim(chunks, queries().flip(0))).abs().nan_to_num().max() > 1e-3


@pytest.mark.parametrize("limit", [1, 4, 10])
@pytest.mark.parametrize("seed", range(5))
def test_in_a_long_history_the_best_of_each_head_are_exact_and_the_rest_is_bounded(limit: int, seed: int) -> None:
    chunks, query = history(300, seed), queries(seed=seed + 100)
    found, plain = build(chunks, exact_tokens=0).search(query, limit), plain_maxsim(chunks, query)
    torch.testing.assert_close(found.scores[:, found.exact], plain[:, found.exact], atol=1e-5, rtol=0)
    assert not found.exact.all()
    assert (found.scores >= plain - 1e-5).all()
    for head in range(HEADS):
        best = plain[head].topk(limit).indices
        assert found.exact[best].all()


def test_one_chunk_that_holds_all_the_best_tokens_does_not_hide_the_others() -> None:
    chunks = history(200, seed=3)
    query = queries(num_tokens=1)
    chunks[50] = query.expand(HEADS, 500, DIM) * 10
    found, plain = build(chunks, exact_tokens=0).search(query, limit=4), plain_maxsim(chunks, query)
    assert all(found.exact[plain[head].topk(4).indices].all() for head in range(HEADS))


def test_scoring_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index = build(history(40), exact_tokens=10_000)
    whole = index.search(queries(), limit=4).scores
    monkeypatch.setattr(index_module, "BLOCK_TOKENS", 13)
    assert torch.equal(index.search(queries(), limit=4).scores, whole)


def test_half_precision_keys_are_read_as_they_are() -> None:
    chunks = [keys.bfloat16() for keys in history(20)]
    found = build(chunks, exact_tokens=10_000).search(queries().bfloat16(), limit=4).scores
    plain = plain_maxsim([keys.float() for keys in chunks], queries().bfloat16().float())
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


def test_chunks_without_tokens_are_never_found() -> None:
    empty = torch.zeros(HEADS, 0, DIM)
    for exact_tokens in (0, 10_000):
        found = build([empty, *history(20)[1:], empty], exact_tokens).search(queries(), limit=30)
        assert found.scores[:, [0, -1]].eq(-torch.inf).all()
        assert found.scores[:, 1:-1].isfinite().all()
    assert build([empty], 0).search(queries(), limit=1).scores.shape == (HEADS, 1)
    assert HeadIndex(HEADS, DIM).search(queries(), limit=1).scores.shape == (HEADS, 0)


def test_the_bytes_are_those_of_the_keys() -> None:
    chunks = history(40)
    index = build(chunks, exact_tokens=0)
    assert index.num_chunks == 40
    assert index.num_tokens == sum(keys.shape[1] for keys in chunks)
    assert index.index_bytes == sum(keys.nbytes for keys in chunks)


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    index = build(history(3), exact_tokens=0)
    with pytest.raises(ValueError, match="chunk 5 cannot follow 3"):
        index.add(5, torch.zeros(HEADS, 1, DIM))
    with pytest.raises(ValueError, match=r"keys need \[2, n, 16\], not \[1, 4, 16\]"):
        index.add(3, torch.zeros(1, 4, DIM))
    with pytest.raises(ValueError, match="queries need"):
        index.search(torch.zeros(HEADS, 1, DIM + 1), limit=1)
    with pytest.raises(ValueError, match="nothing to search for"):
        index.search(torch.zeros(HEADS, 0, DIM), limit=1)
