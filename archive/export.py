"""The results of an archive in formats that other tools read, made from the finished parts.

- `captions.jsonl`: a line per segment.
- `videos.jsonl`: a line per video, with what failed and why.
- `subtitles/NAME.vtt` and `.srt`: captions as players show them.
- `captions/train-00000-of-00001.parquet`: one table with one schema, pictures included; Hugging
  Face `datasets` loads the folder. Needs pyarrow.

Files are always written whole and put in their place at once; nothing is appended.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from archive.ledger import Entry
from errors import LonglookError

FORMATS = ("jsonl", "vtt", "srt", "parquet")
PARQUET = Path("captions") / "train-00000-of-00001.parquet"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# srt has no escapes, and players take these for markup
MARKUP = str.maketrans("<>{}", "()()")

Row = dict[str, Any]


def check_formats(formats: Sequence[str]) -> None:
    """Raises LonglookError for a format that can't be written."""
    for name in formats:
        if name not in FORMATS:
            raise LonglookError(f"{name!r} is no format; there are {', '.join(FORMATS)}")
    if "parquet" in formats and find_spec("pyarrow") is None:
        raise LonglookError("parquet needs pyarrow: pip install 'longlook[archive]'")


def write_results(folder: Path, entries: Sequence[Entry], formats: Sequence[str]) -> list[Path]:
    """Writes the formats; gives the files and folders written."""
    rows = {entry.name: part_rows(folder, entry) for entry in entries if entry.status == "done"}
    written = [write_lines(folder / "videos.jsonl", [_video_row(entry) for entry in entries])]
    segments = [_segment_row(entry, row) for entry in entries for row in rows.get(entry.name, ())]
    if "jsonl" in formats:
        written.append(write_lines(folder / "captions.jsonl", segments))
    for name, write in (("vtt", as_webvtt), ("srt", as_srt)):
        if name in formats:
            _write_subtitles(folder / "subtitles", name, rows, write)
            written.append(folder / "subtitles")
    if "parquet" in formats:
        written.append(_write_parquet(folder, entries, rows))
    return list(dict.fromkeys(written))


def part_rows(folder: Path, entry: Entry) -> list[Row]:
    """The segments of a finished video."""
    path = folder / "parts" / f"{entry.key}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _video_row(entry: Entry) -> Row:
    return {
        "video": entry.name,
        "path": entry.path,
        "status": entry.status,
        "reason": entry.reason,
        "segments": entry.segments,
        "seconds": round(entry.seconds, 3),
    }


def _segment_row(entry: Entry, row: Row) -> Row:
    told = ("segment", "start_seconds", "stop_seconds", "caption", "fields", "confidence")
    return {
        "video": entry.name,
        **{key: row[key] for key in told},
        "thumbnail": f"thumbnails/{entry.key}/{row['thumbnail']}",
    }


def write_lines(path: Path, rows: Sequence[Row]) -> Path:
    """A JSON line per row."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return _replace(path, text.encode())


def _replace(path: Path, data: bytes) -> Path:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)  # noqa: PTH105  atomic, and says so
    return path


def _write_subtitles(
    folder: Path, suffix: str, rows: dict[str, list[Row]], write: Callable[[Sequence[Row]], str]
) -> None:
    """One file per video, under its stem; under its whole name where two videos share a stem."""
    stems = [Path(name).with_suffix("").as_posix() for name in rows]
    for (name, of_video), stem in zip(rows.items(), stems, strict=True):
        place = name if stems.count(stem) > 1 else stem
        _replace(folder / f"{place}.{suffix}", write(of_video).encode())


def as_webvtt(rows: Sequence[Row]) -> str:
    """Captions as WebVTT; cues are half-open and touch."""
    cues = [
        f"{_clock(start, '.')} --> {_clock(stop, '.')}\n{_escaped(text)}\n"
        for start, stop, text in _cues(rows)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def as_srt(rows: Sequence[Row]) -> str:
    """Captions as SubRip."""
    cues = [
        f"{number}\n{_clock(start, ',')} --> {_clock(stop, ',')}\n"
        f"{_one_line(text).translate(MARKUP)}\n"
        for number, (start, stop, text) in enumerate(_cues(rows), 1)
    ]
    return "\n".join(cues)


def _cues(rows: Sequence[Row]) -> Iterator[tuple[int, int, str]]:
    """Start and end in whole milliseconds, and the text. A cue ends where the next one starts."""
    for number, row in enumerate(rows):
        stop = rows[number + 1]["start_seconds"] if number + 1 < len(rows) else row["stop_seconds"]
        yield round(1000 * row["start_seconds"]), round(1000 * stop), row["caption"]


def _clock(milliseconds: int, point: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"


def _one_line(text: str) -> str:
    """White space as single blanks: an empty line would end the cue."""
    return " ".join(CONTROL.sub(" ", text).split())


def _escaped(text: str) -> str:
    return _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _write_parquet(folder: Path, entries: Sequence[Entry], rows: dict[str, list[Row]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("video", pa.string()),
            ("segment", pa.int32()),
            ("start_seconds", pa.float64()),
            ("stop_seconds", pa.float64()),
            ("caption", pa.string()),
            ("fields", pa.string()),  # JSON: a struct would differ from archive to archive
            ("confidence", pa.string()),
            ("thumbnail", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ],
        metadata={"huggingface": json.dumps(_features())},
    )
    path = folder / PARQUET
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with pq.ParquetWriter(new, schema) as writer:
        for entry in entries:
            of_video = [_parquet_row(folder, entry, row) for row in rows.get(entry.name, ())]
            if of_video:
                writer.write_table(pa.Table.from_pylist(of_video, schema))
    os.replace(new, path)  # noqa: PTH105  atomic, and says so
    return path


def _parquet_row(folder: Path, entry: Entry, row: Row) -> Row:
    picture = folder / "thumbnails" / entry.key / row["thumbnail"]
    return {
        "video": entry.name,
        "segment": row["segment"],
        "start_seconds": row["start_seconds"],
        "stop_seconds": row["stop_seconds"],
        "caption": row["caption"],
        "fields": json.dumps(row["fields"], ensure_ascii=False),
        "confidence": json.dumps(row["confidence"]),
        "thumbnail": {"bytes": picture.read_bytes(), "path": row["thumbnail"]},
    }


def _features() -> dict[str, Any]:
    """What Hugging Face `datasets` should make of the columns."""
    kinds = {
        "video": "string",
        "segment": "int32",
        "start_seconds": "float64",
        "stop_seconds": "float64",
        "caption": "string",
        "fields": "string",
        "confidence": "string",
    }
    features: dict[str, Any] = {
        name: {"dtype": dtype, "_type": "Value"} for name, dtype in kinds.items()
    }
    features["thumbnail"] = {"_type": "Image"}
    return {"info": {"features": features}}
