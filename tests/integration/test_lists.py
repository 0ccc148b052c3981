"""A page of a list costs as many statements, whatever its length."""

import httpx
import pytest
from fastapi.testclient import TestClient

from service.api.galleries import list_galleries
from service.api.query_sets import list_query_sets
from service.api.transformations import list_transformations
from service.db import Database
from tests.networks import image_bytes
from tests.scenario import create_gallery, register_transformation, register_version
from tests.statements import recorded_statements


@pytest.fixture
def versions(client: TestClient) -> TestClient:
    """A client of a service that knows v1, v2 and v3."""
    for version in ("v1", "v2", "v3"):
        register_version(client, version)
    return client


def shown(client: httpx.Client, path: str, key: str) -> tuple[list[object], list[object]]:
    """Return the rows of a list, and each as it is shown alone."""
    rows = client.get(path).json()["items"]
    return rows, [client.get(f"{path}/{row[key]}").json() for row in rows]


def test_a_list_of_galleries_costs_the_same_for_one_and_for_three(versions: TestClient, database: Database) -> None:
    for version in ("v1", "v2", "v3"):
        create_gallery(versions, f"under-{version}", version)

    counts, names = [], []
    for limit in (1, 3):
        with database.session_scope() as session, recorded_statements(database.engine) as statements:
            names.append([view.model_version for view in list_galleries(session, limit).items])
        counts.append(len(statements))
    together, alone = shown(versions, "/v1/galleries", "name")

    assert names == [["v1"], ["v1", "v2", "v3"]]
    assert counts[0] == counts[1]
    assert together == alone


def test_a_list_of_transformations_costs_the_same_for_one_and_for_three(
    versions: TestClient, database: Database
) -> None:
    for before, after in (("v1", "v2"), ("v2", "v3"), ("v1", "v3")):
        register_transformation(versions, before, after)

    counts, names = [], []
    for limit in (1, 3):
        with database.session_scope() as session, recorded_statements(database.engine) as statements:
            names.append([(view.from_version, view.to_version) for view in list_transformations(session, limit).items])
        counts.append(len(statements))
    together, alone = shown(versions, "/v1/transformations", "id")

    assert names == [[("v1", "v2")], [("v1", "v2"), ("v2", "v3"), ("v1", "v3")]]
    assert counts[0] == counts[1]
    assert together == alone


def test_a_list_of_query_sets_costs_the_same_for_one_and_for_three(versions: TestClient, database: Database) -> None:
    create_gallery(versions)
    for name in ("one", "two", "three"):
        files, data = {"files": ("q", image_bytes(1))}, {"name": name, "queries": '[{"label": "x"}]'}
        assert versions.post("/v1/galleries/g/query-sets", files=files, data=data).is_success

    counts, names = [], []
    for limit in (1, 3):
        with database.session_scope() as session, recorded_statements(database.engine) as statements:
            names.append([view.name for view in list_query_sets("g", session, limit).items])
        counts.append(len(statements))
    together, alone = shown(versions, "/v1/galleries/g/query-sets", "name")

    assert names == [["one"], ["one", "two", "three"]]
    assert counts[0] == counts[1]
    assert together == alone
