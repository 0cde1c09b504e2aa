"""Waiting for what another thread does, without a word about how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; the test fails when it does not within half a minute."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("nothing happened for 30 s")
