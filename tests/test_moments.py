"""Pictures re-read at random are those that reading in order gives, by every backend."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import decord
import numpy as np
import pytest

from frames import Frame
from streaming.sources.file import FileSource, SourceError
from streaming.sources.moments import BackendName, Moments
from tests.golden import ALL_CLIPS, TICK, Golden, GoldenSet, Recipe, make, read_paint, steady

NOT_FOR_DECORD = {
    "edit list",
    "long-gop ts",
    "variable ts",
    "mpeg4 avi",
    "mpeg4 avi with b-frames",
    "open-gop mp4",
    "hevc 10 bit",
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> GoldenSet:
    return GoldenSet(tmp_path_factory.mktemp("golden"))


def moments_of(clip: Golden) -> list[float]:
    """Every picture in random order, and moments between, before and after them."""
    times = [
        *clip.pts_seconds,
        *(second + 0.011 for second in clip.pts_seconds[::5]),
        -1.0,
        clip.pts_seconds[-1] + 9.0,
    ]
    random.Random(0).shuffle(times)
    return times


def difference(one: Frame, other: Frame) -> float:
    """Mean absolute difference of two pictures, in levels of 255."""
    return float(np.abs(one.image.astype(np.int16) - other.image).mean())


@pytest.mark.parametrize("backend", [None, "seek", "in order"])
@pytest.mark.parametrize("name", ALL_CLIPS)
def test_every_moment_shows_the_right_picture(
    clips: GoldenSet, name: str, backend: BackendName | None
) -> None:
    clip = clips[name]
    wanted = moments_of(clip)
    with Moments(clip.path, backend) as moments:
        frames = moments.at(wanted)
    for second, frame in zip(wanted, frames, strict=True):
        number = clip.number_at(max(second, 0.0))
        assert read_paint(frame.image) == number
        assert frame.pts_seconds == pytest.approx(clip.pts_seconds[number - clip.first], abs=0.0006)
    assert [frame.index for frame in frames] == list(range(len(wanted)))


@pytest.mark.parametrize("name", ALL_CLIPS)
def test_decord_is_used_exactly_where_it_is_right(clips: GoldenSet, name: str) -> None:
    with Moments(clips[name].path) as moments:
        assert moments.backend == ("seek" if name in NOT_FOR_DECORD else "decord")


@pytest.mark.parametrize("name", ["open-gop mp4", "hevc 10 bit"])
def test_decord_alone_would_show_wrong_pictures_of_open_gops(clips: GoldenSet, name: str) -> None:
    reader = decord.VideoReader(str(clips[name].path))
    shown = [read_paint(reader.get_batch([number]).asnumpy()[0]) for number in range(60, 0, -7)]
    assert shown != list(range(60, 0, -7))


def test_decord_alone_would_show_hidden_pictures_of_an_edit_list(clips: GoldenSet) -> None:
    clip = clips["edit list"]
    assert len(decord.VideoReader(str(clip.path))) > len(clip.pts_seconds)


@pytest.mark.parametrize("name", ALL_CLIPS)
def test_both_readers_give_the_same_pixels(clips: GoldenSet, name: str) -> None:
    clip = clips[name]
    frames = list(FileSource(clip.path, fps=3.0).frames())
    with Moments(clip.path) as moments:
        again = moments.at([frame.pts_seconds for frame in frames])
    assert len(frames) >= 4
    for one, other in zip(frames, again, strict=True):
        assert one.pts_seconds == pytest.approx(other.pts_seconds, abs=1e-9)
        assert difference(one, other) < 1.0
    assert difference(frames[0], again[1]) > 5.0, "the measure can tell neighbours apart"


def test_decord_gets_no_file_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    clip = make(tmp_path / "boast.mp4", steady(75, 25), Recipe())
    with Moments(clip.path) as moments:
        assert moments.backend == "decord"
    data = bytearray(clip.path.read_bytes())
    struct.pack_into(">I", data, data.index(b"stts") + 12, 3_000_000_000)
    clip.path.write_bytes(data)
    with Moments(clip.path) as moments:
        assert moments.backend == "seek"
        assert [read_paint(frame.image) for frame in moments.at([2.0, 0.4])] == [50, 10]


def test_two_recordings_in_one_file_are_read_in_order(tmp_path: Path) -> None:
    recipe = Recipe(time_base=TICK)
    first = make(tmp_path / "first.ts", [tick + 900_000 for tick in steady(75, 25, TICK)], recipe)
    second = make(tmp_path / "second.ts", steady(75, 25, TICK), recipe)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.path.read_bytes() + second.path.read_bytes())
    with Moments(joined) as moments:
        assert moments.backend == "in order"
        assert [read_paint(frame.image) for frame in moments.at([4.0, 1.0, 5.96])] == [25, 25, 74]


def test_a_stream_without_times_is_read_in_order(tmp_path: Path) -> None:
    clip = make(tmp_path / "raw.h264", steady(50, 25), Recipe())
    with Moments(clip.path) as moments:
        assert moments.backend == "in order"
        assert [read_paint(frame.image) for frame in moments.at([1.0, 0.2, 1.5])] == [25, 5, 37]


def test_moments_of_what_is_no_video_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(SourceError, match=r"^text.mp4 is not a video file"):
        Moments(tmp_path / "text.mp4")
