"""A model that reuses its tower's work along a stream gives what the stock tower gives, where it
should.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from config import ReuseConfig
from frames import Frame
from models.partial_vit import Tower
from models.qwen3_vl import Qwen3VL
from models.video_llm import VisualGroup
from tests.tiny import noise_frames

TOLERANCE = 1e-5
SIZE = (64, 96)  # pixels; a grid of 2 x 3 tokens after the checkpoint's limit


def shown(images: Sequence[Frame]) -> list[Frame]:
    """These pictures as consecutive frames."""
    return [Frame(frame.image, k / 2, k) for k, frame in enumerate(images)]


def apart(one: Sequence[VisualGroup], other: Sequence[VisualGroup]) -> float:
    """The largest difference of features; grids and times must be the same."""
    assert [(g.grid, g.pts_seconds) for g in one] == [(g.grid, g.pts_seconds) for g in other]
    pairs = [
        (a, b)
        for g, h in zip(one, other, strict=True)
        for a, b in zip((g.embeddings, *g.deepstack), (h.embeddings, *h.deepstack), strict=True)
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


def reused(
    tiny: Qwen3VL, frames: Sequence[Frame], config: ReuseConfig, step: int = 4
) -> list[VisualGroup]:
    reuse = tiny.reuse(config)
    parts = [frames[k : k + step] for k in range(0, len(frames), step)]
    return [group for part in parts for group in tiny.encode(part, reuse)]


def test_nothing_is_reused_unless_it_is_asked_for(tiny: Qwen3VL) -> None:
    assert tiny.reuse(ReuseConfig()) is None


def test_all_refreshed_is_the_stock_tower(tiny: Qwen3VL, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise_frames(10, *SIZE)
    everything = ReuseConfig("novelty", refresh_share=1.0, still_below=0.0)
    assert apart(reused(tiny, frames, everything), tiny.encode(frames)) < TOLERANCE
    monkeypatch.delattr(Tower, "forward_partial")
    with pytest.raises(AttributeError, match="forward_partial"):
        reused(tiny, frames, everything)


def test_a_picture_that_stands_still_costs_no_tower_and_changes_nothing(tiny: Qwen3VL) -> None:
    still = shown(noise_frames(1, *SIZE) * 12)
    patches_computed: list[int] = []
    hook = tiny._visual.blocks[0].mlp.register_forward_pre_hook(
        lambda _, x: patches_computed.append(x[0].numel())
    )
    try:
        ours = reused(tiny, still, ReuseConfig("novelty"))
        with_reuse = sum(patches_computed)
        patches_computed.clear()
        plain = tiny.encode(still)
    finally:
        hook.remove()
    assert apart(ours, plain) < TOLERANCE
    assert with_reuse * 6 == sum(patches_computed)  # one group of six


def test_a_stream_without_repetition_is_computed_whole(tiny: Qwen3VL) -> None:
    frames = noise_frames(8, *SIZE)
    assert apart(reused(tiny, frames, ReuseConfig("novelty")), tiny.encode(frames)) < TOLERANCE


def test_a_change_that_is_taken_for_none_is_noticed(tiny: Qwen3VL) -> None:
    one, two = noise_frames(2, *SIZE)
    frames = shown([one, one, one, two, two, two])
    blind = ReuseConfig("novelty", still_below=1.0)
    assert apart(reused(tiny, frames, blind), tiny.encode(frames)) > 100 * TOLERANCE


def test_frames_of_another_size_begin_anew(tiny: Qwen3VL) -> None:
    frames = shown([*noise_frames(4, *SIZE), *noise_frames(4, 96, 64)])
    everything = ReuseConfig("novelty", refresh_share=1.0, still_below=0.0)
    assert apart(reused(tiny, frames, everything), tiny.encode(frames)) < TOLERANCE
    # sizes in one call
    assert apart(reused(tiny, frames, everything, step=8), tiny.encode(frames)) < TOLERANCE
