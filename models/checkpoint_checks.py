"""What is wrong with a checkpoint's files, told before a network is made of them.

A stranger may have made them. Knows nothing of families.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.checkpoint import ModelError

LFS_START = b"version https://git-lfs"
LARGEST_JSON = 64 << 20  # a tokenizer has 12 MB
# Sizes that a configuration may name. The largest released models have 128 layers and 16,384
# hidden values; to make a network of a million layers takes hours, before its weights are missed.
LARGEST_SIZES = {
    "num_hidden_layers": 512,
    "depth": 512,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 19,
    "moe_intermediate_size": 1 << 19,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "num_heads": 1024,
    "num_experts": 4096,
    "vocab_size": 1 << 22,
    "head_dim": 4096,
    "patch_size": 256,
    "num_position_embeddings": 1 << 20,
}
# Keys that choose code: an attention may be named by a repository of kernels, a class by a file.
CODE_KEYS = frozenset(
    {
        "_attn_implementation",
        "attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "_experts_implementation",
        "experts_implementation",
        "_experts_implementation_internal",
        "auto_map",
    }
)


def check_files(folder: Path, model: str) -> None:
    """Raises ModelError for files that stand for others which were never fetched."""
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        with path.open("rb") as file:
            start = file.read(len(LFS_START))
        if start == LFS_START:
            raise ModelError(
                f"{model} has only a pointer of Git LFS for its {path.name}; `git lfs pull` in its "
                "folder fetches it"
            )
        if path.suffix == ".json" and path.stat().st_size > LARGEST_JSON:
            raise ModelError(f"{model} cannot be loaded: its {path.name} is too large to be one")


def check_sizes(config: Mapping[str, Any], model: str) -> None:
    """Raises ModelError for a size that no model has."""
    for key, value in _leaves(config):
        largest = LARGEST_SIZES.get(key)
        if largest is None or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
            raise ModelError(
                f"{model} cannot be loaded: its {key} must be between 1 and {largest:,}, "
                f"not {str(value)[:40]}"
            )


def without_code(value: Any) -> Any:
    """A configuration without the keys that choose code."""
    if isinstance(value, Mapping):
        return {key: without_code(item) for key, item in value.items() if key not in CODE_KEYS}
    return value


def quantization(config: Mapping[str, Any]) -> str:
    """How the weights are quantised, in a word; nothing where they are not."""
    for part in (config, config.get("text_config")):
        found = part.get("quantization_config") if isinstance(part, Mapping) else None
        if isinstance(found, Mapping):
            return str(found.get("quant_method") or "an unknown method")[:40]
    return ""


def read_json_object(path: Path) -> dict[str, Any]:
    """A small JSON file that holds an object. Raises ValueError where it does not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no object")
    return found


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield key, value
