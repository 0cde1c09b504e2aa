"""Gaps and the clock on the wall: kept, found again, bounded, and not fooled by a clock that is
set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from frames import Gap
from memory import timeline as timeline_module
from memory.session_db import DamagedDatabaseError, connect, create_tables, read_facts, set_fact
from memory.timeline import Timeline

NOON = 1_700_000_000.0


class Book:
    """Notes in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def notes(self, prefix: str) -> dict[str, str]:
        return {name: text for name, text in self.kept.items() if name.startswith(prefix)}

    def set_notes(self, notes: Mapping[str, str | None]) -> None:
        for name, text in notes.items():
            if text is None:
                self.kept.pop(name, None)
            else:
                self.kept[name] = text


def test_gaps_and_times_are_there_again_when_a_session_is_opened() -> None:
    book = Book()
    first = Timeline(book)
    first.tie(0.0, NOON)
    first.add_gap(Gap(10.0, 20.0, "timed out"))
    first.open_gap(30.0, "refused")
    again = Timeline(book)
    assert again.gaps == (Gap(10.0, 20.0, "timed out"), Gap(30.0, math.inf, "refused"))
    assert again.wall_at(25.0) == NOON + 25
    assert again.touching(0.0, 10.0) == () and again.touching(19.0, 21.0) == again.gaps[:1]
    again.end_open_gap()
    assert Timeline(book).gaps == (Gap(10.0, 20.0, "timed out"),)


def test_what_another_process_keeps_is_seen_after_a_refresh() -> None:
    book = Book()
    reading = Timeline(book)
    Timeline(book).open_gap(5.0, "ended")
    assert not reading.gaps
    reading.refresh()
    found = reading.gaps
    assert found == (Gap(5.0, math.inf, "ended"),)


def test_a_clock_that_is_set_gets_a_new_tie_and_drift_does_not() -> None:
    book = Book()
    timeline = Timeline(book)
    timeline.tie(0.0, NOON)
    timeline.tie(60.0, NOON + 60.4)
    assert len(book.kept) == 1
    timeline.tie(120.0, NOON + 120 - 3600)  # set back an hour
    assert timeline.wall_at(60.0) == NOON + 60
    assert timeline.wall_at(130.0) == NOON + 130 - 3600
    assert timeline.seconds_at(NOON + 130 - 3600) == 130.0


def test_a_time_that_a_clock_skipped_is_where_it_jumped() -> None:
    timeline = Timeline()
    timeline.tie(0.0, NOON)
    timeline.tie(100.0, NOON + 7300)
    assert timeline.seconds_at(NOON + 50) == 50.0
    assert timeline.seconds_at(NOON + 3000) == 100.0
    assert timeline.seconds_at(NOON + 7310) == 110.0


def test_only_the_newest_gaps_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_module, "MAX_GAPS", 5)
    book = Book()
    timeline = Timeline(book)
    for number in range(20):
        timeline.add_gap(Gap(number * 10.0, number * 10.0 + 5, "ended"))
    assert [gap.start_seconds for gap in timeline.gaps] == [150.0, 160.0, 170.0, 180.0, 190.0]
    assert len(book.kept) == 5


@pytest.mark.parametrize(
    ("name", "value"),
    (
        ("gap 0", "[1, 2]"),
        ("gap 0", '[3, 2, "x"]'),
        ("gap 0", '[1, 1e999, "x"]'),
        ("gap x", '[1, 2, "x"]'),
        ("tie 0", "[-1, 2]"),
        ("tie 0", "nonsense"),
        ("open gap", "[1]"),
    ),
)
def test_a_stranger_cannot_hand_us_gaps_that_cannot_be(
    tmp_path: Path, name: str, value: str
) -> None:
    db = connect(tmp_path / "session.sqlite", mode="rwc")
    facts = {
        "format": "4",
        "settings": "{}",
        "kv_bits": "16",
        "model_id": "demo",
        "dtype": "float32",
        "layers": "1",
        "kv_heads": "1",
        "head_dim": "1",
    }
    create_tables(db, facts)
    assert read_facts(db)
    with db:
        set_fact(db, name, value)
    with pytest.raises(DamagedDatabaseError, match="cannot be"):
        read_facts(db)
    db.close()
