"""Finds moments in a captioned archive: by what was seen, by what was said, and asked again.

By what was seen: keys of the retrieval heads against the query's (`head_keys.py`). By what was
said: captions in SQLite's full-text index. Both are standardised over the archive and added. The
best ones are then looked at again: the model is asked whether each thing is there, so a list of
results ends, and "nothing found" is an answer.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archive.export import part_rows
from archive.head_keys import owner_of, sum_of_matches
from archive.ledger import Entry, read_entries
from archive.runner import chunk_of, prefill_segment
from errors import LonglookError
from memory.chunk import KVChunk
from models.calibration import Profile
from models.video_llm import ChoiceRequest, Head
from streaming.each import MAX_ROWS, YES_NO
from streaming.engine import Engine
from streaming.sources.moments import Moments

# Small: where keys and captions count alike, captions spoil what the keys find of two things.
WORDS_WEIGHT = 0.1
NUM_VERIFIED = 20
LEAST_PROBABILITY = 0.5
STOP_WORDS = frozenset(
    ("a", "an", "the", "and", "or", "of", "in", "on", "at", "is", "are", "was", "were", "there")
)
WORD = re.compile(r"\w+")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
THINGS = re.compile(r"\s*(?:,|;|\band\b)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Moment:
    """One result. The seconds are of the video, half-open. score: in standard deviations above the
    archive's mean. probability: that all things asked for are there; None if not verified.
    """

    video: str
    path: str
    start_seconds: float
    stop_seconds: float
    caption: str
    thumbnail: str
    score: float
    probability: float | None = None


@dataclass(frozen=True)
class _Place:
    entry: Entry
    row: dict[str, Any]


class Search:
    """The finished segments of an output folder. Reading only; another process may be writing."""

    def __init__(self, folder: Path) -> None:
        """Raises LonglookError where there is no archive, or nothing in it."""
        self._folder = folder
        entries = [entry for entry in read_entries(folder) if entry.status == "done"]
        self._places = [_Place(entry, row) for entry in entries for row in part_rows(folder, entry)]
        self._entries = entries
        if not self._places:
            raise LonglookError(f"{folder} has no captions yet.")
        self._words = sqlite3.connect(":memory:", check_same_thread=False)
        self._words.execute("CREATE VIRTUAL TABLE captions USING fts5(text)")
        self._words.executemany(
            "INSERT INTO captions (rowid, text) VALUES (?, ?)",
            (
                (number, indexable(str(place.row["caption"])))
                for number, place in enumerate(self._places)
            ),
        )

    def find(self, engine: Engine, text: str, limit: int, verify: bool = True) -> list[Moment]:
        """The moments that fit best, best first. With verify, only those where the model says that
        everything asked for is there.

        Raises LonglookError for an empty query.
        """
        if not text.strip():
            raise LonglookError("there is nothing to search for")
        scores = self._scores(engine, text)
        order = np.argsort(-scores, kind="stable")
        if not verify:
            return [self._moment(k, scores[k]) for k in order[:limit]]
        best = [self._moment(k, scores[k]) for k in order[:NUM_VERIFIED]]
        numbers = [int(k) for k in order[:NUM_VERIFIED]]
        probabilities = self._verify(engine, text, numbers)
        sure = [
            replace(moment, probability=p)
            for moment, p in zip(best, probabilities, strict=True)
            if p is not None and p >= LEAST_PROBABILITY
        ]
        sure.sort(key=lambda moment: (-(moment.probability or 0), -moment.score))
        return sure[:limit]

    def _scores(self, engine: Engine, text: str) -> NDArray[np.float64]:
        said = standardized(self._said(text))
        if engine.profile is None:
            return said
        seen = self._seen(engine, engine.profile, text)
        return said if seen is None else seen + WORDS_WEIGHT * said

    def _seen(self, engine: Engine, profile: Profile, text: str) -> NDArray[np.float64] | None:
        """By the keys of the retrieval heads; None where a video has none, or of other heads."""
        heads = [Head(head.layer, head.head) for head in profile.heads]
        queries = engine.run(lambda: engine.model.question_queries(text, heads)).float().cpu()
        parts = []
        for entry in self._entries:
            files = sorted((self._folder / "parts" / f"{entry.key}.keys").glob("*.npz"))
            if not files:
                return None
            owner = owner_of(engine.model.model_id, profile)
            parts += [sum_of_matches(file, queries, owner) for file in files]
        scores = np.concatenate(parts, 1)
        if scores.shape[1] != len(self._places):
            return None
        weights = np.array([head.weight for head in profile.heads])
        rows = np.stack([standardized(row) for row in scores])
        return standardized(weights @ rows)

    def _said(self, text: str) -> NDArray[np.float64]:
        """By the words of the captions: BM25, 0 for captions without any of the words."""
        scores = np.zeros(len(self._places))
        query = full_text_query(text)
        if query:
            for number, rank in self._words.execute(
                "SELECT rowid, bm25(captions) FROM captions WHERE captions MATCH ?", (query,)
            ):
                scores[number] = -rank
        return scores

    def _verify(self, engine: Engine, text: str, numbers: Sequence[int]) -> list[float | None]:
        """How probable it is that everything is there, of each place; None where its video can't
        be read any more.
        """
        things = things_of(text)
        prefix = engine.run(engine.model.prefix)
        found: dict[int, float | None] = dict.fromkeys(numbers)
        for path in dict.fromkeys(self._places[number].entry.path for number in numbers):
            own = [number for number in numbers if self._places[number].entry.path == path]
            contexts = self._look_again(engine, path, own)
            requests = [
                ChoiceRequest(f"Is there {thing}?", [prefix, contexts[number]], YES_NO)
                for number in own
                if number in contexts
                for thing in things
            ]
            shares = iter(_choose(engine, requests))
            for number in contexts:
                found[number] = min(next(shares)[0] for _ in things)
        return [found[number] for number in numbers]

    def _look_again(self, engine: Engine, path: str, numbers: Sequence[int]) -> dict[int, KVChunk]:
        """Keys and values of segments of one video, read once more; empty if it can't be read."""
        fps = engine.config.read.fps
        times = {number: self._times(number, fps) for number in numbers}
        try:
            with Moments(path) as moments:
                frames = iter(moments.at([second for own in times.values() for second in own]))
        except (LonglookError, OSError):
            return {}
        segments = {
            number: prefill_segment(engine, 0, list(islice(frames, len(own))), fps)
            for number, own in times.items()
        }
        return {number: chunk_of(segment) for number, segment in segments.items()}

    def _times(self, number: int, fps: float) -> list[float]:
        """The seconds at which frames of a segment are taken."""
        row = self._places[number].row
        start, stop = float(row["start_seconds"]), float(row["stop_seconds"])
        return [start + k / fps for k in range(max(1, round((stop - start) * fps)))]

    def _moment(self, number: int, score: float) -> Moment:
        entry, row = self._places[number].entry, self._places[number].row
        return Moment(
            entry.name,
            entry.path,
            float(row["start_seconds"]),
            float(row["stop_seconds"]),
            str(row["caption"]),
            str(self._folder / "thumbnails" / entry.key / str(row["thumbnail"])),
            round(float(score), 3),
        )


