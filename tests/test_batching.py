"""Chunks that share a pass: a fixed amount of work; they become what they are one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config import PruneConfig, ReuseConfig
from errors import Notice
from frames import Frame
from memory.kv_memory import KVMemory
from models.loading import load
from models.pixels import PixelSpec, fit_size
from models.qwen3_vl import Qwen3VL
from models.video_llm import PrefillRequest, num_visual_tokens
from streaming.batching import BATCH_BYTES, BATCH_FRAMES, PASS_TOKENS_CPU, batch_chunks
from streaming.engine import Engine
from streaming.events import Keyframe, Thumbnail, Watched
from streaming.session import Session
from tests.tiny import noise_frames
from tests.watching import tiny_engine

TOLERANCE = 1e-4  # positions are farther from 0, and rotations rounded there


def parts(count: int) -> Iterator[list[Frame]]:
    return ([frame] for frame in noise_frames(count, 2, 2))


def sizes(count: int, max_chunks: int, tokens_per_part: int) -> list[int]:
    """How many of `count` parts go together, batch by batch."""
    batches = batch_chunks(parts(count), max_chunks, lambda part: tokens_per_part)
    return [len(batch) for batch in batches]


def test_the_first_part_goes_alone_and_the_others_together_up_to_the_maximum() -> None:
    assert sizes(20, max_chunks=8, tokens_per_part=1) == [1, 8, 8, 3]
    assert sizes(4, max_chunks=1, tokens_per_part=1) == [1, 1, 1, 1]
    assert sizes(0, max_chunks=8, tokens_per_part=1) == []


def test_a_batch_has_no_more_tokens_than_a_pass_may_have() -> None:
    assert sizes(9, max_chunks=8, tokens_per_part=PASS_TOKENS_CPU // 4) == [1, 4, 4]
    assert sizes(9, max_chunks=8, tokens_per_part=PASS_TOKENS_CPU // 4 + 1) == [1, 3, 3, 2]
    assert sizes(3, max_chunks=8, tokens_per_part=PASS_TOKENS_CPU // 2 + 1) == [1, 1, 1]


def test_a_part_larger_than_a_pass_goes_alone() -> None:
    assert sizes(3, max_chunks=8, tokens_per_part=5 * PASS_TOKENS_CPU) == [1, 1, 1]


def test_the_limit_follows_parts_that_change_their_size() -> None:
    """After the large parts have passed, small ones share a pass again."""
    num_tokens = iter([1, 1, PASS_TOKENS_CPU, 1, 1, 1])
    batches = batch_chunks(parts(6), 8, lambda part: next(num_tokens))
    assert [len(batch) for batch in batches] == [1, 2, 3]


def test_all_parts_come_in_order() -> None:
    for max_chunks in (1, 8):
        batches = batch_chunks(parts(20), max_chunks, len)
        assert [part[0].index for batch in batches for part in batch] == list(range(20))


@pytest.mark.parametrize(("share", "expected"), [(1, [1, 1, 1, 1]), (2, [1, 2, 1]), (3, [1, 3])])
def test_large_pictures_are_not_gathered(share: int, expected: list[int]) -> None:
    """share: pictures that fill the limit. One that fills it alone waits for no other."""
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (BATCH_BYTES // share // 6, 2, 3))
    batches = batch_chunks(iter([[Frame(image, k / 2, k)] for k in range(4)]), 8, len)
    assert [len(batch) for batch in batches] == expected


def test_no_part_is_asked_for_before_it_is_needed() -> None:
    """A batch that is full is yielded at once, without a look at what comes after it."""
    asked: list[int] = []

    def counted() -> Iterator[list[Frame]]:
        for part in parts(9):
            asked.append(part[0].index)
            yield part

    batches = batch_chunks(counted(), 8, lambda part: PASS_TOKENS_CPU // 2)
    next(batches)
    assert asked == [0]
    next(batches)
    assert asked == [0, 1, 2]


def test_what_came_before_an_error_comes_first() -> None:
    def broken() -> Iterator[list[Frame]]:
        yield from parts(5)
        raise ZeroDivisionError

    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(part[0].index for batch in batch_chunks(broken(), 8, len) for part in batch)
    assert seen == list(range(5))


def tokens_of_chunk(model: Any, num_frames: int, height: int, width: int) -> int:
    image = np.zeros((height, width, 3), np.uint8)
    return num_visual_tokens(model, [Frame(image, k / 2, k) for k in range(num_frames)])


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32), (64, 64), (480, 640), (7, 100)])
def test_tokens_counted_by_size_are_those_the_tower_makes(
    tiny: Qwen3VL, height: int, width: int
) -> None:
    for num_frames in (1, 4, 5):
        groups = tiny.encode(noise_frames(num_frames, height, width))
        made = sum(len(group.embeddings) for group in groups)
        assert tokens_of_chunk(tiny, num_frames, height, width) == made


def test_eight_chunks_of_the_embedded_model_share_a_pass_and_those_of_a_large_one_go_alone() -> (
    None
):
    """By the tokens of a chunk: 8 frames of the embedded model, 16 of a Qwen3-VL as released."""
    demo = load("demo")
    assert 8 * tokens_of_chunk(demo, 8, 256, 256) <= PASS_TOKENS_CPU
    assert BATCH_FRAMES == 8 * 8
    released = PixelSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
    rows, columns = fit_size(448, 448, released)
    assert 8 * (rows * columns // released.factor**2) > PASS_TOKENS_CPU


def watched(
    engine: Engine, frames: Sequence[Frame], ahead: bool, folder: Path | None = None
) -> tuple[Session, Any]:
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


def keyframes_of(told: Sequence[Any]) -> list[tuple[float, str]]:
    return [(event.pts_seconds, event.kind) for event in told if isinstance(event, Keyframe)]


def without_keyframes(told: Sequence[Any]) -> list[Any]:
    """A live source tells of them a few frames later."""
    return [event for event in told if not isinstance(event, Keyframe)]


@pytest.mark.parametrize(
    ("prune", "reuse", "window"),
    [
        ("none", "none", 1),
        ("none", "none", 3),
        ("novelty", "none", 2),
        ("novelty", "novelty", 2),
        ("none", "novelty", 2),
    ],
)
def test_a_session_remembers_what_it_would_one_by_one(
    checkpoint: Path,
    tmp_path: Path,
    prune: str,
    reuse: str,
    window: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the window is larger than what a new chunk sees of it, or smaller."""
    engine = tuned(tiny_engine(checkpoint, window_chunks=window), prune, reuse)
    frames, batches = scenes(61), []
    prefill = type(engine.model).prefill_batch

    def counted(model: Any, requests: Sequence[PrefillRequest]) -> Any:
        batches.append(sum(len(request.runs) for request in requests))
        return prefill(model, requests)

    monkeypatch.setattr(type(engine.model), "prefill_batch", counted)
    # what is reused depends on keyframes, which a live chunk does not wait for
    with monkeypatch.context() as patched:
        patched.setattr("streaming.session.BATCH_FRAMES", 1)
        one, told_one = watched(engine, frames, ahead=reuse != "none")
    assert set(batches) == {1}
    many, told_many = watched(engine, frames, ahead=True, folder=tmp_path / "kept")
    assert max(batches) >= 4
    assert keyframes_of(told_one) == keyframes_of(told_many) and len(keyframes_of(told_one)) > 3
    told_one, told_many = without_keyframes(told_one), without_keyframes(told_many)
    assert [(type(a), getattr(a, "pts_seconds", None)) for a in told_one] == [
        (type(a), getattr(a, "pts_seconds", None)) for a in told_many
    ]
    for a, b in zip(told_one, told_many, strict=True):
        if isinstance(a, Watched):
            same = ("frames_read", "chunks", "tokens", "visual_tokens", "pruned_tokens")
            assert [getattr(a.stats, name) for name in same] == [
                getattr(b.stats, name) for name in same
            ]
    assert (sum(b.stats.disk_bytes > 0 for b in told_many if isinstance(b, Watched))) == 16
    assert one.memory.spans() == many.memory.spans() and one.memory.num_chunks > 6
    numbers = range(one.memory.num_chunks)
    for ours, alone in zip(many.memory.get(numbers), one.memory.get(numbers), strict=True):
        assert ours.group_starts == alone.group_starts
        assert float((ours.keys - alone.keys).abs().max()) < TOLERANCE
        assert float((ours.values - alone.values).abs().max()) < TOLERANCE
    many.memory.check_integrity()
    assert many.seen_seconds == one.seen_seconds == 30.0


