"""A gallery that takes writes and is large enough for an index file: what is due, and building it as a worker would."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import Database
from service.index.faiss_index import FaissIndex
from service.index.protocol import VectorIndex
from service.index.served import ServedGeneration
from service.queue import BUILD_INDEX
from service.settings import Settings
from tests.fakes import RecordingQueue
from tests.networks import image_bytes
from tests.scenario import DIMS, create_upgradable_gallery, post_images, search
from tests.served import wait_for
from workers.app import WorkerParts
from workers.rebuilding import rebuild_index
from workers.sweep import sweep

FROM_ROWS, AFTER_CHANGES, FEWEST_QUERIES = 10, 4, 20


def soon_due(settings: Settings, **more: Any) -> Settings:
    """Return settings under which files are due with few rows and changes; `more` are a test's own."""
    return settings.model_copy(
        update={
            "index_file_from_rows": FROM_ROWS,
            "rebuild_after_changes": AFTER_CHANGES,
            "rebuild_after_share": 0.2,
            "flat_below_rows": 0,
            "recall_sample_items": 2 * FEWEST_QUERIES,
            **more,
        }
    )


def create_gallery_with_rows_for_a_file(client: TestClient) -> None:
    """Create the gallery `g` under v1, with as many images as make a file due; it can be upgraded to v2."""
    create_upgradable_gallery(client)
    post_images(client, range(FROM_ROWS))


def found(client: TestClient, seed: int = 0) -> list[str]:
    return [neighbor["id"] for neighbor in search(client, seed, k=50)["neighbors"]]


def is_nearest(client: TestClient, name: str, seed: int) -> bool:
    """Whether a search for an image finds this item, and it is that very image."""
    neighbor = search(client, seed, k=1)["neighbors"][0]
    return bool(neighbor["id"] == name and neighbor["distance"] < 1e-2)


def replace_image(client: TestClient, name: str, seed: int) -> None:
    assert client.post("/v1/galleries/g/images", files=[("files", (name, image_bytes(seed)))]).is_success


def delete_image(client: TestClient, seed: int) -> None:
    assert client.delete(f"/v1/galleries/g/items/image-{seed}.png").status_code == 204


def due(worker: WorkerParts) -> int | None:
    """Return the generation for which a sweep asks a new file."""
    queue = RecordingQueue()
    sweep(replace(worker, database=Database(worker.database.engine, queue)))
    asked = [arguments[0] for task, arguments in queue.sent if task == BUILD_INDEX]
    return asked[0] if asked else None


def rebuild(worker: WorkerParts, client: TestClient) -> None:
    """Build what is due, and wait until the client's replica serves it."""
    generation_id = due(worker)
    assert generation_id is not None
    rebuild_index(worker, generation_id)
    wait_for(lambda: served(client, generation_id).index_sha256 == row(worker, generation_id)["index_sha256"])


def served(client: TestClient, generation_id: int | None = None) -> ServedGeneration:
    """Return what the client's replica holds of a generation; of the active one by default."""
    (replica,) = client.app.state.parts.replicas._galleries.values()  # type: ignore[attr-defined]  # untyped state
    pair: ServedGeneration = replica.active if generation_id is None else replica.held[generation_id]
    return pair


def leftovers(index: VectorIndex) -> tuple[int, int]:
    assert isinstance(index, FaissIndex)
    return index.tail_size, index.tombstones


def row(worker: WorkerParts, generation_id: int) -> dict[str, Any]:
    with worker.database.session_scope() as session:
        query = text("SELECT to_jsonb(n) FROM generations n WHERE id = :id")
        found: dict[str, Any] = session.scalars(query, {"id": generation_id}).one()
        return found


def jobs(client: TestClient) -> list[tuple[str, str]]:
    return [(job["kind"], job["state"]) for job in client.get("/v1/jobs").json()["items"]]


def ask_vectors(client: TestClient, count: int, version: str = "v1") -> None:
    """Search by random vectors, which are then kept, together with those that were."""
    ask(client, np.random.default_rng(count).standard_normal((count, DIMS[version][0])).tolist(), version)


def ask(client: TestClient, vectors: list[list[float]], version: str = "v1", k: int = 1) -> list[list[dict[str, Any]]]:
    """Search by vectors, which are then kept; return the neighbours of each."""
    neighbors: list[list[dict[str, Any]]] = []
    for start in range(0, len(vectors), 10):  # of more in one request, not all are kept
        body = {"vectors": vectors[start : start + 10], "k": k, "model_version": version}
        answer = client.post("/v1/galleries/g/search/vectors", json=body)
        assert answer.status_code == 200, answer.text
        neighbors += answer.json()["neighbors"]
    client.app.state.parts.query_samples.write()  # type: ignore[attr-defined]  # Starlette's state is untyped
    return neighbors


def damage(path: Path) -> None:
    """Put another file in the place of one that may be mapped."""
    path.unlink()
    path.write_bytes(b"damaged")


def let_jobs_rest(worker: WorkerParts, seconds: float) -> None:
    """Let so much time pass for every job."""
    query = text(
        "UPDATE jobs SET created_at = created_at - make_interval(secs => :by),"
        " updated_at = updated_at - make_interval(secs => :by)"
    )
    with worker.database.session_scope() as session:
        session.execute(query, {"by": seconds})
