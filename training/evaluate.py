"""Measures the demo model on clips it has never seen, through the very driver that answers people.

    python -m training.evaluate [--model models/demo/weights] [--clips 240] [--write]

Every clip is painted anew at some size, half of them are sent through a codec; it is encoded and
prefilled chunk by chunk as a session does, some chunks are left out of the context as recall would,
and one question of every family is answered greedily. An answer is right when it is the expected
one, letter for letter. Three kinds: the world as its own painter paints it; as a painter paints it
that training never saw, things of any size, frames of any shape; and the first again, asked in
phrases that training never uses. `--write` keeps the figures in the model card and in
bench/results.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from config import Config
from frames import Frame
from memory.chunk import KVChunk
from models.checkpoint import recommended_settings
from models.demo.tokenizer import build_tokenizer
from models.demo.world import Scene, render
from models.loading import load
from models.video_llm import VideoLLM
from streaming.time_query.spans import in_seconds
from training.bank import FREE, GRIDS, damaged
from training.bind import ClipMaker, Stage, StoredChunk
from training.looks import LEFT_OUT, look_of
from training.pictures import scene_pictures, through_codec
from training.questions import FAMILIES, Facts, Question, ask
from training.scenes import group_times, random_scene, varied_event

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "models" / "demo" / "MODEL_CARD.md"
RESULTS = ROOT / "bench" / "results" / "demo_model.json"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HELD_OUT = 31  # keeps these clips apart from all others, whose generators are seeded otherwise
SIDES = (128, 160, 192, 224, 256, 320)  # pixels of a clip's frames
SCENES = 40  # that a clip may draw from
LENGTHS = (
    Stage("1 chunk", groups=(1, 4), chunks=(1, 1)),
    Stage("2-3 chunks", groups=(4, 4), chunks=(2, 3), hidden=0.1, far=0.8),
    Stage("4-9 chunks", groups=(4, 4), chunks=(4, 9), hidden=0.2, far=0.6),
)
TARGETS = {
    **dict.fromkeys(("colour", "shape", "presence", "what_at"), 0.97),
    **dict.fromkeys(("when", "direction", "digit"), 0.95),
    **dict.fromkeys(("counting", "order"), 0.90),
}


IN_WORLD, PAINTER, PHRASES = "in world", "left-out painter", "left-out phrases"
KINDS = (IN_WORLD, PAINTER, PHRASES)
# pixels painted for each that the model sees, by the painter that was left out
SCALES = (1.5, 2.0, 3.0, 5.0)


@dataclass(frozen=True, eq=False)
class Clip:
    """A held-out clip: its chunks in order, the frames of each, and what is asked."""

    stage: Stage
    chunks: list[StoredChunk]
    frames: list[list[Frame]]
    questions: list[Question]


@dataclass(frozen=True)
class Verdict:
    """What became of one question."""

    kind: str
    length: str
    family: str
    group: str
    question: str
    expected: str
    answer: str

    @property
    def right(self) -> bool:
        return self.answer == self.expected


def make_clip(seed: int, number: int, kind: str = IN_WORLD) -> Clip:
    """The clip of this number; the lengths take turns."""
    rng = np.random.default_rng(
        [seed, HELD_OUT, number] + ([KINDS.index(PAINTER)] if kind == PAINTER else [])
    )
    stage = LENGTHS[number % len(LENGTHS)]
    free = [kind == PAINTER and rng.random() < FREE for _ in range(SCENES)]
    scenes = [
        random_scene(rng, int(rng.integers(1, 4)), varied_event if any_size else None)
        for any_size in free
    ]
    first = np.cumsum([0, *(len(group_times(scene)) for scene in scenes)]).tolist()
    maker = ClipMaker(scenes, first, build_tokenizer())
    while True:
        chunks = maker.chunks(rng, stage)
        groups = [g for chunk in chunks for g in chunk.groups]
        if len(set(groups)) == len(groups) and not all(chunk.hidden for chunk in chunks):
            break
    if kind == PAINTER:
        frames = paint_otherwise(rng, chunks, scenes, first)
    else:
        side, crf = (
            int(rng.choice(SIDES)),
            int(rng.integers(18, 33)) if rng.random() < 0.5 else None,
        )
        frames = [paint(chunk, scenes, first, side, crf) for chunk in chunks]
    facts = Facts([m for chunk in chunks if not chunk.hidden for m in chunk.truth])
    asked = [ask(rng, facts, family, held_out=kind == PHRASES) for family in FAMILIES]
    return Clip(stage, chunks, frames, [question for question in asked if question])


def paint_otherwise(
    rng: np.random.Generator,
    chunks: Sequence[StoredChunk],
    scenes: Sequence[Scene],
    first: Sequence[int],
) -> list[list[Frame]]:
    """The frames of every chunk by the painter that training never saw, all of one shape."""
    grid, scale = look_of(int(rng.integers(1 << 30))).grid, float(rng.choice(SCALES))
    assert grid in GRIDS
    painted: dict[int, NDArray[np.uint8]] = {}
    made = []
    for chunk in chunks:
        frames: list[Frame] = []
        for group, moment in zip(chunk.groups, chunk.truth, strict=True):
            number = bisect_right(first, group) - 1
            if number not in painted:
                look = look_of(scenes[number].background_seed, (LEFT_OUT,))
                look = replace(
                    look,
                    grid=grid,
                    scale=scale,
                    letterbox=look.letterbox if grid == GRIDS[0] else 1.0,
                )
                painted[number] = damaged(scene_pictures(scenes[number], look), look)
            place = group - first[number]
            pair = group_times(scenes[number])[place]
            for k, t in enumerate(pair):
                seconds = moment.pts_seconds - sum(pair) / 2 + t
                frames.append(Frame(painted[number][2 * place + k], seconds, len(frames)))
        made.append(frames)
    return made


def paint(
    chunk: StoredChunk, scenes: Sequence[Scene], first: Sequence[int], side: int, crf: int | None
) -> list[Frame]:
    """The frames of a chunk as a decoder would give them. crf: quality of the codec, None for
    none.
    """
    images, times = [], []
    for group, moment in zip(chunk.groups, chunk.truth, strict=True):
        number = bisect_right(first, group) - 1
        pair = group_times(scenes[number])[group - first[number]]
        offset = moment.pts_seconds - sum(pair) / 2
        images += [render(scenes[number], t, side) for t in pair]
        times += [offset + t for t in pair]
    painted = np.stack(images)
    if crf is not None:
        painted = through_codec(painted, crf)
    return [Frame(image, t, k) for k, (image, t) in enumerate(zip(painted, times, strict=True))]


def remember(model: VideoLLM, frames: Sequence[Sequence[Frame]], reach: int) -> list[KVChunk]:
    """Chunk by chunk, each in view of the `reach` chunks before it, as a session does."""
    chunks: list[KVChunk] = []
    for number, part in enumerate(frames):
        context = [model.prefix(), *(chunks[-reach:] if reach else [])]
        chunks.append(model.prefill(model.encode(part), context, number))
    return chunks


def judge(model: VideoLLM, clip: Clip, config: Config, kind: str = IN_WORLD) -> list[Verdict]:
    """Every question of the clip answered from the chunks that are not hidden."""
    remembered = remember(model, clip.frames, config.memory.prefill_chunks)
    shown = [kv for kv, chunk in zip(remembered, clip.chunks, strict=True) if not chunk.hidden]
    context = [model.prefix(), *shown]
    verdicts = []
    for question in clip.questions:
        answer = "".join(model.answer(in_seconds(question.text), context, (), config.answer))
        told = (question.family, question.group, question.text, question.answer, answer)
        verdicts.append(Verdict(kind, clip.stage.name, *told))
    return verdicts


@cache
def _model(source: str) -> tuple[VideoLLM, Config]:
    torch.set_num_threads(1)
    return load(source, device="cpu"), Config().overridden(recommended_settings(source))


def judge_clip(source: str, seed: int, number: int, kind: str = IN_WORLD) -> list[Verdict]:
    """One clip from its number to its verdicts; the model is loaded once a process."""
    model, config = _model(source)
    return judge(model, make_clip(seed, number, kind), config, kind)


def judge_clips(
    source: str, seed: int, clips: int, workers: int, kinds: Sequence[str] = KINDS
) -> Iterator[list[Verdict]]:
    jobs = [(source, seed, number, kind) for kind in kinds for number in range(clips)]
    if workers < 2:
        yield from (judge_clip(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(judge_clip, *zip(*jobs, strict=True))


def tally(verdicts: Sequence[Verdict], by: str) -> dict[str, dict[str, tuple[int, int]]]:
    """(right, asked) by "group" or "family"; by length, in the world, and all of these; and by
    other kinds.
    """
    right: Counter[tuple[str, str]] = Counter()
    asked: Counter[tuple[str, str]] = Counter()
    for verdict in verdicts:
        for column in (verdict.length, "all") if verdict.kind == IN_WORLD else (verdict.kind,):
            key = (str(getattr(verdict, by)), column)
            asked[key] += 1
            right[key] += verdict.right
    names = list(dict.fromkeys(name for name, _ in asked))
    return {
        name: {column: (right[name, column], asked[name, column]) for column in COLUMNS}
        for name in names
    }


COLUMNS = (*(stage.name for stage in LENGTHS), "all", PAINTER, PHRASES)


def share(cell: tuple[int, int], decimals: int = 1) -> str:
    right, asked = cell
    return f"{100 * right / asked:.{decimals}f} %" if asked else "-"


def rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """The table of the report, its header first."""
    lines = [["questions", "asked", *COLUMNS, "target"]]
    for group, cells in sorted(tally(verdicts, "group").items(), key=lambda item: _place(item[0])):
        target = f"{100 * TARGETS[group]:.0f} %" if group in TARGETS else ""
        name, asked = group.replace("_", " "), str(sum(cells[column][1] for column in COLUMNS[-3:]))
        lines.append([name, asked, *(share(cells[column]) for column in COLUMNS), target])
    return lines


def _place(group: str) -> int:
    known = list(TARGETS)
    return known.index(group) if group in known else len(known)


def things_told(text: str) -> list[str]:
    """The things of a caption in the order in which it tells them."""
    told = re.findall(r"(?:an? )(\w+ \w+)|the (digit \d)", text)
    return [thing or digit for thing, digit in told]


def caption_facts(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """Precision and recall of what captions tell: things in the right order (the longest common
    subsequence).
    """
    common = told = true = 0
    for verdict in verdicts:
        if verdict.family == "caption":
            answer, expected = things_told(verdict.answer), things_told(verdict.expected)
            common += longest_common(answer, expected)
            told, true = told + len(answer), true + len(expected)
    return common / max(1, told), common / max(1, true)


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest sequence that stands in both, in order."""
    best = [0] * (len(other) + 1)
    for item in one:
        diagonal = 0
        for k, candidate in enumerate(other, 1):
            diagonal, best[k] = (
                best[k],
                diagonal + 1 if item == candidate else max(best[k], best[k - 1]),
            )
    return best[-1]


