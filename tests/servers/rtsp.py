"""An RTSP camera: RTP over TCP or UDP, basic and digest log-in, H.264, HEVC, sender reports.

    python -m tests.servers.rtsp --port 0 [--login cam:secret] [--digest] [--udp-only] [--silent]

prints its port. rtsp://127.0.0.1:PORT/cam has the picture, every other path is not found.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from tests.servers.camera import CameraSettings, add_arguments, film, settings_of

CLOCK_RATE = 90_000
MAX_PAYLOAD = 1200
NTP_EPOCH = 2_208_988_800  # seconds between 1900 and 1970
REALM, NONCE = "camera", "0123456789abcdef"
Send = Callable[[bool, bytes], None]  # whether it is a report, and the packet


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", arguments.port), Client)
        self.arguments = arguments
        self.settings = settings_of(arguments)


class Client(socketserver.StreamRequestHandler):
    """One connection: requests in, answers and interleaved packets out."""

    server: Server

    def setup(self) -> None:
        super().setup()
        self.stopped = threading.Event()
        self.writing = threading.Lock()
        self.transport: Send | None = None
        self.ports: list[socket.socket] = []

    def handle(self) -> None:
        if self.server.arguments.silent:
            self.rfile.read()
            return
        with suppress(OSError):
            while (request := self.read_request()) is not None:
                self.answer(*request)

    def finish(self) -> None:
        self.stopped.set()
        for port in self.ports:
            port.close()
        with suppress(OSError):
            super().finish()

    def read_request(self) -> tuple[str, str, dict[str, str]] | None:
        """Method, URL and headers of the next request; receiver reports in between are ignored."""
        while True:
            first = self.rfile.read(1)
            if not first:
                return None
            if first == b"$":
                _, size = struct.unpack(">BH", self.rfile.read(3))
                self.rfile.read(size)
                continue
            line = (first + self.rfile.readline()).decode()
            headers: dict[str, str] = {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            if not line.strip():
                continue
            method, url, _ = line.split(" ", 2)
            return method, url, headers

    def answer(self, method: str, url: str, headers: dict[str, str]) -> None:
        if method == "OPTIONS":
            self.reply(headers, "200 OK", "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif not self.may_enter(method, headers):
            self.reply(headers, "401 Unauthorized", self.challenge())
        elif "/cam" not in url:
            self.reply(headers, "404 Not Found")
        elif method == "DESCRIBE":
            self.reply(headers, "200 OK", f"Content-Base: {url}/", body=self.description())
        elif method == "SETUP":
            self.set_up(headers)
        elif method == "PLAY":
            self.reply(headers, "200 OK", "Session: 1", "Range: npt=now-")
            threading.Thread(target=self.play, daemon=True).start()
        else:
            self.reply(headers, "200 OK", "Session: 1")

    def reply(self, headers: dict[str, str], status: str, *lines: str, body: str = "") -> None:
        lines = (f"RTSP/1.0 {status}", f"CSeq: {headers.get('cseq', '0')}", *lines)
        if body:
            lines = (*lines, "Content-Type: application/sdp", f"Content-Length: {len(body)}")
        with self.writing:
            self.wfile.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def may_enter(self, method: str, headers: dict[str, str]) -> bool:
        login = self.server.arguments.login
        if not login:
            return True
        given = headers.get("authorization", "")
        if not self.server.arguments.digest:
            return given == f"Basic {base64.b64encode(login.encode()).decode()}"
        fields = dict(re.findall(r'(\w+)="([^"]*)"', given))
        user, _, password = login.partition(":")
        one = md5(f"{user}:{REALM}:{password}")
        two = md5(f"{method}:{fields.get('uri', '')}")
        return fields.get("response") == md5(f"{one}:{NONCE}:{two}")

    def challenge(self) -> str:
        if self.server.arguments.digest:
            return f'WWW-Authenticate: Digest realm="{REALM}", nonce="{NONCE}"'
        return f'WWW-Authenticate: Basic realm="{REALM}"'

    def description(self) -> str:
        name = {"h264": "H264", "hevc": "H265"}[self.server.settings.codec]
        extra = "a=fmtp:96 packetization-mode=1\r\n" if name == "H264" else ""
        return (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\na=control:*\r\n"
            f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 {name}/{CLOCK_RATE}\r\n{extra}"
            "a=control:track1\r\n"
        )

    def set_up(self, headers: dict[str, str]) -> None:
        wanted = headers.get("transport", "")
        is_tcp = "TCP" in wanted
        if is_tcp and self.server.arguments.udp_only:
            self.reply(headers, "461 Unsupported transport")
            return
        if is_tcp:
            self.transport = self.send_interleaved
            answer = "RTP/AVP/TCP;unicast;interleaved=0-1"
        else:
            found = re.search(r"client_port=(\d+)-(\d+)", wanted)
            assert found is not None
            self.transport, ours = self.send_datagrams(int(found[1]), int(found[2]))
            answer = f"RTP/AVP;unicast;client_port={found[1]}-{found[2]};server_port={ours}"
        self.reply(headers, "200 OK", f"Transport: {answer}", "Session: 1;timeout=60")

    def send_interleaved(self, is_report: bool, packet: bytes) -> None:
        with self.writing:
            self.wfile.write(struct.pack(">cBH", b"$", is_report, len(packet)) + packet)

    def send_datagrams(self, media_port: int, report_port: int) -> tuple[Send, str]:
        """A way to send, and the ports it sends from."""
        self.ports = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for port in self.ports:
            port.bind(("127.0.0.1", 0))
        to = [("127.0.0.1", media_port), ("127.0.0.1", report_port)]

        def send(is_report: bool, packet: bytes) -> None:
            self.ports[is_report].sendto(packet, to[is_report])

        return send, "-".join(str(port.getsockname()[1]) for port in self.ports)

    def play(self) -> None:
        assert self.transport is not None
        with suppress(OSError):
            send_pictures(self.server.settings, self.transport, self.stopped)


def send_pictures(settings: CameraSettings, send: Send, stopped: threading.Event) -> None:
    """RTP packets of the camera's pictures, and a sender report every second."""
    sequence = num_packets = num_bytes = 0
    next_report = 0.0
    for shot in film(settings, stopped):
        stamp = (shot.stamp * CLOCK_RATE // settings.fps) & 0xFFFFFFFF
        payloads = list(payloads_of(bytes(shot.packet), settings.codec))
        for place, payload in enumerate(payloads):
            marker = 0x80 if place == len(payloads) - 1 else 0
            header = struct.pack(">BBHII", 0x80, 96 | marker, sequence & 0xFFFF, stamp, 1)
            send(False, header + payload)
            sequence += 1
            num_packets, num_bytes = num_packets + 1, num_bytes + len(payload)
        if time.monotonic() >= next_report:
            next_report = time.monotonic() + 1.0
            taken = settings.epoch + shot.number / settings.fps
            send(True, sender_report(taken, stamp, num_packets, num_bytes))


def sender_report(taken: float, stamp: int, num_packets: int, num_bytes: int) -> bytes:
    """Says at which wall-clock time the picture with this stamp was taken."""
    wall = time.time() - time.monotonic() + taken
    seconds, fraction = divmod(wall + NTP_EPOCH, 1.0)
    ntp = struct.pack(">II", int(seconds), int(fraction * (1 << 32)))
    rest = struct.pack(">III", stamp, num_packets, num_bytes)
    return struct.pack(">BBHI", 0x80, 200, 6, 1) + ntp + rest


def payloads_of(access_unit: bytes, codec: str) -> Iterator[bytes]:
    """The RTP payloads of one picture (RFC 6184, RFC 7798): units whole, or in fragments."""
    header_bytes = 1 if codec == "h264" else 2
    for unit in re.split(rb"\x00\x00\x00?\x01", access_unit)[1:]:
        if len(unit) <= MAX_PAYLOAD:
            yield unit
            continue
        if codec == "h264":
            prefix, kind = bytes([unit[0] & 0xE0 | 28]), unit[0] & 0x1F
        else:
            prefix, kind = bytes([unit[0] & 0x81 | 49 << 1, unit[1]]), unit[0] >> 1 & 0x3F
        body = unit[header_bytes:]
        for start in range(0, len(body), MAX_PAYLOAD):
            first, last = start == 0, start + MAX_PAYLOAD >= len(body)
            yield prefix + bytes([first << 7 | last << 6 | kind]) + body[start:][:MAX_PAYLOAD]


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--login", default="")
    parser.add_argument("--digest", action="store_true")
    parser.add_argument("--udp-only", action="store_true")
    parser.add_argument("--silent", action="store_true", help="accept, and never say a word")
    server: Any = Server(parser.parse_args())
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
