"""Cuts are found and what only looks like one is not; keyframes stand where something is new, and
in long gaps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from frames import Frame
from keyframes.cuts import LAG_FRAMES
from keyframes.detector import Keyframe, KeyframeDetector, keyframes_of
from tests.scenery import Picture, lit, noisy, place, view

FPS = 25


def shot(seed: int, count: int, speed: int = 0) -> list[Picture]:
    """A place seen by a camera that moves `speed` pixels to the right from picture to picture, with
    noise.
    """
    scene = place(seed)
    return [noisy(view(scene, right=speed * k), 1000 * seed + k, 3.0) for k in range(count)]


def frames_of(pictures: Sequence[Picture], fps: float = FPS) -> list[Frame]:
    return [Frame(picture, k / fps, k) for k, picture in enumerate(pictures)]


def keyframes(frames: Sequence[Frame], batch: int = 7, gap_seconds: float = 30.0) -> list[Keyframe]:
    detector = KeyframeDetector(gap_seconds)
    found = [
        keyframe
        for k in range(0, len(frames), batch)
        for keyframe in detector.step(frames[k : k + batch])
    ]
    return found + keyframes_of(detector.flush())


def places_of(pictures: Sequence[Picture], kind: str) -> list[int]:
    return [keyframe.index for keyframe in keyframes(frames_of(pictures)) if keyframe.kind == kind]


def mixed(one: Picture, other: Picture | float, share: float) -> Picture:
    """`share` of the other one."""
    return lit((1 - share) * one.astype(np.float64) + share * np.asarray(other, np.float64))


def test_every_cut_is_found_at_its_first_frame_and_between_them_nothing() -> None:
    pictures = shot(1, 12) + shot(2, 9, speed=4) + shot(3, 20, speed=-3) + shot(1, 12)
    assert places_of(pictures, "cut") == [12, 21, 41]


def test_what_a_camera_does_is_no_cut() -> None:
    scene = place(4)
    shaken = np.random.default_rng(0).integers(-5, 6, (40, 2))
    assert places_of(shot(4, 40, speed=3), "cut") == []
    assert places_of([view(scene, right=int(x), down=int(y)) for x, y in shaken], "cut") == []
    assert places_of(shot(4, 15) + [view(scene, right=33)] * 15, "cut") == [], "a jerk"
    assert places_of(shot(4, 15) + [view(place(5), right=33)] * 15, "cut") == [15]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_flash_is_no_cut_and_gives_no_keyframe(count: int) -> None:
    still = shot(6, 40)
    flashed = [lit(p, shift=220) if 15 <= k < 15 + count else p for k, p in enumerate(still)]
    assert [keyframe.kind for keyframe in keyframes(frames_of(flashed))] == ["head"]


def test_a_flash_over_a_cut_is_one_cut() -> None:
    pictures = shot(6, 15) + [np.full_like(view(place(6)), 255)] * 2 + shot(7, 15)
    assert len(places_of(pictures, "cut")) == 1


def test_a_lamp_switched_on_is_no_cut() -> None:
    dark = [lit(picture, 0.6) for picture in shot(8, 15)]
    assert places_of(dark + shot(8, 15), "cut") == []
    assert places_of(dark + shot(9, 15), "cut") == [15]


def test_a_fade_through_black_gives_one_keyframe_when_the_new_scene_is_there() -> None:
    out = [mixed(picture, 0.0, (k + 1) / 20) for k, picture in enumerate(shot(10, 20))]
    into = [mixed(picture, 0.0, 1 - k / 20) for k, picture in enumerate(shot(11, 20))]
    pictures = shot(10, 20) + out + into + shot(11, 30)
    found = keyframes(frames_of(pictures))
    assert [keyframe.kind for keyframe in found] == ["head", "change"]
    assert 57 <= found[1].index <= 60, "the picture is bright by then"


def test_a_dissolve_gives_one_keyframe_and_no_cut() -> None:
    pairs = zip(shot(12, 25), shot(13, 25), strict=True)
    pictures = shot(12, 20) + [mixed(a, b, k / 25) for k, (a, b) in enumerate(pairs)] + shot(13, 30)
    assert [keyframe.kind for keyframe in keyframes(frames_of(pictures))] == ["head", "change"]


def test_slow_drift_gives_a_keyframe_in_the_end() -> None:
    before, after = view(place(14)), view(place(15))
    drifting = [mixed(before, after, k / 150) for k in range(151)]
    assert "change" in [keyframe.kind for keyframe in keyframes(frames_of(drifting))]
    assert [keyframe.kind for keyframe in keyframes(frames_of(drifting[:1] * 151))] == ["head"]


def test_long_gaps_get_keyframes_and_so_does_the_tail() -> None:
    still = frames_of(shot(16, 1) * 95, fps=1)
    found = keyframes(still, gap_seconds=30.0)
    assert [(keyframe.index, keyframe.kind) for keyframe in found] == [
        (0, "head"),
        (30, "gap"),
        (60, "gap"),
        (90, "gap"),
    ]
    assert [(k.index, k.kind) for k in keyframes(still[:79], gap_seconds=30.0)][-1] == (78, "tail")


def test_a_stream_in_batches_of_any_size_is_decided_as_the_whole() -> None:
    pictures = shot(17, 30, speed=2) + shot(18, 8) + shot(19, 40, speed=-1) + shot(20, 10)
    frames = frames_of(pictures)
    whole = keyframes(frames, batch=len(frames))
    assert len(whole) > 4
    assert keyframes(frames, batch=1) == keyframes(frames, batch=5) == whole
    assert keyframes(frames[:-11]) != whole


def test_decisions_lag_by_so_many_frames_and_no_more() -> None:
    detector = KeyframeDetector()
    frames = frames_of(shot(21, 12) + shot(22, 12))
    for k in range(12 + LAG_FRAMES):
        assert all(keyframe.kind == "head" for keyframe in detector.step(frames[k : k + 1]))
    (cut,) = detector.step(frames[12 + LAG_FRAMES : 13 + LAG_FRAMES])
    assert cut == Keyframe(12, 12 / FPS, "cut")


def test_an_empty_or_very_short_stream_is_no_trouble() -> None:
    assert keyframes([]) == []
    assert [keyframe.kind for keyframe in keyframes(frames_of(shot(23, 1)))] == ["head"]
    assert [keyframe.kind for keyframe in keyframes(frames_of(shot(23, 2) + shot(24, 2)))] == [
        "head",
        "cut",
    ]
    assert KeyframeDetector().step([]) == []


def test_memory_of_a_stream_is_bounded() -> None:
    detector, frames = KeyframeDetector(), frames_of(shot(25, 10))
    for k in range(30):
        detector.step(frames)
        assert len(detector._cuts._run) <= 2 * LAG_FRAMES + 1
        assert detector.num_waiting == LAG_FRAMES, k


def test_a_gap_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="gap_seconds"):
        KeyframeDetector(0.0)
