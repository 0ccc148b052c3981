"""Connections to the database: dead ones are replaced, and reading holds no transaction."""

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError

from service.db import Database, create_database_engine
from tests.fakes import RecordingQueue

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_database_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def outside(database_url: str) -> Iterator[psycopg.Connection]:
    url = database_url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def test_connections_that_died_while_idle_are_replaced(database_url: str, outside: psycopg.Connection) -> None:
    engine = create_database_engine(database_url, trusted_seconds=0.0)
    with ExitStack() as stack:
        first = [stack.enter_context(engine.connect()) for _ in range(3)]
        before = {connection.scalar(text("SELECT pg_backend_pid()")) for connection in first}
    ended = outside.execute(f"SELECT pg_terminate_backend(pid, 5000) {OTHERS}").fetchall()

    with ExitStack() as stack:
        second = [stack.enter_context(engine.connect()) for _ in range(3)]
        after = {connection.scalar(text("SELECT pg_backend_pid()")) for connection in second}

    assert ended == [(True,)] * 3
    assert len(after) == 3
    assert before.isdisjoint(after)
    engine.dispose()


def test_reading_sees_what_others_commit_and_holds_no_transaction(engine: Engine, outside: psycopg.Connection) -> None:
    database = Database(engine, RecordingQueue())
    outside.execute("CREATE TABLE seen (id int)")

    with database.reading() as session:
        before = session.scalar(text("SELECT count(*) FROM seen"))
        outside.execute("INSERT INTO seen VALUES (1)")
        after = session.scalar(text("SELECT count(*) FROM seen"))
        states = outside.execute(f"SELECT state {OTHERS}").fetchall()

    assert (before, after) == (0, 1)
    assert states == [("idle",)]


def test_a_transaction_after_reading_is_one(engine: Engine) -> None:
    database = Database(engine, RecordingQueue())
    with database.reading() as session:
        session.execute(text("SELECT 1"))

    with pytest.raises(ProgrammingError), database.session_scope() as session:
        session.execute(text("CREATE TABLE undone (id int); SELECT no_such_column"))

    with database.reading() as session:
        assert session.scalar(text("SELECT to_regclass('undone')")) is None
