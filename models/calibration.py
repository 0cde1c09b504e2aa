"""Which attention heads of a checkpoint look things up: found once on rendered needles, kept as a
profile.

A needle is a chunk that shows one thing found nowhere else in its stream, among chunks that share
its shape or its colour. A head retrieves when the raw queries of a question, formed without seeing
the video, match best (largest raw q . raw k) with a token of the right chunk. Known as retrieval
heads (Wu et al. 2024) and MaxSim (ColBERT). Knows nothing of sessions or tiers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import MemoryConfig
from errors import LonglookError
from frames import Frame
from memory.chunk import KVChunk
from memory.recall_policy import HeadNorm, evidence, head_norms
from models.demo.world import (
    COLOURS,
    SHAPES,
    Scene,
    WorldEvent,
    background_kind,
    place_things,
    render,
)
from models.video_llm import Head, VideoLLM

FORMAT = 1
# how many of the newest question tokens a head is asked with; 0 is all of them
LAST_TOKENS = (1, 4, 0)
MOST_HEADS = 4
LEAST_HIT1 = 0.3  # a head that finds less than this does not retrieve
# pixels of a needle's frames; the model's preprocessing resizes them as it does with any video
FRAME_SIDE = 224
SHIPPED = Path(__file__).parent / "demo" / "weights"
QUESTIONS = (
    "When does the {name} appear?",
    "Which way does the {name} move?",
    "Was there a {name}?",
)
PAIR_QUESTION = "Which came first, the {name} or the {other}?"  # both must come back
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RetrievalHead:
    """A head that retrieves: asked with the newest `last_tokens` tokens of a question (0: all).

    `mean` and `std` are of its MaxSim over chunks, `weight` its share in the sum, `hit1` and `hit4`
    how often a right chunk came first, or all right ones among the first four, on fresh needles.
    """

    layer: int
    head: int
    last_tokens: int
    mean: float
    std: float
    weight: float
    hit1: float
    hit4: float


@dataclass(frozen=True)
class Profile:
    """The retrieval heads of one checkpoint in one dtype; `hit1` and `hit4` are those of all heads
    together.
    """

    model_id: str
    dtype: str
    group_size: int  # query heads that share a KV head
    heads: tuple[RetrievalHead, ...]
    num_needles: int
    hit1: float
    hit4: float

    @property
    def norms(self) -> list[HeadNorm]:
        return [HeadNorm(head.mean, head.std, head.weight) for head in self.heads]

    def keys_of(self, chunk: KVChunk) -> Tensor:
        """Raw keys of the visual tokens for every head of the profile, float32 [heads, n,
        head_dim].
        """
        rows = chunk.visual.nonzero()[:, 0].to(chunk.keys.device)
        keys = [
            chunk.keys[head.layer, head.head // self.group_size].index_select(0, rows)
            for head in self.heads
        ]
        return torch.stack(keys).float().cpu()

    def queries_of(self, model: VideoLLM, question: str) -> Tensor:
        """Raw queries of a question for every head, [heads, q, head_dim]; a head asked with fewer
        repeats its last.
        """
        queries = model.question_queries(
            question, [Head(head.layer, head.head) for head in self.heads]
        )
        return torch.stack(
            [_newest(q, head.last_tokens) for q, head in zip(queries, self.heads, strict=True)]
        )

    def save(self, path: Path) -> None:
        """Raises LonglookError where nothing can be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8"
            )
        except OSError as error:
            raise LonglookError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Raises LonglookError for a file that is not a profile of this format."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT:
                raise ValueError("it has another format")
            profile = cls(
                **{**data, "heads": tuple(RetrievalHead(**head) for head in data["heads"])}
            )
            if not profile.norms:
                raise ValueError("it has no heads")
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise LonglookError(
                f"{path} is not a retrieval profile ({error}); calibrate again"
            ) from error
        return profile

    def fits(self, model: VideoLLM) -> bool:
        """Whether it was made for this very checkpoint and dtype."""
        return (self.model_id, self.dtype) == (model.model_id, _dtype_name(model))


def _newest(queries: Tensor, last_tokens: int) -> Tensor:
    """The newest tokens' queries [q, head_dim], in a row as long as the whole, so that heads can be
    stacked.
    """
    if last_tokens == 0:
        return queries
    newest = queries[-last_tokens:]
    return torch.cat([newest[-1:].expand(len(queries) - len(newest), -1), newest])


@dataclass(frozen=True, eq=False)
class Needles:
    """A stream of one-thing chunks and questions about one or two of them: (text, indices of the
    right chunks).
    """

    scenes: tuple[Scene, ...]
    questions: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def truth(self) -> list[tuple[int, ...]]:
        return [right for _, right in self.questions]


