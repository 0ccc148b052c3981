"""Every operation of the API, asked by a tenant for what is another one's: it is answered as if that were not there."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from service.access.operations import ANY_KEY, PUBLIC, SCOPE_OF, SCOPES
from service.connectors.store import Description
from service.domain.external.reports import store_report
from service.domain.external_findings import Findings
from service.domain.external_state import ExternalState
from service.settings import Settings, StoreSetting
from service.tables import ExternalUpgrade, Transformation
from tests.backfills import begin_backfill, make_candidate
from tests.keys import ADMIN_KEY, bearer, guarded_client, make_key
from tests.networks import PREPROCESSING, encoder_bytes, image_bytes
from tests.scenario import create_gallery, register_version
from workers.app import WorkerParts
from workers.judging_external import judge_external

STORE = "shop"

# Operations that name nothing of anybody's: their answers are looked through for what is another tenant's.
LISTS = [
    "/v1/external-upgrades",
    "/v1/galleries",
    "/v1/jobs",
    "/v1/keys",
    "/v1/model-versions",
    "/v1/stores",
    "/v1/transformations",
]
JSON_BODIES: dict[tuple[str, str], Any] = {
    ("PATCH", "/v1/galleries/{name}"): {"task": "class"},
    ("POST", "/v1/galleries/{name}/items/delete"): {"ids": ["image-0.png"]},
    ("PATCH", "/v1/galleries/{name}/items/{item_id}"): {"label": "mine"},
    ("POST", "/v1/galleries/{name}/images/references"): [{"id": "x", "image_uri": "file:///x"}],
    ("POST", "/v1/galleries/{name}/search/items"): {"ids": ["image-0.png"]},
    ("POST", "/v1/galleries/{name}/search/vectors"): {"vectors": [[0.0] * 6]},
    ("POST", "/v1/galleries/{name}/upgrades"): {"to_version": "v1"},
    ("POST", "/v1/galleries/{name}/backfills"): {"generation": "active", "source": "uri"},
    ("PATCH", "/v1/upgrades/{upgrade_id}"): {"speed": 0.5},
    ("POST", "/v1/upgrades/{upgrade_id}/votes"): {"id": "image-0.png", "better": "left"},
    ("PATCH", "/v1/backfills/{backfill_id}"): {"speed": 0.5},
    ("PATCH", "/v1/external-upgrades/{external_id}"): {"speed": 0.5},
    ("PATCH", "/v1/jobs/{job_id}"): {"speed": 0.5},
    ("PATCH", "/v1/transformations/{transformation_id}"): {"default": True},
}
QUERIES = json.dumps([{"id": "q1", "label": "class 1"}])
FORMS = {
    "/v1/galleries/{name}/images",
    "/v1/galleries/{gallery}/query-sets",
    "/v1/upgrades/{upgrade_id}/references",
    "/v1/backfills/{backfill_id}/images",
}
NAMING = sorted(operation for operation in SCOPE_OF if "{" in operation[1])


@dataclass(frozen=True)
class Tenants:
    """A service with two tenants, known by the headers of an admin's key: `a` has one of everything, whose ids are
    `ids`, and `b` has nothing."""

    client: TestClient
    a: dict[str, str]
    b: dict[str, str]
    ids: dict[str, str]

    def ask(self, who: dict[str, str], operation: tuple[str, str], ids: dict[str, str]) -> httpx.Response:
        method, template = operation
        path = re.sub(r"\{(\w+)\}", lambda found: ids[_key(template, found[1])], template)
        options: dict[str, Any] = {}
        if template == "/console/galleries/{name}/item":
            options["params"] = {"id": ids["item_id"]}
        if operation in JSON_BODIES:
            options["json"] = JSON_BODIES[operation]
        elif method == "POST" and template in FORMS:
            options["files"] = [("files", ("image-0.png", image_bytes(0), "image/png"))]
            options["data"] = {"name": "q", "queries": QUERIES} if "query-sets" in template else {}
        elif template.endswith("/networks"):
            options["files"] = {"embedding_model": ("phi", encoder_bytes(8, seed=2))}
            options["data"] = {"spec": json.dumps({"embedding_dim": 8, "preprocessing": PREPROCESSING})}
        elif template.endswith("/search"):
            options["files"] = {"file": ("query.png", image_bytes(1))}
        elif method == "POST" and template.endswith(("/embeddings", "{external_id}/references")):
            options["content"] = _table()
        options["headers"] = {**options.get("headers", {}), **who}
        if template.endswith("/examples"):
            options["params"] = {"kind": "negative_flips"}
        answer: httpx.Response = self.client.request(method, path, **options)
        return answer


def _vectors() -> pa.Table:
    return pa.table({"id": ["x"], "embedding": [[1.0] * 6], "side_information": [[1.0] * 5]})


def _table() -> bytes:
    table = _vectors()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _key(template: str, parameter: str) -> str:
    """Return what a parameter names: `name` is a gallery, a query set, another store or a model version."""
    if parameter == "name" and "model-versions" in template:
        return "version"
    if parameter == "name" and "query-sets" in template:
        return "query_set"
    if parameter == "name" and "stores" in template:
        return "store"
    return {"name": "gallery", "part": "part" if "versions" in template else "part_of"}.get(parameter, parameter)


def external_upgrade(worker: WorkerParts, transformation_id: int) -> int:
    """Record an upgrade of a store of tenant `a`, with a report, as if it had been planned; return its id."""
    with worker.database.session_scope() as session:
        transformation = session.get_one(Transformation, transformation_id)
        described = Description(1, 6, 5, "l2", "float32")
        upgrade = ExternalUpgrade(
            tenant="a",
            store=STORE,
            side_name="new",
            from_version_id=transformation.from_version_id,
            to_version_id=transformation.to_version_id,
            transformation_id=transformation_id,
            description=described,
            batch_rows=1,
            cutover="manual",
            state=ExternalState.PLANNED,
        )
        session.add(upgrade)
        session.flush()
        upgrade_id = upgrade.id
    with worker.stores.opened(STORE) as store:
        report = judge_external(worker, store, upgrade, Findings(1, 1, 1, 1, "", "", 0, 0, 0, 0.0, "float32"), seed=1)
    with worker.database.session_scope() as session:
        store_report(session, upgrade_id, report)
    return upgrade_id


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    shop = tmp_path / "shop.parquet"
    pq.write_table(_vectors(), shop)
    return settings.model_copy(update={"stores": {STORE: StoreSetting(url=f"file://{shop}", tenants=("a",))}})


@pytest.fixture
def tenants(settings: Settings, worker: WorkerParts, tmp_path: Path) -> Iterator[Tenants]:
    settings.images = worker.settings.images = f"file://{tmp_path}/"
    with guarded_client(settings) as client:
        made = make_key(client, "admin", tenant="a")
        a, b = bearer(made["key"]), bearer(make_key(client, "admin", tenant="b")["key"])
        client.headers.update(a)
        upgrade_id = make_candidate(client, worker, tmp_path, 4)
        backfill_id = begin_backfill(client)
        query = [("files", ("query.png", image_bytes(9), "image/png"))]
        answer = client.post("/v1/galleries/g/query-sets", files=query, data={"name": "q", "queries": QUERIES})
        assert answer.status_code == 201, answer.text
        listed = [{"id": "x.png", "image_uri": f"file://{tmp_path}/x.png"}]
        job_id = client.post("/v1/galleries/g/images/references", json=listed).json()["id"]
        (transformation,) = client.get("/v1/transformations").json()["items"]
        external_id = external_upgrade(worker, transformation["id"])
        del client.headers["authorization"]
        ids = {"gallery": "g", "version": "v2", "query_set": "q", "item_id": "image-0.png", "number": "1"}
        ids |= {"upgrade_id": str(upgrade_id), "backfill_id": str(backfill_id), "job_id": str(job_id)}
        ids |= {"external_id": str(external_id), "store": STORE}
        ids |= {"transformation_id": str(transformation["id"]), "part": "embedding_model", "part_of": "h"}
        yield Tenants(client, a, b, ids | {"key_id": made["id"]})


def test_what_is_another_tenants_is_answered_as_what_is_not_there(tenants: Tenants) -> None:
    nobodys = dict.fromkeys(tenants.ids, "nothing") | {"part": "embedding_model", "part_of": "h", "number": "1"}
    nobodys |= {name: "999" for name in tenants.ids if name.endswith("_id")} | {"key_id": "nothing1"}
    leaks: list[Any] = []
    before = _seen_by(tenants, tenants.a)

    for operation in NAMING:
        found, missing = (tenants.ask(tenants.b, operation, ids) for ids in (tenants.ids, nobodys))
        if "/console/" in operation[1]:  # a page repeats its address here and there
            named = {*tenants.ids.values(), *nobodys.values()}
            if (found.status_code, _words_but(found, named)) != (404, _words_but(missing, named)):
                leaks.append((operation, found.status_code, found.text, missing.status_code, missing.text))
        elif (found.status_code, _without(found, tenants.ids)) != (missing.status_code, _without(missing, nobodys)):
            leaks.append((operation, found.status_code, found.text, missing.status_code, missing.text))
        elif found.status_code != 404:
            leaks.append((operation, "is not 404", found.status_code, found.text))

    assert leaks == []
    assert _seen_by(tenants, tenants.a) == before


def test_what_is_asked_for_is_there_for_its_own_tenant(tenants: Tenants) -> None:
    reads = [operation for operation in NAMING if operation[0] == "GET" and not operation[1].endswith("/events")]

    missing = {
        operation: answer.text
        for operation in reads
        if (answer := tenants.ask(tenants.a, operation, tenants.ids)).status_code == 404
    }

    # Evidence has no examples and no item a thumbnail here.
    assert set(missing) <= {("GET", "/v1/upgrades/{upgrade_id}/report/examples")}, missing


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


def test_a_key_without_an_operations_scope_is_refused_before_anything_is_looked_up(tenants: Tenants) -> None:
    all_but = {scope: [other for other in SCOPES if other not in (scope, "admin")] for scope in SCOPES}
    keys = {scope: bearer(make_key(tenants.client, *others)["key"]) for scope, others in all_but.items()}

    wrong = []
    for (method, path), scope in SCOPE_OF.items():
        answer = tenants.client.request(method, re.sub(r"\{\w+\}", "1", path), headers=keys[scope], content=b"\0")
        if answer.status_code != 403 or repr(scope) not in answer.json()["detail"]:
            wrong.append((method, path, scope, answer.status_code, answer.text))

    assert wrong == []
    assert not SCOPE_OF.keys() & (PUBLIC | ANY_KEY)


def _seen_by(tenants: Tenants, who: dict[str, str]) -> list[str]:
    paths = [
        *LISTS,
        "/v1/galleries/g",
        "/v1/galleries/g/items",
        "/v1/galleries/g/upgrades",
        "/v1/galleries/g/backfills",
    ]
    answers = [tenants.client.get(path, headers=who).json() for path in paths]
    for answer in answers:
        for row in answer.get("items", []) if isinstance(answer.get("items"), list) else []:
            row.pop("last_used_at", None)
    return [json.dumps(answer, sort_keys=True) for answer in answers]


def _without(answer: httpx.Response, ids: dict[str, str]) -> str:
    """Return an answer without what was asked for."""
    text = answer.text
    for name in sorted(ids.values(), key=len, reverse=True):
        text = re.sub(rf"(?<=['\" /]){re.escape(name)}(?=['\" ./])", "…", text)
    return text


def _words_but(answer: httpx.Response, names: set[str]) -> list[str]:
    """Return the words of a page in order, without those of these names."""
    left_out = {word for name in names for word in re.findall(r"\w+", name)}
    return [word for word in re.findall(r"\w+", answer.text) if word not in left_out]
