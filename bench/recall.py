"""Right answers at length: streams of the demo world, questions about any moment, several ways to
answer side by side.

    python -m bench.recall --minutes 1,10,60,360

All ways see the same frames through the same model in one run. Frames are painted as they are
needed and forgotten; what is remembered goes through all three tiers, down to a folder that is
deleted afterwards. Other memory settings can be asked in the same run: `--also recall_chunks=4
--also sparse_chunks=8,sparse=salient`. Writes JSON, Markdown and plots into `bench/results/`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.arms import Arm, OursOtherwise, Said, make_arms
from bench.asked import Asked, Asker, long_stream
from bench.machine import describe
from bench.report import Result, judged, summarise, write
from bench.targets import targets
from errors import Notice
from frames import in_parts
from streaming.engine import Engine, load_engine
from streaming.events import Stats
from streaming.session import Session
from training.streams import Stream

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20


@dataclass(frozen=True, eq=False)
class Bench:
    """What is the same for all streams of a run; `also` are other memory settings that ours is
    asked with.
    """

    engine: Engine
    questions: int
    side: int
    full_tokens: int
    also: Sequence[dict[str, Any]] = ()

    def run(self, seed: int, minutes: float, bar: Progress) -> list[Result]:
        """One stream watched once, all questions asked of all arms when the stream stands where
        they are asked.
        """
        stream = long_stream(seed, 60 * minutes)
        with TemporaryDirectory(prefix="longlook-bench-") as name:
            session = self.engine.open(Path(name) / "session")
            arms = make_arms(self.engine, session, stream, self.side, self.full_tokens)
            end_seconds, folder = stream.duration_seconds, Path(name) / "session"
            others = [
                OursOtherwise(self.engine, folder, settings, end_seconds) for settings in self.also
            ]
            try:
                return self._questioned(stream, session, [*arms, *others], seed, minutes, bar)
            finally:
                for other in others:
                    other.close()
                session.close()

    def _questioned(
        self,
        stream: Stream,
        session: Session,
        arms: Sequence[Arm],
        seed: int,
        minutes: float,
        bar: Progress,
    ) -> list[Result]:
        waiting = Asker(stream, seed).all(self.questions)
        fps, size = self.engine.config.read.fps, self.engine.config.memory.chunk_frames
        num_steps = -(-round(stream.duration_seconds * fps) // size) + len(waiting)
        task = bar.add_task(f"{minutes:g} min, seed {seed}", total=num_steps)
        results: list[Result] = []
        for part in in_parts(stream.frames(self.side, fps), size):
            for event in session.watch(part, ahead=True):
                if isinstance(event, Notice):
                    raise RuntimeError(event.text)
            for arm in arms:
                arm.see(part, session)
            bar.advance(task)
            seen_seconds = part[-1].pts_seconds + 1 / fps
            while waiting and waiting[0].at_seconds <= seen_seconds:
                results += ask_all(arms, waiting.pop(0), minutes, seed, session.stats)
                bar.advance(task)
        return results


def ask_all(
    arms: Sequence[Arm], asked: Asked, minutes: float, seed: int, stats: Stats
) -> list[Result]:
    said = [(arm.name, arm.say(asked)) for arm in arms]
    return [result(name, asked, s, minutes, seed, stats) for name, s in said if s is not None]


def result(arm: str, asked: Asked, said: Said, minutes: float, seed: int, stats: Stats) -> Result:
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
        disk_bytes=stats.disk_bytes,
    )


def plain(text: str) -> str:
    return " ".join(text.lower().strip(" .").split())


def rank_of_truth(asked: Asked, said: Said) -> int | None:
    """How many stretches come before the first that shows a true event; None where nothing is
    ranked or nothing true.

    A stretch that is not among the ranked ones counts as far behind.
    """
    if not said.ranked or not asked.spans:
        return None
    for rank, (start, stop) in enumerate(said.ranked):
        if any(start < true_stop and true_start < stop for true_start, true_stop in asked.spans):
            return rank
    return len(said.ranked) + 1000


def main(
    minutes: Annotated[
        str, typer.Option(help="Lengths of the streams, with commas between.")
    ] = "1,10,60,360",
    seed: Annotated[
        str, typer.Option(help="Seeds of the streams; each length is run with each.")
    ] = "0",
    questions: Annotated[int, typer.Option(help="Questions of each kind and stream.", min=1)] = 48,
    model: Annotated[str, typer.Option(help="demo, a folder or a hub id.")] = "demo",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    side: Annotated[int, typer.Option(help="Pixels of a painted frame.")] = 128,
    full_tokens: Annotated[
        int, typer.Option(help="Full attention is tried up to so many tokens.")
    ] = 16_000,
    host_mib: Annotated[
        int, typer.Option(help="Budget of the host tier; what is older is on disk.")
    ] = 256,
    memory: Annotated[
        str, typer.Option(help="Memory settings: recall_chunks=4,window_chunks=1.")
    ] = "",
    prune: Annotated[str, typer.Option(help="Pruning settings: strategy=novelty,budget=0.5.")] = "",
    also: Annotated[
        list[str] | None,
        typer.Option(help="Other memory settings, asked as well; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the results go; files of this name.")] = RESULTS
    / "recall",
) -> None:
    """Ask streams of several lengths about their past and present, by several ways of
    remembering.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_grad_enabled(False)
    settings = {
        "answer": {"dialogue_turns": 0},
        "memory": {"host_bytes": host_mib * MIB, **knobs(memory)},
    }
    settings["prune"] = knobs(prune)
    bench = Bench(
        load_engine(model, device, settings=settings),
        questions,
        side,
        full_tokens,
        [knobs(text) for text in also or ()],
    )
    results: list[Result] = []
    with progress() as bar:
        for length in sorted(map(float, minutes.split(","))):
            for number in map(int, seed.split(",")):
                results += bench.run(number, length, bar)
                write(out, results, targets(results), about(bench))
    for line in [*judged(targets(results)), "", *summarise(results)]:
        print(line)


def progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns)


def knobs(text: str) -> dict[str, Any]:
    """`a=1,b=0.5,c=x` as {"a": 1, "b": 0.5, "c": "x"}."""
    pairs = [item.split("=") for item in text.split(",") if item]
    return {
        name: value if value.isalpha() else float(value) if "." in value else int(value)
        for name, value in pairs
    }


def about(bench: Bench) -> dict[str, Any]:
    """What was measured, beside the machine."""
    engine, profile = bench.engine, bench.engine.profile
    return {
        **describe(),
        "model": engine.model.model_id,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "retrieval heads": len(profile.heads) if profile else 0,
        "memory": vars(engine.config.memory).copy(),
        "prune": vars(engine.config.prune).copy(),
        "frame side": bench.side,
        "questions per kind": bench.questions,
    }


if __name__ == "__main__":
    typer.run(main)
