"""Stand-ins with the real interfaces: a session that knows only how many frames it saw, and an engine that opens it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from streaming.events import Answer, AnswerPiece, AskEvent, Evidence, Stats, Thumbnail, Watched, WatchEvent
from streaming.frames import Frame


class FakeSession:
    """Counts frames in chunks of `chunk_frames`; its answers tell the question, and rest on the first two chunks.

    gate: watching waits here after its first chunk, so that a test can act in the middle.
    """

    def __init__(self, chunk_frames: int = 8, gate: threading.Event | None = None) -> None:
        self.chunk_frames = chunk_frames
        self.gate = gate
        self.closed = False
        self.seen_seconds = 0.0
        self.stats = Stats()

    def watch(self, frames: Iterable[Frame], ahead: bool = False) -> Iterator[WatchEvent]:
        count = 0
        for frame in frames:
            count += 1
            self.seen_seconds = frame.pts_seconds
            if count % 4 == 1:
                yield Thumbnail(frame.pts_seconds, frame.image)
            if count % self.chunk_frames == 0:
                yield self._watched(count)
                if self.gate:
                    self.gate.wait(60)
        yield self._watched(count)

    def ask(self, question: str) -> Iterator[AskEvent]:
        text = f"You asked: {question} I have seen {self.stats.frames_read} frames."
        for word in text.split(" "):
            yield AnswerPiece(word + " ")
        evidence = (Evidence(2.0, 4.0, 0.91, "recalled"), Evidence(0.0, 2.0, 0.55, "recent"))
        yield Answer(question, text, evidence, self.stats)

    def close(self) -> None:
        self.closed = True

    def _watched(self, count: int) -> Watched:
        chunks = -(-count // self.chunk_frames)
        self.stats = Stats(count, chunks, 64 * count, 0.25 * chunks, 0.01, 1_500_000, 250_000 * chunks)
        return Watched(self.seen_seconds, self.stats)


class FakeEngine:
    """Opens fake sessions and remembers them."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.sessions: list[FakeSession] = []
        self.gate = gate

    def open(self) -> FakeSession:
        self.sessions.append(FakeSession(gate=self.gate))
        return self.sessions[-1]
