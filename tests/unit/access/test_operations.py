"""The table of scopes: every operation is in it, and its paths match as the router's do."""

import pytest
from fastapi.routing import APIRoute

from service.access.operations import (
    ANY_KEY,
    PUBLIC,
    SCOPE_OF,
    MissingScope,
    UnknownOperation,
    check_scope,
    operation_of,
)
from service.api.console.routes import PAGES
from service.app import create_app
from service.identity import Identity
from service.settings import Settings

READER = Identity("k", "a reader", "t", frozenset(["read"]))
ADMIN = Identity("k", "an admin", "t", frozenset(["admin"]))


def test_every_operation_says_what_scope_it_needs() -> None:
    document = create_app(Settings()).openapi()
    operations = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}

    routes = [route for module in PAGES for route in module.router.routes if isinstance(route, APIRoute)]
    pages = {(method, route.path) for route in routes for method in (route.methods or set()) - {"HEAD"}}
    docs = {("GET", path) for path in ("/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/openapi.json")}
    assert operations | pages | docs == SCOPE_OF.keys() | PUBLIC | ANY_KEY
    assert not SCOPE_OF.keys() & (PUBLIC | ANY_KEY)


def test_the_document_says_how_a_key_is_shown_and_which_scope_each_operation_needs() -> None:
    document = create_app(Settings()).openapi()

    scopes = {
        (method.upper(), path): operation.get("x-scope")
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert document["components"]["securitySchemes"].keys() == {"bearer", "api-key"}
    assert {} in document["security"]  # on 127.0.0.1 none is needed
    assert scopes == {operation: SCOPE_OF.get(operation) for operation in scopes}


@pytest.mark.parametrize(
    ("method", "path", "template"),
    [
        ("GET", "/v1/galleries/g", "/v1/galleries/{name}"),
        ("GET", "/v1/galleries/g/", "/v1/galleries/{name}"),
        ("GET", "/v1/galleries/g/items/a/b.png", "/v1/galleries/{name}/items/{item_id}"),
        ("GET", "/v1/galleries/g/items/a\nb", "/v1/galleries/{name}/items/{item_id}"),
        ("GET", "/v1/galleries/g/items/a/thumbnail", "/v1/galleries/{name}/items/{item_id}/thumbnail"),
        ("POST", "/v1/upgrades/7/cutover", "/v1/upgrades/{upgrade_id}/cutover"),
    ],
)
def test_a_path_is_known_by_its_operation(method: str, path: str, template: str) -> None:
    operation = operation_of(method, path)

    assert operation is not None
    if not path.endswith("thumbnail"):  # an item may be named so, and both read
        assert operation.path == template
    assert operation.scope == SCOPE_OF[method, template]


@pytest.mark.parametrize(
    "path", ["/v1/galleries/a/b", "/v1//galleries", "/v1/keys\n", "/V1/galleries", "/v2/galleries"]
)
def test_what_is_in_no_table_is_there_for_an_admin_alone(path: str) -> None:
    operation = operation_of("GET", path)

    assert operation is None
    check_scope(ADMIN, operation)
    with pytest.raises(UnknownOperation):
        check_scope(READER, operation)


def test_a_missing_scope_is_named() -> None:
    with pytest.raises(MissingScope, match="'cutover'"):
        check_scope(READER, operation_of("POST", "/v1/upgrades/1/cutover"))
