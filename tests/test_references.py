"""What the tower's work is reused from follows the stream: cuts, what passes by, what stays."""

from __future__ import annotations

from operator import itemgetter

import torch
from torch import Tensor

from config import ReuseConfig
from keyframes.novelty import SAMPLES, Patches, patch_stats
from keyframes.references import References

ROWS = COLUMNS = 8
CONFIG = ReuseConfig(refresh_share=0.25)


def picture(seed: int) -> Tensor:
    """A small picture of a scene, [3, h, w]."""
    size = (3, ROWS * SAMPLES, COLUMNS * SAMPLES)
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(seed)).to(
        torch.int16
    )


def with_thing(scene: Tensor, patches: int, column: int) -> Tensor:
    """The scene with something in front: so many columns of patches, from `column` on."""
    shown = scene.clone()
    shown[:, :, column * SAMPLES : (column + patches) * SAMPLES] = picture(99)[
        :, :, : patches * SAMPLES
    ]
    return shown


ORDER = (
    torch.arange(ROWS * COLUMNS)
    .reshape(ROWS // 2, 2, COLUMNS // 2, 2)
    .transpose(1, 2)
    .flatten()
    .tolist()
)


def by_token(pictures: Tensor) -> Patches:
    """Small pictures [n, 3, h, w] with the four patches of a token next to each other."""
    rows = patch_stats(pictures)
    return Patches(rows.samples[:, ORDER], rows.moments[:, :, ORDER], rows.grid)


def marks(*pictures: Tensor, parts: int = 1) -> list[int]:
    """Numbers of the keyframes, the pictures given in parts."""
    references = References(2, 2, CONFIG)
    found: list[bool] = []
    for part in torch.stack(pictures).chunk(parts):
        found += references.follow(by_token(part))[1]
    return [number for number, marked in enumerate(found) if marked]


def test_a_scene_has_one_reference_and_a_cut_begins_another() -> None:
    one, two = picture(1), picture(2)
    assert marks(one, one, one, one, two, two, two, two) == [0, 4]
    assert marks(one, one, one, one, one, one) == [0]


def test_something_large_that_passes_by_leaves_the_reference_in_place() -> None:
    scene = picture(1)
    passing = [with_thing(scene, 4, column) for column in (0, 1, 2, 3)]
    assert marks(scene, scene, *passing, scene, scene) == [0]
    stays = with_thing(scene, 4, 2)
    assert marks(scene, scene, *passing, stays, stays) == [0, 6]


def test_what_is_small_is_novelty_and_no_reason_for_a_reference() -> None:
    scene = picture(1)
    references = References(2, 2, CONFIG)
    novelty, keyframes = references.follow(
        by_token(torch.stack([scene, scene, scene, with_thing(scene, 1, 3)]))
    )
    assert keyframes == [True, False, False, False]
    changed = novelty > CONFIG.still_below
    assert not changed[:3].any()
    assert [
        place % COLUMNS for place in itemgetter(*changed[3].nonzero().flatten().tolist())(ORDER)
    ] == [3] * ROWS


def test_a_stream_in_parts_has_the_references_of_the_whole() -> None:
    pictures = (
        [picture(1)] * 4 + [picture(2)] * 4 + [with_thing(picture(2), 4, k % 4) for k in range(4)]
    )
    assert marks(*pictures) == marks(*pictures, parts=2) == marks(*pictures, parts=6) == [0, 4]


def test_another_size_begins_anew() -> None:
    references = References(2, 2, CONFIG)
    references.follow(by_token(torch.stack([picture(1)] * 2)))
    smaller = patch_stats(torch.stack([picture(1)[:, : 4 * SAMPLES, : 4 * SAMPLES]] * 2))
    assert references.follow(smaller)[1] == [True, False]
