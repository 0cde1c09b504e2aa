"""From a name to a video LLM: the embedded model, a folder, or a checkpoint of the hub.

Weights only as safetensors, never remote code. Which family drives a checkpoint follows from its
configuration; this is the one place that knows all families. Knows nothing of video or sessions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import ModelError, source_of
from models.video_llm import VideoLLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAMPLE_BYTES = 1 << 20  # of each end of a weights file, for its fingerprint


def load(model: str | Path = "demo", device: str = "auto", dtype: str = "auto") -> VideoLLM:
    """The video LLM called `model`: "demo" (embedded), a folder, or a hub id such as
    "Qwen/Qwen3-VL-4B-Instruct".

    device: "auto" is CUDA where there is one, else the CPU. dtype: "auto" is the checkpoint's half
    precision on CUDA (bfloat16 if it has none) and float32 on the CPU. Raises ModelError.
    """
    source = source_of(str(model))
    place = _device(device)
    config = _read_config(source, str(model))
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        known = ", ".join(FAMILIES)
        raise ModelError(
            f"{model} is a {config.get('model_type')!r} model, and longlook drives only: {known}"
        )
    model_id = _model_id(str(model), source, config)
    number = _dtype(dtype, place, config)
    try:
        return family(source, place, number, model_id)
    except ModelError:
        raise
    except _loading_errors() as error:
        raise ModelError(f"{model} cannot be loaded: {_first_sentence(error)}") from error


def identify(model: str) -> str:
    """The `model_id` that the loaded model would have. Raises ModelError."""
    source = source_of(model)
    return _model_id(model, source, _read_config(source, model))


def _model_id(model: str, source: str, config: Mapping[str, Any]) -> str:
    name = Path(model).resolve().name if Path(source).is_dir() and model != "demo" else model
    return f"{name}@{_revision(source, config)}"


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device} is not a device; try auto, cpu or cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device} was asked for, but torch finds no CUDA here")
    return place


def _dtype(dtype: str, device: torch.device, config: Mapping[str, Any]) -> torch.dtype:
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ModelError(f"{dtype} is not a dtype; try auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if device.type != "cuda":
        return torch.float32
    stored = config.get("dtype") or config.get("torch_dtype")
    return torch.float16 if stored == "float16" else torch.bfloat16


def _read_config(source: str, model: str) -> Mapping[str, Any]:
    """The checkpoint's config.json, read as data."""
    from transformers import PreTrainedConfig

    try:
        found, _ = PreTrainedConfig.get_config_dict(source)
        config = dict(found)
    except _loading_errors() as error:
        raise ModelError(f"{model} cannot be loaded: {_first_sentence(error)}") from error
    if not config:
        raise ModelError(f"{model} cannot be loaded: no config.json was found for it")
    return config


def _read_json(source: str, name: str) -> dict[str, Any]:
    """A small JSON file beside the weights, or {} where there is none."""
    from transformers.utils import cached_file

    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return dict(json.loads(Path(path).read_text(encoding="utf-8"))) if path else {}


def _revision(source: str, config: Mapping[str, Any]) -> str:
    """What tells this checkpoint from another of the same name: the hub's commit, or a fingerprint
    of a folder.
    """
    if not Path(source).is_dir():
        return str(config.get("_commit_hash") or "unknown")[:12]
    digest = hashlib.sha256((Path(source) / "config.json").read_bytes())
    for path in sorted(Path(source).glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, size - SAMPLE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:12]


def _load_qwen3_vl(
    source: str, device: torch.device, dtype: torch.dtype, model_id: str
) -> VideoLLM:
    """The dense and the mixture-of-experts variant, which differ only inside their layers."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from models.decoder import ATTENTION, register_attention
    from models.pixels import read_spec
    from models.qwen3_vl import VIDEO_PAD, Qwen3VL

    disable_progress_bar()  # ours is the only one on the terminal
    register_attention()
    network, report = AutoModelForImageTextToText.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation={"text_config": ATTENTION, "vision_config": "sdpa"},
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, in our words
    )
    if wrong := {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}:
        raise ModelError(
            f"{source} lacks weights of its own architecture, or has them in another shape: "
            f"{min(wrong)}"
        )
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    processor = _read_json(source, "processor_config.json")
    video = (
        _read_json(source, "video_preprocessor_config.json")
        or processor.get("video_processor")
        or None
    )
    image = (
        _read_json(source, "preprocessor_config.json") or processor.get("image_processor") or None
    )
    templates = [
        tokenizer.chat_template,
        _read_json(source, "chat_template.json").get("chat_template"),
    ]
    return Qwen3VL(
        model=network.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        pixels=read_spec(network.config.vision_config, video, image),
        model_id=model_id,
        template=next(
            (text for text in templates if isinstance(text, str) and VIDEO_PAD in text), None
        ),
    )


def _loading_errors() -> tuple[type[Exception], ...]:
    """What the libraries below raise for checkpoints that are missing, damaged or not what they
    say.
    """
    from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
    from safetensors import SafetensorError

    return (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
        HfHubHTTPError,
    )


def _first_sentence(error: Exception) -> str:
    from safetensors import SafetensorError

    text = " ".join(str(error).split()) or type(error).__name__
    sentence = text.split(". ")[0].rstrip(".")
    return (
        f"its weights are damaged ({sentence})" if isinstance(error, SafetensorError) else sentence
    )


FAMILIES: dict[str, Callable[[str, torch.device, torch.dtype, str], VideoLLM]] = {
    "qwen3_vl": _load_qwen3_vl,
    "qwen3_vl_moe": _load_qwen3_vl,
}
