"""Files are sampled by time, each picture the right one; bad ones are refused in a sentence,
damaged ones used up.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from frames import ROUNDING_SECONDS, Frame, Sampler
from streaming.sources.clock import Clock
from streaming.sources.display import upright
from streaming.sources.file import FileSource, SourceError
from streaming.sources.pictures import VideoFile
from tests.golden import (
    ALL_CLIPS,
    ORDERED,
    TICK,
    Golden,
    GoldenSet,
    Recipe,
    make,
    paint,
    read_paint,
    steady,
)

EVERY_PICTURE = 100.0  # a rate above every golden clip's


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> GoldenSet:
    return GoldenSet(tmp_path_factory.mktemp("golden"))


def numbers(frames: list[Frame]) -> list[int]:
    return [read_paint(frame.image) for frame in frames]


def assert_true(frames: list[Frame], clip: Golden) -> None:
    """Each frame wears the number that the clip shows from its time on."""
    for frame, number in zip(frames, numbers(frames), strict=True):
        assert number == clip.number_at(frame.pts_seconds + 0.0006)
        assert frame.pts_seconds == pytest.approx(clip.pts_seconds[number - clip.first], abs=0.0006)
    assert [frame.index for frame in frames] == list(range(len(frames)))


@pytest.mark.parametrize("name", ["open-gop mp4", "slides"])
def test_a_skim_reads_the_keyframes_alone_each_with_its_true_time(
    clips: GoldenSet, name: str
) -> None:
    clip = clips[name]
    frames = list(FileSource(clip.path, EVERY_PICTURE, only_keyframes=True).frames())
    assert_true(frames, clip)
    every = {"open-gop mp4": 12, "slides": 2}[name]
    assert numbers(frames) == list(range(0, len(clip.pts_seconds), every))
    assert len(list(FileSource(clip.path, EVERY_PICTURE).frames())) == len(clip.pts_seconds)


def test_of_many_keyframes_a_skim_decodes_those_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make(tmp_path / "a.mp4", steady(75, 25), Recipe(gop=1))
    decode, decoded = VideoFile._decode, list[object]()

    def counting(file: VideoFile, packet: Any) -> Any:
        decoded.extend([packet] if packet else [])
        return decode(file, packet)

    monkeypatch.setattr(VideoFile, "_decode", counting)
    found, counts = [], []
    for skims in (False, True):
        decoded.clear()
        found.append(list(FileSource(clip.path, 5.0, only_keyframes=skims).frames()))
        counts.append(len(decoded))
    assert numbers(found[0]) == numbers(found[1]) == list(range(0, 75, 5))
    assert counts[0] - counts[1] == 75 - 15  # both look at a few to find out what the file is


@pytest.mark.parametrize("name", ALL_CLIPS)
def test_every_picture_is_read_once_with_its_true_time(clips: GoldenSet, name: str) -> None:
    clip = clips[name]
    source = FileSource(clip.path, EVERY_PICTURE)
    frames = list(source.frames())
    assert_true(frames, clip)
    assert len(frames) == len(clip.pts_seconds)
    assert source.warnings == []


@pytest.mark.parametrize("fps", [2.0, 7.3, 0.9])
@pytest.mark.parametrize("name", ALL_CLIPS)
def test_a_sample_is_the_first_picture_at_or_after_each_tick(
    clips: GoldenSet, name: str, fps: float
) -> None:
    clip = clips[name]
    frames = list(FileSource(clip.path, fps).frames())
    assert_true(frames, clip)
    ticks = [tick / fps for tick in range(math.floor(clip.pts_seconds[-1] * fps) + 1)]
    due = {
        next(
            place
            for place, second in enumerate(clip.pts_seconds)
            if second >= tick - ROUNDING_SECONDS
        )
        for tick in ticks
    }
    assert [number - clip.first for number in numbers(frames)] == sorted(due)


def test_two_frames_a_second_of_a_constant_rate_are_every_fifteenth(clips: GoldenSet) -> None:
    frames = list(FileSource(clips["constant mp4"].path).frames())
    assert numbers(frames) == [0, 15, 30, 45, 60, 75]
    assert [frame.pts_seconds for frame in frames] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_counting_pictures_would_be_wrong_where_the_rate_varies(clips: GoldenSet) -> None:
    clip = clips["variable mp4"]
    rate = FileSource(clip.path).info.rate
    errors = [abs(place / rate - second) for place, second in enumerate(clip.pts_seconds)]
    assert max(errors) > 1.0, "else this clip could not tell index / fps from true times"


def test_slides_slower_than_the_rate_are_not_repeated(clips: GoldenSet) -> None:
    frames = list(FileSource(clips["slides"].path, fps=2.0).frames())
    assert [frame.pts_seconds for frame in frames] == [0.0, 1.0, 4.0, 4.7, 9.0]


@pytest.mark.parametrize(
    "name", ["constant mp4", "variable mkv", "long-gop ts", "edit list", "hevc 10 bit"]
)
@pytest.mark.parametrize("start_seconds", [1.0, 1.7])
def test_a_stretch_keeps_the_times_of_the_whole(
    clips: GoldenSet, name: str, start_seconds: float
) -> None:
    clip = clips[name]
    frames = list(FileSource(clip.path, EVERY_PICTURE, start_seconds, stop_seconds=2.5).frames())
    assert_true(frames, clip)
    wanted = [
        place for place, second in enumerate(clip.pts_seconds) if start_seconds <= second < 2.5
    ]
    assert [number - clip.first for number in numbers(frames)] == wanted


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_a_late_start_is_found_by_winding(tmp_path: Path, suffix: str) -> None:
    recipe = Recipe("mpeg4" if suffix == "avi" else "libx264", gop=25, time_base=Fraction(1, 25))
    clip = make(tmp_path / f"clip.{suffix}", steady(500, 25, recipe.time_base), recipe)
    frames = list(FileSource(clip.path, 5.0, start_seconds=12.0, stop_seconds=14.0).frames())
    assert_true(frames, clip)
    assert numbers(frames) == list(range(300, 350, 5))


def test_a_start_beyond_the_end_is_an_error(clips: GoldenSet) -> None:
    with pytest.raises(SourceError, match=r"shows nothing from 100 s on"):
        list(FileSource(clips["constant mp4"].path, start_seconds=100.0).frames())


def test_a_closed_source_ends(clips: GoldenSet) -> None:
    source = FileSource(clips["constant mp4"].path, EVERY_PICTURE)
    frames = source.frames()
    next(frames)
    source.close()
    assert len(list(frames)) <= 1


def test_the_info_says_what_the_file_is(clips: GoldenSet) -> None:
    info = FileSource(clips["late mkv"].path).info
    assert (info.width, info.height, info.codec, info.hdr, info.is_turned) == (
        160,
        96,
        "h264",
        None,
        False,
    )
    assert info.start_seconds == pytest.approx(8.333)
    assert info.duration_seconds == pytest.approx(3.0, abs=0.05)
    turned = FileSource(clips["turned 90"].path).info
    assert (turned.width, turned.height, turned.is_turned) == (160, 96, True)


def test_hdr_is_read_with_a_warning(tmp_path: Path) -> None:
    options = {
        "x265-params": "log-level=none:transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"
    }
    clip = make(
        tmp_path / "hdr.mp4", steady(10, 10), Recipe("libx265", "yuv420p10le", options=options)
    )
    assert FileSource(clip.path).warnings == [
        "hdr.mp4 is HDR (PQ); its colours are read without tone mapping."
    ]


def test_a_stream_without_times_follows_its_nominal_rate(tmp_path: Path) -> None:
    clip = make(tmp_path / "raw.h264", steady(50, 25), Recipe(options=ORDERED))
    source = FileSource(clip.path, fps=5.0)
    frames = list(source.frames())
    assert numbers(frames) == list(range(0, 50, 5))
    assert [frame.pts_seconds for frame in frames] == pytest.approx(
        [tick / 5 for tick in range(10)]
    )
    assert source.warnings == ["raw.h264 carries no times; 25 pictures a second are assumed."]


def test_two_recordings_in_one_file_are_read_on(tmp_path: Path) -> None:
    recipe = Recipe(time_base=TICK)
    first = make(tmp_path / "first.ts", [tick + 900_000 for tick in steady(75, 25, TICK)], recipe)
    second = make(tmp_path / "second.ts", steady(75, 25, TICK), recipe)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.path.read_bytes() + second.path.read_bytes())
    source = FileSource(joined, fps=25.0)
    frames = list(source.frames())
    assert numbers(frames) == [*range(75), *range(75)]
    assert [frame.pts_seconds for frame in frames] == pytest.approx(
        [place / 25 for place in range(150)], abs=0.01
    )
    assert source.warnings == ["The times of joined.ts begin anew at 3.0 s; we count on."]
    alone, both = (
        list(FileSource(path, 25.0, only_keyframes=True).frames()) for path in (second.path, joined)
    )
    assert numbers(both) == 2 * numbers(alone) and len(alone) > 1


# Cut and damaged files


def noisy(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The paint with a little noise, so that every picture weighs something."""
    noise = np.random.default_rng(index).integers(-12, 12, (96, 160, 3))
    return (paint(index).astype(np.int16) + noise).clip(0, 255).astype(np.uint8)


