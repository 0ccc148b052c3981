"""Every operation of the API, asked by keys of each scope for what is their tenant's, and for what is another one's,
which is answered as if it were not there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.access.operations import SCOPE_OF
from service.settings import Settings
from tests.access_matrix import ask_as_another, ask_as_owner, every_operation
from tests.keys import ADMIN_KEY, bearer, make_key
from tests.networks import PREPROCESSING, encoder_bytes
from tests.scenario import create_gallery, register_version
from tests.tenants import LISTS, NAMING, Tenants, settings_of_tenants, two_tenants
from workers.app import WorkerParts


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings_of_tenants(settings, tmp_path)


@pytest.fixture
def tenants(worker: WorkerParts, tmp_path: Path) -> Iterator[Tenants]:
    with two_tenants(worker, tmp_path) as tenants:
        yield tenants


def test_a_key_may_do_what_its_scope_says_with_what_is_its_tenants_and_sees_nothing_of_anothers(
    tenants: Tenants,
) -> None:
    rows, before = every_operation(), tenants.seen_by(tenants.a)

    ask_as_another(tenants, rows)
    after = tenants.seen_by(tenants.a)
    ask_as_owner(tenants, rows)

    assert after == before
    assert [row for row in rows if not row.is_as_told] == []
    assert {row.operation for row in rows} == set(SCOPE_OF)
    assert {row.operation for row in rows if row.others} == set(NAMING)


def test_lists_and_names_are_each_tenants_own(tenants: Tenants) -> None:
    client = tenants.client
    empty = {path: client.get(path, headers=tenants.b).json()["items"] for path in LISTS if path != "/v1/keys"}
    keys = client.get("/v1/keys", headers=tenants.b).json()["items"]

    client.headers.update(tenants.b)
    register_version(client, "v1")
    create_gallery(client)
    mine = [client.get(path).json()["items"] for path in ("/v1/model-versions", "/v1/galleries")]

    assert set(map(str, empty.values())) == {"[]"}
    assert [key["tenant"] for key in keys] == ["b"]
    assert [len(found) for found in mine] == [1, 1]
    assert mine[1][0]["items"] == 0


def test_an_answer_that_was_kept_is_given_to_its_own_tenant_alone(tenants: Tenants) -> None:
    client, body = tenants.client, {"name": "kept", "model_version": "v1"}
    once = {"Idempotency-Key": "the-same"}

    first = client.post("/v1/galleries", json=body, headers=tenants.a | once)
    of_another = client.post("/v1/galleries", json=body, headers=tenants.b | once)
    again = client.post("/v1/galleries", json=body, headers=tenants.a | once)

    assert (first.status_code, of_another.status_code, again.status_code) == (201, 404, 201)
    assert again.headers["idempotent-replay"] == "true"


def test_what_all_share_is_seen_by_each_and_changed_by_an_operator_alone(tenants: Tenants) -> None:
    client = tenants.client
    spec = {"embedding_dim": 6, "preprocessing": PREPROCESSING}
    form = {"name": "common", "spec": json.dumps(spec), "shared": "true"}
    files = {"embedding_model": ("phi", encoder_bytes(6, seed=1))}

    refused = client.post("/v1/model-versions", data=form, files=files, headers=tenants.a)
    made = client.post("/v1/model-versions", data=form, files=files, headers=bearer(ADMIN_KEY))
    taken = client.post("/v1/model-versions", data=form | {"shared": "false"}, files=files, headers=tenants.b)
    seen = client.get("/v1/model-versions/common", headers=tenants.b)
    kept = client.delete("/v1/model-versions/common", headers=tenants.b)

    assert (refused.status_code, made.status_code, taken.status_code) == (403, 201, 409)
    assert (seen.json()["shared"], kept.status_code) == (True, 403)


def test_networks_of_a_version_that_all_share_are_added_by_an_operator_alone(tenants: Tenants) -> None:
    client = tenants.client
    form = {"name": (None, "common"), "spec": (None, '{"embedding_dim": 6}'), "shared": (None, "true")}
    assert client.post("/v1/model-versions", files=form, headers=bearer(ADMIN_KEY)).status_code == 201
    data = {"spec": json.dumps({"embedding_dim": 6, "preprocessing": PREPROCESSING})}
    files = {"embedding_model": ("phi", encoder_bytes(6, seed=1))}

    refused = client.put("/v1/model-versions/common/networks", data=data, files=files, headers=tenants.a)
    added = client.put("/v1/model-versions/common/networks", data=data, files=files, headers=bearer(ADMIN_KEY))

    assert (refused.status_code, added.status_code) == (403, 200)


def test_a_key_for_some_galleries_touches_no_others(tenants: Tenants) -> None:
    client = tenants.client
    key = bearer(make_key(client, "admin", tenant="a", galleries=["cats-*", "dogs?"])["key"])
    naming_a_gallery = [
        operation for operation in NAMING if "{gallery}" in operation[1] or "galleries/{name}" in operation[1]
    ]
    by_id = [("GET", f"/v1/{kind}s/{{{kind}_id}}") for kind in ("upgrade", "backfill", "job")]

    refusals = [tenants.ask(key, operation, tenants.ids) for operation in naming_a_gallery]
    unknown = [tenants.ask(key, operation, tenants.ids) for operation in by_id]
    in_use = client.delete("/v1/model-versions/v1", headers=key)
    metrics = client.get("/metrics", headers=key)
    listed = [client.get(path, headers=key).json()["items"] for path in ("/v1/galleries", "/v1/jobs")]
    body = {"model_version": "v1"}
    made = [
        client.post("/v1/galleries", json=body | {"name": name}, headers=key) for name in ("cats-1", "dogs", "dogs2")
    ]

    assert {(answer.request.url.path, answer.status_code) for answer in refusals if answer.status_code != 403} == set()
    assert all("cats-*" in answer.text for answer in refusals)
    assert [answer.status_code for answer in unknown] == [404] * 3
    assert (
        in_use.json()["detail"] == "A gallery that the key is not for has or had a generation under model version 'v1'."
    )
    assert metrics.status_code == 403
    assert listed == [[], []]
    assert [answer.status_code for answer in made] == [201, 403, 201]
    assert len(client.get("/v1/galleries", headers=key).json()["items"]) == 2


def test_figures_of_all_are_for_no_admin_of_another_tenant_than_the_default_one(tenants: Tenants) -> None:
    refused, shown = (tenants.client.get("/metrics", headers=headers) for headers in (tenants.a, bearer(ADMIN_KEY)))

    assert (refused.status_code, shown.status_code) == (403, 200)
    assert "gallery_items" not in refused.text
