"""From frames to prefilled chunks: what happens before the device, and what happens on it.

`Ingest.measure` and `Ingest.prepare` run on the thread that watches: keyframes, change, which
groups show anything new, resizing and cutting to patches, all in batches. `run_prefills` runs on
the device's thread, for one stream or several: tower, pruning of tokens, LLM. In between travels
one object, `FrameGroup`. Knows nothing of memory tiers or events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from config import Config
from frames import Frame
from keyframes.chunk_builder import ChunkBuilder, ChunkFrames, ChunkLimits
from keyframes.detector import KeyframeDetector
from keyframes.frame_diff import FrameDiff, Grid, analysis_grid, measure_frames
from keyframes.frame_group import FrameGroup
from keyframes.pruner import TokenPruner, make_pruner
from keyframes.reuse import FeatureReuse, KeyframeNovelty
from memory.chunk import KVChunk
from models.video_llm import PrefillRequest, VideoLLM, VisualGroup, split_into_groups

LIVE_SHARE = 0.5  # of `max_chunk_seconds` that a chunk of a live source may cover


@dataclass(frozen=True, eq=False)
class PreparedChunk:
    """The frames of one chunk, those of its groups that show something new, and the keyframes that
    were found with it, of which the first ones may lie before it.
    """

    frames: Sequence[Frame]
    groups: Sequence[FrameGroup]
    keyframes: Sequence[FrameDiff] = ()


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

    @property
    def groups(self) -> list[FrameGroup]:
        """Of all chunks, in order."""
        return [group for chunk in self.chunks for group in chunk.groups]


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
    """State that one stream's keyframes, pruning and reuse need; used by one thread at a time."""

    def __init__(self, model: VideoLLM, config: Config) -> None:
        self.model = model
        self.pruner: TokenPruner | None = make_pruner(config.prune)
        self.reuse: FeatureReuse | None = model.reuse(config.reuse)
        self._config = config
        self._detector = KeyframeDetector()
        self._novelty = KeyframeNovelty() if self.reuse is not None else None
        self._needs_reference = False

    def chunk_builder(self, is_live: bool) -> ChunkBuilder:
        """Puts the next frames together to chunks. Those of a live source are never held back for
        what is not known of them yet, and cover less time.
        """
        memory = self._config.memory
        max_seconds = memory.max_chunk_seconds * (LIVE_SHARE if is_live else 1.0)
        cut_frames = -(-memory.chunk_frames // 2) if memory.borders == "cuts" else 0
        limits = ChunkLimits(memory.chunk_frames, max_seconds, cut_frames)
        return ChunkBuilder(limits, self._detector, waits=not is_live)

    def measure(self, frames: Sequence[Frame]) -> list[FrameDiff]:
        """The one downsample of each frame, in a batch."""
        needs_cells = self.pruner is not None or self.reuse is not None
        return measure_frames(frames, self._analysis_grid if needs_cells else None)

    def prepare(self, chunks: Sequence[ChunkFrames]) -> list[PreparedChunk]:
        """Consecutive chunks in groups with their patches, without those that show nothing new."""
        grouped = [self._grouped(chunk) for chunk in chunks]
        is_new = iter(self._select_groups([group for groups in grouped for group in groups]))
        kept: list[list[FrameGroup]] = []
        for chunk, groups in zip(chunks, grouped, strict=True):
            marked = [replace(group, is_new=next(is_new)) for group in groups]
            if self._novelty is not None:
                marked = self._with_novelty(chunk.late_keyframes, marked, self._novelty)
            kept.append([group for group in marked if group.is_new])
        ready = iter(self._with_patches([group for groups in kept for group in groups]))
        prepared: list[PreparedChunk] = []
        for chunk, groups in zip(chunks, kept, strict=True):
            own = [diff for diff in chunk.diffs if diff.keyframe is not None]
            keyframes = [*chunk.late_keyframes, *own]
            prepared.append(PreparedChunk(chunk[:], [next(ready) for _ in groups], keyframes))
        return prepared

    def prepare_alone(self, frames: Sequence[Frame]) -> list[PreparedChunk]:
        """One chunk of just these frames, judged by what there is of them."""
        judged = self._detector.judge(self.measure(frames))
        return self.prepare([ChunkFrames([*judged, *self._detector.flush()])])

    def forget_reference(self) -> None:
        """The tower's next group is computed whole, because the last ones failed."""
        self.reuse = self.model.reuse(self._config.reuse)

    def _analysis_grid(self, height: int, width: int) -> Grid:
        return analysis_grid(self.model.patch_grid(height, width))

    def _grouped(self, chunk: ChunkFrames) -> list[FrameGroup]:
        groups: list[FrameGroup] = []
        for diffs in split_into_groups(chunk.diffs, self.model.frames_per_group):
            grids = {diff.patches.grid for diff in diffs if diff.patches is not None}
            if len(grids) > 1:  # the tower reads all frames of a group in the size of the first
                diffs = self._measured_alike(diffs)
            groups.append(FrameGroup([diff.frame for diff in diffs], diffs))
        return groups

    def _measured_alike(self, diffs: Sequence[FrameDiff]) -> list[FrameDiff]:
        """Frames of several sizes, all in the cells of the first."""
        first = diffs[0].frame
        grid = self._analysis_grid(first.height, first.width)
        measured = measure_frames([diff.frame for diff in diffs], lambda *_: grid)
        return [
            replace(diff, patches=alike.patches)
            for diff, alike in zip(diffs, measured, strict=True)
        ]

    def _select_groups(self, groups: Sequence[FrameGroup]) -> list[bool]:
        if self.pruner is None:
            return [True] * len(groups)
        diffs = [group.diffs for group in groups]
        return self.pruner.select_groups(diffs, [of_group[0].pts_seconds for of_group in diffs])

    def _with_novelty(
        self, late: Sequence[FrameDiff], groups: Sequence[FrameGroup], novelty: KeyframeNovelty
    ) -> list[FrameGroup]:
        """The groups of a chunk with what has changed since the last keyframe. A keyframe that the
        tower does not get, or has got as an ordinary frame, is no reference there.
        """
        for diff in late:
            novelty.keep(diff)
            self._needs_reference = True
        found: list[FrameGroup] = []
        for group in groups:
            maps = novelty.measure(group.diffs)
            starts_anew = group.is_new and self._needs_reference
            if group.is_new:
                self._needs_reference = False
            elif any(group.keyframes):
                self._needs_reference = True
            found.append(replace(group, novelty=maps, starts_anew=starts_anew))
        return found

    def _with_patches(self, groups: Sequence[FrameGroup]) -> list[FrameGroup]:
        cut = self.model.cut_patches([group.frames for group in groups])
        return [
            replace(group, patches=patches, grid=grid)
            for group, (patches, grid) in zip(groups, cut, strict=True)
        ]


def run_prefills(model: VideoLLM, works: Sequence[PrefillWork]) -> list[list[PrefilledChunk]]:
    """Everything that the device does for these chunks: tower and LLM in one pass each, whoever's
    they are.
    """
    encoded = encode_groups(model, works)
    requests: list[PrefillRequest] = []
    for work, of_work in zip(works, encoded, strict=True):
        runs = [groups for groups in of_work if groups]
        if runs:
            requests.append(
                PrefillRequest(runs, work.prefix, work.recent, work.num_recent, work.index)
            )
    made = iter(model.prefill_batch(requests) if requests else [])
    results: list[list[PrefilledChunk]] = []
    for work, of_work in zip(works, encoded, strict=True):
        chunks = iter(next(made) if any(of_work) else [])
        of_stream: list[PrefilledChunk] = []
        for prepared, groups in zip(work.chunks, of_work, strict=True):
            of_stream.append(_result(prepared, groups, next(chunks) if groups else None))
        results.append(of_stream)
    return results


def encode_groups(model: VideoLLM, works: Sequence[PrefillWork]) -> list[list[list[VisualGroup]]]:
    """The visual groups of each chunk of each work, pruned.

    Streams without reuse share a pass through the tower; one with reuse needs its own, as it builds
    on its past.
    """
    together = [group for work in works if work.ingest.reuse is None for group in work.groups]
    shared = iter(model.encode_groups(together) if together else [])
    found: list[list[list[VisualGroup]]] = []
    for work in works:
        if work.ingest.reuse is None:
            encoded = [next(shared) for _ in work.groups]
        else:
            encoded = model.encode_groups(work.groups, work.ingest.reuse)
        found.append(_by_chunk(work, encoded))
    return found


def _by_chunk(work: PrefillWork, encoded: Sequence[VisualGroup]) -> list[list[VisualGroup]]:
    """The groups of each chunk, without the tokens that the stream's pruner drops."""
    pruner = work.ingest.pruner
    groups = iter(encoded)
    found: list[list[VisualGroup]] = []
    for chunk in work.chunks:
        whole = [next(groups) for _ in chunk.groups]
        if pruner is not None:
            whole = [group.pruned(pruner.keep(group.embeddings)) for group in whole]
        found.append(whole)
    return found


def _result(
    prepared: PreparedChunk, groups: Sequence[VisualGroup], chunk: KVChunk | None
) -> PrefilledChunk:
    rows, columns = groups[-1].grid if groups else (0, 0)
    return PrefilledChunk(
        prepared, chunk, sum(group.num_pruned for group in groups), rows * columns
    )
