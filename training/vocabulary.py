"""Writes the words of the embedded model's tokenizer: those of its answers, and those that phrases
are composed of.

    python -m training.vocabulary

Words that only questions of another world use stay unknown on purpose.
"""

from __future__ import annotations

import re

import numpy as np
import typer

from models.demo.tokenizer import OTHER_ANSWER, WORDS, build_tokenizer
from models.demo.world import COLOURS, MOTIONS, SHAPES
from training.phrases import PATTERNS, compose
from training.questions import MORE, MOTION_WORDS, NOT_SHOWN, NOTHING, THEN

DRAWS = 1000  # of each pattern
ALWAYS = ("user", "assistant", "a", "an", "and", "the", "yes", "no", "digit", "seconds")


def words() -> list[str]:
    """In alphabetical order."""
    read = build_tokenizer().backend_tokenizer.normalizer.normalize_str
    answers = " ".join(
        [OTHER_ANSWER, *MOTION_WORDS, NOT_SHOWN, NOTHING, THEN, MORE, *SHAPES, *COLOURS, *MOTIONS]
    )
    found = {*ALWAYS, *re.findall(r"[a-z]+", answers.lower())}
    rng = np.random.default_rng(0)
    for patterns in PATTERNS.values():
        for pattern in patterns:
            for _ in range(DRAWS):
                text = re.sub(r"\{\w+\}", " ", compose(rng, pattern))
                found |= set(re.findall(r"[a-z]+", read(text)))
    return sorted(found)


def main() -> None:
    """Write the words, one a line."""
    WORDS.write_text("\n".join(words()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
