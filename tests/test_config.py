"""Every knob has a sensible range, says so, and cannot be turned by accident."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from config import AnswerConfig, Config, KnobError, MemoryConfig, ReadConfig

NAN, INF = float("nan"), float("inf")


def test_knobs_are_turned_on_a_copy() -> None:
    config = Config()
    turned = config.overridden(
        {"memory": {"chunk_frames": 8, "recall_chunks": 0}, "read": {"fps": 1}}
    )
    assert (turned.memory.chunk_frames, turned.memory.recall_chunks, turned.read.fps) == (8, 0, 1)
    assert turned.memory.window_chunks == config.memory.window_chunks
    assert config == Config() and config.overridden({}) == config


def test_nothing_changes_a_configuration() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().memory.chunk_frames = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"memry": {}}, "memry is not a section; there are read, memory, reuse, prune, answer"),
        (
            {"memory": {"chunk_size": 3}},
            "memory.chunk_size is not a knob; memory has borders, carrier_tokens, chunk",
        ),
        ({"memory": 3}, "memory is a section and needs knobs by name, not 3"),
        ({"memory": {"chunk_frames": 0}}, "chunk_frames must be at least 1, not 0"),
        ({"memory": {"window_chunks": 0}}, "window_chunks"),
        ({"memory": {"recall_chunks": -1}}, "recall_chunks"),
        ({"memory": {"prefill_chunks": -1}}, "prefill_chunks"),
        ({"memory": {"host_bytes": -1}}, "host_bytes"),
        ({"memory": {"host_bytes": INF}}, "memory.host_bytes must be a whole number, not inf"),
        ({"memory": {"chunk_frames": 8.0}}, "whole number"),
        ({"memory": {"kv_bits": 4}}, "kv_bits must be one of 16, 8, not 4"),
        ({"memory": {"kv_bits": "8"}}, "memory.kv_bits must be a whole number"),
        ({"memory": {"chunk_frames": True}}, "whole number"),
        ({"memory": {"chunk_frames": "8"}}, "whole number"),
        (
            {"prune": {"strategy": "best"}},
            "strategy must be one of none, novelty, not",
        ),
        ({"prune": {"budget": 1.5}}, "budget must lie in (0, 1], not 1.5"),
        ({"prune": {"still_below": -0.1}}, "still_below"),
        ({"prune": {"refresh_seconds": 0}}, "refresh_seconds must be more than 0"),
        ({"read": {"fps": 0}}, "fps must lie in (0, 60], not 0"),
        ({"read": {"fps": NAN}}, "read.fps must be a number, not nan"),
        ({"read": {"fps": 61}}, "fps"),
        ({"read": {"fps": None}}, "read.fps must be a number"),
        ({"answer": {"max_new_tokens": 0}}, "answer.max_new_tokens must be at least 1, not 0"),
        ({"answer": {"temperature": -0.1}}, "temperature"),
        ({"answer": {"temperature": NAN}}, "answer.temperature must be a number, not nan"),
        ({"answer": {"top_p": 0}}, "top_p must lie in (0, 1], not 0"),
        ({"answer": {"top_p": 1.1}}, "top_p"),
        ({"answer": {"seed": -1}}, "answer.seed must be at least 0, not -1"),
        ({"answer": {"seed": 1 << 63}}, "answer.seed must be less than"),
        ({"answer": {"dialogue_turns": -1}}, "dialogue_turns"),
    ],
)
def test_what_makes_no_sense_is_told_with_the_offending_value(
    changes: dict[str, dict[str, Any]], told: str
) -> None:
    with pytest.raises(KnobError) as error:
        Config().overridden(changes)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert str(error.value) == f"{error.value.name} {error.value.problem}"


@pytest.mark.parametrize("section", [ReadConfig, MemoryConfig, AnswerConfig])
def test_every_knob_is_a_number_or_a_word_that_can_be_given_as_its_default(section: Any) -> None:
    name = section.__name__.removesuffix("Config").lower()
    defaults = {knob.name: knob.default for knob in fields(section)}
    assert defaults and all(isinstance(value, int | float | str) for value in defaults.values())
    assert Config().overridden({name: defaults}) == Config()


@pytest.mark.parametrize("knob", ["recall", "sparse"])
def test_a_word_is_one_of_those_that_are_known(knob: str) -> None:
    with pytest.raises(ValueError, match=f"{knob} must be one of"):
        Config().overridden({"memory": {knob: "sometimes"}})
    with pytest.raises(ValueError, match=f"memory.{knob} must be a word"):
        Config().overridden({"memory": {knob: 3}})


@pytest.mark.parametrize("temperature", [NAN, INF])
def test_a_section_made_by_hand_is_checked_as_well(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        AnswerConfig(temperature=temperature)
