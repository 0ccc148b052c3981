"""A service with two tenants, of which one has one of everything, and each operation of the API as it is asked for
what it names: in its address or in its body."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi.testclient import TestClient

from service.access.operations import SCOPE_OF
from service.connectors.store import Description
from service.domain.external.reports import store_report
from service.domain.external_state import ExternalState
from service.settings import Settings, StoreSetting
from service.tables import ExternalUpgrade, Transformation
from tests.backfills import begin_backfill, make_candidate
from tests.keys import bearer, guarded_client, make_key
from tests.networks import PREPROCESSING, encoder_bytes, image_bytes, transformation_bytes
from workers.app import WorkerParts
from workers.judging_external import judge_external

STORE = "shop"
LABEL = "of-tenant-a"  # of the one query of `a`: what only `a` may read

Operation = tuple[str, str]  # a method, and a path with the names of its parameters

_QUERIES = json.dumps([{"id": "q1", "label": LABEL}])
# `<version>` and the like stand for what the operation is asked for.
_JSON_BODIES: dict[Operation, Any] = {
    ("POST", "/v1/galleries"): {"name": "made", "model_version": "<version>"},
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
    ("POST", "/v1/external-upgrades"): {"store": "<store>", "from_version": "<version>", "to_version": "<version>"},
    ("PATCH", "/v1/external-upgrades/{external_id}"): {"speed": 0.5},
    ("PATCH", "/v1/jobs/{job_id}"): {"speed": 0.5},
    ("POST", "/v1/transformations/train"): {"from_version": "<version>", "to_version": "v1", "dataset": "d"},
    ("PATCH", "/v1/transformations/{transformation_id}"): {"default": True},
    ("POST", "/v1/erasures"): {"gallery": "<gallery>", "ids": ["<item_id>"]},
}
_FORMS = {
    "/v1/galleries/{name}/images",
    "/v1/galleries/{gallery}/query-sets",
    "/v1/upgrades/{upgrade_id}/references",
    "/v1/backfills/{backfill_id}/images",
}
# What names something of somebody's, in its address or in its body.
NAMING: list[Operation] = sorted(
    operation
    for operation in SCOPE_OF
    if "{" in operation[1] or "<" in str(_JSON_BODIES.get(operation)) or operation == ("POST", "/v1/transformations")
)
LISTS = [
    "/v1/external-upgrades",
    "/v1/galleries",
    "/v1/jobs",
    "/v1/keys",
    "/v1/model-versions",
    "/v1/stores",
    "/v1/transformations",
]


@dataclass(frozen=True)
class Tenants:
    """A service with two tenants, known by the headers of an admin's key: `a` has one of everything, whose ids are
    `ids`, and `b` has nothing."""

    client: TestClient
    a: dict[str, str]
    b: dict[str, str]
    ids: dict[str, str]

    @property
    def nobodys(self) -> dict[str, str]:
        """Ids of what is nowhere."""
        numbers = {name: "999" for name in self.ids if name.endswith("_id")}
        kept = {name: self.ids[name] for name in ("part", "part_of", "number")}
        return dict.fromkeys(self.ids, "nothing") | numbers | kept | {"key_id": "nothing1"}

    def ask(self, who: dict[str, str], operation: Operation, ids: dict[str, str]) -> httpx.Response:
        method, template = operation
        path = re.sub(r"\{(\w+)\}", lambda found: ids[meaning_of(template, found[1])], template)
        options: dict[str, Any] = {}
        if template == "/console/galleries/{name}/item":
            options["params"] = {"id": ids["item_id"]}
        if operation in _JSON_BODIES:
            body = re.sub(r"<(\w+)>", lambda found: ids[found[1]], json.dumps(_JSON_BODIES[operation]))
            options |= {"content": body, "headers": {"Content-Type": "application/json"}}
        elif method == "POST" and template in _FORMS:
            options["files"] = [("files", ("image-0.png", image_bytes(0), "image/png"))]
            options["data"] = {"name": "q", "queries": _QUERIES} if "query-sets" in template else {}
        elif template.endswith("/networks"):
            options["files"] = {"embedding_model": ("phi", encoder_bytes(8, seed=2))}
            options["data"] = {"spec": json.dumps({"embedding_dim": 8, "preprocessing": PREPROCESSING})}
        elif operation == ("POST", "/v1/transformations"):
            options["files"] = {"h": ("h", transformation_bytes(6, 5, 8, seed=7))}
            options["data"] = {"from_version": ids["version"], "to_version": ids["version"]}
        elif template.endswith("/search"):
            options["files"] = {"file": ("query.png", image_bytes(1))}
        elif method == "POST" and template.endswith(("/embeddings", "{external_id}/references")):
            options["content"] = _stream(_vectors())
        options["headers"] = {**options.get("headers", {}), **who}
        if template.endswith("/examples"):
            options["params"] = {"kind": "negative_flips"}
        answer: httpx.Response = self.client.request(method, path, **options)
        return answer

    def seen_by(self, who: dict[str, str]) -> list[str]:
        """Return what the lists say of what is a tenant's."""
        of_gallery = [f"/v1/galleries/g{part}" for part in ("", "/items", "/upgrades", "/backfills", "/query-sets")]
        answers = [self.client.get(path, headers=who).json() for path in (*LISTS, *of_gallery)]
        for answer in answers:
            for row in answer.get("items", []) if isinstance(answer.get("items"), list) else []:
                row.pop("last_used_at", None)
        return [json.dumps(answer, sort_keys=True) for answer in answers]


