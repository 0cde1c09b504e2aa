"""Which chunks come back for a question, and why: pure functions of scores, named times and a
budget.

Knows nothing of models, queries or tiers. Chunks are numbers here; the memory brings them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Literal

import torch
from torch import Tensor

# so many of the best come before any neighbour: hit@4 of the retrieval heads is 1.00 as measured
BEST_CHUNKS = 4

Why = Literal["named time", "recalled", "recent", "beside", "sample"]
Level = Literal["dense", "sparse"]
# last out first
IMPORTANCE: tuple[Why, ...] = ("recent", "named time", "recalled", "beside", "sample")


@dataclass(frozen=True)
class HeadNorm:
    """How one head's scores are read: the mean and spread of its MaxSim over chunks, and how far it
    is trusted.
    """

    mean: float
    std: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0 or not self.weight > 0:
            raise ValueError(
                f"a head needs a positive spread and weight, not {self.std} and {self.weight}"
            )


@dataclass(frozen=True)
class PlannedChunk:
    """A chunk of the answer's context; `score` is its evidence, in standard deviations above a
    head's mean.
    """

    index: int
    score: float
    why: Why
    level: Level = "dense"


@dataclass(frozen=True)
class RecallPlan:
    """The chunks of an answer's context, in time order, each once."""

    chunks: tuple[PlannedChunk, ...]

    @property
    def indices(self) -> list[int]:
        return [chunk.index for chunk in self.chunks]


def head_norms(scores: Tensor, weights: Sequence[float]) -> list[HeadNorm]:
    """Norms of heads whose MaxSim with many chunks is known: [heads, chunks], -inf for chunks
    without tokens.
    """
    return [
        _norm(row[row.isfinite()].double(), weight)
        for row, weight in zip(scores, weights, strict=True)
    ]


def evidence(scores: Tensor, norms: Sequence[HeadNorm]) -> list[float]:
    """One score per chunk: the weighted mean over heads of normalised MaxSim [heads, chunks].

    A chunk without tokens (-inf) gets the least of its head's scores, so that every score is
    finite.
    """
    total = torch.zeros(scores.shape[1], dtype=torch.float64)
    for row, norm in zip(scores.double(), norms, strict=True):
        total += norm.weight * (_finite(row) - norm.mean) / norm.std
    mean: list[float] = (total / sum(norm.weight for norm in norms)).tolist()
    return mean


def plan_recall(
    scores: Sequence[float] | None,
    named: Sequence[range],
    num_chunks: int,
    window_chunks: int,
    recall_chunks: int,
    sparse_chunks: int = 0,
    gone: Collection[int] = (),
    margin: float = math.inf,
) -> RecallPlan:
    """The window, and at most `recall_chunks` older chunks dense: those of named times first, then
    by score. Then at most `sparse_chunks` sparse: those beside the dense ones, the best one's
    first, and an even sample of the rest.

    scores: evidence per chunk, or None where nothing is known; then the older chunks are sampled
    evenly.
    named: the chunks of each named time; where one is named, only these and those beside them come
    back. When they are more than the budget, it is shared between the times and each share is
    spread over its time, taking the best chunk of every stretch.
    gone: chunks that cannot be had any more; they are passed over.
    margin: how far below the best score another one still counts; what is farther off only
    misleads. A history of at most window + recall chunks comes back whole, unless a time is named.
    """
    if scores is not None and len(scores) != num_chunks:
        raise ValueError(f"{len(scores)} scores cannot rank {num_chunks} chunks")
    known = [0.0] * num_chunks if scores is None else scores
    window_start = max(0, num_chunks - window_chunks)
    older = sorted({*range(window_start)}.difference(gone))
    by_name = _share([sorted({*r}.intersection(older)) for r in named], known, recall_chunks)
    rest = [index for index in older if index not in by_name]
    room = recall_chunks - len(by_name)
    said = {index for r in named for index in r}
    # a time is an address: look there and beside it; look-alikes from elsewhere only mislead
    if named:
        rest = [index for index in rest if {index - 1, index, index + 1} & said]
    ranked = scores is not None and len(rest) > room  # what fits comes whole, however it scores
    recalled = _best(rest, known, room, margin) if ranked else _spread(rest, known, room)
    dense = {*by_name, *recalled, *range(window_start, num_chunks)}.difference(gone)
    older = sorted(by_name | recalled, key=lambda index: (known[index], index), reverse=True)
    near = [i for best in older for i in (best + 1, best - 1) if i in rest and i not in dense]
    beside = set(islice(dict.fromkeys(near), sparse_chunks))
    far = [index for index in rest if index not in recalled and index not in beside]
    sample = _spread(far, [0.0] * num_chunks, sparse_chunks - len(beside))
    chunks = [PlannedChunk(i, known[i], _why(i, said, window_start)) for i in dense]
    chunks += [PlannedChunk(i, known[i], "beside", "sparse") for i in beside]
    chunks += [PlannedChunk(i, known[i], "sample", "sparse") for i in sample]
    return RecallPlan(tuple(sorted(chunks, key=lambda chunk: chunk.index)))