def test_a_memory_that_fills_up_within_a_batch_forgets_what_it_would_one_by_one(
    checkpoint: Path,
) -> None:
    one, _ = watched(tiny_engine(checkpoint, window_chunks=2), noise_frames(80), ahead=False)
    room = 7 * one.memory.get([0])[0].memory_bytes
    engine = tiny_engine(checkpoint, window_chunks=2, host_bytes=room)
    alone, told_alone = watched(engine, noise_frames(80), ahead=False)
    session, told = watched(engine, noise_frames(80), ahead=True)
    notices = [event for event in told if isinstance(event, Notice)]
    assert len(notices) == 1 and "are forgotten" in notices[0].text
    assert len([event for event in told_alone if isinstance(event, Notice)]) == 1
    assert session.memory.spans() == alone.memory.spans() and session.memory.first_chunk > 8
    assert (
        session.stats.forgotten_chunks == alone.stats.forgotten_chunks == session.memory.first_chunk
    )
    assert session.stats.chunks == alone.stats.chunks == 20
    assert sum(isinstance(event, Watched) for event in told) == session.stats.chunks
    assert sum(isinstance(event, Thumbnail) for event in told) == session.stats.chunks
    session.memory.check_integrity()


def test_what_was_remembered_before_an_error_is_told(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = KVMemory._push

    def failing(memory: KVMemory, resident: Any, *given: Any) -> Any:
        if resident.meta.index == 5:  # the fifth of the second batch
            raise ZeroDivisionError
        return push(memory, resident, *given)

    monkeypatch.setattr(KVMemory, "_push", failing)
    session, told = tiny_engine(checkpoint).open(), []
    with pytest.raises(ZeroDivisionError):
        for event in session.watch(noise_frames(80), ahead=True):
            told.append(event)
    assert sum(isinstance(event, Watched) for event in told) == session.stats.chunks == 5
    session.memory.check_integrity()


def test_a_run_is_the_same_bit_by_bit_whatever_the_clock_says(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine where every step takes ten seconds, and on one where none takes any."""
    runs = []
    for step_seconds in (0.0, 10.0):
        clock = count(0.0, step_seconds)
        monkeypatch.setattr("time.perf_counter", lambda clock=clock: next(clock))
        monkeypatch.setattr("time.monotonic", lambda clock=clock: next(clock))
        session, events = watched(tiny_engine(checkpoint), noise_frames(80), ahead=True)
        monkeypatch.undo()
        chunks = session.memory.get(range(session.memory.num_chunks))
        runs.append((chunks, [type(event) for event in events], session.stats.watch_seconds))
    (quick, quick_events, quick_seconds), (slow, slow_events, slow_seconds) = runs
    assert slow_seconds > 100 > quick_seconds == 0, "the clock was theirs"
    assert quick_events == slow_events and len(quick) == len(slow) == 20
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(quick, slow, strict=True))


def test_a_live_source_is_never_waited_for(checkpoint: Path) -> None:
    """Without `ahead` a chunk is remembered and told of although no next frame comes before it."""
    told = threading.Semaphore(0)

    def live() -> Iterator[Frame]:
        for frame in noise_frames(24):
            if frame.index and frame.index % 4 == 0:
                assert told.acquire(timeout=60), "the chunk before was held back"
            yield frame

    session, num_chunks = tiny_engine(checkpoint).open(), 0
    for event in session.watch(live()):
        if isinstance(event, Watched):
            num_chunks += 1
            told.release()
    assert num_chunks == 6


def test_a_file_is_read_ahead(checkpoint: Path) -> None:
    num_asked = 0

    def file() -> Iterator[Frame]:
        nonlocal num_asked
        for frame in noise_frames(24):
            num_asked += 1
            yield frame

    session = tiny_engine(checkpoint).open()
    events = session.watch(file(), ahead=True)
    told = [num_asked for event in events if isinstance(event, Watched)]
    assert told == [8, 24, 24, 24, 24, 24]


def test_carriers_are_known_only_behind_chunks_in_memory(checkpoint: Path) -> None:
    """With them chunks go one by one, whatever is allowed."""
    engine = tiny_engine(checkpoint, window_chunks=2, carrier_tokens=32)
    frames = noise_frames(48)
    one, _ = watched(engine, frames, ahead=False)
    many, _ = watched(engine, frames, ahead=True)
    for a, b in zip(one.memory.get(range(12)), many.memory.get(range(12)), strict=True):
        assert float((a.keys - b.keys).abs().max()) < TOLERANCE
    assert 2 * engine.config.memory.chunk_frames <= BATCH_FRAMES
