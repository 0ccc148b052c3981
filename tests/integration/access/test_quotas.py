"""Quotas over HTTP: each is refused beyond its limit, by tenant and by key; and what is open without a broker."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.advisory_locks import AdvisoryLock
from service.app import create_app
from service.db import Database
from service.domain.upgrade.planning import WantedUpgrade, plan_upgrade
from service.settings import Quotas, Rates, Settings, StoreSetting
from tests.external_upgrades import drawn
from tests.keys import ADMIN_KEY, bearer, guarded_client, make_key
from tests.paired_vectors import paired_columns, parquet
from tests.scenario import (
    create_gallery,
    create_upgradable_gallery,
    import_vectors,
    post_images,
    post_vectors,
    register_version,
)
from tests.served import wait_for
from tests.trainings import ask

PAIRS = parquet(paired_columns())
AWAY = "redis+socket:///nowhere/valkey.sock"


def refused(answer: httpx.Response, policy: str) -> None:
    assert answer.status_code == 429, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["ratelimit"].startswith(f'"{policy}";r=0')
    assert answer.headers["ratelimit-policy"].startswith(f'"{policy}";q=')
    assert answer.headers["content-type"] == "application/problem+json"


def by_vector(client: TestClient, headers: dict[str, str] | None = None) -> httpx.Response:
    answer: httpx.Response = client.post(
        "/v1/galleries/g/search/vectors", json={"vectors": [[0.0] * 6]}, headers=headers
    )
    return answer


def client_with(settings: Settings, **quotas: int) -> TestClient:
    return TestClient(create_app(settings.model_copy(update={"quotas": Quotas(**quotas)})))


def is_waited_for(database: Database, lock: AdvisoryLock) -> bool:
    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = :lock AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with database.reading() as connection:
        return bool(connection.scalar(text(query), {"lock": lock.value}))


def test_searches_of_a_tenant_are_counted_for_all_its_processes(settings: Settings) -> None:
    with client_with(settings) as unbounded:
        create_upgradable_gallery(unbounded)
    # The window is a second: of this many one after the other, some come within it.
    with client_with(settings, searches_per_second=1) as one, client_with(settings, searches_per_second=1) as other:
        answers = [by_vector(client) for _ in range(10) for client in (one, other)]

    beyond = [answer for answer in answers if answer.status_code == 429]
    assert answers[0].status_code == 200
    assert beyond
    refused(beyond[0], "searches")


def test_searches_of_one_key_leave_another_keys_alone(settings: Settings) -> None:
    with guarded_client(settings, key_rates=Rates(searches_per_second=1)) as client:
        client.headers.update(bearer(ADMIN_KEY))
        create_upgradable_gallery(client)
        busy, quiet = (bearer(make_key(client, "search")["key"]) for _ in range(2))

        of_the_busy = [by_vector(client, busy).status_code for _ in range(10)]
        of_the_quiet = by_vector(client, quiet).status_code

    assert 429 in of_the_busy
    assert of_the_quiet == 200


def test_images_are_counted_one_by_one(settings: Settings) -> None:
    with client_with(settings, images_per_minute=3) as client:
        create_upgradable_gallery(client)
        post_images(client, range(2))
        files = [("files", (f"{seed}.png", b"no image", "image/png")) for seed in range(2)]

        refused(client.post("/v1/galleries/g/images", files=files), "images")
        assert client.get("/v1/galleries/g").json()["items"] == 2


@pytest.mark.parametrize("quota", ["items", "bytes"])
def test_what_is_stored_is_bounded(settings: Settings, quota: str) -> None:
    with client_with(settings, **{quota: 3}) as client:
        create_upgradable_gallery(client)
        if quota == "items":
            import_vectors(client, ["a", "b", "c"])

        refused(post_vectors(client, ["d"]), quota)
        assert client.delete("/v1/galleries/g").status_code == 204


def test_open_upgrades_are_bounded_and_one_that_ended_counts_no_more(settings: Settings) -> None:
    plan = {"to_version": "v2"}
    with client_with(settings, open_upgrades=1) as client:
        create_upgradable_gallery(client)
        first = client.post("/v1/galleries/g/upgrades", json=plan).json()["id"]

        refused(client.post("/v1/galleries/g/upgrades", json=plan), "open_upgrades")
        client.post(f"/v1/upgrades/{first}/cancel")
        assert client.post("/v1/galleries/g/upgrades", json=plan).status_code == 202


def test_of_upgrades_that_are_opened_at_once_none_is_beyond_the_quota(settings: Settings, database: Database) -> None:
    with client_with(settings, open_upgrades=1) as client, ThreadPoolExecutor(1) as other:
        create_upgradable_gallery(client)
        create_gallery(client, "h")
        own = settings.model_copy(update={"quotas": Quotas(open_upgrades=1)})

        with database.session_scope() as session:
            plan_upgrade(session, own, WantedUpgrade("g", "v2"))
            asked = other.submit(client.post, "/v1/galleries/h/upgrades", json={"to_version": "v2"})
            wait_for(lambda: asked.done() or is_waited_for(database, AdvisoryLock.OPEN_UPGRADES))
        refused(asked.result(), "open_upgrades")

        assert client.get("/v1/galleries/h/upgrades").json()["items"] == []


def test_an_upgrade_of_another_store_is_one_of_the_tenants(settings: Settings, tmp_path: Path) -> None:
    embedding, side_information = drawn(4)
    pq.write_table(
        pa.table({"id": list("abcd"), "embedding": list(embedding), "side_information": list(side_information)}),
        tmp_path / "shop.parquet",
    )
    url = f"file://{tmp_path}/shop.parquet?side_information=side_information"
    wanted = {"store": "shop", "from_version": "v1", "to_version": "v2"}
    with client_with(
        settings.model_copy(update={"stores": {"shop": StoreSetting(url=url)}}), open_upgrades=1
    ) as client:
        create_upgradable_gallery(client)
        first = client.post("/v1/external-upgrades", json=wanted)
        assert first.status_code == 202, first.text

        refused(client.post("/v1/galleries/g/upgrades", json={"to_version": "v2"}), "open_upgrades")
        refused(client.post("/v1/external-upgrades", json=wanted), "open_upgrades")


def test_trainings_are_bounded_by_the_bytes_that_they_hold(settings: Settings) -> None:
    with client_with(settings, training_bytes=1) as client:
        for name in ("v1", "v2"):
            register_version(client, name)
        first = ask(client, PAIRS)

        assert first.status_code == 202, first.text
        refused(ask(client, PAIRS), "training_bytes")


def test_without_a_broker_searches_go_on_and_no_training_begins(settings: Settings) -> None:
    quotas = Quotas(searches_per_second=1, training_bytes=10**9)
    with TestClient(create_app(settings.model_copy(update={"broker_url": AWAY, "quotas": quotas}))) as client:
        create_upgradable_gallery(client)
        searches = {by_vector(client).status_code for _ in range(3)}
        training = ask(client, PAIRS)

    assert searches == {200}
    assert training.status_code == 503
    assert "broker" in training.json()["detail"]


def test_a_tenants_own_quotas_take_the_place_of_all(settings: Settings) -> None:
    own = settings.model_copy(update={"quotas": Quotas(items=0), "tenant_quotas": {"default": Quotas(items=5)}})
    with TestClient(create_app(own)) as client:
        create_upgradable_gallery(client)

        assert post_vectors(client, ["a"]).status_code == 200
