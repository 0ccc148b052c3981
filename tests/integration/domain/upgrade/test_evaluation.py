"""What is recorded about retrieval before a cutover, over HTTP."""

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from service.vectors.rows import EmbeddingRows
from tests.rows import all_rows
from tests.scenario import (
    create_upgradable_gallery,
    import_vectors,
    post_images,
    start_upgrade,
)
from tests.working import run_until
from workers.app import WorkerParts

IMAGES = 20


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    create_upgradable_gallery(client)
    return client


def share_with_a_neighbour_of_its_class(rows: EmbeddingRows, classes: NDArray[np.int64]) -> float:
    """Return CMC@1 by brute force, every row but itself being the gallery."""
    vectors = rows.embedding.astype(np.float64)
    distances = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((classes[distances.argmin(axis=1)] == classes).mean())


def test_an_upgrade_records_retrieval_of_labelled_items_before_and_after(
    gallery: TestClient, worker: WorkerParts
) -> None:
    post_images(gallery, range(IMAGES))
    upgrade_id = start_upgrade(gallery, "v2")

    run_until(worker, gallery, upgrade_id, "ready")

    evaluation = gallery.get(f"/v1/upgrades/{upgrade_id}").json()["evaluation"]
    assert (evaluation["items"], evaluation["items_waiting"], evaluation["labelled_items"]) == (IMAGES, 0, IMAGES)
    assert evaluation["index"]["recall_at_10"] == 1.0
    classes = np.arange(IMAGES) % 3
    before, after = (share_with_a_neighbour_of_its_class(rows, classes) for rows in all_rows(worker, upgrade_id))
    assert evaluation["cmc_at_1"] == {"before": pytest.approx(before), "after": pytest.approx(after)}


@pytest.mark.parametrize("images", [0, 3], ids=["no labels", "no label twice"])
def test_without_two_items_of_one_label_there_is_no_figure_and_the_upgrade_goes_on(
    gallery: TestClient, worker: WorkerParts, images: int
) -> None:
    import_vectors(gallery, ["without a label", "another"])
    if images:
        post_images(gallery, range(images))
    upgrade_id = start_upgrade(gallery, "v2")

    run_until(worker, gallery, upgrade_id, "ready")

    evaluation = gallery.get(f"/v1/upgrades/{upgrade_id}").json()["evaluation"]
    assert (evaluation["labelled_items"], evaluation["cmc_at_1"]) == (0, {"before": None, "after": None})
