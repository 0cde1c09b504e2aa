"""Right answers at length: streams of the demo world, questions about any moment, several ways to answer side by side.

    python -m bench.recall --minutes 1,10,60,360

All ways see the same frames through the same model in one run. Frames are painted as they are needed and forgotten.
Writes JSON, Markdown and plots into `bench/results/`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress

from bench.arms import Arm, Said, make_arms
from bench.asked import Asked, Asker, long_stream
from bench.machine import describe
from bench.report import Result, summarise, write
from streaming.engine import Engine, load_engine
from streaming.events import Notice, Stats
from streaming.session import in_parts

RESULTS = Path(__file__).parent / "results"


def run_stream(
    engine: Engine, seed: int, minutes: float, questions: int, side: int, full_tokens: int, bar: Progress
) -> list[Result]:
    """One stream watched once, all questions asked of all arms when the stream stands where they are asked."""
    stream = long_stream(seed, 60 * minutes)
    waiting = Asker(stream, seed).all(questions)
    session = engine.open()
    arms = make_arms(session, engine.model, stream, engine.config, side, full_tokens)
    task = bar.add_task(f"{minutes:g} min, seed {seed}", total=round(stream.duration_seconds))
    results: list[Result] = []
    fps, size = engine.config.read.fps, engine.config.memory.chunk_frames
    for part in in_parts(stream.frames(side, fps), size):
        for event in session.watch(part):
            if isinstance(event, Notice):
                raise RuntimeError(event.text)
        for arm in arms:
            arm.see(part, session)
        seen_seconds = part[-1].pts_seconds + 1 / fps
        while waiting and waiting[0].at_seconds <= seen_seconds:
            results += ask_all(arms, waiting.pop(0), minutes, seed, session.stats)
        bar.update(task, completed=round(seen_seconds))
    session.close()
    return results


def ask_all(arms: Sequence[Arm], asked: Asked, minutes: float, seed: int, stats: Stats) -> list[Result]:
    said = [(arm.name, arm.say(asked)) for arm in arms]
    return [judged(name, asked, s, minutes, seed, stats) for name, s in said if s is not None]


def judged(arm: str, asked: Asked, said: Said, minutes: float, seed: int, stats: Stats) -> Result:
    return Result(
        minutes=minutes,
        seed=seed,
        arm=arm,
        kind=asked.kind,
        family=asked.question.family,
        question=asked.question.text,
        wanted=asked.question.answer,
        said=said.text,
        right=plain(said.text) == plain(asked.question.answer),
        rank=rank_of_truth(asked, said),
        asked_at_seconds=asked.at_seconds,
        true_spans=asked.spans,
        context_tokens=said.context_tokens,
        first_token_seconds=said.first_token_seconds,
        device_bytes=stats.device_bytes,
        host_bytes=stats.host_bytes,
    )


def plain(text: str) -> str:
    return " ".join(text.lower().strip(" .").split())


def rank_of_truth(asked: Asked, said: Said) -> int | None:
    """How many stretches come before the first that shows a true event; None where nothing is ranked or nothing true.

    A stretch that is not among the ranked ones counts as far behind.
    """
    if not said.ranked or not asked.spans:
        return None
    for rank, (start, stop) in enumerate(said.ranked):
        if any(start < true_stop and true_start < stop for true_start, true_stop in asked.spans):
            return rank
    return len(said.ranked) + 1000


def main(
    minutes: Annotated[str, typer.Option(help="Lengths of the streams, with commas between.")] = "1,10,60,360",
    seed: Annotated[str, typer.Option(help="Seeds of the streams; each length is run with each.")] = "0",
    questions: Annotated[int, typer.Option(help="Questions of each kind and stream.", min=1)] = 24,
    model: Annotated[str, typer.Option(help="demo, a folder or a hub id.")] = "demo",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    side: Annotated[int, typer.Option(help="Pixels of a painted frame.")] = 128,
    full_tokens: Annotated[int, typer.Option(help="Full attention is tried up to so many tokens.")] = 16_000,
    memory: Annotated[str, typer.Option(help="Memory settings: recall_chunks=4,window_chunks=1.")] = "",
    out: Annotated[Path, typer.Option(help="Where the results go; files of this name.")] = RESULTS / "recall",
) -> None:
    """Ask streams of several lengths about their past and present, by several ways of remembering."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_grad_enabled(False)
    settings: dict[str, dict[str, Any]] = {"answer": {"dialogue_turns": 0}, "memory": knobs(memory)}
    engine = load_engine(model, device, settings=settings)
    results: list[Result] = []
    with Progress() as bar:
        for length in sorted(map(float, minutes.split(","))):
            for number in map(int, seed.split(",")):
                results += run_stream(engine, number, length, questions, side, full_tokens, bar)
                write(out, results, about(engine, side, questions))
    for line in summarise(results):
        print(line)


def knobs(text: str) -> dict[str, Any]:
    """`a=1,b=0.5,c=x` as {"a": 1, "b": 0.5, "c": "x"}."""
    pairs = [item.split("=") for item in text.split(",") if item]
    return {name: value if value.isalpha() else float(value) if "." in value else int(value) for name, value in pairs}


def about(engine: Engine, side: int, questions: int) -> dict[str, Any]:
    """What was measured, beside the machine."""
    profile = engine.profile
    return {
        **describe(),
        "model": engine.model.model_id,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "retrieval heads": len(profile.heads) if profile else 0,
        "memory": vars(engine.config.memory).copy(),
        "frame side": side,
        "questions per kind": questions,
    }


if __name__ == "__main__":
    typer.run(main)
