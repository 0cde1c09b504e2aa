"""The one owner of model and device: serves many sessions, a waiting question before the next chunk.

Knows nothing of files, pages or what is asked.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Condition
from typing import Any

import torch

from config import Config
from memory.bank import MemoryFullError
from memory.records import Kind
from memory.store import SessionStore
from models.base import VideoLLM
from models.calibration import Profile, find_profile
from models.loading import ModelError, load, recommended_settings
from streaming.session import Session

PATIENCE_SECONDS = 0.25  # longer than a page takes to show a piece of text and ask for the next


class Turns:
    """Whose turn it is on the device: one at a time, urgent ones first, each kind in the order of asking.

    A question is urgent, a chunk is not, so a question waits for the chunk under way and for other questions only. An
    answer is many turns, one for each piece of text; after each, chunks hold back for `patience_seconds`, in which the
    next piece is usually asked for. An answer that nobody reads on delays the others no longer than that.
    """

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._changed = Condition()
        self._waiting: dict[bool, deque[object]] = {True: deque(), False: deque()}  # tickets, by urgency
        self._busy = False
        self._patience_seconds = patience_seconds
        self._chunks_from_seconds = -math.inf

    @contextmanager
    def take(self, urgent: bool) -> Iterator[None]:
        """The device is ours while the block runs. Raises MemoryFullError where the block wants more than it has."""
        self._wait(urgent)
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise MemoryFullError(
                "The device has no memory left; a smaller --chunk-frames or --recall-chunks, a smaller model or "
                "--device cpu needs less."
            ) from error
        finally:
            with self._changed:
                self._busy = False
                if urgent:
                    self._chunks_from_seconds = time.monotonic() + self._patience_seconds
                self._changed.notify_all()

    def _wait(self, urgent: bool) -> None:
        ticket = object()
        with self._changed:
            self._waiting[urgent].append(ticket)
            try:
                while (wait_seconds := self._wait_seconds(ticket, urgent)) != 0:
                    self._changed.wait(wait_seconds)
                self._busy = True
            finally:
                self._waiting[urgent].remove(ticket)
                self._changed.notify_all()  # of use to others where we were interrupted

    def _wait_seconds(self, ticket: object, urgent: bool) -> float | None:
        """0 when it is this ticket's turn, None until something changes."""
        if self._busy or self._waiting[urgent][0] is not ticket:
            return None
        if urgent:
            return 0
        return None if self._waiting[True] else max(0.0, self._chunks_from_seconds - time.monotonic())


class Engine:
    """A loaded model with its retrieval profile, shared by the sessions it opens."""

    def __init__(self, model: VideoLLM, profile: Profile | None, config: Config | None = None) -> None:
        """profile: which heads retrieve, from `models.calibration`; without one, attention over all heads chooses."""
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
                memory.kv_bits,
            )
            undo.callback(store.close)
            session = Session(self.model, self.profile, self.config.overridden(store.settings), self._turns.take, store)
            undo.pop_all()
        return session


def kept_settings(config: Config) -> dict[str, dict[str, Any]]:
    """What a session that goes on keeps, so that it becomes what it would have been without the break."""
    knobs = ("chunk_frames", "borders", "prefill_chunks", "window_chunks", "carrier_tokens", "kv_bits")
    memory = {knob: getattr(config.memory, knob) for knob in knobs}
    return {
        "read": {"fps": config.read.fps},
        "memory": memory,
        "prune": asdict(config.prune),
        "reuse": asdict(config.reuse),
    }


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
    """An engine for a model by name, with its profile where it has one; arguments as for `load_model`."""
    loaded, config = load_model(model, device, dtype, settings)
    return Engine(loaded, find_profile(loaded), config)


def load_model(
    model: str = "demo",
    device: str = "auto",
    dtype: str = "auto",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[VideoLLM, Config]:
    """A model by name, and the defaults, changed by what the checkpoint recommends, changed by `settings`.

    Raises ModelError (a ValueError) for a model that cannot be had, ValueError for settings that make no sense.
    """
    config = _recommended(model).overridden(settings or {})
    return load(model, device, dtype), config


def _recommended(model: str) -> Config:
    try:
        return Config().overridden(recommended_settings(model))
    except ModelError:
        raise
    except (ValueError, TypeError, AttributeError) as error:  # whatever a file written by hand may hold
        raise ValueError(f"the longlook.json of {model} makes no sense: {error}") from error
