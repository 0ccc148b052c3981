"""Encoding the images of queries while somebody deletes them, or dies: what was encoded stays, and is done once."""

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.blobs import BlobStore
from service.domain.judging.asked_queries import encode_queries
from service.domain.upgrade.upgrades import get_upgrade
from service.networks.encoders import Encoders
from service.tables import Upgrade
from tests.judged import post_class_images, post_query_images, register_h, register_two_spaces
from tests.scenario import start_upgrade
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
