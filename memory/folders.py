"""The sessions on this machine: where they are, what is in them, and how one is thrown away.

Knows nothing of models or of how a session is shown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from frames import Gap
from memory.disk_tier import SessionStore, check_is_session, is_locked, lock, wrap_os_errors
from memory.plain_files import (
    DATABASE,
    DATABASE_FILES,
    JOURNAL,
    LOCK,
    THUMBS,
    check_folder,
    delete_files,
    is_left_over,
    kv_names,
    thumb_names,
)
from memory.timeline import Timeline


@dataclass(frozen=True)
class Summary:
    """A session in figures. seen_seconds: how far its source was watched.

    sparse_chunks: have lost their dense level to the disk budget, forgotten_chunks: the sparse one
    as well. began: local day and time, of a live session. gaps: of which no pictures came.
    """

    folder: str
    source: str | None
    model_id: str
    dtype: str
    chunks: int
    frames: int
    keyframes: int
    tokens: int
    seen_seconds: float
    sparse_chunks: int
    forgotten_chunks: int
    disk_bytes: int
    questions: int
    being_watched: bool
    began: str | None
    gaps: tuple[Gap, ...]


def sessions_in(root: Path) -> list[Path]:
    """Raises SessionError where the folder cannot be read."""
    with wrap_os_errors(root):
        if not root.is_dir():
            return []
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        return [path for path in folders if os.path.lexists(path / DATABASE)]


def summary(folder: Path) -> Summary:
    """Raises SessionError where there is no session, or none that can be read."""
    store = SessionStore(folder, read_only=True)
    try:
        timeline = Timeline(store)
        return Summary(
            folder=str(folder),
            source=store.source,
            model_id=store.kind.model_id,
            dtype=store.kind.dtype,
            chunks=store.num_chunks,
            frames=store.frames_watched,
            keyframes=store.num_keyframes,
            tokens=sum(chunk.meta.num_tokens for chunk in store.chunks),
            seen_seconds=store.seen_seconds,
            sparse_chunks=store.num_sparse,
            forgotten_chunks=store.num_forgotten,
            disk_bytes=store.disk_bytes,
            questions=len(store.turns()),
            being_watched=is_locked(folder),
            began=local_time(timeline.wall_at(0.0)),
            gaps=timeline.gaps,
        )
    finally:
        store.close()


def local_time(wall_seconds: float | None) -> str | None:
    """Day and time in the zone of this machine: "2026-11-26 14:03:10"."""
    if wall_seconds is None:
        return None
    return f"{datetime.fromtimestamp(wall_seconds):%Y-%m-%d %H:%M:%S}"


def delete(folder: Path) -> None:
    """Deletes a session, and of its folder nothing that is not ours; never goes through a link.

    It may be damaged. Raises SessionError where there is none, where it is being watched and where
    it has links.
    """
    if not is_left_over(folder):
        check_is_session(folder)
    with wrap_os_errors(folder), lock(folder):
        check_folder(folder)
        thumbs = folder / THUMBS
        if os.path.lexists(thumbs):
            delete_files(thumbs, thumb_names(thumbs))
            _remove_if_empty(thumbs)
        delete_files(folder, [*kv_names(folder), *DATABASE_FILES, JOURNAL, LOCK])
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
