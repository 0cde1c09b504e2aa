"""Parts of a stream end at its cuts where they may, and are never longer than allowed."""

from __future__ import annotations

import pytest

from config import MemoryConfig
from keyframes.borders import mark_cuts, split_at_cuts
from keyframes.cuts import LAG_FRAMES
from streaming.session import in_parts
from tests.scenery import Picture
from tests.test_detector import frames_of, shot


def lengths(pictures: list[Picture], least: int, most: int) -> list[int]:
    frames = frames_of(pictures, fps=2)
    parts = list(split_at_cuts(frames, least, most))
    assert [frame.index for part in parts for frame in part] == list(range(len(frames))), (
        "none is lost or swapped"
    )
    return [len(part) for part in parts]


def test_a_part_ends_at_a_cut_in_its_second_half() -> None:
    assert lengths(shot(1, 6) + shot(2, 12), 4, 8) == [6, 8, 4]
    assert lengths(shot(1, 18), 4, 8) == [8, 8, 2], "without a cut they are full"


def test_quick_cuts_do_not_make_tiny_parts() -> None:
    assert lengths(shot(1, 2) + shot(2, 14), 4, 8) == [8, 8]
    assert max(lengths(shot(1, 8) + shot(2, 8), 4, 8)) == 8


def test_a_part_is_given_as_soon_as_its_border_is_known() -> None:
    frames = frames_of(shot(1, 30))
    taken = []
    next(split_at_cuts((frame for frame in frames if not taken.append(frame.index)), 4, 8))  # type: ignore[func-returns-value]
    assert len(taken) == 8 + LAG_FRAMES
    assert list(mark_cuts([])) == []


def test_a_session_ends_chunks_where_its_settings_say() -> None:
    frames = frames_of(shot(1, 6) + shot(2, 12), fps=2)
    assert [len(part) for part in in_parts(frames, 8)] == [8, 8, 2]
    assert [len(part) for part in in_parts(frames, 8, "cuts")] == [6, 8, 4]
    assert MemoryConfig().borders == "full"
    with pytest.raises(ValueError, match="borders"):
        MemoryConfig(borders="scenes")
