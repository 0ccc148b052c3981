"""A page that lists costs as many statements, whatever its length."""

from functools import partial

from fastapi.testclient import TestClient

from tests.scenario import create_gallery, create_upgradable_gallery, post_images, start_upgrade
from tests.statements import least_statements

PAGES = (
    "/",
    "/console/galleries/g",
    "/console/galleries/g?label=class+1",
    "/console/upgrades",
    "/console/jobs",
    "/console/versions",
    "/console/audit",
)


def _statements(client: TestClient) -> dict[str, int]:
    """Return how many statements each page takes."""
    engine = client.app.state.parts.database.engine  # type: ignore[attr-defined]
    assert {client.get(path).status_code for path in PAGES} == {200}
    return {path: least_statements(engine, partial(client.get, path)) for path in PAGES}


def test_pages_cost_the_same_for_one_and_for_three(client: TestClient) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(1, 2))
    start_upgrade(client, "v2")
    one = _statements(client)
    post_images(client, range(2, 5))
    for name in ("second", "third"):
        create_gallery(client, name)
        post_images(client, range(3), name)
        start_upgrade(client, "v2", name)

    three = _statements(client)

    assert client.get("/").text.count("data-row") == 3
    assert one == three