def show(verdicts: Sequence[Verdict], mistakes: int, console: Console) -> None:
    header, *lines = rows(verdicts)
    table = Table(*header)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    console.print(captions_line(verdicts), highlight=False)
    for verdict in [v for v in verdicts if not v.right][:mistakes]:
        said = f"said {verdict.answer!r}, not {verdict.expected!r}"
        where = f"{verdict.kind}, {verdict.length}, {verdict.family}"
        console.print(f"{where}: {verdict.question} {said}", highlight=False)


def captions_line(verdicts: Sequence[Verdict]) -> str:
    """Precision and recall of captions by kind."""
    parts = []
    for kind in KINDS:
        mine = [verdict for verdict in verdicts if verdict.kind == kind]
        if mine:
            precision, recall = caption_facts(mine)
            parts.append(f"{kind} {100 * precision:.1f} % / {100 * recall:.1f} %")
    return "Things that captions tell, in order, precision / recall: " + ", ".join(parts) + "."


def facts_of_run(model_id: str, seed: int, clips: int, seconds: float) -> dict[str, object]:
    """What a figure needs beside it to mean something."""
    return {
        "model": model_id,
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{_processor()}, {platform.system()} {platform.machine()}, float32",
        "seed": seed,
        "clips": clips,
        "seconds": round(seconds),
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()
    )


