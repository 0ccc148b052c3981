"""Which queries a search over HTTP gives to the sample that is kept."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.api.dependencies import Parts
from service.domain.upgrade.cutover import request_cutover
from service.tables import ModelVersion
from tests.networks import image_bytes
from tests.scenario import DIMS, create_upgradable_gallery, post_images, search, start_upgrade
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts

if TYPE_CHECKING:
    import httpx


def parts_of(client: TestClient) -> Parts:
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # Starlette's state is untyped
    return parts


def kept_by_version(client: TestClient) -> dict[str, list[bytes]]:
    """Return the kept queries of each version, in order, after what was noted has been written."""
    parts = parts_of(client)
    parts.query_samples.write()
    query = text(
        "SELECT v.name, array_agg(q.vector ORDER BY q.vector) FROM query_samples q"
        " JOIN model_versions v ON v.id = q.model_version_id GROUP BY v.name"
    )
    with parts.database.session_scope() as session:
        return {name: [bytes(vector) for vector in vectors] for name, vectors in session.execute(query)}


def ask_vectors(client: TestClient, vectors: list[list[float]], which: str = "active") -> int:
    body = {"vectors": vectors, "k": 3}
    answer: httpx.Response = client.post("/v1/galleries/g/search/vectors", json=body, params={"generation": which})
    return answer.status_code


def as_bytes(*vectors: list[float]) -> list[bytes]:
    return sorted(np.array(vector, "<f4").tobytes() for vector in vectors)


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 has 8 images and can be upgraded to v2."""
    create_upgradable_gallery(client)
    post_images(client, range(8))
    return client


def test_queries_are_kept_under_the_version_that_answered_before_and_after_a_cutover(
    gallery: TestClient, worker: WorkerParts
) -> None:
    first, second = DIMS["v1"][0], DIMS["v2"][0]
    assert ask_vectors(gallery, [[0.5] * first, [0.25] * first]) == 200
    assert kept_by_version(gallery) == {"v1": as_bytes([0.5] * first, [0.25] * first)}
    upgrade_id = start_upgrade(gallery, "v2", cutover="manual")
    run_until(worker, gallery, upgrade_id, "ready")
    wait_for(lambda: ask_vectors(gallery, [[0.75] * second], "next") == 200)
    assert kept_by_version(gallery)["v2"] == as_bytes([0.75] * second)

    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id)
    run_until(worker, gallery, upgrade_id, "live")
    wait_for(lambda: ask_vectors(gallery, [[1.0] * second]) == 200)

    assert kept_by_version(gallery) == {
        "v1": as_bytes([0.5] * first, [0.25] * first),
        "v2": as_bytes([0.75] * second, [1.0] * second),
    }


def test_a_query_by_an_image_is_kept_as_its_embedding_without_the_image(gallery: TestClient) -> None:
    search(gallery, 50)
    gallery.post("/v1/galleries/g/search", params={"k": 1}, content=image_bytes(51))

    parts = parts_of(gallery)
    with parts.database.session_scope() as session:
        version = session.query(ModelVersion).filter_by(name="v1").one()
    encoder = parts.search.encoders.get(version)
    images = [parts.search.encoders.images.reduce(image_bytes(seed), [encoder.preprocessing]) for seed in (50, 51)]
    embeddings = encoder.encode_embedding(lambda: images)
    (found,) = kept_by_version(gallery).values()
    vectors = np.sort(np.frombuffer(b"".join(found), "<f4").reshape(2, -1), axis=0)
    np.testing.assert_allclose(vectors, np.sort(embeddings, axis=0), rtol=1e-5, atol=1e-5)


def test_queries_by_items_and_queries_that_are_refused_are_not_kept(gallery: TestClient) -> None:
    items = gallery.post("/v1/galleries/g/search/items", json={"ids": ["image-1.png", "image-2.png"]})
    refused = ask_vectors(gallery, [[0.5] * 5])

    assert (items.status_code, refused) == (200, 422)
    assert kept_by_version(gallery) == {}
