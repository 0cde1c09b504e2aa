"""kill -9 at any line of the store's code and at any moment: at most the chunk under way is lost, and all else is there
bit by bit. LONGLOOK_KILLS=60 makes it longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory.store import DATABASE, SessionError, SessionStore
from tests.conftest import REPOSITORY
from tests.tiny import save_tiny

KILLS = int(os.environ.get("LONGLOOK_KILLS", "6"))
BUDGETS = {"without a limit": 1 << 40, "while the oldest chunks make room": 210_000}

pytestmark = pytest.mark.timeout(600)


class Victims:
    """The process that forks what is to be killed; the model is loaded once."""

    def __init__(self, checkpoint: Path) -> None:
        command = [sys.executable, "-m", "tests.watching", str(checkpoint)]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, folder: Path, budget_bytes: int, at_line: int = 0, after_seconds: float = 0.0) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        order = {"folder": str(folder), "budget_bytes": budget_bytes}
        self._process.stdin.write(json.dumps({**order, "at_line": at_line, "after_seconds": after_seconds}) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    running = Victims(save_tiny(tmp_path_factory.mktemp("tiny")))
    yield running
    running.close()


Content = list[tuple[object, ...]]


def content(folder: Path) -> Content:
    """Every chunk of a folder as it can be read: record, keys and values (None when forgotten), index keys, picture."""
    if not (folder / DATABASE).is_file():
        return []
    try:
        store = SessionStore(folder, read_only=True)
    except SessionError as error:
        assert "There is no session" in str(error)  # killed while it was made
        return []
    keys = [rows.numpy().tobytes() for rows in store.index_keys(2)]
    assert len(keys) == store.num_chunks
    found: Content = []
    for chunk in store.chunks:
        index, start, stop, num_frames, _, extent, *_, positions, visual, _, _ = chunk.row()
        kv = store.read(chunk.index).numpy().tobytes() if chunk.dense else None
        picture = store.thumbnail(chunk.index).read_bytes()
        found.append((index, start, stop, num_frames, extent, positions, visual, keys[chunk.index], picture, kv))
    store.close()
    return found


def first_difference(found: Content, expected: Content) -> int | None:
    """Number of the first chunk that is not as expected; one may be forgotten in either."""
    for index, (a, b) in enumerate(zip(found, expected, strict=False)):
        if a[:-1] != b[:-1] or (a[-1] != b[-1] and None not in (a[-1], b[-1])):
            return index
    return None


@pytest.mark.parametrize("how", BUDGETS)
def test_a_killed_process_loses_at_most_the_chunk_under_way(victims: Victims, tmp_path: Path, how: str) -> None:
    budget, rng = BUDGETS[how], np.random.default_rng(len(how))
    unkilled = victims.run(tmp_path / "unkilled", budget)
    expected = content(tmp_path / "unkilled")
    assert (unkilled["told"], len(expected)) == (10, 10)
    assert any(chunk[-1] is None for chunk in expected) == (budget < 1 << 40)
    kills = rounds = 0
    while kills < KILLS / 2:
        folder, told, killed = tmp_path / str(rounds), 0, True
        while killed:
            at_line = int(rng.integers(1, unkilled["lines"])) if kills % 3 else 0
            ran = victims.run(folder, budget, at_line, 0.0 if at_line else float(rng.uniform(0.02, 0.5)))
            found, told, killed = content(folder), max(told, ran["told"]), ran["killed"]
            assert told <= len(found) <= told + 1, f"{told} chunks were told of, {len(found)} are there"
            assert first_difference(found, expected) is None
            told = len(found)
            kills += killed
        assert [c[-1] is None for c in found] == [c[-1] is None for c in expected]
        assert files(folder) == files(tmp_path / "unkilled")
        rounds += 1


def files(folder: Path) -> dict[str, bytes]:
    """All files of keys and values and all pictures, byte by byte."""
    return {path.name: path.read_bytes() for pattern in ("kv-*.bin", "thumbs/*") for path in folder.glob(pattern)}


def test_a_chunk_that_differs_would_be_noticed(victims: Victims, tmp_path: Path) -> None:
    victims.run(tmp_path / "s", 1 << 40)
    expected = content(tmp_path / "s")
    torn = [*expected[:3], (*expected[3][:-1], expected[4][-1]), *expected[4:]]
    assert first_difference(expected, expected) is None
    assert first_difference(torn, expected) == 3