def settings_of_tenants(settings: Settings, folder: Path) -> Settings:
    """Return settings with a store of tenant `a`, and a folder of images to read."""
    shop = folder / "shop.parquet"
    pq.write_table(_vectors(), shop)
    stores = {STORE: StoreSetting(url=f"file://{shop}", tenants=("a",))}
    return settings.model_copy(update={"stores": stores, "images": f"file://{folder}/"})


@contextmanager
def two_tenants(worker: WorkerParts, folder: Path) -> Iterator[Tenants]:
    """Give a service that needs keys, by a worker's settings, which `settings_of_tenants` gave."""
    with guarded_client(worker.settings) as client:
        a, b = (bearer(make_key(client, "admin", tenant=tenant)["key"]) for tenant in "ab")
        spare = make_key(client, "read", tenant="a")
        client.headers.update(a)
        upgrade_id = make_candidate(client, worker, folder, 4)
        backfill_id = begin_backfill(client)
        query = [("files", ("query.png", image_bytes(9), "image/png"))]
        answer = client.post("/v1/galleries/g/query-sets", files=query, data={"name": "q", "queries": _QUERIES})
        assert answer.status_code == 201, answer.text
        listed = [{"id": "x.png", "image_uri": f"file://{folder}/x.png"}]
        job_id = client.post("/v1/galleries/g/images/references", json=listed).json()["id"]
        (transformation,) = client.get("/v1/transformations").json()["items"]
        external_id = _external_upgrade(worker, transformation["id"])
        del client.headers["authorization"]
        ids = {"gallery": "g", "version": "v2", "query_set": "q", "item_id": "image-0.png", "number": "1"}
        ids |= {"upgrade_id": str(upgrade_id), "backfill_id": str(backfill_id), "job_id": str(job_id)}
        ids |= {"external_id": str(external_id), "store": STORE, "key_id": spare["id"]}
        ids |= {"transformation_id": str(transformation["id"]), "part": "embedding_model", "part_of": "h"}
        yield Tenants(client, a, b, ids)


def meaning_of(template: str, parameter: str) -> str:
    """Return what a parameter of an address means: `name` is a gallery, a query set, a store or a model version."""
    if parameter == "name" and "model-versions" in template:
        return "version"
    if parameter == "name" and "query-sets" in template:
        return "query_set"
    if parameter == "name" and "stores" in template:
        return "store"
    return {"name": "gallery", "part": "part" if "versions" in template else "part_of"}.get(parameter, parameter)


def is_told_apart(
    operation: Operation, found: httpx.Response, ids: dict[str, str], missing: httpx.Response, nobodys: dict[str, str]
) -> bool:
    """Return whether the answer to who asked for `ids` differs from that to who asked for `nobodys`, beyond these."""
    if found.status_code != missing.status_code:
        return True
    if "/console/" in operation[1]:  # a page repeats its address here and there
        named = {*ids.values(), *nobodys.values()}
        return _words_but(found, named) != _words_but(missing, named)
    return _without(found, ids) != _without(missing, nobodys)


def _vectors() -> pa.Table:
    return pa.table({"id": ["x"], "embedding": [[1.0] * 6], "side_information": [[1.0] * 5]})


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _external_upgrade(worker: WorkerParts, transformation_id: int) -> int:
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
            description=asdict(described),
            batch_rows=1,
            cutover="manual",
            state=ExternalState.PLANNED,
        )
        session.add(upgrade)
        session.flush()
        upgrade_id = upgrade.id
    with worker.stores.opened(STORE) as store:
        report = judge_external(worker, store, upgrade, findings={}, seed=1)
    with worker.database.session_scope() as session:
        store_report(session, upgrade_id, report)
    return upgrade_id


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
