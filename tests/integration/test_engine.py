"""The engine's edges: throttle, retries, poisoned items, catch-up, cancel, dry run, events, both versions' vectors."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import text
from torch import nn

from models.artifacts import save_network
from service.db import Database
from service.domain.gallery.generations import get_stored_generation, missing_items
from service.domain.upgrade import batches, catch_up
from service.domain.upgrade.catch_up import verify
from service.domain.upgrade.upgrades import get_upgrade
from service.settings import Settings
from tests.networks import transformation, transformation_bytes
from tests.rows import all_rows
from tests.scenario import (
    DIMS,
    create_upgradable_gallery,
    import_vectors,
    post_images,
    post_vectors,
    search,
    start_upgrade,
)
from tests.working import run_until
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 has 20 images and can be upgraded to v2."""
    create_upgradable_gallery(client)
    post_images(client, range(20))
    return client


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
    assert (behind.items, behind.changes) == (1, 2)


def test_more_changes_than_a_cutover_may_look_at_are_caught_up_first(
    gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.settings, "cutover_max_changes", 3)
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    import_vectors(gallery, [f"late-{number}" for number in range(8)])

    with worker.database.session_scope() as session:
        get_upgrade(session, upgrade_id).cutover = "auto"
    run_until(worker, gallery, upgrade_id, "live")

    progress = gallery.get(f"/v1/upgrades/{upgrade_id}").json()["progress"]
    assert progress["catching_up"]["done"] == progress["catching_up"]["total"] == 8


def test_a_batch_has_fewer_items_where_rows_are_wide(
    gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    with worker.database.session_scope() as session:
        upgrade = get_upgrade(session, upgrade_id)
        widest = get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id).vector_format.row_dtype
    monkeypatch.setattr(catch_up, "_BATCH_BYTES", 3 * widest.itemsize)

    run_until(worker, gallery, upgrade_id, "ready")

    with worker.database.session_scope() as session:
        sizes = session.scalars(text("SELECT items FROM upgrade_batches ORDER BY id")).all()
    assert sizes == [3, 3, 3, 3, 3, 3, 2]


