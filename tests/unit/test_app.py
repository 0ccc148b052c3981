"""The application before it connects: what it needs, and what it answers from."""

import pytest
from fastapi import FastAPI

from service.app import create_app, make_parts
from service.settings import Settings


@pytest.fixture
def app() -> FastAPI:
    return create_app(Settings())


def test_parts_cannot_be_made_without_a_database() -> None:
    with pytest.raises(ValueError, match="database_url"):
        make_parts(Settings(broker_url="memory://"))


def test_what_is_versioned_is_below_v1_and_what_operators_ask_is_not(app: FastAPI) -> None:
    paths = set(app.openapi()["paths"])

    assert {path for path in paths if not path.startswith("/v1/")} == {"/livez", "/readyz", "/metrics"}


def test_every_operation_has_a_sentence_and_a_name_of_its_own(app: FastAPI) -> None:
    operations = [operation for path in app.openapi()["paths"].values() for operation in path.values()]

    assert [operation["operationId"] for operation in operations if not operation.get("description")] == []
    assert len({operation["operationId"] for operation in operations}) == len(operations)
