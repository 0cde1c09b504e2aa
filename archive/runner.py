"""Captions one video: segments, captions and fields in batches, a journal of what is finished.

Every segment sees the prompt's prefix and itself only, and batches are formed by number, so a
video that is taken up again becomes, to the byte, what it would have been in one go. Knows nothing
of other videos, workers or formats.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from archive.head_keys import owner_of, write_keys
from archive.segments import segments
from archive.settings import CaptionSettings
from config import Config
from frames import Frame
from memory.chunk import KVChunk
from models.calibration import Profile
from models.video_llm import VideoLLM, num_visual_tokens
from streaming.batching import BATCH_BYTES
from streaming.each import MAX_ROWS, SpanRow, answer_rows, greedy
from streaming.ingest import Ingest, PrefilledChunk, PrefillWork
from streaming.reader import Reader
from streaming.sources.file import FileSource
from streaming.span_prompts import ChunkSpan, SpanAnswer

BATCH_SEGMENTS = 16  # that are captioned together, counted from the beginning of the video
THUMBNAIL_SIDE = 192  # pixels of the longer side
THUMBNAIL_QUALITY = 85


class DeviceOwner(Protocol):
    """What is needed of the engine."""

    model: VideoLLM
    profile: Profile | None
    config: Config

    def prefill(
        self, work: PrefillWork, num_tokens: int, is_live: bool
    ) -> Future[list[PrefilledChunk]]: ...

    def run(self, work: Callable[[], Any]) -> Any: ...

    def run_in_background(self, run_part: Callable[[], bool]) -> Future[None]: ...


@dataclass(frozen=True)
class Journal:
    """The finished segments of one video, a JSON line each; a batch is appended and flushed."""

    path: Path

    @property
    def keys_folder(self) -> Path:
        """Where the keys of the retrieval heads go, a file per batch."""
        return self.path.with_name(f"{self.path.name.split('.')[0]}.keys")

    def read(self) -> list[dict[str, Any]]:
        """What is finished. A batch of which only a part was written is cut off."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        rows = [json.loads(line) for line in whole.splitlines()]
        rows = rows[: len(rows) - len(rows) % BATCH_SEGMENTS]
        kept = b"".join(_line(row) for row in rows)
        if kept != data:
            with self.path.open("r+b") as file:
                file.truncate(len(kept))
        return rows

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds rows; they are safe on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write(b"".join(_line(row) for row in rows))
            file.flush()
            os.fsync(file.fileno())


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def caption_video(
    engine: DeviceOwner,
    video: Path,
    settings: CaptionSettings,
    journal: Journal,
    thumbnails: Path,
) -> Iterator[list[dict[str, Any]]]:
    """Captions what the journal does not have yet; yields the rows of each batch once they are
    safe, those that were finished before first.

    thumbnails: a folder; a picture of each segment goes there. Raises SourceError for a video that
    can't be read.
    """
    fps = engine.config.read.fps
    finished = journal.read()
    if finished:
        yield finished
    thumbnails.mkdir(parents=True, exist_ok=True)
    with Reader(FileSource(video, fps)) as reader:
        parts = segments(iter(reader), fps, settings.min_seconds, settings.max_seconds)
        new = ((number, part) for number, part in enumerate(parts) if number >= len(finished))
        while batch := _prefill_batch(engine, new, fps):
            rows = _caption_batch(engine, batch, settings)
            for segment in batch:
                (thumbnails / segment.thumbnail_name).write_bytes(segment.thumbnail)
            if engine.profile is not None:
                owner = owner_of(engine.model.model_id, engine.profile)
                keys = [engine.profile.keys_of(chunk_of(segment)) for segment in batch]
                write_keys(journal.keys_folder / f"{batch[0].number:05}.npz", keys, owner)
            journal.append(rows)
            yield rows


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment without its frames: its keys and values, and what is told of it.

    The seconds are half-open. thumbnail: a JPEG of the middle frame.
    """

    number: int
    start_seconds: float
    stop_seconds: float
    thumbnail: bytes
    chunk: Future[list[PrefilledChunk]]

    @property
    def thumbnail_name(self) -> str:
        return f"{self.number:05}.jpg"


def _prefill_batch(
    engine: DeviceOwner, parts: Iterator[tuple[int, list[Frame]]], fps: float
) -> list[Segment]:
    """The next segments, prefilled; those that are under way together hold few bytes of frames."""
    batch: list[Segment] = []
    bytes_under_way = 0
    for number, part in islice(parts, BATCH_SEGMENTS):
        bytes_under_way += sum(frame.image.nbytes for frame in part)
        batch.append(prefill_segment(engine, number, part, fps))
        if bytes_under_way >= BATCH_BYTES:
            batch[-1].chunk.result()
            bytes_under_way = 0
    return batch


def prefill_segment(engine: DeviceOwner, number: int, part: Sequence[Frame], fps: float) -> Segment:
    """Begins to prefill a segment, which sees the prefix and itself; reuse and pruning begin
    anew.
    """
    ingest = Ingest(engine.model, engine.config)
    prefix = [engine.run(engine.model.prefix)]
    work = PrefillWork(ingest, ingest.prepare_alone(part), prefix, [], 0, number)
    chunk = engine.prefill(work, num_visual_tokens(engine.model, part), False)
    start, stop = part[0].pts_seconds, part[-1].pts_seconds + 1 / fps
    return Segment(number, start, stop, _thumbnail(part[len(part) // 2]), chunk)


def _caption_batch(
    engine: DeviceOwner,
    batch: Sequence[Segment],
    settings: CaptionSettings,
) -> list[dict[str, Any]]:
    """What is said of every segment."""
    prefix = engine.run(engine.model.prefix)
    prompts = settings.prompts()
    rows: list[SpanRow] = []
    for segment in batch:
        context = [prefix, chunk_of(segment)]
        span = ChunkSpan(segment.number, segment.number + 1)
        rows += [SpanRow(span, prompt, context) for prompt in prompts]
    options = greedy(engine.config.answer, settings.max_new_tokens)
    batches = (rows[k : k + MAX_ROWS] for k in range(0, len(rows), MAX_ROWS))
    answers = list(answer_rows(engine, batches, options, threading.Event()))
    of_segments = (answers[k : k + len(prompts)] for k in range(0, len(answers), len(prompts)))
    return [_row(segment, said, settings) for segment, said in zip(batch, of_segments, strict=True)]


def chunk_of(segment: Segment) -> KVChunk:
    """Waits for a segment's keys and values."""
    chunk = segment.chunk.result()[0].chunk
    assert chunk is not None, "the first frame of a segment is always new"
    return chunk


def _row(
    segment: Segment, answers: Sequence[SpanAnswer], settings: CaptionSettings
) -> dict[str, Any]:
    """What is written down of one segment."""
    caption, *others = answers
    fields = list(zip(settings.fields, others, strict=True))
    return {
        "segment": segment.number,
        "start_seconds": round(segment.start_seconds, 3),
        "stop_seconds": round(segment.stop_seconds, 3),
        "caption": caption.text,
        "fields": {field.name: field.value(answer.text) for field, answer in fields},
        "confidence": {
            field.name: round(answer.probability, 4)
            for field, answer in fields
            if answer.probability is not None
        },
        "thumbnail": segment.thumbnail_name,
    }


def _thumbnail(frame: Frame) -> bytes:
    image = Image.fromarray(frame.image)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    return file.getvalue()
