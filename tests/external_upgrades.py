"""A client's and a worker's steps of upgrading a store of `tests.external_stores` from v1 to v2."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import service.app
from service.connectors.named import NamedStores, OpenStore
from service.connectors.store import KeyRange, NewSide, Rows, Vectors
from service.settings import Settings, StoreSetting
from tests.external_stores import SqliteStore, make_store, open_fake, url_of
from tests.scenario import DIMS, register_transformation, register_version
from workers.app import WorkerParts
from workers.connecting import advance_external

STORE = "shop"
_EVERYTHING = KeyRange(None, None)


# Where a worker dies on its way to ready; at a switch; and an API, or a worker, after that.
WORKER_POINTS = (
    "external.prepared",
    "external.planned",
    "external.claimed",
    "external.transformed",
    "external.written",
    "external.recorded",
    "external.committed",
    "external.verified",
)
SWITCH_POINTS = ("external.switched", "external.recorded_live")
LATER_POINTS = ("external.switched_back", "external.removed")


def named(path: Path, name: str = STORE) -> dict[str, StoreSetting]:
    return {name: StoreSetting(url=url_of(path))}


def make_fake_parts(settings: Settings) -> Any:
    """Make the parts of an API whose stores are fakes: what `create_app` is given."""
    return service.app.make_parts(settings, open_fake)


def drawn(rows: int, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Return random embeddings and side-information of v1."""
    generator = np.random.default_rng(seed)
    embedding_dim, side_dim = DIMS["v1"]
    made = [generator.standard_normal((rows, dim)).astype(np.float32) for dim in (embedding_dim, side_dim or 0)]
    return made[0], made[1]


def store_of_v1(path: Path, rows: int = 30, **options: Any) -> SqliteStore:
    return make_store(path, *drawn(rows), **options)


def register_both(client: httpx.Client) -> int:
    """Register v1, v2 and a transformation between them; return its id."""
    for version in ("v1", "v2"):
        register_version(client, version)
    return register_transformation(client, "v1", "v2")


def watched(worker: WorkerParts, meanwhile: Callable[[str, KeyRange | None], object]) -> WorkerParts:
    """Return the worker with a store that tells of its steps."""
    open_store: OpenStore = partial(_open_watched, meanwhile)
    return replace(worker, stores=NamedStores(worker.settings.stores, open_store))


def _open_watched(
    meanwhile: Callable[[str, KeyRange | None], object], url: str, new: NewSide | None = None
) -> SqliteStore:
    return SqliteStore(Path(url.partition("@")[2]), new, meanwhile)


def start(client: httpx.Client, **options: Any) -> int:
    """Start an upgrade of the store; return its id."""
    wanted = {"store": STORE, "from_version": "v1", "to_version": "v2", **options}
    answer = client.post("/v1/external-upgrades", json=wanted)
    assert answer.status_code == 202, answer.text
    identifier: int = answer.json()["id"]
    assert answer.headers["Location"] == f"/v1/external-upgrades/{identifier}"
    return identifier


def view(client: httpx.Client, upgrade_id: int) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/v1/external-upgrades/{upgrade_id}").json()
    return body


def act(client: httpx.Client, upgrade_id: int, action: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/external-upgrades/{upgrade_id}/{action}", json=body or None)
    assert answer.status_code in (200, 202), answer.text
    found: dict[str, Any] = answer.json()
    return found


def work_until(worker: WorkerParts, client: httpx.Client, upgrade_id: int, state: str) -> dict[str, Any]:
    """Let the worker work on an upgrade until it is in a state; return it."""
    for _ in range(30):
        advance_external(worker, upgrade_id)
        found = view(client, upgrade_id)
        if found["state"] == state:
            return found
    raise AssertionError(found)


def work_until_removed(worker: WorkerParts, client: httpx.Client, upgrade_id: int) -> dict[str, Any]:
    """Let the worker remove what an upgrade that ended left."""
    for _ in range(5):
        advance_external(worker, upgrade_id)
        found = view(client, upgrade_id)
        if found["removed_at"] is not None:
            return found
    raise AssertionError(found)


def transformed(worker: WorkerParts, transformation_id: int, rows: Rows) -> tuple[Vectors, Vectors | None]:
    """Return what h and g give for rows, one after another: the slow, obvious way."""
    made = [
        worker.networks.apply(
            transformation_id,
            rows.embedding[place : place + 1],
            None if rows.side_information is None else rows.side_information[place : place + 1],
        )
        for place in range(len(rows.keys))
    ]
    sides = [side for _, side in made if side is not None]
    return np.concatenate([embedding for embedding, _ in made]), np.concatenate(sides) if sides else None


def assert_upgraded(worker: WorkerParts, transformation_id: int, store: SqliteStore, within: float = 1e-4) -> None:
    """Assert that the new side is h and g of the old one, row by row, and nothing else."""
    old, new = store.read(_EVERYTHING), store.read_new(_EVERYTHING)
    embedding, side = transformed(worker, transformation_id, old)
    assert new.keys == old.keys
    np.testing.assert_allclose(new.embedding, embedding, rtol=within, atol=within)
    assert (side is None) == (new.side_information is None)
    if side is not None and new.side_information is not None:
        np.testing.assert_allclose(new.side_information, side, rtol=within, atol=within)
