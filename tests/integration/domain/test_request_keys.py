"""The keys of requests: who may run one, what is kept of it, and that no lock or connection outlives it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.pool import QueuePool

from service.db import Database
from service.domain.request_keys import (
    KeptAnswer,
    KeyOfAnotherRequest,
    RequestStillRuns,
    RunningRequest,
    keep_answer,
    take_key,
)

PATH, SHA256 = "/v1/galleries", "of this request"
CREATED = KeptAnswer(201, [("location", "/v1/galleries/g"), ("content-type", "application/json")], b'{"name": "g\x00"}')


def take(database: Database, key: str = "k", path: str = PATH, request_sha256: str = SHA256) -> RunningRequest:
    """Take a key that nobody has."""
    running = take_key(database, key, path, request_sha256)
    assert isinstance(running, RunningRequest)
    return running


def held_connections(database: Database) -> int:
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()


def die(database: Database, running: RunningRequest) -> None:
    """Let go of the request as its process does when it is killed: the server ends its connection, and has ended it."""
    pid = running.connection.scalar(text("SELECT pg_backend_pid()"))
    with database.reading() as connection:
        assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": pid})
    running.connection.invalidate()
    running.connection.close()


def test_a_key_is_taken_once_and_gives_the_kept_answer_afterwards(database: Database) -> None:
    running = take(database)
    with pytest.raises(RequestStillRuns) as meanwhile:
        take_key(database, "k", PATH, SHA256)
    held_meanwhile = held_connections(database)
    keep_answer(running, CREATED)

    again = take_key(database, "k", PATH, SHA256)

    assert again == CREATED
    assert (meanwhile.value.status_code, meanwhile.value.retry_after_seconds) == (409, 1)
    assert (held_meanwhile, held_connections(database)) == (1, 0)


def test_another_request_under_a_key_is_refused_and_does_not_keep_the_key(database: Database) -> None:
    keep_answer(take(database), CREATED)

    with pytest.raises(KeyOfAnotherRequest) as refused:
        take_key(database, "k", PATH, "of another request")

    assert refused.value.status_code == 422
    assert held_connections(database) == 0
    assert take_key(database, "k", PATH, SHA256) == CREATED


def test_other_keys_and_other_paths_are_taken_beside_a_running_request(database: Database) -> None:
    running = [take(database), take(database, key="other"), take(database, path="/v1/other")]

    for number, request in enumerate(running):
        keep_answer(request, KeptAnswer(200 + number))

    answers = [
        take_key(database, key, path, SHA256) for key, path in [("k", PATH), ("other", PATH), ("k", "/v1/other")]
    ]
    assert answers == [KeptAnswer(200), KeptAnswer(201), KeptAnswer(202)]


def test_a_key_whose_holder_died_is_taken_by_the_same_request_alone(database: Database) -> None:
    die(database, take(database))

    with pytest.raises(KeyOfAnotherRequest):
        take_key(database, "k", PATH, "of another request")
    keep_answer(take(database), CREATED)

    assert take_key(database, "k", PATH, SHA256) == CREATED


@pytest.mark.parametrize("status", [429, 500, 503])
def test_after_an_answer_that_asks_to_come_back_any_request_may_take_the_key(database: Database, status: int) -> None:
    keep_answer(take(database), KeptAnswer(status))

    running = take(database, request_sha256="of another request")

    keep_answer(running, CREATED)
    assert take_key(database, "k", PATH, "of another request") == CREATED


@pytest.mark.parametrize("end", [lambda _, running: keep_answer(running, CREATED), die], ids=["answered", "died"])
def test_a_request_that_has_ended_holds_no_lock(
    database: Database, end: Callable[[Database, RunningRequest], None]
) -> None:
    end(database, take(database))

    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with database.reading() as connection:
        assert connection.scalar(text(query)) == 0


def test_of_those_who_take_a_key_at_once_one_runs(database: Database) -> None:
    def try_to_take(_: int) -> RunningRequest | None:
        try:
            return take(database)
        except RequestStillRuns:
            return None

    with ThreadPoolExecutor(8) as threads:
        running = [request for request in threads.map(try_to_take, range(8)) if request is not None]

    assert len(running) == 1
    keep_answer(running[0], CREATED)
