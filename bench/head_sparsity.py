"""What it costs to keep old chunks sparse for the heads that do not look things up, and dense for
those that do.

    python -m bench.head_sparsity --minutes 10 --seed 0,1

DuoAttention (arXiv 2410.10819) lets most heads forget the past; here they keep its sparse level.
When a chunk comes back, a sparse head gets for every token the mean key and value of the token's
cell, at the token's own place. So all heads have the same tokens in the context, and only what is
kept becomes smaller. Beside it: no head dense, the sparse level as it is (one token for a cell),
and 8 bits. Same questions, same chunks recalled, window untouched. Writes JSON and Markdown into
`bench/results/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Annotated

import torch
import typer
from torch import Tensor

from bench.asked import Asked, Asker, long_stream
from bench.machine import describe, save
from bench.recall import plain
from bench.report import table
from memory.chunk import KVChunk, cells
from memory.kv_codec import KVFormat
from models.calibration import Profile
from models.qwen3_vl import Qwen3VL
from streaming.engine import Engine, load_engine
from streaming.session import Session
from streaming.time_query.spans import in_seconds

RESULTS = Path(__file__).parent / "results"
SIDE = 128  # pixels of a painted frame
RANKED_SEED, RANKED_MINUTES = 99, 3.0  # of the stream that tells which heads matter
OLD = ("past", "given time", "never")  # kinds of questions that old chunks matter for
Change = Callable[[KVChunk], KVChunk]


@dataclass(frozen=True)
class Way:
    """How old chunks are kept. num_bytes: of one chunk, were it computed in 16 bits."""

    name: str
    change: Change
    num_bytes: Callable[[KVChunk], int]


@dataclass(frozen=True)
class Answered:
    seed: int
    way: str
    kind: str
    question: str
    wanted: str
    said: str
    right: bool


def kept_sparse(chunk: KVChunk, dense: Tensor) -> KVChunk:
    """The chunk as heads see it that are sparse where `dense` (bool [layers, kv_heads]) is
    false.
    """
    owners, _ = cells(chunk.layout, chunk.visual)
    pooled, marks = chunk.pooled(), dense[:, :, None, None]
    keys = torch.where(marks, chunk.keys, pooled.keys[:, :, owners])
    return replace(
        chunk, keys=keys, values=torch.where(marks, chunk.values, pooled.values[:, :, owners])
    )


def num_bytes(chunk: KVChunk, dense: Tensor, bits: int) -> int:
    """Of keys and values where the heads that `dense` marks have all tokens, the others one for
    each cell.
    """
    form, share = (
        replace(KVFormat.of(chunk.keys, bits), dtype=torch.bfloat16),
        float(dense.float().mean()),
    )
    sparse_tokens = chunk.pooled().num_tokens
    return round(
        share * form.num_bytes(chunk.num_tokens) + (1 - share) * form.num_bytes(sparse_tokens)
    )


def in_eight_bits(chunk: KVChunk) -> KVChunk:
    form = KVFormat.of(chunk.keys, 8)
    keys, values = form.unpack(form.pack(chunk.keys, chunk.values), chunk.num_tokens)
    return replace(chunk, keys=keys, values=values)


def profile_heads(profile: Profile, layers: int, kv_heads: int) -> Tensor:
    """KV heads that serve a retrieval head, bool [layers, kv_heads]."""
    dense = torch.zeros(layers, kv_heads, dtype=torch.bool)
    for head in profile.heads:
        dense[head.layer, head.head // profile.group_size] = True
    return dense


def ways(retrieval: Tensor, ranked: Sequence[int]) -> Iterator[Way]:
    """ranked: numbers of all KV heads, the one first that is missed most where it is sparse."""
    every = torch.ones_like(retrieval)
    yield Way("all dense", lambda chunk: chunk, lambda c: num_bytes(c, every, 16))
    yield Way("all dense, 8 bits", in_eight_bits, lambda c: num_bytes(c, every, 8))
    yield mixed("retrieval", retrieval)
    for quarters in (2, 1, 0):
        mask = torch.zeros(retrieval.numel(), dtype=torch.bool)
        mask[list(ranked[: retrieval.numel() * quarters // 4])] = True
        yield mixed("missed most", mask.view_as(retrieval))
    yield Way("all sparse, a token for a cell", KVChunk.pooled, lambda c: num_bytes(c, ~every, 16))


def mixed(which: str, dense: Tensor) -> Way:
    name = f"dense for {int(dense.sum())} of {dense.numel()} ({which})"
    return Way(name, lambda c: kept_sparse(c, dense), lambda c: num_bytes(c, dense, 16))


def changed(context: Sequence[KVChunk], window: Sequence[int], change: Change) -> list[KVChunk]:
    """Prefix and window as they are, old chunks changed."""
    return [
        chunk if chunk.index < 0 or chunk.index in window else change(chunk) for chunk in context
    ]


def watched(
    engine: Engine, seed: int, minutes: float, questions: int
) -> tuple[Session, list[Asked]]:
    stream = long_stream(seed, 60 * minutes)
    session = engine.open()
    list(session.watch(stream.frames(SIDE, engine.config.read.fps)))
    return session, [asked for asked in Asker(stream, seed).all(questions) if asked.kind in OLD]


def missed_most(
    engine: Engine, model: Qwen3VL, shape: tuple[int, int], questions: int
) -> list[int]:
    """KV heads by how far the first token's distribution moves where one of them is sparse, the
    farthest first.
    """
    session, asked = watched(engine, RANKED_SEED, RANKED_MINUTES, questions)
    moved = torch.zeros(shape[0] * shape[1])
    for text in (in_seconds(a.question.text) for a in asked):
        context, window = session.retrieve(text).context, session.memory.window_indices
        true = model.first_logits(text, context).log_softmax(-1)
        for number in range(len(moved)):
            dense = (torch.arange(len(moved)) != number).view(shape)
            some_sparse = changed(context, window, partial(kept_sparse, dense=dense))
            other = model.first_logits(text, some_sparse)
            moved[number] += (true.exp() * (true - other.log_softmax(-1))).sum()
    session.close()
    order: list[int] = moved.argsort(descending=True).tolist()
    return order


def main(
    minutes: Annotated[float, typer.Option(help="Length of each stream.")] = 10.0,
    seed: Annotated[str, typer.Option(help="Seeds of the streams, with commas between.")] = "0,1",
    questions: Annotated[int, typer.Option(help="Questions of each kind and stream.", min=1)] = 24,
    out: Annotated[Path, typer.Option(help="Where the results go, without a suffix.")] = RESULTS
    / "head_sparsity",
) -> None:
    """Answer the same questions from old chunks kept in several ways."""
    torch.set_grad_enabled(False)
    engine = load_engine("demo", "cpu", settings={"answer": {"dialogue_turns": 0}})
    model, profile = engine.model, engine.profile
    assert isinstance(model, Qwen3VL) and profile is not None
    shape = model.num_layers, model.num_kv_heads
    every = list(
        ways(profile_heads(profile, *shape), missed_most(engine, model, shape, questions // 4))
    )
    answers: list[Answered] = []
    for number in map(int, seed.split(",")):
        session, asked = watched(engine, number, minutes, questions)
        chunk, window = session.memory.get([0])[0], session.memory.window_indices
        for question in asked:
            text = in_seconds(question.question.text)
            context = session.retrieve(text).context
            for way in every:
                said = "".join(
                    model.answer(
                        text, changed(context, window, way.change), (), engine.config.answer
                    )
                )
                right = plain(said) == plain(question.question.answer)
                wanted = question.question.answer
                answers.append(Answered(number, way.name, question.kind, text, wanted, said, right))
        session.close()
    sizes = {way.name: way.num_bytes(chunk) for way in every}
    about = {**describe(), "model": model.model_id, "minutes": minutes, "seeds": seed}
    data = {"bytes of an old chunk": sizes, "answers": [asdict(a) for a in answers]}
    lines = report(answers, sizes)
    save(out, "Old chunks, dense for some heads only", about, lines, data)
    print("\n".join(lines))


def report(answers: Sequence[Answered], sizes: dict[str, int]) -> list[str]:
    dense, columns = next(iter(sizes.values())), [*((kind,) for kind in OLD), OLD[:2]]
    rows = [
        [way, f"{size / dense:.2f}", *(of_kind(answers, way, kinds) for kinds in columns)]
        for way, size in sizes.items()
    ]
    return table(["old chunks", "bytes / dense", *OLD, "past and given time"], rows)


def of_kind(answers: Sequence[Answered], way: str, kinds: Sequence[str]) -> str:
    marks = [a.right for a in answers if a.way == way and a.kind in kinds]
    return f"{mean(marks):.3f} ({len(marks)})" if marks else ""


if __name__ == "__main__":
    typer.run(main)
