"""What changed after the main pass: found by revision, caught up, and rows of deleted items removed."""

from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.upgrade.catch_up import verify
from service.domain.upgrade.upgrades import get_upgrade
from tests.rows import all_rows
from tests.scenario import import_vectors, post_images, start_upgrade
from tests.working import run_until, with_settings
from workers.app import WorkerParts


def test_the_cutover_looks_only_at_what_changed_since_the_verified_revision(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")

    with worker.database.session_scope() as session:
        before = get_upgrade(session, upgrade_id).verified_revision
    import_vectors(gallery, ["late"])
    post_images(gallery, [100])
    with worker.database.session_scope() as session:
        behind = verify(session, upgrade_id)
        after = get_upgrade(session, upgrade_id).verified_revision

    assert (before, after) == (20, 20)  # the import waits, so nothing after it is verified
    assert behind == 2


def test_more_changes_than_a_cutover_may_look_at_are_caught_up_first(gallery: TestClient, worker: WorkerParts) -> None:
    worker = with_settings(worker, cutover_max_changes=3)
    upgrade_id = start_upgrade(gallery, "v2", observe=True)
    run_until(worker, gallery, upgrade_id, "ready")
    import_vectors(gallery, [f"late-{number}" for number in range(8)])

    with worker.database.session_scope() as session:
        get_upgrade(session, upgrade_id).cutover = "auto"
    run_until(worker, gallery, upgrade_id, "live")

    progress = gallery.get(f"/v1/upgrades/{upgrade_id}").json()["progress"]
    assert progress["catching_up"]["done"] == progress["catching_up"]["total"] == 8


def test_rows_of_items_deleted_under_a_batch_do_not_stay(gallery: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    gallery.delete("/v1/galleries/g/items/image-3.png")
    with worker.database.session_scope() as session:
        target = get_upgrade(session, upgrade_id).to_generation_id
        session.execute(
            text(
                f"INSERT INTO embeddings_{target} SELECT i.id, 1, 3, 1, 0, e.embedding, e.side_information"
                " FROM items i,"
                f" (SELECT * FROM embeddings_{target} LIMIT 1) e WHERE i.external_id = 'image-3.png'"
            )
        )

    with worker.database.session_scope() as session:
        verify(session, upgrade_id)

    _, new = all_rows(worker, upgrade_id)
    assert len(new) == 19
