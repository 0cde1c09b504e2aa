"""Who may import whom. The rule of the house, held by reading every import of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# Leaves import nothing of ours. Everything else: what a part may import, longest matching prefix of
# the importer first.
LEAVES = ("errors", "frames", "memory.chunk")
BELOW_SESSIONS = ("config", "errors", "frames", "keyframes", "memory", "models")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(LEAVES, ()),
    "config": ("errors",),
    "keyframes": ("config", "errors", "frames", "keyframes"),
    "memory": ("config", "errors", "frames", "memory"),
    "models": BELOW_SESSIONS,
    "streaming": ("config", "errors", "frames", "streaming"),
    "streaming.events": ("errors", "frames"),
    "streaming.sources": ("errors", "frames", "streaming.sources"),
    "streaming.time_query": ("errors", "streaming.time_query"),
    "streaming.each": (*BELOW_SESSIONS, "streaming"),
    "streaming.retriever": (*BELOW_SESSIONS, "streaming"),
    "streaming.ingest": (*BELOW_SESSIONS, "streaming"),
    "streaming.session": (*BELOW_SESSIONS, "streaming"),
    "streaming.engine": (*BELOW_SESSIONS, "streaming"),
    "archive": (*BELOW_SESSIONS, "streaming", "archive"),
    "ui": ("config", "errors", "frames", "streaming", "ui"),
    "ui.cli": (
        "config",
        "errors",
        "frames",
        "streaming",
        "memory.session_names",
        "memory.folders",
        "memory.plain_files",
        "memory.timeline",
        "memory.disk_tier.check_is_session",
        "models.checkpoint",
        "models.calibration",
        "models.loading.identify",
        "archive",
        "ui",
    ),
    "app": ("ui",),
    "training": (*BELOW_SESSIONS, "streaming", "training"),
    "bench": (*BELOW_SESSIONS, "streaming", "training", "bench"),
    "__main__": ("app",),
}
OURS = (
    "archive",
    "config",
    "errors",
    "frames",
    "streaming",
    "memory",
    "keyframes",
    "models",
    "ui",
    "app",
    "bench",
    "training",
    "tests",
)
# only these and what lies above see them
UPWARD = ("streaming.session", "streaming.engine")
SEES_SESSIONS = (*UPWARD, "archive", "ui", "app", "bench")

# Module or name of another project: the only places that may touch it.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "faiss": ("memory.retrieval_index",),
    "decord": ("streaming.sources.decord_child",),
    "gradio": ("ui.demo",),
    "scenedetect": ("bench.keyframes",),
    "cv2": ("bench.keyframes", "training.painters"),
    "av": ("streaming", "training", "app", "bench"),
    "torch": (
        "streaming.session",
        "streaming.engine",
        "memory",
        "keyframes",
        "models",
        "archive.workers",
        "training",
        "bench",
    ),
    "transformers": ("models", "training", "bench.rivals"),
    "transformers.cache_utils": ("models.decoder",),
    "transformers.modeling_utils": ("models.decoder",),
    "transformers.masking_utils": ("models.decoder",),
    "transformers.integrations": ("models.decoder",),
    "transformers.AttentionInterface": ("models.decoder",),
    "transformers.AttentionMaskInterface": ("models.decoder",),
    "transformers.Cache": ("models.decoder",),
    "transformers.DynamicCache": ("training.stock_cache",),
    "transformers.StaticCache": ("models.decoder",),
}


@dataclass(frozen=True)
class Import:
    """`importer` (a module of ours) uses `target`, a dotted module or a name inside one."""

    importer: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def is_inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, importer: str) -> Iterator[Import]:
    """Every module and imported name, wherever in the file the import stands; `import_module("x")`
    counts too.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(importer, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (
                Import(importer, f"{base}.{alias.name}", node.lineno) for alias in node.names
            )
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "transformers"
        ):
            yield Import(importer, f"transformers.{node.attr}", node.lineno)
        elif isinstance(node, ast.Call) and is_dynamic_import(node):
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield Import(importer, argument.value, node.lineno)


