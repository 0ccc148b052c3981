"""The application from its start to its end: it connects when it starts, and leaves nothing behind."""

import threading

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.app import create_app
from service.db import Database
from service.settings import Settings
from tests.served import wait_for


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


def others_connected(database: Database) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with database.reading() as connection:
        found: int = connection.scalar(text(query)) or 0
        return found


def test_it_connects_when_it_starts_and_has_let_go_of_everything_when_it_has_stopped(
    app: FastAPI, database: Database
) -> None:
    threads = set(threading.enumerate())
    before = others_connected(database)

    with TestClient(app) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        during = others_connected(database)
    left = [thread.name for thread in set(threading.enumerate()) - threads if not thread.daemon]

    assert before == 0 < during
    wait_for(lambda: others_connected(database) == 0)  # the server lets go a moment later
    assert left == []


def test_it_can_be_started_again_with_parts_of_its_own(app: FastAPI) -> None:
    parts = []
    for _ in range(2):
        with TestClient(app) as client:
            parts.append(app.state.parts)
            wait_for(lambda: client.get("/readyz").status_code == 200)

    assert parts[0] is not parts[1]


def test_a_request_has_its_id_before_its_limit_and_its_limit_before_its_key(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"max_json_bytes": 10}))) as client:
        headers = {"X-Request-ID": "mine", "Idempotency-Key": "not a key"}
        answer = client.post("/v1/galleries", content=b"x" * 11, headers=headers)

    assert (answer.status_code, answer.headers["x-request-id"]) == (413, "mine")
