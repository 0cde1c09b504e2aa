"""Long streams of the world: scene after scene, with rare things that occur once among look-alikes.

A stream can be painted to a file (the samples), fed as frames without a file (benchmarks, tests),
and questioned.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from frames import Frame
from models.demo.world import (
    COLOURS,
    SHAPES,
    Scene,
    Thing,
    WorldEvent,
    make_digit,
    place_things,
    render,
)
from training.questions import Facts, Question, ask
from training.scenes import CHUNK_SECONDS, FPS, Moment, is_digit, moments

# shapes that occur in one colour only, so that "what colour is the heart" has an answer
RARE_SHAPES = 2
RARE_COLOURS = 2
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Stream:
    """Scenes one after the other; `starts` holds when each begins."""

    scenes: tuple[Scene, ...]
    starts: tuple[float, ...]

    @property
    def duration_seconds(self) -> float:
        return self.starts[-1] + self.scenes[-1].duration_seconds

    def at(self, seconds: float, side: int) -> np.ndarray:
        """The picture at a moment, uint8 [side, side, 3]."""
        k = bisect_right(self.starts, seconds) - 1
        return render(self.scenes[k], seconds - self.starts[k], side)

    def frames(self, side: int, fps: float = FPS, start_seconds: float = 0.0) -> Iterator[Frame]:
        """Frames as a source would give them."""
        first = round(start_seconds * fps)
        for k in range(first, round(self.duration_seconds * fps)):
            yield Frame(self.at(k / fps, side), k / fps, k - first)

    def moments(self) -> list[Moment]:
        """The truth of every group, read at the demo model's frame rate."""
        return [
            m
            for scene, start in zip(self.scenes, self.starts, strict=True)
            for m in moments(scene, start)
        ]

    def events(self) -> list[tuple[float, float, WorldEvent]]:
        """(start, stop, event) in stream time."""
        return [
            (start + e.start_seconds, start + e.stop_seconds, e)
            for scene, start in zip(self.scenes, self.starts, strict=True)
            for e in scene.events
        ]


def make_stream(seed: int, duration_seconds: float, crowd: float = 0.35) -> Stream:
    """A stream with events throughout. crowd: chance that an event shows more than one thing."""
    rng = np.random.default_rng([seed, 23])
    names = _Names(rng, duration_seconds)
    scenes: list[Scene] = []
    starts: list[float] = []
    now = 0.0
    while now < duration_seconds:
        length = min(CHUNK_SECONDS * int(rng.integers(2, 7)), duration_seconds - now)
        starts.append(now)
        scenes.append(
            Scene(length, int(rng.integers(1 << 30)), tuple(_events(rng, names, length, crowd)))
        )
        now += length
    return Stream(tuple(scenes), tuple(starts))


class _Names:
    """Draws things: rare ones once, the rest from the shapes and colours that may repeat."""

    def __init__(self, rng: np.random.Generator, duration_seconds: float) -> None:
        shapes = [str(s) for s in rng.permutation(SHAPES)]
        colours = [str(c) for c in rng.permutation(list(COLOURS))]
        self.shapes, self.colours = shapes[RARE_SHAPES:], colours[RARE_COLOURS:]
        self.rare = [
            (s, c) for s, c in zip(shapes[:RARE_SHAPES], colours[RARE_COLOURS:], strict=False)
        ]
        self.rare += [
            (s, c) for c, s in zip(colours[:RARE_COLOURS], shapes[RARE_SHAPES:], strict=False)
        ]
        rng.shuffle(self.rare)
        # all within the first half or so
        self.chance = min(1.0, 12 * len(self.rare) / duration_seconds)
        self.digits = rng.permutation(10).tolist()[: 1 + int(duration_seconds // 200)]
        combos = [(s, c) for s in self.shapes for c in self.colours]
        self.fresh = [combos[int(i)] for i in rng.permutation(len(combos))]
        self.often = self.fresh[: len(self.fresh) // 2]  # the others are kept to occur once

    def draw(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """`count` (shape, colour) pairs of different shapes."""
        drawn: list[tuple[str, str]] = []
        if self.rare and rng.random() < self.chance:
            drawn.append(self.rare.pop())
        while len(drawn) < count:
            pair = self._once(drawn) if rng.random() < 0.5 else None
            pair = pair or self.often[int(rng.integers(len(self.often)))]
            if pair[0] not in {s for s, _ in drawn}:
                drawn.append(pair)
        return drawn

    def _once(self, drawn: list[tuple[str, str]]) -> tuple[str, str] | None:
        taken = {s for s, _ in drawn}
        for pair in reversed(self.fresh[len(self.often) :]):
            if pair[0] not in taken:
                self.fresh.remove(pair)
                return pair
        return None


def _events(
    rng: np.random.Generator, names: _Names, length: float, crowd: float
) -> list[WorldEvent]:
    events, start = [], float(rng.choice([0.0, 0.5, 1.0, 2.0]))
    while start + 2 <= length:
        seconds = min(float(rng.choice([2.0, 3.0, 4.0])), length - start)
        if rng.random() < 0.12:
            digit = names.digits[int(rng.integers(len(names.digits)))]
            things: tuple[Thing, ...] = (make_digit(rng, digit, names.colours),)
        else:
            count = int(rng.choice([2, 3, 4], p=[0.6, 0.25, 0.15])) if rng.random() < crowd else 1
            things = place_things(rng, names.draw(rng, count), seconds)
        events.append(WorldEvent(start, start + seconds, things))
        start += seconds + float(rng.choice([0.0, 1.0, 2.0, 4.0, 6.0]))
    return events


def stream_questions(
    stream: Stream, seed: int, per_family: int, families: list[str]
) -> list[Question]:
    """Up to `per_family` different unambiguous questions of each family about the whole stream; at
    most half of a family's (rounded up) have the same answer."""
    rng = np.random.default_rng([seed, 29])
    facts = Facts(stream.moments())
    questions: list[Question] = []
    for family in families:
        made: dict[str, Question] = {}
        for _ in range(20 * per_family):
            question = ask(rng, facts, family)
            alike = sum(q.answer == question.answer for q in made.values()) if question else 0
            if question and len(made) < per_family and alike < (per_family + 1) // 2:
                made.setdefault(question.answer + str(question.events or question.text), question)
        questions += made.values()
    return questions


def write_video(
    stream: Stream,
    path: Path,
    side: int = 256,
    fps: int = 8,
    crf: int = 23,
    progress: Progress | None = None,
) -> None:
    """H.264 in MP4, as a person's video would be. progress: told (pictures written, pictures in
    all).
    """
    total = round(stream.duration_seconds * fps)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        # threads would change bytes
        options = {"crf": str(crf), "preset": "slow", "g": str(8 * fps), "threads": "1"}
        video = out.add_stream("libx264", rate=fps, options=options)
        video.width = video.height = side
        video.pix_fmt = "yuv420p"
        for k in range(total):
            large = stream.at(k / fps, 2 * side)
            image = av.VideoFrame.from_ndarray(large, format="rgb24")
            out.mux(video.encode(image.reformat(side, side, interpolation="AREA")))
            if progress:
                progress(k + 1, total)
        out.mux(video.encode(None))


def describe_events(stream: Stream) -> list[dict[str, object]]:
    """The events as plain data, for the JSON beside a sample."""
    return [
        {
            "start_seconds": start,
            "stop_seconds": stop,
            "things": [
                {
                    "name": t.name,
                    "motion": "still" if is_digit(event) else t.motion,
                    "size": round(t.size, 3),
                }
                for t in event.things
            ],
        }
        for start, stop, event in stream.events()
    ]
