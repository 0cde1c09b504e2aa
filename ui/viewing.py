"""One browser tab looking at one video: a session, the thread that feeds it, and what has been seen so far.

`Viewings` owns them all, one per tab, bounded. Knows nothing of Gradio: the page asks for `progress` as often as it
likes and gets a small record that never changes under its hands.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from config import ReadConfig
from streaming.events import Answer, AskEvent, Evidence, Notice, Stats, Thumbnail, Watched, WatchEvent
from streaming.file_source import FileSource
from streaming.frames import Frame
from streaming.moments import Moments
from streaming.opening import SourceError
from streaming.reader import Reader
from ui.render import GalleryItem, Progress, extended, problem_sentence, span

STRIP_LIMIT = 24  # thumbnails kept per video; more do not fit a strip
NOTICE_LIMIT = 8
UNEXPECTED = "Something went wrong on the server while watching; its log says what."


class Session(Protocol):
    """What the page needs of a session."""

    @property
    def stats(self) -> Stats: ...
    def watch(self, frames: Iterable[Frame], ahead: bool = ...) -> Iterator[WatchEvent]: ...
    def ask(self, question: str) -> Iterator[AskEvent]: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """What the page needs of the engine."""

    def open(self) -> Session: ...


class Viewing:
    """Watches one video on a thread of its own, from `start` to the end of the video or `close`."""

    def __init__(self, session: Session, path: Path, title: str, config: ReadConfig) -> None:
        self.path = path
        self.evidence: tuple[Evidence, ...] = ()  # of the last answer, best first
        self.shown_strip: tuple[Thumbnail, ...] = ()  # as the page shows it now: what a click's index means
        self.finished = threading.Event()
        self._session = session
        self._config = config
        self._progress = Progress(title=title)
        self._reader: Reader | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="viewing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def progress(self) -> Progress:
        return self._progress

    @property
    def why_not_ask(self) -> str:
        """A sentence where a question cannot be answered now, else nothing."""
        if self._session.stats.chunks:
            return ""
        return self._progress.problem or "The first seconds are still being watched. Ask again in a moment."

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def ask(self, question: str) -> Iterator[AskEvent]:
        """The session's answer; its evidence is kept for the page."""
        for event in self._session.ask(question):
            if isinstance(event, Answer):
                self.evidence = event.evidence
                self._progress = replace(self._progress, stats=event.stats)
            yield event

    def evidence_pictures(self) -> list[GalleryItem]:
        """A picture from the middle of each evidence of the last answer; none where the file can't be re-read."""
        middles = [(item.start_seconds + item.stop_seconds) / 2 for item in self.evidence]
        try:
            with Moments(self.path) as moments:
                frames = moments.at(middles)
        except SourceError:
            return []
        return [(shrunk(frame.image), span(item)) for frame, item in zip(frames, self.evidence, strict=True)]

    def close(self) -> None:
        """Stop watching and give the session back; waits for the chunk under way."""
        self._closing.set()
        if self._reader:
            self._reader.close()
        if self._thread.is_alive():
            self._thread.join()
        self._session.close()

    def _run(self) -> None:
        problem = UNEXPECTED
        try:
            self._watch()
            problem = ""
        except SourceError as error:
            problem = problem_sentence(str(error), str(self.path), self._progress.title)
        finally:
            state = "failed" if problem else "watched"
            self._progress = replace(self._progress, state=state, problem=problem)
            self.finished.set()

    def _watch(self) -> None:
        source = FileSource(self.path, self._config.fps)
        self._progress = replace(self._progress, duration_seconds=source.info.duration_seconds or 0.0)
        with Reader(source, self._config.queue_frames, self._config.stall_seconds) as self._reader:
            if self._closing.is_set():  # `close` may not have seen the reader
                return
            for event in self._session.watch(self._reader, ahead=True):
                self._progress = with_warnings(after(self._progress, event), source.warnings)
        self._progress = with_warnings(self._progress, source.warnings)


class Viewings:
    """The viewing of each tab. At most `limit` are open: the one idle for longest makes room."""

    def __init__(self, engine: Engine, config: ReadConfig, limit: int = 16) -> None:
        self._engine = engine
        self._config = config
        self._limit = limit
        self._open: OrderedDict[str, Viewing] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, tab: str, path: Path, title: str) -> Viewing:
        """Start watching `path` for `tab`, in place of what the tab looked at before."""
        self.close(tab)
        viewing = Viewing(self._engine.open(), path, title, self._config)
        with self._lock:
            self._open[tab] = viewing
            surplus = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - self._limit)]
        for old in surplus:
            old.close()
        viewing.start()
        return viewing

    def of(self, tab: str) -> Viewing | None:
        """What `tab` is looking at."""
        with self._lock:
            if tab in self._open:
                self._open.move_to_end(tab)
            return self._open.get(tab)

    def close(self, tab: str) -> None:
        with self._lock:
            viewing = self._open.pop(tab, None)
        if viewing:
            viewing.close()

    def close_all(self) -> None:
        with self._lock:
            tabs = list(self._open)
        for tab in tabs:
            self.close(tab)

    def __len__(self) -> int:
        return len(self._open)


def after(progress: Progress, event: WatchEvent) -> Progress:
    """Progress once `event` has happened."""
    match event:
        case Watched():
            return replace(progress, pts_seconds=event.pts_seconds, stats=event.stats)
        case Thumbnail():
            return replace(progress, strip=extended(progress.strip, event, STRIP_LIMIT))
        case Notice():
            return with_warnings(progress, [event.text])


def with_warnings(progress: Progress, sentences: Sequence[str]) -> Progress:
    """Progress with `sentences` among its notices, each once, the first few kept."""
    new = tuple(text for text in sentences if text not in progress.notices)
    return replace(progress, notices=(*progress.notices, *new)[:NOTICE_LIMIT]) if new else progress


def shrunk(image: NDArray[np.uint8], longest: int = 320) -> NDArray[np.uint8]:
    """Every n-th pixel, so that the longer side is at most `longest`: a thumbnail, not a picture."""
    step = -(-max(image.shape[:2]) // longest)
    return np.ascontiguousarray(image[::step, ::step])
