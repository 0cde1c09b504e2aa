"""From pictures to the patches a Qwen-style vision tower reads: choose a size, resize, normalise,
cut.

Plain tensor arithmetic, equal to the stock video processor's (which needs torchvision; this does
not). Knows nothing of models, prompts or time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from errors import LonglookError

# Limits of the released Qwen3-VL checkpoints, in pixels of a whole clip (frames x height x width).
CLIP_MIN_PIXELS = 4096
CLIP_MAX_PIXELS = 25_165_824
# The stock processor spreads its budget over a clip's frames. A stream has no end, so every frame
# gets the share it would have in a clip of so many: with the limits above, 96 tokens per group of
# two frames.
BUDGET_FRAMES = 256
MAX_ASPECT = 200  # as the stock processor


@dataclass(frozen=True)
class PixelSpec:
    """How a checkpoint wants its pictures.

    patch_size: pixels along a patch's side. merge_size: patches along a token's side.
    temporal_patch_size: frames per group.
    mean, std: per channel, for values in [0, 1].
    min_pixels, max_pixels: limits for a clip of `budget_frames` frames.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    min_pixels: int = CLIP_MIN_PIXELS
    max_pixels: int = CLIP_MAX_PIXELS
    budget_frames: int = BUDGET_FRAMES

    def __post_init__(self) -> None:
        if (
            not 0 < self.min_pixels <= self.max_pixels
            or self.budget_frames < self.temporal_patch_size
        ):
            raise ValueError(f"not a pixel budget: {self}")

    @property
    def factor(self) -> int:
        """Pixels along a token's side; a picture's sides are multiples of it."""
        return self.patch_size * self.merge_size


def read_spec(
    vision: Any, video: Mapping[str, Any] | None = None, image: Mapping[str, Any] | None = None
) -> PixelSpec:
    """The spec of a checkpoint.

    vision: its vision configuration, which decides the patch sizes.
    video, image: its video and image processor settings, if there. Image limits are for one picture
    and hold for each frame; video limits are for a whole clip, unless they are too small for one.
    """
    frames = int(vision.temporal_patch_size)
    settings = video or image or {}
    size = settings.get("size") or {}
    if not isinstance(size, Mapping):
        raise ValueError(f"its processor's size must name edges or pixels, not be {size!r}")
    least = int(size.get("shortest_edge") or settings.get("min_pixels") or CLIP_MIN_PIXELS)
    most = int(size.get("longest_edge") or settings.get("max_pixels") or CLIP_MAX_PIXELS)
    one_token_each = BUDGET_FRAMES * (int(vision.patch_size) * int(vision.spatial_merge_size)) ** 2
    per_clip = most >= one_token_each and (video is not None or image is None)
    return PixelSpec(
        patch_size=int(vision.patch_size),
        merge_size=int(vision.spatial_merge_size),
        temporal_patch_size=frames,
        mean=_per_channel(settings, "image_mean", PixelSpec.mean),
        std=_per_channel(settings, "image_std", PixelSpec.std),
        min_pixels=least if per_clip else least * frames,
        max_pixels=most if per_clip else most * frames,
        budget_frames=BUDGET_FRAMES if per_clip else frames,
    )


def _per_channel(
    settings: Mapping[str, Any], name: str, default: tuple[float, ...]
) -> tuple[float, ...]:
    """Three numbers; one stands for all channels. Raises ValueError for anything else."""
    found = settings.get(name)
    if found is None:
        return default
    values = found if isinstance(found, Sequence) else [found] * 3
    is_number = [isinstance(value, int | float) and math.isfinite(value) for value in values]
    if len(values) != 3 or not all(is_number) or (name == "image_std" and min(values) <= 0):
        raise ValueError(f"its processor's {name} cannot be {found!r}")
    return tuple(map(float, values))


