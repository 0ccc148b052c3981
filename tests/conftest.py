"""Fixtures: servers for the whole run, and a migrated database of its own for every test.

`--servers=real` runs the tests against Debian's redis-server and a PostgreSQL over TCP instead of the embedded servers.
A database per test, copied from a template, instead of one that is rolled back: the code under test commits in several
transactions, and some of it waits for others.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import settings as hypothesis_settings
from sqlalchemy import make_url

from migrations import upgrade_database
from service.app import create_app
from service.db import Database, create_database_engine
from service.embedded.servers import EmbeddedServers
from service.queue import celery_application
from service.settings import Settings
from tests.fakes import RecordingQueue
from tests.real_servers import RealServers, missing_program
from workers.app import WorkerParts, make_worker_parts

_TEMPLATE = "migrated_template"
# `--hypothesis-profile=long`: the long form of `tests/chaos/test_model.py`.
hypothesis_settings.register_profile("long", max_examples=200, stateful_step_count=80)
Servers = EmbeddedServers | RealServers


def pytest_configure() -> None:
    """Let every process compute in one thread: several run at once, and all are to round sums in the same way."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--servers", choices=["embedded", "real"], default="embedded", help="which servers tests use")
    parser.addoption("--servers-required", action="store_true", help="fail, not skip, where real servers cannot start")


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Let no test's draws depend on which other tests ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    with real_servers(request, folder) if uses_real_servers(request) else EmbeddedServers(folder) as running:
        engine = create_database_engine(running.database_url)
        upgrade_database(engine)
        engine.dispose()
        _leave_out_fsync(running)
        with _maintenance(running) as connection:
            connection.execute(f"ALTER DATABASE gallery RENAME TO {_TEMPLATE}")
        yield running


def _leave_out_fsync(running: Servers) -> None:
    """Make and drop a test's database in a tenth of the time; nothing here survives the machine anyway."""
    with running.superuser("postgres") if isinstance(running, RealServers) else _maintenance(running) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")


def uses_real_servers(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--servers") == "real")


def real_servers(request: pytest.FixtureRequest, folder: Path) -> RealServers:
    """Return real servers, not started; skip the test with the reason where they cannot start."""
    reason = missing_program()
    if reason is not None and request.config.getoption("--servers-required"):
        pytest.fail(f"real servers are required, but {reason}", pytrace=False)
    if reason is not None:
        pytest.skip(f"real servers: {reason}")
    return RealServers(folder)


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    with fresh_database(servers) as url:
        yield url


@contextmanager
def fresh_database(servers: Servers) -> Iterator[str]:
    """Make a migrated database without rows, give its URL, and drop it at the end."""
    with _new_database(servers, f"TEMPLATE {_TEMPLATE} STRATEGY FILE_COPY") as url:
        yield url


@contextmanager
def empty_database(servers: Servers) -> Iterator[str]:
    """Make a database without tables, give its URL, and drop it at the end."""
    with _new_database(servers, "") as url:
        yield url


@contextmanager
def _new_database(servers: Servers, options: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with _maintenance(servers) as connection:
        connection.execute(f"CREATE DATABASE {name} {options}")
    yield _url(servers, name)
    with _maintenance(servers) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def settings(servers: Servers, database_url: str, tmp_path: Path) -> Settings:
    return small_settings(servers, database_url, tmp_path / "data")


def small_settings(servers: Servers, database_url: str, data: Path) -> Settings:
    """Settings under which a handful of items makes several batches, and replicas follow soon."""
    return Settings(
        data=data,
        database_url=database_url,
        broker_url=servers.broker_url,
        trust_torchscript=True,
        precision="float32",
        follow_every_seconds=0.1,
        batch_items=7,
        batches_at_once=1,  # so that a test sees an upgrade between two batches
        retry_base_seconds=0.0,
        rows_per_chunk=4,
    )


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    engine = create_database_engine(database_url)
    yield Database(engine, RecordingQueue())
    engine.dispose()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    """A worker's parts on the test's database; its batches are tried again at once."""
    parts = make_worker_parts(settings, celery_application(settings))
    yield parts
    parts.database.engine.dispose()


@pytest.fixture
def serve_settings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What `gallery-upgrade serve` is told about its servers: nothing, or real ones with an empty database."""
    if not uses_real_servers(request):
        yield {}
        return
    servers: RealServers = request.getfixturevalue("servers")
    with empty_database(servers) as url:
        yield {"database_url": url, "broker_url": servers.new_broker_url()}


def _url(servers: Servers, database: str) -> str:
    return make_url(servers.database_url).set(database=database).render_as_string(hide_password=False)


def _maintenance(servers: Servers) -> psycopg.Connection:
    return psycopg.connect(_url(servers, "postgres").replace("+psycopg", ""), autocommit=True)
