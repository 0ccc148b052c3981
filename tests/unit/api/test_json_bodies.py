"""JSON as it comes in: what is read, and what is refused before memory holds it."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, params
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import BaseModel

from service.api.json_bodies import JsonRoute, NotJson, TooManyValues, parse_json
from service.api.problems import install_problem_handlers
from service.app import RESOURCES
from tests.problems import check_problem

router = APIRouter(route_class=JsonRoute)


class Numbers(BaseModel):
    numbers: list[Any]


@router.post("/")
def count(body: Numbers) -> int:
    return len(body.numbers)


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    install_problem_handlers(app)
    app.include_router(router)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("numbers", [3, 100_000])
def test_a_small_and_a_large_body_are_read_alike(client: TestClient, numbers: int) -> None:
    assert client.post("/", json={"numbers": [1] * numbers}).json() == numbers


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b"[" * 500, b'{"numbers": [1]}.', b'"\\ud800"', b'{"numbers": [], "number\\u0073": []}']
)
def test_what_is_not_json_is_422_with_the_place(client: TestClient, body: bytes) -> None:
    for content in (body, b" " * 100_000 + body):
        answer = client.post("/", content=content, headers={"content-type": "application/json; charset=utf-8"})

        check_problem(answer, 422, "The body is not JSON: ")
        assert "at line 1 column" in answer.json()["detail"]


def test_json_that_is_not_called_so_is_not_read(client: TestClient) -> None:
    assert client.post("/", content=b'{"numbers": []}', headers={"content-type": "text/plain"}).status_code == 422


def test_a_million_lists_and_objects_are_read_and_more_are_not() -> None:
    text = "[" + ",".join(["[]", "{}"] * 500_000) + "]"

    with pytest.raises(TooManyValues, match="The filter has more than 1,000,000"):
        parse_json(text, "The filter")
    assert len(parse_json(text.replace("[],{},", "", 1))) == 999_998


def test_what_is_named_is_said() -> None:
    with pytest.raises(NotJson, match="The filter is not JSON: "):
        parse_json("{", "The filter")


def test_every_endpoint_that_takes_json_reads_it_so() -> None:
    routes = [route for resource in RESOURCES for route in resource.router.routes if isinstance(route, APIRoute)]
    taking = [route for route in routes if route.body_field is not None]
    of_json = [route for route in taking if not isinstance(route.body_field.field_info, params.Form)]  # type: ignore[union-attr]  # none is None

    assert len(of_json) > 10
    assert [route.path for route in of_json if not isinstance(route, JsonRoute)] == []
