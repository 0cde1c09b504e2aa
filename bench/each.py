"""Prompts put to many spans: captions and closed questions in batches, against one by one.

    python -m bench.each [--video CLIP] [--out bench/results/each]

The clip is watched once. Then every chunk is captioned, and asked one yes-or-no question, in
batches of 1 to 64 rows, with its keys and values in host memory and on disk; beside it one after
the other as a person would ask, and with every chunk watched anew, as without a memory. Times are
CPU seconds of the process with one thread, so a busy machine does not change them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.machine import describe, save
from config import AnswerConfig
from frames import Frame
from models.video_llm import AnswerRequest
from streaming.engine import Engine, load_engine
from streaming.session import Session
from streaming.sources.file import FileSource
from streaming.span_prompts import ChunkSpan, SpanAnswer, SpanPrompt

SIZES = (1, 2, 4, 8, 16, 32, 64)
CAPTION = SpanPrompt("Describe the video.")
YES_NO = SpanPrompt("Is there a star?", "yes_no")
MAX_NEW_TOKENS = 64
ROUNDS = 3  # the best one counts
SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "ten_minutes.mp4"


def main(
    video: Annotated[Path, typer.Option(help="The clip whose chunks are asked about.")] = SAMPLE,
    out: Annotated[Path, typer.Option(help="Result file, without suffix.")] = Path(
        "bench/results/each"
    ),
) -> None:
    """Measure prompts over many spans."""
    torch.set_num_threads(1)
    engine = load_engine("demo", "cpu", settings={"memory": {"host_bytes": 0}})
    frames = list(FileSource(video, engine.config.read.fps).frames())
    with tempfile.TemporaryDirectory() as folder:
        host, disk = load_engine("demo", "cpu").open(), engine.open(Path(folder) / "session")
        for session in (host, disk):
            list(session.watch(frames, True))
        rows = measured(engine, host, disk, frames)
        for session in (host, disk):
            session.close()
    lines = report(rows)
    save(out, "Prompts over many spans", describe(), lines, {"rows": rows})
    print("\n".join(lines))


def measured(
    engine: Engine, host: Session, disk: Session, frames: Sequence[Frame]
) -> dict[str, Any]:
    spans = [ChunkSpan(k, k + 1) for k in range(host.memory.num_chunks)]
    alone, texts = best(lambda: [ask_alone(host, CAPTION, span) for span in spans])
    closed_alone, said = best(lambda: [ask_alone(host, YES_NO, span) for span in spans])
    anew, _ = best(lambda: watch_anew(engine, frames, len(spans)), rounds=1)
    found: dict[str, Any] = {
        "spans": len(spans),
        "one by one": alone,
        "yes or no, one by one": closed_alone,
        "watched anew": anew,
        "batches": {},
    }
    for size in SIZES:
        row: dict[str, Any] = {}
        for name, session in (("host", host), ("disk", disk)):
            row[name], got = best(partial(in_batches, session, CAPTION, spans, size))
            row[f"{name} equal"] = sum(a.text == b for a, b in zip(got, texts, strict=True))
        row["yes or no"], answers = best(partial(in_batches, host, YES_NO, spans, size))
        row["yes or no equal"] = sum(a.text == b for a, b in zip(answers, said, strict=True))
        row["step"] = decode_step_seconds(host, spans, size)
        found["batches"][size] = row
    return found


def best(work: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, Any]:
    """CPU seconds of the quickest round, and what the last one gave."""
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def in_batches(
    session: Session, prompt: SpanPrompt, spans: Sequence[ChunkSpan], size: int
) -> list[SpanAnswer]:
    return list(session.each([prompt], spans, MAX_NEW_TOKENS, max_rows=size))


def ask_alone(session: Session, prompt: SpanPrompt, span: ChunkSpan) -> str:
    """One question about one span by itself, without batches and background work."""
    context = session._span_context(span)
    options = AnswerConfig(max_new_tokens=MAX_NEW_TOKENS)
    return "".join(session._model.answer(prompt.text, context, (), options)).strip()


def watch_anew(engine: Engine, frames: Sequence[Frame], num_chunks: int) -> None:
    """Every chunk is encoded and prefilled again before its caption: what a tool without a memory
    does.
    """
    size = engine.config.memory.chunk_frames
    for k in range(num_chunks):
        session = engine.open()
        list(session.watch(frames[k * size : (k + 1) * size], True))
        ask_alone(session, CAPTION, ChunkSpan(0, 1))
        session.close()


def decode_step_seconds(session: Session, spans: Sequence[ChunkSpan], size: int) -> float:
    """CPU seconds of one step of so many answers, the best of several."""
    options = AnswerConfig(max_new_tokens=MAX_NEW_TOKENS)
    batch = session._model.answer_batch()
    contexts = [session._span_context(spans[k % len(spans)]) for k in range(size)]
    batch.add_all([AnswerRequest(CAPTION.text, context, (), options) for context in contexts])
    seconds: list[float] = []
    while len(batch) == size and len(seconds) < 20:
        started = time.process_time()
        batch.step()
        seconds.append(time.process_time() - started)
    return min(seconds[:-1] or seconds)


def report(found: dict[str, Any]) -> list[str]:
    spans, alone = found["spans"], found["one by one"]
    batches = found["batches"]
    lines = [
        f"{spans} chunks. One by one {spans / alone:.1f} captions/s; with every chunk watched anew "
        f"{spans / found['watched anew']:.1f}. One thread, CPU seconds, best of {ROUNDS}.",
        "",
        "| rows | captions/s, host | x one by one | x watched anew | disk | x | equal | "
        "yes or no/s | x | decode step ms | tokens/s x |",
        "|" + "---|" * 11,
    ]
    for size, row in batches.items():
        step_gain = size * batches[1]["step"] / row["step"]
        lines.append(
            f"| {size} | {spans / row['host']:.1f} | {alone / row['host']:.2f} "
            f"| {found['watched anew'] / row['host']:.2f} "
            f"| {spans / row['disk']:.1f} | {alone / row['disk']:.2f} "
            f"| {row['host equal']}, {row['disk equal']} of {spans} "
            f"| {spans / row['yes or no']:.1f} "
            f"| {found['yes or no, one by one'] / row['yes or no']:.2f} "
            f"| {1000 * row['step']:.1f} | {step_gain:.1f} |"
        )
    at = {size: alone / row["host"] for size, row in batches.items()}
    steps = {size: size * batches[1]["step"] / row["step"] for size, row in batches.items()}
    lines += [
        "",
        f"Wanted: a decode step 4 x at 8 rows (got {steps[8]:.1f}) and 8 x at 32 (got "
        f"{steps[32]:.1f}); whole short answers 2.5 x at 8 (got {at[8]:.2f}) and 4 x at 64 (got "
        f"{at[64]:.2f}).",
    ]
    return lines


if __name__ == "__main__":
    typer.run(main)