def is_dynamic_import(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in ("import_module", "__import__") and bool(call.args)


def complaint(found: Import) -> str | None:
    """What is wrong with one import, or None."""
    if found.target.startswith("."):
        return f"{found}: imports are absolute here"
    if any(is_inside(found.target, name) for name in OURS):
        return complaint_inside(found)
    for name, places in ONLY_IN.items():
        if is_inside(found.target, name) and not any(
            is_inside(found.importer, place) for place in places
        ):
            return f"{found}: only {', '.join(places)} may"
    return None


def complaint_inside(found: Import) -> str | None:
    if any(is_inside(found.target, name) for name in UPWARD):
        if not any(is_inside(found.importer, name) for name in SEES_SESSIONS):
            return f"{found}: sessions are seen from above only"
        return None
    rule = max(
        (name for name in MAY_IMPORT if is_inside(found.importer, name)), key=len, default=None
    )
    if rule is None:
        return f"{found}: {found.importer} has no place in the layers yet"
    if not any(is_inside(found.target, name) for name in MAY_IMPORT[rule]):
        return f"{found}: {rule} may import {', '.join(MAY_IMPORT[rule]) or 'nothing of ours'}"
    return None


def source_files() -> list[Path]:
    folders = ("streaming", "memory", "keyframes", "models", "ui", "bench", "training")
    nested = [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    return sorted(REPOSITORY.glob("*.py")) + nested


def complaints(source: str, importer: str) -> list[str]:
    return [text for found in imports_of(source, importer) if (text := complaint(found))]


def test_every_import_keeps_to_the_layers() -> None:
    files = source_files()
    assert len(files) > 10, "the search for source files found too little to mean anything"
    found = [
        text for path in files for text in complaints(path.read_text(), module_of(path, REPOSITORY))
    ]
    assert not found, "\n".join(found)


def test_an_offending_file_is_caught() -> None:
    offences = {
        "memory.kv_memory": "from models.video_llm import VideoLLM",
        "memory.chunk": "import config",
        "config": "from frames import Frame",
        "errors": "from config import Config",
        "keyframes.detector": "from memory.chunk import KVChunk",
        "models.decoder": "from streaming.session import Session",
        "models.video_llm": "from ui.render import clock",
        "streaming.reader": "from streaming.engine import Engine",
        "streaming.sources.file": "def late():\n    from memory.kv_memory import KVMemory",
        "streaming.session": "import ui.demo",
        "ui.render": "from memory.chunk import KVChunk",
        "ui.demo": "import torch",
        "ui.cli.opening": "from memory.disk_tier import SessionStore",
        "ui.cli.commands": "import torch",
        "ui.page": "import gradio as gr",
        "memory.recall_policy": "import faiss",
        "keyframes.cuts": "import cv2",
        "models.calibration": "import importlib\nfaiss = importlib.import_module('faiss')",
        "streaming.live_source": "from decord import VideoReader",
        "models.qwen3_vl": "from transformers import DynamicCache",
        "models.partial_vit": "import transformers\ncache = transformers.DynamicCache()",
        "models.llava_onevision": "from transformers.cache_utils import Cache",
        "memory.disk_tier": "from transformers import AutoConfig",
        "memory.retrieval_index": "from .chunk import KVChunk",
        "app": "from training.world import render",
        "newcomer": "import config",
    }
    for importer, source in offences.items():
        assert complaints(source, importer), f"{importer} got away with: {source}"


def test_what_the_layers_allow_is_let_through() -> None:
    allowed = {
        "memory.kv_memory": (
            "import torch\nfrom config import MemoryConfig\nfrom memory.chunk import KVChunk"
        ),
        "memory.retrieval_index": "import faiss",
        "models.decoder": (
            "from transformers import AttentionInterface\nfrom memory.chunk import KVChunk"
        ),
        "models.qwen3_vl": "from transformers import Qwen3VLForConditionalGeneration",
        "streaming.session": (
            "from memory.kv_memory import KVMemory\nfrom models.video_llm import VideoLLM"
        ),
        "streaming.sources.decord_child": "import decord",
        "ui.demo": (
            "import gradio as gr\nfrom streaming.engine import Engine\nfrom ui.render import clock"
        ),
        "bench.asked": "from training.questions import ask",
        "app": "from ui.cli import commands",
        "ui.cli.opening": (
            "from streaming.engine import Engine\nfrom models.checkpoint import source_of"
        ),
    }
    for importer, source in allowed.items():
        assert not complaints(source, importer), complaints(source, importer)
