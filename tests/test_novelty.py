"""What is new in a picture is found patch by patch; what cameras, codecs and lamps do to it is not
new.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from keyframes.novelty import (
    SAMPLES,
    ReferenceFrame,
    average_patches,
    change,
    downsample,
    motion_residual,
    novelty,
    otsu,
    patch_stats,
    stats_of_samples,
)
from tests.scenery import HEIGHT, WIDTH, Picture, lit, noisy, place, view

GRID = (9, 16)
PATCH = HEIGHT // GRID[0]  # pixels
UNCHANGED = 0.05


def compared(picture: Picture, kept: Picture) -> Tensor:
    """[rows, columns]"""
    pictures = downsample([kept, picture], GRID)
    return novelty(pictures[1:], pictures[0])[0]


def with_object(picture: Picture) -> Picture:
    """Something plain of 3 x 4 patches, from patch (2, 5) on."""
    changed = picture.copy()
    changed[2 * PATCH : 5 * PATCH, 5 * PATCH : 9 * PATCH] = (230, 40, 60)
    return changed


def share(found: Tensor) -> float:
    return float((found > UNCHANGED).float().mean())


def through_codec(pictures: list[Picture], path: Path) -> list[Picture]:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, options={"crf": "38", "preset": "ultrafast", "g": "4"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return [
            frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in container.decode(video=0)
        ]


def test_noise_flicker_and_drifting_light_are_not_new_but_an_object_under_them_is() -> None:
    scene = view(place(1))
    conditions: dict[str, Callable[[Picture], Picture]] = {
        "noise": lambda picture: noisy(picture, 7, 10.0),
        "darker": lambda picture: lit(picture, 0.7),
        "brighter": lambda picture: lit(picture, 1.1, 12),
        "all": lambda picture: noisy(lit(picture, 0.8, -8), 8),
    }
    for name, seen in conditions.items():
        assert share(compared(seen(scene), scene)) < 0.02, name
        found = compared(seen(with_object(scene)), scene)
        assert (found[2:5, 5:9] > 0.5).all(), name
        found[1:6, 4:10] = 0  # its border may show in the patches around
        assert share(found) < 0.02, name


def test_compression_is_not_new_but_an_object_under_it_is(tmp_path: Path) -> None:
    scene = view(place(2))
    *still, changed = through_codec(
        [*[noisy(scene, seed, 3.0) for seed in range(9)], with_object(scene)], tmp_path / "c.mp4"
    )
    found = torch.stack([compared(picture, still[0]) for picture in still])
    assert share(found) < 0.02
    assert (compared(changed, still[0])[2:5, 5:9] > 0.5).all()


def test_another_place_is_new_everywhere_and_so_is_darkness() -> None:
    scene = view(place(3))
    assert float(compared(view(place(4)), scene).mean()) > 0.8
    assert float(compared(lit(scene, 0.0), scene).mean()) > 0.8
    assert float(compared(scene, lit(scene, 0.0)).mean()) > 0.8


def test_a_bright_thing_in_a_plain_picture_does_not_make_the_rest_new() -> None:
    plain = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    found = compared(with_object(plain), plain)
    assert (found[2:5, 5:9] == 1).all()
    found[2:5, 5:9] = 0
    assert share(found) == 0


def test_most_of_a_page_may_change_without_making_its_white_rest_new() -> None:
    page = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    scrolled = page.copy()
    page[: 5 * PATCH], scrolled[: 5 * PATCH] = (
        view(place(5))[: 5 * PATCH],
        view(place(6))[: 5 * PATCH],
    )
    found = compared(scrolled, page)
    assert float(found[:5].mean()) > 0.8
    assert share(found[5:]) == 0


def test_slow_change_adds_up_against_what_was_kept_and_not_from_picture_to_picture() -> None:
    before, after = view(place(7)).astype(np.float64), view(place(8)).astype(np.float64)
    pictures = downsample([lit((1 - k / 60) * before + k / 60 * after) for k in range(61)], GRID)
    kept = ReferenceFrame()
    assert (kept.novelty(pictures[:1]) == 1).all()
    kept.keep(pictures[0])
    assert share(novelty(pictures[1:], pictures[:-1])) == 0
    assert float(kept.novelty(pictures[-1:]).mean()) > 0.8


def test_what_was_measured_once_says_the_same_in_every_comparison() -> None:
    pictures = downsample([view(place(seed)) for seed in (9, 10, 11)], GRID)
    once = patch_stats(pictures)
    assert len(once) == 3 and once.grid == GRID
    for k in range(3):
        assert torch.equal(change(once, once[k : k + 1]), novelty(pictures, pictures[k]).flatten(1))
    later = once[:1].followed_by(once[:-1])
    assert torch.equal(change(once, later), novelty(pictures, pictures[[0, 0, 1]]).flatten(1))
    assert not torch.equal(change(once, once[:1]), change(once, once[1:2]))


@pytest.mark.parametrize("side", [16, 14, 10])
def test_patches_as_a_tower_gets_them_say_what_the_picture_says(side: int) -> None:
    rows, columns = GRID[0], GRID[1]
    size = (side * columns, side * rows)
    scenes = [view(place(15)), with_object(view(place(15))), view(place(16))]
    pixels = torch.from_numpy(
        np.stack([np.asarray(Image.fromarray(scene).resize(size)) for scene in scenes])
    )
    cut = pixels.reshape(-1, rows, side, columns, side, 3).permute(0, 1, 3, 5, 2, 4).flatten(1, 2)
    shuffled = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(0))
    patches = stats_of_samples(average_patches(cut[:, shuffled]), GRID)
    found = change(patches, patches[:1])
    wanted = novelty(downsample(scenes, GRID), downsample(scenes[:1], GRID)[0]).flatten(1)
    assert float((found - wanted[:, shuffled]).abs().mean()) < 0.05
    assert float((found - wanted)[1].abs().mean()) > 0.1, "the order is theirs"
    assert share(found[0]) == 0


def test_a_batch_says_what_its_pictures_say_one_by_one_whatever_their_size() -> None:
    scenes = [
        view(place(11)),
        view(place(12)),
        view(place(11))[:100, :200],
        view(place(11), right=9),
    ]
    pictures = downsample(scenes, GRID)
    assert pictures.shape == (4, 3, GRID[0] * SAMPLES, GRID[1] * SAMPLES)
    for picture, scene in zip(pictures, scenes, strict=True):
        assert torch.equal(picture, downsample([scene], GRID)[0])
    batch = novelty(pictures, pictures[0])
    assert batch.shape == (4, *GRID)
    assert float(batch.min()) == 0 and float(batch.max()) <= 1
    for picture, found in zip(pictures, batch, strict=True):
        assert torch.allclose(novelty(picture[None], pictures[0])[0], found, atol=1e-5)


def test_what_moves_a_little_is_explained_by_the_picture_before_and_a_cut_is_not() -> None:
    scene = place(13)
    left = {"pan": view(scene, right=7), "tilt": view(scene, down=-7), "cut": view(place(14))}
    unlike = {
        name: float((motion_residual(downsample([view(scene), picture], GRID)) > 4).float().mean())
        for name, picture in left.items()
    }
    assert unlike["pan"] < 0.1 and unlike["tilt"] < 0.1
    assert unlike["cut"] > 0.5


def test_a_run_is_compared_neighbour_with_neighbour() -> None:
    pictures = downsample([view(place(seed)) for seed in range(4)], GRID)
    pairs = [motion_residual(pictures[k : k + 2]) for k in range(3)]
    assert torch.equal(motion_residual(pictures), torch.cat(pairs))


@pytest.mark.parametrize(
    ("low", "high", "least", "most"), [(0.1, 0.8, 0.15, 0.8), (0.0, 0.02, 0.1, 0.1)]
)
def test_otsu_finds_the_border_between_two_heaps_within_bounds(
    low: float, high: float, least: float, most: float
) -> None:
    values = torch.cat([torch.full((90,), low), torch.full((54,), high)]) + torch.rand(144) * 0.03
    (border,) = otsu(values.reshape(1, *GRID), 0.1, 0.9).tolist()
    assert least - 1e-6 <= border <= most + 1e-6
