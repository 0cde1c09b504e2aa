"""Which chunks come back for a question, and why: pure functions of scores, named times and a budget.

Knows nothing of models, queries or tiers. Chunks are numbers here; the memory brings them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal

import torch
from torch import Tensor

BEST_CHUNKS = 4  # so many of the best come before any neighbour: hit@4 of the retrieval heads is 1.00 as measured

Why = Literal["named time", "recalled", "recent"]


@dataclass(frozen=True)
class HeadNorm:
    """How one head's scores are read: the mean and spread of its MaxSim over chunks, and how far it is trusted."""

    mean: float
    std: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0 or not self.weight > 0:
            raise ValueError(f"a head needs a positive spread and weight, not {self.std} and {self.weight}")


@dataclass(frozen=True)
class PlannedChunk:
    """A chunk of the answer's context; `score` is its evidence, in standard deviations above a head's mean."""

    index: int
    score: float
    why: Why


@dataclass(frozen=True)
class RecallPlan:
    """The chunks of an answer's context, in time order, each once."""

    chunks: tuple[PlannedChunk, ...]

    @property
    def indices(self) -> list[int]:
        return [chunk.index for chunk in self.chunks]


def head_norms(scores: Tensor, weights: Sequence[float]) -> list[HeadNorm]:
    """Norms of heads whose MaxSim with many chunks is known: [heads, chunks], -inf for chunks without tokens."""
    return [_norm(row[row.isfinite()].double(), weight) for row, weight in zip(scores, weights, strict=True)]


def evidence(scores: Tensor, norms: Sequence[HeadNorm]) -> list[float]:
    """One score per chunk: the weighted mean over heads of normalised MaxSim [heads, chunks].

    A chunk without tokens (-inf) gets the least of its head's scores, so that every score is finite.
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
    gone: Collection[int] = (),
) -> RecallPlan:
    """The window, and at most `recall_chunks` older chunks: those of named times first, then by score.

    scores: evidence per chunk, or None where nothing is known; then the older chunks are sampled evenly.
    named: the chunks of each named time. When they are more than the budget, it is shared between the times and each
    share is spread over its time, taking the best chunk of every stretch.
    gone: chunks that cannot be had any more; they are passed over.
    A history of at most window + recall chunks comes back whole.
    """
    if scores is not None and len(scores) != num_chunks:
        raise ValueError(f"{len(scores)} scores cannot rank {num_chunks} chunks")
    known = [0.0] * num_chunks if scores is None else scores
    window_start = max(0, num_chunks - window_chunks)
    older = sorted({*range(window_start)}.difference(gone))
    by_name = _share([sorted({*r}.intersection(older)) for r in named], known, recall_chunks)
    rest = [index for index in older if index not in by_name]
    room = recall_chunks - len(by_name)
    recalled = _spread(rest, known, room) if scores is None else _best(rest, known, room)
    said = {index for r in named for index in r}
    kept = sorted({*by_name, *recalled, *range(window_start, num_chunks)}.difference(gone))
    return RecallPlan(tuple(PlannedChunk(i, known[i], _why(i, said, window_start)) for i in kept))


def _why(index: int, named: set[int], window_start: int) -> Why:
    if index in named:
        return "named time"
    return "recent" if index >= window_start else "recalled"


def _share(named: Sequence[Sequence[int]], scores: Sequence[float], budget: int) -> set[int]:
    """At most `budget` chunks of the named times; short times first, so that a moment is not lost beside an hour."""
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
    return {max(part, key=lambda index: (scores[index], -abs(index - part[len(part) // 2]))) for part in stretches}


def _best(indices: Sequence[int], scores: Sequence[float], count: int) -> set[int]:
    """`count` chunks by score: the best few, then those beside the very best, then the others; in a tie the newer.

    The chunk that answers "what came after the star" may be the one after the star's.
    """
    ranked = sorted(indices, key=lambda index: (scores[index], index), reverse=True)
    beside = [index for best in ranked[:1] for index in (best + 1, best - 1) if index in indices]
    order = dict.fromkeys([*ranked[:BEST_CHUNKS], *beside, *ranked[BEST_CHUNKS:]])
    return set(islice(order, max(0, count)))


def _norm(values: Tensor, weight: float) -> HeadNorm:
    if values.numel() < 2:
        raise ValueError(f"{values.numel()} scores have no spread")
    return HeadNorm(float(values.mean()), max(float(values.std()), 1e-6), weight)


def _finite(row: Tensor) -> Tensor:
    finite = row[row.isfinite()]
    least = float(finite.min()) if finite.numel() else 0.0
    return torch.where(row.isfinite(), row, least)
