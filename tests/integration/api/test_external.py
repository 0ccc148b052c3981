"""`/v1/stores` and `/v1/external-upgrades`: what is refused, who may see what, and what an upgrade is judged by."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

import service.app
from service.connectors.store import KeyRange, Vectors
from service.queue import celery_application
from service.settings import Settings, StoreSetting
from tests.external_stores import away, key_of, make_store, open_fake, url_of
from tests.external_upgrades import (
    STORE,
    act,
    drawn,
    make_fake_parts,
    named,
    register_both,
    start,
    store_of_v1,
    view,
    work_until,
)
from tests.keys import ADMIN_KEY, bearer, make_key
from tests.scenario import register_transformation, register_version
from workers.app import WorkerParts, make_worker_parts
from workers.connecting import advance_external

EVERYTHING = KeyRange(None, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def settings(settings: Settings, path: Path) -> Settings:
    return settings.model_copy(update={"stores": named(path)})


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(service.app.create_app(settings, make_fake_parts), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings), open_fake)
    yield parts
    parts.database.engine.dispose()


def wanted(**options: Any) -> dict[str, Any]:
    return {"store": STORE, "from_version": "v1", "to_version": "v2", **options}


def refusal(client: httpx.Client, **options: Any) -> tuple[int, str, str]:
    answer = client.post("/v1/external-upgrades", json=wanted(**options))
    return answer.status_code, answer.json()["type"].rpartition(":")[2], answer.json()["detail"]


def give(client: httpx.Client, upgrade_id: int, ids: list[str], embedding: Vectors) -> httpx.Response:
    body = io.BytesIO()
    pq.write_table(pa.table({"id": ids, "embedding": list(embedding)}), body)
    return client.post(f"/v1/external-upgrades/{upgrade_id}/references", content=body.getvalue())


def test_a_dry_run_says_what_an_upgrade_would_take_and_what_it_cannot_judge(client: TestClient, path: Path) -> None:
    register_both(client)
    store_of_v1(path, 30, notices=False)

    answer = client.post("/v1/external-upgrades", json=wanted(dry_run=True))

    assert answer.status_code == 200
    found = answer.json()
    assert (found["rows"], found["ranges"], found["bytes"]) == (30, 5, 30 * (8 + 4) * 4)
    assert "Hold writes" in found["switch"]
    assert len(found["cannot_judge"]) == 3
    assert client.get("/v1/external-upgrades").json()["items"] == []


def test_stores_are_listed_by_name_with_what_they_hold_and_never_with_their_urls(
    client: TestClient, path: Path
) -> None:
    store_of_v1(path)
    there = client.get("/v1/stores")
    away(path)
    gone = client.get("/v1/stores")

    (found,) = there.json()["items"]
    assert (found["name"], found["description"]["rows"], found["description"]["embedding_dim"]) == (STORE, 30, 6)
    assert "does not answer" in gone.json()["items"][0]["error"]
    assert "hunter2" not in there.text + gone.text


def test_what_cannot_be_upgraded_is_refused_with_a_sentence(client: TestClient, path: Path) -> None:
    register_version(client, "v3")
    register_both(client)
    make_store(path, np.ones((3, 7), np.float32))

    assert refusal(client)[:2] == (409, "store-of-other-space")
    assert "embeddings of 7 numbers, and model version 'v1' gives 6" in refusal(client)[2]
    assert refusal(client, store="https://example.com/x")[0] == 422
    assert refusal(client, store="nowhere")[:2] == (404, "unknown-store")
    assert refusal(client, to_version="v9")[:2] == (404, "unknown-version")
    assert refusal(client, to_version="v3")[:2] == (409, "no-transformation")
    assert refusal(client, transformation=99)[:2] == (404, "unknown-transformation")
    away(path)
    assert refusal(client)[:2] == (503, "store-away")


def test_side_information_that_h_reads_has_to_be_in_the_store(client: TestClient, path: Path) -> None:
    register_both(client)
    make_store(path, drawn(3)[0])

    status, kind, detail = refusal(client)

    assert (status, kind) == (409, "store-of-other-space")
    assert "has none" in detail


def test_embeddings_of_another_norm_than_the_versions_are_refused(client: TestClient, path: Path) -> None:
    register_version(client, "v1", normalize=True)
    register_version(client, "v2")
    register_transformation(client, "v1", "v2")
    store_of_v1(path)

    assert "of another model, or were changed" in refusal(client)[2]


def test_a_store_has_one_upgrade_at_a_time(client: TestClient, worker: WorkerParts, path: Path) -> None:
    register_both(client)
    store_of_v1(path)
    upgrade_id = start(client)

    assert refusal(client)[:2] == (409, "store-taken")

    act(client, upgrade_id, "cancel")
    assert refusal(client)[:2] == (409, "store-taken")
    advance_external(worker, upgrade_id)
    assert start(client) == upgrade_id + 1


def test_an_upgrade_and_its_store_are_its_tenants_alone(settings: Settings, worker: WorkerParts, path: Path) -> None:
    store_of_v1(path)
    stores = {STORE: StoreSetting(url=url_of(path), tenants=("a",))}
    guarded = settings.model_copy(update={"auth": "on", "admin_key": ADMIN_KEY, "stores": stores})
    with TestClient(service.app.create_app(guarded, make_fake_parts), raise_server_exceptions=False) as client:
        a, b = (bearer(make_key(client, "admin", tenant=tenant)["key"]) for tenant in ("a", "b"))
        client.headers.update(a)
        register_both(client)
        upgrade_id = start(client)
        client.headers.update(b)
        register_both(client)
        one = client.get(f"/v1/external-upgrades/{upgrade_id}")
        acts = [client.post(f"/v1/external-upgrades/{upgrade_id}/{action}") for action in ("pause", "cutover")]

        assert (one.status_code, [answer.status_code for answer in acts]) == (404, [404, 404])
        assert client.get("/v1/external-upgrades").json()["items"] == []
        assert client.get("/v1/stores").json()["items"] == []
        assert refusal(client)[:2] == (404, "unknown-store")
        client.headers.update(a)
        assert view(client, upgrade_id)["state"] == "planned"


def test_a_speed_is_of_an_open_upgrade(client: TestClient, worker: WorkerParts, path: Path) -> None:
    register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client, speed=0.0)
    for _ in range(3):
        advance_external(worker, upgrade_id)
    resting = len(store.writes())

    faster = client.patch(f"/v1/external-upgrades/{upgrade_id}", json={"speed": 1.0})
    work_until(worker, client, upgrade_id, "ready")

    assert (resting, faster.json()["speed"]) == (0, 1.0)
    act(client, upgrade_id, "cancel")
    ended = client.patch(f"/v1/external-upgrades/{upgrade_id}", json={"speed": 1.0})
    assert (ended.status_code, ended.json()["type"]) == (409, "urn:gallery-upgrade:external-upgrade-ended")


def test_references_judge_an_upgrade_and_one_that_passes_goes_live_of_itself(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path, 150)
    upgrade_id = start(client, cutover="auto")
    ready = work_until(worker, client, upgrade_id, "ready")
    found = client.get(f"/v1/external-upgrades/{upgrade_id}/references", params={"wanted": 110, "seed": 1}).json()
    again = client.get(f"/v1/external-upgrades/{upgrade_id}/references", params={"wanted": 110, "seed": 1}).json()
    rows = store.read(EVERYTHING)
    places = [rows.keys.index(key) for key in found["ids"]]
    side = rows.side_information
    assert side is not None
    exact = worker.networks.apply(transformation, rows.embedding[places], side[places])[0]  # as if h were perfect

    results = give(client, upgrade_id, [*found["ids"], "not drawn"], np.concatenate([exact, exact[:1]])).json()
    assert ready["judged"]["verdict"] == "not_judged"
    assert act(client, upgrade_id, "evaluate") == {"report": 2}
    work_until(worker, client, upgrade_id, "live")
    report = client.get(f"/v1/external-upgrades/{upgrade_id}/report").json()

    assert found == again
    assert (len(found["ids"]), found["given"], found["drawn"]) == (110, 0, 112)
    assert [result["status"] for result in results["results"]] == ["accepted"] * 110 + ["rejected"]
    assert (report["verdict"], report["evidence"]) == ("pass", 110)
    assert {gate["metric"] for gate in report["content"]["gates"]} == {
        "overlap_at_10",
        "own_item_first",
        "explained_variance",
        "completeness",
    }
    assert report["content"]["verification"]["rows"] == 150
    assert view(client, upgrade_id)["decision"]["by"] == "auto"


def test_a_gate_that_failed_takes_a_reason(client: TestClient, worker: WorkerParts, path: Path) -> None:
    register_both(client)
    store_of_v1(path, 150)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    ids = client.get(f"/v1/external-upgrades/{upgrade_id}/references", params={"wanted": 110}).json()["ids"]
    other = np.random.default_rng(2).standard_normal((110, 8)).astype(np.float32)
    give(client, upgrade_id, ids, other)
    act(client, upgrade_id, "evaluate")
    for _ in range(3):
        advance_external(worker, upgrade_id)

    refused = client.post(f"/v1/external-upgrades/{upgrade_id}/cutover")
    act(client, upgrade_id, "cutover", override={"reason": "we know"})
    live = work_until(worker, client, upgrade_id, "live")

    assert (refused.status_code, refused.json()["type"]) == (409, "urn:gallery-upgrade:gates-hold")
    assert "explained_variance" in refused.json()["detail"]
    assert (live["decision"]["reason"], live["decision"]["verdict"]) == ("we know", "fail")


def test_vectors_that_are_none_of_the_new_versions_are_rejected(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    register_both(client)
    store_of_v1(path)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")

    not_finite = give(client, upgrade_id, [key_of(0)], np.full((1, 8), np.nan, np.float32))
    other_dim = give(client, upgrade_id, [key_of(0)], np.ones((1, 7), np.float32))

    assert (not_finite.status_code, not_finite.json()["type"]) == (422, "urn:gallery-upgrade:no-vector-accepted")
    assert (other_dim.status_code, other_dim.json()["type"]) == (422, "urn:gallery-upgrade:bad-rows")
