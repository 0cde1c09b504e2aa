"""Videos with wrong bytes are read or refused in a sentence, whatever the bytes are. The long form
is `pytest -m slow tests/test_mutants.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.golden import ORDERED, Recipe, make, make_named, steady

RATE = Fraction(1, 30)
CLIPS = ("variable mp4", "edit list", "variable mkv", "ntsc vp8", "long-gop ts", "fragmented mp4")
MORE_CLIPS = (
    "mpeg4 avi",
    "hevc 10 bit",
    "variable vp9",
    "av1",
    "4:4:4 mov",
    "slides",
    "open-gop mp4",
)


def make_seeds(folder: Path, names: tuple[str, ...]) -> None:
    seeds = folder / "seeds"
    seeds.mkdir()
    for name in names:
        make_named(seeds, name)
    make(seeds / "raw.h264", steady(30, 25), Recipe(options=ORDERED))
    make(seeds / "old.mpg", steady(30, 30, RATE), Recipe("mpeg2video", time_base=RATE))
    gif = Recipe("gif", "rgb8", time_base=Fraction(1, 100))
    make(seeds / "small.gif", steady(8, 5, gif.time_base), gif)


def outcomes(folder: Path, first: int, count: int) -> Counter[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.mutants", str(folder), str(first), str(count)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, f"mutant {lines[-1:]}: {ran.stderr[-2000:]}"
    found = Counter(line["outcome"] for line in lines if line["outcome"] != "begun")
    assert found.total() == count
    return found


def assert_dice_were_good(found: Counter[str], count: int) -> None:
    """Some are read, some refused: else the dice hit nothing, or everything."""
    assert found["read"] + found["warned"] > count / 5 and found["warned"]
    assert found.total() - found["read"] - found["warned"] > count / 20


@pytest.mark.timeout(900)
def test_wrong_bytes_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    make_seeds(tmp_path, CLIPS)
    assert_dice_were_good(outcomes(tmp_path, 0, 120), 120)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands_with_wrong_bytes_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    make_seeds(tmp_path, CLIPS + MORE_CLIPS)
    found: Counter[str] = Counter()
    for first in range(1000, 4200, 200):
        found += outcomes(tmp_path, first, 200)
    assert_dice_were_good(found, 3200)
