"""Pictures get the time at which they were taken, whatever stamps and caches do."""

from __future__ import annotations

import random

import pytest

from streaming.overload import CALM_SECONDS, OverloadPolicy
from streaming.sources.source import Thinning
from streaming.sources.stream_clock import Arrival, StreamClock

STEP = 0.1


def arrivals(burst: int, count: int, jitter: float = 0.0, drift: float = 0.0) -> list[Arrival]:
    """Picture k is taken at k * STEP; a burst comes at once when the last of it is taken.

    drift: the camera's clock is fast by this share.
    """
    draw = random.Random(1)
    found = []
    for number in range(count):
        taken = number * STEP
        came = max(taken, (burst - 1) * STEP) + draw.uniform(0, jitter)
        waited = STEP * 0.9 if number >= burst else 0.0
        found.append(Arrival(taken * (1 + drift) + 7.0, came, waited, STEP))
    return found


def errors(clock: StreamClock, given: list[Arrival]) -> list[float]:
    """Of each picture, time found less time taken."""
    times: list[float] = []
    for arrival in given:
        times += clock.seconds(arrival)
    assert len(times) == len(given)
    return [seconds - number * STEP for number, seconds in enumerate(times)]


@pytest.mark.parametrize("burst", (1, 15))
def test_a_burst_from_a_cache_is_put_where_it_was_taken(burst: int) -> None:
    given = arrivals(burst, 100)
    found = errors(StreamClock(given[0].now, by_arrival=False), given)
    assert max(map(abs, found)) < 1e-6


def test_without_the_hold_a_burst_would_be_wrong() -> None:
    given = arrivals(15, 100)
    by_arrival = errors(StreamClock(given[0].now, by_arrival=True), given)
    assert max(by_arrival) > 1.0


def test_late_pictures_keep_their_time_and_are_told_as_lag() -> None:
    clock = StreamClock(0.0, by_arrival=False)
    given = arrivals(1, 200, jitter=0.0)
    late = [
        Arrival(a.stamp, a.now + (1.5 if 100 <= place < 120 else 0.0), 0.0 if place else 1.0, STEP)
        for place, a in enumerate(given)
    ]
    assert max(map(abs, errors(clock, late[:110]))) < 0.01
    assert clock.lag_seconds == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("drift", (1e-4, -1e-4))
def test_a_camera_whose_clock_is_wrong_by_a_little_is_followed_for_hours(drift: float) -> None:
    given = arrivals(1, 100_000, jitter=0.03, drift=drift)
    found = errors(StreamClock(0.0, by_arrival=False), given)
    assert max(map(abs, found)) < 0.1, "it would be a second off by now"


def test_stamps_that_jump_or_are_missing_do_not_move_the_time() -> None:
    given = arrivals(1, 100)
    jumping = [
        Arrival(
            None if place in (0, 50) else (a.stamp or 0.0) + (5000 if place > 60 else 0.0),
            a.now,
            STEP * 0.9,
            STEP,
        )
        for place, a in enumerate(given)
    ]
    assert max(map(abs, errors(StreamClock(0.0, by_arrival=False), jumping))) < 1e-6


def test_an_overloaded_source_is_thinned_step_by_step_and_made_whole_again() -> None:
    policy = OverloadPolicy()
    assert policy.step(0.0, 0.5, 0) is Thinning.NONE
    levels = [policy.step(float(second), 3.0, 0) for second in range(1, 30)]
    assert levels[0] is Thinning.HALF and levels[-1] is Thinning.KEYFRAMES
    assert levels == sorted(levels, key=list(Thinning).index)
    calm = [policy.step(30.0 + second, 0.0, 0) for second in range(int(4 * CALM_SECONDS))]
    assert calm[0] is Thinning.KEYFRAMES and calm[-1] is Thinning.NONE


def test_dropped_frames_are_overload_too() -> None:
    policy = OverloadPolicy()
    policy.step(0.0, 0.0, 5)
    policy.step(6.0, 0.0, 5)
    assert policy.step(7.0, 0.0, 6) is not Thinning.NONE
