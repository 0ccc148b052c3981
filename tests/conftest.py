"""Fixtures: embedded servers for the whole run, and a migrated database of its own for every test.

A database per test, copied from a template, instead of one that is rolled back: the code under test commits in several
transactions, and some of it waits for others.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient

from migrations import upgrade_database
from service.app import create_app
from service.db import Database, create_database_engine
from service.embedded.servers import EmbeddedServers
from service.settings import Settings
from tests.fakes import RecordingQueue

_TEMPLATE = "migrated_template"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    with EmbeddedServers(tmp_path_factory.mktemp("servers")) as running:
        engine = create_database_engine(running.database_url)
        upgrade_database(engine)
        engine.dispose()
        with _maintenance(running) as connection:
            connection.execute(f"ALTER DATABASE gallery RENAME TO {_TEMPLATE}")
        yield running


@pytest.fixture
def database_url(servers: EmbeddedServers) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with _maintenance(servers) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} STRATEGY FILE_COPY")
    yield servers.database_url.replace("/gallery?", f"/{name}?")
    with _maintenance(servers) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def settings(servers: EmbeddedServers, database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        data=tmp_path / "data",
        database_url=database_url,
        broker_url=servers.broker_url,
        trust_torchscript=True,
        follow_every_seconds=0.1,
        batch_items=7,
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


def _maintenance(servers: EmbeddedServers) -> psycopg.Connection:
    host = servers.database_url.split("host=")[1]
    return psycopg.connect(host=host.replace("%2F", "/"), user="postgres", dbname="postgres", autocommit=True)
