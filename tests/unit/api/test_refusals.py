"""What the OpenAPI document says of refusals."""

from collections.abc import Iterator
from typing import Any

import pytest

from service.api.problems import MEDIA_TYPE
from service.app import create_app
from service.settings import Settings


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def refused(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give the name of each operation with each status of an error, and its response."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    name = response.get("$ref", "").rpartition("/")[2]
                    found = document["components"]["responses"][name] if name else response
                    yield operation["operationId"], status, found


def types_of(document: dict[str, Any], operation_id: str, status: str) -> set[str]:
    (found,) = (response for name, stated, response in refused(document) if (name, stated) == (operation_id, status))
    return set(found["content"][MEDIA_TYPE]["schema"]["properties"]["type"]["enum"])


def test_every_refusal_is_a_problem_document_with_types_and_sentences(document: dict[str, Any]) -> None:
    found = list(refused(document))

    assert len(found) > 500
    for name, status, response in found:
        assert list(response["content"]) == [MEDIA_TYPE], (name, status)
        schema = response["content"][MEDIA_TYPE]["schema"]
        assert schema["allOf"] == [{"$ref": "#/components/schemas/Problem"}]
        assert schema["properties"]["type"]["enum"]
        assert response["description"].endswith("."), (name, status)
        assert ".." not in response["description"], (name, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_an_operation_has_its_own_types_beside_those_of_all(document: dict[str, Any]) -> None:
    cut_over = "cut_over_v1_upgrades__upgrade_id__cutover_post"
    get_upgrade = "get_upgrade_v1_upgrades__upgrade_id__get"
    post_embeddings = "post_embeddings_v1_galleries__name__embeddings_post"
    kind = "urn:gallery-upgrade:{}".format

    assert types_of(document, cut_over, "409") == {
        kind("illegal-transition"),
        kind("gates-hold"),
        kind("cutover-refused"),
        kind("request-still-runs"),
    }
    assert types_of(document, get_upgrade, "404") == {"about:blank", kind("unknown-upgrade")}
    assert types_of(document, get_upgrade, "422") == {"about:blank", kind("unknown-parameter")}
    assert kind("bad-rows") in types_of(document, post_embeddings, "422")
    assert kind("no-room") in types_of(document, post_embeddings, "507")
    assert "507" not in {status for name, status, _ in refused(document) if name == get_upgrade}


def test_what_may_succeed_later_says_when(document: dict[str, Any]) -> None:
    later = [response for _, status, response in refused(document) if status in ("429", "503")]

    assert later
    assert all("Retry-After" in response["headers"] for response in later)
