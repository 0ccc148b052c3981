"""The service under the storm, as an operator would run it: real servers, API processes and workers, killed and started
again. Everything here is called from the main thread: the kernel ends a child with the thread that started it."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx
import psycopg
from sqlalchemy import make_url

from service.embedded.processes import spawn
from tests.real_servers import RealServers
from tests.served import command_line, free_port

if TYPE_CHECKING:
    import subprocess

Killable = Literal["worker", "api", "broker", "postgres", "back end"]
KINDS: tuple[Killable, ...] = ("worker", "api", "broker", "postgres", "back end")
_WEIGHTS = (4, 3, 2, 2, 1)
_MAX_SECONDS_DOWN = 1.5


@dataclass
class _Child:
    name: str
    command: list[str]
    process: "subprocess.Popen[bytes] | None" = None
    starts_at: float = 0.0


@dataclass
class Service:
    """API processes and workers on one database and one data folder."""

    servers: RealServers
    folder: Path
    database: str
    apis: int
    workers: int
    settings: dict[str, str]
    kills: dict[Killable, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.database_url = database_url(self.servers, self.database)
        settings = {
            "database_url": self.database_url,
            "broker_url": self.servers.new_broker_url(),
            "data": str(self.folder),
            "blob_url": f"file://{self.folder}/blobs",
            **self.settings,
        }
        self._environment = {**os.environ, **{f"GALLERY_{name.upper()}": value for name, value in settings.items()}}
        self.urls = []
        self._children: list[_Child] = []
        module = [sys.executable, "-m", "service.cli"]
        for number in range(self.apis):
            port = free_port()
            self.urls.append(f"http://127.0.0.1:{port}")
            self._children.append(_Child(f"api-{number}", [*module, "api", "--port", str(port)]))
        for number in range(self.workers):
            self._children.append(_Child(f"worker-{number}", [*module, "worker"]))

    def start(self) -> None:
        """Start every process and wait until the API answers."""
        self.supervise()
        self.wait_until_ready()

    def wait_until_ready(self, seconds: float = 120.0) -> None:
        ends = time.monotonic() + seconds
        for url in self.urls:
            while not _is_ready(url):
                if time.monotonic() > ends:
                    raise RuntimeError(f"an API was not ready after {seconds:.0f} s; see {self.folder}")
                self.supervise()
                time.sleep(0.1)

    def supervise(self) -> None:
        """Start again what is dead, once its time has come."""
        for child in self._children:
            dead = child.process is None or child.process.poll() is not None
            if dead and time.monotonic() >= child.starts_at:
                log_path = self.folder / f"{child.name}.log"
                child.process = spawn(child.command, log_path=log_path, environment=self._environment)
                child.starts_at = time.monotonic() + 1.0  # one that dies at once is not started in a tight loop

    def kill_something(self, chance: random.Random) -> None:
        """Kill one process with SIGKILL. Servers are started again here; the others by `supervise`, after a pause."""
        kind = chance.choices(KINDS, _WEIGHTS)[0]
        seconds_down = chance.uniform(0.0, _MAX_SECONDS_DOWN)
        if kind in ("worker", "api"):
            child = chance.choice([child for child in self._children if child.name.startswith(kind)])
            if child.process is None or child.process.poll() is not None:
                return
            child.process.kill()
            child.starts_at = time.monotonic() + seconds_down
        elif kind == "back end":
            if not self._kill_back_end(chance):
                return
        else:
            server: Literal["redis", "postgres"] = "redis" if kind == "broker" else "postgres"
            self.servers.kill(server)
            time.sleep(seconds_down)
            self.servers.restart(server)
        self.kills[kind] += 1

    def stop(self) -> None:
        """End every process at once: what they hold is meant to survive that."""
        for child in self._children:
            if child.process is not None:
                child.process.kill()
                child.process.wait()

    def _kill_back_end(self, chance: random.Random) -> bool:
        """Kill one of PostgreSQL's back ends: its postmaster then ends the others, recovers and goes on."""
        postmaster = self.servers.pid("postgres")
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        ours = [int(pid) for pid in children if f" {self.database} " in command_line(int(pid))]
        if not ours:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(ours), signal.SIGKILL)
        return True


def database_url(servers: RealServers, database: str) -> str:
    return make_url(servers.database_url).set(database=database).render_as_string(hide_password=False)


def create_database(servers: RealServers, name: str, template: str | None = None) -> None:
    with _maintenance(servers) as connection:
        copied = "" if template is None else f" TEMPLATE {template} STRATEGY FILE_COPY"
        connection.execute(f"CREATE DATABASE {name}{copied}")


def drop_database(servers: RealServers, name: str) -> None:
    with _maintenance(servers) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def copy_blobs(source: Path, target: Path) -> None:
    """Give a run the networks that were registered at the base."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "blobs", target / "blobs")


def _maintenance(servers: RealServers) -> psycopg.Connection:
    return psycopg.connect(database_url(servers, "postgres").replace("+psycopg", ""), autocommit=True)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
