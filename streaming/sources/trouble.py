"""Why a source gives no pictures, in words that a person understands, each with what to do.

The reader's errors are told apart in `diagnosis.py`.
"""

from __future__ import annotations

from enum import Enum

from errors import LonglookError


class SourceError(LonglookError):
    """What was given to watch cannot be watched; the message is one sentence for the user."""


class Trouble(Enum):
    """Each has a short name, what to do, and whether trying again soon would do harm."""

    AUTH_FAILED = ("auth failed", "check the user and the password", True)
    FORBIDDEN = ("forbidden", "this user may not see this stream; check its rights", True)
    NOT_FOUND = ("not found", "the server is there, but has no such stream; check the path", True)
    REFUSED = ("refused", "nothing listens there; check the port, and that the camera is on", False)
    UNREACHABLE = ("unreachable", "check the network and the address", False)
    NAME_NOT_KNOWN = ("name not known", "check the spelling of the host, and the network", False)
    TIMED_OUT = (
        "timed out",
        "it does not answer; check the address, the network, a firewall",
        False,
    )
    ENDED = ("ended", "the other side closed the stream", False)
    NO_VIDEO = ("no video in it", "check that this is the address of the video stream", True)
    CODEC = ("codec not supported", "set the camera to H.264, H.265 or MJPEG", True)
    NO_PICTURE = ("no picture", "data comes, but nothing that can be decoded", False)
    NOT_A_STREAM = ("not a stream", "what comes from there is no video that can be read", True)
    SERVER_ERROR = (
        "server error",
        "the server reports a failure of its own; look at its log",
        False,
    )
    TLS = ("no secure connection", "its certificate is not valid or its TLS is too old", True)
    NOT_ALLOWED = ("not allowed", "private addresses must be allowed by who runs this", True)
    IN_USE = ("in use", "another program reads it already", False)
    UNSUPPORTED = ("not supported", "this kind of stream is not read here", True)
    NO_DEVICE = (
        "no such device",
        "check the number of the camera, and that it is plugged in",
        False,
    )
    STUCK = ("stuck", "reading hung; it was begun anew", False)
    FAILED = ("failed", "reading it failed in an unknown way", False)

    def __init__(self, code: str, advice: str, is_slow: bool) -> None:
        self.code = code
        self.advice = advice
        self.is_slow = is_slow  # cameras lock out who tries a wrong password too often


class TroubleError(Exception):
    """A source cannot be read just now; holds no text from outside."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.code)
        self.trouble = trouble
