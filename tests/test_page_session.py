"""The page over the real engine and sessions, with a tiny seeded model that knows nothing but runs every part."""

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
    with running_page(engine, config=settings.read, port=None) as address:
        client = gradio_client.Client(address, verbose=False, download_files=folder, analytics_enabled=False)
        yield client
        client.close()


def test_a_real_session_watches_and_answers_behind_the_page(tab: Any, clip: Path) -> None:
    tab.reset_session()
    tab.predict(gradio_client.handle_file(clip), api_name="/open")
    following = tab.submit(api_name="/follow")
    card, _ = following.result()
    strips = [strip for _, strip in following.outputs() if isinstance(strip, list)]  # those that were not left as shown
    assert "<b>24</b><span>frames read</span>" in card
    assert "<b>6</b><span>chunks</span>" in card
    assert "<b>0 B</b>" not in card, "device and host memory are both in use"
    assert len(strips[-1]) == 6
    chat, _ = tab.predict("What is shown at 00:05?", [], api_name="/ask")
    text = "".join(part.get("text", "") for part in chat[1]["content"])
    assert "looked at" in text
    assert "00:04–00:06" in text, "the named time is among the evidence"


def test_a_second_video_starts_with_an_empty_memory(tab: Any, clip: Path, tmp_path: Path) -> None:
    tab.reset_session()
    tab.predict(gradio_client.handle_file(clip), api_name="/open")
    tab.predict(api_name="/follow")
    tab.predict(gradio_client.handle_file(write_clip(tmp_path / "short.mp4", 4)), api_name="/open")
    card, _ = tab.predict(api_name="/follow")
    assert "<b>8</b><span>frames read</span>" in card
    assert "<b>2</b><span>chunks</span>" in card
