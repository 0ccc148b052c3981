"""The database: dead connections are replaced, reading holds no transaction, and messages go with what is committed."""

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from service.db import Database, create_database_engine, is_outage
from service.queue import ADVANCE_UPGRADE, BUILD_INDEX, send_after_commit
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


def test_a_row_is_read_as_it_is_committed_and_none_is_none(engine: Engine, outside: psycopg.Connection) -> None:
    database = Database(engine, RecordingQueue())
    outside.execute("CREATE TABLE seen (id int, name text)")

    before = database.read_row("SELECT id, name FROM seen WHERE id = %(id)s", {"id": 1})
    outside.execute("INSERT INTO seen VALUES (1, 'one')")
    after = database.read_row("SELECT id, name FROM seen WHERE id = %(id)s", {"id": 1})

    assert (before, after) == (None, (1, "one"))
    assert outside.execute(f"SELECT state {OTHERS}").fetchall() == [("idle",)]


def test_a_connection_that_dies_under_a_row_is_used_no_more(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(engine, RecordingQueue())

    with pytest.raises(psycopg.OperationalError) as raised:
        database.read_row("SELECT pg_terminate_backend(pg_backend_pid())", {})

    assert is_outage(raised.value)
    assert database.read_row("SELECT 1", {}) == (1,)
    assert caplog.records == []


def test_a_transaction_after_reading_is_one(engine: Engine) -> None:
    database = Database(engine, RecordingQueue())
    with database.reading() as session:
        session.execute(text("SELECT 1"))

    with pytest.raises(ProgrammingError), database.session_scope() as session:
        session.execute(text("CREATE TABLE undone (id int); SELECT no_such_column"))

    with database.reading() as session:
        assert session.scalar(text("SELECT to_regclass('undone')")) is None


@pytest.fixture
def queue() -> RecordingQueue:
    return RecordingQueue()


@pytest.fixture
def noting(engine: Engine, queue: RecordingQueue) -> Database:
    """A database with a table `notes`, whose messages are in `queue`."""
    database = Database(engine, queue)
    with database.session_scope() as session:
        session.execute(text("CREATE TABLE notes (id int PRIMARY KEY)"))
    return database


def notes(database: Database) -> list[int]:
    with database.reading() as connection:
        return list(connection.scalars(text("SELECT id FROM notes ORDER BY id")))


def test_messages_go_out_after_the_commit_in_their_order_and_each_once(noting: Database, queue: RecordingQueue) -> None:
    with noting.session_scope() as session:
        session.execute(text("INSERT INTO notes VALUES (1)"))
        for task_name, row_id in ((ADVANCE_UPGRADE, 2), (BUILD_INDEX, 1), (ADVANCE_UPGRADE, 2), (ADVANCE_UPGRADE, 3)):
            send_after_commit(session, task_name, row_id)
        sent_before = list(queue.sent)

    assert sent_before == []
    assert queue.sent == [(ADVANCE_UPGRADE, (2,)), (BUILD_INDEX, (1,)), (ADVANCE_UPGRADE, (3,))]
    assert notes(noting) == [1]


def test_an_exception_rolls_back_and_drops_the_messages(noting: Database, queue: RecordingQueue) -> None:
    def fail() -> None:
        with noting.session_scope() as session:
            session.execute(text("INSERT INTO notes VALUES (1)"))
            send_after_commit(session, BUILD_INDEX, 1)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()

    assert queue.sent == []
    assert notes(noting) == []


def test_a_commit_that_fails_drops_the_messages(noting: Database, queue: RecordingQueue) -> None:
    with noting.session_scope() as session:
        session.execute(text("ALTER TABLE notes ADD after int REFERENCES notes DEFERRABLE INITIALLY DEFERRED"))

    def refer_to_nothing() -> None:
        with noting.session_scope() as session:
            session.execute(text("INSERT INTO notes VALUES (1, 2)"))
            send_after_commit(session, BUILD_INDEX, 1)

    with pytest.raises(IntegrityError):
        refer_to_nothing()

    assert queue.sent == []
    assert notes(noting) == []


def test_a_body_that_rolls_back_itself_sends_nothing(noting: Database, queue: RecordingQueue) -> None:
    with noting.session_scope() as session:
        session.execute(text("INSERT INTO notes VALUES (1)"))
        send_after_commit(session, BUILD_INDEX, 1)
        session.rollback()

    assert queue.sent == []
    assert notes(noting) == []


def test_a_savepoint_that_is_rolled_back_leaves_the_messages_of_the_transaction(
    noting: Database, queue: RecordingQueue
) -> None:
    with noting.session_scope() as session:
        session.execute(text("INSERT INTO notes VALUES (1)"))
        send_after_commit(session, BUILD_INDEX, 1)
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(text("INSERT INTO notes VALUES (1)"))

    assert queue.sent == [(BUILD_INDEX, (1,))]
    assert notes(noting) == [1]
