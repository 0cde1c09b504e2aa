"""Many answers and many streams at once: this version of the code beside an earlier one, in the
same run.

    python -m bench.serving [--parent COMMIT]

The same driver runs both versions, each in a process of its own, by turns. Answers: pieces of text
per second of all together, and the time to the first piece. Watching: chunks per second of all
sessions, and what is left of it while an answer is always under way. Exits with 1 where a target is
missed. Writes JSON and Markdown into `bench/results/`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from bench.machine import ROOT, describe, save
from bench.report import table

RESULTS = Path(__file__).parent / "results"
PARENT = "06532d5"  # the last version in which sessions took turns at a lock
FASTER_AT_8 = 2.5  # whole short answers, against one by one
WATCHING_SHARE = 0.5  # left beside an answer that is always under way
NO_SLOWER = 0.95  # watching without questions, against the parent
Result = dict[str, list[dict[str, float]]]


def measure(tree: Path) -> Result:
    """What the driver says of one version of the code."""
    driver = Path(__file__).with_name("serving_driver.py")
    run = subprocess.run(
        [sys.executable, str(driver), str(tree)],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"the driver failed on {tree}:\n{run.stderr}")
    found: Result = json.loads(run.stdout.splitlines()[-1])
    return found


def extract(commit: str, folder: Path) -> Path:
    """The tree of a commit, written to a folder."""
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def combined(results: list[Result]) -> Result:
    """Medians over several runs of the driver."""
    return {
        part: [
            {
                name: median(result[part][row][name] for result in results)
                for name in results[0][part][row]
            }
            for row in range(len(results[0][part]))
        ]
        for part in results[0]
    }


def missed(ours: Result, parent: Result | None) -> list[str]:
    """The targets that were not met, in words."""
    rates = {int(row["answers"]): row["pieces_per_second"] for row in ours["answers"]}
    told = []
    if rates[8] < FASTER_AT_8 * rates[1]:
        told.append(
            f"8 answers at once: {rates[8] / rates[1]:.2f} x one by one, wanted {FASTER_AT_8} x"
        )
    for number, row in enumerate(ours["watching"]):
        share = row["beside_an_answer"] / row["chunks_per_second"]
        if share < WATCHING_SHARE:
            told.append(
                f"{row['sessions']:.0f} sessions beside an answer: {share:.2f}, wanted "
                f"{WATCHING_SHARE}"
            )
        if parent is not None:
            before = parent["watching"][number]["chunks_per_second"]
            if row["chunks_per_second"] < NO_SLOWER * before:
                ratio = row["chunks_per_second"] / before
                told.append(
                    f"{row['sessions']:.0f} sessions watching: {ratio:.2f} x the parent, "
                    f"wanted {NO_SLOWER} x"
                )
    return told


def report(ours: Result, parent: Result | None) -> list[str]:
    """Both tables as Markdown."""
    answers = []
    for number, row in enumerate(ours["answers"]):
        before = parent["answers"][number] if parent else None
        one = ours["answers"][0]["pieces_per_second"]
        answers.append(
            [
                f"{row['answers']:.0f}",
                f"{row['pieces_per_second']:.0f}",
                (f"{row['pieces_per_second'] / one:.2f} x"),
                f"{row['first_p50_ms']:.0f} / {row['first_p95_ms']:.0f}",
                *(
                    [
                        f"{before['pieces_per_second']:.0f}",
                        (f"{row['pieces_per_second'] / before['pieces_per_second']:.2f} x"),
                        (f"{before['first_p50_ms']:.0f} / {before['first_p95_ms']:.0f}"),
                    ]
                    if before
                    else ["-", "-", "-"]
                ),
            ]
        )
    watching = []
    for number, row in enumerate(ours["watching"]):
        before = parent["watching"][number] if parent else None
        watching.append(
            [
                f"{row['sessions']:.0f}",
                f"{row['chunks_per_second']:.1f}",
                f"{row['beside_an_answer']:.1f}",
                f"{100 * row['beside_an_answer'] / row['chunks_per_second']:.0f} %",
                *(
                    [
                        f"{before['chunks_per_second']:.1f}",
                        f"{before['beside_an_answer']:.1f}",
                        f"{100 * before['beside_an_answer'] / before['chunks_per_second']:.0f} %",
                    ]
                    if before
                    else ["-", "-", "-"]
                ),
            ]
        )
    told = [f"Missed: {line}." for line in missed(ours, parent)] or ["All targets are met."]
    return [
        *table(
            [
                "answers at once",
                "pieces/s",
                "against one",
                "first piece ms, p50 / p95",
                "parent pieces/s",
                "against the parent",
                "parent first piece ms",
            ],
            answers,
        ),
        "",
        *table(
            [
                "sessions watching",
                "chunks/s",
                "beside an answer",
                "left",
                "parent chunks/s",
                "parent beside an answer",
                "parent left",
            ],
            watching,
        ),
        "",
        *told,
    ]


def main(
    parent: Annotated[
        str, typer.Option(help="Commit to measure beside this one; empty for none.")
    ] = PARENT,
    repeats: Annotated[
        int, typer.Option(help="Runs of each version, by turns; medians count.", min=1)
    ] = 2,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = RESULTS / "serving",
) -> None:
    """Measure answers and watching at once, beside an earlier version."""
    ours: list[Result] = []
    theirs: list[Result] = []
    with TemporaryDirectory() as folder:
        tree = extract(parent, Path(folder)) if parent else None
        for _ in range(repeats):
            ours.append(measure(ROOT))
            if tree is not None:
                theirs.append(measure(tree))
    now, before = combined(ours), combined(theirs) if theirs else None
    lines = report(now, before)
    about: dict[str, Any] = {
        **describe(),
        "parent": parent or "none",
        "model": "demo",
        "repeats": repeats,
    }
    data = {"missed": missed(now, before), "ours": now, "parent": before}
    save(out, "Answers and streams at once", about, lines, data)
    print("\n".join(lines))
    raise typer.Exit(1 if data["missed"] else 0)


if __name__ == "__main__":
    typer.run(main)
