"""The one owner of model and device: serves many sessions, a waiting question before the next chunk.

Knows nothing of files, pages or what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Condition
from typing import Any

from config import Config
from memory.records import Kind
from memory.store import SessionStore
from models.base import VideoLLM
from models.calibration import Profile, find_profile
from models.loading import load, recommended_settings
from streaming.session import Session


class Turns:
    """Whose turn it is on the device: one at a time, urgent ones first.

    A question is urgent, a chunk is not, so a question waits for the chunk under way and for nothing else.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._busy = False
        self._urgent = 0  # waiting

    @contextmanager
    def take(self, urgent: bool) -> Iterator[None]:
        with self._changed:
            self._urgent += urgent
            try:
                self._changed.wait_for(lambda: not self._busy and (urgent or not self._urgent))
            finally:
                self._urgent -= urgent
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()


class Engine:
    """A loaded model with its retrieval profile, shared by the sessions it opens."""

    def __init__(self, model: VideoLLM, profile: Profile | None, config: Config | None = None) -> None:
        """profile: which heads retrieve, from `models.calibration`; without one, old chunks are sampled evenly."""
        self.model = model
        self.profile = profile
        self.config = config or Config()
        self._turns = Turns()

    def open(self, folder: Path | None = None, read_only: bool = False) -> Session:
        """A session: one stream's memory and dialogue, new or as it was left in `folder`, and kept there.

        read_only: for questions about a folder that another process may be watching; nothing can be watched.
        Raises SessionError (a ValueError) for a folder that cannot be used so.
        """
        if folder is None:
            return Session(self.model, self.profile, self.config, self._turns.take)
        memory = self.config.memory
        with ExitStack() as undo:
            store = SessionStore(
                folder,
                kind_of(self.model),
                kept_settings(self.config),
                memory.disk_bytes,
                memory.window_chunks,
                read_only,
            )
            undo.callback(store.close)
            session = Session(self.model, self.profile, self.config.overridden(store.settings), self._turns.take, store)
            undo.pop_all()
        return session


def kept_settings(config: Config) -> dict[str, dict[str, Any]]:
    """What a session that goes on keeps, so that it becomes what it would have been without the break."""
    memory = {knob: getattr(config.memory, knob) for knob in ("chunk_frames", "prefill_chunks", "window_chunks")}
    return {"read": {"fps": config.read.fps}, "memory": memory}


def kind_of(model: VideoLLM) -> Kind:
    """What the chunks of this model's sessions have in common."""
    dtype = str(model.dtype).removeprefix("torch.")
    return Kind(model.model_id, dtype, model.num_layers, model.num_kv_heads, model.head_dim)


def load_engine(
    model: str = "demo",
    device: str = "auto",
    dtype: str = "auto",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Engine:
    """An engine for a model by name, with its profile where it has one.

    The configuration is the defaults, changed by what the checkpoint recommends, changed by `settings`.
    Raises ModelError (a ValueError) for a model that cannot be had, ValueError for settings that make no sense.
    """
    config = Config().overridden(recommended_settings(model)).overridden(settings or {})
    loaded = load(model, device, dtype)
    return Engine(loaded, find_profile(loaded), config)
