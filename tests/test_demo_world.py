"""The embedded model's world paints what it says, where it says, and says the same again for the
same seed.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.demo.architecture import SIDE
from models.demo.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    OUTLINE,
    SHAPES,
    SPEED,
    Scene,
    Thing,
    WorldEvent,
    background,
    background_kind,
    make_digit,
    make_things,
    render,
)
from training.bank import GRIDS, scene_frames
from training.looks import (
    ASPECTS,
    CLASSIC,
    LEFT_OUT,
    PAINTERS,
    Look,
    canvas_size,
    look_of,
    make_canvas,
)
from training.painters import BY_NAME
from training.pictures import CELL, LABELS, scene_labels, scene_pictures, through_codec
from training.scenes import CHUNK_SECONDS, GROUP_SECONDS, Moment, group_times, moments, random_scene

PLAIN = next(seed for seed in range(100) if background_kind(seed) == "plain")
SIZE = 0.4
LARGE = 256
GRID = SIDE // CELL


def scene_of(*things: Thing, seed: int = PLAIN, seconds: float = 2.0) -> Scene:
    return Scene(4.0, seed, (WorldEvent(0.0, seconds, things),))


def classic(scene: Scene) -> Look:
    """As the world itself paints a scene."""
    return Look(scene.background_seed, CLASSIC, outline=OUTLINE)


def changed(scene: Scene, seconds: float = 0.0, side: int = LARGE) -> NDArray[np.bool_]:
    """Where the picture is not its background, [side, side]."""
    bare = np.asarray(background(scene.background_seed, side))
    return np.asarray((render(scene, seconds, side) != bare).any(axis=2))


def middle(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """The centre of a mask's box, (x, y) as fractions of the side."""
    rows, columns = np.nonzero(mask)
    n = len(mask)
    return float(columns.min() + columns.max() + 1) / 2 / n, float(
        rows.min() + rows.max() + 1
    ) / 2 / n


def test_a_seed_gives_one_scene_and_one_picture_and_another_seed_another() -> None:
    one, same, other = (random_scene(np.random.default_rng(seed), 3) for seed in (4, 4, 5))
    assert one == same and one != other
    for t in (0.0, 3.5, 7.25):
        assert np.array_equal(render(one, t, 96), render(same, t, 96))
    assert not np.array_equal(render(one, 0.0, 96), render(other, 0.0, 96))


def test_every_kind_of_background_is_the_same_picture_at_every_size() -> None:
    for kind in BACKGROUNDS:
        seed = next(s for s in range(200) if background_kind(s) == kind)
        small, large = (np.asarray(background(seed, side), dtype=float) for side in (64, 256))
        averaged = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(averaged - small).mean() < 12, kind


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", ["red", "white"])
def test_a_shape_is_painted_in_its_colour_where_it_says(shape: str, colour: str) -> None:
    thing = Thing(shape, colour, SIZE, 0.6, 0.35)
    mask, picture = changed(scene_of(thing)), render(scene_of(thing), 0.0, LARGE)
    x, y = middle(mask)
    assert abs(x - 0.6) < 0.05 and abs(y - 0.35) < 0.05
    rows, columns = np.nonzero(mask)
    largest = max(np.ptp(rows), np.ptp(columns)) / LARGE
    assert 0.7 * SIZE < largest < 1.05 * SIZE
    filled = (picture == COLOURS[colour]).all(axis=2)
    assert filled.sum() > 0.3 * mask.sum() and not (filled & ~mask).any()


def test_every_colour_is_painted_as_it_is_named() -> None:
    for colour, value in COLOURS.items():
        assert (
            tuple(render(scene_of(Thing("square", colour, SIZE, 0.5, 0.5)), 0.0, LARGE)[128, 128])
            == value
        )


def test_no_two_shapes_and_no_two_digits_look_alike() -> None:
    shapes = [changed(scene_of(Thing(shape, "red", SIZE, 0.5, 0.5))) for shape in SHAPES]
    digits = [
        changed(scene_of(Thing("digit", "red", 0.8, 0.5, 0.5, "still", n))) for n in range(10)
    ]
    for group in (shapes, digits):
        for one, other in combinations(group, 2):
            assert (one & other).sum() / (one | other).sum() < 0.92


@pytest.mark.parametrize("digit", range(10))
def test_a_digit_is_painted_large_and_in_the_middle(digit: int) -> None:
    thing = make_digit(np.random.default_rng(digit), digit)
    assert thing.name == f"digit {digit}"
    mask = changed(scene_of(thing))
    x, y = middle(mask)
    assert abs(x - thing.x) < 0.06 and abs(y - thing.y) < 0.06
    assert np.ptp(np.nonzero(mask)[0]) > 0.35 * LARGE


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_thing_moves_the_way_it_says_and_as_fast(motion: str) -> None:
    scene = scene_of(Thing("circle", "blue", 0.25, 0.5, 0.5, motion))
    (x0, y0), (x1, y1) = middle(changed(scene, 0.0)), middle(changed(scene, 1.0))
    dx, dy = MOTIONS[motion]
    assert abs(x1 - x0 - SPEED * dx) < 0.01 and abs(y1 - y0 - SPEED * dy) < 0.01


