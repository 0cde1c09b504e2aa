"""kill -9 at any line of the store's code and at any moment: at most the chunk under way is lost,
and all else is there bit by bit. The long form is `pytest -m slow tests/test_kill.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory.disk_tier import SessionError, SessionStore
from memory.plain_files import DATABASE
from memory.records import KEPT, Kept
from tests.conftest import REPOSITORY
from tests.tiny import save_tiny

KILLS, MANY_KILLS = 8, 120  # over all ways
HOW = {
    "without a limit": (1 << 40, 16),
    "while the oldest chunks make room": (280_000, 16),
    "in 8 bits": (1 << 40, 8),
    "in 8 bits while the oldest chunks make room": (240_000, 8),
}

pytestmark = pytest.mark.timeout(600)


class Victims:
    """The process that forks what is to be killed; the model is loaded once."""

    def __init__(self, checkpoint: Path) -> None:
        command = [sys.executable, "-m", "tests.watching", str(checkpoint)]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        folder: Path,
        budget_bytes: int,
        kv_bits: int,
        at_line: int = 0,
        after_seconds: float = 0.0,
    ) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        order = {"folder": str(folder), "budget_bytes": budget_bytes, "kv_bits": kv_bits}
        self._process.stdin.write(
            json.dumps({**order, "at_line": at_line, "after_seconds": after_seconds}) + "\n"
        )
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
DENSE, EXACT = -3, -1  # in a chunk's tuple
GONE = (None,) * 13  # a chunk's tuple where all of it has made room


def content(folder: Path) -> Content:
    """Every chunk of a folder as it can be read: record, index keys, picture, and its keys and
    values as they are kept, None where they have made room."""
    if not (folder / DATABASE).is_file():
        return []
    try:
        store = SessionStore(folder, read_only=True)
    except SessionError as error:
        assert "There is no session" in str(error)  # killed while it was made
        return []
    keys = [rows.numpy().tobytes() for rows in store.index_keys(2)]
    assert len(keys) == len(store.chunks)
    found: Content = [GONE] * store.first_chunk
    for chunk in store.chunks:
        index, start, stop, num_frames, _, extent, _, starts, _, positions, visual, _ = chunk.row()
        picture = store.thumbnail(chunk.index).read_bytes()
        kv = tuple(kept_bytes(store, chunk.index, kept) for kept in KEPT)
        own_keys = keys[index - store.first_chunk]
        found.append(
            (
                index,
                start,
                stop,
                num_frames,
                extent,
                starts,
                positions,
                visual,
                own_keys,
                picture,
                *kv,
            )
        )
    store.close()
    return found


def kept_bytes(store: SessionStore, index: int, kept: Kept) -> bytes | None:
    is_there = index >= store.first(kept) and store.chunks[index].places[kept].num_bytes
    return store.read(index, kept).numpy().tobytes() if is_there else None


def first_difference(found: Content, expected: Content) -> int | None:
    """Number of the first chunk that is not as expected; bytes may have made room in either."""
    for index, pair in enumerate(zip(found, expected, strict=False)):
        if any(a != b and None not in (a, b) for a, b in zip(*pair, strict=True)):
            return index
    return None


@pytest.mark.parametrize("how", HOW)
def test_a_killed_process_loses_at_most_the_chunk_under_way(
    victims: Victims, tmp_path: Path, how: str
) -> None:
    kill_and_compare(victims, tmp_path, how, KILLS // len(HOW))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("how", HOW)
def test_many_kills_lose_at_most_the_chunk_under_way(
    victims: Victims, tmp_path: Path, how: str
) -> None:
    kill_and_compare(victims, tmp_path, how, MANY_KILLS // len(HOW))


def kill_and_compare(victims: Victims, tmp_path: Path, how: str, num_kills: int) -> None:
    """Kills again and again until the end, and from the beginning, until there are enough kills."""
    (budget, bits), rng = HOW[how], np.random.default_rng(len(how))
    unkilled = victims.run(tmp_path / "unkilled", budget, bits)
    expected = content(tmp_path / "unkilled")
    assert (unkilled["told"], len(expected)) == (10, 10)
    assert any(chunk[DENSE] is None for chunk in expected) == (budget < 1 << 40)
    assert any(chunk[EXACT] is not None for chunk in expected) == (bits == 8)
    kills = rounds = 0
    while kills < num_kills:
        folder, told, killed = tmp_path / str(rounds), 0, True
        while killed:
            at_line = int(rng.integers(1, unkilled["lines"])) if kills % 3 else 0
            ran = victims.run(
                folder, budget, bits, at_line, 0.0 if at_line else float(rng.uniform(0.02, 0.5))
            )
            found, told, killed = content(folder), max(told, ran["told"]), ran["killed"]
            assert told <= len(found) <= told + 1, (
                f"{told} chunks were told of, {len(found)} are there"
            )
            assert first_difference(found, expected) is None
            told = len(found)
            kills += killed
        assert found == expected
        assert files(folder) == files(tmp_path / "unkilled")
        rounds += 1


def files(folder: Path) -> dict[str, bytes]:
    """All files of keys and values and all pictures, byte by byte."""
    return {
        path.name: path.read_bytes()
        for pattern in ("kv-*.bin", "thumbs/*")
        for path in folder.glob(pattern)
    }


def test_a_chunk_that_differs_would_be_noticed(victims: Victims, tmp_path: Path) -> None:
    victims.run(tmp_path / "s", 1 << 40, 16)
    expected = content(tmp_path / "s")
    torn = [
        *expected[:3],
        (*expected[3][:DENSE], expected[4][DENSE], *expected[3][DENSE + 1 :]),
        *expected[4:],
    ]
    assert first_difference(expected, expected) is None
    assert first_difference(torn, expected) == 3
