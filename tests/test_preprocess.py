"""Our pixel arithmetic is the stock processor's: sizes, resizing, normalising, cutting; and text
comes out whole.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as stock_image

from models.pixels import (
    PixelSpec,
    clip_patches,
    fit_size,
    group_patches,
    patchify,
    read_spec,
    resize,
)
from models.sampling import TextStream
from tests.tiny import tiny_tokenizer

# As an attribute of its package this module is a placeholder that asks for torchvision.
stock_video = importlib.import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")
SPEC = PixelSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
VISION = SimpleNamespace(patch_size=8, spatial_merge_size=2, temporal_patch_size=2)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def outcome(size: Callable[..., tuple[int, int]], *given: object) -> tuple[int, int] | None:
    """The size, or None where the picture is refused."""
    try:
        return size(*given)
    except ValueError:
        return None


def test_frame_sizes_are_those_of_the_stock_video_processor() -> None:
    draw, seen = random.Random(0), set()
    for _ in range(2000):
        height, width, frames = (
            draw.randint(5, 2500),
            draw.randint(5, 2500),
            draw.choice([2, 7, 64, 256, 768]),
        )
        spec = PixelSpec(16, 2, 2, budget_frames=frames)
        wanted = outcome(
            stock_video.smart_resize, frames, height, width, 2, 32, spec.min_pixels, spec.max_pixels
        )
        assert outcome(fit_size, height, width, spec) == wanted, (height, width, frames)
        seen.add((wanted is None, frames * height * width > spec.max_pixels))
    assert {(False, False), (False, True)} <= seen and any(refused for refused, _ in seen)


def test_a_stream_gets_about_a_hundred_tokens_per_group_of_two_frames() -> None:
    rows, columns = fit_size(1080, 1920, SPEC)
    assert 80 <= rows * columns // SPEC.factor**2 <= 100


def test_frame_sizes_from_image_limits_are_those_of_the_stock_image_processor() -> None:
    draw = random.Random(1)
    spec = read_spec(VISION, None, {"size": {"shortest_edge": 4096, "longest_edge": 65536}})
    for _ in range(500):
        height, width = draw.randint(16, 900), draw.randint(16, 900)
        assert fit_size(height, width, spec) == stock_image.smart_resize(
            height, width, 16, 4096, 65536
        )


def test_a_picture_two_hundred_times_as_long_as_wide_is_refused() -> None:
    with pytest.raises(ValueError, match="200 times"):
        fit_size(32, 32 * 201, SPEC)


def test_settings_are_read_from_either_file_and_default_to_the_family() -> None:
    limits = {"shortest_edge": 4096, "longest_edge": 25_165_824}
    video = {"size": limits, "image_mean": [0.1, 0.2, 0.3]}
    assert read_spec(VISION, video, {"image_mean": [0.9] * 3}).mean == (0.1, 0.2, 0.3)
    assert read_spec(VISION, {"size": limits}) == read_spec(VISION) == PixelSpec(8, 2, 2)
    one = read_spec(VISION, None, {"min_pixels": 100, "max_pixels": 9000})
    assert (one.max_pixels, one.budget_frames) == (18000, 2)
    with pytest.raises(ValueError, match="pixel budget"):
        PixelSpec(8, 2, 2, min_pixels=10, max_pixels=5)


def test_video_limits_too_small_for_a_clip_hold_for_each_frame() -> None:
    square = {"size": {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}}
    for spec in (
        read_spec(VISION, square),
        read_spec(VISION, square, square),
        read_spec(VISION, None, square),
    ):
        assert fit_size(240, 240, spec) == (64, 64) and fit_size(64, 64, spec) == (64, 64)
        assert fit_size(1080, 1920, spec) == (48, 80)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (96, 32)])
def test_patches_stand_in_the_stock_order(height: int, width: int) -> None:
    frames = torch.rand(6, 3, height, width, generator=torch.Generator().manual_seed(0))
    wanted, _, rows, columns = stock_video.Qwen3VLVideoProcessor.patchify(
        None, frames[None], 16, 2, 2
    )
    ours = patchify(frames.reshape(3, 2, *frames.shape[1:]), SPEC).flatten(0, 1)
    assert torch.equal(ours, wanted[0]) and ours.shape == (3 * rows * columns, 3 * 2 * 16 * 16)
    assert not torch.equal(patchify(frames[:2].flip(0)[None], SPEC)[0], wanted[0, : rows * columns])


def test_a_clip_is_cut_as_each_of_its_groups_is() -> None:
    frames = noise(6, 70, 100, 3)
    patches, grid = clip_patches(frames, SPEC)
    for number, start in enumerate(range(0, 6, 2)):
        alone, its_grid = group_patches([frames[start], frames[start + 1]], SPEC)
        assert its_grid == grid and torch.equal(patches[number], alone)
    assert not torch.equal(patches[0], patches[1])


@pytest.mark.parametrize("size", [(32, 48), (64, 64), (160, 96)])
def test_resizing_is_pillows_bicubic_within_one_level(size: tuple[int, int]) -> None:
    picture = noise(70, 100, 3)
    ours = resize(picture.permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy().astype(int)
    pillow = Image.fromarray(picture.numpy())
    bicubic = np.asarray(pillow.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    bilinear = np.asarray(pillow.resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - bicubic).max() <= 1
    assert np.abs(ours - bilinear).max() > 1


def test_resizing_in_floats_as_on_a_gpu_is_the_same_but_for_rounding() -> None:
    pictures = noise(2, 3, 70, 100)
    scaled = torch.nn.functional.interpolate(
        pictures.float(), size=[32, 48], mode="bicubic", antialias=True
    )
    difference = (scaled.clamp(0, 255).round() - resize(pictures, (32, 48)).float()).abs()
    assert difference.max() <= 4 and (difference <= 1).float().mean() > 0.99


def test_a_still_picture_gives_the_patches_of_the_stock_image_processor() -> None:
    picture = noise(75, 130, 3)
    size = {"shortest_edge": 64 * 64, "longest_edge": 96 * 96}
    stock = stock_image.Qwen2VLImageProcessorPil(
        patch_size=8, size=size, image_mean=[0.4] * 3, image_std=[0.3] * 3
    )
    wanted = stock(picture.numpy(), return_tensors="pt")
    spec = read_spec(VISION, None, {"size": size, "image_mean": [0.4] * 3, "image_std": [0.3] * 3})
    patches, grid = group_patches([picture, picture], spec)
    assert [1, *grid] == wanted["image_grid_thw"][0].tolist()
    one_level = 1 / 255 / 0.3
    assert (patches - wanted["pixel_values"]).abs().max() <= one_level + 1e-5


def test_a_clip_gives_the_patches_of_the_stock_video_processor() -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("the stock video processor needs torchvision, which has no CPU build")
    clip = noise(8, 75, 130, 3)
    size = {"shortest_edge": 4096, "longest_edge": 8 * 60 * 100}
    stock = stock_video.Qwen3VLVideoProcessor(patch_size=8, size=size, do_sample_frames=False)
    wanted = stock(videos=[clip.permute(0, 3, 1, 2)], return_tensors="pt")
    spec = PixelSpec(8, 2, 2, min_pixels=4096, max_pixels=8 * 60 * 100, budget_frames=8)
    groups = [group_patches([clip[i], clip[i + 1]], spec) for i in range(0, 8, 2)]
    assert wanted["video_grid_thw"][0].tolist() == [4, *groups[0][1]]
    assert torch.allclose(
        torch.cat([patches for patches, _ in groups]), wanted["pixel_values_videos"], atol=1e-6
    )


def test_text_comes_in_whole_characters_and_adds_up() -> None:
    tokenizer = tiny_tokenizer()
    text = "naïve café — 東京の夜 🌃🚲, ok?  two spaces\n"
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text)["input_ids"]]
    assert "".join([*pieces, stream.finish()]) == text
    assert "🌃" in pieces and all("\ufffd" not in piece for piece in pieces)


def test_half_a_character_at_the_end_is_dropped() -> None:
    tokenizer = tiny_tokenizer()
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer("moon 🌙")["input_ids"][:-1]]
    assert "".join([*pieces, stream.finish()]) == "moon "


def test_stray_bytes_neither_show_nor_swallow_what_follows() -> None:
    tokenizer = tiny_tokenizer()
    stray = tokenizer("🌙")["input_ids"][1]
    for count in (1, 3, 30):
        stream = TextStream(tokenizer)
        pieces = [
            stream.push(token) for token in [stray] * count + tokenizer("sun 🌞")["input_ids"]
        ]
        assert "".join([*pieces, stream.finish()]) == "sun 🌞"


def test_a_long_answer_costs_a_bounded_decode_per_token() -> None:
    longest, tokenizer = 0, tiny_tokenizer()

    class Watching:
        def decode(self, tokens: list[int], **options: bool) -> str:
            nonlocal longest
            longest = max(longest, len(tokens))
            return str(tokenizer.decode(tokens, **options))

    stream = TextStream(Watching())
    for token in tokenizer("word " * 200)["input_ids"]:
        stream.push(token)
    assert longest <= 12
