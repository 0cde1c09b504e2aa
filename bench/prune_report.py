"""Results of the prune bench: rows, targets, JSON, Markdown and plots. Knows nothing of how they
were measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from bench.machine import save
from bench.plot import line_chart
from bench.report import Target, judged, lines, share, table
from config import PruneConfig, ReuseConfig

NONE = PruneConfig()
BASE = NONE.strategy
NO_REUSE, REUSE = ReuseConfig(), ReuseConfig("novelty")
CLIPS, CALM, BUSY = "clips", "surveillance", "busy"
MOST_KEPT = {CALM: 0.25, BUSY: 0.40}
LEAST_RIGHT = 0.98
GIB = 1 << 30


@dataclass(frozen=True)
class Setting:
    """What is left out of the vision tower's tokens, and whether its work is used again.

    rival: a pruner of `bench/rivals` that leaves tokens out in place of ours.
    """

    prune: PruneConfig = NONE
    reuse: ReuseConfig = NO_REUSE
    rival: str = ""

    @property
    def name(self) -> str:
        pruning = self.rival or self.prune.strategy
        return pruning if self.reuse == NO_REUSE else f"{pruning} + reuse"


@dataclass(frozen=True)
class Asking:
    """One question answered under one setting. cosine: of the last hidden states; clips only, and 1
    without pruning.
    """

    footage: str
    setting: str
    budget: float
    kind: str
    question: str
    wanted: str
    said: str
    right: bool
    cosine: float | None


@dataclass(frozen=True)
class Seeing:
    """What was seen of some footage under one setting: visual tokens before and after, memory of
    all tokens.
    """

    footage: str
    setting: str
    budget: float
    seconds: float
    tokens_before: int
    tokens_kept: int
    kv_bytes: int


@dataclass(frozen=True)
class Row:
    """One setting on one kind of footage."""

    footage: str
    setting: str
    budget: float
    kept: float
    right: float
    questions: int
    cosine: float | None
    kv_gib_per_hour: float


def rows_of(found: Sequence[Asking | Seeing]) -> list[Row]:
    """A row for each footage and setting, in the order in which they were measured."""
    groups: dict[tuple[str, str, float], list[Asking | Seeing]] = defaultdict(list)
    for item in found:
        groups[item.footage, item.setting, item.budget].append(item)
    return [row for key, items in groups.items() if (row := row_of(key, items)) is not None]


def row_of(key: tuple[str, str, float], items: Sequence[Asking | Seeing]) -> Row | None:
    asked = [item for item in items if isinstance(item, Asking)]
    seen = [item for item in items if isinstance(item, Seeing)]
    if not asked or not seen:
        return None
    near = [item.cosine for item in asked if item.cosine is not None]
    return Row(
        *key,
        kept=sum(s.tokens_kept for s in seen) / sum(s.tokens_before for s in seen),
        right=mean(item.right for item in asked),
        questions=len(asked),
        cosine=mean(near) if near else None,
        kv_gib_per_hour=sum(s.kv_bytes for s in seen) / GIB * 3600 / sum(s.seconds for s in seen),
    )


def targets(rows: Sequence[Row], budget: float) -> list[Target]:
    """Of novelty pruning with this budget, beside no pruning on the same footage."""
    judged = []
    for footage, most in MOST_KEPT.items():
        ours = next(
            (r for r in rows if (r.footage, r.setting, r.budget) == (footage, "novelty", budget)),
            None,
        )
        base = next((r for r in rows if (r.footage, r.setting) == (footage, BASE)), None)
        what = (
            (f"{footage}: tokens kept", f"at most {most:.0%}"),
            (f"{footage}: right", f"at least {LEAST_RIGHT} x all"),
        )
        if ours is None or base is None:
            judged += [Target(*words, "not run", None) for words in what]
            continue
        ratio = ours.right / base.right if base.right else None
        told = f"{ours.right:.3f} beside {base.right:.3f}" + (
            f", ratio {ratio:.3f}" if ratio is not None else ""
        )
        judged.append(Target(*what[0], f"{ours.kept:.1%}", ours.kept <= most))
        judged.append(Target(*what[1], told, None if ratio is None else ratio >= LEAST_RIGHT))
    return judged


def tables(rows: Sequence[Row]) -> list[str]:
    """For each footage a Markdown table, the unpruned row first; ratios are to that one."""
    told: list[str] = []
    for footage in dict.fromkeys(row.footage for row in rows):
        group = [row for row in rows if row.footage == footage]
        base = next((row for row in group if row.setting == BASE), None)
        head = [
            footage,
            "budget",
            "tokens kept",
            "right (asked)",
            "of unpruned",
            "cosine",
            "KV GiB/h",
            "of unpruned",
        ]
        told += [*table(head, [cells(row, base) for row in group]), ""]
    return told


def cells(row: Row, base: Row | None) -> list[str]:
    near = "" if row.cosine is None else f"{row.cosine:.3f}"
    ratio = f"{row.right / base.right:.3f}" if base and base.right else ""
    smaller = f"{row.kv_gib_per_hour / base.kv_gib_per_hour:.2f}" if base else ""
    right, memory = f"{row.right:.3f} ({row.questions})", f"{row.kv_gib_per_hour:.3f}"
    return [
        row.setting,
        budget_cell(row.setting, row.budget),
        f"{row.kept:.1%}",
        right,
        ratio,
        near,
        memory,
        smaller,
    ]


def budget_cell(setting: str, budget: float) -> str:
    return "" if setting.startswith(BASE) else f"{budget:g}"


def by_kind(found: Sequence[Asking | Seeing]) -> list[str]:
    """Accuracy by kind of question, a row for each footage and setting."""
    asked = [item for item in found if isinstance(item, Asking)]
    kinds = list(dict.fromkeys(item.kind for item in asked))
    groups: dict[tuple[str, str, float], list[Asking]] = defaultdict(list)
    for item in asked:
        groups[item.footage, item.setting, item.budget].append(item)
    body = []
    for (footage, setting, budget), items in groups.items():
        shares = [share([item.right for item in items if item.kind == kind]) for kind in kinds]
        body.append([footage, setting, budget_cell(setting, budget), *shares])
    return table(["footage", "setting", "budget", *kinds], body)


def write(
    out: Path, found: Sequence[Asking | Seeing], about: dict[str, Any], budget: float
) -> list[str]:
    """`out`.json, .md, and a plot for each footage beside them; gives the tables.

    budget: at which targets are judged.
    """
    rows = rows_of(found)
    out.parent.mkdir(parents=True, exist_ok=True)  # for the plots
    data = {
        "targets": [asdict(t) for t in targets(rows, budget)],
        "rows": [asdict(r) for r in rows],
    }
    data["answers"] = [asdict(item) for item in found if isinstance(item, Asking)]
    told = [*judged(targets(rows, budget), f"novelty, budget {budget:g}"), "", *tables(rows)]
    plots = [plot(out, footage, rows) for footage in dict.fromkeys(row.footage for row in rows)]
    save(
        out, "Tokens kept against right answers", about, [*told, *by_kind(found), "", *plots], data
    )
    return told


def plot(out: Path, footage: str, rows: Sequence[Row]) -> str:
    """A line for each setting but the unpruned, ending in the unpruned point; gives its mention in
    Markdown.
    """
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    group = [row for row in rows if row.footage == footage]
    for row in group:
        whole = [(r.kept, r.right) for r in group if r.setting == BASE]
        if row.setting != BASE:
            points[row.setting] = sorted({*points[row.setting], (row.kept, row.right), *whole})
    chart = line_chart(
        f"Right answers, {footage}", "share of visual tokens kept", "", lines(points), top=1.0
    )
    path = out.with_name(f"{out.name}-{footage}.svg")
    path.write_text(chart)
    return f"![{footage}]({path.name})"
