"""Running `gallery-upgrade serve` as a user would, and killing parts of it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx

# Below those that Linux gives to clients (`ip_local_port_range`): none takes one between a stop and a start.
_PORTS = range(10_000, 32_768)


class Served:
    """One data folder and the `serve` that runs on it; can be started again after it was stopped or killed."""

    def __init__(self, data: Path, **settings: str) -> None:
        self.data = data
        settings = {
            "trust_torchscript": "1",
            "follow_every_seconds": "0.1",
            "precision": "float32",  # as h is applied offline
            **settings,
        }
        self._environment = {**os.environ, **{f"GALLERY_{name.upper()}": value for name, value in settings.items()}}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    @property
    def log(self) -> Path:
        return self.data.with_suffix(".log")

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of its database: the one it was given, or the embedded one."""
        embedded = f"postgresql+psycopg://postgres@/gallery?host={self.data.resolve() / 'servers'}"
        return self._environment.get("GALLERY_DATABASE_URL", embedded)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_started(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        command = [sys.executable, "-m", "service.cli", "serve", "--port", str(self.port), "--data", str(self.data)]
        with self.log.open("wb") as log:
            process = self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)
        wait_for(lambda: "is ready at" in self.log.read_text() or process.poll() is not None, seconds=90)
        assert "is ready at" in self.log.read_text(), self.log.read_text()

    def stop(self) -> int:
        """Stop with SIGTERM; return the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def kill(self) -> None:
        """Kill the supervisor with SIGKILL; its children must die by themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def children(self, word: str = "") -> list[int]:
        """Return the pids of the supervisor's own children whose command line has `word`."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if word in command_line(int(pid))]


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody listens on, drawn at random: others draw beside us."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_listening(port: int) -> bool:
    """Return whether a server accepts connections on the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_running(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until `condition()` is true."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)
