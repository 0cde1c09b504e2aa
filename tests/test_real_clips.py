"""Real recordings, with all their faults, are read as their manifest says. They lie beside the
repository.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import decord
import numpy as np
import pytest

from frames import Frame
from streaming.reader import Reader
from streaming.sources.file import FileSource
from streaming.sources.moments import Moments
from streaming.sources.pictures import VideoFile

# name: upright width, height, pictures, seconds (of the manifest)
MANIFEST = {
    "intel_bottle_detection.mp4": (640, 360, 1189, 39.855),
    "intel_car_detection.mp4": (768, 432, 377, 30.16),
    "mdn_pig.webm": (720, 480, 196, 6.533),
    "mdn_crystal.webm": (720, 480, 359, 11.966),
    "derived_toys_sequence.mp4": (720, 480, 780, 26.0),
    "bbb_opening_30s_vp8.webm": (1280, 720, 720, 30.003),
    "jupyter_code_console.mp4": (1280, 720, 686, 22.867),
    "pitivi_one_fps_numbers.mkv": (320, 240, 75, 75.0),
    "nasa_13013_multistream.mp4": (480, 270, 390, 13.013),
    "phone_rotated90_gps.mov": (320, 568, 120, 4.002),
    "flir_thermal_vfr.mp4": (1080, 1440, 84, 11.353),
    "popcorn_theora.ogv": (300, 180, 1340, 64.542),
    "corrupted_h264.mp4": (1280, 720, 49, 5.0),
    "resolution_change.h264": (848, 464, 96, 3.84),
    "discard_first_keyframe.mp4": (64, 64, 25, 1.0),
    "non_zero_start.mp4": (200, 112, 12, 0.4),
}


def difference(one: Frame, other: Frame) -> float:
    """Mean absolute difference of two pictures, in levels of 255."""
    return float(np.abs(one.image.astype(np.int16) - other.image).mean())


def read(path: Path, fps: float = 2.0) -> tuple[list[Frame], list[str]]:
    """The sampled frames, read ahead, and the warnings."""
    source = FileSource(path, fps)
    with Reader(source) as reader:
        return list(reader), source.warnings


@pytest.mark.parametrize("name", MANIFEST)
def test_each_clip_decodes_to_what_its_manifest_states(shared_videos: Path, name: str) -> None:
    width, height, count, seconds = MANIFEST[name]
    with VideoFile(shared_videos / name) as video:
        times = [picture.seconds for picture in video.pictures()]
    info = FileSource(shared_videos / name).info
    assert (info.width, info.height, len(times)) == (width, height, count)
    assert times[0] == 0.0
    assert times == sorted(set(times))
    assert seconds - 1.1 < times[-1] < seconds


@pytest.mark.parametrize(
    "name", ["mdn_frog.webm", "flir_thermal_vfr.mp4", "popcorn_theora.ogv", *list(MANIFEST)[4:10]]
)
def test_moments_of_real_clips_are_those_read_in_order(shared_videos: Path, name: str) -> None:
    frames, warnings = read(shared_videos / name, fps=1.0)
    others = [f"{name} holds 2 videos; that of 480x270 (h264) is watched."]
    assert warnings == (others if "multistream" in name else [])
    wanted = random.Random(0).sample(frames, min(6, len(frames)))
    with Moments(shared_videos / name) as moments:
        again = moments.at([frame.pts_seconds for frame in wanted])
    for one, other in zip(wanted, again, strict=True):
        assert one.pts_seconds == pytest.approx(other.pts_seconds, abs=1e-6)
        assert difference(one, other) < 1.0


def test_a_number_painted_each_second_comes_at_its_second(shared_videos: Path) -> None:
    frames, _ = read(shared_videos / "pitivi_one_fps_numbers.mkv", fps=2.0)
    assert [frame.pts_seconds for frame in frames] == list(range(75))


def test_damage_is_passed_and_told(shared_videos: Path) -> None:
    frames, warnings = read(shared_videos / "corrupted_h264.mp4", fps=10.0)
    assert len(frames) == 49
    assert frames[-1].pts_seconds == pytest.approx(4.9)
    assert warnings[0].startswith(
        ("corrupted_h264.mp4 is damaged at 2.9", "corrupted_h264.mp4 is damaged at 3.")
    )  # to a picture or two, as threads decode ahead


def test_a_damaged_file_is_not_left_to_decord(shared_videos: Path) -> None:
    frames, _ = read(shared_videos / "corrupted_h264.mp4", fps=10.0)
    with Moments(shared_videos / "corrupted_h264.mp4") as moments:
        again = moments.at([frame.pts_seconds for frame in frames])
        assert moments.backend == "seek"
    assert [frame.pts_seconds for frame in again] == [frame.pts_seconds for frame in frames]


def test_a_changed_size_is_kept_and_told(shared_videos: Path) -> None:
    frames, warnings = read(shared_videos / "resolution_change.h264", fps=25.0)
    assert {(frame.width, frame.height) for frame in frames[:49]} == {(848, 464)}
    assert {(frame.width, frame.height) for frame in frames[49:]} == {(424, 232)}
    assert "from 848x464 to 424x232 at 2.0 s" in warnings[-1]


def test_padding_of_rows_is_not_taken_for_picture(shared_videos: Path) -> None:
    with Moments(shared_videos / "black_362s_180p60_av1.mp4") as moments:
        frames = moments.at([0.0, 100.25, 362.7])
    assert max(int(frame.image.max()) for frame in frames) == 0
    assert frames[-1].pts_seconds == pytest.approx(362.7, abs=0.02)


def test_a_phone_clip_stands_upright_as_decord_turns_it(shared_videos: Path) -> None:
    path = shared_videos / "phone_rotated90_gps.mov"
    theirs = decord.VideoReader(str(path)).get_batch([0]).asnumpy()[0].astype(np.int16)
    ours = next(FileSource(path).frames()).image
    assert ours.shape == theirs.shape == (568, 320, 3)
    assert np.abs(ours - theirs).mean() < 1.0
    assert np.abs(ours[::-1, ::-1] - theirs).mean() > 10.0, "turned the other way it would show"


def test_shots_come_back_where_the_edit_put_them(shared_videos: Path) -> None:
    with Moments(shared_videos / "derived_toys_sequence.mp4") as moments:
        rabbit, pig, rabbit_again, rabbit_at_last = moments.at([1.0, 4.0, 10.0, 24.0])
    assert difference(rabbit, rabbit_at_last) < 6.0
    assert difference(rabbit, rabbit_again) < 6.0
    assert difference(rabbit, pig) > 15.0


def test_cuts_fall_on_their_very_picture(shared_videos: Path) -> None:
    name = "sintel_trailer_480p.mp4"
    cuts = json.loads((shared_videos / "truth" / "cuts.json").read_text())[name]["hard_cuts"]
    wanted = [(number + step) / 24 for number, _ in cuts[:4] for step in (-2, -1, 0)]
    with Moments(shared_videos / name) as moments:
        frames = moments.at(wanted)
    for before, last, first in zip(*[iter(frames)] * 3, strict=True):
        assert difference(last, first) > 1.5 * difference(before, last)


def test_a_stretch_of_a_long_film_is_wound_to(shared_videos: Path) -> None:
    source = FileSource(
        shared_videos / "bbb_full_596s_vp9.webm", 1.0, start_seconds=300.0, stop_seconds=303.0
    )
    assert [frame.pts_seconds for frame in source.frames()] == pytest.approx(
        [300.0, 301.0, 302.0], abs=0.002
    )
    assert source.progress < 3000, "of 44,000 packets"
