"""Chunks taken through the model together: as many as are quick, and the memory they make is that of one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streaming.session as session_module
from config import PruneConfig, ReuseConfig
from streaming.ahead import AHEAD_BYTES, AHEAD_FRAMES, together
from streaming.engine import Engine
from streaming.events import Notice, Thumbnail, Watched
from streaming.frames import Frame
from streaming.session import Session
from tests.tiny import noise_frames
from tests.watching import tiny_engine

TOLERANCE = 1e-4  # positions are farther from 0, and rotations rounded there
SLOW_SECONDS = 0.05


def parts(count: int) -> Iterator[list[Frame]]:
    return ([frame] for frame in noise_frames(count, 2, 2))


def test_batches_grow_to_what_takes_half_of_the_time_and_shrink_where_they_take_longer() -> None:
    sizes = []
    for number, batch in enumerate(together(parts(40), most=8, seconds=SLOW_SECONDS)):
        sizes.append(len(batch))
        if number in (4, 5):
            time.sleep(1.2 * SLOW_SECONDS)
    assert sizes == [1, 8, 8, 8, 8, 3, 1, 3]


def test_all_parts_come_in_order_and_one_by_one_where_that_is_asked_for() -> None:
    for most in (1, 8):
        batches = list(together(parts(20), most))
        assert [part[0].index for batch in batches for part in batch] == list(range(20))
        assert max(map(len, batches)) == most


def test_parts_that_are_slow_to_come_are_not_waited_for() -> None:
    def slowly() -> Iterator[list[Frame]]:
        for part in parts(6):
            time.sleep(1.1 * SLOW_SECONDS)
            yield part

    assert [len(batch) for batch in together(slowly(), most=8, seconds=SLOW_SECONDS)] == [1] * 6


def test_large_pictures_are_not_gathered() -> None:
    image = np.zeros((1, 1, 3), np.uint8)
    large = np.broadcast_to(image, (1 + AHEAD_BYTES // 6, 2, 3))
    batches = together(iter([[Frame(large, k / 2, k)] for k in range(4)]), most=8, seconds=60)
    assert [len(batch) for batch in batches] == [1] * 4


def test_what_came_before_an_error_comes_first() -> None:
    def broken() -> Iterator[list[Frame]]:
        yield from parts(5)
        raise ZeroDivisionError

    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(part[0].index for batch in together(broken(), most=8) for part in batch)
    assert seen == list(range(5))


def watched(engine: Engine, frames: Sequence[Frame], ahead: bool, folder: Path | None = None) -> tuple[Session, Any]:
    session = engine.open(folder)
    return session, list(session.watch(frames, ahead))


def scenes(count: int) -> list[Frame]:
    """Pictures that stand for a while, some with a little that is new."""
    pictures = noise_frames(7)
    frames = []
    for k in range(count):
        image = pictures[k // 9 % 7].image.copy()
        if k % 5 == 4:
            image[:8, :8] = 255
        frames.append(Frame(image, k / 2, k))
    return frames


def tuned(engine: Engine, prune: str, reuse: str) -> Engine:
    engine.config = replace(engine.config, prune=PruneConfig(prune, 0.5), reuse=ReuseConfig(reuse))
    return engine


@pytest.mark.parametrize(
    ("prune", "reuse", "window"),
    [("none", "none", 1), ("none", "none", 3), ("novelty", "none", 2), ("novelty", "novelty", 2), ("none", "keys", 2)],
)
def test_a_session_remembers_what_it_would_one_by_one(
    checkpoint: Path, tmp_path: Path, prune: str, reuse: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the window is larger than what a new chunk sees of it, or smaller."""
    engine = tuned(tiny_engine(checkpoint, window_chunks=window), prune, reuse)
    frames, batches = scenes(61), []
    prefill = type(engine.model).prefill_together

    def counted(model: Any, runs: Sequence[Any], *given: Any) -> Any:
        batches.append(len(runs))
        return prefill(model, runs, *given)

    monkeypatch.setattr(type(engine.model), "prefill_together", counted)
    monkeypatch.setattr(session_module, "together", lambda parts, most: together(parts, most, seconds=60))
    one, told_one = watched(engine, frames, ahead=False)
    assert set(batches) == {1}
    many, told_many = watched(engine, frames, ahead=True, folder=tmp_path / "kept")
    assert max(batches) >= 4
    assert [(type(a), getattr(a, "pts_seconds", None)) for a in told_one] == [
        (type(a), getattr(a, "pts_seconds", None)) for a in told_many
    ]
    for a, b in zip(told_one, told_many, strict=True):
        if isinstance(a, Watched):
            same = ("frames_read", "chunks", "tokens", "visual_tokens", "pruned_tokens")
            assert [getattr(a.stats, name) for name in same] == [getattr(b.stats, name) for name in same]
    assert (sum(b.stats.disk_bytes > 0 for b in told_many if isinstance(b, Watched))) == 16
    assert one.memory.spans() == many.memory.spans() and one.memory.num_chunks > 6
    numbers = range(one.memory.num_chunks)
    for ours, alone in zip(many.memory.get(numbers), one.memory.get(numbers), strict=True):
        assert ours.group_starts == alone.group_starts
        assert float((ours.keys - alone.keys).abs().max()) < TOLERANCE
        assert float((ours.values - alone.values).abs().max()) < TOLERANCE
    many.memory.check_integrity()
    assert many.seen_seconds == one.seen_seconds == 30.0


def test_a_memory_that_fills_up_within_a_batch_keeps_what_came_before(checkpoint: Path) -> None:
    one, _ = watched(tiny_engine(checkpoint, window_chunks=2), noise_frames(80), ahead=False)
    room = 7 * one.memory.get([0])[0].memory_bytes
    engine = tiny_engine(checkpoint, window_chunks=2, host_bytes=room)
    alone, told_alone = watched(engine, noise_frames(80), ahead=False)
    session, told = watched(engine, noise_frames(80), ahead=True)
    assert isinstance(told[-1], Notice) and told[-1] == told_alone[-1]
    assert session.stats.chunks == alone.stats.chunks < 20
    assert sum(isinstance(event, Watched) for event in told) == session.stats.chunks
    assert sum(isinstance(event, Thumbnail) for event in told) == session.stats.chunks
    session.memory.check_integrity()


def test_what_was_remembered_before_an_error_is_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Session._append

    def failing(session: Session, chunk: Any, *given: Any) -> None:
        if chunk.index == 5:  # the third of the third batch
            raise ZeroDivisionError
        append(session, chunk, *given)

    monkeypatch.setattr(Session, "_append", failing)
    session, told = tiny_engine(checkpoint).open(), []
    with pytest.raises(ZeroDivisionError):
        for event in session.watch(noise_frames(80), ahead=True):
            told.append(event)
    assert sum(isinstance(event, Watched) for event in told) == session.stats.chunks == 5


def test_carriers_are_known_only_behind_chunks_in_memory(checkpoint: Path) -> None:
    """With them chunks go one by one, whatever is allowed."""
    engine = tiny_engine(checkpoint, window_chunks=2, carrier_tokens=32)
    frames = noise_frames(48)
    one, _ = watched(engine, frames, ahead=False)
    many, _ = watched(engine, frames, ahead=True)
    for a, b in zip(one.memory.get(range(12)), many.memory.get(range(12)), strict=True):
        assert float((a.keys - b.keys).abs().max()) < TOLERANCE
    assert 2 * engine.config.memory.chunk_frames <= AHEAD_FRAMES
