"""The GPU bench is ready at any time: its dry run measures every row, without video libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from bench import gpu
from bench.clips import CLIPS, FPS
from bench.gpu import ROWS, Report, Row, run_rows, written
from bench.gpu_rows import TINY, Bench, Table

ABSENT = ("av", "decord", "gradio", "skimage", "cv2", "scenedetect", "matplotlib")
DRY_RUN = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Absent())
try:
    import av
except ImportError:
    from bench.gpu import main, typer
    sys.argv[1:] = ["--dry-run", "--out", sys.argv[1]]
    typer.run(main)
else:
    sys.exit("the import of av was not blocked")
"""


@pytest.fixture
def bench() -> Bench:
    return Bench(torch.device("cpu"), TINY)


def test_the_dry_run_measures_every_row_without_video_libraries(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = subprocess.run(
        [sys.executable, "-c", DRY_RUN, str(out)], capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "gpu.json",
        "gpu.md",
    ]
    data = json.loads((out / "gpu.json").read_text())
    assert [row["row"] for row in data["rows"]] == [row.name for row in ROWS]
    assert {row["error"] for row in data["rows"]} == {None}, data
    measured = {row["row"] for row in data["rows"] if row["tables"]}
    assert measured == {row.name for row in ROWS if "8b" not in row.name}, "a dry run has one shape"
    equality = next(row for row in data["rows"] if row["row"] == "equality")["tables"][0]["rows"]
    for dtype, ours, _, against_fp32, same_token, control in equality:
        assert ours < {"float32": 1e-5, "bfloat16": 0.05}[dtype] and same_token
        assert against_fp32 < control / 3, "a missing chunk would be noticed"


def test_a_row_that_fails_is_reported_and_the_others_go_on(tmp_path: Path, bench: Bench) -> None:
    def fails(bench: Bench) -> Iterator[Table]:
        yield Table("before", ("x",), [[1.0]])
        raise RuntimeError("out of luck")

    def works(bench: Bench) -> Iterator[Table]:
        yield Table("after", ("x",), [[None]])

    report = Report(tmp_path, {})
    run_rows(bench, [Row("fails", 0.5, fails), Row("works", 0.5, works)], 60, report)
    assert report.failed == ["fails"]
    text = (tmp_path / "gpu.md").read_text()
    assert "out of luck" in text and "**before**" in text and "**after**" in text


def test_what_a_cut_off_run_had_measured_is_on_the_disk(tmp_path: Path, bench: Bench) -> None:
    def cut_off(bench: Bench) -> Iterator[Table]:
        yield Table("measured", ("x",), [[1.0]])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rows(bench, [Row("cut off", 1.0, cut_off)], 60, Report(tmp_path, {}))
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert rows[0]["tables"][0]["title"] == "measured" and rows[0]["seconds"] is None


def test_a_row_gets_its_share_of_the_time_that_is_left(tmp_path: Path, bench: Bench) -> None:
    left: list[bool] = []

    def row(bench: Bench) -> Iterator[Table]:
        left.append(bench.has_time(10) and not bench.has_time(45))
        return iter(())

    run_rows(bench, [Row("a", 0.5, row), Row("b", 0.5, row)], 60, Report(tmp_path, {}))
    assert left == [True, False], "the second row has what the first one left"


def test_a_row_that_is_not_known_is_an_error() -> None:
    app = typer.Typer()
    app.command()(gpu.main)
    found = CliRunner().invoke(app, ["--out", "unused", "--dry-run", "--only", "nosuch"])
    assert found.exit_code == 2 and "nosuch" in found.output


def test_cells_are_written_with_three_digits() -> None:
    assert [written(x) for x in (None, 1234.5, 0.01234, "a", 7)] == [
        "-",
        "1234",
        "0.0123",
        "a",
        "7",
    ]


@pytest.mark.parametrize("kind", CLIPS)
def test_made_clips_are_frames_in_time_and_differ_as_their_kind_says(kind: str) -> None:
    frames = CLIPS[kind](64, 24)
    assert [frame.pts_seconds for frame in frames] == [k / FPS for k in range(24)]
    images = torch.stack([torch.from_numpy(frame.image) for frame in frames]).float()
    moved = (images[1:] - images[:-1]).abs().mean((1, 2, 3))
    if kind == "hard cuts":
        assert (moved > 30).nonzero()[:, 0].tolist() == [5, 11, 17]
    else:
        assert moved.max() < 30
    assert (kind == "static camera") == bool(moved.min() < 3)
