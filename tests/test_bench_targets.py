"""The targets of the recall bench are judged by the right numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report import LAST_FRAMES, OURS, SHORT_CLIP, WINDOW, Result, Target, write
from bench.targets import targets


def answered(
    arm: str, kind: str, right: int, wrong: int, minutes: float = 360.0, **changes: float
) -> list[Result]:
    facts = {
        "context_tokens": 600,
        "first_token_seconds": 0.03,
        "device_bytes": 1000,
        "host_bytes": 9,
        "disk_bytes": 9,
    }
    said = {
        "family": "when",
        "question": "When?",
        "wanted": "a",
        "said": "a",
        "rank": 0,
        "asked_at_seconds": 1.0,
    }
    fields = {**said, **facts, **changes}
    return [
        Result(minutes, 0, arm, kind, true_spans=(), right=k < right, **fields)  # type: ignore[arg-type]
        for k in range(right + wrong)
    ]


def run(past: int = 19, present: int = 8, never: int = 10, **changes: float) -> list[Target]:
    """A run with so many right answers of 20, 10 and 10 by ours, whose facts at the end are changed
    so.
    """
    return targets(
        [
            *answered(OURS, "past", 20, 0, minutes=1.0, device_bytes=10, first_token_seconds=0.001),
            *answered(OURS, "past", 20, 0, minutes=10.0),
            *answered(OURS, "past", past, 20 - past, **changes),
            *answered(SHORT_CLIP, "past", 20, 0),
            *answered(OURS, "present", present, 10 - present, **changes),
            *answered(LAST_FRAMES, "present", 8, 2),
            *answered(WINDOW, "present", 7, 3),
            *answered(OURS, "never", never, 10 - never, **changes),
            *answered(SHORT_CLIP, "never", 10, 0),
        ]
    )


def missed(found: list[Target]) -> list[int]:
    assert len(found) == 7
    return [k for k, target in enumerate(found) if target.is_met is False]


def test_a_run_at_the_very_targets_meets_them_all() -> None:
    assert missed(run(context_tokens=4096, device_bytes=1050, first_token_seconds=0.06)) == []


@pytest.mark.parametrize(
    ("changes", "which"),
    [
        ({"past": 18}, [0]),
        ({"present": 7}, [1]),
        ({"present": 6}, [1, 2]),
        ({"never": 9}, [3]),
        ({"context_tokens": 4097}, [4]),
        ({"device_bytes": 1051}, [5]),
        ({"first_token_seconds": 0.061}, [6]),
    ],
)
def test_what_lies_beyond_its_target_is_missed_and_nothing_else(
    changes: dict[str, int], which: list[int]
) -> None:
    assert missed(run(**changes)) == which


def test_growth_is_beside_ten_minutes_and_not_beside_less() -> None:
    assert "ratio 1.000" in run()[5].measured and "10 min" in run()[5].wanted


def test_what_was_not_asked_is_not_called_met() -> None:
    found = targets(answered(OURS, "past", 3, 0))
    assert [target.is_met for target in found] == [None, None, None, None, True, True, True]
    assert "ratio 0.950" in run()[0].measured


def test_results_are_written_as_data_text_and_pictures(tmp_path: Path) -> None:
    results = [*answered(OURS, "past", 1, 1, minutes=1.0), *answered(OURS, "past", 2, 0)]
    write(tmp_path / "new" / "recall", results, targets(results), {"model": "tiny"})
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "recall.json",
        "recall.md",
        "recall-accuracy.svg",
        "recall-bytes.svg",
    }
    data = json.loads((tmp_path / "new" / "recall.json").read_text())
    assert len(data["results"]) == 4 and len(data["targets"]) == 7
    told = (tmp_path / "new" / "recall.md").read_text()
    assert (
        "- model: tiny" in told
        and "| context tokens, any length | at most 4096 | 600 | yes |" in told
    )
