"""A model that reuses its tower's work along a stream gives what the stock tower gives, where it
should.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from config import Config, MemoryConfig, PruneConfig, ReuseConfig
from frames import Frame
from keyframes.chunk_builder import build_chunks
from keyframes.frame_group import FrameGroup
from models.partial_vit import Tower
from models.qwen3_vl import Qwen3VL
from models.video_llm import VisualGroup
from streaming.ingest import Ingest, PrefillWork, encode_groups
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
    tiny: Qwen3VL,
    frames: Sequence[Frame],
    config: ReuseConfig,
    step: int = 4,
    is_live: bool = False,
) -> list[VisualGroup]:
    """`step` frames to a chunk, through the ingest of a session."""
    memory = MemoryConfig(chunk_frames=step, max_chunk_seconds=1000.0)
    ingest = Ingest(tiny, Config(memory=memory, reuse=config))
    found: list[VisualGroup] = []
    for chunk in build_chunks(frames, ingest.chunk_builder(is_live), ingest.measure):
        work = PrefillWork(ingest, ingest.prepare([chunk]), [], [], 0, 0)
        found += encode_groups(tiny, [work])[0][0]
    return found


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
    (still,) = noise_frames(1, *SIZE)
    frames = shown([still] * 3 + [with_corner(still)] * 3)
    blind = ReuseConfig("novelty", still_below=1.0)
    assert apart(reused(tiny, frames, blind)[:1], tiny.encode(frames)[:1]) < TOLERANCE
    assert apart(reused(tiny, frames, blind), tiny.encode(frames)) > 100 * TOLERANCE


def with_corner(frame: Frame) -> Frame:
    """A change that is too small for a keyframe."""
    image = frame.image.copy()
    image[:20, :20] = 255
    return replace(frame, image=image)


@pytest.mark.parametrize(
    ("is_live", "right"), [(False, [0, 1, 2, 3, 4, 5]), (True, [0, 1, 2, 4, 5])]
)
def test_a_keyframe_is_the_reference_as_soon_as_it_is_known(
    tiny: Qwen3VL, is_live: bool, right: list[int]
) -> None:
    """To a tower that takes no change for one, only a keyframe is new. A live chunk is not held
    back until its keyframes are known, so its last group is of the old shot here."""
    one, two = noise_frames(2, *SIZE)
    frames = shown([one] * 6 + [two] * 6)
    blind = ReuseConfig("novelty", still_below=1.0)
    ours, plain = reused(tiny, frames, blind, is_live=is_live), tiny.encode(frames)
    near = [k for k in range(6) if apart(ours[k : k + 1], plain[k : k + 1]) < TOLERANCE]
    assert near == right


def test_a_keyframe_in_a_group_that_is_left_out_is_no_reference(tiny: Qwen3VL) -> None:
    """In a still picture the detector's long gaps make keyframes, which pruning leaves out."""
    still = shown(noise_frames(1, *SIZE) * 200)
    moved = [*still, *shown([with_corner(still[0])] * 4)]
    frames = [replace(frame, pts_seconds=k / 2) for k, frame in enumerate(moved)]
    found = groups_of_session(tiny, frames, prune="novelty")
    assert [group.frames[0].pts_seconds for group in found] == [0.0, 60.0, 100.0]
    assert [group.starts_anew for group in found] == [False, True, True]
    assert [group.starts_anew for group in groups_of_session(tiny, frames, prune="none")] == (
        [False] * 102
    )


def groups_of_session(tiny: Qwen3VL, frames: Sequence[Frame], prune: str) -> list[FrameGroup]:
    config = Config(reuse=ReuseConfig("novelty"), prune=PruneConfig(prune))
    ingest = Ingest(tiny, config)
    chunks = list(build_chunks(frames, ingest.chunk_builder(is_live=False), ingest.measure))
    return [group for chunk in ingest.prepare(chunks) for group in chunk.groups]


def test_frames_of_another_size_begin_anew(tiny: Qwen3VL) -> None:
    frames = shown([*noise_frames(4, *SIZE), *noise_frames(4, 96, 64)])
    everything = ReuseConfig("novelty", refresh_share=1.0, still_below=0.0)
    assert apart(reused(tiny, frames, everything), tiny.encode(frames)) < TOLERANCE
    # sizes in one call
    assert apart(reused(tiny, frames, everything, step=8), tiny.encode(frames)) < TOLERANCE
