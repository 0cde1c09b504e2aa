"""What is asked of every segment of an archive, and how long a segment is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from errors import LonglookError
from streaming.span_prompts import SpanPrompt

CAPTION_PROMPT = "Describe the video."
MAX_CHOICES = 64
TEXT_LENGTH = 200  # characters of a text field whose schema names no maxLength


@dataclass(frozen=True)
class Field:
    """One value that is asked of every segment.

    kind: "boolean", "integer", "choice" or "text". choices: the allowed answers as words, of
    "choice" and "integer". max_length: characters of a "text".
    """

    name: str
    question: str
    kind: str
    choices: tuple[str, ...] = ()
    max_length: int = TEXT_LENGTH

    def prompt(self) -> SpanPrompt:
        """How the model is asked."""
        if self.kind == "boolean":
            return SpanPrompt(self.question, "yes_no")
        if self.kind in ("choice", "integer"):
            return SpanPrompt(self.question, "choice", self.choices)
        return SpanPrompt(self.question)

    def value(self, text: str) -> bool | int | str:
        """The model's words as a value of the schema."""
        if self.kind == "boolean":
            return text == "yes"
        if self.kind == "integer":
            return int(text)
        return text if self.kind == "choice" else text[: self.max_length].rstrip()


@dataclass(frozen=True)
class CaptionSettings:
    """Everything that an archive's captions depend on, beside model and videos.

    min_seconds, max_seconds: of a segment; one ends at a cut where it is long enough.
    """

    prompt: str = CAPTION_PROMPT
    fields: tuple[Field, ...] = ()
    min_seconds: float = 2.0
    max_seconds: float = 8.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise LonglookError("the caption's prompt is empty")
        if not 0 < self.min_seconds <= self.max_seconds:
            raise LonglookError(
                f"segments need 0 < least <= most seconds, not {self.min_seconds:g} and "
                f"{self.max_seconds:g}"
            )
        names = [field.name for field in self.fields]
        for name in names:
            if names.count(name) > 1:
                raise LonglookError(f"there are two fields with the name {name!r}")

    def fingerprint(self, model_id: str, config: Mapping[str, Any]) -> str:
        """Sixteen hex digits: the same settings, model and configuration have the same."""
        told = json.dumps([asdict(self), model_id, config], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def prompts(self) -> list[SpanPrompt]:
        """The caption's prompt, then those of the fields."""
        return [SpanPrompt(self.prompt), *(field.prompt() for field in self.fields)]


def fields_of(schema: Mapping[str, Any]) -> tuple[Field, ...]:
    """The fields of a JSON schema: an object with boolean, integer, enum and string properties.

    A property's "description" is the question. Raises LonglookError for what can't be asked.
    """
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or schema.get("type", "object") != "object":
        raise LonglookError('the schema must be of an object with "properties"')
    if not properties:
        raise LonglookError("the schema has no properties")
    return tuple(_field(name, spec) for name, spec in properties.items())


def _field(name: str, spec: Any) -> Field:
    if not isinstance(spec, Mapping):
        raise LonglookError(f"property {name!r} of the schema is no object")
    question = str(spec.get("description") or f"What is the {name.replace('_', ' ')}?")
    if "enum" in spec:
        choices = tuple(str(choice) for choice in spec["enum"])
        if not 2 <= len(set(choices)) <= MAX_CHOICES or len(set(choices)) != len(choices):
            raise LonglookError(
                f"property {name!r} needs 2 to {MAX_CHOICES} different answers in its enum"
            )
        return Field(name, question, "choice", choices)
    kind = spec.get("type")
    if kind == "boolean":
        return Field(name, question, "boolean")
    if kind == "integer":
        low, high = spec.get("minimum"), spec.get("maximum")
        if not isinstance(low, int) or not isinstance(high, int):
            raise LonglookError(f"property {name!r} is an integer and needs minimum and maximum")
        if not 1 <= high - low < MAX_CHOICES:
            raise LonglookError(
                f"property {name!r} allows {high - low + 1} numbers; it must be 2 to {MAX_CHOICES}"
            )
        return Field(name, question, "integer", tuple(str(n) for n in range(low, high + 1)))
    if kind == "string":
        return Field(name, question, "text", max_length=int(spec.get("maxLength", TEXT_LENGTH)))
    raise LonglookError(
        f"property {name!r} has the type {kind!r}; boolean, integer, string and enum can be asked"
    )