def make_needles(seed: int, count: int, chunk_seconds: float) -> Needles:
    """`count` chunks (at most 64), each showing a thing of its own, and questions that name one or
    two of them.
    """
    rng = np.random.default_rng([seed, 11])
    names = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    picked = [names[int(i)] for i in rng.permutation(len(names))[:count]]
    scenes = []
    for shape, colour in picked:
        start = float(rng.uniform(0, chunk_seconds / 4))
        stop = float(rng.uniform(chunk_seconds * 0.75, chunk_seconds))
        things = place_things(rng, [(shape, colour)], min(stop - start, 4.0))
        scenes.append(
            Scene(
                chunk_seconds,
                _plain_background(rng),
                (WorldEvent(start, min(stop, start + 4.0), things),),
            )
        )
    called = [f"{colour} {shape}" for shape, colour in picked]
    asked = [
        (question.format(name=name), (k,))
        for k, name in enumerate(called)
        for question in QUESTIONS
    ]
    others = [(k + int(rng.integers(1, count))) % count for k in range(count)]
    pairs = [
        (PAIR_QUESTION.format(name=called[k], other=called[m]), (k, m))
        for k, m in enumerate(others)
    ]
    return Needles(tuple(scenes), (*asked, *pairs))


def _plain_background(rng: np.random.Generator) -> int:
    """The seed of a background that needs no photo, hence no extra package."""
    while background_kind(seed := int(rng.integers(1 << 30))) == "photo":
        pass
    return seed


def needle_chunks(
    model: VideoLLM, needles: Needles, memory: MemoryConfig, fps: float
) -> Iterator[KVChunk]:
    """The needles as the model remembers them, one chunk each, prefilled in view of their
    predecessors.
    """
    newest: list[KVChunk] = []
    for number, scene in enumerate(needles.scenes):
        start = number * scene.duration_seconds
        times = [k / fps for k in range(memory.chunk_frames)]
        frames = [Frame(render(scene, t, FRAME_SIDE), start + t, k) for k, t in enumerate(times)]
        reach = newest[-memory.prefill_chunks :] if memory.prefill_chunks else []
        chunk = model.prefill(model.encode(frames), [model.prefix(), *reach], number)
        newest = [*reach, chunk]
        yield chunk


