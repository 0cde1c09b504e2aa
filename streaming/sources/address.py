"""What a user types to say where a video comes from, and what of it may be shown.

    clip.mp4                      a file
    rtsp://user@camera/stream     a camera (rtsps too)
    http://host/live.m3u8         HLS, MPEG-TS or MJPEG (https too)
    udp://239.0.0.1:5000          MPEG-TS that is sent here
    rtmp://host/live/key          a stream that is fetched; with ?listen=1 one that is pushed to us
    device:0                      a webcam of this machine
    follow:recording.ts           a file that still grows

An address may hold a password. It is in `url` only; `shown` is what may be printed and kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from streaming.sources.trouble import SourceError

Kind = Literal["file", "rtsp", "http", "udp", "rtmp", "rtmp-listen", "device", "follow"]

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_KINDS: dict[str, Kind] = {
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "http": "http",
    "https": "http",
    "udp": "udp",
    "rtmp": "rtmp",
    "rtmps": "rtmp",
}
_DEFAULT_PORTS = {
    "rtsp": 554,
    "rtsps": 322,
    "http": 80,
    "https": 443,
    "rtmp": 1935,
    "rtmps": 443,
}
# Parameters that say which stream is meant. Any other may be a password, a token or a user.
_HARMLESS = (
    "channel",
    "subtype",
    "stream",
    "profile",
    "unicast",
    "resolution",
    "res",
    "fps",
    "codec",
    "videocodec",
    "camera",
    "listen",
    "pkt_size",
)
_WHOLE_FILES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".wmv", ".mpg", ".mpeg")
_HIDDEN = "..."
_BRIDGES = {
    "srt": 'SRT is not read directly: run "srt-live-transmit {url} udp://127.0.0.1:5000" and '
    "watch udp://127.0.0.1:5000.",
    "dash": "DASH is not read directly: if the server offers HLS too, watch its .m3u8 address; "
    "else turn it into MPEG-TS with ffmpeg and watch udp://127.0.0.1:5000.",
}


@dataclass(frozen=True)
class Address:
    """Where a video comes from.

    url: for the reader, maybe with a password; never to be printed. shown: the same without it.
    place: the path of a file, or the number of a device.
    """

    kind: Kind
    url: str = field(repr=False)
    shown: str
    host: str = ""
    port: int = 0
    place: str = ""

    @property
    def is_live(self) -> bool:
        return self.kind not in ("file", "follow")

    @property
    def user(self) -> str:
        return unquote(urlsplit(self.url).username or "") if self.is_network else ""

    @property
    def password(self) -> str | None:
        return _unquoted(urlsplit(self.url).password) if self.is_network else None

    @property
    def is_network(self) -> bool:
        return self.kind in ("rtsp", "http", "udp", "rtmp", "rtmp-listen")

    def with_password(self, password: str) -> Address:
        """The same place with a password that was not typed into it. Raises SourceError."""
        if not self.user:
            raise SourceError(
                f"A password needs a user: write {_with_user(self.shown)} instead of {self.shown}."
            )
        parts = urlsplit(self.url)
        netloc = f"{quote(self.user, safe='')}:{quote(password, safe='')}@{_host_of(parts.netloc)}"
        return replace(self, url=urlunsplit(parts._replace(netloc=netloc)))

    def at_host(self, host: str) -> Address:
        """The same place by the number of its host, so that the name is not looked up again."""
        parts = urlsplit(self.url)
        login, at, _ = parts.netloc.rpartition("@")
        number = f"[{host}]" if ":" in host else host
        return replace(
            self, url=urlunsplit(parts._replace(netloc=f"{login}{at}{number}:{self.port}"))
        )


def is_address(text: str) -> bool:
    """Whether it names anything but an ordinary file."""
    return _URL.match(text) is not None or text.startswith(("device:", "follow:"))


def parse_address(text: str) -> Address:
    """Raises SourceError for what can't be watched, without repeating a password."""
    if text.startswith("device:"):
        number = text.removeprefix("device:")
        if not re.fullmatch(r"[\w./-]+", number):
            raise SourceError("A device is named by its number, device:0, or its path.")
        return Address("device", text, text, place=number)
    if text.startswith("follow:"):
        path = str(Path(text.removeprefix("follow:")).absolute())
        return Address("follow", path, f"follow:{path}", place=path)
    scheme = _URL.match(text)
    if scheme is None:
        return Address("file", text, text, place=text)
    return _parse_url(text, scheme[1].lower())


