"""Groups of which only some tokens are left: streamed in chunks they are the stock model over just
these tokens, and index, memory and sessions hold them right, down to chunks without any visual
token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from errors import Notice
from frames import Frame
from keyframes.frame_group import FrameGroup
from memory.mass import attention_mass
from models.qwen3_vl import Qwen3VL
from models.video_llm import VisualGroup
from streaming.engine import Engine
from streaming.events import Answer
from tests.test_fidelity import NOTICED, QUESTION, TOLERANCE, gap, stock_inputs, stream
from tests.tiny import noise_frames
from tests.watching import tiny_engine

SIZE = (64, 96)  # pixels; a grid of 2 x 3 tokens after the checkpoint's limit
KEPT: tuple[list[int], ...] = ([5], [0, 2, 3], [], [0, 1, 2, 3, 4, 5], [], [1, 4])  # of 6 groups


def only(group: VisualGroup, places: Sequence[int]) -> VisualGroup:
    rows = torch.tensor(places, dtype=torch.int64)
    levels = tuple(level[rows] for level in group.deepstack)
    return replace(group, embeddings=group.embeddings[rows], deepstack=levels, kept=rows)


def streamed(
    tiny: Qwen3VL,
    frames: Sequence[Frame],
    groups_per_chunk: int,
    kept: Sequence[Sequence[int]] = KEPT,
) -> Tensor:
    """Logits behind a question, the pruned clip watched in chunks."""
    groups = [only(group, places) for group, places in zip(tiny.encode(frames), kept, strict=True)]
    chunks = [tiny.prefix()]
    for start in range(0, len(groups), groups_per_chunk):
        chunks.append(
            tiny.prefill(groups[start : start + groups_per_chunk], chunks, len(chunks) - 1)
        )
    assert sum(int(chunk.visual.sum()) for chunk in chunks) == sum(map(len, kept))
    return tiny.first_logits(QUESTION, chunks)


def stock_logits_over(
    stock: Qwen3VLForConditionalGeneration, inputs: dict[str, Tensor], kept: Sequence[Sequence[int]]
) -> Tensor:
    """The stock model over the whole clip in one forward, from which the tokens that are not kept
    were taken away; every other token stands where the stock model puts it."""
    ids, marks, grid = (
        inputs[name] for name in ("input_ids", "mm_token_type_ids", "video_grid_thw")
    )
    size = len(KEPT[3])
    keep = torch.ones(ids.shape[1], dtype=torch.bool)
    keep[marks[0] == 2] = torch.tensor(
        [place in places for places in kept for place in range(size)]
    )
    with torch.no_grad():
        positions, _ = stock.model.get_rope_index(ids, marks, video_grid_thw=grid)
        vision = stock.model.visual(inputs["pixel_values_videos"], grid_thw=grid)
        tokens = keep[marks[0] == 2]
        embeddings = stock.get_input_embeddings()(ids)
        embeddings[marks == 2] = vision.pooler_output
        output = stock.model.language_model(
            inputs_embeds=embeddings[:, keep],
            position_ids=positions[:, :, keep],
            visual_pos_masks=(marks == 2)[:, keep],
            deepstack_visual_embeds=[level[tokens] for level in vision.deepstack_features],
        )
        return torch.as_tensor(stock.lm_head(output.last_hidden_state[0, -1]))


@pytest.mark.parametrize("groups_per_chunk", [1, 2, 4])
def test_streaming_pruned_groups_equals_the_stock_model_over_the_tokens_that_are_left(
    tiny: Qwen3VL, stock: Qwen3VLForConditionalGeneration, groups_per_chunk: int
) -> None:
    frames = noise_frames(12, *SIZE)
    wanted = stock_logits_over(stock, stock_inputs(tiny, frames), KEPT)
    assert gap(streamed(tiny, frames, groups_per_chunk), wanted) <= TOLERANCE


def test_a_shifted_place_a_lost_token_and_a_token_too_many_are_noticed(
    tiny: Qwen3VL, stock: Qwen3VLForConditionalGeneration
) -> None:
    frames = noise_frames(12, *SIZE)
    wanted = stock_logits_over(stock, stock_inputs(tiny, frames), KEPT)
    groups = [only(group, places) for group, places in zip(tiny.encode(frames), KEPT, strict=True)]
    shifted = [replace(groups[0], kept=groups[0].places - 1), *groups[1:]]
    prefix = tiny.prefix()
    assert (
        gap(tiny.first_logits(QUESTION, [prefix, tiny.prefill(groups, [prefix], 0)]), wanted)
        <= TOLERANCE
    )
    assert (
        gap(tiny.first_logits(QUESTION, [prefix, tiny.prefill(shifted, [prefix], 0)]), wanted)
        > NOTICED
    )
    for other in ([], [4, 5]):
        assert gap(streamed(tiny, frames, 2, [other, *KEPT[1:]]), wanted) > NOTICED


def test_keeping_every_token_is_the_plain_path_bit_by_bit(tiny: Qwen3VL) -> None:
    frames = noise_frames(4, *SIZE)
    plain = stream(tiny, frames, 2)
    assert torch.equal(
        streamed(tiny, frames, 2, [range(6)] * 2), tiny.first_logits(QUESTION, plain)
    )
    assert not torch.equal(
        streamed(tiny, frames, 2, [range(6), range(5)]), tiny.first_logits(QUESTION, plain)
    )


def test_a_group_takes_as_many_positions_whatever_is_left_of_it(tiny: Qwen3VL) -> None:
    groups = tiny.encode(noise_frames(2, *SIZE))
    whole, one, none = (
        tiny.prefill([only(groups[0], places)], [], 0) for places in (range(6), [4], [])
    )
    assert whole.layout.extent == one.layout.extent == none.layout.extent
    assert torch.equal(
        one.layout.positions[:, one.visual], whole.layout.positions[:, whole.visual][:, [4]]
    )
    for chunk in (one, none):
        assert torch.equal(
            chunk.layout.positions[:, ~chunk.visual], whole.layout.positions[:, ~whole.visual]
        )
    text = none.select(~none.visual)
    assert torch.equal(text.layout.positions, torch.arange(text.num_tokens).expand(3, -1))


@pytest.mark.parametrize("places", [[2, 1], [1, 1], [6], [-1, 2]])
def test_places_out_of_order_or_outside_of_the_grid_are_refused(
    tiny: Qwen3VL, places: list[int]
) -> None:
    group = tiny.encode(noise_frames(2, *SIZE))[0]
    with pytest.raises(ValueError, match="not places in a 2 x 3 grid"):
        replace(only(group, range(len(places))), kept=torch.tensor(places))
    with pytest.raises(ValueError, match="need as many features"):
        replace(group, kept=torch.tensor([1]))


def test_chunks_without_visual_tokens_get_no_attention_and_all_of_them_none(tiny: Qwen3VL) -> None:
    groups = tiny.encode(noise_frames(2, *SIZE))
    some, none = (tiny.prefill([only(groups[0], places)], [], 0) for places in ([1, 4], []))
    queries = tiny.all_question_queries(QUESTION)
    assert attention_mass(queries, [none, some]) == [0.0, 1.0]
    assert attention_mass(queries, [none, none]) == [0.0, 0.0]


def prune_every_call(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's model keeps the tokens of KEPT, from the third chunk on none: two groups a
    chunk.
    """
    stock_encode, called = engine.model.encode_groups, 0

    def encode(groups: Sequence[FrameGroup], reuse: None = None) -> list[VisualGroup]:
        nonlocal called
        called += 1
        kept = KEPT[2 * called - 2 : 2 * called] if called < 3 else ([], [])
        return [
            only(group, places) for group, places in zip(stock_encode(groups), kept, strict=True)
        ]

    monkeypatch.setattr(engine.model, "encode_groups", encode)


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("has_profile", [True, False])
def test_a_session_of_pruned_chunks_is_kept_and_answers_as_before(
    checkpoint: Path,
    tmp_path: Path,
    kv_bits: int,
    has_profile: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = tiny_engine(
        checkpoint, kv_bits=kv_bits, window_chunks=1, recall_chunks=2, carrier_tokens=200
    )
    engine.profile = engine.profile if has_profile else None
    answers = []
    for folder in (None, tmp_path / "s"):
        with monkeypatch.context() as patched:
            prune_every_call(engine, patched)
            session = engine.open(folder)
            assert not [
                event
                for event in session.watch(noise_frames(24, *SIZE))
                if isinstance(event, Notice)
            ]
            session.memory.check_integrity()
        if folder:
            session.close()
            session = engine.open(folder)
        assert session.memory.num_chunks == 6 and int(session.memory.get([5])[0].visual.sum()) == 0
        answers += [event for event in session.ask(QUESTION) if isinstance(event, Answer)]
        session.close()
    assert answers[0].text == answers[1].text and answers[0].evidence == answers[1].evidence
