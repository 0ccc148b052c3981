"""`serve`: one supervising process with PostgreSQL, Valkey, the API and a worker as its children.

Children are told to die when this process dies, even by SIGKILL, so nothing is ever left behind. A worker or an API
that dies is started again; when an embedded server dies, both are stopped and started again, and again while that
fails, as it does on a full disk. One that cannot start at first ends `serve`.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import httpx

from service import logs
from service.embedded.addresses import Address, ServeError
from service.embedded.children import Child, Stopped, ignore_stop_signals, stop_all, stop_on_signals
from service.embedded.processes import spawn
from service.embedded.servers import EmbeddedServerError, EmbeddedServers, ServerDied
from service.settings import Settings

events = logs.Events(__name__)

_START_SECONDS = 120
_STOP_SECONDS = 30
_RETRY_SECONDS = 5.0
_CONNECTIONS_OF_API = 41  # its pool, and the one on which it hears of changes
_OTHER_CONNECTIONS = 20


def serve_everything(settings: Settings, address: Address) -> None:
    """Start everything, watch it, and stop it on SIGINT or SIGTERM. Must run in the main thread.

    Raises `ServeError`.
    """
    logs.configure_logging(settings.log_format)
    _refuse_milvus_lite(settings.index_url)
    _refuse_taken_port(address)
    _make_data_folder(settings.data)

    servers: EmbeddedServers | None = None
    children: list[Child] = []
    stop_on_signals()

    try:
        if settings.database_url is None or settings.broker_url is None:
            servers = EmbeddedServers(settings.data / "servers", _connections(settings))
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
    except Stopped:
        events.info("serve.stopping")
    except RuntimeError as error:  # what the embedded servers raise is written for the operator
        raise ServeError(str(error)) from error
    finally:
        ignore_stop_signals()
        for child in children:
            stop_all([child], _STOP_SECONDS)
        if servers is not None:
            servers.stop()


def _connections(settings: Settings) -> int:
    """Return how many connections to PostgreSQL all processes may have, with some for commands."""
    return max(100, settings.processes * _CONNECTIONS_OF_API + settings.batches_at_once + _OTHER_CONNECTIONS)


def _start_children(children: list[Child], settings: Settings, address: Address) -> None:
    """Start the API, wait for it, and start the worker; each is in `children` from its start on, to be stopped."""
    environment = {**os.environ, **settings.environment()}
    api_command = [sys.executable, "-m", "service.cli", "api", *address.options]
    api = Child("api", lambda: spawn(api_command, log_path=None, environment=environment))
    children.append(api)
    _wait_until_ready(api, address.url(_loopback(address.host)))

    log_path = settings.data / "worker.log"
    children.append(Child("worker", lambda: spawn(worker_command(), log_path=log_path, environment=environment)))


def worker_command() -> list[str]:
    """Return the command line of a worker process."""
    options = ["--pool", "solo", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    return [sys.executable, "-m", "celery", "-A", "workers.app", "worker", *options]


def _watch(children: list[Child], servers: EmbeddedServers | None) -> None:
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


def _wait_until_ready(api: Child, url: str) -> None:
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


def _refuse_taken_port(address: Address) -> None:
    for listener in address.bind():
        listener.close()


def _loopback(host: str) -> str:
    """Return an address of this machine that reaches a server listening on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
