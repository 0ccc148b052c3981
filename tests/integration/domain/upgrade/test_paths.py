"""Which stored generation an upgrade starts from, and by which networks."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from models.artifacts import load_transformation_network, save_network
from models.transformation import Transformation
from service.domain.gallery.generations import StoredGeneration, get_stored_generation
from service.vectors.rows import EmbeddingRows
from tests.networks import transformation_bytes
from tests.problems import check_problem
from tests.rows import rows_of
from tests.scenario import (
    DIMS,
    create_gallery,
    import_vectors,
    post_images,
    register_transformation,
    register_version,
    start_upgrade,
)
from tests.working import run_until
from workers.app import WorkerParts


@pytest.fixture
def upgraded(client: TestClient, worker: WorkerParts) -> TestClient:
    """A gallery of 12 images that went from v1 to v2 and can still go back; v3 is registered."""
    for version in ("v1", "v2", "v3"):
        register_version(client, version)
    register_transformation(client, "v1", "v2")
    create_gallery(client)
    post_images(client, range(12))
    run_until(worker, client, start_upgrade(client, "v2", cutover="auto"), "live")
    return client


def generation_rows(worker: WorkerParts, generation_id: int) -> EmbeddingRows:
    with worker.database.session_scope() as session:
        stored: StoredGeneration = get_stored_generation(session, 1, generation_id)
        return rows_of(session, stored)


def by_h(rows: EmbeddingRows, before: str, after: str) -> np.ndarray:
    """Return h of stored rows, computed here."""
    (from_dim, from_side), (to_dim, _) = DIMS[before], DIMS[after]
    h = load_transformation_network(
        transformation_bytes(from_dim, from_side, to_dim, seed=7),
        from_dim=from_dim,
        side_information_dim=from_side,
        to_dim=to_dim,
    )
    assert rows.side_information is not None
    return h(rows.embedding.astype(np.float32), rows.side_information.astype(np.float32))


def test_a_direct_transformation_from_a_kept_generation_is_taken(upgraded: TestClient, worker: WorkerParts) -> None:
    register_transformation(upgraded, "v1", "v3")

    upgrade_id = start_upgrade(upgraded, "v3", cutover="auto")
    run_until(worker, upgraded, upgrade_id, "live")

    assert [leg["generation"] for leg in upgraded.get(f"/v1/upgrades/{upgrade_id}").json()["path"]] == [1]
    expected = by_h(generation_rows(worker, 1), "v1", "v3")
    found = generation_rows(worker, 3).embedding.astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-3)


def test_items_that_only_the_active_generation_has_take_its_own_way(upgraded: TestClient, worker: WorkerParts) -> None:
    register_transformation(upgraded, "v1", "v3")
    register_transformation(upgraded, "v2", "v3")
    import_vectors(upgraded, ["only-new"], version="v2")

    upgrade_id = start_upgrade(upgraded, "v3", cutover="auto", transformation=2)
    run_until(worker, upgraded, upgrade_id, "live")

    assert upgraded.get("/v1/galleries/g").json()["items"] == 13
    path = upgraded.get(f"/v1/upgrades/{upgrade_id}").json()["path"]
    assert path[0] == {"generation": 1, "transformations": [2]}


def test_rows_that_were_transformed_are_not_transformed_again_while_those_that_they_came_from_are_kept(
    upgraded: TestClient, worker: WorkerParts
) -> None:
    register_transformation(upgraded, "v1", "v3")
    register_transformation(upgraded, "v2", "v3")
    import_vectors(upgraded, ["only-new"], version="v2")

    upgrade_id = start_upgrade(upgraded, "v3", cutover="auto")
    run_until(worker, upgraded, upgrade_id, "live")

    path = upgraded.get(f"/v1/upgrades/{upgrade_id}").json()["path"]
    assert path == [{"generation": 1, "transformations": [2]}, {"generation": 2, "transformations": [3]}]
    found = generation_rows(worker, 3).embedding.astype(np.float32)
    direct = by_h(generation_rows(worker, 1), "v1", "v3")
    only_new = by_h(generation_rows(worker, 2), "v2", "v3")[12:]
    np.testing.assert_allclose(found, np.concatenate([direct, only_new]), atol=1e-3, rtol=1e-3)


def test_with_both_ways_as_long_the_active_generation_is_read(upgraded: TestClient, worker: WorkerParts) -> None:
    """From v1 by both transformations in turn, or from what the first has given already."""
    register_transformation(upgraded, "v2", "v3")

    upgrade_id = start_upgrade(upgraded, "v3", cutover="auto")
    run_until(worker, upgraded, upgrade_id, "live")

    assert upgraded.get(f"/v1/upgrades/{upgrade_id}").json()["path"] == [{"generation": 2, "transformations": [2]}]
    expected = by_h(generation_rows(worker, 2), "v2", "v3")
    found = generation_rows(worker, 3).embedding.astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("class", [{"generation": 2, "transformations": [3]}]),
        ("instance", [{"generation": 1, "transformations": [2, 3]}, {"generation": 2, "transformations": [3]}]),
    ],
)
def test_rows_that_were_drawn_to_classes_are_read_last_once_items_are_searched_for(
    client: TestClient, worker: WorkerParts, task: str, expected: list[dict[str, object]]
) -> None:
    for version in ("v1", "v2", "v3"):
        register_version(client, version)
    networks = {
        "h": save_network(Transformation(6, 5, 8, inner_dim=8, classes=3)),
        "g": transformation_bytes(6, 5, 4, seed=8),
    }
    client.post("/v1/transformations", data={"from_version": "v1", "to_version": "v2"}, files=networks)
    create_gallery(client, task="class")
    post_images(client, range(4))
    run_until(worker, client, start_upgrade(client, "v2", cutover="auto"), "live")
    register_transformation(client, "v1", "v2")  # draws nothing to classes
    register_transformation(client, "v2", "v3")
    client.patch("/v1/galleries/g", json={"task": task})

    upgrade_id = start_upgrade(client, "v3")

    assert client.get(f"/v1/upgrades/{upgrade_id}").json()["path"] == expected


def test_a_chain_of_rollbacks_goes_back_one_by_one(upgraded: TestClient, worker: WorkerParts) -> None:
    register_transformation(upgraded, "v2", "v3")
    second = start_upgrade(upgraded, "v3", cutover="auto")
    run_until(worker, upgraded, second, "live")
    post_images(upgraded, [77])

    too_early = upgraded.post("/v1/upgrades/1/rollback")
    answers = [upgraded.post(f"/v1/upgrades/{upgrade_id}/rollback").json() for upgrade_id in (second, 1)]

    assert too_early.status_code == 409
    assert [answer["state"] for answer in answers] == ["rolled_back", "rolled_back"]
    assert len(generation_rows(worker, 1)) == 13


def test_of_two_transformations_of_a_pair_one_is_named_or_the_default_in_a_dry_run_too(client: TestClient) -> None:
    for name in ("v1", "v2"):
        register_version(client, name)
    older, newer = (register_transformation(client, "v1", "v2") for _ in range(2))
    create_gallery(client)

    wanted = {"to_version": "v2", "observe": True}
    asked = [client.post("/v1/galleries/g/upgrades", json=wanted | {"dry_run": dry}) for dry in (True, False)]
    client.patch(f"/v1/transformations/{newer}", json={"default": True})
    measured = client.post("/v1/galleries/g/upgrades", json=wanted | {"dry_run": True}).json()
    paths = []
    for named in (None, older):
        upgrade_id = start_upgrade(client, "v2", transformation=named)
        paths.append(client.get(f"/v1/upgrades/{upgrade_id}").json()["path"][0]["transformations"])
        client.post(f"/v1/upgrades/{upgrade_id}/cancel")

    for answer in asked:
        check_problem(answer, 409, f"2 transformations lead from 'v1' to 'v2' ({older}, {newer})")
        assert [error["transformation"] for error in answer.json()["errors"]] == [older, newer]
    assert measured["path"][0]["transformations"] == [newer]
    assert "It is the default of 2" in measured["reason"]
    assert paths == [[newer], [older]]


def test_a_default_is_one_of_its_pair_and_can_be_given_up(client: TestClient) -> None:
    for name in DIMS:
        register_version(client, name)
    first, second = (register_transformation(client, "v1", "v2") for _ in range(2))
    other_pair = register_transformation(client, "v2", "v3")

    def defaults() -> list[int]:
        return [one["id"] for one in client.get("/v1/transformations").json()["items"] if one["default"]]

    before = defaults()
    for transformation_id in (first, other_pair, second):
        answer = client.patch(f"/v1/transformations/{transformation_id}", json={"default": True})
        assert (answer.status_code, answer.json()["default"]) == (200, True)
    both = defaults()
    client.patch(f"/v1/transformations/{second}", json={"default": False})

    assert (before, both, defaults()) == ([], [second, other_pair], [other_pair])
    check_problem(client.patch("/v1/transformations/99", json={"default": True}), 404, "99")
    check_problem(client.patch(f"/v1/transformations/{first}", json={}), 422, "default")


def test_an_h_that_draws_items_to_classes_is_refused_until_the_gallery_is_searched_by_class(client: TestClient) -> None:
    for version in ("v1", "v2"):
        register_version(client, version)
    networks = {"h": save_network(Transformation(6, 5, 8, inner_dim=8, classes=3))}
    client.post("/v1/transformations", data={"from_version": "v1", "to_version": "v2"}, files=networks)
    create_gallery(client)

    refused = client.post("/v1/galleries/g/upgrades", json={"to_version": "v2"})
    client.patch("/v1/galleries/g", json={"task": "class"})
    accepted = client.post("/v1/galleries/g/upgrades", json={"to_version": "v2"})

    assert refused.status_code == 409
    assert "draws items to the means of their classes" in refused.json()["detail"]
    assert accepted.status_code == 202
