"""One browser tab and its video: a session, the thread that feeds it, and the tab's conversation.

`TabRegistry` owns them all, one per tab, bounded. Knows nothing of Gradio: the page asks for
`progress` and `turns` as often as it likes and gets small records that never change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from config import ReadConfig
from errors import LonglookError, Notice
from frames import Frame
from streaming.events import AskEvent, Evidence, Keyframe, Stats, Thumbnail, Watched, WatchEvent
from streaming.reader import Reader
from streaming.sources.file import FileSource
from streaming.sources.moments import Moments
from streaming.sources.trouble import SourceError
from ui.conversation import Conversation
from ui.pictures import PictureFolder, SeenPictures
from ui.render import Progress, StripPicture, problem_sentence, strongest, thinned

STRIP_LIMIT = 24  # thumbnails kept per video; more do not fit a strip
NOTICE_LIMIT = 8
POLL_SECONDS = 0.05  # of a question that waits for the first chunk
UNEXPECTED = "Something went wrong on the server while watching; its log says what."
NOTHING_SEEN = "Nothing of this video was seen, so there is nothing to ask about."


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


class TabSession:
    """Watches one video on a thread of its own, from `start` to the end of the video or `close`."""

    def __init__(
        self,
        session: Session,
        path: Path,
        title: str,
        config: ReadConfig,
        pictures: PictureFolder,
        *,
        is_upload: bool = False,
    ) -> None:
        self.path = path
        self.finished = threading.Event()
        self.conversation = Conversation(self)
        self._session = session
        self._config = config
        self._pictures = pictures
        self._seen = SeenPictures(pictures)
        self._moments: Moments | None = None  # the file once more, opened when first needed
        self._moments_lock = threading.Lock()
        self._progress = Progress(title=title, is_upload=is_upload)
        self._lock = threading.Lock()  # of the progress, which watching and answering replace
        self._reader: Reader | None = None
        self._stopping = threading.Event()  # no more frames; what was seen stays
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tab-session", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.conversation.start()

    @property
    def progress(self) -> Progress:
        return self._progress

    @property
    def is_idle(self) -> bool:
        """Whether nothing will change until somebody asks or opens something."""
        return self.finished.is_set() and not self.conversation.is_busy

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def wait_until_askable(self) -> str:
        """Wait for the first chunk; return why there will be none, or nothing."""
        while not self._session.stats.chunks and not self.closed:
            if self.finished.wait(POLL_SECONDS) and not self._session.stats.chunks:
                return self._progress.problem or NOTHING_SEEN
        return ""

    def answer(self, question: str) -> Iterator[AskEvent]:
        yield from self._session.ask(question)
        self._update(stats=self._session.stats)

    def seen_so_far(self) -> float | None:
        progress = self._progress
        return None if progress.state == "watched" else progress.pts_seconds

    def pictures_of(self, evidence: tuple[Evidence, ...]) -> tuple[str, ...]:
        """A picture of each of the best pieces of evidence, as it was seen. The file is read again
        for what has none; without it there are fewer pictures.
        """
        url_of: dict[Evidence, str] = {}
        missing: list[Evidence] = []
        for item in strongest(evidence):
            url = self._seen.within(item.start_seconds, item.stop_seconds)
            if url is None:
                missing.append(item)
            else:
                url_of[item] = url
        url_of |= zip(missing, self._read_again(missing), strict=False)
        return tuple(url_of.get(item, "") for item in evidence)

    def _read_again(self, evidence: Sequence[Evidence]) -> list[str]:
        """Pictures of the file, from the middle of each stretch; none where it cannot be read."""
        middles = [(item.start_seconds + item.stop_seconds) / 2 for item in evidence]
        with self._moments_lock:
            if not middles or self.closed:
                return []
            try:
                self._moments = self._moments or Moments(self.path)
                return [self._pictures.add(frame.image) for frame in self._moments.at(middles)]
            except SourceError:
                return []

    def stop_watching(self) -> None:
        """Read no further; questions are answered from what was seen."""
        self._stopping.set()

    def close(self) -> None:
        """Stop watching and give the session back; waits for the chunk under way."""
        self._closing.set()
        self._stopping.set()
        if self._reader:
            self._reader.close()
        self.conversation.close()
        if self._thread.is_alive():
            self._thread.join()
        self._session.close()
        with self._moments_lock:
            if self._moments is not None:
                self._moments.close()
        self._pictures.close()
        if self._progress.is_upload:
            self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        problem = UNEXPECTED
        try:
            self._watch()
            problem = ""
        except LonglookError as error:
            problem = problem_sentence(str(error), str(self.path), self._progress.title)
        finally:
            state = "failed" if problem else "stopped" if self._stopping.is_set() else "watched"
            self._update(state=state, problem=problem)
            self.finished.set()

    def _watch(self) -> None:
        source = FileSource(self.path, self._config.fps)
        self._update(duration_seconds=source.info.duration_seconds or 0.0)
        with Reader(source) as self._reader:
            if self._closing.is_set():  # `close` may not have seen the reader
                return
            frames = takewhile(lambda _: not self._stopping.is_set(), self._reader)
            for event in self._session.watch(frames, ahead=True):
                self._apply(event)
                self._warn(source.warnings)
        self._warn(source.warnings)

    def _apply(self, event: WatchEvent) -> None:
        match event:
            case Watched():
                self._update(pts_seconds=event.pts_seconds, stats=event.stats)
            case Thumbnail():
                self._seen.add(event.pts_seconds, event.image)
            case Keyframe():
                self._update(strip=self._extended_strip(event))
            case Notice():
                self._warn([event.text])

    def _update(self, **changes: Any) -> None:
        with self._lock:
            self._progress = replace(self._progress, **changes)

    def _warn(self, sentences: Sequence[str]) -> None:
        """Put `sentences` among the notices, each once, the first few kept."""
        known = self._progress.notices
        new = tuple(text for text in sentences if text not in known)
        if new:
            self._update(notices=(*known, *new)[:NOTICE_LIMIT])

    def _extended_strip(self, new: Keyframe) -> tuple[StripPicture, ...]:
        """The strip with a new picture at its end, evenly spread, never beyond its limit."""
        added = StripPicture(new.pts_seconds, self._pictures.add(new.image), new.kind)
        strip = (*self._progress.strip, added)
        surplus = thinned(strip, STRIP_LIMIT)
        if surplus is None:
            return strip
        self._pictures.remove(surplus.url)
        return tuple(item for item in strip if item is not surplus)


class TabRegistry:
    """The session of each tab. At most `limit` are open: the one idle for longest makes room."""

    def __init__(self, engine: Engine, config: ReadConfig, folder: Path, limit: int = 16) -> None:
        """folder: for the pictures that the page shows."""
        self._engine = engine
        self._config = config
        self._folder = folder
        self._limit = limit
        self._open: OrderedDict[str, TabSession] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, tab: str, path: Path, title: str, *, is_upload: bool = False) -> TabSession:
        """Start watching `path` for `tab`, in place of what the tab looked at before.

        is_upload: the file belongs to the tab and is deleted with its session.
        """
        self.close(tab)
        pictures = PictureFolder(self._folder)
        session = TabSession(
            self._engine.open(), path, title, self._config, pictures, is_upload=is_upload
        )
        surplus: list[TabSession] = []
        with self._lock:
            self._open[tab] = session
            while len(self._open) > self._limit:
                surplus.append(self._open.popitem(last=False)[1])
        for old in surplus:
            old.close()
        session.start()
        return session

    def of(self, tab: str) -> TabSession | None:
        """What `tab` is looking at."""
        with self._lock:
            if tab in self._open:
                self._open.move_to_end(tab)
            return self._open.get(tab)

    def close(self, tab: str) -> None:
        with self._lock:
            session = self._open.pop(tab, None)
        if session:
            session.close()

    def close_all(self) -> None:
        with self._lock:
            tabs = list(self._open)
        for tab in tabs:
            self.close(tab)

    def __len__(self) -> int:
        return len(self._open)
