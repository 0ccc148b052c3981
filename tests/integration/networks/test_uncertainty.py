"""What h expects of its own errors goes with each row: through batches and catch-up, into items, hits and filters."""

from typing import Any

import numpy as np
import torch
from fastapi.testclient import TestClient

from models.artifacts import save_network
from models.transformation import Transformation
from tests.networks import encoder_bytes, transformation_bytes
from tests.registrations import post_transformation, post_version
from tests.rows import all_rows
from tests.scenario import create_gallery, import_vectors, post_images, search, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts

VERSIONS = {"v1": (6, 5), "v2": (8, 4), "v3": (7, 3)}


def h_with_head() -> Transformation:
    torch.manual_seed(0)
    return Transformation(6, 5, 8, inner_dim=16, members=2, linear=True, error_head=True).eval()


def register(client: TestClient, h: Transformation) -> None:
    for seed, (name, (dim, side_dim)) in enumerate(VERSIONS.items()):
        phi, psi = encoder_bytes(dim, seed), encoder_bytes(side_dim, 10 + seed)
        assert post_version(client, name, phi, psi, embedding_dim=dim, side_information_dim=side_dim).is_success
    assert post_transformation(client, "v1", "v2", save_network(h), transformation_bytes(6, 5, 4, 8)).is_success
    assert post_transformation(
        client, "v2", "v3", transformation_bytes(8, 4, 7, 9), transformation_bytes(8, 4, 3, 10)
    ).is_success


def follow(client: TestClient) -> None:
    """Have the service answer by the generation that is active now."""
    client.app.state.parts.replicas.refresh(1)  # type: ignore[attr-defined]  # untyped state


def items_of(client: TestClient) -> dict[str, Any]:
    return {item["id"]: item for item in client.get("/v1/galleries/g/items").json()["items"]}


def test_rows_items_hits_and_filters_have_the_errors_that_h_expects(client: TestClient, worker: WorkerParts) -> None:
    h = h_with_head()
    register(client, h)
    create_gallery(client)
    post_images(client, range(9))
    import_vectors(client, ["imported"])

    upgrade_id = start_upgrade(client, "v2", cutover="auto")
    post_images(client, [20])  # encoded by both versions
    run_until(worker, client, upgrade_id, "live")
    follow(client)

    old, new = all_rows(worker, upgrade_id)
    assert (old.hops.tolist(), old.uncertainty.tolist()) == ([0] * 11, [0.0] * 11)
    assert new.hops.tolist() == [1] * 10 + [0]
    assert old.side_information is not None
    with torch.inference_mode():
        given = (torch.from_numpy(values[:10].astype(np.float32)) for values in (old.embedding, old.side_information))
        expected = h.with_uncertainty(*given)[1]
    assert expected is not None
    np.testing.assert_allclose(new.uncertainty[:10], expected.numpy(), rtol=1e-2)
    assert new.uncertainty[10] == 0

    items = items_of(client)
    told = [items[name]["uncertainty"] for name in [*(f"image-{seed}.png" for seed in range(9)), "imported"]]
    np.testing.assert_array_equal(np.array(told, np.float32), new.uncertainty[:10])
    assert (items["imported"]["origin"], items["imported"]["hops"]) == ("transformed", 1)
    encoded = items["image-20.png"]
    assert (encoded["origin"], encoded["hops"], encoded["uncertainty"]) == ("encoded", 0, None)

    hits = {hit["id"]: hit["uncertainty"] for hit in search(client, 20, k=11)["neighbors"]}
    assert hits == {name: item["uncertainty"] for name, item in items.items()}
    middle = float(np.median(new.uncertainty))
    body = {"vectors": [[0.0] * 8], "k": 11, "filter": {"uncertainty": {"lte": middle}}}
    found = client.post("/v1/galleries/g/search/vectors", json=body).json()["neighbors"][0]
    assert {hit["id"] for hit in found} == {name for name, told in hits.items() if told is None or told <= middle}


def test_hops_add_up_and_an_h_that_does_not_say_leaves_the_error_unknown(
    client: TestClient, worker: WorkerParts
) -> None:
    register(client, h_with_head())
    create_gallery(client)
    post_images(client, range(3))
    first = start_upgrade(client, "v2", cutover="auto")
    run_until(worker, client, first, "live")
    assert client.post(f"/v1/upgrades/{first}/finalize").is_success

    second = start_upgrade(client, "v3", cutover="auto")
    run_until(worker, client, second, "live")
    follow(client)

    _, new = all_rows(worker, second)
    assert new.hops.tolist() == [2, 2, 2]
    assert np.isnan(new.uncertainty).all()
    assert [(item["hops"], item["uncertainty"]) for item in items_of(client).values()] == [(2, None)] * 3
    assert {hit["uncertainty"] for hit in search(client, 0)["neighbors"]} == {None}
    body = {"vectors": [[0.0] * 7], "k": 3, "filter": {"uncertainty": {"gte": 0}}}
    assert client.post("/v1/galleries/g/search/vectors", json=body).json()["neighbors"] == [[]]
