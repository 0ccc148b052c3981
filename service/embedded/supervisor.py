"""`serve`: one supervising process with PostgreSQL, Valkey, the API and a worker as its children.

Children are told to die when this process dies, even by SIGKILL, so nothing is ever left behind. A worker or an API
that dies is started again; when an embedded server dies, both are stopped and started again, and again while that
fails, as it does on a full disk. One that cannot start at first ends `serve`.
"""

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from service import logs
from service.embedded.processes import spawn, stop
from service.embedded.servers import EmbeddedServerError, EmbeddedServers, ServerDied
from service.settings import Settings

if TYPE_CHECKING:
    import subprocess

events = logs.Events(__name__)

_START_SECONDS = 120
_STOP_SECONDS = 30
_RESTART_PAUSE_SECONDS = 1.0
_RETRY_SECONDS = 5.0


class ServeError(Exception):
    """`serve` cannot start or go on, with a sentence for the operator."""


class _Stop(Exception):
    """SIGINT or SIGTERM arrived."""


class _Child:
    """A process that is started again when it dies."""

    def __init__(self, name: str, start: Callable[[], "subprocess.Popen[bytes]"]) -> None:
        self.name = name
        self._start = start
        self.process = start()

    def restart_if_dead(self) -> None:
        code = self.process.poll()
        if code is not None:
            events.warning("serve.child_died", child=self.name, code=code)
            time.sleep(_RESTART_PAUSE_SECONDS)
            self.process = self._start()

    def stop(self) -> None:
        stop(self.process, signal.SIGTERM, _STOP_SECONDS)


@dataclass(frozen=True)
class Address:
    """Where the API listens, and the files of its certificate, if it speaks TLS."""

    host: str
    port: int
    certificate: Path | None = None
    certificate_key: Path | None = None

    @property
    def options(self) -> list[str]:
        """The options of `gallery-upgrade api`."""
        files = {"--ssl-certfile": self.certificate, "--ssl-keyfile": self.certificate_key}
        given = [part for name, path in files.items() if path is not None for part in (name, str(path))]
        return ["--host", self.host, "--port", str(self.port), *given]

    def url(self, host: str | None = None) -> str:
        """Return the address of the server, as reached by another name; an IPv6 address stands in brackets."""
        name = host or self.host
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://[{name}]:{self.port}" if ":" in name else f"{scheme}://{name}:{self.port}"


def serve_everything(settings: Settings, address: Address) -> None:
    """Start everything, watch it, and stop it on SIGINT or SIGTERM. Must run in the main thread.

    Raises `ServeError`.
    """
    logs.configure_logging(settings.log_format)
    _refuse_milvus_lite(settings.index_url)
    _refuse_taken_port(address.host, address.port)
    _make_data_folder(settings.data)

    servers: EmbeddedServers | None = None
    children: list[_Child] = []
    _on_stop_signals(_raise_stop)

    try:
        if settings.database_url is None or settings.broker_url is None:
            servers = EmbeddedServers(settings.data / "servers")
            servers.start()
            settings = settings.model_copy(
                update={
                    "database_url": settings.database_url or servers.database_url,
                    "broker_url": settings.broker_url or servers.broker_url,
                }
            )

        _start_children(children, settings, address)
        print(f"gallery-upgrade is ready at {address.url()} (data in {settings.data.resolve()})", flush=True)

        _watch(children, servers)
    except _Stop:
        events.info("serve.stopping")
    except RuntimeError as error:  # what the embedded servers raise is written for the operator
        raise ServeError(str(error)) from error
    finally:
        _on_stop_signals(signal.SIG_IGN)
        for child in children:
            child.stop()
        if servers is not None:
            servers.stop()


def _start_children(children: list[_Child], settings: Settings, address: Address) -> None:
    """Start the API, wait for it, and start the worker; each is in `children` from its start on, to be stopped."""
    environment = {**os.environ, **settings.environment()}
    api_command = [sys.executable, "-m", "service.cli", "api", *address.options]
    api = _Child("api", lambda: spawn(api_command, log_path=None, environment=environment))
    children.append(api)
    _wait_until_ready(api, address.url(_loopback(address.host)))

    log_path = settings.data / "worker.log"
    children.append(_Child("worker", lambda: spawn(worker_command(), log_path=log_path, environment=environment)))


def worker_command() -> list[str]:
    """Return the command line of a worker process."""
    options = ["--pool", "solo", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    return [sys.executable, "-m", "celery", "-A", "workers.app", "worker", *options]


def _on_stop_signals(act: "Callable[[int, object], None] | signal.Handlers") -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, act)


def _raise_stop(_number: int, _frame: object) -> None:
    raise _Stop


def _watch(children: list[_Child], servers: EmbeddedServers | None) -> None:
    while True:
        time.sleep(0.5)
        for child in children:
            child.restart_if_dead()
        if servers is not None:
            _restart_if_dead(servers)


def _restart_if_dead(servers: EmbeddedServers) -> None:
    try:
        servers.check()
    except ServerDied as error:
        reason = str(error)
        while True:
            events.warning("serve.server_died", reason=reason)
            servers.stop()
            try:
                servers.start()
            except EmbeddedServerError as failure:
                reason = f"It could not be started again, and is tried every {_RETRY_SECONDS:g} s: {failure}"
                time.sleep(_RETRY_SECONDS)
            else:
                return


def _wait_until_ready(api: _Child, url: str) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends:
        if api.process.poll() is not None:
            raise ServeError("The API did not start; its reason is above.")
        if _answers(f"{url}/readyz"):
            return
        time.sleep(0.1)
    raise ServeError(f"The API was not ready after {_START_SECONDS} s.")


def _answers(url: str) -> bool:
    try:
        # Whose certificate it is does not matter: the process is our own, and nothing is told it.
        return httpx.get(url, timeout=5, verify=False).status_code == httpx.codes.OK  # noqa: S501
    except httpx.TransportError:
        return False


def _refuse_milvus_lite(index_url: str | None) -> None:
    if index_url is not None and index_url.endswith(".db"):
        raise ServeError(
            "Milvus Lite opens a file in one process, and `serve` starts several: run `milvus-lite server --data-dir"
            f" {index_url}` and set GALLERY_INDEX_URL to its http:// address."
        )


def _make_data_folder(folder: Path) -> None:
    """Make the data folder, or close one that is there, to other users, and have all that comes below it closed too."""
    os.umask(0o077)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ServeError(
            f"Nothing can be kept in the data folder {folder}: {error.strerror}. Choose another --data."
        ) from error


def _refuse_taken_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeError(
                f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another --port."
            ) from error


def _loopback(host: str) -> str:
    """Return an address of this machine that reaches a server listening on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
