"""Fixtures: servers for the whole run, and a migrated database without rows for every test.

`--servers=real` runs the tests against Debian's redis-server and a PostgreSQL over TCP instead of the embedded servers.
A database per test, which nobody else uses meanwhile, instead of one that is rolled back: the code under test commits
in several transactions, and some of it waits for others.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import settings as hypothesis_settings
from sqlalchemy import make_url

import service.app
from migrations import upgrade_database
from service import logs
from service.db import Database, create_database_engine
from service.embedded.servers import EmbeddedServers
from service.queue import celery_application
from service.settings import Settings
from tests.emptied import empty, schema_of
from tests.fakes import RecordingQueue
from tests.once import prepare_once
from tests.real_servers import RealServers, missing_program
from workers.app import WorkerParts, make_worker_parts

_TEMPLATE = "migrated_template"
# Databases of this process's servers that tests left without rows, and the schema of the template.
_emptied: list[str] = []
_schemas: list[str] = []
# `--hypothesis-profile=long`: the long form of `tests/chaos/test_model.py`.
hypothesis_settings.register_profile("long", max_examples=200, stateful_step_count=80)
Servers = EmbeddedServers | RealServers

prepare_once()  # before a module of tests imports `create_app`


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


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    """Let no line of the log name what another test of the process did."""
    logs.about_nothing()
    logs.request_id.set(logs.NO_REQUEST)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    with real_servers(request, folder) if uses_real_servers(request) else EmbeddedServers(folder) as running:
        engine = create_database_engine(running.database_url)
        upgrade_database(engine)
        engine.dispose()
        with _superuser(running, "gallery") as connection:
            _schemas[:] = [schema_of(connection)]
        _leave_out_fsync(running)
        with _maintenance(running) as connection:
            connection.execute(f"ALTER DATABASE gallery RENAME TO {_TEMPLATE}")
        yield running


def _leave_out_fsync(running: Servers) -> None:
    """Make and drop a test's database in a tenth of the time; nothing here survives the machine anyway."""
    with _superuser(running, "postgres") as connection:
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
    """Give the URL of a migrated database without rows. At the end it is emptied for the next one, which takes a tenth
    of the time of a copy, or dropped if the test changed more than rows."""
    copied = f"TEMPLATE {_TEMPLATE} STRATEGY FILE_COPY"
    name = _emptied.pop() if _emptied else _create_database(servers, copied)
    yield _url(servers, name)
    with _superuser(servers, name) as connection:
        empty(connection)
        is_as_migrated = schema_of(connection) == _schemas[0]
    if is_as_migrated:
        _emptied.append(name)
    else:
        _drop_database(servers, name)


@contextmanager
def empty_database(servers: Servers) -> Iterator[str]:
    """Make a database without tables, give its URL, and drop it at the end."""
    name = _create_database(servers, "")
    yield _url(servers, name)
    _drop_database(servers, name)


def _create_database(servers: Servers, options: str) -> str:
    name = f"test_{uuid.uuid4().hex}"
    with _maintenance(servers) as connection:
        connection.execute(f"CREATE DATABASE {name} {options}")
    return name


def _drop_database(servers: Servers, name: str) -> None:
    with _maintenance(servers) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def settings(request: pytest.FixtureRequest, servers: Servers, database_url: str, tmp_path: Path) -> Settings:
    settings = small_settings(servers, database_url, tmp_path / "data")
    is_about_batches = request.node.get_closest_marker("few_batches") is None
    return settings if is_about_batches else settings.model_copy(update={"batch_items": 100})


def small_settings(servers: Servers, database_url: str, data: Path) -> Settings:
    """Settings under which a handful of items makes several batches, and replicas follow soon."""
    places = {"data": data, "database_url": database_url, "broker_url": servers.broker_url}
    return _small_settings().model_copy(update=places)


@cache
def _small_settings() -> Settings:
    return Settings(
        allowed_hosts="testserver",  # starlette's client
        trust_torchscript=True,
        precision="float32",
        follow_every_seconds=0.2,
        batch_items=7,
        batches_at_once=1,  # so that a test sees an upgrade between two batches
        retry_base_seconds=0.0,
        rows_per_chunk=4,
        metrics_every_seconds=0.0,  # so that no look comes between what a test counts
    )


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    engine = create_database_engine(database_url)
    yield Database(engine, RecordingQueue())
    engine.dispose()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(service.app.create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    """A worker's parts on the test's database; its batches are tried again at once."""
    parts = make_worker_parts(settings, celery_application(settings))
    yield parts
    parts.database.engine.dispose()


@pytest.fixture
def serve_settings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    with settings_of_serve(request) as settings:
        yield settings


@contextmanager
def settings_of_serve(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Give what `gallery-upgrade serve` is told about its servers: nothing, or real ones with an empty database."""
    if not uses_real_servers(request):
        yield {}
        return
    servers: RealServers = request.getfixturevalue("servers")
    with empty_database(servers) as url:
        yield {"database_url": url, "broker_url": servers.new_broker_url()}


def _url(servers: Servers, database: str) -> str:
    return make_url(servers.database_url).set(database=database).render_as_string(hide_password=False)


def _maintenance(servers: Servers) -> psycopg.Connection:
    return _connect(servers, "postgres")


def _superuser(servers: Servers, database: str) -> psycopg.Connection:
    return servers.superuser(database) if isinstance(servers, RealServers) else _connect(servers, database)


def _connect(servers: Servers, database: str) -> psycopg.Connection:
    return psycopg.connect(_url(servers, database).replace("+psycopg", ""), autocommit=True)
