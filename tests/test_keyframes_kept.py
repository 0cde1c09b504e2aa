"""Keyframes of a stream are told of as events and kept with their chunks: in memory, on the disk,
and not for ever.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from frames import Frame
from memory.folders import summary
from memory.kv_memory import KVMemory
from memory.records import KEYFRAME_KINDS, KeyframeRecord
from streaming.events import Keyframe, Watched, WatchEvent
from streaming.session import Session
from tests.test_detector import frames_of, shot
from tests.test_still import pruning
from tests.watching import tiny_engine

CUTS = (0, 7, 16, 24)
PICTURES = shot(1, 7) + shot(2, 9) + shot(3, 8) + shot(4, 6)


def clip(fps: float = 2) -> list[Frame]:
    return frames_of(PICTURES, fps)


def told(events: Sequence[WatchEvent]) -> list[tuple[float, str]]:
    return [(e.pts_seconds, e.kind) for e in events if isinstance(e, Keyframe)]


def kept(session: Session) -> list[tuple[float, str]]:
    return [(keyframe.pts_seconds, keyframe.kind) for keyframe in session.keyframes]


def wanted(fps: float = 2) -> list[tuple[float, str]]:
    return [(index / fps, "cut" if index else "head") for index in CUTS]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("folder", [None, "s"])
def test_keyframes_are_told_of_and_kept_with_small_pictures(
    checkpoint: Path, tmp_path: Path, ahead: bool, folder: str | None
) -> None:
    session = tiny_engine(checkpoint).open(tmp_path / folder if folder else None)
    events = list(session.watch(clip(), ahead=ahead))
    assert told(events) == kept(session) == wanted()
    assert session.stats.keyframes == 4
    last = [event for event in events if isinstance(event, Watched)][-1]
    assert last.stats.keyframes == 4
    for event in events:
        if isinstance(event, Keyframe):
            assert max(event.image.shape) <= 192 and event.kind in KEYFRAME_KINDS
    for keyframe, index in zip(session.keyframes, CUTS, strict=True):
        picture = session.keyframe_picture(keyframe)
        assert picture is not None and len(picture) == keyframe.picture_bytes
        shown = np.asarray(Image.open(io.BytesIO(picture)).resize((64, 36))).astype(float)
        for other in CUTS:
            small = Image.fromarray(PICTURES[other]).resize((64, 36))
            apart = float(np.abs(np.asarray(small).astype(float) - shown).mean())
            assert (apart < 8) == (other == index), (index, other, apart)
    session.memory.check_integrity()
    session.close()


def test_a_kept_session_has_them_again_and_its_summary_counts_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    engine, frames = tiny_engine(checkpoint), clip()
    session = engine.open(tmp_path / "s")
    list(session.watch(frames, ahead=True))
    session.close()
    assert summary(tmp_path / "s").keyframes == 4
    for read_only in (True, False):
        again = engine.open(tmp_path / "s", read_only)
        assert kept(again) == wanted() and again.stats.keyframes == 4
        assert again.keyframe_picture(again.keyframes[1])
        again.memory.check_integrity()
        if not read_only:
            more = frames_of(shot(5, 12), 2)
            later = [Frame(f.image, f.pts_seconds + 15.0, f.index) for f in more]
            list(again.watch(later, ahead=True))
            assert kept(again) == [*wanted(), (15.0, "head")]
        again.close()
    assert summary(tmp_path / "s").keyframes == 5


def test_what_is_found_out_about_the_last_frames_is_kept_as_well(
    checkpoint: Path, tmp_path: Path
) -> None:
    """A cut two frames before the end of a live source, which fill the last chunk."""
    frames = frames_of(shot(1, 6) + shot(2, 2), 2)
    session = tiny_engine(checkpoint).open(tmp_path / "s")
    events = list(session.watch(frames))
    assert told(events) == kept(session) == [(0.0, "head"), (3.0, "cut")]
    assert session.memory.num_chunks == 2 and session.stats.keyframes == 2
    session.close()
    again = tiny_engine(checkpoint).open(tmp_path / "s", read_only=True)
    assert kept(again) == [(0.0, "head"), (3.0, "cut")]
    again.close()


def test_in_a_still_stretch_they_wait_for_the_next_chunk(checkpoint: Path, tmp_path: Path) -> None:
    """Two minutes without anything new have keyframes every half minute, and one chunk or three."""
    session = pruning(checkpoint).open(tmp_path / "s")
    frames = [Frame(PICTURES[0], k / 2, k) for k in range(230)]
    events = list(session.watch(frames, ahead=True))
    times = [(0.0, "head"), (30.0, "gap"), (60.0, "gap"), (90.0, "gap"), (114.5, "tail")]
    assert told(events) == kept(session) == times
    assert session.memory.num_chunks == 2
    session.close()
    again = pruning(checkpoint).open(tmp_path / "s")
    assert kept(again) == times
    again.close()


def test_they_are_evicted_with_their_chunks(checkpoint: Path) -> None:
    one = tiny_engine(checkpoint, window_chunks=2).open()
    list(one.watch(clip()))
    room = 3 * one.memory.get([0])[0].memory_bytes
    session = tiny_engine(checkpoint, window_chunks=2, host_bytes=room).open()
    list(session.watch(clip()))
    first = session.memory.first_chunk
    assert 0 < first < session.memory.num_chunks - 2
    assert [k.chunk >= first for k in session.keyframes] == [True] * len(session.keyframes)
    assert 0 < len(session.keyframes) == session.stats.keyframes < 4
    session.memory.check_integrity()


def test_on_the_disk_they_make_room_as_well_and_count_in_the_budget(
    checkpoint: Path, tmp_path: Path
) -> None:
    engine = tiny_engine(checkpoint)
    frames = frames_of([picture for k in range(1, 61) for picture in shot(k, 4)], 2)
    whole = engine.open(tmp_path / "whole")
    list(whole.watch(frames, ahead=True))
    pictures = sum(keyframe.num_bytes for keyframe in whole.keyframes)
    assert len(whole.keyframes) == 60
    num_bytes = whole.stats.disk_bytes
    whole.close()
    small = tiny_engine(checkpoint, disk_bytes=num_bytes // 3, host_bytes=0).open(
        tmp_path / "small"
    )
    list(small.watch(frames, ahead=True))
    assert small.stats.disk_bytes <= num_bytes // 3 and pictures > num_bytes // 20
    first = small.memory.first_chunk
    assert first > 0 and all(keyframe.chunk >= first for keyframe in small.keyframes)
    assert small.keyframe_picture(small.keyframes[0])
    gone = KeyframeRecord(0.0, "head", chunk=0, number=1)
    assert small.keyframe_picture(gone) is None
    small.memory.check_integrity()
    assert small._store is not None
    small._store.check_integrity()
    small.close()
    again = tiny_engine(checkpoint, disk_bytes=num_bytes // 3, host_bytes=0).open(
        tmp_path / "small"
    )
    assert again.memory.first_chunk == first and again.stats.disk_bytes <= num_bytes // 3
    again.memory.check_integrity()
    again.close()


def test_a_chunk_that_fails_leaves_no_keyframe(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = KVMemory._push

    def failing(memory: KVMemory, resident: Any, *given: Any) -> Any:
        pushed = push(memory, resident, *given)
        if resident.meta.index == 4:
            monkeypatch.undo()
            memory._take_back([pushed])
            raise ZeroDivisionError
        return pushed

    monkeypatch.setattr(KVMemory, "_push", failing)
    session = tiny_engine(checkpoint).open()
    with pytest.raises(ZeroDivisionError):
        list(session.watch(clip()))
    assert session.memory.num_chunks == 4
    assert all(keyframe.chunk < 4 for keyframe in session.keyframes)
    session.memory.check_integrity()
