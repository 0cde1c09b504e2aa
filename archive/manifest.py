"""Which videos an archive has, in a fixed order, and what tells one from another."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import LonglookError

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".flv",
        ".wmv",
        ".3gp",
        ".ogv",
        ".gif",
    ]
)
WHOLE_BYTES = 1 << 30  # up to this size all bytes tell a file from others, else head and tail
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Video:
    """One file. name: where its results go, relative to the output folder, with its suffix."""

    path: Path
    name: str


def find_videos(words: Sequence[str], lines: Iterable[str] = ()) -> list[Video]:
    """The videos that the words name: files, folders (searched through), patterns, and lists of
    names (.txt).

    lines: names from standard input, for the word "-". Raises LonglookError for a word that names
    nothing.
    """
    found: dict[Path, Video] = {}
    for word in words:
        videos = list(_named(word, lines))
        if not videos:
            raise LonglookError(f"There is no video in {word}.")
        for video in videos:
            found.setdefault(video.path.absolute(), video)
    return _with_own_names(list(found.values()))


def _named(word: str, lines: Iterable[str]) -> Iterator[Video]:
    if word == "-":
        yield from _listed(lines)
        return
    path = Path(word)
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file():
                yield Video(file, file.relative_to(path).as_posix())
    elif path.suffix.lower() == ".txt" and path.is_file():
        yield from _listed(path.read_text(encoding="utf-8").splitlines())
    elif path.is_file():
        yield Video(path, path.name)
    elif glob.has_magic(word):
        for name in sorted(glob.glob(word, recursive=True)):  # noqa: PTH207  "~" and "**" as typed
            if Path(name).is_file():
                yield Video(Path(name), Path(name).name)
    else:
        raise LonglookError(f"There is no file {word}.")


def _listed(lines: Iterable[str]) -> Iterator[Video]:
    """Files by name, a line each; empty lines and those that begin with # are left out."""
    for line in lines:
        name = line.rstrip("\r\n")
        if name.strip() and not name.startswith("#"):
            yield Video(Path(name), Path(name).name)


def _with_own_names(videos: Sequence[Video]) -> list[Video]:
    """Files of the same name in different folders get a number, in order."""
    counts: dict[str, int] = {}
    named = []
    for video in videos:
        count = counts[video.name] = counts.get(video.name, 0) + 1
        if count > 1:
            place = Path(video.name)
            name = place.with_name(f"{place.stem}-{count}{place.suffix}").as_posix()
            video = Video(video.path, name)
        named.append(video)
    return named


def content_id(path: Path) -> str:
    """Thirty-two hex digits of a file's content; of a large file, of its size, head and tail.

    Raises OSError where it can't be read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
        else:
            digest.update(file.read(PIECE_BYTES))
            file.seek(-PIECE_BYTES, 2)
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()[:32]


def shard_of(content: str, num_shards: int) -> int:
    """Which of so many machines a video belongs to, from 0."""
    return int(content[:8], 16) % num_shards
