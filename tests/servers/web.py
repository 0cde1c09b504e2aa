"""A camera over HTTP: MPEG-TS, HLS and MJPEG, with log-in and redirects.

    python -m tests.servers.web --port 0 [--login cam:secret]

/live.ts, /live.m3u8, /live.mjpeg; /moved/X leads to /X, /away?URL to any URL, /video.txt is no
video, /silent says nothing, /broken fails.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import threading
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.servers.camera import CameraSettings, add_arguments, film, mux, settings_of

SEGMENT_SECONDS = 1
NUM_SEGMENTS = 4


class Segments:
    """The newest HLS segments, cut by a thread of their own at keyframes."""

    def __init__(self, settings: CameraSettings) -> None:
        self.settings = settings
        self.pieces: deque[tuple[int, float, bytes]] = deque(maxlen=NUM_SEGMENTS)
        threading.Thread(target=self.fill, daemon=True).start()

    def fill(self) -> None:
        """Each segment has an encoder of its own, so each begins with a keyframe."""
        for number in itertools.count():
            file = io.BytesIO()
            num_pictures = SEGMENT_SECONDS * self.settings.fps
            mux(self.settings, file, "mpegts", num_pictures)
            self.pieces.append((number, SEGMENT_SECONDS, file.getvalue()))

    def playlist(self) -> str:
        pieces = list(self.pieces)
        first = pieces[0][0] if pieces else 0
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2"]
        lines.append(f"#EXT-X-MEDIA-SEQUENCE:{first}")
        for number, seconds, _ in pieces:
            # the stamps of each segment begin anew
            lines += ["#EXT-X-DISCONTINUITY", f"#EXTINF:{seconds:.3f},", f"segment{number}.ts"]
        return "\n".join(lines) + "\n"

    def piece(self, number: int) -> bytes | None:
        return next((data for index, _, data in self.pieces if index == number), None)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        login = self.server.login
        word = base64.b64encode(login.encode()).decode()
        if login and self.headers.get("Authorization") != f"Basic {word}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        self.server.paths.append(path)
        with suppress(OSError):
            self.answer(path, query)

    def answer(self, path: str, query: str) -> None:
        settings, segments = self.server.settings, self.server.segments
        if path.startswith("/moved/"):
            self.redirect(path.removeprefix("/moved"))
        elif path == "/away":
            self.redirect(unquote(query))
        elif path == "/live.ts":
            self.begin("video/mp2t")
            mux(settings, self.wfile, "mpegts")
        elif path == "/live.mjpeg":
            self.send_pictures()
        elif path == "/live.m3u8":
            while not segments.pieces:
                time.sleep(0.05)
            self.send(segments.playlist().encode(), "application/vnd.apple.mpegurl")
        elif path == "/stranger.m3u8":
            lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", unquote(query))
            self.send("\n".join(lines).encode(), "application/vnd.apple.mpegurl")
        elif path.startswith("/segment"):
            piece = segments.piece(int(path.removeprefix("/segment").removesuffix(".ts")))
            if piece is None:
                self.send_error(404)
            else:
                self.send(piece, "video/mp2t")
        elif path == "/video.txt":
            self.send(b"This is no video. " * 1000, "text/plain")
        elif path == "/silent":
            self.begin("video/mp2t")
            time.sleep(3600)
        else:
            self.send_error(500 if path == "/broken" else 404)

    def redirect(self, url: str) -> None:
        self.send_response(302)
        self.send_header("Location", url)
        self.end_headers()

    def begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def send(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_pictures(self) -> None:
        self.begin("multipart/x-mixed-replace; boundary=picture")
        settings = self.server.settings
        camera = CameraSettings(settings.epoch, settings.fps, "mjpeg", 1, settings.scale)
        for shot in film(camera):
            data = bytes(shot.packet)
            head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", arguments.port), Handler)
        self.settings = settings_of(arguments)
        self.login = arguments.login
        self.paths: list[str] = []
        self.segments = Segments(self.settings)


def main() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--login", default="")
    server = Server(parser.parse_args())
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
