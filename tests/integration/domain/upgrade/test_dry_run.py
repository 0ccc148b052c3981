"""A dry run measures what an upgrade would take."""

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from tests.scenario import create_gallery, post_images, start_upgrade
from workers.app import WorkerParts


def test_a_dry_run_measures_and_writes_nothing(gallery: TestClient, worker: WorkerParts) -> None:
    answer = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2", "dry_run": True})

    estimate = answer.json()
    assert (answer.status_code, estimate["items"], estimate["measured_items"]) == (200, 20, 20)
    assert estimate["seconds"] > 0
    assert estimate["ahead"] == {"upgrades": [], "items": 0, "trainings": 0, "index_builds": 0}
    assert estimate["seconds_ahead"] == 0
    assert estimate["bytes"] > 20 * 2 * (8 + 4)
    assert [len(leg["transformations"]) for leg in estimate["path"]] == [1]
    assert gallery.get("/v1/galleries/g/upgrades").json()["items"] == []
    with worker.database.session_scope() as session:
        assert session.scalars(text("SELECT count(*) FROM generations")).one() == 1
    refused = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v1", "dry_run": True})
    assert refused.status_code == 409


def test_a_dry_run_says_what_workers_have_at_hand(gallery: TestClient, worker: WorkerParts) -> None:
    create_gallery(gallery, "other")
    post_images(gallery, range(6), "other")
    other = start_upgrade(gallery, "v2", "other")
    wanted = {"to_version": "v2", "dry_run": True}

    estimate = gallery.post("/v1/galleries/g/upgrades", json=wanted).json()

    assert estimate["ahead"] == {"upgrades": [other], "items": 6, "trainings": 0, "index_builds": 0}
    assert estimate["seconds_ahead"] == pytest.approx(6 * estimate["seconds"] / 20)
    gallery.patch(f"/v1/upgrades/{other}", json={"speed": 0})
    assert gallery.post("/v1/galleries/g/upgrades", json=wanted).json()["ahead"]["upgrades"] == []
