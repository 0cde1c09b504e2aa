"""The page over the real engine and sessions, with a tiny seeded model that knows nothing but runs
every part.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config import AnswerConfig, Config, MemoryConfig
from models.loading import load
from streaming.engine import Engine
from tests.clips import write_clip
from tests.tiny import save_tiny
from ui.demo import running_page
from ui.render import ModelInfo

gradio_client = pytest.importorskip("gradio_client")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Gradio's, of pandas


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "colours.mp4", 12)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("page")
    settings = Config(memory=MemoryConfig(chunk_frames=4), answer=AnswerConfig(max_new_tokens=12))
    engine = Engine(load(save_tiny(folder / "model")), None, settings)
    with running_page(
        engine, model=ModelInfo("tiny", is_demo=False), config=settings.read, port=None
    ) as address:
        client = gradio_client.Client(
            address, verbose=False, download_files=folder, analytics_enabled=False
        )
        yield client
        client.close()


def test_a_real_session_watches_and_answers_behind_the_page(tab: Any, clip: Path) -> None:
    tab.reset_session()
    tab.predict(gradio_client.handle_file(clip), api_name="/open")
    progress = tab.predict(api_name="/follow")
    stats = progress["stats"]
    assert (stats["frames_read"], stats["chunks"]) == (24, 6)
    assert stats["device_bytes"] > 0 and stats["host_bytes"] > 0, (
        "device and host memory are both in use"
    )
    times = progress["keyframe_seconds"]
    assert times[0] == 0.0 and 3 <= len(times) <= 6
    assert set(times) <= {2.0 * k for k in range(6)}, "where the colour changes"
    turn = tab.predict("What is shown at 00:05?", api_name="/ask")
    named = [item for item in turn["evidence"] if item["why"] == "named time"]
    assert [(item["start_seconds"], item["stop_seconds"]) for item in named] == [(4.0, 6.0)]


def test_a_second_video_starts_with_an_empty_memory(tab: Any, clip: Path, tmp_path: Path) -> None:
    tab.reset_session()
    tab.predict(gradio_client.handle_file(clip), api_name="/open")
    tab.predict(api_name="/follow")
    tab.predict(gradio_client.handle_file(write_clip(tmp_path / "short.mp4", 4)), api_name="/open")
    stats = tab.predict(api_name="/follow")["stats"]
    assert (stats["frames_read"], stats["chunks"]) == (8, 2)
