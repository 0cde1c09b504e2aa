"""Questions that the page suggests: only what the loaded model can answer about the loaded video."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

SUGGESTIONS_PATH = Path(__file__).resolve().parent.parent / "samples" / "suggestions.json"
FOR_ANY_VIDEO = (
    "What happens in this video?",
    "What is shown at the beginning?",
    "What is shown at the end?",
)


def suggestions_for(video: Path, is_demo: bool, seen_seconds: float) -> tuple[str, ...]:
    """Suggested questions about what was seen of `video` so far.

    is_demo: the embedded model understands nothing but the bundled samples, so it gets none about other videos.
    """
    if is_bundled(video):
        known = bundled_suggestions()[video.stem]
        return tuple(item["question"] for item in known if item["after_seconds"] <= seen_seconds)
    return () if is_demo or not seen_seconds else FOR_ANY_VIDEO


def is_bundled(video: Path) -> bool:
    return video.resolve().parent == SUGGESTIONS_PATH.parent and video.stem in bundled_suggestions()


@cache
def bundled_suggestions() -> dict[str, list[dict[str, Any]]]:
    """Per sample, in time order: question, its one right answer, and the second after which it can be answered."""
    found: dict[str, list[dict[str, Any]]] = json.loads(SUGGESTIONS_PATH.read_text(encoding="utf-8"))
    return found
