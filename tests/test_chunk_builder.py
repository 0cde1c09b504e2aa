"""Every frame goes into one chunk, in order; a chunk ends when it is full, covers enough time, or
at a cut; keyframes are found whether or not a chunk waits for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest

from config import MemoryConfig
from frames import Frame
from keyframes.chunk_builder import ChunkBuilder, ChunkFrames, ChunkLimits, build_chunks
from keyframes.cuts import LAG_FRAMES
from keyframes.detector import KeyframeDetector, keyframes_of
from keyframes.frame_diff import measure_frames
from tests.scenery import Picture
from tests.test_detector import frames_of, keyframes, shot


def builder(
    max_frames: int = 8, max_seconds: float = math.inf, at_cuts: bool = False, waits: bool = True
) -> ChunkBuilder:
    limits = ChunkLimits(max_frames, max_seconds, -(-max_frames // 2) if at_cuts else 0)
    return ChunkBuilder(limits, KeyframeDetector(), waits)


def one_by_one(frames: Sequence[Frame], of: ChunkBuilder) -> list[ChunkFrames]:
    """As a live source gives them."""
    found = [chunk for frame in frames for chunk in of.add(measure_frames([frame]))]
    return [*found, *of.finish()]


def lengths(chunks: Sequence[ChunkFrames], frames: Sequence[Frame]) -> list[int]:
    shown = [frame for chunk in chunks for frame in chunk]
    assert [id(frame) for frame in shown] == [id(frame) for frame in frames], "lost or swapped"
    return [len(chunk) for chunk in chunks]


def kinds(chunks: Sequence[ChunkFrames]) -> list[tuple[int, str]]:
    """Number and kind of every keyframe that is told of, late or not."""
    found = []
    for chunk in chunks:
        found += keyframes_of([*chunk.late_keyframes, *chunk.diffs])
    return [(keyframe.index, keyframe.kind) for keyframe in found]


def built(pictures: list[Picture], at_cuts: bool) -> list[int]:
    frames = frames_of(pictures, fps=2)
    chunks = list(build_chunks(frames, builder(at_cuts=at_cuts), measure_frames))
    return lengths(chunks, frames)


def test_a_chunk_ends_at_a_cut_in_its_second_half() -> None:
    assert built(shot(1, 6) + shot(2, 12), at_cuts=True) == [6, 8, 4]
    assert built(shot(1, 6) + shot(2, 12), at_cuts=False) == [8, 8, 2]
    assert built(shot(1, 18), at_cuts=True) == [8, 8, 2], "without a cut they are full"


def test_quick_cuts_do_not_make_tiny_chunks() -> None:
    assert built(shot(1, 2) + shot(2, 14), at_cuts=True) == [8, 8]
    assert max(built(shot(1, 8) + shot(2, 8), at_cuts=True)) == 8


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(
    ("fps", "max_seconds", "expected"),
    [
        (2, 4.0, [8, 8, 4]),
        (2, 3.0, [6, 6, 6, 2]),
        (1 / 60, 8.0, [1] * 20),
        (2, 100.0, [8, 8, 4]),
        (30, 0.1, [3, 3, 3, 3, 3, 3, 2]),
    ],
)
def test_a_chunk_ends_when_it_covers_enough_time(
    fps: float, max_seconds: float, expected: list[int], waits: bool
) -> None:
    """Sixteen frames at two a second are whole with the default."""
    frames = frames_of(shot(1, 20), fps=fps)
    of = builder(max_seconds=max_seconds, waits=waits)
    assert lengths(one_by_one(frames, of), frames) == expected
    default = builder(16, MemoryConfig().max_chunk_seconds)
    halves = frames_of(shot(1, 32), fps=2)
    assert lengths(one_by_one(halves, default), halves) == [16, 16]


def test_a_live_chunk_is_given_with_its_last_frame_and_one_that_waits_a_few_frames_later() -> None:
    frames = frames_of(shot(1, 30), fps=2)
    for waits, later in ((False, 0), (True, LAG_FRAMES)):
        of, num_added = builder(waits=waits), 0
        for frame in frames:
            num_added += 1
            if of.add(measure_frames([frame])):
                break
        assert num_added == 8 + later


@pytest.mark.parametrize("waits", [True, False])
def test_chunks_have_the_keyframes_of_the_stream(waits: bool) -> None:
    frames = frames_of(shot(1, 7) + shot(2, 16) + shot(3, 8) + shot(4, 9), fps=2)
    wanted = [(keyframe.index, keyframe.kind) for keyframe in keyframes(frames, batch=1)]
    assert [kind for _, kind in wanted] == ["head", "cut", "cut", "cut"]
    chunks = one_by_one(frames, builder(waits=waits))
    assert kinds(chunks) == wanted
    assert any(chunk.late_keyframes for chunk in chunks) == (not waits)
    for chunk in chunks:
        assert all(diff.frame.index < chunk[0].index for diff in chunk.late_keyframes)


@pytest.mark.parametrize("waits", [True, False])
def test_a_chunk_that_is_closed_early_loses_nothing_and_its_keyframes_come_later(
    waits: bool,
) -> None:
    frames = frames_of(shot(1, 13) + shot(2, 17), fps=2)
    of, chunks = builder(waits=waits), []
    for frame in frames:
        chunks += of.add(measure_frames([frame]))
        if frame.index in (4, 14):
            chunks += of.close_open()
            assert of.num_open == 0
    chunks += of.finish()
    assert of.num_open == 0
    assert lengths(chunks, frames) == [5, 8, 2, 8, 7]
    assert kinds(chunks) == [(0, "head"), (13, "cut")]
    assert [[diff.frame.index for diff in chunk.late_keyframes] for chunk in chunks].count(
        [13]
    ) == 1


def test_batches_of_frames_give_the_chunks_of_frames_one_by_one() -> None:
    frames = frames_of(shot(1, 6) + shot(2, 12) + shot(3, 9), fps=2)
    for at_cuts in (False, True):
        batched = list(build_chunks(frames, builder(at_cuts=at_cuts), measure_frames))
        alone = one_by_one(frames, builder(at_cuts=at_cuts))
        assert lengths(batched, frames) == lengths(alone, frames)
        assert kinds(batched) == kinds(alone)


def test_frames_that_end_in_an_error_give_the_complete_chunks_first() -> None:
    frames = frames_of(shot(1, 21), fps=2)

    def broken() -> Iterator[Frame]:
        yield from frames
        raise OSError("unplugged")

    chunks: list[ChunkFrames] = []
    with pytest.raises(OSError, match="unplugged"):
        chunks.extend(build_chunks(broken(), builder(), measure_frames))
    assert lengths(chunks, frames[:16]) == [8, 8]
    assert list(build_chunks([], builder(), measure_frames)) == []
