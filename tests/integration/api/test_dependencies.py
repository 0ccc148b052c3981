"""What endpoints are given: a session whose commit comes before the answer, and checked names and ids."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.api.dependencies import IdPath, NamePath, SessionDependency
from service.api.problems import install_problem_handlers
from service.db import Database
from service.errors import Conflict
from tests.problems import check_problem


@dataclass(frozen=True)
class OnlyDatabase:
    """What a session needs of the process's parts."""

    database: Database


def insert(session: SessionDependency, id_: int, refers_to: int | None = None, refuse: bool = False) -> int:
    session.execute(text("INSERT INTO notes VALUES (:id, :other)"), {"id": id_, "other": refers_to})
    if refuse:
        raise Conflict("no")
    return id_


def show(name: NamePath, id_: IdPath) -> tuple[str, int]:
    return name, id_


@pytest.fixture
def client(database: Database) -> Iterator[TestClient]:
    with database.session_scope() as session:
        columns = "id int PRIMARY KEY, other int REFERENCES notes DEFERRABLE INITIALLY DEFERRED"
        session.execute(text(f"CREATE TABLE notes ({columns})"))
    app = FastAPI()
    install_problem_handlers(app)
    app.post("/notes")(insert)
    app.get("/{name}/{id_}")(show)
    app.state.parts = OnlyDatabase(database)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def notes(database: Database) -> list[int]:
    with database.reading() as connection:
        return list(connection.scalars(text("SELECT id FROM notes")))


def test_what_was_answered_is_committed(client: TestClient, database: Database) -> None:
    answer = client.post("/notes", params={"id_": 1})

    assert (answer.status_code, answer.json()) == (200, 1)
    assert notes(database) == [1]


def test_a_commit_that_fails_is_no_success(client: TestClient, database: Database) -> None:
    answer = client.post("/notes", params={"id_": 1, "refers_to": 2})

    check_problem(answer, 500)
    assert notes(database) == []


def test_a_refusal_rolls_back(client: TestClient, database: Database) -> None:
    answer = client.post("/notes", params={"id_": 1, "refuse": True})

    check_problem(answer, 409, "no")
    assert notes(database) == []


@pytest.mark.parametrize("name", ["v1", "A", "7", "a.b-c_d", "x" * 128])
def test_names_are_letters_digits_and_a_few_signs(client: TestClient, name: str) -> None:
    assert client.get(f"/{name}/1").json() == [name, 1]


@pytest.mark.parametrize(
    "path", ["-a/1", ".a/1", "a b/1", "ä/1", "v%0A/1", "x" * 129 + "/1", "v/0", "v/-1", f"v/{2**63}"]
)
def test_what_is_no_name_or_no_id_is_422(client: TestClient, path: str) -> None:
    check_problem(client.get(f"/{path}"), 422)


def test_the_largest_id_that_a_row_can_have_is_one(client: TestClient) -> None:
    assert client.get(f"/v/{2**63 - 1}").status_code == 200
