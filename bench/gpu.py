"""Everything that can be measured on a GPU, in one run of a few minutes.

    python -m bench.gpu --out DIR [--minutes 8] [--only ingest-4b,decode-4b]
    python -m bench.gpu --out DIR --dry-run        (on the CPU, tiny shapes, under a minute)

Rows run in the order of their worth, each with a share of the time. After every table
`DIR/gpu.json` and `DIR/gpu.md` are written anew, so a run that is cut off still counts. A row that
fails is reported and the others go on.

How to read the result:

- `device`: what the card does at best (matrix product, copies). Other rows are held against these.
- `equality`: differences of logits between chunked prefill and one stock forward. In float32 they
  are rounding (1e-5 or less); in bfloat16 ours must be as far from the stock model's float32 as the
  stock model's own bfloat16 is. The control, with a chunk left out, must be far off. The kernel
  table says whether a flash kernel ran.
- `ingest`: frames per second of a whole session, in four ways, beside the stock model's best batch
  on the same frames. A ratio above 1 is faster than stock. The stages say where the time goes.
- `history`: the first token must cost the same after 1,000 and after 36,000 frames, in the same
  device bytes.
- `decode`: tokens per second of answers one by one and in one batch, beside the stock model's
  batch, with the floor that reading weights and KV once per step sets.
- `limits`: the largest sizes before memory ends. `towers`: reuse in the vision tower against the
  stock tower.

Needs torch, transformers, tokenizers, faiss, numpy, Pillow, typer and rich, and none of the video
libraries. Writes nothing but its two files, downloads nothing, and takes device memory by plain
allocations only.
"""

from __future__ import annotations

import json
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.gpu_rows import (
    LARGE,
    TINY,
    Bench,
    Table,
    measure_decode,
    measure_device,
    measure_equality,
    measure_history,
    measure_ingest,
    measure_limits,
    measure_towers,
)
from bench.machine import describe
from bench.report import table

QUERY = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,memory.total,power.limit"


@dataclass(frozen=True)
class Row:
    """A measurement by name, with the share of the whole time that it may take."""

    name: str
    share: float
    measure: Callable[[Bench], Iterator[Table]]


ROWS = (
    Row("device", 0.03, measure_device),
    Row("equality", 0.05, measure_equality),
    Row("ingest-4b", 0.26, measure_ingest(0)),
    Row("decode-4b", 0.10, measure_decode(0)),
    Row("history", 0.16, measure_history),
    Row("towers", 0.12, measure_towers),
    Row("limits", 0.10, measure_limits),
    Row("ingest-8b", 0.12, measure_ingest(1)),
    Row("decode-8b", 0.06, measure_decode(1)),
)


class Report:
    """The two files of a run; written whole after every table."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._about = about
        self._rows: list[dict[str, Any]] = []

    def begin(self, name: str) -> None:
        self._rows.append({"row": name, "tables": [], "seconds": None, "error": None})

    def add(self, found: Table) -> None:
        self._rows[-1]["tables"].append(asdict(found))
        self.write()

    def end(self, seconds: float, error: str | None) -> None:
        self._rows[-1] |= {"seconds": round(seconds, 1), "error": error}
        self.write()

    @property
    def failed(self) -> list[str]:
        """Names of the rows that failed."""
        return [row["row"] for row in self._rows if row["error"]]

    def write(self) -> None:
        data = json.dumps({"about": self._about, "rows": self._rows}, indent=1) + "\n"
        for name, text in (("gpu.json", data), ("gpu.md", self.markdown())):
            part = self._folder / f"{name}.part"
            part.write_text(text)
            part.replace(self._folder / name)

    def markdown(self) -> str:
        lines = [
            "# Measured on a GPU",
            "",
            *(f"- {name}: {value}" for name, value in self._about.items()),
        ]
        for row in self._rows:
            took = "under way" if row["seconds"] is None else f"{row['seconds']} s"
            lines += ["", f"## {row['row']} ({took})"]
            for found in row["tables"]:
                cells = [[written(cell) for cell in line] for line in found["rows"]]
                lines += ["", f"**{found['title']}**", "", *table(found["head"], cells)]
                lines += ["", found["note"]] if found["note"] else []
            if row["error"]:
                lines += ["", "Failed:", "", "```", row["error"].rstrip(), "```"]
        return "\n".join(lines) + "\n"


def written(cell: Any) -> str:
    """A cell of a table: three digits of a number, a dash where nothing was measured."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell)


def run_rows(bench: Bench, rows: Sequence[Row], seconds: float, report: Report) -> None:
    """Every row in its share of the time; what one leaves goes to the next ones."""
    stop = time.monotonic() + seconds
    for number, row in enumerate(rows):
        started = time.monotonic()
        shares = sum(later.share for later in rows[number:])
        bench.deadline_seconds = started + (stop - started) * row.share / shares
        report.begin(row.name)
        error = None
        try:
            for found in row.measure(bench):
                report.add(found)
        except Exception:  # noqa: BLE001  a row that fails must not take the others with it
            error = traceback.format_exc(limit=-6)
        report.end(time.monotonic() - started, error)
        print(
            f"{row.name}: {time.monotonic() - started:.1f} s{' FAILED' if error else ''}",
            flush=True,
        )


def driver() -> dict[str, str]:
    """What the driver says of the card; empty where there is none."""
    try:
        found = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(
        zip(QUERY.split(","), (word.strip() for word in found.stdout.split(",")), strict=False)
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder for gpu.json and gpu.md.")],
    minutes: Annotated[float, typer.Option(help="Time for all rows together.", min=0.1)] = 8.0,
    only: Annotated[
        str, typer.Option(help="Rows, with commas: " + ",".join(row.name for row in ROWS))
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Every row on the CPU with tiny shapes.")
    ] = False,
    commit: Annotated[
        str, typer.Option(help="Commit to name where the code lies outside git.")
    ] = "",
) -> None:
    """Measure everything that a GPU can tell, row by row."""
    names = only.split(",") if only else [row.name for row in ROWS]
    if unknown := set(names) - {row.name for row in ROWS}:
        raise typer.BadParameter(
            f"there is no row {min(unknown)!r}; rows: {', '.join(row.name for row in ROWS)}"
        )
    if not dry_run and not torch.cuda.is_available():
        raise typer.BadParameter(
            "torch sees no GPU here; --dry-run measures tiny shapes on the CPU"
        )
    device = torch.device("cpu" if dry_run else "cuda")
    about = {**describe(), **driver(), "minutes": minutes, "dry run": dry_run}
    if commit:
        about["commit"] = commit
    report = Report(out, about)
    had_gradients, num_threads = torch.is_grad_enabled(), torch.get_num_threads()
    torch.set_grad_enabled(False)
    if dry_run:
        # tiny shapes gain nothing from more, and lose much beside other work
        torch.set_num_threads(1)
    try:
        bench = Bench(device, TINY if dry_run else LARGE)
        run_rows(bench, [row for row in ROWS if row.name in names], 60 * minutes, report)
    finally:
        torch.set_grad_enabled(had_gradients)
        torch.set_num_threads(num_threads)
    print(report.markdown())
    raise typer.Exit(1 if report.failed else 0)


if __name__ == "__main__":
    typer.run(main)