def _parse_url(text: str, scheme: str) -> Address:
    if scheme in _BRIDGES or text.split("?")[0].lower().endswith(".mpd"):
        bridge = _BRIDGES.get(scheme, _BRIDGES["dash"])
        raise SourceError(bridge.format(url=shown_url(text)))
    if scheme in ("http", "https") and _is_file_name(text):
        raise SourceError(
            f"{shown_url(text)} is a file on a web server, no stream: download it first (curl -O)."
        )
    if scheme not in _KINDS:
        known = ", ".join(f"{name}://" for name in _KINDS)
        raise SourceError(f"{scheme}:// is not a kind of stream that is read here; {known} are.")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise SourceError("The address has a blank or a control character in it.")
    text = _with_quoted_login(text)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise SourceError(f"{shown_url(text)} has no host or no valid port.") from error
    kind = _KINDS[scheme]
    query = dict(parse_qsl(parts.query))
    if kind == "rtmp" and query.get("listen") == "1":
        kind = "rtmp-listen"
        text = urlunsplit(parts._replace(query=""))
    if kind == "udp":
        if not port:
            raise SourceError(f"{shown_url(text)} needs a port: udp://0.0.0.0:5000.")
    elif not host:
        raise SourceError(f"{shown_url(text)} has no host.")
    return Address(kind, text, shown_url(text), host, port or _DEFAULT_PORTS.get(scheme, 0))


def _is_file_name(url: str) -> bool:
    """Whether the path of a URL ends as files do that are whole, and so no live stream."""
    return urlsplit(url).path.lower().endswith(_WHOLE_FILES)


def shown_url(text: str) -> str:
    """An address without user, password and parameters that may hold either."""
    scheme, _, rest = text.partition("://")
    place, mark, query = rest.partition("?")
    host, slash, path = place[_login_length(place) :].partition("/")
    query = query.partition("#")[0]
    shown = "&".join(_shown_parameter(text) for text in query.split("&")) if query else ""
    return f"{scheme}://{host}{slash}{path.partition('#')[0]}{mark}{shown}"


def _shown_parameter(text: str) -> str:
    name, equals, value = text.partition("=")
    if not equals:
        return _HIDDEN
    return f"{name}={value if name.lower() in _HARMLESS else _HIDDEN}"


def _with_quoted_login(text: str) -> str:
    """The address with a user and password that no reader can take for anything else."""
    scheme, _, rest = text.partition("://")
    length = _login_length(rest.partition("?")[0])
    if not length:
        return text
    user, colon, password = rest[: length - 1].partition(":")
    user, password = (quote(unquote(word), safe="") for word in (user, password))
    return f"{scheme}://{user}{colon}{password}@{rest[length:]}"


def _login_length(place: str) -> int:
    """Characters of the login at the beginning of host and path, its @ included.

    People paste passwords as they are, with @ and / in them. So an @ behind a slash ends the login
    if there is another one before it, or if what stands before the slash can't be a host.
    """
    host = place.partition("/")[0]
    is_host = "@" not in host and re.fullmatch(r"(\[[^]]*\]|[^:]*)(:\d*)?", host) is not None
    return 0 if is_host else place.rfind("@") + 1


def _host_of(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def _with_user(shown: str) -> str:
    scheme, _, rest = shown.partition("://")
    return f"{scheme}://user@{rest}"


def _unquoted(text: str | None) -> str | None:
    return None if text is None else unquote(text)
