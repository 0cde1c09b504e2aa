"""Cameras that send by themselves: MPEG-TS over UDP, and RTMP, fetched or pushed.

    python -m tests.servers.push udp://127.0.0.1:5000
    python -m tests.servers.push rtmp://127.0.0.1:1935/live/cam --listen

With --listen it serves one client after the other, else it pushes to whoever listens there.
"""

from __future__ import annotations

import argparse
import time
from contextlib import suppress

from av.error import FFmpegError

from tests.servers.camera import add_arguments, mux, settings_of


def main() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("url")
    parser.add_argument("--listen", action="store_true")
    arguments = parser.parse_args()
    is_rtmp = arguments.url.startswith("rtmp")
    options = {"listen": "1"} if arguments.listen else {}
    print("ready", flush=True)
    while True:
        with suppress(FFmpegError, OSError):
            url = arguments.url if is_rtmp else f"{arguments.url}?pkt_size=1316"
            mux(settings_of(arguments), url, "flv" if is_rtmp else "mpegts", options=options)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
