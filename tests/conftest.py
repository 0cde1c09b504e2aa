"""What every test gets: no network, one torch thread, a fixed seed, and the clips that lie beside
the repository.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from models.loading import load
from models.qwen3_vl import Qwen3VL
from tests.tiny import save_tiny, tiny_network

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny seeded checkpoint, not to be written into."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Qwen3VL:
    """It as longlook loads it."""
    model = load(checkpoint)
    assert isinstance(model, Qwen3VL)
    return model


@pytest.fixture(scope="module")
def stock() -> Qwen3VLForConditionalGeneration:
    """The same network as transformers makes it."""
    return tiny_network()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real clips beside the repository; the test is skipped where there is none."""
    folder = REPOSITORY.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip(f"no real clips here: {folder} does not exist")
    return folder


def pytest_sessionfinish() -> None:
    """Threads that tests left behind come to rest: the interpreter must not end one in the middle
    of an operator of torch, which would take the process down after all tests have passed."""
    stop = time.monotonic() + 20
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.main_thread():
            thread.join(max(0.0, min(2.0, stop - time.monotonic())))
