"""Questions that the page suggests: only what the model can answer about the video."""

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

    is_demo: whether the embedded model answers, which understands nothing but the samples.
    """
    if is_bundled(video):
        known = bundled_suggestions()[video.stem]
        return tuple(item["question"] for item in known if item["after_seconds"] <= seen_seconds)
    return () if is_demo or not seen_seconds else FOR_ANY_VIDEO


def is_bundled(video: Path) -> bool:
    return video.resolve().parent == SUGGESTIONS_PATH.parent and video.stem in bundled_suggestions()


@cache
def bundled_suggestions() -> dict[str, list[dict[str, Any]]]:
    """Per sample: questions with their right answers and the second from which they have them."""
    found: dict[str, list[dict[str, Any]]] = json.loads(
        SUGGESTIONS_PATH.read_text(encoding="utf-8")
    )
    return found