def cut(clip: Golden, part: float) -> Path:
    """Throw away the end of the file."""
    data = clip.path.read_bytes()
    clip.path.write_bytes(data[: int(len(data) * part)])
    return clip.path


CUT_CLIPS = {
    "cut.mp4": {"movflags": "faststart"},
    "pieces.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "cut.mkv": {},
    "cut.ts": {},
    "cut.avi": {},
}


@pytest.mark.parametrize("name", CUT_CLIPS)
def test_a_truncated_file_is_used_up_to_the_damage(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    recipe = Recipe(codec, time_base=Fraction(1, 25), draw=noisy, container_options=CUT_CLIPS[name])
    clip = make(tmp_path / name, steady(250, 25, recipe.time_base), recipe)
    assert len(list(FileSource(clip.path, EVERY_PICTURE).frames())) == 250
    source = FileSource(cut(clip, 0.601), EVERY_PICTURE)
    frames = list(source.frames())
    assert_true(frames[:-1], clip)  # the last one may be half a picture
    assert 120 < len(frames) < 180
    assert any(
        f"{name} breaks off at {frames[-1].pts_seconds:.1f} s" in warning
        for warning in source.warnings
    )


def test_a_recording_without_its_index_is_refused(tmp_path: Path) -> None:
    clip = make(tmp_path / "phone.mp4", steady(100, 25), Recipe(draw=noisy))
    with pytest.raises(SourceError, match=r"^phone.mp4 was cut off before its index was written"):
        FileSource(cut(clip, 0.5))


def test_a_recording_cut_inside_its_index_is_refused_as_cut(tmp_path: Path) -> None:
    options = {"movflags": "faststart"}
    recipe = Recipe(draw=noisy, container_options=options)
    clip = make(tmp_path / "phone.mp4", steady(100, 25), recipe)
    data = clip.path.read_bytes()
    clip.path.write_bytes(data[: data.index(b"stsz")])
    with pytest.raises(SourceError, match=r"^phone.mp4 was cut off before its index was written"):
        FileSource(clip.path)


def test_damage_in_the_middle_is_passed_with_a_warning_that_says_where(tmp_path: Path) -> None:
    clip = make(tmp_path / "scratched.mp4", steady(250, 25), Recipe(gop=25, draw=noisy))
    with av.open(str(clip.path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(clip.path.read_bytes())
    for packet in packets[104:107]:
        assert packet.pos is not None
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    clip.path.write_bytes(data)
    source = FileSource(clip.path, EVERY_PICTURE)
    frames = list(source.frames())
    assert (
        source.warnings[0] == "scratched.mp4 is damaged at 4.2 s; what could be decoded was used."
    )
    whole = [frame for frame in frames if not 4.1 < frame.pts_seconds < 5.0]
    assert_true(
        [Frame(frame.image, frame.pts_seconds, place) for place, frame in enumerate(whole)], clip
    )
    assert numbers(whole) == [*range(103), *range(125, 250)]


@pytest.mark.parametrize(
    "name", ["variable mp4", "variable mkv", "variable vp9", "long-gop ts", "mpeg4 avi"]
)
def test_whatever_bytes_are_wrong_the_file_is_read_or_refused(
    tmp_path: Path, clips: GoldenSet, name: str
) -> None:
    whole = clips[name].path.read_bytes()
    path = tmp_path / clips[name].path.name
    outcomes = set()
    for seed in range(12):
        dice = random.Random(seed)
        data = bytearray(whole)
        for _ in range(dice.choice([3, 30, 300])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        try:
            source = FileSource(path, fps=3.0)
            times = [frame.pts_seconds for frame in source.frames()]
            assert times == sorted(set(times))
            outcomes.add("read with a warning" if source.warnings else "read")
        except SourceError:
            outcomes.add("refused")
    assert len(outcomes) > 1, "the dice hit harmless bytes only"


def test_an_index_that_promises_too_much_ends_as_damage(
    clips: GoldenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[float] = []
    monkeypatch.setattr("streaming.sources.pictures._size_of", lambda path, otherwise: 10)
    with VideoFile(clips["constant mp4"].path, on_damage=places.append) as video:
        assert len(list(video.pictures())) <= 10
    assert len(places) == 1


def test_a_title_that_is_not_utf8_is_no_obstacle(tmp_path: Path) -> None:
    clip = make(tmp_path / "titled.mkv", steady(10, 25), Recipe())
    data = clip.path.read_bytes()
    assert b"Lavf" in data
    clip.path.write_bytes(data.replace(b"Lavf", b"L\xe9vf"))
    assert len(list(FileSource(clip.path, EVERY_PICTURE).frames())) == 10


# Bad input


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 16_000), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def no_size(path: Path) -> None:
    """Raw pictures whose header says 0 x 0."""
    recipe = Recipe("rawvideo", "bgr24", time_base=Fraction(1, 25))
    data = bytearray(make(path, steady(3, 25, recipe.time_base), recipe).path.read_bytes())
    header = data.index(b"strf") + 8
    data[header + 4 : header + 12] = bytes(8)
    path.write_bytes(data)


def giant(path: Path) -> None:
    """Raw pictures whose header says 16,000 x 16,000."""
    recipe = Recipe("rawvideo", "bgr24", time_base=Fraction(1, 25))
    data = bytearray(make(path, steady(3, 25, recipe.time_base), recipe).path.read_bytes())
    header = data.index(b"strf") + 8
    data[header + 4 : header + 12] = struct.pack("<2i", 16_000, 16_000)
    path.write_bytes(data)


def no_pictures(path: Path) -> None:
    """A clip whose picture data is wiped out."""
    data = bytearray(make(path, steady(25, 25), Recipe()).path.read_bytes())
    start = data.index(b"mdat") + 4
    stop = data.index(b"moov") - 4
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda path: None, "There is no file "),
    "folder.mp4": (Path.mkdir, " is a folder, not a video file."),
    "pipe.mp4": (os.mkfifo, " is not an ordinary file."),
    "empty.mp4": (Path.touch, "empty.mp4 is empty."),
    "text.mp4": (
        lambda path: path.write_text("not a video at all\n" * 50),
        "text.mp4 is not a video file",
    ),
    "noise.mp4": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(50_000)),
        "noise.mp4 ",
    ),
    "sound.mp4": (sound_only, "sound.mp4 has sound but no video."),
    "flat.avi": (no_size, "flat.avi"),
    "giant.avi": (giant, "The pictures of giant.avi are too large (16000x16000)."),
    "wiped.mp4": (no_pictures, "No picture of wiped.mp4 could be decoded."),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    prepare, message = BAD[name]
    prepare(tmp_path / name)
    with pytest.raises(SourceError) as caught:
        FileSource(tmp_path / name)
    told = str(caught.value)
    assert message in told
    assert told.endswith(".")
    assert "\n" not in told


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile secret.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "hls behind spaces": "  \n#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsecret.mp4\n#EXT-X-ENDLIST\n",  # noqa: E501
    "dash": (
        '<?xml version="1.0"?><MPD '
        'type="static"><Period><BaseURL>secret.mp4</BaseURL></Period></MPD>'
    ),
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_dressed_as_a_clip_is_not_followed(
    tmp_path: Path, clips: GoldenSet, name: str
) -> None:
    shutil.copy(clips["constant mp4"].path, tmp_path / "secret.mp4")
    (tmp_path / "clip.mp4").write_text(PLAYLISTS[name])
    with pytest.raises(SourceError, match=r"^clip.mp4 is (a playlist, )?not a video"):
        FileSource(tmp_path / "clip.mp4")


def test_without_the_allow_list_the_playlist_would_be_followed(
    tmp_path: Path, clips: GoldenSet
) -> None:
    shutil.copy(clips["constant mp4"].path, tmp_path / "secret.mp4")
    (tmp_path / "clip.mp4").write_text(PLAYLISTS["ffconcat"])
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.format.name == "concat"


@pytest.mark.parametrize(
    ("fps", "start", "stop"), [(0.0, 0.0, None), (2.0, -1.0, None), (2.0, 3.0, 3.0)]
)
def test_a_senseless_request_names_itself(
    clips: GoldenSet, fps: float, start: float, stop: float | None
) -> None:
    with pytest.raises(ValueError, match=r"not"):
        FileSource(clips["constant mp4"].path, fps, start, stop)


# The parts


def test_a_sampler_takes_rounded_times_as_what_they_are() -> None:
    rounded = [round(place / 30, 3) for place in range(300)]
    sampler = Sampler(30.0)
    assert all(sampler.takes(second) for second in rounded)
    late = Sampler(30.0, origin_seconds=ROUNDING_SECONDS)
    assert not all(late.takes(second) for second in rounded), (
        "without slack, rounding costs pictures"
    )


def test_a_clock_counts_on_where_stamps_fall_back_or_lack() -> None:
    clock = Clock(Fraction(1, 10), Fraction(5))
    assert [clock.seconds(stamp) for stamp in (70, 72, None, 76, 3, 5)] == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    )
    assert clock.jumps_seconds == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("matrix", "rows"),
    [
        ((1, 0, 0, 1), [[1, 2, 3], [4, 5, 6]]),
        ((0, 1, -1, 0), [[4, 1], [5, 2], [6, 3]]),
        ((-1, 0, 0, -1), [[6, 5, 4], [3, 2, 1]]),
        ((0, -1, 1, 0), [[3, 6], [2, 5], [1, 4]]),
        ((-1, 0, 0, 1), [[3, 2, 1], [6, 5, 4]]),
    ],
)
def test_a_picture_is_turned_and_mirrored_as_its_matrix_says(
    matrix: tuple[int, int, int, int], rows: list[list[int]]
) -> None:
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[..., None].repeat(3, axis=2)
    assert upright(image, matrix)[..., 0].tolist() == rows


def peak_bytes(path: Path) -> int:
    source = FileSource(path, EVERY_PICTURE)
    tracemalloc.start()
    for frame in source.frames():
        assert frame.width == 160
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    short, long = (
        make(tmp_path / f"{count}.mp4", steady(count, 25), Recipe()) for count in (50, 500)
    )
    assert peak_bytes(long.path) < peak_bytes(short.path) + 2 * 160 * 96 * 3
