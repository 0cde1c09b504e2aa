"""A session that prunes by novelty: what shows nothing new costs nothing, and is answered for by
what still stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config import PruneConfig
from frames import Frame
from keyframes.frame_group import FrameGroup
from memory.disk_tier import SessionStore
from memory.folders import summary
from models.video_llm import VisualGroup
from streaming.engine import Engine
from streaming.events import Answer, Watched
from streaming.session import Session
from tests.watching import tiny_engine


def pruning(checkpoint: Path, strategy: str = "novelty", **memory: Any) -> Engine:
    """Chunks of two groups, the newest one in the window."""
    engine = tiny_engine(checkpoint, **{"window_chunks": 1, "recall_chunks": 0, **memory})
    engine.config = replace(engine.config, prune=PruneConfig(strategy, 0.5))
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


def tokens_of(session: Session) -> list[int]:
    return [
        int(chunk.visual.sum()) for chunk in session.memory.get(range(session.memory.num_chunks))
    ]


def later(frames: Sequence[Frame], seconds: float) -> list[Frame]:
    return [replace(frame, pts_seconds=seconds + frame.pts_seconds) for frame in frames]


def test_a_still_minute_costs_one_group_and_stats_tell_it(checkpoint: Path) -> None:
    session = pruning(checkpoint).open()
    stats = seen(session, scene(120)).stats
    assert (stats.chunks, stats.visual_tokens, stats.pruned_tokens) == (1, 3, 60 * 6 - 3)
    assert stats.frames_read == 120 and session.seen_seconds == 59.5
    assert seen(session, later(scene(8), 60)).stats.visual_tokens == 6
    plain = seen(pruning(checkpoint, "none").open(), scene(120)).stats
    assert (plain.visual_tokens, plain.pruned_tokens) == (360, 0)
    session.memory.check_integrity()


def test_what_shows_nothing_new_is_not_encoded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, given = pruning(checkpoint), []
    stock = engine.model.encode_groups

    def encode(groups: Sequence[FrameGroup], reuse: None = None) -> list[VisualGroup]:
        given.append([frame.index for group in groups for frame in group.frames])
        return stock(groups, reuse)

    monkeypatch.setattr(engine.model, "encode_groups", encode)
    seen(engine.open(), scene(12, appears=6))
    assert [indices for indices in given if indices] == [[0, 1], [6, 7]]


def test_a_group_that_goes_on_is_prefilled_as_if_nothing_had_been_between(checkpoint: Path) -> None:
    engine = pruning(checkpoint)
    session, beside = engine.open(), engine.open()
    frames = scene(40, appears=20)
    seen(session, frames)
    seen(beside, [frames[0], frames[1]])
    seen(beside, [frames[20], frames[21]])
    for one, other in zip(session.memory.get([0, 1]), beside.memory.get([0, 1]), strict=True):
        assert torch.equal(one.keys, other.keys) and one.group_starts == other.group_starts
    assert session.memory.spans() == [(0.0, 0.5), (10.0, 10.5)]


def words_of(session: Session, question: str) -> str:
    """The question as the model gets it."""
    return session.retrieve(question).question


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("What is shown at 0:07?", "What is shown at 0 seconds?"),
        ("What is shown at 12 seconds?", "What is shown at 10 seconds?"),
        ("What is shown at 0:10?", "What is shown at 10 seconds?"),
        ("What is shown at 10.4 seconds?", "What is shown at 10.4 seconds?"),
        ("What is shown at 1:00?", "What is shown at 60 seconds?"),
        ("What was shown in the last 5 seconds?", "What was shown in the last 5 seconds?"),
    ],
)
def test_a_named_time_at_which_nothing_was_new_is_asked_for_as_the_group_that_still_stood(
    checkpoint: Path, tmp_path: Path, asked: str, given: str
) -> None:
    session = pruning(checkpoint).open(tmp_path / "s")
    seen(session, scene(40, appears=20))
    assert words_of(session, asked) == given
    session.close()
    again = pruning(checkpoint).open(tmp_path / "s")
    assert words_of(again, "What is shown at 0:07?") == "What is shown at 0 seconds?"
    plain = pruning(checkpoint, "none").open()
    seen(plain, scene(40, appears=20))
    assert words_of(plain, "What is shown at 0:07?") == "What is shown at 7 seconds?"
    again.close()


def test_evidence_lasts_as_long_as_what_it_shows_stood(checkpoint: Path) -> None:
    session = pruning(checkpoint, recall_chunks=2).open()
    seen(session, scene(40, appears=20))
    for question, span in (
        ("What is shown at 0:07?", (0.0, 10.0)),
        ("What is shown now?", (10.0, 20.0)),
    ):
        answer = next(event for event in session.ask(question) if isinstance(event, Answer))
        best = answer.evidence[0]
        assert (best.start_seconds, best.stop_seconds, best.why) == (*span, "named time")


def test_a_kept_session_goes_on_pruning_from_a_whole_group(
    checkpoint: Path, tmp_path: Path
) -> None:
    session = pruning(checkpoint).open(tmp_path / "s")
    seen(session, scene(16))
    session.close()
    again = pruning(checkpoint, "none").open(tmp_path / "s")
    assert again.config.prune == PruneConfig("novelty", 0.5)
    assert seen(again, later(scene(16), 8)).stats.visual_tokens == 6
    assert tokens_of(again) == [3, 3]
    again.memory.check_integrity()
    again.close()


def test_a_still_end_is_not_watched_again(checkpoint: Path, tmp_path: Path) -> None:
    session = pruning(checkpoint).open(tmp_path / "s")
    seen(session, scene(40))
    session.close()
    session.close()
    again = pruning(checkpoint).open(tmp_path / "s")
    assert (again.memory.spans(), again.seen_seconds) == ([(0.0, 0.5)], 19.5)
    again.close()


def test_frames_that_showed_nothing_new_are_counted_for_ever(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Those before a chunk with it, those behind the newest one when the session is left."""
    engine = pruning(checkpoint)
    session = engine.open(tmp_path / "s")
    seen(session, [*scene(24, appears=22), *later(scene(16, appears=1), 12)])
    session.close()
    store = SessionStore(tmp_path / "s", read_only=True)
    assert [chunk.num_frames for chunk in store.chunks] == [4, 20, 4]
    frames_since, seconds_since = store.still_since
    assert frames_since == 12 and seconds_since > 0
    store.close()
    for frames in (40, 80):
        assert (summary(tmp_path / "s").frames, summary(tmp_path / "s").seen_seconds) == (
            frames,
            frames / 2 - 0.5,
        )
        again = engine.open(tmp_path / "s")
        assert again.stats.frames_read == frames
        seen(again, later(scene(40, appears=8), frames / 2))
        store = SessionStore(tmp_path / "s", read_only=True)
        assert store.still_since == (0, 0.0), "what was said of an older chunk holds no more"
        store.close()
        again.close()


def test_after_an_error_pruning_begins_anew_as_what_it_saw_was_not_remembered(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pruning(checkpoint)
    session = engine.open()
    frames = scene(16, appears=8)
    seen(session, frames[:8])

    def fail(*given: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(engine.model, "prefill_batch", fail)
        with pytest.raises(ZeroDivisionError):
            seen(session, frames[8:12])
    seen(session, frames[12:])
    assert tokens_of(session) == [3, 3]