def measured_section(verdicts: Sequence[Verdict], run: dict[str, object]) -> str:
    """The part of the model card that this file writes."""
    header, *lines = rows(verdicts)
    table = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    told = (
        f"{run['clips']} clips (seed {run['seed']}), {len(verdicts)} questions, model "
        f"`{run['model']}`, "
        f"commit `{run['commit']}`, {run['date']}, on {run['hardware']}; {run['seconds']} s."
    )
    return f"{BEGIN}\n{text}\n\n{captions_line(verdicts)}\n\n{told}\n{END}"


def update_card(card: str, section: str) -> str:
    """The card with its measured section replaced; ValueError where it has none."""
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the model card has no section between {BEGIN} and {END}")
    return before + section + after


def write(
    verdicts: Sequence[Verdict], run: dict[str, object], card: Path = CARD, results: Path = RESULTS
) -> None:
    card.write_text(
        update_card(card.read_text(encoding="utf-8"), measured_section(verdicts, run)),
        encoding="utf-8",
    )
    results.parent.mkdir(parents=True, exist_ok=True)
    figures = {by: tally(verdicts, by) for by in ("group", "family")}
    results.write_text(
        json.dumps({**run, "questions": len(verdicts), **figures}, indent=1) + "\n",
        encoding="utf-8",
    )


def main(
    model: Annotated[str, typer.Option(help="The model's folder.")] = "demo",
    clips: Annotated[int, typer.Option(help="Clips, a third of each length.")] = 240,
    seed: Annotated[int, typer.Option(help="Seed of the clips.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    mistakes: Annotated[int, typer.Option(help="How many wrong answers to show.")] = 0,
    keep: Annotated[
        bool, typer.Option("--write", help="Write the figures to the model card and bench/results.")
    ] = False,
) -> None:
    """Measure the demo model on held-out clips."""
    console, started = Console(), time.perf_counter()
    told = track(
        judge_clips(model, seed, clips, workers),
        "held-out clips",
        clips * len(KINDS),
        console=console,
    )
    verdicts = [verdict for judged in told for verdict in judged]
    seconds = time.perf_counter() - started
    show(verdicts, mistakes, console)
    if keep:
        write(verdicts, facts_of_run(load(model, device="cpu").model_id, seed, clips, seconds))


if __name__ == "__main__":
    typer.run(main)