def test_an_event_is_there_from_its_start_until_just_before_its_end() -> None:
    scene = Scene(4.0, PLAIN, (WorldEvent(1.0, 2.0, (Thing("star", "red", SIZE, 0.5, 0.5),)),))
    assert [bool(changed(scene, t).any()) for t in (0.99, 1.0, 1.99, 2.0)] == [
        False,
        True,
        True,
        False,
    ]


def test_things_stay_inside_the_picture_and_never_touch() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4):
        for _ in range(6):
            things = make_things(rng, count, 3.0)
            assert len({thing.shape for thing in things}) == count
            for t in (0.0, 1.5, 3.0):
                masks = [changed(scene_of(thing, seconds=9.0), t, 96) for thing in things]
                together = changed(scene_of(*things, seconds=9.0), t, 96)
                assert sum(int(mask.sum()) for mask in masks) == int(together.sum())
                for thing in things:
                    x, y = thing.centre(t)
                    assert (
                        thing.size / 2 - 1e-9 <= min(x, y)
                        and max(x, y) <= 1 - thing.size / 2 + 1e-9
                    )


def test_the_moments_of_a_scene_tell_what_its_pictures_show() -> None:
    rng = np.random.default_rng(7)
    seen = set()
    for _ in range(12):
        scene, offset = random_scene(rng, 2), float(rng.integers(1000))
        truth = moments(scene, offset)
        assert len(truth) == round(2 * CHUNK_SECONDS / GROUP_SECONDS)
        for moment, (first, second) in zip(truth, group_times(scene), strict=True):
            assert moment.pts_seconds == offset + (
                first + second
            ) / 2 and moment.second == offset + int(first)
            masks = [changed(scene, t, 96) for t in (first, second)]
            assert bool(moment.events) == any(mask.any() for mask in masks)
            if moment.clean:
                assert masks[0].any() == masks[1].any() == bool(moment.events)
            for event in moment.events:
                assert any(shows(scene, t, event) for t in (first, second))
            seen.add((len(moment.events), moment.clean))
    assert seen == {(0, True), (1, True), (1, False), (2, False)}


def shows(scene: Scene, seconds: float, event: WorldEvent) -> bool:
    """Whether the picture has a pixel of every thing's colour near its place."""
    picture, side = render(scene, seconds, 96), 96
    for thing in event.things:
        x, y = thing.centre(seconds - event.start_seconds)
        r = thing.size / 2
        top, bottom, left, right = (max(0, round(v * side)) for v in (y - r, y + r, x - r, x + r))
        if not (picture[top:bottom, left:right] == COLOURS[thing.colour]).all(axis=2).any():
            return False
    return True


def test_a_moment_is_named_by_the_second_of_its_stamp() -> None:
    for pts, second in ((0.25, 0), (4.95, 5), (8.95, 8), (86_399.25, 86_399)):
        assert Moment(pts, (), True).second == second == int(float(f"{pts:.1f}"))


def test_labels_tell_what_the_pixels_of_a_token_show() -> None:
    rng = np.random.default_rng(3)
    told = right = 0
    for _ in range(10):
        scene = random_scene(rng, 1)
        labels = scene_labels(scene, classic(scene))
        for group, (first, second) in enumerate(group_times(scene)):
            pictures = [render(scene, t, SIDE) for t in (first, second)]
            masks = [changed(scene, t, SIDE) for t in (first, second)]
            for token in range(GRID * GRID):
                y, x = token // GRID * CELL, token % GRID * CELL
                painted = sum(int(mask[y : y + CELL, x : x + CELL].sum()) for mask in masks)
                shape, colour, motion, digit, _, frames = labels[group, token]
                if shape == 0:
                    assert painted <= 24 and colour == motion == digit == frames == 0
                elif shape > 0:
                    assert painted >= 16 and (digit > 0) == (shape == 9)
                    value = list(COLOURS.values())[colour - 1]
                    told += 1
                    right += any(
                        (p[y : y + CELL, x : x + CELL] == value).all(axis=2).any() for p in pictures
                    )
                    for bit, mask in enumerate(masks):
                        if frames >> bit & 1:
                            assert mask[y : y + CELL, x : x + CELL].any()
    assert told > 100 and right > 0.9 * told


def test_a_label_follows_its_thing() -> None:
    corner = {
        name: scene_of(Thing("square", name, 0.22, 0.375, 0.375), seconds=4.0)
        for name in ("red", "cyan")
    }
    column = {name: list(COLOURS).index(name) + 1 for name in corner}
    for name, scene in corner.items():
        labels = scene_labels(scene, classic(scene))[0]
        assert labels[1 * GRID + 1].tolist() == [
            SHAPES.index("square") + 1,
            column[name],
            1,
            0,
            1,
            3,
        ]
        assert not labels[3 * GRID + 3].any()


