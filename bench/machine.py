"""What a measurement was made on: hardware, versions, commit; and how it is written down."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, str]:
    """The machine and the code, as plain data for a result file."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    changes = _git("status", "--porcelain", "--", ".", ":!bench/results")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + (" with changes" if changes else ""),
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} used by torch",
        "gpu": gpu,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


def save(
    out: Path, title: str, about: Mapping[str, Any], lines: Sequence[str], data: Mapping[str, Any]
) -> None:
    """`out`.json with `data`, and `out`.md with `lines`, both with what they were measured on."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(f"{out.name}.json").write_text(
        json.dumps({"about": about, **data}, indent=1) + "\n"
    )
    told = [f"- {name}: {value}" for name, value in about.items()]
    out.with_name(f"{out.name}.md").write_text("\n".join([f"# {title}", "", *told, "", *lines, ""]))


def now(device: torch.device) -> float:
    """The clock's seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def counted(run: Callable[[], T]) -> tuple[T, float]:
    """What a run gives, and the giga multiply-adds of its matrices; of attention all pairs,
    whatever the mask.
    """
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        made = run()
    return made, counter.get_total_flops() / 2e9


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Of shapes [batch, heads, n, dim]; torch's counter knows the kernels of GPUs only."""
    return 2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])


def _git(*words: str) -> str:
    found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or ("" if words[0] == "status" else "unknown")


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
