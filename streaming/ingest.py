"""From frames to prefilled chunks: what happens before the device, and what happens on it.

`Ingest.prepare` runs on the thread that watches: it decides which groups show anything new.
`run_prefills` runs on the device's thread, for one stream or several: tower, pruning of tokens,
LLM. Knows nothing of memory tiers or events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

from config import Config
from frames import Frame
from keyframes.pruner import TokenPruner, make_pruner
from keyframes.reuse import FeatureReuse
from memory.chunk import KVChunk
from models.video_llm import PrefillRequest, VideoLLM, VisualGroup, groups_of

GroupFrames = Sequence[Frame]  # the frames that the vision tower fuses


@dataclass(frozen=True, eq=False)
class PreparedChunk:
    """The frames of one chunk, and those of its groups that show something new."""

    frames: Sequence[Frame]
    groups: Sequence[GroupFrames]


@dataclass(frozen=True, eq=False)
class PrefillWork:
    """Prepared chunks of one stream, with what they see. See `PrefillRequest` for the last four.

    Of chunks without anything new there is nothing to do.
    """

    ingest: Ingest
    chunks: Sequence[PreparedChunk]
    prefix: Sequence[KVChunk]
    recent: Sequence[KVChunk]
    num_recent: int
    index: int


@dataclass(frozen=True, eq=False)
class PrefilledChunk:
    """What became of one prepared chunk: `chunk` is None if it showed nothing new.

    num_pruned: tokens dropped inside the groups that were kept. group_tokens: of one whole group, 0
    if there is none.
    """

    prepared: PreparedChunk
    chunk: KVChunk | None
    num_pruned: int
    group_tokens: int


class Ingest:
    """State that one stream's pruning and reuse need; used by one thread at a time."""

    def __init__(self, model: VideoLLM, config: Config) -> None:
        self.model = model
        self.pruner: TokenPruner | None = make_pruner(config.prune)
        self.reuse: FeatureReuse | None = model.reuse(config.reuse)

    def prepare(self, parts: Sequence[Sequence[Frame]]) -> list[PreparedChunk]:
        """The frames of consecutive chunks in groups, without those that show nothing new."""
        grouped = [groups_of(frames, self.model) for frames in parts]
        if self.pruner is None:
            return [
                PreparedChunk(frames, groups) for frames, groups in zip(parts, grouped, strict=True)
            ]
        flat = [group for groups in grouped for group in groups]
        images = [[frame.image for frame in group] for group in flat]
        is_new = iter(self.pruner.select_groups(images, [group[0].pts_seconds for group in flat]))
        return [
            PreparedChunk(frames, list(compress(groups, is_new)))
            for frames, groups in zip(parts, grouped, strict=True)
        ]


def run_prefills(model: VideoLLM, works: Sequence[PrefillWork]) -> list[list[PrefilledChunk]]:
    """Everything that the device does for these chunks: tower and LLM in one pass each, whoever's
    they are.
    """
    encoded = encode_groups(model, works)
    requests = []
    for work, of_work in zip(works, encoded, strict=True):
        runs = [groups for groups in of_work if groups]
        if runs:
            requests.append(
                PrefillRequest(runs, work.prefix, work.recent, work.num_recent, work.index)
            )
    made = iter(model.prefill_batch(requests) if requests else [])
    results = []
    for work, of_work in zip(works, encoded, strict=True):
        chunks = iter(next(made) if any(of_work) else [])
        pairs = zip(work.chunks, of_work, strict=True)
        results.append(
            [
                _result(prepared, groups, next(chunks) if groups else None)
                for prepared, groups in pairs
            ]
        )
    return results


def encode_groups(model: VideoLLM, works: Sequence[PrefillWork]) -> list[list[list[VisualGroup]]]:
    """The visual groups of each chunk of each work, pruned.

    Streams without reuse share a pass through the tower; one with reuse needs its own, as it builds
    on its past.
    """
    shared = [work for work in works if work.ingest.reuse is None]
    encoded = {
        id(work): model.encode(_frames_of(work), work.ingest.reuse)
        for work in works
        if work not in shared
    }
    frames = [frame for work in shared for frame in _frames_of(work)]
    together = iter(model.encode(frames, None) if frames else [])
    for work in shared:
        encoded[id(work)] = [next(together) for chunk in work.chunks for _ in chunk.groups]
    return [_by_chunk(work, encoded[id(work)]) for work in works]


def _frames_of(work: PrefillWork) -> list[Frame]:
    return [frame for chunk in work.chunks for group in chunk.groups for frame in group]


def _by_chunk(work: PrefillWork, encoded: Sequence[VisualGroup]) -> list[list[VisualGroup]]:
    """The groups of each chunk, without the tokens that the stream's pruner drops."""
    pruner = work.ingest.pruner
    groups = iter(encoded)
    found = []
    for chunk in work.chunks:
        whole = [next(groups) for _ in chunk.groups]
        found.append(
            whole
            if pruner is None
            else [group.pruned(pruner.keep(group.embeddings)) for group in whole]
        )
    return found


def _result(
    prepared: PreparedChunk, groups: Sequence[VisualGroup], chunk: KVChunk | None
) -> PrefilledChunk:
    rows, columns = groups[-1].grid if groups else (0, 0)
    return PrefilledChunk(
        prepared, chunk, sum(group.num_pruned for group in groups), rows * columns
    )
