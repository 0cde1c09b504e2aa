"""What may be typed, what of it may be shown, and which machines a stranger may reach."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from errors import LonglookError
from streaming.sources.address import is_address, parse_address
from streaming.sources.connection import Connection
from streaming.sources.diagnosis import trouble_of
from streaming.sources.hosts import is_public, resolve
from streaming.sources.source import DEFAULT_TIMING
from streaming.sources.trouble import SourceError, Trouble, TroubleError

SECRETS = (
    "rtsp://cam:hushhush@host/cam",
    "rtsp://cam:hush@hush/x@host:8554/cam?channel=1",
    "rtsp://hushhush@host/cam",
    "http://host/live.m3u8?token=hushhush&channel=2",
    "http://host/cam?user=hushhush&pwd=hushhush",
    "http://host/cam?hushhush",
    "http://host/cam#hushhush",
    "https://u:hushhush@host:8443/a/b.ts?stream=1",
    "rtmp://u:hushhush@host/live/cam",
)


@pytest.mark.parametrize("url", SECRETS)
def test_what_may_be_shown_holds_no_secret(url: str) -> None:
    address = parse_address(url)
    shown = f"{address} {address.shown}"
    for piece in ("hush", "cam:", "u:"):
        assert piece not in shown
    assert "host" in address.shown and address.host == "host"


def test_what_says_which_stream_is_meant_is_shown() -> None:
    shown = parse_address("rtsp://a:b@host:8554/Streaming/Channels/101?channel=1&subtype=0").shown
    assert shown == "rtsp://host:8554/Streaming/Channels/101?channel=1&subtype=0"


@pytest.mark.parametrize(
    ("url", "user", "password"),
    (
        ("rtsp://cam:p@ss:w/rd@host/cam", "cam", "p@ss:w/rd"),
        ("rtsp://cam:p%40ss@host/cam", "cam", "p@ss"),
        ("rtsp://cam@host/cam", "cam", None),
        ("rtsp://host/user@place", "", None),
    ),
)
def test_passwords_are_read_as_people_paste_them(url: str, user: str, password: str | None) -> None:
    address = parse_address(url)
    assert (address.user, address.password, address.host) == (user, password, "host")


def test_a_password_that_is_given_later_is_put_in() -> None:
    address = parse_address("rtsp://cam@host:8554/cam").with_password("p@ss/w")
    assert address.password == "p@ss/w" and address.shown == "rtsp://host:8554/cam"
    with pytest.raises(LonglookError, match="needs a user"):
        parse_address("rtsp://host/cam").with_password("secret")


@pytest.mark.parametrize(
    ("text", "kind"),
    (
        ("clip.mp4", "file"),
        ("device:0", "device"),
        ("follow:recording.ts", "follow"),
        ("rtsps://host/x", "rtsp"),
        ("HTTP://host/x.m3u8", "http"),
        ("udp://239.0.0.1:5000", "udp"),
        ("rtmp://host/live/x", "rtmp"),
        ("rtmp://0.0.0.0/live/x?listen=1", "rtmp-listen"),
    ),
)
def test_every_kind_of_source_has_its_word(text: str, kind: str) -> None:
    assert parse_address(text).kind == kind
    assert is_address(text) is (kind != "file")


@pytest.mark.parametrize(
    ("text", "told"),
    (
        ("srt://host:9000?passphrase=hushhush", "srt-live-transmit"),
        ("https://host/live.mpd", "DASH is not read"),
        ("gopher://host/x", "not a kind of stream"),
        ("rtsp:///cam", "no host"),
        ("rtsp://host:99999/cam", "no valid port"),
        ("udp://239.0.0.1", "needs a port"),
        ("rtsp://host/a b", "a blank"),
    ),
)
def test_what_cannot_be_read_is_told_in_a_sentence_without_secrets(text: str, told: str) -> None:
    with pytest.raises(LonglookError, match=told) as error:
        parse_address(text)
    assert "hushhush" not in str(error.value)


@pytest.mark.parametrize(
    "number",
    (
        "127.0.0.1",
        "10.0.0.5",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ),
)
def test_machines_nearby_are_not_public(number: str) -> None:
    assert not is_public(number)


def test_machines_of_the_internet_are_public() -> None:
    assert is_public("1.1.1.1") and is_public("2606:4700:4700::1111")


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, port: int, type: int) -> list[Any]:
        found = ("1.1.1.1", "127.0.0.1")
        return [(socket.AF_INET, type, 0, "", (number, port)) for number in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert resolve("host", 80, allow_private=True) == ["1.1.1.1", "127.0.0.1"]
    with pytest.raises(TroubleError) as error:
        resolve("host", 80, allow_private=False)
    assert error.value.trouble is Trouble.NOT_ALLOWED


@pytest.mark.parametrize(
    "text",
    (
        "udp://0.0.0.0:5000",
        "device:0",
        "rtmp://0.0.0.0/live/x?listen=1",
        "rtsp://127.0.0.1:1/cam",
        "http://localhost:1/x.ts",
        "http://[::1]:1/x.ts",
    ),
)
def test_a_stranger_reaches_nothing_nearby(text: str) -> None:
    import threading

    with pytest.raises(TroubleError) as error:
        Connection(parse_address(text), False, DEFAULT_TIMING, lambda: 0.0, threading.Event())
    assert error.value.trouble is Trouble.NOT_ALLOWED


def test_errors_are_told_by_their_kind_and_never_by_their_text() -> None:
    assert trouble_of(ConnectionRefusedError("rtsp://cam:hushhush@host")) is Trouble.REFUSED
    assert trouble_of(OSError(98, "hushhush")) is Trouble.IN_USE
    assert trouble_of(RuntimeError("hushhush")) is Trouble.FAILED
    for trouble in Trouble:
        assert trouble.code and trouble.advice


@pytest.mark.parametrize("name", ["a.mp4", "deep/b.MKV?token=1", "c.webm#t=3"])
def test_a_whole_file_on_a_web_server_is_no_stream(name: str) -> None:
    with pytest.raises(SourceError, match="download it first") as caught:
        parse_address(f"https://me:secret@example.com/{name}")
    assert "secret" not in str(caught.value) and "token=1" not in str(caught.value)
    assert parse_address("https://example.com/live.m3u8").is_live
    assert parse_address("https://example.com/stream.ts").is_live