def test_rows_of_items_deleted_under_a_batch_do_not_stay(gallery: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    gallery.delete("/v1/galleries/g/items/image-3.png")
    with worker.database.session_scope() as session:
        target = get_upgrade(session, upgrade_id).to_generation_id
        session.execute(
            text(
                f"INSERT INTO embeddings_{target} SELECT i.id, 1, 3, e.embedding, e.side_information FROM items i,"
                f" (SELECT * FROM embeddings_{target} LIMIT 1) e WHERE i.external_id = 'image-3.png'"
            )
        )

    with worker.database.session_scope() as session:
        verify(session, upgrade_id)

    _, new = all_rows(worker, upgrade_id)
    assert len(new) == 19


def test_a_failing_batch_is_tried_again_and_others_go_on(
    gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform, failures = worker.networks.transform, iter(["first", "second"])

    def sometimes(*arguments: Any) -> Any:
        if next(failures, None):
            raise RuntimeError("the device fell off")
        return transform(*arguments)

    monkeypatch.setattr(worker.networks, "transform", sometimes)
    upgrade_id = start_upgrade(gallery, "v2")

    run_until(worker, gallery, upgrade_id, "ready")

    with worker.database.session_scope() as session:
        attempts = session.scalars(text("SELECT attempts FROM upgrade_batches ORDER BY attempts")).all()
    assert sum(attempts) == len(attempts) + 2


def test_an_outage_of_the_database_is_not_an_attempt(
    gallery: TestClient, worker: WorkerParts, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform, outages = worker.networks.transform, iter(range(6))  # more than a batch has attempts

    def cut_off(*arguments: Any) -> Any:
        if next(outages, None) is not None:
            with database.session_scope() as session:
                session.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                        " AND datname = current_database() AND state = 'idle in transaction'"
                    )
                )
        return transform(*arguments)

    monkeypatch.setattr(worker.networks, "transform", cut_off)
    upgrade_id = start_upgrade(gallery, "v2")

    run_until(worker, gallery, upgrade_id, "ready")

    with worker.database.session_scope() as session:
        assert set(session.scalars(text("SELECT attempts FROM upgrade_batches"))) == {1}


def test_a_batch_that_always_fails_stops_the_upgrade_with_its_reason_and_retry_goes_on(
    gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always(*arguments: Any) -> Any:
        raise RuntimeError("the device fell off")

    upgrade_id = start_upgrade(gallery, "v2")
    with monkeypatch.context() as patched:
        patched.setattr(worker.networks, "transform", always)
        run_until(worker, gallery, upgrade_id, "failed")

    failed = gallery.get(f"/v1/upgrades/{upgrade_id}").json()
    assert "the device fell off" in failed["error"]
    assert search(gallery, 1)["model_version"] == "v1"
    assert gallery.post(f"/v1/upgrades/{upgrade_id}/retry").json()["error"] is None
    run_until(worker, gallery, upgrade_id, "ready")


def test_a_rest_after_a_failure_doubles(gallery: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    with worker.database.session_scope() as session:
        batches.plan_batches(session, upgrade_id, 100)
    rests = []
    for _ in range(3):
        claim = batches.claim_batch(worker.database, upgrade_id, 30.0)
        assert claim is not None
        with worker.database.session_scope() as session:
            batches.release_batch(session, claim, "failed", 10.0)
            rests.append(
                session.scalars(text("SELECT extract(epoch FROM retry_at - now()) FROM upgrade_batches")).one()
            )
        assert batches.claim_batch(worker.database, upgrade_id, 30.0) is None
        with worker.database.session_scope() as session:
            session.execute(text("UPDATE upgrade_batches SET retry_at = now()"))

    assert [float(rest) for rest in rests] == [10, 20, 40]


def register_loud_transformation(client: TestClient) -> None:
    """Register a newer (h, g) from v1 to v2 whose h gives large values: still storable for images, not for vectors
    far from them."""
    (from_dim, from_side), (to_dim, to_side) = DIMS["v1"], DIMS["v2"]
    assert to_side is not None
    h = transformation(from_dim, from_side, to_dim, seed=7)
    last = h.mixer[2]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(2_000)
        last.bias.mul_(2_000)
    files = {"h": ("h", save_network(h)), "g": ("g", transformation_bytes(from_dim, from_side, to_side, seed=8))}
    answer = client.post("/v1/transformations", data={"from_version": "v1", "to_version": "v2"}, files=files)
    assert answer.status_code == 201, answer.text


def test_a_poisoned_item_fails_the_upgrade_by_name_and_the_gallery_goes_on(
    gallery: TestClient, worker: WorkerParts
) -> None:
    register_loud_transformation(gallery)
    import_vectors(gallery, ["fine"])
    import_vectors(gallery, ["poison"], scale=10_000)
    upgrade_id = start_upgrade(gallery, "v2")

    run_until(worker, gallery, upgrade_id, "failed")

    failed = gallery.get(f"/v1/upgrades/{upgrade_id}").json()
    assert "'poison'" in failed["error"]
    assert "too large for float16" in failed["error"]
    assert search(gallery, 1)["model_version"] == "v1"
    gallery.delete("/v1/galleries/g/items/poison")
    gallery.post(f"/v1/upgrades/{upgrade_id}/retry")
    run_until(worker, gallery, upgrade_id, "ready")


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


def test_an_upgrade_that_the_disk_cannot_hold_is_refused(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))

    refused = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2"})

    assert refused.status_code == 507
    assert "GiB" in refused.json()["detail"]
    assert gallery.get("/v1/galleries/g/upgrades").json()["items"] == []


def sent(client: TestClient, upgrade_id: int, after: int = 0) -> list[tuple[str, str, Any]]:
    """Return the (event, id, data) of an ended upgrade's stream."""
    headers = {"Last-Event-ID": str(after)} if after else {}
    body = client.get(f"/v1/upgrades/{upgrade_id}/events", headers=headers)
    assert body.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in body.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        events.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return events


def test_events_tell_every_state_once_and_go_on_after_the_last_one_seen(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    run_until(worker, gallery, upgrade_id, "live")
    gallery.post(f"/v1/upgrades/{upgrade_id}/finalize")

    events = sent(gallery, upgrade_id)
    states = [(data["state"], int(id_)) for name, id_, data in events if name == "state"]
    later = sent(gallery, upgrade_id, after=states[3][1])

    expected = ["planned", "transforming", "indexing", "evaluating", "ready", "live", "finalized"]
    assert [state for state, _ in states] == expected
    assert [data["state"] for name, _, data in later if name == "state"] == expected[4:]
    (progress,) = [data for name, _, data in events if name == "progress"]
    assert progress["transforming"] | {"rate": None} == {
        "done": 20,
        "total": 20,
        "unit": "items",
        "rate": None,
        "eta_seconds": 0.0,
    }
    assert progress["indexing"]["done"] == 20
    assert gallery.get("/v1/upgrades/999/events").status_code == 404


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
        assert missing_items(session, 1, 1) == []
