"""The one kind of error that is for the user: a leaf, so that every part can raise it."""

from __future__ import annotations


class LonglookError(ValueError):
    """Something that the user can mend; the message is one sentence for the user.

    It names no option of the command line, which adds its own advice. Any other error is a bug
    and keeps its traceback.
    """

    def __init__(self, message: str, knob: str = "") -> None:
        """knob: of the configuration, such as memory.host_bytes; more of it would have helped."""
        super().__init__(message)
        self.knob = knob
