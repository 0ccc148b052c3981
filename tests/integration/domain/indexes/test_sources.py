"""Which generations a replica is told of, and how it loads their encoders."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.indexes.sources import read_states, warm
from service.index.served import GalleryState, GenerationState
from service.networks.encoders import Encoders
from service.networks.micro_batching import ImageQueryMetrics
from service.settings import Settings
from service.tables import ModelVersion
from tests.scenario import create_gallery, create_upgradable_gallery, post_images, register_version, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose galleries are `g` under v1, of 3 images, which can be upgraded to v2, and `more` under v2."""
    create_upgradable_gallery(client)
    create_gallery(client, "more", "v2")
    post_images(client, range(3))
    return client


MORE = GalleryState(2, 0, 2, (GenerationState(2, "v2", is_next=False, index_sha256=None),))
FIRST = GenerationState(1, "v1", is_next=False, index_sha256=None)


@pytest.mark.usefixtures("gallery")
def test_every_gallery_is_told_of_with_its_revision_and_its_generations_or_one_alone(worker: WorkerParts) -> None:
    everything, one, none = (read_states(worker.database, only) for only in (None, 2, 99))

    assert everything == [GalleryState(1, 3, 1, (FIRST,)), MORE]
    assert (one, none) == ([MORE], [])


def test_the_next_generation_is_told_of_when_its_index_is_named_until_it_is_dropped(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    while_transforming = read_states(worker.database, only=1)
    run_until(worker, gallery, upgrade_id, "ready")
    with_index = read_states(worker.database, only=1)
    gallery.post(f"/v1/upgrades/{upgrade_id}/cancel")
    cancelled = read_states(worker.database, only=1)

    with worker.database.session_scope() as session:
        sha256 = session.scalar(text("SELECT index_sha256 FROM generations WHERE id = 3"))
    assert sha256 is not None
    assert while_transforming == cancelled == [GalleryState(1, 3, 1, (FIRST,))]
    assert with_index == [GalleryState(1, 3, 1, (FIRST, GenerationState(3, "v2", is_next=True, index_sha256=sha256)))]


def test_an_encoder_that_cannot_be_loaded_is_a_line_in_the_log_and_stops_nobody(
    client: TestClient, worker: WorkerParts, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    register_version(client, "v1")
    with worker.database.session_scope() as session:
        version = session.query(ModelVersion).one()
    for path in Path(settings.blob_location.removeprefix("file://")).rglob(f"*{version.embedding_model_digest}*"):
        path.write_bytes(b"damaged")

    warm(Encoders(worker.blobs, settings, ImageQueryMetrics()), version)

    (line,) = [record.getMessage() for record in caplog.records if "replica.encoder_unusable" in record.getMessage()]
    assert "model_version='v1'" in line
