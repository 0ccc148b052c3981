"""Cutover and rollback: what was written meanwhile is taken along, or refused by name."""

from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.gallery.current_rows import missing_items
from service.domain.gallery.generations import GenerationKey
from service.domain.upgrade.upgrades import get_upgrade
from tests.rows import all_rows
from tests.scenario import post_vectors, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts


def test_vectors_imported_while_an_upgrade_is_ready_are_live_after_the_cutover(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    assert post_vectors(gallery, ["late-1", "late-2"]).status_code == 200
    gallery.delete("/v1/galleries/g/items/image-3.png")

    with worker.database.session_scope() as session:
        get_upgrade(session, upgrade_id).cutover = "auto"
    run_until(worker, gallery, upgrade_id, "live")

    _, new = all_rows(worker, upgrade_id)
    assert len(new) == 21
    assert gallery.get("/v1/galleries/g/items/late-1").status_code == 200


def test_vectors_of_both_versions_survive_a_rollback_and_those_of_one_refuse_it(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    assert post_vectors(gallery, ["early"], previous="v1").status_code == 422
    run_until(worker, gallery, upgrade_id, "live")
    gallery.get(f"/v1/upgrades/{upgrade_id}")

    assert post_vectors(gallery, ["both"], version="v2", previous="v1").status_code == 200
    assert post_vectors(gallery, ["one"], version="v2").status_code == 200
    refused = gallery.post(f"/v1/upgrades/{upgrade_id}/rollback")
    gallery.delete("/v1/galleries/g/items/one")
    rolled_back = gallery.post(f"/v1/upgrades/{upgrade_id}/rollback")

    assert refused.status_code == 409
    assert "lose 1 item(s) that" in refused.json()["detail"]
    assert "'one'" in refused.json()["detail"]
    assert rolled_back.json()["state"] == "rolled_back"
    assert gallery.get("/v1/galleries/g/items/both").status_code == 200
    with worker.database.session_scope() as session:
        assert missing_items(session, GenerationKey(1, 1)) == []


def test_a_rollback_that_would_lose_more_items_than_a_statement_has_parameters_names_the_first_ones(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    run_until(worker, gallery, upgrade_id, "live")
    with worker.database.session_scope() as session:
        session.execute(
            text(
                "INSERT INTO items (gallery_id, external_id, revision)"
                " SELECT 1, 'late-' || number, 1000 + number FROM generate_series(1, 70000) AS number"
            )
        )
        session.execute(text("UPDATE galleries SET revision = 71000, items = items + 70000"))

    refused = gallery.post(f"/v1/upgrades/{upgrade_id}/rollback")

    assert refused.status_code == 409
    assert "lose 70000 item(s) that only the new generation has: 'late-1', 'late-2'," in refused.json()["detail"]
