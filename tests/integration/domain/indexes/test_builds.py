"""Index builds of an upgrade: cancelled in the middle, beside writes, and the kind that is built."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.gallery.generations import get_stored_generation
from service.domain.indexes.query_samples import sample_rows
from tests.fakes import WatchedEngine
from tests.networks import image_bytes
from tests.scenario import create_upgradable_gallery, post_images, search, start_upgrade, state_of
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 has 20 images and can be upgraded to v2."""
    create_upgradable_gallery(client)
    post_images(client, range(20))
    return client


def test_a_cancel_in_the_middle_of_an_index_build_ends_the_build(gallery: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    cancelled: list[Future[Any]] = []

    def cancel() -> None:
        cancelled.append(threads.submit(gallery.post, f"/v1/upgrades/{upgrade_id}/cancel"))
        wait_for(lambda: state_of(gallery, upgrade_id) == "cancelled")

    watched = replace(worker, engine=WatchedEngine(worker.engine, cancel))
    with ThreadPoolExecutor() as threads:
        while advance_upgrade(watched, upgrade_id):
            pass
        answer = cancelled[0].result(timeout=30)

    assert answer.json()["state"] == "cancelled"
    with worker.database.session_scope() as session:
        assert session.scalars(text("SELECT to_regclass('embeddings_2')")).one() is None


def test_what_is_written_while_an_index_is_built_is_found_after_the_cutover(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")

    def write() -> None:
        for name, seed in (("image-1.png", 31), ("image-18.png", 48)):
            assert gallery.post("/v1/galleries/g/images", files=[("files", (name, image_bytes(seed)))]).is_success
        post_images(gallery, [50])
        for name in ("image-0.png", "image-19.png"):
            assert gallery.delete(f"/v1/galleries/g/items/{name}").status_code == 204

    run_until(replace(worker, engine=WatchedEngine(worker.engine, write)), gallery, upgrade_id, "live")

    wait_for(lambda: search(gallery, 1)["model_version"] == "v2")
    names = {f"image-{number}.png" for number in [*range(1, 19), 50]}
    assert {neighbor["id"] for neighbor in search(gallery, 1, k=50)["neighbors"]} == names
    for name, seed in (("image-1.png", 31), ("image-18.png", 48), ("image-50.png", 50)):
        nearest = search(gallery, seed)["neighbors"][0]
        assert (nearest["id"], nearest["distance"]) == (name, pytest.approx(0, abs=1e-2))


@pytest.mark.parametrize(
    ("option", "flat_below_rows", "kind", "width"),
    [
        ("auto", 21, "flat", {}),
        ("auto", 20, "hnsw", {"ef_search": 64}),
        ("flat", 20, "flat", {}),
        ("hnsw", 21, "hnsw", {"ef_search": 64}),
        ("ivf", 21, "ivf", {"lists": 1, "nprobe": 1, "codes": "float16"}),
        ("ivf_sq8", 21, "ivf_sq8", {"lists": 1, "nprobe": 1, "codes": "8 bits"}),
    ],
)
def test_the_kind_of_index_is_the_one_asked_for_or_follows_from_the_number_of_rows(
    gallery: TestClient, worker: WorkerParts, option: str, flat_below_rows: int, kind: str, width: dict[str, Any]
) -> None:
    worker.settings.flat_below_rows = flat_below_rows
    changed = gallery.patch("/v1/galleries/g", json={"index": option})
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")

    run_until(worker, gallery, upgrade_id, "live")

    assert changed.json()["index"] == option
    with worker.database.session_scope() as session:
        parameters = session.scalars(text("SELECT index_parameters FROM generations ORDER BY id DESC LIMIT 1")).one()
    assert (parameters["kind"], parameters["rows"]) == (kind, 20)
    assert parameters["recall_at_10"] == (1.0 if kind != "ivf_sq8" else pytest.approx(1.0, abs=0.1))
    assert width.items() <= parameters.items()
    wait_for(lambda: search(gallery, 1)["model_version"] == "v2")
    assert len({neighbor["id"] for neighbor in search(gallery, 3, k=50)["neighbors"]}) == 20


def test_lists_are_learnt_from_rows_drawn_from_all(gallery: TestClient, worker: WorkerParts) -> None:
    worker.settings.batch_items = 3  # a sample is read in parts, too

    with worker.database.session_scope() as session:
        stored = get_stored_generation(session, 1, 1)
        drawn = [sample_rows(session, stored, 7, rows_at_once=3) for _ in range(8)]
        every = sample_rows(session, stored, 100, rows_at_once=3)

    assert [sample.vectors.shape for sample in drawn] == [(7, 6)] * 8
    assert every.ids.tolist() == list(range(1, 21))
    for sample in drawn:
        assert len(set(sample.ids.tolist())) == 7
        np.testing.assert_array_equal(sample.vectors, every.vectors[sample.ids - 1])
    assert len(set(np.concatenate([sample.ids for sample in drawn]).tolist())) > 14
