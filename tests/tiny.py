"""A tiny seeded Qwen3-VL checkpoint, made on the spot: all parts of the real architecture, and no
knowledge at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from frames import Frame

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
    "<|image_pad|>",
)
FRAME_PIXELS = 32 * 48  # the checkpoint's upper limit for one frame
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else "
    "%}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, so any text goes in and comes out, and a character can be spread over
    several tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def tiny_config(
    tokenizer: PreTrainedTokenizerFast, experts: int = 0, **text: Any
) -> Qwen3VLConfig | Qwen3VLMoeConfig:
    """Three LLM layers of 64, grouped queries, DeepStack into two of them, interleaved M-RoPE;
    `text` overrides.

    experts: of the mixture-of-experts variant of the family; 0 is the dense one.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    mixture = {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return (Qwen3VLMoeConfig if experts else Qwen3VLConfig)(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "initializer_range": 0.2,
            "rope_parameters": rotary([4, 2, 2]),
            "eos_token_id": ids["<|im_end|>"],
            **(mixture if experts else {}),
            **text,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )


def rotary(sections: list[int], kind: str = "default", **more: float) -> dict[str, Any]:
    """Parameters of a rotary embedding; `sections` (t, h, w) add up to half the head's size."""
    return {
        "rope_type": kind,
        "rope_theta": 10_000.0,
        "mrope_section": sections,
        "mrope_interleaved": True,
        **more,
    }


def tiny_network(seed: int = 0, experts: int = 0, **text: Any) -> Any:
    """The stock class with seeded weights, float32 on the CPU."""
    kind = Qwen3VLMoeForConditionalGeneration if experts else Qwen3VLForConditionalGeneration
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind(tiny_config(tiny_tokenizer(), experts, **text))
    return network.eval().requires_grad_(False)


def save_tiny(folder: Path, seed: int = 0, experts: int = 0, **text: Any) -> Path:
    """Write the checkpoint as the hub would hold it, ready for `models.loading.load`; gives the
    folder back.
    """
    network = tiny_network(seed, experts, **text)
    network.generation_config.eos_token_id = network.config.text_config.eos_token_id
    network.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    size = {"shortest_edge": 16 * 16, "longest_edge": FRAME_PIXELS}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
        encoding="utf-8",
    )
    return folder


def noise_frames(
    count: int, height: int = 32, width: int = 48, fps: float = 2.0, seed: int = 0
) -> list[Frame]:
    """Frames of seeded noise, no two alike."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Frame(image, index / fps, index) for index, image in enumerate(pixels)]
