"""What a model's name stands for, and what its checkpoint recommends.

Imports nothing heavy, so that a mistake is told before anything is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config import Config
from errors import LonglookError

DEMO_FOLDER = Path(__file__).parent / "demo" / "weights"
SETTINGS_FILE = "longlook.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_PATIENCE_SECONDS = 5.0


class ModelError(LonglookError):
    """No model can be had under this name, or not with these settings."""


def source_of(model: str) -> str:
    """The folder or hub id to load from: "demo" is embedded. Raises ModelError."""
    if not model:
        raise ModelError("no model was named")
    if model == "demo":
        if not (DEMO_FOLDER / "config.json").is_file():
            raise ModelError("the embedded model's weights are missing from this installation")
        return str(DEMO_FOLDER)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{model} is not a model: it holds no config.json")
        return str(folder)
    if folder.exists() or not HUB_ID.fullmatch(model):
        raise ModelError(
            f"{model} is neither a folder with a model nor a hub id like Qwen/Qwen3-VL-4B-Instruct"
        )
    return model


def recommended_settings(model: str) -> Mapping[str, Mapping[str, Any]]:
    """What a checkpoint's folder says in `longlook.json`; {} if it says nothing."""
    return read_settings(Path(source_of(model)))


def read_settings(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """The settings that are stored beside the weights in `folder`; {} if there are none."""
    path = folder / SETTINGS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def recommended_config(model: str) -> Config:
    """The defaults, changed by what the checkpoint recommends. Raises LonglookError."""
    try:
        return Config().overridden(recommended_settings(model))
    except ModelError:
        raise
    # a file written by hand, or by a stranger
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise LonglookError(f"the {SETTINGS_FILE} of {model} makes no sense: {error}") from error


def check_can_be_had(model: str) -> None:
    """Raises ModelError for a hub id that is not on this machine while the hub does not answer.

    The hub's client would try five times, with a warning each, before it says so.
    """
    if Path(source_of(model)).is_dir():
        return
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{model} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it")
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_PATIENCE_SECONDS)
    except Exception as error:
        raise ModelError(
            f"{model} is not on this machine, and {constants.ENDPOINT} cannot be reached"
        ) from error
