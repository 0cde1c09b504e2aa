"""Random scenes of the world for training: busy ones, calm ones, empty ones; and what is to be seen
in each group.

A `Moment` is the truth of one group of frames; questions are asked of lists of moments, whether
they come from a short scene, from chunks recalled out of a long stream, or from a stream as a
whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.demo.world import SHAPES, Scene, Thing, WorldEvent, make_digit, make_things

FPS = 2.0
FRAMES_PER_GROUP = 2
GROUP_SECONDS = FRAMES_PER_GROUP / FPS
GROUPS_PER_CHUNK = 4
LARGEST = (0.62, 0.46, 0.36, 0.32)  # size of one, two, three, four things that are shown together
CHUNK_SECONDS = GROUPS_PER_CHUNK * GROUP_SECONDS


EventMaker = Callable[[np.random.Generator, float, float], WorldEvent]


@dataclass(frozen=True)
class Moment:
    """What one group shows: `events` holds the distinct events of its frames in order; `clean` when
    both frames show the same. `pts_seconds` is the time written before the group."""

    pts_seconds: float
    events: tuple[WorldEvent, ...]
    clean: bool

    @property
    def second(self) -> int:
        """The whole second by which questions and answers name this moment: that of its stamp,
        which shows tenths.
        """
        return int(float(f"{self.pts_seconds:.1f}"))


def group_times(scene: Scene) -> list[tuple[float, float]]:
    """The times of both frames of every group of a scene, from its start."""
    count = round(scene.duration_seconds / GROUP_SECONDS)
    return [(k * GROUP_SECONDS, k * GROUP_SECONDS + 1 / FPS) for k in range(count)]


def moments(scene: Scene, offset_seconds: float = 0.0) -> list[Moment]:
    """The truth of every group, the scene starting at `offset_seconds` of its stream."""
    truth = []
    for first, second in group_times(scene):
        seen = [scene.event_at(first), scene.event_at(second)]
        events = tuple(dict.fromkeys(e for e in seen if e is not None))
        truth.append(Moment(offset_seconds + (first + second) / 2, events, seen[0] is seen[1]))
    return truth


def random_scene(rng: np.random.Generator, chunks: int, make: EventMaker | None = None) -> Scene:
    """A scene of `chunks` chunks. make: of an event that starts and lasts so many seconds; None:
    `random_event`.
    """
    make = make or random_event
    duration = chunks * CHUNK_SECONDS
    style = rng.random()
    if style < 0.05:
        events: list[WorldEvent] = []
    elif style < 0.35:
        events = _busy_events(rng, duration, make)
    else:
        events = _calm_events(rng, duration, make, gap_chance=0.6 if style < 0.8 else 0.95)
    return Scene(duration, int(rng.integers(1 << 30)), tuple(events))


def _busy_events(rng: np.random.Generator, duration: float, make: EventMaker) -> list[WorldEvent]:
    """Every group holds a different event: the clips that teach binding."""
    starts = np.arange(0, duration, GROUP_SECONDS)
    return [make(rng, float(start), GROUP_SECONDS) for start in starts]


def _calm_events(
    rng: np.random.Generator, duration: float, make: EventMaker, gap_chance: float
) -> list[WorldEvent]:
    events = []
    start = float(rng.uniform(0, 2)) if rng.random() < gap_chance else 0.0
    while start < duration - 0.6:
        seconds = min(float(rng.choice([1.0, 1.5, 2.0, 2.5, 3.0, 4.0])), duration - start)
        events.append(make(rng, start, seconds))
        start += seconds + (float(rng.uniform(0.5, 4)) if rng.random() < gap_chance else 0.0)
    return events


def random_event(rng: np.random.Generator, start: float, seconds: float) -> WorldEvent:
    if rng.random() < 0.2:
        things: tuple[Thing, ...] = (make_digit(rng, int(rng.integers(10))),)
    else:
        count = int(rng.choice([1, 2, 3, 4], p=[0.55, 0.25, 0.11, 0.09]))
        things = make_things(rng, count, seconds)
    return WorldEvent(start, start + seconds, tuple(things))


def varied_event(rng: np.random.Generator, start: float, seconds: float) -> WorldEvent:
    """As `random_event`, but of any size: mostly the world's, often larger, some small."""
    if rng.random() < 0.2:
        things: tuple[Thing, ...] = (make_digit(rng, int(rng.integers(10)), sizes=(0.32, 0.9)),)
        return WorldEvent(start, start + seconds, things)
    count = int(rng.choice([1, 2, 3, 4], p=[0.55, 0.25, 0.11, 0.09]))
    kind = rng.random()
    if kind < 0.35:
        sizes = None
    elif kind < 0.88:
        sizes = (0.18, LARGEST[count - 1])
    else:
        sizes = (0.1, 0.24)
    return WorldEvent(start, start + seconds, make_things(rng, count, seconds, sizes))


def is_digit(event: WorldEvent) -> bool:
    return event.things[0].shape not in SHAPES
