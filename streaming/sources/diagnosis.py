"""From an error of opening or reading to what is wrong with a source.

Exceptions of the reader hold the URL with its password, so nothing of their text goes further than
here.
"""

from __future__ import annotations

import errno
import ssl

from av import error as av_error

from streaming.sources.trouble import Trouble, TroubleError

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
