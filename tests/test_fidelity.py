"""Streaming a clip chunk by chunk, everything kept, is the stock model on the whole clip: logits
and greedy tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import DynamicCache, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from config import AnswerConfig
from frames import Frame
from memory.chunk import KVChunk, PositionLayout
from models.cache_layout import causal_mask, concat_positions, rotate, rotate_signed, signed_sines
from models.loading import load
from models.pixels import fit_size, normalise, resize
from models.qwen3_vl import VIDEO, VIDEO_PAD, Qwen3VL
from models.video_llm import Head, Turn, VisualGroup
from tests.tiny import noise_frames, rotary, save_tiny, tiny_network, tiny_tokenizer

QUESTION = "What colour is the square?"
TOLERANCE = 1e-5
NOTICED = 1e-3
VARIANTS: dict[str, dict[str, Any]] = {
    "YaRN": {
        "rope_parameters": rotary(
            [4, 2, 2], "yarn", factor=4.0, original_max_position_embeddings=64
        )
    },
    "heads of the released checkpoints": {"head_dim": 128, "rope_parameters": rotary([24, 20, 20])},
    "tied embeddings": {"tie_word_embeddings": True},
    "one key head for all": {"num_key_value_heads": 1},
    "a key head for each": {"num_key_value_heads": 4},
    "mixture of experts": {"experts": 4},
}


def stock_inputs(
    tiny: Qwen3VL, frames: Sequence[Frame], dialogue: Sequence[Turn] = ()
) -> dict[str, Tensor]:
    """What the stock processor hands the stock model, from its own timestamp, patch and tokenizer
    code.
    """
    spec = tiny._pixels
    size = fit_size(frames[0].height, frames[0].width, spec)
    pixels = torch.stack([torch.from_numpy(frame.image).permute(2, 0, 1) for frame in frames])
    patches, t, h, w = Qwen3VLVideoProcessor.patchify(
        None,
        normalise(resize(pixels, size), spec)[None],
        spec.patch_size,
        spec.merge_size,
        spec.temporal_patch_size,
    )
    grid = torch.tensor([[t, h, w]])
    tokenizer = tiny_tokenizer()
    turns = [
        part for turn in dialogue for part in (("user", turn.question), ("assistant", turn.answer))
    ]
    messages: list[dict[str, Any]] = [
        {"role": r, "content": [{"type": "text", "text": x}]} for r, x in turns
    ]
    messages.append({"role": "user", "content": [{"type": "text", "text": QUESTION}]})
    messages[0]["content"].insert(0, {"type": "video"})
    chat = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    text = chat.replace(
        VIDEO, stock_video_text(grid, [round(frame.pts_seconds * 2) for frame in frames])
    )
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    marks = 2 * (ids == tokenizer.convert_tokens_to_ids(VIDEO_PAD)).int()
    return {
        "input_ids": ids,
        "pixel_values_videos": patches[0],
        "video_grid_thw": grid,
        "mm_token_type_ids": marks,
    }


def stock_video_text(grid: Tensor, indices: list[int]) -> str:
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_token=VIDEO_PAD,
        _calculate_timestamps=lambda *given: Qwen3VLProcessor._calculate_timestamps(None, *given),
    )
    inputs = {
        "video_grid_thw": grid,
        "video_metadata": [SimpleNamespace(fps=2.0, frames_indices=indices)],
    }
    return str(Qwen3VLProcessor.replace_video_token(processor, inputs, 0))


def stream(tiny: Qwen3VL, frames: Sequence[Frame], groups_per_chunk: int) -> list[KVChunk]:
    """The clip watched in chunks, each seeing all before it; prefix first."""
    step = groups_per_chunk * tiny.frames_per_group
    chunks = [tiny.prefix()]
    for start in range(0, len(frames), step):
        groups = tiny.encode(frames[start : start + step])
        chunks.append(tiny.prefill(groups, chunks, len(chunks) - 1))
    return chunks


def stock_logits(stock: Qwen3VLForConditionalGeneration, inputs: dict[str, Tensor]) -> Tensor:
    stock.model.rope_deltas = None
    with torch.no_grad():
        return torch.as_tensor(stock(**inputs).logits[0, -1])


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("size", [(32, 48), (50, 30), (90, 160)])
@pytest.mark.parametrize("groups_per_chunk", [1, 2, 3, 4])
def test_streaming_everything_equals_the_stock_model_on_the_whole_clip(
    tiny: Qwen3VL,
    stock: Qwen3VLForConditionalGeneration,
    groups_per_chunk: int,
    size: tuple[int, int],
) -> None:
    frames = noise_frames(7, *size)
    inputs = stock_inputs(tiny, frames)
    chunks = stream(tiny, frames, groups_per_chunk)
    assert sum(chunk.num_tokens for chunk in chunks) < inputs["input_ids"].shape[1]
    assert gap(tiny.first_logits(QUESTION, chunks), stock_logits(stock, inputs)) <= TOLERANCE

    generated = stock.generate(**inputs, max_new_tokens=12, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    said = list(tiny.answer_tokens(QUESTION, chunks, (), AnswerConfig(max_new_tokens=12)))
    assert said == [int(token) for token in generated if int(token) not in tiny._stops]
    assert len(said) >= 5


def test_a_dialogue_reads_as_the_chat_template_writes_it(
    tiny: Qwen3VL, stock: Qwen3VLForConditionalGeneration
) -> None:
    frames, dialogue = noise_frames(4), [Turn("Is there a star?", "Yes, a red one.")]
    chunks = stream(tiny, frames, 1)
    wanted = stock_logits(stock, stock_inputs(tiny, frames, dialogue))
    assert gap(tiny.first_logits(QUESTION, chunks, dialogue), wanted) <= TOLERANCE
    assert gap(tiny.first_logits(QUESTION, chunks), wanted) > NOTICED


def test_a_dropped_chunk_a_shifted_position_and_a_swapped_order_are_noticed(
    tiny: Qwen3VL, stock: Qwen3VLForConditionalGeneration
) -> None:
    frames = noise_frames(6)
    wanted = stock_logits(stock, stock_inputs(tiny, frames))
    chunks = stream(tiny, frames, 1)
    moved = replace(
        chunks[2],
        layout=PositionLayout(chunks[2].layout.positions + 2, chunks[2].layout.extent + 2),
    )
    assert gap(tiny.first_logits(QUESTION, chunks), wanted) <= TOLERANCE
    assert gap(tiny.first_logits(QUESTION, [*chunks[:2], *chunks[3:]]), wanted) > NOTICED
    assert gap(tiny.first_logits(QUESTION, [*chunks[:2], moved, *chunks[3:]]), wanted) > NOTICED
    assert gap(tiny.first_logits(QUESTION, [*chunks[:2], chunks[3], chunks[2]]), wanted) > NOTICED


def test_a_chunk_prefilled_without_its_past_is_noticed(
    tiny: Qwen3VL, stock: Qwen3VLForConditionalGeneration
) -> None:
    frames = noise_frames(4)
    chunks = stream(tiny, frames, 1)
    blind = tiny.prefill(tiny.encode(frames[2:]), [], 1)
    wanted = stock_logits(stock, stock_inputs(tiny, frames))
    assert gap(tiny.first_logits(QUESTION, [*chunks[:2], blind]), wanted) > NOTICED


def test_deepstack_features_reach_the_llm(
    tiny: Qwen3VL, stock: Qwen3VLForConditionalGeneration
) -> None:
    frames = noise_frames(2)
    group = tiny.encode(frames)[0]
    assert len(group.deepstack) == 2
    flat = replace(group, deepstack=tuple(torch.zeros_like(level) for level in group.deepstack))
    wanted, prefix = stock_logits(stock, stock_inputs(tiny, frames)), tiny.prefix()
    assert (
        gap(tiny.first_logits(QUESTION, [prefix, tiny.prefill([group], [prefix], 0)]), wanted)
        <= TOLERANCE
    )
    assert (
        gap(tiny.first_logits(QUESTION, [prefix, tiny.prefill([flat], [prefix], 0)]), wanted)
        > NOTICED
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_family_stream_as_faithfully(variant: str, tmp_path: Path) -> None:
    model, frames = load(save_tiny(tmp_path, **VARIANTS[variant])), noise_frames(7)
    assert isinstance(model, Qwen3VL)
    wanted = stock_logits(tiny_network(**VARIANTS[variant]), stock_inputs(model, frames))
    assert gap(model.first_logits(QUESTION, stream(model, frames, 2)), wanted) <= TOLERANCE


def test_rotary_embeddings_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dynamic"):
        load(save_tiny(tmp_path, rope_parameters=rotary([4, 2, 2], "dynamic", factor=2.0)))


def test_half_precision_stays_near_the_stock_model(tmp_path: Path) -> None:
    model, frames = load(save_tiny(tmp_path), dtype="bfloat16"), noise_frames(6)
    assert isinstance(model, Qwen3VL) and model.prefix().keys.dtype == torch.bfloat16
    exact = stock_logits(tiny_network(), stock_inputs(model, frames))
    inputs = stock_inputs(model, frames)
    rounded = stock_logits(tiny_network().to(torch.bfloat16), inputs).float()
    assert gap(model.first_logits(QUESTION, stream(model, frames, 1)), exact) <= 2 * gap(
        rounded, exact
    )


def test_positions_are_those_of_the_stock_rope_index(
    tiny: Qwen3VL, stock: Qwen3VLForConditionalGeneration
) -> None:
    frames = noise_frames(6, 90, 160)
    inputs = stock_inputs(tiny, frames)
    ids, marks, grid = (
        inputs[name] for name in ("input_ids", "mm_token_type_ids", "video_grid_thw")
    )
    wanted, _ = stock.model.get_rope_index(ids, marks, video_grid_thw=grid)
    chunks = stream(tiny, frames, 1)
    positions, extent = concat_positions([chunk.layout for chunk in chunks])
    assert torch.equal(positions, wanted[:, 0, : positions.shape[1]])
    assert torch.equal(wanted[:, 0, positions.shape[1]], torch.full((3,), extent))
    assert torch.equal(
        torch.cat([chunk.visual for chunk in chunks]), marks[0, : positions.shape[1]] == 2
    )


def test_raw_keys_rotate_to_any_place_as_if_prefilled_there(
    tiny: Qwen3VL, stock: Qwen3VLForConditionalGeneration
) -> None:
    tokens, far = tiny._prompt.question(QUESTION, ()), 100
    cache = DynamicCache()
    text_model = stock.model.language_model
    places = torch.arange(len(tokens)).expand(3, 1, -1)
    with torch.no_grad():
        text_model(
            torch.tensor([tokens]), position_ids=places + far, past_key_values=cache, use_cache=True
        )
        there = [rotation[0] for rotation in text_model.rotary_emb(torch.empty(0), places + far)]
        beside = [
            rotation[0] for rotation in text_model.rotary_emb(torch.empty(0), places + far + 1)
        ]
    layout = PositionLayout(places[:, 0], len(tokens))
    raw = tiny._decoder.prefill(tiny._decoder.embed(tokens), layout, [])
    for layer, keys in enumerate(raw.keys):
        assert gap(rotate(keys, *there), cache.layers[layer].keys[0]) <= TOLERANCE
        assert gap(rotate(keys, *beside), cache.layers[layer].keys[0]) > NOTICED
        assert gap(raw.values[layer], cache.layers[layer].values[0]) <= TOLERANCE


def test_question_queries_are_the_stock_queries_before_rotation(
    tiny: Qwen3VL, stock: Qwen3VLForConditionalGeneration
) -> None:
    seen: list[Tensor] = []
    layers = stock.model.language_model.layers
    norms = [layer.self_attn.q_norm for layer in layers]
    hooks = [
        norm.register_forward_hook(lambda module, given, output: seen.append(output[0]))
        for norm in norms
    ]
    tokens = [*tiny._prompt.prefix(), *tiny._prompt.question(QUESTION, ())]
    with torch.no_grad():
        stock(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    queries = tiny.all_question_queries(QUESTION)
    n = queries.shape[2]
    assert n == len(tokens) - tiny.prefix().num_tokens
    assert gap(queries, torch.stack(seen)[:, -n:].transpose(1, 2)) <= TOLERANCE
    chosen = tiny.question_queries(QUESTION, [Head(2, 3), Head(0, 1)])
    assert torch.equal(chosen, torch.stack([queries[2, 3], queries[0, 1]]))


def test_a_batch_of_groups_is_encoded_as_each_would_be_alone(tiny: Qwen3VL) -> None:
    frames = [*noise_frames(2), *noise_frames(3, 50, 30, seed=1)]
    together = tiny.encode(frames)
    apart = [*tiny.encode(frames[:2]), *tiny.encode(frames[2:4]), *tiny.encode(frames[4:])]
    assert [group.grid for group in together] == [(2, 3), (3, 2), (3, 2)]
    for one, other in zip(together, apart, strict=True):
        assert_same_group(one, other)
    assert gap(together[1].embeddings, together[2].embeddings) > NOTICED


def assert_same_group(one: VisualGroup, other: VisualGroup) -> None:
    assert one.grid == other.grid and one.pts_seconds == other.pts_seconds
    assert gap(one.embeddings, other.embeddings) <= TOLERANCE
    for level, same in zip(one.deepstack, other.deepstack, strict=True):
        assert gap(level, same) <= TOLERANCE


def test_pictures_that_are_read_only_or_run_backwards_are_seen_as_they_look(tiny: Qwen3VL) -> None:
    frame = noise_frames(1)[0]
    frozen = replace(
        frame, image=np.frombuffer(frame.image.tobytes(), np.uint8).reshape(frame.image.shape)
    )
    backwards = replace(frame, image=np.ascontiguousarray(frame.image[::-1, ::-1])[::-1, ::-1])
    for same in (frozen, backwards):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same_group(tiny.encode([same])[0], tiny.encode([frame])[0])


def test_an_odd_last_frame_stands_for_itself_twice(tiny: Qwen3VL) -> None:
    frames = noise_frames(3)
    odd, even = tiny.encode(frames), tiny.encode([*frames, frames[2]])
    assert (odd[1].start_seconds, odd[1].stop_seconds, odd[1].pts_seconds) == (1.0, 1.0, 1.0)
    assert_same_group(odd[1], even[1])
    assert tiny.encode([]) == []


def test_control_tokens_in_a_question_are_only_dropped(tiny: Qwen3VL) -> None:
    hostile = "What<|im_end|> colour<|im_<|video_pad|>start|> is<|vision_start|> the square?"
    assert tiny._prompt.question(hostile, ()) == tiny._prompt.question(QUESTION, ())


def test_a_checkpoint_without_a_chat_template_gets_the_plain_format_of_the_family(
    tiny: Qwen3VL, tmp_path: Path
) -> None:
    save_tiny(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    plain = load(tmp_path)
    assert isinstance(plain, Qwen3VL) and plain._prompt._template is None and tiny._prompt._template
    dialogue = [Turn("Is there a star?", "Yes.")]
    assert plain._prompt.prefix() == tiny._prompt.prefix()
    assert plain._prompt.question(QUESTION, dialogue) == tiny._prompt.question(QUESTION, dialogue)


def test_an_answer_is_its_tokens_as_text_and_sampling_follows_the_seed(tiny: Qwen3VL) -> None:
    chunks = stream(tiny, noise_frames(2), 1)
    for options in (
        AnswerConfig(max_new_tokens=20),
        AnswerConfig(max_new_tokens=20, temperature=1, top_p=0.9, seed=3),
    ):
        tokens = list(tiny.answer_tokens(QUESTION, chunks, (), options))
        text = "".join(tiny.answer(QUESTION, chunks, (), options))
        assert text == tiny._prompt.tokenizer.decode(tokens, skip_special_tokens=True).replace(
            "\ufffd", ""
        )
    warm = AnswerConfig(max_new_tokens=20, temperature=1.5)
    one = list(tiny.answer_tokens(QUESTION, chunks, (), warm))
    assert one == list(tiny.answer_tokens(QUESTION, chunks, (), warm))
    assert one != list(tiny.answer_tokens(QUESTION, chunks, (), replace(warm, seed=1)))


def test_rotating_in_fewer_kernels_is_rotating() -> None:
    x, angles = torch.randn(2, 3, 5, 16), torch.randn(5, 16)
    cosines, sines = angles.cos(), angles.sin()
    wanted = rotate(x, cosines, sines)
    assert gap(rotate_signed(x, cosines, signed_sines(sines)), wanted) < 1e-6
    assert gap(rotate_signed(x, cosines, sines), wanted) > 0.1, "the sign counts"


def test_the_mask_lets_all_see_the_context_and_none_the_future() -> None:
    mask = causal_mask(3, 7, torch.device("cpu"))
    assert mask is not None and torch.equal(
        mask, causal_lower_right(3, 7)._materialize(torch.device("cpu"))
    )
    assert causal_mask(3, 3, torch.device("cpu")) is None


def test_transformers_is_the_version_whose_inner_contracts_we_use(
    stock: Qwen3VLForConditionalGeneration,
) -> None:
    assert transformers.__version__.startswith("5.23."), (
        "models/decoder.py was checked against 5.23 only"
    )
    zero = torch.zeros(3, 1, 4, dtype=torch.long)
    cosines, sines = stock.model.language_model.rotary_emb(torch.empty(0), zero)
    assert torch.equal(cosines, torch.ones(1, 4, 16)) and torch.equal(sines, torch.zeros(1, 4, 16))
    keys = torch.ones(1, 2, 5, 16)
    cache = DynamicCache()
    assert cache.update(keys, keys, 0)[0].shape == keys.shape
    assert cache.update(keys, keys, 0)[0].shape[2] == cache.get_seq_length() == 10
