"""Starts a camera in a process of its own, kills, freezes and restarts it on the same port."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from types import TracebackType

from tests.conftest import REPOSITORY


class Camera:
    """A server of `tests.servers`; use it in a `with`. `epoch` is when its clock began to count."""

    def __init__(self, module: str, *options: str) -> None:
        self.epoch = time.monotonic()
        self.port = 0
        self._module = module
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Camera:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self, *options: str) -> None:
        """On the port of before; with other options, if there are any."""
        self._options = options or self._options
        command = [sys.executable, "-m", f"tests.servers.{self._module}", *self._options]
        command += ["--epoch", str(self.epoch), "--port", str(self.port)]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said.isdigit():
            self.port = int(said)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def freeze(self) -> None:
        """It stands still; its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def number_at(self, monotonic_seconds: float, fps: int = 25) -> float:
        """What the picture of this moment wears."""
        return (monotonic_seconds - self.epoch) * fps


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nobody uses now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
