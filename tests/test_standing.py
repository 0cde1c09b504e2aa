"""A session that prunes by novelty: what still stands there is found in the chunk that kept it, and counted right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config import PruneConfig
from memory.chunk import KVChunk, PositionLayout
from memory.recall import PlannedChunk, RecallPlan, with_standing
from memory.standing import holders
from models.base import VisualGroup
from streaming.engine import Engine
from streaming.events import Answer, Watched
from streaming.frames import Frame
from streaming.session import Session
from tests.test_levels import make_chunk
from tests.tiny import save_tiny
from tests.watching import tiny_engine

GRID = (2, 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def pruning(checkpoint: Path, strategy: str = "novelty", **memory: Any) -> Engine:
    """Chunks of two groups, the newest one in the window."""
    engine = tiny_engine(checkpoint, **{"window_chunks": 1, "recall_chunks": 0, **memory})
    engine.config = replace(engine.config, prune=PruneConfig(strategy))
    return engine


def scene(count: int, appears: int = 0) -> list[Frame]:
    """Still frames, 2 a second; from frame `appears` on a square stands in the last cell."""
    rng = np.random.default_rng(0)
    picture = rng.integers(60, 180, (32, 48, 3)).astype(np.uint8)
    changed = picture.copy()
    changed[18:, 34:] = 255
    return [Frame(changed if appears and k >= appears else picture, k / 2, k) for k in range(count)]


def seen(session: Session, frames: Sequence[Frame]) -> Watched:
    return [event for event in session.watch(frames) if isinstance(event, Watched)][-1]


def context_of(session: Session) -> list[int]:
    return session._recall("What is shown now?").indices


def tokens_of(session: Session) -> list[int]:
    return [int(chunk.visual.sum()) for chunk in session.memory.get(range(session.memory.num_chunks))]


def test_a_still_minute_costs_one_group_and_stats_tell_it(checkpoint: Path) -> None:
    session = pruning(checkpoint).open()
    stats = seen(session, scene(120)).stats
    assert (stats.visual_tokens, stats.pruned_tokens) == (6, 59 * 6)
    assert stats.tokens > 60 * 10, "time stamps stay"
    assert (
        seen(session, [replace(frame, pts_seconds=60 + frame.pts_seconds) for frame in scene(8)]).stats.visual_tokens
        == 12
    )
    plain = seen(pruning(checkpoint, "none").open(), scene(120)).stats
    assert (plain.visual_tokens, plain.pruned_tokens) == (360, 0)
    session.memory.check_integrity()


def test_what_still_stands_comes_with_the_window_from_the_chunks_that_kept_it(checkpoint: Path) -> None:
    session = pruning(checkpoint).open()
    seen(session, scene(40, appears=20))
    assert tokens_of(session) == [6, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert context_of(session) == [0, 5, 9]
    assert context_of(pruned_otherwise := watched_by(checkpoint, standing_chunks=0)) == [9]
    assert tokens_of(pruned_otherwise) == tokens_of(session)
    uniform = pruning(checkpoint, "uniform").open()
    seen(uniform, scene(40, appears=20))
    assert context_of(uniform) == [9]


def watched_by(checkpoint: Path, **memory: Any) -> Session:
    session = pruning(checkpoint, **memory).open()
    seen(session, scene(40, appears=20))
    return session


def test_standing_chunks_are_no_evidence_and_are_part_of_the_answer(checkpoint: Path) -> None:
    session = watched_by(checkpoint)
    answer = next(event for event in session.ask("What is shown now?") if isinstance(event, Answer))
    assert [item.why for item in answer.evidence] == ["named time"], "now is a time"
    assert answer.stats.context_tokens > 6


def test_a_kept_session_goes_on_pruning_from_a_whole_group(checkpoint: Path, tmp_path: Path) -> None:
    session = pruning(checkpoint).open(tmp_path / "s")
    seen(session, scene(16))
    session.close()
    again = pruning(checkpoint, "none").open(tmp_path / "s")
    assert again.config.prune == PruneConfig("novelty")
    later = [replace(frame, pts_seconds=8 + frame.pts_seconds) for frame in scene(16)]
    assert seen(again, later).stats.visual_tokens == 12
    assert tokens_of(again) == [6, 0, 0, 0, 6, 0, 0, 0]
    again.memory.check_integrity()
    again.close()


def test_after_an_error_pruning_begins_anew_as_what_it_saw_was_not_remembered(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pruning(checkpoint)
    session = engine.open()
    frames = scene(16, appears=8)
    seen(session, frames[:8])

    def fail(groups: Sequence[VisualGroup], context: Sequence[KVChunk], index: int) -> KVChunk:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(engine.model, "prefill", fail)
        with pytest.raises(ZeroDivisionError):
            seen(session, frames[8:12])
    seen(session, frames[12:])
    assert tokens_of(session) == [6, 0, 6]


def test_merged_tokens_are_the_means_of_all_that_they_stand_for(checkpoint: Path) -> None:
    engine = pruning(checkpoint, "merge")
    given: list[VisualGroup] = []
    whole = engine.model.encode(scene(2))[0]
    stock = engine.model.prefill

    def prefill(groups: Sequence[VisualGroup], context: Sequence[KVChunk], index: int) -> KVChunk:
        given.extend(groups)
        return stock(groups, context, index)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine.model, "prefill", prefill)
        session = engine.open()
        seen(session, scene(2))
    assert tokens_of(session) == [2] and given[0].num_pruned == 4
    sums = [features.sum(0) for features in (whole.embeddings, *whole.deepstack)]
    for kept, total in zip((given[0].embeddings, *given[0].deepstack), sums, strict=True):
        shares = torch.linalg.lstsq(kept.T, total[:, None]).solution[:, 0]
        assert torch.allclose(shares.sum(), torch.tensor(6.0), atol=1e-3), "every token counts once"
        assert torch.allclose(kept.T @ shares, total, atol=1e-3)


def chunk_with(places: list[list[int]]) -> KVChunk:
    """A chunk of 2 x 3 grids of which only these places are left."""
    whole = make_chunk([GRID] * len(places))
    keep = ~whole.visual
    keep[[10 * group + 3 + place for group, kept in enumerate(places) for place in kept]] = True
    layout = PositionLayout(whole.layout.positions[:, keep], whole.layout.extent)
    return KVChunk(whole.keys[:, :, keep], whole.values[:, :, keep], layout, whole.visual[keep], 0.0, 4.0, 0)


def found(kept: Sequence[list[list[int]]], index: int, seconds: float = 60.0) -> list[int]:
    chunks = [chunk_with(places) for places in kept]
    spans = [(4.0 * k, 4.0 * k + 3.5) for k in range(len(kept))]
    return holders(index, spans, lambda k: (chunks[k].layout, chunks[k].visual), seconds)


def test_the_holders_of_a_chunk_are_the_last_ones_that_kept_each_cell_its_first_group_lacks() -> None:
    whole = [0, 1, 2, 3, 4, 5]
    kept: list[list[list[int]]] = [[whole, []], [[2], [3]], [[], []], [[2], []], [[], [0, 4]], [[5], [1]]]
    assert found(kept, 5) == [4, 3, 1, 0]
    assert found(kept, 2) == [0, 1]
    assert found(kept, 0) == []
    assert found([*kept, [whole, []]], 6) == []
    assert found(kept, 5, seconds=8.0) == [4, 3]


def test_a_group_of_its_own_is_told_from_an_empty_first_one() -> None:
    assert found([[[0, 1, 2, 3, 4, 5]], [[], [0, 1, 2, 3, 4, 5]]], 1) == [0]
    assert found([[[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 3, 4, 5], []]], 1) == []


def test_standing_chunks_come_for_the_most_important_first_within_their_number() -> None:
    plan = RecallPlan(
        (PlannedChunk(4, 2.0, "recalled"), PlannedChunk(6, 0.0, "beside", "sparse"), PlannedChunk(9, 0.0, "recent"))
    )
    held = {4: [3, 2], 9: [6, 1, 4], 6: [0]}

    def levels(most: int) -> Iterator[tuple[int, str, str]]:
        return ((c.index, c.why, c.level) for c in with_standing(plan, lambda index: held[index], most).chunks)

    assert list(levels(0)) == [(4, "recalled", "dense"), (6, "beside", "sparse"), (9, "recent", "dense")]
    assert list(levels(1)) == [(4, "recalled", "dense"), (6, "standing", "dense"), (9, "recent", "dense")]
    assert [index for index, why, _ in levels(3) if why == "standing"] == [1, 3, 6]
    assert [index for index, why, _ in levels(9) if why == "standing"] == [1, 2, 3, 6]


def test_what_stood_at_a_named_time_comes_before_what_stands_now() -> None:
    plan = RecallPlan((PlannedChunk(5, 0.0, "named time"), PlannedChunk(9, 0.0, "recent")))
    held = {5: [2], 9: [8]}
    found = with_standing(plan, lambda index: held[index], 1)
    assert [(chunk.index, chunk.why) for chunk in found.chunks if chunk.why == "standing"] == [(2, "standing")]
