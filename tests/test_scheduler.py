"""The policy of the device: questions first, watching keeps its half, no stream starves."""

from __future__ import annotations

import pytest

from streaming.scheduler import (
    BACKGROUND_SHARE,
    MOST_OWED_SECONDS,
    MOST_PASSED_OVER,
    BackgroundJob,
    Load,
    PrefillJob,
    QueryJob,
    Scheduler,
    Step,
    Waiting,
    choose_prefills,
    next_step,
)


@pytest.mark.parametrize(
    ("load", "step"),
    [
        (Load(0, 0, 0), None),
        (Load(1, 0, 0), Step.QUERY),
        (Load(0, 1, 0), Step.DECODE),
        (Load(0, 0, 1), Step.PREFILL),
        (Load(1, 1, 1), Step.QUERY),
        (Load(1, 1, 1, balance_seconds=0.1), Step.PREFILL),
        (Load(1, 1, 1, balance_seconds=0.1, last=Step.PREFILL), Step.QUERY),
        (Load(0, 1, 1, balance_seconds=0.1), Step.PREFILL),
        (Load(0, 1, 1, balance_seconds=-0.1), Step.DECODE),
        (Load(1, 1, 0, balance_seconds=0.1), Step.QUERY),
        (Load(0, 1, 0, balance_seconds=0.1), Step.DECODE),
        (Load(0, 0, 0, background=1), Step.BACKGROUND),
        (Load(0, 0, 1, background=1), Step.PREFILL),
        (Load(0, 1, 0, background=1), Step.DECODE),
        (Load(1, 0, 0, background=1, owed_seconds=0.1), Step.QUERY),
        (Load(0, 1, 1, background=1, owed_seconds=0.1), Step.BACKGROUND),
        (Load(0, 1, 1, background=1, owed_seconds=-0.1), Step.DECODE),
    ],
)
def test_the_next_step_follows_from_what_waits(load: Load, step: Step | None) -> None:
    assert next_step(load) is step


def test_a_question_waits_for_one_prefill_pass_at_most() -> None:
    for balance in (-1.0, 0.0, 1.0):
        steps = []
        last = None
        for _ in range(3):
            last = next_step(Load(1, 5, 5, balance, last))
            steps.append(last)
        assert steps.index(Step.QUERY) <= 1


@pytest.mark.parametrize(
    ("decode_seconds", "prefill_seconds"), [(0.01, 0.1), (0.03, 0.03), (0.1, 0.01), (0.005, 0.4)]
)
def test_an_answer_always_under_way_leaves_watching_half_of_the_device(
    decode_seconds: float, prefill_seconds: float
) -> None:
    scheduler = Scheduler(max_pass_tokens=100)
    spent = dict.fromkeys(Step, 0.0)
    scheduler.complete(Step.QUERY, 0.0, 1)
    scheduler.add(PrefillJob(None, 100, is_live=False))
    for _ in range(2000):
        batch = scheduler.next_batch()
        assert batch is not None
        seconds = {Step.DECODE: decode_seconds, Step.PREFILL: prefill_seconds}[batch[0]]
        spent[batch[0]] += seconds
        scheduler.complete(batch[0], seconds, 1)
        if batch[0] is Step.PREFILL:
            scheduler.add(PrefillJob(None, 100, is_live=False))
    assert spent[Step.PREFILL] / sum(spent.values()) == pytest.approx(0.5, abs=0.05)


def test_a_stream_that_paused_is_owed_a_moment_and_no_more() -> None:
    scheduler = Scheduler(max_pass_tokens=100)
    for _ in range(100):
        scheduler.complete(Step.DECODE, 1.0, 1)
    owed = 0.0
    while True:
        scheduler.add(PrefillJob(None, 100, is_live=False))
        batch = scheduler.next_batch()
        assert batch is not None
        if batch[0] is not Step.PREFILL:
            break
        scheduler.complete(Step.PREFILL, 0.1, 1)
        owed += 0.1
    assert owed <= MOST_OWED_SECONDS + 0.11


