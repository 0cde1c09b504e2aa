"""Free memory goes back to the system: while a stream is watched, and when its memory is closed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from config import MemoryConfig
from memory import heap, kv_memory
from memory.kv_memory import KVMemory
from memory.records import NewChunk
from tests.conftest import REPOSITORY
from tests.test_bank import make_chunk

FRAGMENTS = """
import os
from memory.heap import return_free_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks = [os.urandom(60_000 + number % 7 * 1000) for number in range(3000)]
kept = blocks[::50]
del blocks
before = resident()
return_free_memory()
print(before, resident())
"""


@pytest.mark.skipif(heap._malloc_trim() is None, reason="another C library than glibc")
def test_what_was_freed_between_what_stays_goes_back_to_the_system() -> None:
    told = subprocess.run(
        [sys.executable, "-c", FRAGMENTS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, told.stdout.split())
    assert before - after > 100 << 20, "of 190 MB"


def test_memory_is_returned_every_so_many_chunks_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    returned: list[int] = []
    monkeypatch.setattr(kv_memory, "TRIM_CHUNKS", 5)
    monkeypatch.setattr(kv_memory, "return_free_memory", lambda: returned.append(1))
    memory = KVMemory(MemoryConfig(), torch.device("cpu"))
    for index in range(12):
        memory.append(NewChunk(make_chunk(index)))
    assert len(returned) == 2
    memory.close()
    assert len(returned) == 3
