"""`RealServers`: Debian's redis-server and a PostgreSQL over TCP, both with passwords, as an operator would run them.

The same surface as `EmbeddedServers`, and for chaos tests `kill` and `restart` of each server on its port and data.
Debian 12 packages no pgvector, so PostgreSQL comes from the wheel. The application's role is no superuser: as in a
managed database, the extension is there already.
"""

import secrets
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psycopg
import redis

from service.embedded.cluster import (
    give_folder,
    make_cluster,
    make_stale,
    postgres_binary,
    servers_account,
    servers_environment,
)
from service.embedded.processes import spawn, stop
from tests.served import free_port, is_running

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

Server = Literal["postgres", "redis"]

_ROLE = "gallery"
_DATABASE = "gallery"
_START_SECONDS = 120.0
_STOP_SECONDS = 60.0
_REDIS_DATABASES = 16
_STOP_SIGNALS: dict[Server, signal.Signals] = {"postgres": signal.SIGINT, "redis": signal.SIGTERM}


def missing_program() -> str | None:
    """Return why the real servers cannot start here, or None."""
    if shutil.which("redis-server") is None:
        return "redis-server is not on PATH (Debian: apt-get install redis-server)"
    return None


class RealServers:
    """Both servers on one folder; also a context manager. Start and restart in the main thread (see `spawn`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._cluster = self._folder / "postgres"
        self._environment = servers_environment()
        self._account = servers_account()
        self._password = secrets.token_hex(16)
        self._ports: dict[Server, int] = {"postgres": free_port(), "redis": free_port()}
        self._children: dict[Server, subprocess.Popen[bytes]] = {}
        self._redis_database = 0

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the database, of a role that owns it and may make others."""
        return f"postgresql+psycopg://{_ROLE}:{self._password}@127.0.0.1:{self._ports['postgres']}/{_DATABASE}"

    @property
    def broker_url(self) -> str:
        """The URL that Celery wants."""
        return self._broker_url(0)

    @property
    def redis_url(self) -> str:
        """The URL that redis-py wants."""
        return self.broker_url

    def new_broker_url(self) -> str:
        """Return the URL of the next of Redis's databases, emptied: messages of another service are not in it."""
        self._redis_database = self._redis_database % (_REDIS_DATABASES - 1) + 1
        url = self._broker_url(self._redis_database)
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url

    def start(self) -> None:
        """Start both servers and return when they answer; makes the cluster at the first start."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            is_new = not self._cluster.exists()
            if is_new:
                self._make_cluster()
            for name in self._ports:
                self._spawn(name)
            for name in self._ports:
                self._wait_until_it_answers(name)
            if is_new:
                self._make_role()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both servers cleanly; does nothing unless started."""
        for name, child in list(self._children.items()):
            stop(child, _STOP_SIGNALS[name], _STOP_SECONDS)
            del self._children[name]

    def pid(self, name: Server) -> int:
        """Return the server's main process; PostgreSQL's back ends are its children."""
        return self._children[name].pid

    def kill(self, name: Server) -> None:
        """Kill a server's main process with SIGKILL. A PostgreSQL's back ends notice, and end by themselves."""
        self._children[name].kill()
        self._children[name].wait()

    def restart(self, name: Server) -> None:
        """Start a killed server again, on its port and data, and return when it answers."""
        self._spawn(name)
        self._wait_until_it_answers(name)

    def __enter__(self) -> "RealServers":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _broker_url(self, number: int) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._ports['redis']}/{number}"

    def _make_cluster(self) -> None:
        password_file = self._folder / "password"
        password_file.write_text(self._password)
        give_folder(password_file, self._account)
        authentication = ["--auth=scram-sha-256", f"--pwfile={password_file}"]
        make_cluster(self._cluster, authentication, environment=self._environment, account=self._account)

    def _make_role(self) -> None:
        """Make the application's role and database; every database made from now on has pgvector."""
        with self.superuser("template1") as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute(f"CREATE ROLE {_ROLE} LOGIN CREATEDB PASSWORD '{self._password}'")
            # An autovacuum worker must not keep a test's database from being dropped.
            connection.execute(f"GRANT pg_signal_backend TO {_ROLE}")
        with self.superuser("postgres") as connection:
            connection.execute(f"CREATE DATABASE {_DATABASE} OWNER {_ROLE}")

    def _spawn(self, name: Server) -> None:
        commands: dict[Server, Callable[[], list[str]]] = {
            "postgres": self._postgres_command,
            "redis": self._redis_command,
        }
        self._children[name] = spawn(
            commands[name](),
            log_path=self._folder / f"{name}.log",
            environment=self._environment,
            account=self._account,
            death_signal=_STOP_SIGNALS[name],
        )

    def _postgres_command(self) -> list[str]:
        make_stale(self._cluster / "postmaster.pid")
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._ports["postgres"]),
            "unix_socket_directories": "",
            "max_connections": "200",
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [postgres_binary("postgres"), "-D", str(self._cluster), *arguments]

    def _redis_command(self) -> list[str]:
        program = shutil.which("redis-server")
        assert program is not None, missing_program()
        data = self._folder / "redis"
        if not data.exists():
            data.mkdir(mode=0o700)
            give_folder(data, self._account)
        configuration = self._folder / "redis.conf"
        configuration.write_text(
            f"bind 127.0.0.1\nport {self._ports['redis']}\nrequirepass {self._password}\ndir {data}\n"
            f'databases {_REDIS_DATABASES}\nappendonly yes\nmaxmemory-policy noeviction\nsave ""\n'
        )
        give_folder(configuration, self._account)
        return [program, str(configuration)]

    def _wait_until_it_answers(self, name: Server) -> None:
        ask: dict[Server, Callable[[], None]] = {"postgres": self._ask_postgres, "redis": self._ask_redis}
        ends = time.monotonic() + _START_SECONDS
        while True:
            try:
                return ask[name]()
            except (psycopg.OperationalError, redis.RedisError) as error:
                if time.monotonic() > ends:
                    log = (self._folder / f"{name}.log").read_text()[-2_000:]
                    raise RuntimeError(f"{name} did not answer in {_START_SECONDS:.0f} s: {error}\n{log}") from error
            if not is_running(self.pid(name)):
                # PostgreSQL refuses to start while a back end of the killed one still ends.
                self._children[name].wait()
                self._spawn(name)
            time.sleep(0.05)

    def superuser(self, database: str) -> psycopg.Connection:
        """Connect as a role that may do anything; the service's may not."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self._ports["postgres"],
            user="postgres",
            password=self._password,
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )

    def _ask_postgres(self) -> None:
        self.superuser("postgres").close()

    def _ask_redis(self) -> None:
        with redis.Redis.from_url(self.redis_url, retry=None, socket_timeout=5) as client:
            client.ping()