def numbered_from(plan: RecallPlan, first_chunk: int) -> RecallPlan:
    """A plan that counts chunks from the first one remembered, with their own numbers."""
    return RecallPlan(
        tuple(replace(chunk, index=chunk.index + first_chunk) for chunk in plan.chunks)
    )


def without_dense(plan: RecallPlan, indices: Collection[int]) -> RecallPlan:
    """The plan with these chunks sparse, which they are all there is of."""
    chunks = (
        replace(chunk, level="sparse") if chunk.index in indices else chunk for chunk in plan.chunks
    )
    return RecallPlan(tuple(chunks))


def fit(plan: RecallPlan, sizes: Callable[[int], tuple[int, int]], most_tokens: int) -> RecallPlan:
    """The plan within a budget of tokens: the most important chunks stay as they are, what does not
    fit dense comes sparse, what does not fit sparse stays away. The newest chunk always comes.

    sizes: tokens of a chunk, (dense, sparse).
    """
    newest = max((chunk.index for chunk in plan.chunks), default=-1)
    kept: list[PlannedChunk] = []
    left = most_tokens
    for chunk in sorted(plan.chunks, key=_importance):
        dense, sparse = sizes(chunk.index)
        levels: list[tuple[Level, int]] = [("dense", dense), ("sparse", sparse)]
        options = levels if chunk.level == "dense" else levels[1:]
        taken = next(((level, tokens) for level, tokens in options if tokens <= left), None)
        if taken is None and chunk.index == newest:
            taken = options[-1]
        if taken is not None:
            kept.append(replace(chunk, level=taken[0]))
            left -= taken[1]
    return RecallPlan(tuple(sorted(kept, key=lambda chunk: chunk.index)))


def _importance(chunk: PlannedChunk) -> tuple[int, float, int]:
    """The most important first: by reason, then by score (the window: the newest first)."""
    score = 0.0 if chunk.why == "recent" else chunk.score
    return IMPORTANCE.index(chunk.why), -score, -chunk.index


def _why(index: int, named: set[int], window_start: int) -> Why:
    if index in named:
        return "named time"
    return "recent" if index >= window_start else "recalled"


def _share(named: Sequence[Sequence[int]], scores: Sequence[float], budget: int) -> set[int]:
    """At most `budget` chunks of the named times; short times first, so that a moment is not lost
    beside an hour.
    """
    kept: set[int] = set()
    waiting = sorted(named, key=len)
    for done, indices in enumerate(waiting):
        new = [index for index in indices if index not in kept]
        kept |= _spread(new, scores, math.ceil((budget - len(kept)) / (len(waiting) - done)))
    return kept


def _spread(indices: Sequence[int], scores: Sequence[float], count: int) -> set[int]:
    """The best chunk of each of `count` equal stretches; in a tie the middle one."""
    if len(indices) <= count:
        return set(indices)
    borders = [len(indices) * i // count for i in range(count + 1)] if count > 0 else []
    stretches = [indices[start:stop] for start, stop in pairwise(borders)]
    return {
        max(part, key=lambda index: (scores[index], -abs(index - part[len(part) // 2])))
        for part in stretches
    }


def _best(indices: Sequence[int], scores: Sequence[float], count: int, margin: float) -> set[int]:
    """`count` chunks by score: the best few, then those beside the very best, then the others; in a
    tie the newer. Only those beside may score more than `margin` below the best.

    The chunk that answers "what came after the star" may be the one after the star's, and a star
    that is there for long has a run of chunks among the best few: those beside the whole run come.
    """
    least = max((scores[index] for index in indices), default=0.0) - margin
    near = [index for index in indices if scores[index] >= least]
    ranked = sorted(near, key=lambda index: (scores[index], index), reverse=True)
    few = ranked[:BEST_CHUNKS]
    beside = [index for index in _beside_run(few) if index in indices]
    return set(islice(dict.fromkeys([*few, *beside, *ranked]), max(0, count)))


def _beside_run(few: Sequence[int]) -> list[int]:
    """What comes right after, and right before, the neighbours among `few` that the first of them
    belongs to.

    few 7 9 6 2 -> 8 5     few 4 3 2 9 -> 5 1
    """
    start = stop = few[0] if few else 0
    while stop in few:
        stop += 1
    while start in few:
        start -= 1
    return [stop, start]


def _norm(values: Tensor, weight: float) -> HeadNorm:
    if values.numel() < 2:
        raise ValueError(f"{values.numel()} scores have no spread")
    return HeadNorm(float(values.mean()), max(float(values.std()), 1e-6), weight)


def _finite(row: Tensor) -> Tensor:
    finite = row[row.isfinite()]
    least = float(finite.min()) if finite.numel() else 0.0
    return torch.where(row.isfinite(), row, least)
