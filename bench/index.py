"""What the index of the retrieval heads' keys costs as a stream grows, flat and in lists, and what
the lists miss.

    python -m bench.index --tokens 0.1,0.5,2 --dims 48,128

Made-up keys of one head, as those of a model are: a mean that all share, centres that come and go
with the scenes, and spread around both. Each question looks for a token of the past. Then the keys
of all retrieval heads of the embedded model, on a stream of its world with questions about it.
Milliseconds and seconds are of the processor. Writes JSON and Markdown into `bench/results/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from torch import Tensor

from bench.asked import Asker, long_stream
from bench.machine import describe, save
from bench.report import table
from frames import in_parts
from memory.chunk import KVChunk
from memory.recall_policy import evidence
from memory.retrieval_index import SEGMENT_TOKENS, HeadIndex
from streaming.engine import load_engine
from streaming.time_query.spans import in_seconds

RESULTS = Path(__file__).parent / "results"
CHUNK_TOKENS = 64
SCENE_CHUNKS = 8  # that share their centres
CENTRES, CENTRES_PER_SCENE = 2048, 24
SPREAD = 0.5
QUERY_TOKENS = 4
LIMIT = 8  # chunks that a session asks for
BEST = 4  # of which the lists must miss none
FLAT = 1 << 40  # tokens of a segment that never ends
REAL_SEGMENT = 1 << 14  # tokens, so that a short stream has lists
MIB = 1 << 20
Scores = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measured:
    """One index at one length, asked all questions; `recall` is the share of the truly best chunks
    that it has best.

    slowest_add_seconds: of one chunk, in which lists are learnt.
    """

    keys: str
    way: str
    dim: int
    tokens: int
    search_ms: float
    add_us_per_token: float
    slowest_add_seconds: float
    index_bytes: int
    recall: float


class Grown:
    """An index and what adding to it has cost so far."""

    def __init__(self, index: HeadIndex) -> None:
        self.index = index
        self.spent: list[float] = []

    def add(self, keys: Tensor) -> None:
        started = time.process_time()
        self.index.add(self.index.num_chunks, keys)
        self.spent.append(time.process_time() - started)

    def ask(self, questions: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        """Scores [heads, chunks] of each question, and the median milliseconds of one."""
        found, spent = [], []
        for queries in questions:
            started = time.process_time()
            found.append(self.index.search(queries, LIMIT))
            spent.append(1000 * (time.process_time() - started))
        return found, median(spent)


def compared(
    keys: str, flat: Grown, lists: Grown, questions: Sequence[Tensor], combined: Scores
) -> list[Measured]:
    """Both asked the same; the best chunks by the scores of all heads together are the true ones
    where flat.
    """
    true, flat_ms = flat.ask(questions)
    found, lists_ms = lists.ask(questions)
    best = [set(combined(scores).topk(BEST).indices.tolist()) for scores in true]
    hits = sum(
        len(b & set(combined(scores).topk(BEST).indices.tolist()))
        for b, scores in zip(best, found, strict=True)
    )
    shares = {"flat": 1.0, "lists": hits / (BEST * len(best))}
    return [
        Measured(
            keys,
            way,
            grown.index.head_dim,
            grown.index.num_tokens,
            ms,
            1e6 * sum(grown.spent) / grown.index.num_tokens,
            max(grown.spent),
            grown.index.host_bytes + grown.index.device_bytes,
            shares[way],
        )
        for way, grown, ms in (("flat", flat, flat_ms), ("lists", lists, lists_ms))
    ]


def made_up(dim: int, seed: int) -> Iterator[Tensor]:
    """Keys [1, CHUNK_TOKENS, dim] of chunk after chunk, without end."""
    generator = torch.Generator().manual_seed(seed)
    mean, centres = (
        4 * torch.randn(dim, generator=generator),
        torch.randn(CENTRES, dim, generator=generator),
    )
    while True:
        scene = torch.randint(CENTRES, (CENTRES_PER_SCENE,), generator=generator)
        for _ in range(SCENE_CHUNKS):
            picked = scene[torch.randint(CENTRES_PER_SCENE, (CHUNK_TOKENS,), generator=generator)]
            noise = SPREAD * torch.randn(CHUNK_TOKENS, dim, generator=generator)
            yield (mean + centres[picked] + noise)[None]


def measure_made_up(dim: int, lengths: Sequence[int], questions: int) -> Iterator[Measured]:
    """Both ways at each length, grown from one to the next."""
    flat, lists = (
        Grown(HeadIndex(1, dim, torch.bfloat16, tokens)) for tokens in (FLAT, SEGMENT_TOKENS)
    )
    generator, kept = torch.Generator().manual_seed(1), []
    chunks = made_up(dim, seed=0)
    for length in lengths:
        while flat.index.num_tokens < length:
            keys = next(chunks)
            flat.add(keys)
            lists.add(keys)
            kept.append(keys[0, :QUERY_TOKENS].clone())
        centre = torch.stack(kept).mean((0, 1))
        picked = torch.randint(len(kept), (questions,), generator=generator).tolist()
        asked = [
            (kept[i] - centre + SPREAD * torch.randn(QUERY_TOKENS, dim, generator=generator))[None]
            for i in picked
        ]
        yield from compared("made up", flat, lists, asked, lambda scores: scores[0])


def measure_real(minutes: float, questions: int) -> list[Measured]:
    """The embedded model on a stream of its world: the evidence of all its retrieval heads
    together.
    """
    engine = load_engine("demo", "cpu")
    model, profile, config = engine.model, engine.profile, engine.config
    assert profile is not None
    shape = len(profile.heads), model.head_dim, model.dtype
    flat, lists = Grown(HeadIndex(*shape, FLAT)), Grown(HeadIndex(*shape, REAL_SEGMENT))
    stream = long_stream(7, 60 * minutes)
    near: list[KVChunk] = []
    for number, part in enumerate(
        in_parts(stream.frames(128, config.read.fps), config.memory.chunk_frames)
    ):
        chunk = model.prefill(model.encode(part), [model.prefix(), *near], number)
        near = [*near, chunk][-config.memory.prefill_chunks :]
        flat.add(profile.keys_of(chunk))
        lists.add(profile.keys_of(chunk))
    asked = [
        profile.queries_of(model, in_seconds(a.question.text))
        for a in Asker(stream, 7).past(questions)
    ]
    norms = profile.norms
    return compared(
        "embedded model", flat, lists, asked, lambda scores: torch.tensor(evidence(scores, norms))
    )


def report(measured: Sequence[Measured]) -> list[str]:
    head = [
        "keys",
        "dim",
        "tokens",
        "way",
        "search ms",
        "flat / lists",
        "add us a token",
        "slowest add s",
        "MiB",
        f"recall@{BEST}",
    ]
    rows = []
    for flat, lists in zip(measured[::2], measured[1::2], strict=True):
        for m, ratio in ((flat, ""), (lists, f"{flat.search_ms / lists.search_ms:.1f}")):
            rows.append(
                [
                    m.keys,
                    f"{m.dim}",
                    f"{m.tokens:,}",
                    m.way,
                    f"{m.search_ms:.1f}",
                    ratio,
                    f"{m.add_us_per_token:.2f}",
                    f"{m.slowest_add_seconds:.2f}",
                    f"{m.index_bytes / MIB:.0f}",
                    f"{m.recall:.3f}",
                ]
            )
    note = (
        f"Flat scores every chunk with its true keys. Lists are learnt for each "
        f"{SEGMENT_TOKENS:,} tokens of made-up "
        f"keys, {REAL_SEGMENT:,} of the embedded model's, whose stream is short; what is "
        f"newer is flat there too. "
        f"Made-up keys are of one head and {QUERY_TOKENS} different query tokens. Recall "
        f"counts the {BEST} best chunks "
        "by the evidence of all heads."
    )
    return [*table(head, rows), "", note]


def main(
    tokens: Annotated[
        str, typer.Option(help="Lengths in millions of tokens, with commas between.")
    ] = "0.1,0.5,2",
    dims: Annotated[str, typer.Option(help="Dimensions of made-up keys.")] = "48,128",
    minutes: Annotated[float, typer.Option(help="Length of the embedded model's stream.")] = 30.0,
    questions: Annotated[int, typer.Option(help="Questions at each length.", min=1)] = 24,
    out: Annotated[Path, typer.Option(help="Where the results go, without a suffix.")] = RESULTS
    / "index",
) -> None:
    """Grow indexes, ask them, and say what they cost and miss."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    lengths = sorted(round(1e6 * float(length)) for length in tokens.split(","))
    measured: list[Measured] = []
    for dim in map(int, dims.split(",")):
        measured += measure_made_up(dim, lengths, questions)
        write(out, measured)
    measured += measure_real(minutes, 2 * questions)
    write(out, measured)
    print("\n".join(report(measured)))


def write(out: Path, measured: Sequence[Measured]) -> None:
    about = {**describe(), "faiss": version("faiss-cpu"), "dtype of made-up keys": "bfloat16"}
    save(
        out,
        "The index as it grows",
        about,
        report(measured),
        {"measured": [asdict(m) for m in measured]},
    )


if __name__ == "__main__":
    typer.run(main)
