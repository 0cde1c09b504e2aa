"""Networks of known shapes with random weights, to measure what a model costs without having it.

Sizes are those of the released checkpoints' configurations. Knows nothing of what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from models.decoder import ATTENTION, register_attention
from models.demo.architecture import MERGE, PATCH, SIDE, demo_config
from models.demo.tokenizer import build_tokenizer, special_ids
from models.pixels import BUDGET_FRAMES, PixelSpec
from models.qwen3_vl import Qwen3VL

LARGE_SIDE = 448  # pixels of a square frame


@dataclass(frozen=True)
class _Sizes:
    """What sets one released checkpoint apart from the others."""

    hidden: int
    intermediate: int
    tied: bool
    vision_depth: int
    vision_hidden: int
    vision_intermediate: int
    deepstack: tuple[int, int, int]
    layers: int = 36
    heads: int = 32


SIZES = {
    "qwen3-vl-4b": _Sizes(2560, 9728, True, 24, 1024, 4096, (5, 11, 17)),
    # Qwen3-0.6B behind it
    "4b-tower-0.6b": _Sizes(1024, 3072, True, 24, 1024, 4096, (5, 11, 17), layers=28, heads=16),
    "qwen3-vl-8b": _Sizes(4096, 12288, False, 27, 1152, 4304, (8, 16, 24)),
}
SHAPES = ("demo", *SIZES)


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> tuple[Qwen3VL, Any, int]:
    """The model as longlook drives it, the stock network inside, and the side of its frames in
    pixels.

    Raises ValueError for a shape that is not known.
    """
    if shape not in SHAPES:
        raise ValueError(f"{shape!r} is not one of {', '.join(SHAPES)}")
    tokenizer = build_tokenizer()
    ids = special_ids(tokenizer)
    config = (
        demo_config(len(tokenizer), ids) if shape == "demo" else large_config(SIZES[shape], ids)
    )
    side, patch, merge = (SIDE, PATCH, MERGE) if shape == "demo" else (LARGE_SIDE, 16, 2)
    register_attention()
    torch.manual_seed(0)
    with torch.device(device):
        network = Qwen3VLForConditionalGeneration._from_config(
            config,
            dtype=dtype,
            attn_implementation={"text_config": ATTENTION, "vision_config": "sdpa"},
        )
    network.eval().requires_grad_(False)
    pixels = side * side * BUDGET_FRAMES
    spec = PixelSpec(patch, merge, 2, min_pixels=pixels, max_pixels=pixels)
    return Qwen3VL(network, tokenizer, spec, f"{shape}, random weights"), network, side


def random_tower(shape: str, device: torch.device) -> tuple[Any, int]:
    """The stock vision tower of a large shape alone, and the side of its frames in pixels.

    Raises ValueError for a shape that is not known.
    """
    if shape not in SIZES:
        raise ValueError(f"{shape!r} is not one of {', '.join(SIZES)}")
    config = large_config(SIZES[shape], special_ids(build_tokenizer())).vision_config
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen3VLVisionModel(config).eval().requires_grad_(False), LARGE_SIDE


def random_siglip(device: torch.device) -> Any:
    """The stock SigLIP so400m tower, 27 x 27 patches of 14 at 384 x 384 pixels."""
    config = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return SiglipVisionModel(config).eval().requires_grad_(False)


def large_config(sizes: _Sizes, ids: dict[str, int]) -> Qwen3VLConfig:
    """`ids` are the special tokens of the tokenizer in use, whose words are a part of the
    vocabulary's size.
    """
    text = {
        "vocab_size": 151_936,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": sizes.tied,
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
    }
    vision = {
        "depth": sizes.vision_depth,
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_intermediate,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": sizes.hidden,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": list(sizes.deepstack),
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=sizes.tied,
        image_token_id=ids["image"],
        video_token_id=ids["video"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
