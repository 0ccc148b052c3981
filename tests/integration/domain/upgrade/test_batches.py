"""Batches of an upgrade: their size, retries, rests after failures, outages and poisoned items."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import text
from torch import nn

from models.artifacts import save_network
from service.db import Database
from service.domain.claims import release_claim
from service.domain.gallery.generations import count_rows, get_stored_generation
from service.domain.upgrade import batches, catch_up
from service.domain.upgrade.upgrades import get_upgrade
from service.vectors.rows import EmbeddingRows, VectorFormat
from tests.fakes import WatchedNetworks
from tests.networks import transformation, transformation_bytes
from tests.scenario import DIMS, import_vectors, search, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts


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


def test_rows_of_a_batch_that_cannot_be_marked_done_are_not_committed(gallery: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    with worker.database.session_scope() as session:
        batches.plan_batches(session, upgrade_id, 100)
    claim = batches.claim_batch(worker.database, upgrade_id, lease_seconds=60)
    assert claim is not None

    def work() -> None:
        with worker.database.session_scope() as session:

            def unmark(rows: EmbeddingRows, wanted: VectorFormat, path: tuple[int, ...]) -> EmbeddingRows:
                session.execute(text("UPDATE upgrade_batches SET state = 'pending'"))
                return worker.networks.transform(rows, wanted, path)

            batches.work_on_batch(session, claim, partial(batches.transform_items, transform=unmark))

    with pytest.raises(RuntimeError, match="left its claim"):
        work()

    with worker.database.session_scope() as session:
        target = get_stored_generation(session, 1, get_upgrade(session, upgrade_id).to_generation_id)
        assert count_rows(session, target) == 0
        assert session.scalars(text("SELECT state FROM upgrade_batches")).all() == ["claimed"]


def watched(worker: WorkerParts, before_transforming: Callable[[], object]) -> WorkerParts:
    networks = WatchedNetworks(worker.database, worker.blobs, worker.settings, before_transforming)
    return replace(worker, networks=networks)


def test_a_failing_batch_is_tried_again_and_others_go_on(gallery: TestClient, worker: WorkerParts) -> None:
    failures = iter(["first", "second"])

    def fail_twice() -> None:
        if next(failures, None):
            raise RuntimeError("the device fell off")

    upgrade_id = start_upgrade(gallery, "v2")

    run_until(watched(worker, fail_twice), gallery, upgrade_id, "ready")

    with worker.database.session_scope() as session:
        attempts = session.scalars(text("SELECT attempts FROM upgrade_batches ORDER BY attempts")).all()
    assert sum(attempts) == len(attempts) + 2


def test_an_outage_of_the_database_is_not_an_attempt(
    gallery: TestClient, worker: WorkerParts, database: Database
) -> None:
    outages = iter(range(6))  # more than a batch has attempts

    def cut_off() -> None:
        if next(outages, None) is not None:
            with database.session_scope() as session:
                session.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                        " AND datname = current_database() AND state = 'idle in transaction'"
                    )
                )

    upgrade_id = start_upgrade(gallery, "v2")

    run_until(watched(worker, cut_off), gallery, upgrade_id, "ready")

    with worker.database.session_scope() as session:
        assert set(session.scalars(text("SELECT attempts FROM upgrade_batches"))) == {1}


def test_a_batch_that_always_fails_stops_the_upgrade_with_its_reason_and_retry_goes_on(
    gallery: TestClient, worker: WorkerParts
) -> None:
    def fail() -> None:
        raise RuntimeError("the device fell off")

    upgrade_id = start_upgrade(gallery, "v2")
    run_until(watched(worker, fail), gallery, upgrade_id, "failed")

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
            release_claim(session, claim, "failed", 10.0)
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
    last = h.members[0].mixer[2]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(2_000)
        last.bias.mul_(2_000)
    files = {"h": ("h", save_network(h)), "g": ("g", transformation_bytes(from_dim, from_side, to_side, seed=8))}
    answer = client.post("/v1/transformations", data={"from_version": "v1", "to_version": "v2"}, files=files)
    assert answer.status_code == 201, answer.text
    chosen = client.patch(answer.headers["location"], json={"default": True})
    assert chosen.status_code == 200, chosen.text


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


def test_every_item_that_cannot_be_upgraded_is_named_at_once_and_one_retry_is_enough(
    gallery: TestClient, worker: WorkerParts
) -> None:
    register_loud_transformation(gallery)
    poisoned = ["poison 1", "poison 10", "poison 19"]
    for number in range(20):
        if f"poison {number}" in poisoned:
            import_vectors(gallery, [f"poison {number}"], scale=10_000)
        else:
            import_vectors(gallery, [f"fine {number}"])
    dry_run = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2", "dry_run": True})
    upgrade_id = start_upgrade(gallery, "v2")

    run_until(worker, gallery, upgrade_id, "failed")

    failed = gallery.get(f"/v1/upgrades/{upgrade_id}").json()
    for error in (failed["error"], dry_run.json()["detail"]):
        assert "3 items cannot be upgraded" in error
        assert all(f"'{name}'" in error for name in poisoned)
        assert "fine" not in error
    assert dry_run.status_code == 409
    for name in poisoned:
        gallery.delete(f"/v1/galleries/g/items/{name}")
    gallery.post(f"/v1/upgrades/{upgrade_id}/retry")
    run_until(worker, gallery, upgrade_id, "ready")


def test_a_batch_with_an_item_that_cannot_be_upgraded_is_tried_again_when_that_is_mended(
    gallery: TestClient, worker: WorkerParts
) -> None:
    register_loud_transformation(gallery)
    import_vectors(gallery, ["fine"])
    import_vectors(gallery, ["poison"], scale=10_000)
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "failed")
    gallery.post(f"/v1/upgrades/{upgrade_id}/retry")
    run_until(worker, gallery, upgrade_id, "failed")

    import_vectors(gallery, ["poison"])
    gallery.post(f"/v1/upgrades/{upgrade_id}/retry")

    run_until(worker, gallery, upgrade_id, "ready")
