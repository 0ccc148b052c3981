"""A worker builds the index file that is due: one at a time, again after a failure, and not beside an upgrade."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.advisory_locks import AdvisoryLock
from service.domain.indexes import faiss_engine
from service.domain.indexes.faiss_engine import FaissEngine
from service.domain.upgrade.upgrades import upgrade_needs_workers
from service.index import kinds
from service.settings import Settings
from tests.fakes import WatchedBlobs, WatchedEngine
from tests.rebuilds import (
    FEWEST_QUERIES,
    ask,
    create_gallery_with_rows_for_a_file,
    damage,
    delete_image,
    due,
    is_nearest,
    jobs,
    leftovers,
    let_jobs_rest,
    rebuild,
    replace_image,
    row,
    served,
    soon_due,
)
from tests.scenario import DIMS, import_vectors, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts
from workers.rebuilding import rebuild_index


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return soon_due(settings)


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    create_gallery_with_rows_for_a_file(client)
    return client


class NearCopies(NamedTuple):
    """A client of the gallery, the row of its generation, and queries that are no rows."""

    gallery: TestClient
    generation: dict[str, Any]
    queries: list[list[float]]


@pytest.fixture
def near_copies(gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch) -> NearCopies:
    """Lists of a gallery of near copies, searched wider than is right, with changes since, and asked for other copies
    of the same meanwhile, for which less is enough."""
    monkeypatch.setattr(kinds, "_FEWEST_LISTS_PROBED", 4)
    random = np.random.default_rng(0)
    copies = np.repeat(random.standard_normal((150, DIMS["v1"][0])).astype(np.float32), 21, axis=0)
    copies += 0.1 * random.standard_normal(copies.shape).astype(np.float32)
    copies, others = copies[np.arange(len(copies)) % 21 > 0], copies[::21]
    import_vectors(gallery, [f"copy-{number}" for number in range(len(copies))], embedding=copies)
    assert gallery.patch("/v1/galleries/g", json={"index": "ivf"}).is_success
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)
    replace_image(gallery, "image-1.png", 31)
    delete_image(gallery, 2)
    queries = others[: 3 * FEWEST_QUERIES].tolist()
    ask(gallery, queries)
    monkeypatch.setattr(kinds, "_FEWEST_LISTS_PROBED", 1)
    return NearCopies(gallery, row(worker, 1), queries)


def test_a_width_is_chosen_anew_for_the_file_that_is_there(
    near_copies: NearCopies, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, before = near_copies.gallery, near_copies.generation
    monkeypatch.delattr(faiss_engine, "build_index")
    rebuild(worker, gallery)

    after = row(worker, 1)
    assert after["index_name"] != before["index_name"]
    assert after["index_revision"] == before["index_revision"] < served(gallery).revision
    wide, narrow = before["index_parameters"], after["index_parameters"]
    assert narrow["nprobe"] < wide["nprobe"]
    assert (set(wide["recalls"]), set(narrow["recalls"])) == ({"rows", "between"}, {"queries"})
    assert narrow["recall_sample"] == "queries"
    assert narrow["recall_at_10"] >= 0.99
    assert {key: narrow[key] for key in ("kind", "lists", "rows", "seconds")} == {
        key: wide[key] for key in ("kind", "lists", "rows", "seconds")
    }
    assert is_nearest(gallery, "image-1.png", 31)
    assert leftovers(served(gallery).index) == (1, 2)
    assert [f"indexes/{name}" for name in worker.blobs.list_files("indexes")] == [after["index_name"]]


def test_for_its_recall_a_file_counts_as_it_was_built(near_copies: NearCopies, worker: WorkerParts) -> None:
    gallery, before = near_copies.gallery, near_copies.generation
    nearest = ask(gallery, near_copies.queries, k=10)
    for name in sorted({neighbor["id"] for neighbors in nearest for neighbor in neighbors})[::2]:
        assert gallery.delete(f"/v1/galleries/g/items/{name}").status_code == 204

    rebuild(worker, gallery)

    after = row(worker, 1)
    assert after["index_revision"] == before["index_revision"]
    assert after["index_parameters"]["recall_at_10"] >= 0.99


def test_a_file_that_cannot_be_read_is_built_again(near_copies: NearCopies, worker: WorkerParts) -> None:
    gallery, before = near_copies.gallery, near_copies.generation
    damage(worker.blobs.fetch_file(before["index_name"], Path()))

    rebuild(worker, gallery)

    after = row(worker, 1)
    assert after["index_revision"] == served(gallery).revision > before["index_revision"]
    assert after["index_parameters"]["recall_sample"] == "queries"


def test_one_that_fails_is_built_again_after_a_pause(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    def fail(path: Path) -> None:
        raise OSError("the disk is full")

    blobs = WatchedBlobs(settings.blob_location, written=fail)
    generation_id = due(worker)
    assert generation_id is not None
    with pytest.raises(OSError, match="the disk is full"):
        rebuild_index(replace(worker, engine=FaissEngine(worker.database, blobs, settings)), generation_id)
    assert jobs(gallery) == [("index_build", "failed")]
    assert gallery.get("/v1/jobs/1").json()["error"] == "OSError: the disk is full"

    assert due(worker) is None
    let_jobs_rest(worker, worker.settings.rebuild_pause_seconds + 1)
    rebuild(worker, gallery)

    assert jobs(gallery) == [("index_build", "failed"), ("index_build", "succeeded")]


def test_one_worker_builds_at_a_time_and_what_another_has_built_is_not_built_again(
    gallery: TestClient, worker: WorkerParts
) -> None:
    generation_id = due(worker)
    assert generation_id is not None

    with worker.database.advisory_lock(AdvisoryLock.REBUILD) as mine:
        assert mine
        rebuild_index(worker, generation_id)
        assert jobs(gallery) == []
    for _ in range(2):
        rebuild_index(worker, generation_id)

    assert jobs(gallery) == [("index_build", "succeeded")]


def test_a_build_gives_way_to_an_upgrade_and_is_begun_again_when_that_is_ready(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrades: list[int] = []
    engine = WatchedEngine(worker.engine, lambda: upgrades.append(start_upgrade(gallery, "v2", cutover="manual")))
    generation_id = due(worker)
    assert generation_id is not None

    rebuild_index(replace(worker, engine=engine), generation_id)

    assert jobs(gallery) == [("index_build", "cancelled")]
    assert row(worker, generation_id)["index_name"] is None
    let_jobs_rest(worker, 60)
    assert due(worker) is None
    run_until(worker, gallery, upgrades[0], "ready")
    assert due(worker) == generation_id
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE upgrades SET cutover_requested_at = now()"))
        assert upgrade_needs_workers(session)
    assert due(worker) is None


def test_a_gallery_deleted_in_the_middle_of_a_build_ends_it_and_leaves_no_file(
    gallery: TestClient, worker: WorkerParts
) -> None:
    generation_id = due(worker)
    assert generation_id is not None
    deleted: list[int] = []
    engine = WatchedEngine(worker.engine, lambda: deleted.append(gallery.delete("/v1/galleries/g").status_code))

    rebuild_index(replace(worker, engine=engine), generation_id)

    assert deleted == [204]
    assert due(worker) is None  # and the sweep has been round
    assert worker.blobs.list_files("indexes") == []
