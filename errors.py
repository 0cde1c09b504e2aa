"""What a user is told when something goes wrong: a leaf, so that every part can say it."""

from __future__ import annotations

from dataclasses import dataclass


class LonglookError(ValueError):
    """Something that the user can mend; the message is one sentence for the user.

    It names no option of the command line, which adds its own advice. Any other error is a bug
    and keeps its traceback.
    """

    def __init__(self, message: str, knob: str = "") -> None:
        """knob: of the configuration, such as memory.host_bytes; more of it would have helped."""
        super().__init__(message)
        self.knob = knob


@dataclass(frozen=True)
class Notice:
    """Something the user should know that did not stop the work; one sentence.

    knob: of the configuration, such as memory.host_bytes, if more of it would have helped.
    """

    text: str
    knob: str = ""
