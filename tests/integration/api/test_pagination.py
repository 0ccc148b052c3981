"""Lists over HTTP come in pages."""

from fastapi.testclient import TestClient

from tests.problems import check_problem
from tests.scenario import DIMS, register_transformation, register_version


def test_lists_come_in_pages(client: TestClient) -> None:
    for name in DIMS:
        register_version(client, name)
    for _ in range(3):
        register_transformation(client, "v1", "v2")

    for path, key in (("/v1/model-versions", "name"), ("/v1/transformations", "id")):
        first = client.get(path, params={"limit": 2}).json()
        second = client.get(path, params={"limit": 2, "cursor": first["next_cursor"]}).json()
        exact = client.get(path, params={"limit": 3}).json()

        assert [len(page["items"]) for page in (first, second, exact)] == [2, 1, 3]
        assert first["items"] + second["items"] == exact["items"]
        assert [row[key] for row in exact["items"]] == sorted(row[key] for row in exact["items"])
        assert (second["next_cursor"], exact["next_cursor"]) == (None, None)
        for bad in ({"limit": 0}, {"limit": 1001}, {"cursor": "?"}, {"cursor": "LTE"}, {"cursor": "eA"}):
            check_problem(client.get(path, params=bad), 422)
