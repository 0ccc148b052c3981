"""An upgrade under control: cancelled without a trace, and its speed changed while it runs."""

from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy import text

from service.settings import Settings
from tests.scenario import start_upgrade
from tests.working import run_until
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade


def test_a_cancelled_upgrade_leaves_nothing_and_can_start_again_at_once(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    indexes = Path(settings.blob_location.removeprefix("file://")) / "indexes"
    assert len(list(indexes.iterdir())) == 1

    cancelled = gallery.post(f"/v1/upgrades/{upgrade_id}/cancel").json()

    assert cancelled["state"] == "cancelled"
    assert list(indexes.iterdir()) == []
    with worker.database.session_scope() as session:
        tables = session.scalars(text("SELECT tablename FROM pg_tables WHERE tablename LIKE 'embeddings\\_%'")).all()
    assert len(tables) == 1
    again = start_upgrade(gallery, "v2", cutover="auto")
    run_until(worker, gallery, again, "live")


def test_speed_is_live_and_0_stops(gallery: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(gallery, "v2", speed=0)
    assert not advance_upgrade(worker, upgrade_id)
    stopped = gallery.get(f"/v1/upgrades/{upgrade_id}").json()

    faster = gallery.patch(f"/v1/upgrades/{upgrade_id}", json={"speed": 0.5})
    advance_upgrade(worker, upgrade_id)
    rest = worker.throttle.rest_seconds(upgrade_id, 0.5)
    slower = worker.throttle.rest_seconds(upgrade_id, 0.01)
    gallery.patch(f"/v1/upgrades/{upgrade_id}", json={"speed": 1})
    run_until(worker, gallery, upgrade_id, "ready")

    assert (stopped["state"], stopped["speed"]) == ("planned", 0)
    assert faster.json()["speed"] == 0.5
    assert slower > rest
    assert gallery.patch(f"/v1/upgrades/{upgrade_id}", json={"speed": 1.5}).status_code == 422
    gallery.post(f"/v1/upgrades/{upgrade_id}/cancel")
    assert gallery.patch(f"/v1/upgrades/{upgrade_id}", json={"speed": 1}).status_code == 409
