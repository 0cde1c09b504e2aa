"""Results of the recall bench as JSON, Markdown and plots. Knows nothing of how they were
measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.machine import save
from bench.plot import Line, line_chart

MIB = 1 << 20
# ways to answer
OURS, WINDOW, LAST_FRAMES, SHORT_CLIP = "ours", "window", "last 4 frames", "event on a short clip"


@dataclass(frozen=True)
class Target:
    """Something ours must reach; `is_met` is None where the run had nothing to judge it by."""

    what: str
    wanted: str
    measured: str
    is_met: bool | None


@dataclass(frozen=True)
class Result:
    """One question answered in one way. `rank` counts the stretches of evidence before the true
    one; None: unranked.
    """

    minutes: float
    seed: int
    arm: str
    kind: str
    family: str
    question: str
    wanted: str
    said: str
    right: bool
    rank: int | None
    asked_at_seconds: float
    true_spans: tuple[tuple[float, float], ...]
    context_tokens: int
    first_token_seconds: float
    device_bytes: int
    host_bytes: int
    disk_bytes: int


def write(
    out: Path, results: Sequence[Result], targets: Sequence[Target], about: dict[str, Any]
) -> None:
    """`out`.json, .md, and -accuracy.svg, -bytes.svg beside them."""
    data = {"targets": [asdict(t) for t in targets], "results": [asdict(r) for r in results]}
    plots = [f"![{what}]({out.name}-{what}.svg)" for what in ("accuracy", "bytes")]
    parts = [judged(targets), summarise(results), by_family(results)]
    lines = [*(line for part in parts for line in [*part, ""]), *plots]
    save(out, "Right answers at length", about, lines, data)
    plot(out, results)


def judged(targets: Sequence[Target], subject: str = f"{OURS}, longest stream") -> list[str]:
    """A Markdown table: a row for each target of the subject."""
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [[t.what, t.wanted, t.measured, words[t.is_met]] for t in targets]
    return table([subject, "target", "measured", "met"], rows)


def summarise(results: Sequence[Result]) -> list[str]:
    """A Markdown table: a row for each length and way."""
    kinds = list(dict.fromkeys(r.kind for r in results))
    head = [
        "minutes",
        "way",
        *kinds,
        "hit@1",
        "hit@4",
        "tokens",
        "first token ms",
        "device MiB",
        "host MiB",
        "disk MiB",
    ]
    rows = [
        [
            f"{minutes:g}",
            arm,
            *(share([r.right for r in group if r.kind == kind]) for kind in kinds),
            share([r.rank < 1 for r in group if r.kind == "past" and r.rank is not None]),
            share([r.rank < 4 for r in group if r.kind == "past" and r.rank is not None]),
            f"{mean(r.context_tokens for r in group):.0f}",
            f"{1000 * median(r.first_token_seconds for r in group):.0f}",
            f"{max(r.device_bytes for r in group) / MIB:.2f}",
            f"{max(r.host_bytes for r in group) / MIB:.1f}",
            f"{max(r.disk_bytes for r in group) / MIB:.1f}",
        ]
        for (minutes, arm), group in grouped(results).items()
    ]
    note = (
        "Accuracy with the number of questions; hits are of past questions; bytes are those of "
        "ours."
    )
    return [*table(head, rows), "", note]


def by_family(results: Sequence[Result]) -> list[str]:
    """Accuracy by family, a row for each length, way and kind that has it."""
    families = list(dict.fromkeys((r.kind, r.family) for r in results))
    head = ["minutes", "way", *(f"{family} ({kind})" for kind, family in families)]
    rows = [
        [
            f"{minutes:g}",
            arm,
            *(share([r.right for r in group if (r.kind, r.family) == f]) for f in families),
        ]
        for (minutes, arm), group in grouped(results).items()
    ]
    return table(head, rows)


def grouped(results: Iterable[Result]) -> dict[tuple[float, str], list[Result]]:
    groups: dict[tuple[float, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.minutes, result.arm].append(result)
    return groups


def share(marks: Sequence[bool]) -> str:
    return f"{mean(marks):.2f} ({len(marks)})" if marks else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def plot(out: Path, results: Sequence[Result]) -> None:
    accuracy, used = defaultdict(list), defaultdict(list)
    for (minutes, arm), group in grouped(results).items():
        past = [r.right for r in group if r.kind == "past"]
        if past:
            accuracy[arm].append((minutes / 60, mean(past)))
        if arm == OURS:
            used["device"].append((minutes / 60, max(r.device_bytes for r in group) / MIB))
            used["host"].append((minutes / 60, max(r.host_bytes for r in group) / MIB))
            used["disk"].append((minutes / 60, max(r.disk_bytes for r in group) / MIB))
    charts = {
        "accuracy": line_chart(
            "Questions about the past answered right", "hours", "", lines(accuracy), top=1.0
        ),
        "bytes": line_chart("Memory of one stream", "hours", "MiB", lines(used), log_y=True),
    }
    for name, svg in charts.items():
        out.with_name(f"{out.name}-{name}.svg").write_text(svg)


def lines(points: dict[str, list[tuple[float, float]]]) -> list[Line]:
    return [Line(name, tuple(where)) for name, where in points.items()]
