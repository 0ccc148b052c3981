"""Acts over HTTP have entries, by whoever did them; refused ones have none."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from service import audit
from service.audit import verify
from tests.judged import post_query_images
from tests.paired_vectors import paired_columns, parquet
from tests.problems import check_problem
from tests.scenario import (
    create_gallery,
    create_upgradable_gallery,
    import_vectors,
    post_images,
    register_version,
    start_upgrade,
)
from tests.trainings import begin
from tests.working import cut_over, run_until
from workers.app import WorkerParts

ARROW = {"Accept": "application/vnd.apache.arrow.stream"}


def entries(client: TestClient, **wanted: Any) -> list[dict[str, Any]]:
    answer = client.get("/v1/audit", params=wanted)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def acts(client: TestClient, **wanted: Any) -> list[tuple[str, str, str]]:
    return [(each["action"], each["subject_kind"], each["subject"]) for each in entries(client, **wanted)]


def test_registrations_galleries_and_deletions_are_entered(client: TestClient) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(3))
    client.patch("/v1/galleries/g", json={"index": "flat"}).raise_for_status()
    client.patch("/v1/transformations/1", json={"default": True})
    client.delete("/v1/galleries/g/items/image-0.png").raise_for_status()
    client.post("/v1/galleries/g/items/delete", json={"filter": {"label": "class 1"}}).raise_for_status()
    assert post_query_images(client, range(2)).is_success
    client.delete("/v1/galleries/g/query-sets/asked").raise_for_status()
    client.delete("/v1/galleries/g").raise_for_status()
    client.delete("/v1/transformations/1").raise_for_status()
    client.delete("/v1/model-versions/v2").raise_for_status()

    found = acts(client)

    assert [act for act in found if act[0] != "transformation.changed"] == [
        ("model_version.registered", "model_version", "v1"),
        ("model_version.registered", "model_version", "v2"),
        ("transformation.registered", "transformation", "1"),
        ("gallery.created", "gallery", "g"),
        ("gallery.changed", "gallery", "g"),
        ("items.deleted", "gallery", "g"),
        ("items.deleted", "gallery", "g"),
        ("query_set.deleted", "gallery", "g"),
        ("gallery.deleted", "gallery", "g"),
        ("transformation.deleted", "transformation", "1"),
        ("model_version.deleted", "model_version", "v2"),
    ]
    (changed,) = entries(client, action="gallery.changed")
    assert (changed["before"]["index"], changed["after"]["index"]) == ("auto", "flat")
    assert [each["before"] for each in entries(client, action="items.deleted")] == [{"items": 1}, {"items": 1}]


def test_what_is_refused_or_changes_nothing_has_no_entry(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client)
    before = entries(client)

    check_problem(client.post("/v1/galleries", json={"name": "g", "model_version": "v1"}), 409)
    check_problem(client.delete("/v1/model-versions/v1"), 409)
    check_problem(client.delete("/v1/galleries/g/items/nobody"), 404)
    client.post("/v1/galleries/g/items/delete", json={"ids": ["nobody"]}).raise_for_status()

    assert entries(client) == before


def test_an_upgrade_has_entries_from_its_opening_to_its_end(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    import_vectors(client, ["a", "b"])
    cancelled = start_upgrade(client, "v2")
    client.post(f"/v1/upgrades/{cancelled}/cancel").raise_for_status()
    client.post(f"/v1/upgrades/{cancelled}/cancel").raise_for_status()
    rolled_back = start_upgrade(client, "v2")
    run_until(worker, client, rolled_back, "ready")
    client.patch(f"/v1/upgrades/{rolled_back}", json={"canary": 0.5}).raise_for_status()
    cut_over(client, worker, rolled_back)
    client.post(f"/v1/upgrades/{rolled_back}/rollback").raise_for_status()
    finalized = start_upgrade(client, "v2")
    run_until(worker, client, finalized, "ready")
    cut_over(client, worker, finalized, override={"reason": "we know better"})
    client.post(f"/v1/upgrades/{finalized}/finalize").raise_for_status()

    found = acts(client, subject_kind="upgrade")

    assert found == [
        ("upgrade.opened", "upgrade", "1"),
        ("upgrade.cancelled", "upgrade", "1"),
        ("upgrade.opened", "upgrade", "2"),
        ("upgrade.changed", "upgrade", "2"),
        ("upgrade.cut_over", "upgrade", "2"),
        ("upgrade.rolled_back", "upgrade", "2"),
        ("upgrade.opened", "upgrade", "3"),
        ("upgrade.overridden", "upgrade", "3"),
        ("upgrade.cut_over", "upgrade", "3"),
        ("upgrade.finalized", "upgrade", "3"),
    ]
    overridden, cutover = entries(client, subject="3", subject_kind="upgrade")[1:3]
    assert overridden["reason"] == cutover["reason"] == "we know better"
    (back,) = entries(client, action="upgrade.rolled_back")
    assert (back["before"], back["after"]) == (
        {"generation": 3},
        {"generation": 1, "by": "request", "accepted_loss": 0},
    )
    with worker.database.session_scope() as session:
        assert verify(session).fault is None


def test_a_cutover_by_the_worker_is_the_act_of_whoever_asked(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    import_vectors(client, ["a", "b"])
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    client.headers["X-Request-ID"] = "asked-by-me"

    cut_over(client, worker, upgrade_id)

    (entry,) = entries(client, action="upgrade.cut_over")
    assert (entry["request_id"], entry["name"], entry["after"]["by"]) == ("asked-by-me", "-", "request")
    decision = client.get(f"/v1/upgrades/{upgrade_id}").json()["decision"]
    assert (decision["who"], decision["by"]) == ("-", "request")
    report = client.get(f"/v1/upgrades/{upgrade_id}/report").json()
    assert report["decision"] == decision
    page = client.get(f"/v1/upgrades/{upgrade_id}/report", params={"format": "html"}).text
    assert "went live on this report, as - asked" in page


def test_a_cutover_that_nobody_asked_for_says_so(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    import_vectors(client, ["a"])

    run_until(worker, client, start_upgrade(client, "v2", cutover="auto"), "live")

    (entry,) = entries(client, action="upgrade.cut_over")
    assert (entry["after"]["by"], entry["name"]) == ("auto", "-")


def test_a_training_is_entered_when_it_is_asked_for_and_when_it_is_cancelled(client: TestClient) -> None:
    for version in ("v1", "v2"):
        register_version(client, version)
    job_id = begin(client, parquet(paired_columns()))
    client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()

    found = acts(client, subject_kind="job")

    assert found == [("training.started", "job", str(job_id)), ("job.cancelled", "job", str(job_id))]


@pytest.fixture
def three(client: TestClient) -> TestClient:
    """Three entries, a request each."""
    for name in ("v1", "v2", "v3"):
        register_version(client, name)
    return client


def test_pages_follow_each_other(three: TestClient) -> None:
    first = three.get("/v1/audit", params={"limit": 2}).json()
    second = three.get("/v1/audit", params={"limit": 2, "cursor": first["next_cursor"]}).json()

    assert [each["id"] for each in first["items"] + second["items"]] == [1, 2, 3]
    assert second["next_cursor"] is None


def test_a_table_has_the_same_entries(three: TestClient) -> None:
    answer = three.get("/v1/audit", params={"limit": 2}, headers=ARROW)
    rest = three.get("/v1/audit", params={"cursor": answer.headers["Next-Cursor"]}, headers=ARROW)

    tables = [pa.ipc.open_stream(each.content).read_all() for each in (answer, rest)]
    rows = pa.concat_tables(tables).to_pylist()
    assert answer.headers["Content-Type"] == ARROW["Accept"]
    assert "Next-Cursor" not in rest.headers
    assert [(row["id"], row["hash"]) for row in rows] == [(each["id"], each["hash"]) for each in entries(three)]
    assert "embedding_model" in rows[0]["after"]


def test_entries_of_another_tenant_are_not_seen(three: TestClient, worker: WorkerParts) -> None:
    with worker.database.session_scope() as session:
        seen = [audit.list_entries(session, audit.Wanted(tenant), 0, 10) for tenant in ("default", "other")]

    assert [bool(found) for found in seen] == [True, False]


def test_filters_that_make_no_sense_are_refused(client: TestClient) -> None:
    check_problem(client.get("/v1/audit", params={"action": "nothing"}), 422)
    check_problem(client.get("/v1/audit", params={"since": "2026-01-01T00:00:00"}), 422)
    check_problem(client.get("/v1/audit", params={"cursor": base64.b64encode(b"x").decode()}), 422)


def test_a_time_selects_entries(three: TestClient) -> None:
    now = datetime.now(UTC)

    assert len(entries(three, since=(now - timedelta(hours=1)).isoformat())) == 3
    assert entries(three, until=(now - timedelta(hours=1)).isoformat()) == []