def test_prefills_share_a_pass_up_to_its_tokens() -> None:
    waiting = [Waiting(False, tokens, 0) for tokens in (60, 50, 30, 20)]
    assert choose_prefills(waiting, 100) == [0, 2]
    assert choose_prefills([Waiting(False, 500, 0), Waiting(False, 1, 0)], 100) == [0], (
        "too large goes alone"
    )
    assert choose_prefills([], 100) == []


def test_live_streams_go_before_files_and_what_was_passed_over_goes_before_both() -> None:
    waiting = [Waiting(False, 90, 0), Waiting(True, 90, 0), Waiting(True, 90, 0)]
    assert choose_prefills(waiting, 100) == [1]
    assert choose_prefills([Waiting(False, 90, MOST_PASSED_OVER), *waiting[1:]], 100) == [0]


def test_no_stream_starves_beside_live_ones() -> None:
    scheduler = Scheduler(max_pass_tokens=100)
    file = PrefillJob("file", 90, is_live=False)
    scheduler.add(file)
    for turn in range(2 * MOST_PASSED_OVER):
        scheduler.add(PrefillJob("live", 90, is_live=True))
        batch = scheduler.next_batch()
        assert batch is not None
        if file in batch[1]:
            assert 0 < turn <= MOST_PASSED_OVER
            return
    pytest.fail("the file never had its turn")


def test_the_worker_is_started_once_and_again_after_it_ended() -> None:
    scheduler = Scheduler(max_pass_tokens=100)
    assert scheduler.add(QueryJob(lambda: None))
    assert not scheduler.add(QueryJob(lambda: None))
    assert scheduler.wait(0.0) and scheduler.num_queries == 2
    while scheduler.next_batch():
        pass
    assert not scheduler.wait(0.0)
    assert scheduler.add(QueryJob(lambda: None))


@pytest.mark.parametrize("part_seconds", [0.001, 0.02, 0.3])
def test_background_work_takes_a_tenth_of_a_busy_device_and_all_of_an_idle_one(
    part_seconds: float,
) -> None:
    scheduler = Scheduler(max_pass_tokens=100)
    spent = dict.fromkeys(Step, 0.0)
    scheduler.add(BackgroundJob(lambda: False))
    scheduler.add(PrefillJob(None, 100, is_live=True))
    scheduler.complete(Step.QUERY, 0.0, 1)  # an answer is under way all the time
    for _ in range(4000):
        batch = scheduler.next_batch()
        assert batch is not None
        step, jobs = batch
        seconds = {Step.DECODE: 0.01, Step.PREFILL: 0.05, Step.BACKGROUND: part_seconds}[step]
        spent[step] += seconds
        for job in jobs:
            scheduler.add(job)
        scheduler.complete(step, seconds, 1)
    others = spent[Step.DECODE] + spent[Step.PREFILL]
    assert spent[Step.BACKGROUND] / others == pytest.approx(BACKGROUND_SHARE, rel=0.1)
    assert spent[Step.PREFILL] == pytest.approx(spent[Step.DECODE], rel=0.1)

    scheduler.abandon()
    scheduler.add(BackgroundJob(lambda: False))
    assert [_next_step_of(scheduler) for _ in range(5)] == [Step.BACKGROUND] * 5


def _next_step_of(scheduler: Scheduler) -> Step:
    batch = scheduler.next_batch()
    assert batch is not None
    for job in batch[1]:
        scheduler.add(job)
    scheduler.complete(batch[0], 1.0, 0)
    return batch[0]


def test_background_work_has_no_claim_for_the_time_before_it_came() -> None:
    scheduler = Scheduler(max_pass_tokens=100)
    for _ in range(100):
        scheduler.complete(Step.PREFILL, 1.0, 0)
    scheduler.add(BackgroundJob(lambda: False))
    scheduler.add(PrefillJob(None, 100, is_live=True))
    assert _next_step_of(scheduler) is Step.PREFILL
    assert _next_step_of(scheduler) is Step.BACKGROUND, "it has one for the second that it waited"
