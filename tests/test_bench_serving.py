"""The serving bench judges what it says it judges, and its driver runs on this version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import serving, serving_driver
from bench.serving import Result, combined, missed, report


def result(at_eight: float = 300.0, beside: float = 60.0, alone: float = 100.0) -> Result:
    rates = {1: 100.0, 2: 150.0, 4: 200.0, 8: at_eight, 16: 320.0}
    answers = [
        {
            "answers": float(count),
            "pieces_per_second": rate,
            "first_p50_ms": 10.0,
            "first_p95_ms": 20.0,
        }
        for count, rate in rates.items()
    ]
    return {
        "answers": answers,
        "watching": [{"sessions": 1.0, "chunks_per_second": alone, "beside_an_answer": beside}],
    }


def test_targets_are_missed_where_they_are() -> None:
    assert missed(result(), None) == [] == missed(result(), result(alone=105.0))
    assert "8 answers" in missed(result(at_eight=249.0), None)[0]
    assert "beside an answer" in missed(result(beside=49.0), None)[0]
    assert "x the parent" in missed(result(), result(alone=106.0))[0]


def test_the_report_has_ratios_to_one_answer_and_to_the_parent() -> None:
    text = "\n".join(report(result(), result(at_eight=100.0)))
    assert "| 8 | 300 | 3.00 x | 10 / 20 | 100 | 3.00 x | 10 / 20 |" in text
    assert "All targets are met." in text
    assert "| - |" in "\n".join(report(result(), None))


def test_several_runs_are_combined_by_their_medians() -> None:
    found = combined([result(alone=90.0), result(alone=100.0), result(alone=200.0)])
    assert found["watching"][0]["chunks_per_second"] == 100.0


def test_the_driver_counts_answers_and_chunks(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving_driver, "ANSWERS", (1, 3))
    monkeypatch.setattr(serving_driver, "SESSIONS", (2,))
    monkeypatch.setattr(serving_driver, "ROUNDS", 2)
    monkeypatch.setattr(serving_driver, "WATCH_SECONDS", 0.3)
    monkeypatch.syspath_prepend(str(repository))
    serving_driver.main(str(repository))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["answers"] for row in found["answers"]] == [1, 3]
    assert all(row["pieces_per_second"] > 0 and row["first_p50_ms"] > 0 for row in found["answers"])
    assert found["watching"][0]["sessions"] == 2


def test_a_driver_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        serving.measure(tmp_path)