def fit_size(height: int, width: int, spec: PixelSpec) -> tuple[int, int]:
    """The (height, width) a frame is resized to: multiples of `spec.factor` near its shape, within
    the pixel budget.

    Raises LonglookError for a frame more than 200 times as long as wide.
    """
    unit, frames = spec.factor, spec.budget_frames
    if min(height, width) < unit:
        enlarge = max(unit / height, unit / width)
        height, width = int(height * enlarge), int(width * enlarge)
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise LonglookError(
            f"a frame of {width}x{height} is more than {MAX_ASPECT} times as long as wide"
        )
    rows, columns = round(height / unit) * unit, round(width / unit) * unit
    padded = round(frames / spec.temporal_patch_size) * spec.temporal_patch_size
    if padded * rows * columns > spec.max_pixels:
        shrink = math.sqrt(frames * height * width / spec.max_pixels)
        rows = max(unit, math.floor(height / shrink / unit) * unit)
        columns = max(unit, math.floor(width / shrink / unit) * unit)
    elif padded * rows * columns < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / (frames * height * width))
        rows, columns = (
            math.ceil(height * grow / unit) * unit,
            math.ceil(width * grow / unit) * unit,
        )
    return rows, columns


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, uint8 [n, C, H, W] -> uint8 [n, C, *size]; in integers on the CPU,
    as the stock.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    if images.device.type == "cpu":
        return interpolate(
            images, size=list(size), mode="bicubic", antialias=True, align_corners=False
        )
    scaled = interpolate(
        images.float(), size=list(size), mode="bicubic", antialias=True, align_corners=False
    )
    return scaled.clamp(0, 255).round().to(torch.uint8)


def normalise(images: Tensor, spec: PixelSpec) -> Tensor:
    """uint8 [n, C, H, W] -> float32, rescaling and normalisation in one step."""
    mean = torch.tensor(spec.mean, device=images.device) * 255
    std = torch.tensor(spec.std, device=images.device) * 255
    return (images.float() - mean[:, None, None]) / std[:, None, None]


def patchify(frames: Tensor, spec: PixelSpec) -> Tensor:
    """Groups of frames [g, T, C, H, W] -> patches [g, n, C * T * P * P], those of one token next to
    each other.
    """
    p, m = spec.patch_size, spec.merge_size
    groups, t, c, height, width = frames.shape
    cells = frames.reshape(groups, t, c, height // (p * m), m, p, width // (p * m), m, p)
    # group, time, channel, row, row in token, y, column, column in token, x
    # -> group, row, column, row in token, column in token, channel, time, y, x
    return cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(groups, -1, c * t * p * p)


def normalise_patches(patches: Tensor, spec: PixelSpec) -> Tensor:
    """uint8 patches [..., C * values] -> float32, as `normalise` of the pictures before they were
    cut.
    """
    by_colour = patches.reshape(*patches.shape[:-1], len(spec.mean), -1).float()
    mean = torch.tensor(spec.mean, device=patches.device) * 255
    std = torch.tensor(spec.std, device=patches.device) * 255
    return ((by_colour - mean[:, None]) / std[:, None]).flatten(-2)


def cut_clip(images: Tensor, spec: PixelSpec) -> tuple[Tensor, tuple[int, int]]:
    """The patches [g, n, values] of g groups of frames of one size, uint8, and their grid (rows,
    columns) in patches.

    images: uint8 [g * temporal_patch_size, H, W, C].
    """
    size = fit_size(int(images.shape[1]), int(images.shape[2]), spec)
    pixels = resize(images.permute(0, 3, 1, 2), size)
    grid = (size[0] // spec.patch_size, size[1] // spec.patch_size)
    return patchify(pixels.reshape(-1, spec.temporal_patch_size, *pixels.shape[1:]), spec), grid


def cut_group(images: Sequence[Tensor], spec: PixelSpec) -> tuple[Tensor, tuple[int, int]]:
    """The patches [n, values] of one group, uint8, and its grid (rows, columns) in patches.

    images: `temporal_patch_size` uint8 [H, W, C]; the first decides the size.
    """
    assert len(images) == spec.temporal_patch_size, f"{len(images)} frames are not a group"
    size = fit_size(int(images[0].shape[0]), int(images[0].shape[1]), spec)
    resized = torch.cat([resize(image.permute(2, 0, 1)[None], size) for image in images])
    grid = (size[0] // spec.patch_size, size[1] // spec.patch_size)
    return patchify(resized[None], spec)[0], grid


def clip_patches(images: Tensor, spec: PixelSpec) -> tuple[Tensor, tuple[int, int]]:
    """`cut_clip`, normalised: float32 [g, n, values]."""
    patches, grid = cut_clip(images, spec)
    return normalise_patches(patches, spec), grid


def group_patches(images: Sequence[Tensor], spec: PixelSpec) -> tuple[Tensor, tuple[int, int]]:
    """`cut_group`, normalised: float32 [n, values]."""
    patches, grid = cut_group(images, spec)
    return normalise_patches(patches, spec), grid
