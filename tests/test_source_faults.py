"""Faults of real recorders and of files that mean harm: told, put right or refused, never watched
as something else.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from frames import Frame
from streaming.sources.clock import Clock, Timeline
from streaming.sources.decoder_memory import DecoderMemory, decoder_bytes
from streaming.sources.decord_reader import DecordReader
from streaming.sources.display import FRAME_PIXELS
from streaming.sources.file import FileSource
from streaming.sources.moments import Moments
from streaming.sources.pictures import VideoFile
from streaming.sources.trouble import SourceError
from tests.conftest import REPOSITORY
from tests.golden import ORDERED, TICK, Recipe, make, read_paint, steady
from tests.odd_clips import (
    VideoPacket,
    restamped,
    stamped_alike,
    with_false_keyframe,
    with_outliers,
    with_sound_from_zero,
    with_standing_end,
    with_two_videos,
    with_unlisted_keyframe,
)


def read(path: Path, fps: float = 10.0, **stretch: Any) -> tuple[list[Frame], list[str]]:
    source = FileSource(path, fps, **stretch)
    frames = list(source.frames())
    return frames, source.warnings


def numbers(frames: list[Frame]) -> list[int]:
    return [read_paint(frame.image) for frame in frames]


def seconds(frames: list[Frame]) -> list[float]:
    return [round(frame.pts_seconds, 3) for frame in frames]


# Times.


@pytest.mark.parametrize("ahead_seconds", [37_600.0, 40.0, -500.0])
@pytest.mark.parametrize("places", [(100,), (20, 21, 90), (149,)])
def test_a_picture_stamped_far_off_is_put_between_its_neighbours(
    tmp_path: Path, places: tuple[int, ...], ahead_seconds: float
) -> None:
    clip = with_outliers(tmp_path, places, ahead_seconds)
    frames, warnings = read(clip.path)
    if places == (149,):  # nothing comes after it that would tell
        assert len(frames) == 150 and len(warnings) == (0 if ahead_seconds == 40 else 1)
        return
    assert numbers(frames) == list(range(150))
    assert [frame.pts_seconds for frame in frames] == pytest.approx(clip.pts_seconds, abs=0.001)
    assert warnings == [
        f"outlier.ts stamps {len(places)} of its pictures far from the others; they were put "
        "between their neighbours."
    ]
    with Moments(clip.path) as moments:
        assert moments.backend == "in order"
        assert [read_paint(frame.image) for frame in moments.at([12.0, 2.05])] == [120, 20]


def test_without_holding_back_a_wrong_stamp_would_move_all_that_follows() -> None:
    clock = Clock(Fraction(1, 10), Fraction(10))
    stamps = [0, 1, 376_000, 3, 4]
    assert [clock.seconds(stamp) for stamp in stamps][-1] > 30_000
    clock = Clock(Fraction(1, 10), Fraction(10))
    timeline: Timeline[int] = Timeline(clock)
    placed = [item for stamp in stamps for item in timeline.add(stamp, stamp)]
    assert placed == [(0, 0.0), (1, 0.1), (376_000, pytest.approx(0.2)), (3, 0.3), (4, 0.4)]


def test_a_jump_ahead_of_hours_is_true_and_told(tmp_path: Path) -> None:
    pts = [*steady(30, 10), *(tick + 36_000_000 for tick in steady(30, 10))]
    clip = make(tmp_path / "forward.mkv", pts, Recipe(gop=10))
    frames, warnings = read(clip.path)
    assert numbers(frames) == list(range(60))
    assert seconds(frames)[29:31] == [2.9, 36_000.0]
    assert warnings == ["forward.mkv has no pictures from 2.9 s to 36000.0 s."]


def test_times_that_never_move_are_no_times(tmp_path: Path) -> None:
    clip = stamped_alike(tmp_path / "alike.mkv")
    frames, warnings = read(clip.path, fps=25.0)
    assert numbers(frames) == list(range(75))
    assert [frame.pts_seconds for frame in frames] == pytest.approx(clip.pts_seconds)
    assert warnings == ["alike.mkv carries no times; 25 pictures a second are assumed."]
    with Moments(clip.path) as moments:
        assert [read_paint(frame.image) for frame in moments.at([1.0])] == [25]


def test_pictures_that_share_their_times_are_told(tmp_path: Path) -> None:
    pts = [tick // 1000 * 1000 for tick in steady(100, 10)]
    clip = make(tmp_path / "moving.mkv", steady(100, 10), Recipe("libvpx"))

    def stamp(number: int, packet: VideoPacket) -> None:
        packet.pts = packet.dts = pts[number]

    stuck = restamped(clip.path, tmp_path / "stuck.mkv", stamp)
    _, warnings = read(stuck)
    assert warnings == [
        "90 of 100 pictures of stuck.mkv have the same time as the one before them."
    ]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_count_from_the_sound_where_that_begins_first(tmp_path: Path, suffix: str) -> None:
    clip = with_sound_from_zero(tmp_path / f"late.{suffix}", 3.0)
    frames, warnings = read(clip.path)
    assert numbers(frames) == list(range(40))
    assert [frame.pts_seconds for frame in frames] == pytest.approx(clip.pts_seconds, abs=0.03)
    assert warnings == [f"The pictures of late.{suffix} begin at 3.0 s, later than its sound."]
    assert FileSource(clip.path).info.duration_seconds == pytest.approx(8.0, abs=1.1)
    with Moments(clip.path) as moments:
        assert [read_paint(frame.image) for frame in moments.at([5.05, 0.0])] == [20, 0]


def test_sound_that_begins_a_moment_early_moves_nothing(tmp_path: Path) -> None:
    clip = with_sound_from_zero(tmp_path / "together.mkv", 0.05)
    frames, warnings = read(clip.path)
    assert frames[0].pts_seconds == 0.0 and warnings == []


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_last_picture_that_stands_is_looked_at_once_more_at_its_end(
    tmp_path: Path, suffix: str
) -> None:
    clip = with_standing_end(tmp_path / f"still.{suffix}", 300.0)
    frames, _ = read(clip.path, fps=2.0)
    assert seconds(frames) == [*(tick / 2 for tick in range(8)), 299.5]
    assert numbers(frames)[-1] == 39
    stopped, _ = read(clip.path, fps=2.0, stop_seconds=200.0)
    assert seconds(stopped)[-2:] == [3.5, 199.5]
    again, _ = read(clip.path, fps=2.0, start_seconds=200.0)
    assert (seconds(again), numbers(again)) == ([299.5], [39])


def test_a_last_picture_is_not_repeated_where_it_stands_for_no_longer_than_others(
    tmp_path: Path,
) -> None:
    clip = make(tmp_path / "short.mp4", steady(40, 10), Recipe())
    assert seconds(read(clip.path, fps=2.0)[0]) == [tick / 2 for tick in range(8)]


# Keyframes.


def test_decord_is_kept_from_a_file_with_a_keyframe_that_is_not_listed(tmp_path: Path) -> None:
    clip = with_unlisted_keyframe(tmp_path / "unlisted.mp4")
    with closing(DecordReader(clip.path)) as reader:
        shown = [read_paint(image) for image in reader.pictures([20, 25, 28])]
    assert shown != [20, 25, 28], "decord alone is wrong here"
    with Moments(clip.path) as moments:
        assert moments.backend == "seek"
        found = moments.at([place / 25 for place in range(149, -1, -7)])
    assert [read_paint(frame.image) for frame in found] == list(range(149, -1, -7))


def test_a_keyframe_that_leans_on_others_is_not_begun_with(tmp_path: Path) -> None:
    clip = with_false_keyframe(tmp_path / "false.mp4")
    with VideoFile(clip.path) as video:
        video.container.seek(video.clock.stamp(6.0), stream=video.stream)
        landed = next(video.pictures(from_keyframe=True))
        assert not landed.frame.key_frame, "the container leads there"
    frames, _ = read(clip.path, fps=5.0, start_seconds=6.0)
    assert numbers(frames) == list(range(150, 250, 5))
    with Moments(clip.path) as moments:
        assert [read_paint(frame.image) for frame in moments.at([6.0, 5.4])] == [150, 135]
    skimmed = list(FileSource(clip.path, 5.0, only_keyframes=True).frames())
    assert numbers(skimmed) == [0, 200]


def test_a_decord_that_dies_harms_nobody(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", steady(75, 25), Recipe())
    with Moments(clip.path) as moments:
        decord = moments._backend._reader  # type: ignore[attr-defined]
        decord._process.kill()
        assert [read_paint(frame.image) for frame in moments.at([1.0, 2.0])] == [25, 50]
        assert moments.backend == "seek"
    assert decord._process.poll() is not None


def test_a_decord_process_goes_with_its_moments(tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.mp4", steady(75, 25), Recipe())
    with Moments(clip.path) as moments:
        process = moments._backend._reader._process  # type: ignore[attr-defined]
        assert process.poll() is None
    assert process.poll() is not None


def test_of_a_large_file_a_few_moments_read_a_few_packets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make(tmp_path / "long.mp4", steady(2500, 25), Recipe(gop=25, options=ORDERED))
    packets, read_packets = list[object](), VideoFile.packets

    def counted(file: VideoFile) -> Iterator[object]:
        for packet in read_packets(file):
            packets.append(packet)
            yield packet

    monkeypatch.setattr(VideoFile, "packets", counted)
    found = []
    for limit in (256 << 20, 0):
        monkeypatch.setattr("streaming.sources.moments._DECORD_FILE_BYTES", limit)
        packets.clear()
        with Moments(clip.path) as moments:
            found.append([read_paint(frame.image) for frame in moments.at([90.0, 10.0, 50.0])])
        if limit:
            assert len(packets) > 2500, "a small file is read whole, once"
    assert found == [[2250, 250, 1250]] * 2
    assert len(packets) < 300


# Files that change while they are read.


def test_a_file_may_be_deleted_while_it_is_read(tmp_path: Path) -> None:
    for suffix in ("mp4", "ts", "mkv"):
        recipe = Recipe(time_base=TICK)
        clip = make(tmp_path / f"clip.{suffix}", steady(250, 25, TICK), recipe)
        source = FileSource(clip.path, 5.0)
        frames = source.frames()
        found = [next(frames)]
        clip.path.unlink()
        found += frames
        assert len(found) == 50 and source.warnings == []


def test_a_file_may_grow_while_it_is_read(tmp_path: Path) -> None:
    recipe = Recipe(container_options={"live": "1"})
    whole = make(tmp_path / "whole.mkv", steady(1000, 25), recipe).path.read_bytes()
    growing = tmp_path / "growing.mkv"
    growing.write_bytes(whole[: len(whole) // 8])
    source = FileSource(growing, 25.0)
    frames = source.frames()
    found = [next(frames)]
    with growing.open("ab") as file:
        file.write(whole[len(whole) // 8 :])
    found += frames
    assert numbers(found) == list(range(1000)) and source.warnings == []


# What is no video.


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "00112233445566778899aabbccddeeff",
        "encryption_kid": "0" * 32,
    }
    clip = make(tmp_path / "secret.mp4", steady(75, 25), Recipe(container_options=options))
    with pytest.raises(SourceError, match=r"^secret.mp4 is encrypted"):
        FileSource(clip.path)


def test_a_file_of_which_nearly_nothing_can_be_decoded_is_refused(tmp_path: Path) -> None:
    clip = make(tmp_path / "noise.mp4", steady(75, 25), Recipe())
    noise = np.random.default_rng(0)

    data = bytearray(clip.path.read_bytes())
    with av.open(str(clip.path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[1:]:
        assert packet.pos is not None
        start, stop = packet.pos + 5, packet.pos + packet.size
        data[start:stop] = noise.bytes(stop - start)
    clip.path.write_bytes(data)
    with pytest.raises(SourceError, match=r"^Nearly nothing of noise.mp4 can be decoded"):
        FileSource(clip.path)


def box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + kind + content


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tiled.heic", box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"meta", bytes(200))),
        ("tiled.avif", box(b"ftyp", b"avif\0\0\0\0mif1avif") + box(b"meta", bytes(200))),
        ("photo.jpg", b"\xff\xd8\xff\xe0" + bytes(100)),
        ("photo.webp", b"RIFF\0\0\0\0WEBPVP8 " + bytes(100)),
        ("photo.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(100)),
    ],
)
def test_a_picture_is_no_video(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=rf"^{name} is a picture"):
        FileSource(tmp_path / name)


@pytest.mark.parametrize(("suffix", "pixels"), [("gif", "rgb8"), ("apng", "rgb24")])
def test_an_animation_is_a_video_and_a_single_picture_is_none(
    tmp_path: Path, suffix: str, pixels: str
) -> None:
    recipe = Recipe(suffix, pixels, container=suffix, time_base=Fraction(1, 100))
    clip = make(tmp_path / f"anim.{suffix}", steady(20, 5, recipe.time_base), recipe)
    frames, warnings = read(clip.path, fps=5.0)
    assert len(frames) == 20 and warnings == []
    assert seconds(frames) == pytest.approx([place / 5 for place in range(20)])
    assert numbers(frames)[:8] == list(range(8))
    still = make(tmp_path / f"still.{suffix}", [0], recipe)
    with pytest.raises(SourceError, match=r"is a picture"):
        FileSource(still.path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_film_is_watched_and_not_a_picture_beside_it(tmp_path: Path, suffix: str) -> None:
    clip = with_two_videos(tmp_path / f"two.{suffix}")
    frames, warnings = read(clip.path, fps=25.0)
    assert numbers(frames) == list(range(75))
    assert warnings == [f"two.{suffix} holds 2 videos; that of 160x96 (h264) is watched."]


# Pixels.


@pytest.mark.parametrize(("ratio", "size"), [((2, 1), (320, 96)), ((1, 2), (160, 192))])
def test_pixels_that_are_not_square_are_made_so(
    tmp_path: Path, ratio: tuple[int, int], size: tuple[int, int]
) -> None:
    options = {"aspect": f"{ratio[0]}:{ratio[1]}"}
    clip = make(tmp_path / "wide.mkv", steady(30, 10), Recipe(options={**ORDERED, **options}))
    source = FileSource(clip.path)
    frames = list(source.frames())
    assert {(frame.width, frame.height) for frame in frames} == {size}
    assert (source.info.width, source.info.height) == size
    with Moments(clip.path) as moments:
        (again,) = moments.at([1.0])
    assert (again.width, again.height, read_paint(again.image)) == (*size, 10)


def large(width: int, height: int) -> Recipe:
    return Recipe("mpeg4", draw=lambda _: np.zeros((height, width, 3), np.uint8))


def test_very_large_pictures_are_shrunk_as_they_are_decoded(tmp_path: Path) -> None:
    clip = make(tmp_path / "large.mp4", [0, 100], large(4096, 4096))
    (frame, *_) = FileSource(clip.path, 10.0).frames()
    assert frame.width == frame.height and frame.width * frame.height <= FRAME_PIXELS
    assert frame.width * frame.height > 0.9 * FRAME_PIXELS


def test_pictures_without_any_reason_to_be_so_large_are_refused(tmp_path: Path) -> None:
    clip = make(tmp_path / "huge.mp4", [0], large(8176, 8176))
    assert clip.path.stat().st_size < 1_000_000
    with pytest.raises(SourceError, match=r"huge.mp4 are too large \(8176x8176\)"):
        FileSource(clip.path)


@pytest.mark.parametrize(("width", "height"), [(4000, 16), (16, 4000)])
def test_pictures_that_are_hardly_more_than_a_line_are_refused_by_their_own_size(
    tmp_path: Path, width: int, height: int
) -> None:
    clip = make(tmp_path / "thin.mp4", [0, 100], large(width, height))
    with pytest.raises(SourceError, match=rf"The pictures of thin.mp4 are {width}x{height}"):
        FileSource(clip.path)


PEAK = """
import resource, sys
from streaming.sources.file import FileSource, SourceError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for frame in FileSource(sys.argv[1], 30.0).frames(): pass
except SourceError: pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("side", [5632, 8176])
def test_a_few_kilobytes_do_not_take_gigabytes(tmp_path: Path, side: int) -> None:
    recipe = Recipe(
        "libx264",
        options={"preset": "ultrafast", "x264-params": "bframes=0:ref=1"},
        draw=lambda _: np.zeros((side, side, 3), np.uint8),
    )
    clip = make(tmp_path / "bomb.mp4", steady(6, 10), recipe)
    assert clip.path.stat().st_size < 200_000
    told = subprocess.run(
        [sys.executable, "-c", PEAK, str(clip.path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert int(told.stdout) < 700_000, "kilobytes"


def test_all_files_of_a_process_share_one_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make(tmp_path / "clip.mp4", steady(25, 25), Recipe())
    monkeypatch.setattr("streaming.sources.decoder_memory.MOST_THREADS", 1)
    with VideoFile(clip.path) as video:
        num_bytes = decoder_bytes(video.stream)
    memory = DecoderMemory(2 * num_bytes)
    monkeypatch.setattr("streaming.sources.pictures.DECODERS", memory)
    with (
        VideoFile(clip.path),
        VideoFile(clip.path),
        pytest.raises(SourceError, match=r"no memory left to decode clip.mp4"),
    ):
        VideoFile(clip.path)
    for _ in range(5):
        assert len(list(FileSource(clip.path, 25.0).frames())) == 25, "given back each time"


def test_where_memory_is_scarce_a_file_is_decoded_on_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make(tmp_path / "clip.mp4", steady(25, 25), Recipe())
    monkeypatch.setattr("streaming.sources.decoder_memory.os.cpu_count", lambda: 16)
    with VideoFile(clip.path) as video:
        assert video.stream.codec_context.thread_count == 16
        num_bytes = decoder_bytes(video.stream)
    monkeypatch.setattr("streaming.sources.pictures.DECODERS", DecoderMemory(num_bytes - 1))
    with VideoFile(clip.path) as video:
        assert video.stream.codec_context.thread_count == 1
        assert len(list(video.pictures())) == 25


def test_codecs_that_no_video_needs_are_not_decoded(tmp_path: Path) -> None:
    clip = make(
        tmp_path / "rare.avi",
        steady(5, 25, Fraction(1, 25)),
        Recipe("magicyuv", "gbrp", time_base=Fraction(1, 25)),
    )
    with pytest.raises(SourceError, match=r"^rare.avi holds video of a kind"):
        FileSource(clip.path)
    with av.open(str(clip.path)) as container:
        assert next(container.decode(video=0)).width == 160, "FFmpeg would"
