"""A camera over HTTP: MPEG-TS, HLS and MJPEG, with log-in and redirects.

    python -m tests.servers.web --port 0 [--login cam:secret]

/live.ts, /live.m3u8, /live.mjpeg; /moved/X leads to /X, /away?URL to any URL, /video.txt is no
video, /silent says nothing, /broken fails.
"""

from __future__ import annotations

import argparse
import base64
import tempfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from tests.servers.camera import CameraSettings, add_arguments, film, mux, settings_of

HLS_OPTIONS = {
    "hls_time": "1",
    "hls_list_size": "4",
    "hls_flags": "delete_segments+temp_file",
}


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
        settings = self.server.settings
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
            playlist = self.server.folder / "live.m3u8"
            while not playlist.exists():
                time.sleep(0.05)
            self.send(playlist.read_bytes(), "application/vnd.apple.mpegurl")
        elif path == "/stranger.m3u8":
            lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", unquote(query))
            self.send("\n".join(lines).encode(), "application/vnd.apple.mpegurl")
        elif path.endswith(".ts"):
            piece = self.server.folder / path[1:]
            if piece.exists():
                self.send(piece.read_bytes(), "video/mp2t")
            else:
                self.send_error(404)
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
        self.folder = Path(tempfile.mkdtemp(prefix="hls"))
        threading.Thread(target=self.fill, daemon=True).start()

    def fill(self) -> None:
        """Writes HLS segments and their playlist."""
        mux(self.settings, str(self.folder / "live.m3u8"), "hls", options=HLS_OPTIONS)


def main() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--login", default="")
    server = Server(parser.parse_args())
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
