"""How failures of the machine become answers."""

import errno
import logging

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

from service.api.problems import install_problem_handlers
from service.app import create_app
from service.settings import Settings
from tests.fakes import connectionless_parts
from tests.problems import check_problem


@pytest.mark.parametrize(
    ("number", "status", "sentence"),
    [
        (errno.EMFILE, 503, "too many files open"),
        (errno.ENFILE, 503, "too many files open"),
        (errno.ENOSPC, 507, "disk of the service is full"),
        (errno.EDQUOT, 507, "disk of the service is full"),
        (errno.EACCES, 500, "its log has the reason"),
    ],
)
def test_what_the_machine_has_no_more_of_is_named(number: int, status: int, sentence: str) -> None:
    app = FastAPI()
    install_problem_handlers(app)

    @app.get("/")
    def fail() -> None:
        raise OSError(number, "as the system says it")

    answer = TestClient(app, raise_server_exceptions=False).get("/")

    check_problem(answer, status)
    assert sentence in answer.json()["detail"]


def test_a_method_that_a_path_does_not_take_is_405_with_all_that_it_takes() -> None:
    app = create_app(Settings(allowed_hosts="testserver"))
    app.state.parts = connectionless_parts()
    client = TestClient(app, raise_server_exceptions=False)

    answers = {path: client.put(path) for path in ("/v1/galleries", "/v1/galleries/g", "/v1/galleries/g/items/a/b")}

    for answer in answers.values():
        check_problem(answer, 405, "not PUT")
    assert [answer.headers["allow"] for answer in answers.values()] == [
        "HEAD, GET, POST",
        "HEAD, GET, PATCH, DELETE",
        "HEAD, GET, PATCH, DELETE",
    ]


def test_a_client_that_goes_away_is_no_failure_of_the_service(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    install_problem_handlers(app)

    @app.post("/")
    async def read() -> None:
        raise ClientDisconnect

    with caplog.at_level(logging.DEBUG):
        check_problem(TestClient(app).post("/"), 400)
    assert [record for record in caplog.records if record.exc_info] == []
