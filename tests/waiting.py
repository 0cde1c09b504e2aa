"""Waiting for what another thread or process does, without a word about how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


def wait_until(condition: Callable[[], bool], at_most_seconds: float = 30.0) -> None:
    """Return once `condition` holds; the test fails when it does not within that time."""
    for _ in range(int(at_most_seconds * 20)):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"nothing happened for {at_most_seconds:g} s")
