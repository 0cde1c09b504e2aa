"""From a name to a video LLM: the embedded model, a folder, or a checkpoint of the hub.

Weights only as safetensors, never remote code. Which family drives a checkpoint follows from its
configuration; this is the one place that knows all families. Knows nothing of video or sessions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.checkpoint import ModelError, source_of
from models.checkpoint_checks import (
    check_files,
    check_sizes,
    quantization,
    read_json_object,
    without_code,
)
from models.video_llm import VideoLLM

if TYPE_CHECKING:
    from models.qwen3_vl import Qwen3VL

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
    if Path(source).is_dir():
        check_files(Path(source), str(model))
    config = _read_config(source, str(model))
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        known = ", ".join(FAMILIES)
        raise ModelError(
            f"{model} is a {config.get('model_type')!r} model, and longlook drives only: {known}"
        )
    check_sizes(config, str(model))
    model_id = _model_id(str(model), source, config)
    number = _dtype(dtype, place, config)
    try:
        return family(source, config, place, number, model_id)
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if str(model) == "demo":  # ours: a bug
            raise
        raise ModelError(_what_failed(str(model), config, error)) from error


def _what_failed(model: str, config: Mapping[str, Any], error: Exception) -> str:
    """Libraries raise errors of any kind for a checkpoint that is not what it says."""
    sentence = _first_sentence(error)
    if method := quantization(config):
        return f"{model} is quantised with {method} and cannot be loaded here: {sentence}"
    return f"{model} cannot be loaded: {sentence}"


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
    """The checkpoint's config.json, read as data, without what would choose code."""
    from transformers import PreTrainedConfig

    try:
        if Path(source).is_dir():
            read_json_object(Path(source) / "config.json")
        found, _ = PreTrainedConfig.get_config_dict(source)
    except _loading_errors() as error:
        raise ModelError(f"{model} cannot be loaded: {_first_sentence(error)}") from error
    if not found:
        raise ModelError(f"{model} cannot be loaded: no config.json was found for it")
    return dict(without_code(found))


def _read_json(source: str, name: str) -> dict[str, Any]:
    """A small JSON file beside the weights, or {} where there is none."""
    from transformers.utils import cached_file

    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return read_json_object(Path(path)) if path else {}


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
    source: str,
    config: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    model_id: str,
) -> VideoLLM:
    """The dense and the mixture-of-experts variant, which differ only inside their layers."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

    from models.decoder import ATTENTION, register_attention
    from models.pixels import read_spec
    from models.qwen3_vl import VIDEO_PAD, Qwen3VL

    register_attention()
    plain = {key: value for key, value in config.items() if key != "model_type"}
    with _quiet_transformers():
        network, report = AutoModelForImageTextToText.from_pretrained(
            source,
            config=AutoConfig.for_model(str(config["model_type"]), **plain),
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
    model = Qwen3VL(
        model=network.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        pixels=read_spec(network.config.vision_config, video, image),
        model_id=model_id,
        template=next(
            (text for text in templates if isinstance(text, str) and VIDEO_PAD in text), None
        ),
    )
    _check_template(model)
    return model


def _check_template(model: Qwen3VL) -> None:
    """A template is a program in a sandbox, and anything can go wrong in it."""
    try:
        model.check_template()
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ValueError(f"its chat template does not work: {what}") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its progress bar and its tables of weights stay away: we say what is wrong in a sentence."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


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
        TypeError,
        RuntimeError,  # of which RecursionError is one
        SafetensorError,
        StrictDataclassError,
        HfHubHTTPError,
    )


def _first_sentence(error: Exception) -> str:
    from safetensors import SafetensorError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"its files name {text}, which is not known here"
    sentence = text.split(". ")[0].rstrip(".")
    return (
        f"its weights are damaged ({sentence})" if isinstance(error, SafetensorError) else sentence
    )


FAMILIES: dict[
    str, Callable[[str, Mapping[str, Any], torch.device, torch.dtype, str], VideoLLM]
] = {
    "qwen3_vl": _load_qwen3_vl,
    "qwen3_vl_moe": _load_qwen3_vl,
}
