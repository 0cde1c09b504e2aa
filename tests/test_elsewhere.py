"""Everything goes to the device that the model is on: no tensor is forgotten on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.elsewhere import QUESTIONS, WAYS


@pytest.fixture(scope="module")
def found(repository: Path) -> Any:
    command = [sys.executable, "-m", "tests.elsewhere"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", WAYS)
def test_another_device_answers_as_the_cpu_does(found: Any, way: str) -> None:
    assert len(found["here"][way]) == 2 * len(QUESTIONS)
    assert found["there"][way] == found["here"][way]


def test_the_tower_was_computed_in_part_there(found: Any) -> None:
    assert found["calls"] > 0


def test_a_tensor_that_was_forgotten_on_the_cpu_would_be_noticed(found: Any) -> None:
    assert "tensors of two devices" in found["complaint"]
