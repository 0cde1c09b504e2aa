"""Stand-ins with the real interfaces: a session that knows only how many frames it saw, and an
engine that opens it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator

from frames import Frame
from streaming.events import (
    Answer,
    AnswerPiece,
    AskEvent,
    Evidence,
    Keyframe,
    Stats,
    Watched,
    WatchEvent,
)


class FakeSession:
    """Counts frames in chunks of `chunk_frames`; its answers tell the question, and rest on the
    second it names.

    gate: watching waits here after its first chunk, so that a test can act in the middle.
    word_seconds: how long each word of an answer takes.
    """

    def __init__(
        self, chunk_frames: int = 8, gate: threading.Event | None = None, word_seconds: float = 0.0
    ) -> None:
        self.chunk_frames = chunk_frames
        self.gate = gate
        self.word_seconds = word_seconds
        self.asked: list[str] = []
        self.closed = False
        self.seen_seconds = 0.0
        self.stats = Stats()

    def watch(self, frames: Iterable[Frame], ahead: bool = False) -> Iterator[WatchEvent]:
        count = 0
        for frame in frames:
            count += 1
            self.seen_seconds = frame.pts_seconds
            if count % 4 == 1:
                yield Keyframe(frame.pts_seconds, "change", frame.image)
            if count % self.chunk_frames == 0:
                yield self._watched(count)
                if self.gate:
                    self.gate.wait(60)
        yield self._watched(count)

    def ask(self, question: str) -> Iterator[AskEvent]:
        self.asked.append(question)
        text = f"You asked: {question} I have seen {self.stats.frames_read} frames."
        for word in text.split(" "):
            time.sleep(self.word_seconds)
            yield AnswerPiece(word + " ")
        named = re.search(r"second (\d+)", question)
        start = float(named[1]) if named else 2.0
        evidence = (
            Evidence(start, start + 2, 2.91, "recalled"),
            Evidence(0.0, 2.0, 0.55, "recent"),
        )
        yield Answer(question, text, evidence, self.stats)

    def close(self) -> None:
        self.closed = True

    def _watched(self, count: int) -> Watched:
        chunks = -(-count // self.chunk_frames)
        self.stats = Stats(
            count, chunks, 64 * count, 0.25 * chunks, 0.01, 1_500_000, 250_000 * chunks
        )
        return Watched(self.seen_seconds, self.stats)


class FakeEngine:
    """Opens fake sessions and remembers them; the attributes are those of the next session."""

    def __init__(self, gate: threading.Event | None = None, word_seconds: float = 0.0) -> None:
        self.sessions: list[FakeSession] = []
        self.gate = gate
        self.word_seconds = word_seconds

    def open(self) -> FakeSession:
        self.sessions.append(FakeSession(gate=self.gate, word_seconds=self.word_seconds))
        return self.sessions[-1]
