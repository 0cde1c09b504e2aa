"""The endless stream in short: budgets hold, nothing grows, watching does not end, what is there is
found.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import endless
from bench.endless import Reading, Run, report, run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("endless")
    return run(days=0.06, minutes=8.0, host_mib=1.0, disk_mib=1.5, num_readings=40, folder=folder)


def test_watching_never_ends_and_the_oldest_is_forgotten(runs: list[Run]) -> None:
    for one in runs:
        assert one.ended == ""
        assert one.readings[-1].first_chunk > one.readings[-1].chunks / 2 > 200


def test_what_is_remembered_is_found_before_and_after_anything_is_forgotten(
    runs: list[Run],
) -> None:
    assert all(reading.recall_at_1 >= 0.98 for one in runs for reading in one.readings)


def test_budgets_hold_and_nothing_grows(runs: list[Run]) -> None:
    with_folder, without = runs
    assert all(reading.counted_mib <= 1.5 for reading in with_folder.readings)
    assert all(reading.counted_mib <= 1.0 for reading in without.readings)
    for one in runs:
        late = one.readings[-1]
        middle = next(reading for reading in one.readings if reading.chunks > late.chunks / 2)
        assert late.open_files == middle.open_files
        assert (
            late.disk_mib <= 1.2 * max(middle.disk_mib, 1.5)
            if one is with_folder
            else late.disk_mib == 0
        )
        assert late.rss_mib <= middle.rss_mib + 8, (
            "a few slabs and blocks, not a part of the stream"
        )


def test_the_report_tells_growth() -> None:
    readings = [Reading(100 * k, k, 0, 100.0 + k, 1.0, 1.0, 5, 2.0, 1.0, 1.0) for k in range(1, 11)]
    growing = Run("a", "b", readings, "")
    assert growing.growth(lambda r: r.rss_mib) == pytest.approx(4 / 108)
    assert growing.growth(lambda r: r.ms_per_chunk) == pytest.approx(0.0, abs=1e-9)
    lines = report([growing])
    assert any("never" in line and "+3.7%" in line for line in lines)


def test_without_eviction_what_is_gone_would_be_found_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Negative control: the codes come again, so that an index that keeps everything proposes what
    is gone.
    """
    monkeypatch.setattr(endless, "NUM_CODES", 3)
    (one, _) = run(
        days=0.03, minutes=8.0, host_mib=1.0, disk_mib=1e6, num_readings=10, folder=tmp_path
    )
    assert one.readings[-1].first_chunk == 0 and one.readings[-1].recall_at_1 < 0.9
