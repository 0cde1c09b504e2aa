"""Streams over HTTP: HLS, MPEG-TS and MJPEG, fetched by us, so that every hop is checked.

FFmpeg follows redirects and playlists wherever they lead. Here each address, also of a redirect
and of every segment of a playlist, is looked up and checked before it is connected to, by the
number that was checked. User and password go to the host they were given for and to no other, and
FFmpeg never sees them.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import av
from av.container import InputContainer

from streaming.sources.address import Address
from streaming.sources.hosts import resolve
from streaming.sources.trouble import Trouble, TroubleError

MAX_REDIRECTS = 5
START_BYTES = 1024  # enough to tell a playlist
_PORTS = {"http": 80, "https": 443}
_PLAYLIST_TYPES = ("application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl")
_BY_STATUS = {
    400: Trouble.NOT_A_STREAM,
    401: Trouble.AUTH_FAILED,
    403: Trouble.FORBIDDEN,
    404: Trouble.NOT_FOUND,
    410: Trouble.NOT_FOUND,
}
_HLS_OPTIONS = {
    # FFmpeg ends the process where it finds our files in place of connections of its own
    "http_persistent": "0",
    "http_multiple": "0",
    # two seconds closer to now than the default
    "live_start_index": "-1",
    "protocol_whitelist": "http,https,tcp,tls",
    "allowed_extensions": "ALL",
    "extension_picky": "0",
}


class WebFile:
    """The body of one answer, as a file that FFmpeg reads from. Closed by its reader."""

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        self._connection = connection
        self._response = response
        self._start = b""
        self.content_type = response.headers.get_content_type()

    def peek(self, num_bytes: int) -> bytes:
        """What the body begins with; it is read again later."""
        while len(self._start) < num_bytes:
            piece = self._response.read1(num_bytes - len(self._start))
            if not piece:
                break
            self._start += piece
        return self._start

    def read(self, num_bytes: int) -> bytes:
        if self._start:
            piece, self._start = self._start[:num_bytes], self._start[num_bytes:]
            return piece
        return self._response.read1(num_bytes)

    def close(self) -> None:
        with suppress(OSError):
            self._connection.close()


class WebOpener:
    """Opens addresses of one source. The time-outs are in seconds, of connecting and of reading."""

    def __init__(
        self, address: Address, allow_private: bool, open_seconds: float, read_seconds: float
    ) -> None:
        self._login = (address.user, address.password or "") if address.user else None
        self._login_host = address.host
        self._allow_private = allow_private
        self._open_seconds = open_seconds
        self._read_seconds = read_seconds
        self.trouble: Exception | None = None  # what a segment failed with

    def open(self, url: str) -> WebFile:
        """Follows redirects. Raises TroubleError, OSError or HTTPException."""
        for _ in range(MAX_REDIRECTS + 1):
            connection, response = self._request(url)
            if response.status not in (301, 302, 303, 307, 308):
                break
            url = urljoin(url, response.headers.get("Location", ""))
            connection.close()
        else:
            raise TroubleError(Trouble.NOT_A_STREAM)
        if response.status >= 400:
            connection.close()
            server_failed = response.status >= 500
            default = Trouble.SERVER_ERROR if server_failed else Trouble.NOT_A_STREAM
            raise TroubleError(_BY_STATUS.get(response.status, default))
        return WebFile(connection, response)

    def open_for_ffmpeg(self, url: str, flags: int, options: dict[str, str]) -> Any:
        """A playlist or a segment of one. Keeps the error, of which FFmpeg tells little."""
        try:
            return self.open(url)
        except (TroubleError, OSError, http.client.HTTPException) as error:
            self.trouble = error
            raise

    def _request(self, url: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise TroubleError(Trouble.NOT_ALLOWED)  # a playlist that leads to a file, for one
        port = parts.port or _PORTS[parts.scheme]
        number = resolve(parts.hostname, port, self._allow_private)[0]
        connection = _Pinned(parts.hostname, port, number, parts.scheme, self._open_seconds)
        try:
            path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request("GET", path, headers=self._headers(parts.hostname))
            response = connection.getresponse()
        except http.client.HTTPException as error:
            connection.close()
            is_closed = isinstance(error, ConnectionError)
            raise TroubleError(Trouble.ENDED if is_closed else Trouble.NOT_A_STREAM) from error
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:
            connection.sock.settimeout(self._read_seconds)
        return connection, response

    def _headers(self, host: str) -> dict[str, str]:
        headers = {"User-Agent": "longlook", "Accept": "*/*"}
        if self._login and host == self._login_host:
            user, password = self._login
            word = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {word}"
        return headers


class _Pinned(http.client.HTTPConnection):
    """A connection to the number that was checked, for the name that was asked for."""

    def __init__(self, host: str, port: int, number: str, scheme: str, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._number = number
        self._name = host
        self._is_secure = scheme == "https"
        if self._is_secure:
            self.default_port = 443

    def connect(self) -> None:
        self.sock = socket.create_connection((self._number, self.port), self.timeout)
        if self._is_secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self._name)


def open_web(
    address: Address,
    allow_private: bool,
    open_seconds: float,
    read_seconds: float,
    stopped: threading.Event,
) -> InputContainer:
    """The container of a stream over HTTP: a playlist is HLS, anything else is what FFmpeg finds.

    Raises TroubleError and errors for `trouble_of`.
    """
    opener = WebOpener(address, allow_private, open_seconds, read_seconds)
    url = _without_login(address.url)
    file = opener.open(url)
    try:
        is_playlist = file.peek(START_BYTES).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"#EXTM3U")
        if is_playlist or file.content_type in _PLAYLIST_TYPES:
            file.close()
            return _open_playlist(url, opener, open_seconds, read_seconds)
        container: Any = av.open(
            file, format=_format_of(file), timeout=(open_seconds, read_seconds)
        )
    except BaseException:
        file.close()
        raise
    assert isinstance(container, InputContainer)
    return container


def _open_playlist(
    url: str, opener: WebOpener, open_seconds: float, read_seconds: float
) -> InputContainer:
    try:
        container: InputContainer = av.open(
            url,
            format="hls",
            options=dict(_HLS_OPTIONS),
            io_open=opener.open_for_ffmpeg,
            timeout=(open_seconds, read_seconds),
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if opener.trouble is not None:
            raise opener.trouble from error
        raise
    return container


def _format_of(file: WebFile) -> str | None:
    """What FFmpeg cannot tell from the bytes alone."""
    if file.content_type == "multipart/x-mixed-replace":
        return "mpjpeg"
    return None


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=unquote(parts.netloc.rpartition("@")[2])))
