"""Writes the bundled samples: two streams of the world as ordinary videos, with what they show and
what may be asked.

    python -m training.samples [--out samples]

The same command gives the same clips. Knows nothing of models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.questions import FAMILIES, Question
from training.streams import Stream, describe_events, make_stream, stream_questions, write_video

SIDE = 256  # pixels
FPS = 8
CRF = 21  # of H.264: 2 MB for both


@dataclass(frozen=True)
class Sample:
    """A bundled clip."""

    name: str
    seed: int
    duration_seconds: float
    questions_per_family: int

    def stream(self) -> Stream:
        return make_stream(self.seed, self.duration_seconds)


SAMPLES = (
    Sample("one_minute", seed=0, duration_seconds=60, questions_per_family=4),
    Sample("ten_minutes", seed=10, duration_seconds=600, questions_per_family=6),
)


def describe(sample: Sample) -> dict[str, object]:
    """What a sample shows and what may be asked about it, as plain data; times in seconds."""
    stream = sample.stream()
    asked = stream_questions(stream, sample.seed, sample.questions_per_family, list(FAMILIES))
    return {
        "name": sample.name,
        "seed": sample.seed,
        "duration_seconds": stream.duration_seconds,
        "width": SIDE,
        "height": SIDE,
        "fps": FPS,
        "events": describe_events(stream),
        "questions": [describe_question(stream, question) for question in asked],
    }


def describe_question(stream: Stream, question: Question) -> dict[str, object]:
    """A question with its answer; spans: [start, stop] of the events it is about, empty where it is
    about none.
    """
    meant = {id(event) for event in question.events}
    spans = [[start, stop] for start, stop, event in stream.events() if id(event) in meant]
    return {
        "family": question.family,
        "question": question.text,
        "answer": question.answer,
        "spans": spans,
    }


def to_json(data: dict[str, object]) -> str:
    """JSON with one event or question a line, for people and for diffs."""
    lines = []
    for key, value in data.items():
        if isinstance(value, list):
            items = ",\n".join(f"    {json.dumps(item)}" for item in value)
            lines.append(f"  {json.dumps(key)}: [\n{items}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(
    out: Annotated[Path, typer.Option(help="The folder they go to.")] = Path("samples"),
) -> None:
    """Write the bundled samples."""
    out.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        for sample in SAMPLES:
            task = bar.add_task(f"{sample.name}.mp4")
            write_video(
                sample.stream(),
                out / f"{sample.name}.mp4",
                SIDE,
                FPS,
                CRF,
                lambda done, total, task=task: bar.update(task, completed=done, total=total),  # type: ignore[misc]
            )
            (out / f"{sample.name}.json").write_text(to_json(describe(sample)), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
