"""A dry run measures what an upgrade would take."""

from fastapi.testclient import TestClient
from sqlalchemy import text

from workers.app import WorkerParts


def test_a_dry_run_measures_and_writes_nothing(gallery: TestClient, worker: WorkerParts) -> None:
    answer = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2", "dry_run": True})

    estimate = answer.json()
    assert (answer.status_code, estimate["items"], estimate["measured_items"]) == (200, 20, 20)
    assert estimate["seconds"] > 0
    assert estimate["bytes"] > 20 * 2 * (8 + 4)
    assert [len(leg["transformations"]) for leg in estimate["path"]] == [1]
    assert gallery.get("/v1/galleries/g/upgrades").json()["items"] == []
    with worker.database.session_scope() as session:
        assert session.scalars(text("SELECT count(*) FROM generations")).one() == 1
    refused = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v1", "dry_run": True})
    assert refused.status_code == 409
