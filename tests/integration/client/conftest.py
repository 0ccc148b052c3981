"""The client on the real application: without a socket between them, and over one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi.testclient import TestClient

from gallery_upgrade import Client
from service.settings import Settings
from tests.served import wait_for
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """As every test has them, and to be reached by an address too."""
    return settings.model_copy(update={"allowed_hosts": "testserver,127.0.0.1"})


@pytest.fixture
def service(client: TestClient) -> Iterator[Client]:
    with Client("http://testserver", transport=client._transport) as service:
        yield service


@pytest.fixture
def url(client: TestClient) -> Iterator[str]:
    """The address at which the application of `client` listens too."""
    server = uvicorn.Server(uvicorn.Config(client.app, host="127.0.0.1", port=0, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@contextmanager
def working(worker: WorkerParts, upgrade_id: int) -> Iterator[None]:
    """Work on an upgrade in a thread, as a worker process does."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.02):
            advance_upgrade(worker, upgrade_id)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
