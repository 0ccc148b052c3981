"""JSON as it comes in: what is read, and what is refused before memory holds it."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from fastapi import APIRouter, FastAPI, params
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError

from service.api.json_bodies import Body, JsonRoute, NotJson, TooManyValues, parse_json
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


def test_a_text_with_a_nul_is_422_however_deep_it_is(client: TestClient) -> None:
    for body in (b'{"numbers": ["\\u0000"]}', b'{"numbers": [[{"a": "b\\u0000"}]]}', b'{"numbers": [{"\\u0000": 1}]}'):
        answer = client.post("/", content=body, headers={"content-type": "application/json"})

        check_problem(answer, 422, "NUL")
    escaped = client.post("/", content=b'{"numbers": ["\\\\u0000"]}', headers={"content-type": "application/json"})
    assert escaped.json() == 1


class Typed(Body):
    whole: int = 0
    share: float = 0.0
    is_so: bool = False
    name: str = ""


@pytest.mark.parametrize(
    "values",
    [{"whole": True}, {"whole": "1"}, {"whole": 1.5}, {"share": False}, {"share": "1"}, {"is_so": 1}, {"name": 1}],
)
def test_a_value_of_another_type_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Typed.model_validate(values)


def test_a_number_is_an_integer_however_it_is_written() -> None:
    assert Typed.model_validate({"whole": 3.0, "share": 2}) == Typed(whole=3, share=2.0)


def test_every_body_of_json_is_one_of_these() -> None:
    taking = [route.body_field.field_info.annotation for route in _routes_of_json()]
    models = [each for annotation in taking for each in (annotation, *get_args(annotation)) if isinstance(each, type)]

    bodies = [model for model in models if issubclass(model, BaseModel)]
    assert len(bodies) > 10
    assert [model for model in bodies if not issubclass(model, Body)] == []


def _routes_of_json() -> list[Any]:
    routes = [route for resource in RESOURCES for route in resource.router.routes if isinstance(route, APIRoute)]
    return [
        route
        for route in routes
        if route.body_field is not None and not isinstance(route.body_field.field_info, params.Form)
    ]


def test_every_endpoint_that_takes_json_reads_it_so() -> None:
    routes = _routes_of_json()

    assert len(routes) > 10
    assert [route.path for route in routes if not isinstance(route, JsonRoute)] == []
