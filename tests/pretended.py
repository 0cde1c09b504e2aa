"""A device that is not the CPU, made of the CPU: it refuses tensors of two devices in one
operation, as CUDA does.

What runs here has been brought to where the model is; what was forgotten on the CPU fails with the
operation's name.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
# what is there, also by an index on the CPU
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_"}


class There(Tensor):
    """A tensor on the device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"numbers on {self.device} are not numpy's; .cpu() brings them back")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _done(func, args, kwargs or {})


class _Factories(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes new tensors where they are asked for; tensors that are there already come to `There` by
    themselves.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Tensors of Python's numbers are made past every dispatch: here on the CPU, and brought. As an
    index they stay.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            tensor, index, *value = args
            parts = index if isinstance(index, tuple) else (index,)
            return func(tensor, tuple(_as_index(x) for x in parts), *value)
        if func not in (torch.tensor, torch.as_tensor) or named.get("device") is None:
            return func(*args, **named)
        device = named.pop("device")
        return func(*_held(args), **named).to(device)


def _as_index(part: Any) -> Any:
    """A list as torch takes it for an index, an empty one too."""
    if not isinstance(part, list):
        return part
    return torch.tensor(part) if part else torch.empty(0, dtype=torch.long)


def _held(given: Any) -> Any:
    return tree_map(lambda x: x.held if isinstance(x, There) else x, given)


def _done(operation: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    tensors = [x for x in tree_flatten((given, named))[0] if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    name = operation._schema.name
    may_mix = name == "aten::copy_" or (name in INDEXED and isinstance(tensors[0], There))
    if there and not may_mix and any(x.ndim for x in tensors if not isinstance(x, There)):
        raise RuntimeError(f"{name}: tensors of two devices")
    device = named.get("device")
    goes_there = bool(there) if device is None else torch.device(device).type == NAME
    if goes_there and device is not None:
        named = {**named, "device": torch.device("cpu")}
    made = operation(*_held(given), **_held(named))
    if name == "aten::copy_":
        return tensors[0]
    if operation._schema.is_mutable and there:
        return there[0] if isinstance(made, Tensor) else made
    return tree_map(lambda x: There(x) if isinstance(x, Tensor) and goes_there else x, made)


@contextmanager
def pretended_device() -> Iterator[None]:
    """`torch.device(NAME)` is there for this thread and those that it starts, as long as the block
    lasts.
    """
    _register()
    run = threading.Thread.run

    def run_with_device(thread: threading.Thread) -> None:
        with _Literals(), _Factories():  # type: ignore[no-untyped-call]
            run(thread)

    with _Literals(), _Factories(), patch.object(threading.Thread, "run", run_with_device):  # type: ignore[no-untyped-call]
        yield


@functools.cache
def _register() -> None:
    """Once for a process."""
    _setup_privateuseone_for_python_backend(NAME)
