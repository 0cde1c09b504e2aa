"""Shape of the demo model: an ordinary Qwen3-VL, small enough to be trained on a laptop and kept in
git.
"""

from __future__ import annotations

from transformers import Qwen3VLConfig

SIDE = 64  # pixels of a square frame
PATCH = 8
MERGE = 2
GRID = SIDE // PATCH // MERGE  # visual tokens along a side
TOKENS_PER_GROUP = GRID * GRID
HIDDEN = 192


def demo_config(vocab_size: int, special: dict[str, int]) -> Qwen3VLConfig:
    """The configuration; `special` names the ids of vision_start, vision_end, image, video, eos,
    pad.
    """
    text = {
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": 576,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 48,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [8, 8, 8],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "eos_token_id": special["eos"],
        "pad_token_id": special["pad"],
    }
    vision = {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": (SIDE // PATCH) ** 2,
        "deepstack_visual_indexes": [1],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=special["image"],
        video_token_id=special["video"],
        vision_start_token_id=special["vision_start"],
        vision_end_token_id=special["vision_end"],
    )
