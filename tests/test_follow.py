"""A file that is still written: every picture comes once, as soon as it is there."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from frames import Frame
from streaming.reader import Reader
from streaming.sources.follow import FollowSource
from streaming.sources.trouble import SourceError
from tests.golden import Recipe, make, read_paint, steady
from tests.waiting import wait_until

PATIENCE_SECONDS = 60.0


@pytest.mark.parametrize("suffix", (".ts", ".mkv"))
def test_pictures_come_as_the_file_grows(tmp_path: Path, suffix: str) -> None:
    whole = make(tmp_path / f"whole{suffix}", steady(60, 10), Recipe())
    data = whole.path.read_bytes()
    growing = tmp_path / f"growing{suffix}"
    growing.write_bytes(data[: len(data) // 2])
    source = FollowSource(growing, 10.0, quiet_seconds=2.0)
    frames: list[Frame] = []

    def view() -> None:
        with Reader(source) as reader:
            for frame in reader:
                frames.append(frame)

    thread = threading.Thread(target=view, daemon=True)
    thread.start()
    wait_until(lambda: len(frames) >= 10, PATIENCE_SECONDS)
    assert len(frames) < 60, "the second half is not written yet"
    with growing.open("ab") as file:
        file.write(data[len(data) // 2 :])
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "it ends when nothing is written any more"
    assert [read_paint(frame.image) for frame in frames] == list(range(60))
    assert [frame.pts_seconds for frame in frames] == pytest.approx(
        [index / 10 for index in range(60)], abs=0.002
    )


def test_it_goes_on_where_it_was_left(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.ts", steady(40, 10), Recipe())
    source = FollowSource(whole.path, 10.0, start_seconds=2.0, quiet_seconds=0.2)
    assert [read_paint(frame.image) for frame in source.frames()] == list(range(20, 40))


def test_what_cannot_be_followed_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be opened"):
        list(FollowSource(tmp_path / "none.ts").frames())
    (tmp_path / "text.ts").write_bytes(b"no video " * 1000)
    with pytest.raises(SourceError, match="cannot be followed"):
        list(FollowSource(tmp_path / "text.ts", quiet_seconds=0.2).frames())
