"""When a new index file is due: by the size of a gallery, its changes, the kind it asks for and the queries kept."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.indexes.faiss_engine import FaissEngine
from service.settings import Settings
from tests.rebuilds import (
    AFTER_CHANGES,
    FEWEST_QUERIES,
    FROM_ROWS,
    ask,
    ask_vectors,
    create_gallery_with_rows_for_a_file,
    delete_image,
    due,
    found,
    is_nearest,
    jobs,
    leftovers,
    let_jobs_rest,
    rebuild,
    replace_image,
    row,
    served,
    soon_due,
)
from tests.scenario import DIMS, create_upgradable_gallery, post_images, search, start_upgrade
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts
from workers.rebuilding import rebuild_index

if TYPE_CHECKING:
    from service.api.dependencies import Parts


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return soon_due(settings)


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    create_gallery_with_rows_for_a_file(client)
    return client


def sample(client: TestClient) -> list[bytes]:
    """Return the kept queries."""
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # Starlette's state is untyped
    with parts.database.session_scope() as session:
        return list(session.scalars(text("SELECT vector FROM query_samples")))


def test_a_file_is_due_when_a_gallery_is_large_enough_and_again_when_enough_of_it_changed(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(FROM_ROWS - 1))
    assert due(worker) is None
    delete_image(client, 0)
    post_images(client, [20])
    assert due(worker) is None  # eleven revisions, and nine items

    post_images(client, [21])
    rebuild(worker, client)
    assert leftovers(served(client).index) == (0, 0)

    replace_image(client, "image-1.png", 31)
    post_images(client, [22])
    delete_image(client, 2)
    assert leftovers(served(client).index) == (2, 2)
    assert due(worker) is None  # three changes
    delete_image(client, 3)
    let_jobs_rest(worker, 60)
    assert due(worker) is not None


def test_a_larger_gallery_waits_for_a_share_of_its_rows(gallery: TestClient, worker: WorkerParts) -> None:
    post_images(gallery, range(10, 30))
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)

    post_images(gallery, range(30, 35))
    assert due(worker) is None
    post_images(gallery, [35])  # the sixth of thirty

    assert due(worker) is not None


def test_a_file_whose_width_was_chosen_by_rows_is_due_once_when_enough_queries_are_kept(
    gallery: TestClient, worker: WorkerParts
) -> None:
    ask_vectors(gallery, FEWEST_QUERIES - 1)
    rebuild(worker, gallery)
    by_rows = row(worker, 1)["index_parameters"]
    let_jobs_rest(worker, 60)
    assert due(worker) is None

    ask_vectors(gallery, FEWEST_QUERIES)
    rebuild(worker, gallery)
    by_queries = row(worker, 1)["index_parameters"]
    assert [f"indexes/{name}" for name in worker.blobs.list_files("indexes")] == [row(worker, 1)["index_name"]]
    ask_vectors(gallery, FEWEST_QUERIES // 2)
    let_jobs_rest(worker, 60)

    assert due(worker) is None
    assert (by_rows["recall_sample"], by_rows["recall_sample_size"]) == ("rows", FROM_ROWS)
    assert by_queries["recall_sample"] == "queries"
    assert by_queries["recall_sample_size"] >= FEWEST_QUERIES
    assert by_queries["recall_at_10"] == by_rows["recall_at_10"] == 1.0
    assert jobs(gallery) == [("index_build", "succeeded")] * 2


def test_a_width_that_few_queries_chose_is_chosen_again_by_all_that_are_wanted(
    gallery: TestClient, worker: WorkerParts
) -> None:
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)
    ask_vectors(gallery, FEWEST_QUERIES)
    rebuild(worker, gallery)
    few = row(worker, 1)["index_parameters"]["recall_sample_size"]
    let_jobs_rest(worker, 60)
    while len(sample(gallery)) < 2 * FEWEST_QUERIES - 1:
        assert due(worker) is None
        ask(gallery, [np.random.default_rng(len(sample(gallery))).standard_normal(DIMS["v1"][0]).tolist()])

    while len(sample(gallery)) < 2 * FEWEST_QUERIES:
        ask_vectors(gallery, 1)
    rebuild_index(worker, 1)
    all_wanted = row(worker, 1)["index_parameters"]["recall_sample_size"]

    assert FEWEST_QUERIES - 2 <= few < 2 * FEWEST_QUERIES
    assert all_wanted == 2 * FEWEST_QUERIES
    let_jobs_rest(worker, 60)
    assert due(worker) is None


def test_an_exact_index_is_not_due_for_its_width(gallery: TestClient, worker: WorkerParts) -> None:
    assert gallery.patch("/v1/galleries/g", json={"index": "flat"}).is_success
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)

    ask_vectors(gallery, FEWEST_QUERIES)

    assert due(worker) is None


def test_after_an_upgrade_only_queries_of_the_new_version_make_its_file_due(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(FROM_ROWS - 1))  # too few for a file of the first generation
    ask_vectors(client, FEWEST_QUERIES)
    upgrade_id = start_upgrade(client, "v2", cutover="auto")
    run_until(worker, client, upgrade_id, "live")
    wait_for(lambda: search(client, 1)["model_version"] == "v2")
    let_jobs_rest(worker, 60)
    assert row(worker, 2)["index_parameters"]["recall_sample"] == "rows"
    assert due(worker) is None

    ask_vectors(client, FEWEST_QUERIES, version="v2")
    rebuild(worker, client)

    assert row(worker, 2)["index_parameters"]["recall_sample"] == "queries"
    let_jobs_rest(worker, 60)
    assert due(worker) is None


def test_what_is_due_for_other_reasons_does_not_wait_until_more_has_changed(
    gallery: TestClient, worker: WorkerParts
) -> None:
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)
    for seed in range(31, 31 + AFTER_CHANGES):
        replace_image(gallery, "image-1.png", seed)
    assert due(worker) is None  # one item changed, again and again: it is not looked at again for a while

    ask_vectors(gallery, FEWEST_QUERIES)

    assert due(worker) == 1


def test_a_file_is_due_when_the_gallery_asks_for_another_kind(gallery: TestClient, worker: WorkerParts) -> None:
    rebuild(worker, gallery)
    before = found(gallery)
    let_jobs_rest(worker, 60)
    assert due(worker) is None

    assert gallery.patch("/v1/galleries/g", json={"index": "ivf"}).is_success
    rebuild(worker, gallery)

    assert row(worker, 1)["index_parameters"]["kind"] == "ivf"
    assert found(gallery) == before
    let_jobs_rest(worker, 60)
    assert gallery.patch("/v1/galleries/g", json={"index": "auto"}).is_success
    assert due(worker) is None


def test_items_that_change_over_and_over_are_no_more_than_they_are(gallery: TestClient, worker: WorkerParts) -> None:
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)
    for seed in range(40, 50):
        replace_image(gallery, "image-1.png", seed)

    assert due(worker) is None  # ten revisions, and one item
    assert isinstance(worker.engine, FaissEngine)
    (not_before,) = worker.engine.rebuilds.not_before.values()

    assert not_before == served(gallery).revision + AFTER_CHANGES - 1


def test_a_build_is_followed_by_a_rest_as_long_as_itself(gallery: TestClient, worker: WorkerParts) -> None:
    rebuild(worker, gallery)
    post_images(gallery, range(20, 30))
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE jobs SET created_at = updated_at - interval '100 s'"))

    let_jobs_rest(worker, 90)
    assert due(worker) is None
    let_jobs_rest(worker, 20)

    assert due(worker) is not None


def test_the_generation_that_is_kept_for_a_rollback_gets_a_file_after_the_active_one(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    run_until(worker, gallery, upgrade_id, "live")
    wait_for(lambda: search(gallery, 1)["model_version"] == "v2")
    post_images(gallery, range(20, 24))
    let_jobs_rest(worker, 60)

    rebuild(worker, gallery)
    assert (row(worker, 1)["index_name"], served(gallery).generation_id) == (None, 2)
    rebuild(worker, gallery)

    assert leftovers(served(gallery, 1).index) == leftovers(served(gallery, 2).index) == (0, 0)
    gallery.post(f"/v1/upgrades/{upgrade_id}/rollback")
    assert search(gallery, 1)["model_version"] == "v1"
    assert is_nearest(gallery, "image-23.png", 23)
