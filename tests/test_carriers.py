"""Carriers: bounded, evenly thinned, and read by a new chunk as the stock model reads the tokens
they stand for.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from config import AnswerConfig, Config, MemoryConfig
from memory.carriers import Carriers, carrier_indices
from memory.chunk import KVChunk, PositionLayout
from models.cache_layout import concat_positions, rotate
from models.qwen3_vl import Qwen3VL, text_layout
from streaming.engine import Engine
from streaming.events import Answer
from tests.tiny import noise_frames, tiny_network

TOLERANCE, NOTICED = 1e-5, 1e-3


def text_chunk(index: int) -> KVChunk:
    """Chunk with 4 tokens of text and 2 of picture."""
    kv = torch.full((2, 1, 1, 6, 4), float(index))
    layout = PositionLayout(torch.arange(6).expand(3, -1), 6)
    return KVChunk(kv[0], kv[1], layout, torch.arange(6) > 3, float(index), float(index), index)


@pytest.mark.parametrize("count", range(9))
def test_carriers_are_bounded_and_what_was_dropped_never_comes_back(count: int) -> None:
    before: set[int] = set()
    for num_chunks in range(200):
        now = carrier_indices(num_chunks, count)
        assert now == sorted(set(now)) and len(now) <= count
        assert set(now) - before <= {num_chunks - 1}
        assert not num_chunks or not count or now[-1] == num_chunks - 1
        before = set(now)


def test_old_carriers_are_an_even_sample_of_the_whole_past() -> None:
    assert carrier_indices(7, 8) == list(range(7))
    assert carrier_indices(4000, 8) == [0, 1024, 2048, 3072, 3996, 3997, 3998, 3999]


def test_a_session_that_was_reopened_has_the_carriers_it_would_have_had() -> None:
    steady = Carriers(20, text_chunk)
    for num_chunks in range(1, 40):
        kept = steady.before(num_chunks)
        assert sum(chunk.num_tokens for chunk in kept) <= 20
        assert [c.index for c in Carriers(20, text_chunk).before(num_chunks)] == [
            c.index for c in kept
        ]
        assert not any(chunk.visual.any() for chunk in kept)
    assert steady.memory_bytes == sum(chunk.memory_bytes for chunk in kept)


def test_without_room_nothing_is_carried_or_fetched() -> None:
    def never(index: int) -> KVChunk:
        raise AssertionError(index)

    assert Carriers(0, never).before(5) == []
    assert Carriers(20, never).before(0) == []


def stock_keys(
    chunks: list[KVChunk], visible: Tensor, positions: Tensor, start: int, tokens: list[int]
) -> Tensor:
    """Un-rotated keys [layers, kv_heads, n, head_dim] that the stock model gives text behind a
    cache of all `chunks`, standing at `positions`, of which it sees `visible`."""
    network = tiny_network().model.language_model
    places = torch.arange(start, start + len(tokens)).expand(3, 1, -1)
    cache = DynamicCache()
    with torch.no_grad():
        cosines, sines = (x[0] for x in network.rotary_emb(torch.empty(0), positions[:, None]))
        for layer in range(chunks[0].keys.shape[0]):
            keys = torch.cat([chunk.keys[layer] for chunk in chunks], dim=1)
            values = torch.cat([chunk.values[layer] for chunk in chunks], dim=1)
            cache.update(rotate(keys, cosines, sines)[None], values[None], layer)
        n = len(tokens)
        mask = torch.cat([visible.expand(n, -1), torch.ones(n, n, dtype=torch.bool).tril()], dim=1)
        network(
            torch.tensor([tokens]),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            attention_mask=torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None],
        )
        cosines, sines = (x[0] for x in network.rotary_emb(torch.empty(0), places))
    return torch.stack([rotate(layer.keys[0, :, -n:], cosines, -sines) for layer in cache.layers])


def test_a_carrier_is_its_chunk_with_the_pictures_out_of_sight(tiny: Qwen3VL) -> None:
    frames = noise_frames(6)
    prefix = tiny.prefix()
    chunks = [tiny.prefill(tiny.encode(frames[k : k + 2]), [prefix], k // 2) for k in (0, 2, 4)]
    carrier = chunks[0].select(~chunks[0].visual)
    tokens = tiny._prompt.question("Which?", ())
    context = [prefix, carrier, chunks[1]]
    ours = torch.stack(
        tiny._decoder.prefill(tiny._decoder.embed(tokens), text_layout(len(tokens)), context).keys
    )

    closed, start = concat_positions([chunk.layout for chunk in context])
    whole = [prefix, chunks[0], chunks[1]]
    seen = [torch.ones(chunk.num_tokens, dtype=torch.bool) for chunk in whole]
    visible = torch.cat([seen[0], ~chunks[0].visual, seen[2]])
    positions = torch.zeros(3, len(visible), dtype=torch.long)
    positions[:, visible] = closed
    assert gap(ours, stock_keys(whole, visible, positions, start, tokens)) <= TOLERANCE
    assert (
        gap(ours, stock_keys(whole, torch.ones_like(visible), positions, start, tokens)) > NOTICED
    )
    apart = concat_positions([chunk.layout for chunk in whole])[0]
    assert gap(ours, stock_keys(whole, visible, apart, start, tokens)) > NOTICED


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_new_chunks_see_carriers_and_the_device_holds_no_more_for_a_longer_stream(
    tiny: Qwen3VL,
) -> None:
    memory = MemoryConfig(chunk_frames=2, window_chunks=1, prefill_chunks=1, recall_chunks=1)
    keys, device_bytes = {}, {}
    for tokens in (0, 100):
        config = Config(memory=replace(memory, carrier_tokens=tokens))
        session = Engine(tiny, None, config).open()
        list(session.watch(noise_frames(24)))
        newest = session.memory.newest
        keys[tokens], device_bytes[tokens] = newest.keys, session.stats.device_bytes
    room = 100 * newest.memory_bytes // newest.num_tokens
    assert room / 2 < device_bytes[100] - device_bytes[0] <= room
    assert gap(keys[0], keys[100]) > NOTICED


def test_recent_first_leaves_recall_out_where_the_model_is_sure(tiny: Qwen3VL) -> None:
    memory = MemoryConfig(chunk_frames=2, window_chunks=1, prefill_chunks=1, recall_chunks=1)
    whys = {}
    for recall, sure_below in (("always", 0.6), ("never", 0.6), ("auto", 1.1), ("auto", 0.0)):
        config = Config(
            memory=replace(memory, recall=recall, sure_below=sure_below), answer=AnswerConfig(4)
        )
        session = Engine(tiny, None, config).open()
        list(session.watch(noise_frames(8)))
        for question in ("Which?", "What is shown at 0 seconds?"):
            answer = next(event for event in session.ask(question) if isinstance(event, Answer))
            whys[recall, sure_below, question[-2]] = {item.why for item in answer.evidence}
    assert whys["always", 0.6, "h"] == whys["auto", 0.0, "h"] == {"recalled", "recent"}
    assert (
        whys["never", 0.6, "h"] == whys["auto", 1.1, "h"] == whys["never", 0.6, "s"] == {"recent"}
    )
    # a named time is looked up, however sure the model is
    assert whys["auto", 1.1, "s"] == {"named time", "recent"}


def test_doubt_is_the_mean_entropy_of_what_the_last_layers_would_say(tiny: Qwen3VL) -> None:
    context = [tiny.prefix(), tiny.prefill(tiny.encode(noise_frames(2)), [tiny.prefix()], 0)]
    seen: list[Tensor] = []
    text_model = tiny._decoder._model
    hooks = [
        layer.register_forward_hook(lambda m, given, out: seen.append(out[0, -1]))
        for layer in text_model.layers
    ]
    doubt = tiny.doubt("Which?", context, ())
    for hook in hooks:
        hook.remove()
    logits = tiny._decoder._head(text_model.norm(torch.stack(seen))).float()
    assert torch.allclose(logits[-1], tiny.first_logits("Which?", context), atol=1e-5)
    chances = logits.topk(10).values.softmax(-1)
    assert doubt == pytest.approx(float(-(chances * chances.log10()).sum(-1).mean()), abs=1e-5)
    assert 0 < doubt < 1
