"""Pictures of a tab: what was seen is shown again without the file being read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from config import AnswerConfig, Config, MemoryConfig
from models.video_llm import VideoLLM
from streaming.engine import Engine
from streaming.events import Evidence
from streaming.sources.moments import Moments
from tests.clips import write_clip
from ui.pictures import PictureFolder, SeenPictures
from ui.viewing import TabSession

PICTURE = np.zeros((40, 60, 3), np.uint8)


def files_of(folder: Path) -> int:
    return len(list(folder.rglob("*.jpg")))


def test_the_picture_nearest_to_the_middle_of_a_stretch_is_found(tmp_path: Path) -> None:
    seen = SeenPictures(PictureFolder(tmp_path))
    kept = [seen.add(float(second), PICTURE) for second in range(10)]
    assert seen.within(2.0, 7.0) == kept[4].url
    assert seen.within(3.2, 3.9) is None
    assert seen.within(9.0, 30.0) == kept[9].url


def test_beyond_the_limit_pictures_are_thinned_and_their_files_deleted(tmp_path: Path) -> None:
    seen = SeenPictures(PictureFolder(tmp_path), limit=8)
    kept = [seen.add(float(second), PICTURE) for second in range(100)]
    assert files_of(tmp_path) == 8
    assert seen.has(kept[0]) and seen.has(kept[99])
    assert (
        max(
            min(abs(item.pts_seconds - second) for item in kept if seen.has(item))
            for second in range(100)
        )
        < 20
    ), "all of the stream is there"


@pytest.fixture
def tab(tiny: VideoLLM, tmp_path: Path) -> TabSession:
    config = Config(memory=MemoryConfig(chunk_frames=4), answer=AnswerConfig(max_new_tokens=2))
    engine = Engine(tiny, None, config)
    clip = write_clip(tmp_path / "clip.mp4", 12)
    session = TabSession(
        engine.open(), clip, "clip", config.read, PictureFolder(tmp_path / "pictures")
    )
    session.start()
    assert session.finished.wait(60)
    return session


def evidence(start_seconds: float, stop_seconds: float) -> Evidence:
    return Evidence(start_seconds, stop_seconds, 1.0, "named time", "dense")


def test_evidence_is_shown_without_reading_the_file_again(
    tab: TabSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.viewing.Moments", lambda _: pytest.fail("the file was opened"))
    tab.path.unlink()
    urls = tab.pictures_of((evidence(0.0, 2.0), evidence(4.0, 6.0)))
    assert all(urls) and len(set(urls)) == 2
    tab.close()


def test_what_was_thinned_out_is_read_from_the_file_which_is_opened_once(
    tab: TabSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Moments] = []

    class Counted(Moments):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            opened.append(self)

    monkeypatch.setattr("ui.viewing.Moments", Counted)
    tab._seen = SeenPictures(tab._pictures)
    for _ in range(3):
        assert all(tab.pictures_of((evidence(0.0, 2.0), evidence(4.0, 6.0))))
    assert len(opened) == 1
    tab.close()
    assert tab.pictures_of((evidence(0.0, 2.0),)) == ("",), "and not after its end"
