"""Why a source gives no pictures, in words that a person understands, each with what to do.

Exceptions of the reader hold the URL with its password, so nothing of their text goes further than
here.
"""

from __future__ import annotations

import errno
import ssl
from enum import Enum

from av import error as av_error


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


_BY_TYPE: list[tuple[type[Exception], Trouble]] = [
    (av_error.HTTPUnauthorizedError, Trouble.AUTH_FAILED),
    (av_error.HTTPForbiddenError, Trouble.FORBIDDEN),
    (av_error.HTTPNotFoundError, Trouble.NOT_FOUND),
    (av_error.HTTPBadRequestError, Trouble.NOT_A_STREAM),
    (av_error.HTTPServerError, Trouble.SERVER_ERROR),
    (av_error.ProtocolNotFoundError, Trouble.UNSUPPORTED),
    (av_error.DemuxerNotFoundError, Trouble.UNSUPPORTED),
    (av_error.DecoderNotFoundError, Trouble.CODEC),
    (av_error.PatchWelcomeError, Trouble.CODEC),
    (av_error.ExitError, Trouble.TIMED_OUT),
    (av_error.InvalidDataError, Trouble.NOT_A_STREAM),
    (av_error.EOFError, Trouble.ENDED),
    (ssl.SSLError, Trouble.TLS),
    (ConnectionRefusedError, Trouble.REFUSED),
    (ConnectionResetError, Trouble.ENDED),
    (BrokenPipeError, Trouble.ENDED),
    (TimeoutError, Trouble.TIMED_OUT),
    (FileNotFoundError, Trouble.NO_DEVICE),
    (PermissionError, Trouble.FORBIDDEN),
]
_BY_ERRNO = {
    errno.EADDRINUSE: Trouble.IN_USE,
    errno.EBUSY: Trouble.IN_USE,
    errno.ETIMEDOUT: Trouble.TIMED_OUT,
    errno.EHOSTUNREACH: Trouble.UNREACHABLE,
    errno.ENETUNREACH: Trouble.UNREACHABLE,
    errno.EADDRNOTAVAIL: Trouble.UNREACHABLE,
    errno.ENODEV: Trouble.NO_DEVICE,
    errno.EIO: Trouble.ENDED,
}


def trouble_of(error: Exception) -> Trouble:
    """What an error of opening or reading means; its text is not looked at."""
    if isinstance(error, TroubleError):
        return error.trouble
    for kind, trouble in _BY_TYPE:
        if isinstance(error, kind):
            return trouble
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_ERRNO.get(error.errno, Trouble.FAILED)
    return Trouble.FAILED