def score_needles(
    model: VideoLLM, needles: Needles, memory: MemoryConfig, fps: float, progress: Progress
) -> dict[int, Tensor]:
    """MaxSim of every question with every chunk for every head, by number of query tokens:
    float32 [questions, layers, heads, chunks]."""
    queries = [model.all_question_queries(text) for text, _ in needles.questions]
    scores: dict[int, list[Tensor]] = {last: [] for last in LAST_TOKENS}
    for number, chunk in enumerate(needle_chunks(model, needles, memory, fps)):
        keys = chunk.keys[:, :, chunk.visual.to(chunk.keys.device)].float()
        # [layers, heads, n, head_dim]
        keys = keys.repeat_interleave(model.num_heads // model.num_kv_heads, dim=1)
        per_token = [
            torch.einsum("lhqd,lhnd->lhqn", q, keys).amax(-1).cpu() for q in queries
        ]  # each [layers, heads, q]
        for last in LAST_TOKENS:
            scores[last].append(torch.stack([s[..., -last:].amax(-1) for s in per_token]))
        progress(number + 1, len(needles.scenes))
    return {last: torch.stack(columns, dim=-1) for last, columns in scores.items()}


def hits(scores: Tensor, truth: Truth, best: int) -> Tensor:
    """How often the right chunks are surely among the `best`, as many of them as there is room for:
    [questions, ..., chunks] -> [...]; a tie is no hit."""
    found = [
        (ranks(row, right) <= best).sum(-1) >= min(best, len(right))
        for row, right in zip(scores, truth, strict=True)
    ]
    return torch.stack(found).float().mean(0)


def ranks(row: Tensor, chosen: Sequence[int]) -> Tensor:
    """The rank of each chosen chunk, from 1, behind all that score as much: [..., chunks] -> [...,
    chosen].
    """
    return (row[..., None, :] >= row[..., list(chosen)][..., None]).sum(-1)


def calibrate(
    model: VideoLLM,
    memory: MemoryConfig,
    fps: float,
    count: int = 48,
    seed: int = 0,
    progress: Progress = lambda k, n: None,
) -> Profile | None:
    """Finds the retrieval heads of a model on needles and measures them on fresh ones; None where
    no head retrieves.

    count: chunks of each needle stream, at most 64.
    """
    seconds = memory.chunk_frames / fps
    known, fresh = (make_needles(seed + k, count, seconds) for k in (0, 1))
    scores = score_needles(model, known, memory, fps, lambda k, n: progress(k, 2 * n))
    chosen = choose_heads(scores, known.truth)
    if not chosen:
        return None
    check = score_needles(model, fresh, memory, fps, lambda k, n: progress(n + k, 2 * n))
    return _measured(model, chosen, scores, check, fresh.truth)


def profile_path(model: VideoLLM) -> Path:
    """Where the profile of this checkpoint and dtype is kept on this machine. Raises LonglookError
    where there is no home folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(cache) if cache else Path.home() / ".cache"
    except RuntimeError as error:  # a container may run as any user
        raise LonglookError("There is no home folder to keep a profile in.") from error
    return home / "longlook" / "profiles" / _file_name(model)


def find_profile(model: VideoLLM) -> Profile | None:
    """The profile calibrated for this very checkpoint and dtype, made here or shipped with the
    embedded model.

    Raises LonglookError where its file is damaged.
    """
    for path in _profile_paths(model):
        if _is_readable(path) and (profile := Profile.load(path)).fits(model):
            return profile
    return None


def _profile_paths(model: VideoLLM) -> Iterator[Path]:
    with suppress(LonglookError):
        yield profile_path(model)
    yield SHIPPED / _file_name(model)


def _is_readable(path: Path) -> bool:
    """False where there is no such file, and where it is another user's."""
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False


def _file_name(model: VideoLLM) -> str:
    return re.sub(r"[^\w.@-]", "_", f"{model.model_id}-{_dtype_name(model)}") + ".json"


def _dtype_name(model: VideoLLM) -> str:
    return str(model.dtype).removeprefix("torch.")


Candidate = tuple[int, int, int]  # newest tokens, layer, head
Truth = Sequence[tuple[int, ...]]  # the right chunks of each question


def choose_heads(scores: dict[int, Tensor], truth: Truth) -> list[Candidate]:
    """Greedy: the head that hits best, then each next one as long as it makes the sum of all
    better.
    """
    alone = {
        (last, layer, head): float(found[layer, head]) + _margin(table, truth, layer, head)
        for last, table in scores.items()
        for found in [hits(table, truth, 1)]
        for layer in range(found.shape[0])
        for head in range(found.shape[1])
        if found[layer, head] >= LEAST_HIT1
    }
    candidates = sorted(alone, key=lambda c: alone[c], reverse=True)[: 4 * MOST_HEADS]
    chosen: list[Candidate] = []
    quality = 0.0
    while candidates and len(chosen) < MOST_HEADS:
        rated = {c: _quality(scores, [*chosen, c], truth) for c in candidates}
        best = max(rated, key=lambda c: rated[c])
        if rated[best] <= quality:
            break
        quality = rated[best]
        chosen.append(best)
        candidates = [c for c in candidates if c[1:] != best[1:]]
    return chosen


def _margin(table: Tensor, truth: Truth, layer: int, head: int) -> float:
    """A tie-breaker well below one hit: by how many spreads the right chunks stand above the best
    wrong one, in the worst twentieth of the questions. What is close among few chunks is lost among
    many."""
    gaps = []
    for row, right in zip(table[:, layer, head], truth, strict=True):
        wrong = row.clone()
        wrong[list(right)] = -torch.inf
        gaps.append((row[list(right)].min() - wrong.max()) / row.std().clamp(min=1e-6))
    return 1e-4 * float(torch.stack(gaps).quantile(0.05).clamp(-9, 9))


def _together(
    scores: dict[int, Tensor], chosen: Sequence[Candidate], norms: Sequence[HeadNorm]
) -> Tensor:
    """The summed evidence [questions, chunks] of some heads."""
    tables = torch.stack([scores[last][:, layer, head] for last, layer, head in chosen], dim=1)
    return torch.tensor([evidence(rows, norms) for rows in tables])


def _norms(scores: dict[int, Tensor], chosen: Sequence[Candidate]) -> list[HeadNorm]:
    tables = torch.stack([scores[last][:, layer, head].flatten() for last, layer, head in chosen])
    return head_norms(tables, [1.0] * len(chosen))


def _quality(scores: dict[int, Tensor], chosen: Sequence[Candidate], truth: Truth) -> float:
    summed = _together(scores, chosen, _norms(scores, chosen))
    return (
        float(hits(summed, truth, 1))
        + 0.5 * float(hits(summed, truth, 4))
        + _margin(summed[:, None, None], truth, 0, 0)
    )


def _measured(
    model: VideoLLM,
    chosen: Sequence[Candidate],
    scores: dict[int, Tensor],
    check: dict[int, Tensor],
    truth: Truth,
) -> Profile:
    norms = _norms(scores, chosen)
    summed = _together(check, chosen, norms)
    heads = []
    for (last, layer, head), norm in zip(chosen, norms, strict=True):
        rows = check[last][:, layer, head]
        hit1, hit4 = float(hits(rows, truth, 1)), float(hits(rows, truth, 4))
        heads.append(RetrievalHead(layer, head, last, norm.mean, norm.std, norm.weight, hit1, hit4))
    return Profile(
        model_id=model.model_id,
        dtype=_dtype_name(model),
        group_size=model.num_heads // model.num_kv_heads,
        heads=tuple(heads),
        num_needles=len(truth),
        hit1=float(hits(summed, truth, 1)),
        hit4=float(hits(summed, truth, 4)),
    )