def _choose(engine: Engine, requests: Sequence[ChoiceRequest]) -> list[list[float]]:
    shares: list[list[float]] = []
    for k in range(0, len(requests), MAX_ROWS):
        shares += engine.run(partial(engine.model.choose, requests[k : k + MAX_ROWS]))
    return shares


def things_of(text: str) -> list[str]:
    """What is looked for, one by one: "a star and a blue ring" are two things."""
    return [thing for thing in THINGS.split(text.strip(" ?.!")) if thing] or [text]


def indexable(text: str) -> str:
    """A caption for the full-text index, which takes a run of Chinese or Japanese for one word: it
    gets their pairs of letters.
    """
    return " ".join(_words_of(text))


def full_text_query(text: str) -> str:
    """Any of the words, each quoted: what a person types is no query language."""
    words = [word for word in _words_of(text) if word.lower() not in STOP_WORDS]
    return " OR ".join(f'"{word}"' for word in words)


def _words_of(text: str) -> list[str]:
    words: list[str] = []
    for word in WORD.findall(text):
        if CJK.search(word):
            words += [word[k : k + 2] for k in range(max(1, len(word) - 1))]
        else:
            words.append(word)
    return words


def standardized(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean 0 and deviation 1; what is minus infinity gets the least."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return np.zeros_like(scores)
    filled = np.where(np.isfinite(scores), scores, finite.min())
    result: NDArray[np.float64] = (filled - filled.mean()) / max(float(filled.std()), 1e-9)
    return result