def test_the_bank_holds_frames_as_the_model_will_see_them_and_a_codec_only_blurs_them() -> None:
    scene = random_scene(np.random.default_rng(1), 1)
    frames = scene_frames(scene, classic(scene))
    assert frames.shape == (4, 2, SIDE, SIDE, 3) and frames.dtype == np.uint8
    plain = np.stack([render(scene, t, 128) for pair in group_times(scene) for t in pair])
    for codec in ("libx264", "libvpx-vp9", "mjpeg"):
        coded = through_codec(plain, 23, codec)
        assert coded.shape == plain.shape and not np.array_equal(coded, plain)
        assert np.abs(coded.astype(float) - plain).mean() < 12
    halved = plain.reshape(8, SIDE, 2, SIDE, 2, 3).mean(axis=(2, 4))
    assert np.abs(frames.reshape(8, SIDE, SIDE, 3) - halved).mean() < 12


# --- as others paint it ----

EVERY_PAINTER = (*PAINTERS, LEFT_OUT)


def painted_by(
    painter: str, thing: Thing, side: int = LARGE
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Where a painter changes a black picture, and the picture."""
    picture = np.zeros((side, side, 3), dtype=np.float32)
    look = Look(7, painter, backdrop="flat")
    BY_NAME[painter](make_canvas(look, picture), thing, 0.0, look)
    return picture.max(axis=2) > 8, picture


@pytest.mark.parametrize("painter", EVERY_PAINTER)
def test_every_painter_puts_every_shape_where_it_says_in_its_colour(painter: str) -> None:
    for shape in SHAPES:
        mask, picture = painted_by(painter, Thing(shape, "orange", SIZE, 0.6, 0.35))
        x, y = middle(mask)
        assert abs(x - 0.6) < 0.07 and abs(y - 0.35) < 0.07, shape
        rows, columns = np.nonzero(mask)
        assert 0.6 * SIZE < max(np.ptp(rows), np.ptp(columns)) / LARGE < 1.1 * SIZE, shape
        inside = picture[mask].mean(axis=0)
        assert np.abs(inside / inside.max() - np.array(COLOURS["orange"]) / 255).max() < 0.15, shape


@pytest.mark.parametrize("painter", EVERY_PAINTER)
def test_no_painter_draws_two_shapes_or_two_digits_alike(painter: str) -> None:
    shapes = [painted_by(painter, Thing(shape, "red", SIZE, 0.5, 0.5))[0] for shape in SHAPES]
    digits = [
        painted_by(painter, Thing("digit", "red", 0.8, 0.5, 0.5, "still", n))[0] for n in range(10)
    ]
    for group in (shapes, digits):
        for one, other in combinations(group, 2):
            assert (one & other).sum() / (one | other).sum() < 0.95


def test_no_two_painters_paint_the_same_picture() -> None:
    thing = Thing("star", "red", SIZE, 0.5, 0.5)
    pictures = [painted_by(painter, thing)[1] for painter in EVERY_PAINTER]
    assert all(not np.array_equal(one, other) for one, other in combinations(pictures, 2))


def test_a_look_belongs_to_a_seed_and_training_never_draws_the_painter_that_is_left_out() -> None:
    looks = [look_of(seed) for seed in range(400)]
    assert looks == [look_of(seed) for seed in range(400)]
    assert {look.painter for look in looks} == set(PAINTERS) and LEFT_OUT not in PAINTERS
    assert {look.grid for look in looks} == set(GRIDS)
    assert {look_of(seed, (LEFT_OUT,)).painter for seed in range(50)} == {LEFT_OUT}


def test_pictures_of_a_look_have_its_shape_and_its_labels_one_for_each_token() -> None:
    for number, grid in enumerate(GRIDS):
        scene = random_scene(np.random.default_rng(number), 1)
        look = Look(scene.background_seed, PAINTERS[number % len(PAINTERS)], grid=grid)
        pictures = scene_pictures(scene, look)
        height, width = canvas_size(look)
        assert (
            pictures.shape == (8, height, width, 3)
            and abs(width / height / ASPECTS[grid] - 1) < 0.05
        )
        assert scene_frames(scene, look).shape == (4, 2, grid[0] * CELL, grid[1] * CELL, 3)
        assert scene_labels(scene, look).shape == (4, grid[0] * grid[1], len(LABELS))


def test_a_letterboxed_picture_is_black_above_and_below() -> None:
    scene = scene_of(Thing("circle", "red", 0.5, 0.5, 0.5), seconds=4.0)
    look = Look(PLAIN, "fields", letterbox=0.6, backdrop="gradient")
    pictures = scene_pictures(scene, look)
    height = pictures.shape[1]
    assert (
        not pictures[:, : int(0.19 * height)].any()
        and not pictures[:, int(0.81 * height) + 1 :].any()
    )
    assert pictures[:, height // 2].any()
