"""Encoding the images of queries while somebody deletes them, or dies: what was encoded stays, and is done once."""

from collections.abc import Callable

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.blobs import BlobStore
from service.domain.judging.asked_queries import encode_queries
from service.domain.judging.probe_references import encode_probe_images
from service.domain.upgrade.upgrades import get_upgrade
from service.networks.encoders import Encoders
from service.settings import Settings
from service.tables import Upgrade
from tests.endless import endless_encoder
from tests.judged import DIM, post_class_images, post_query_images, register_h, register_two_spaces
from tests.registrations import post_version
from tests.scenario import create_gallery, post_images, start_upgrade
from workers.app import WorkerParts

QUERIES = 40  # of which a quarter is encoded at a time


class ReadBlobs(BlobStore):
    """A blob store; `before` is told how many images were read when another one is."""

    def __init__(self, url: str, before: Callable[[int], object]) -> None:
        super().__init__(url)
        self._before = before
        self.read = 0

    def get(self, digest: str) -> bytes:
        self._before(self.read)
        self.read += 1
        return super().get(digest)


@pytest.fixture
def upgrade(client: TestClient, worker: WorkerParts) -> Upgrade:
    """An upgrade of a gallery that has a query set `asked`."""
    register_h(client, register_two_spaces(client))
    post_class_images(client, range(10))
    assert post_query_images(client, range(100, 100 + QUERIES)).is_success
    upgrade_id = start_upgrade(client, "v2")
    with worker.database.session_scope() as session:
        return get_upgrade(session, upgrade_id)


def encode(worker: WorkerParts, upgrade: Upgrade, before: Callable[[int], object]) -> int:
    """Encode the queries; return how many images were read."""
    blobs = ReadBlobs(worker.settings.blob_location, before)
    settings = worker.settings.model_copy(update={"encode_batch_items": QUERIES // 4})
    encode_queries(worker.database, blobs, Encoders(worker.blobs, settings), upgrade, 1_000, 0)
    return blobs.read


def kept(worker: WorkerParts) -> int:
    """Return how many vectors of queries are kept."""
    with worker.database.session_scope() as session:
        return int(session.scalars(text("SELECT count(*) FROM query_vectors")).one())


def test_a_set_that_is_deleted_while_its_images_are_encoded_leaves_nothing(
    client: TestClient, worker: WorkerParts, upgrade: Upgrade
) -> None:
    def delete(read: int) -> None:
        if read == 20:
            assert client.delete("/v1/galleries/g/query-sets/asked").status_code == 204

    encode(worker, upgrade, delete)

    assert kept(worker) == 0
    assert client.get("/v1/galleries/g/query-sets").json()["items"] == []


def test_what_was_encoded_when_a_worker_died_is_not_encoded_again(worker: WorkerParts, upgrade: Upgrade) -> None:
    def die(read: int) -> None:
        if read == QUERIES - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(worker, upgrade, die)
    of_before = kept(worker)
    read = encode(worker, upgrade, lambda read: None)

    assert 0 < of_before < 2 * QUERIES
    assert read == QUERIES - of_before // 2
    assert kept(worker) == 2 * QUERIES
    assert encode(worker, upgrade, lambda read: None) == 0


def test_images_that_a_network_never_ends_on_are_passed_over_and_the_others_are_kept(
    client: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    """φ of v2 is endless for ten images at a time; the last few are fewer."""
    assert post_version(client, "v1", endless_encoder(DIM, rows=1_000), embedding_dim=DIM).is_success
    assert post_version(client, "v2", endless_encoder(DIM, rows=10), embedding_dim=DIM).is_success
    create_gallery(client)
    register_h(client, np.eye(DIM, dtype=np.float32))
    client.patch("/v1/galleries/g", json={"probe_images": 10})
    post_images(client, range(10))
    assert post_query_images(client, range(100, 115)).is_success
    upgrade_id = start_upgrade(client, "v2")
    with worker.database.session_scope() as session:
        upgrade = get_upgrade(session, upgrade_id)
    encoders = Encoders(worker.blobs, settings.model_copy(update={"encode_batch_items": 10, "network_seconds": 4.0}))

    encode_queries(worker.database, worker.blobs, encoders, upgrade, 1_000, 0)
    encode_probe_images(worker.database, encoders, upgrade)

    with worker.database.session_scope() as session:
        of_versions = "SELECT count(*) FROM query_vectors GROUP BY model_version_id ORDER BY model_version_id"
        assert session.scalars(text(of_versions)).all() == [15, 5]
        assert session.scalars(text("SELECT count(*) FROM reference_pairs")).one() == 0
