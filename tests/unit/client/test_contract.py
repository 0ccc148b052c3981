"""The client has what the API has: every operation once, every parameter a keyword, every error a class."""

import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gallery_upgrade import problems
from gallery_upgrade.api import requests
from gallery_upgrade.api.operation import Operation
from gallery_upgrade.api.operations import AsyncOperations, SyncOperations
from gallery_upgrade.core.calls import Call
from gallery_upgrade.errors import Conflict, NotFound, problem_class
from service.domain.gallery.galleries import UnknownGallery

_ROOT = Path(__file__).parents[3]
_DOCUMENT: dict[str, Any] = json.loads((_ROOT / "docs/openapi.json").read_text())
_PLACES = {
    (method.upper(), path): operation
    for path, methods in _DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


def builders() -> dict[str, Any]:
    return {
        name: build
        for name, build in vars(requests).items()
        if inspect.isfunction(build) and build.__module__ == requests.__name__
    }


def called(build: Any) -> Call[Any]:
    """Return the call of a builder that is given something for every parameter."""
    call: Call[Any] = build(**{name: f"<{name}>" for name in inspect.signature(build).parameters})
    return call


def place_of(call: Call[Any]) -> tuple[str, str]:
    """Return the method and path of the operation that a call is of."""
    pattern = re.sub(r"%3C\w+%3E", "{}", call.path)
    found = [place for place in _PLACES if place[0] == call.method and re.sub(r"\{\w+\}", "{}", place[1]) == pattern]
    (place,) = found
    return place


def test_every_operation_has_exactly_one_request_and_one_method_of_each_client() -> None:
    made = builders()
    places = [place_of(called(build)) for build in made.values()]

    assert sorted(places) == sorted(_PLACES)
    for operations in (SyncOperations, AsyncOperations):
        methods = {name: of for name, of in vars(operations).items() if isinstance(of, Operation)}
        assert {name: of.build for name, of in methods.items()} == made


@pytest.mark.parametrize("name", sorted(builders()))
def test_every_parameter_and_field_is_a_keyword_that_is_sent_where_the_api_has_it(name: str) -> None:
    build = builders()[name]
    call = called(build)
    operation = _PLACES[place_of(call)]

    assert {of.kind for of in inspect.signature(build).parameters.values()} <= {inspect.Parameter.KEYWORD_ONLY}
    sent = {"query": call.query, "header": call.headers}
    for parameter in operation.get("parameters", []):
        if parameter["in"] != "path":
            assert parameter["name"] in sent[parameter["in"]]
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        fields = fields_of(media["schema"])
        if kind == "application/json" and fields is not None:
            assert set(call.body) == fields
        elif kind == "multipart/form-data":
            assert {*call.form, *call.files} == fields
        elif kind != "application/json":
            assert str(call.content) == "<content>"


def fields_of(schema: dict[str, Any]) -> set[str] | None:
    for one in schema.get("anyOf", [schema]):
        of = _DOCUMENT["components"]["schemas"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        if of.get("type") == "object":
            return set(of["properties"])
    return None


def test_what_is_committed_is_what_the_service_says_of_itself(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", _ROOT / "client/generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)

    generate.write(tmp_path)

    written = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py")}
    assert len(written) == 4
    for name, text in written.items():
        assert text == (_ROOT / "client/gallery_upgrade" / name).read_text(), (
            f"{name} is not current: run `make client`"
        )


def test_a_problem_is_raised_as_the_class_of_its_type_or_else_of_its_status() -> None:
    known = problem_class("urn:gallery-upgrade:unknown-gallery", 404)

    assert known is problems.UnknownGallery
    assert known.__name__ == UnknownGallery.__name__
    assert issubclass(known, NotFound)
    assert problem_class("urn:gallery-upgrade:of-a-newer-service", 409) is Conflict
