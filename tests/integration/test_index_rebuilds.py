"""New index files for generations that take the gallery's writes: when one is built, and how API processes fold it in.

The client's replica follows every 0.1 s and folds in by itself; a test builds as a worker would, when it says so.
"""

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event, text

from service.api.dependencies import Parts
from service.app import create_app
from service.db import Database
from service.domain.indexes import builds as index_builds
from service.domain.indexes import faiss_engine as following
from service.domain.indexes.due import REBUILD_LOCK
from service.domain.indexes.faiss_engine import GenerationRows, read_next_rows
from service.domain.indexes.removal import index_file, remove_unneeded_files
from service.domain.jobs import start_job
from service.domain.upgrade.upgrades import upgrade_needs_workers
from service.index import kinds
from service.index.faiss_index import FaissIndex
from service.index.files import save_index
from service.index.kinds import BuiltIndex
from service.index.protocol import VectorIndex
from service.index.replica import Changes, ServedGeneration
from service.queue import BUILD_INDEX
from service.settings import Settings
from tests.fakes import RecordingQueue
from tests.networks import image_bytes
from tests.scenario import DIMS, create_upgradable_gallery, import_vectors, post_images, search, start_upgrade
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts
from workers.rebuilding import rebuild_index
from workers.sweep import sweep

FROM_ROWS, AFTER_CHANGES, FEWEST_QUERIES = 10, 4, 20


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """With few rows and changes files are due; `param` are settings of a test's own."""
    return settings.model_copy(
        update={
            "index_file_from_rows": FROM_ROWS,
            "rebuild_after_changes": AFTER_CHANGES,
            "rebuild_after_share": 0.2,
            "flat_below_rows": 0,
            "recall_sample_items": 2 * FEWEST_QUERIES,
            **getattr(request, "param", {}),
        }
    )


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 has as many images as make a file due, and can be upgraded to v2."""
    create_upgradable_gallery(client)
    post_images(client, range(FROM_ROWS))
    return client


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


def sample(client: TestClient) -> list[bytes]:
    """Return the kept queries."""
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # Starlette's state is untyped
    with parts.database.session_scope() as session:
        return list(session.scalars(text("SELECT vector FROM query_samples")))


def damage(path: Path) -> None:
    """Put another file in the place of one that may be mapped."""
    path.unlink()
    path.write_bytes(b"damaged")


class NearCopies(NamedTuple):
    """A client of the gallery, the row of its generation, and queries that are no rows."""

    gallery: TestClient
    generation: dict[str, Any]
    queries: list[list[float]]


def let_jobs_rest(worker: WorkerParts, seconds: float) -> None:
    """Let so much time pass for every job."""
    query = text(
        "UPDATE jobs SET created_at = created_at - make_interval(secs => :by),"
        " updated_at = updated_at - make_interval(secs => :by)"
    )
    with worker.database.session_scope() as session:
        session.execute(query, {"by": seconds})


def test_a_file_is_due_when_a_gallery_is_large_enough_and_again_when_enough_of_it_changed(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(FROM_ROWS - 1))
    assert due(worker) is None
    delete_image(client, 0)
    post_images(client, [20])
    assert due(worker) is None  # eleven revisions, and nine items

    post_images(client, [21])
    rebuild(worker, client)
    assert leftovers(served(client).index) == (0, 0)

    replace_image(client, "image-1.png", 31)
    post_images(client, [22])
    delete_image(client, 2)
    assert leftovers(served(client).index) == (2, 2)
    assert due(worker) is None  # three changes
    delete_image(client, 3)
    let_jobs_rest(worker, 60)
    assert due(worker) is not None


def test_a_larger_gallery_waits_for_a_share_of_its_rows(gallery: TestClient, worker: WorkerParts) -> None:
    post_images(gallery, range(10, 30))
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)

    post_images(gallery, range(30, 35))
    assert due(worker) is None
    post_images(gallery, [35])  # the sixth of thirty

    assert due(worker) is not None


def test_a_file_whose_width_was_chosen_by_rows_is_due_once_when_enough_queries_are_kept(
    gallery: TestClient, worker: WorkerParts
) -> None:
    ask_vectors(gallery, FEWEST_QUERIES - 1)
    rebuild(worker, gallery)
    by_rows = row(worker, 1)["index_parameters"]
    let_jobs_rest(worker, 60)
    assert due(worker) is None

    ask_vectors(gallery, FEWEST_QUERIES)
    rebuild(worker, gallery)
    by_queries = row(worker, 1)["index_parameters"]
    assert [f"indexes/{name}" for name in worker.blobs.list_files("indexes")] == [row(worker, 1)["index_name"]]
    ask_vectors(gallery, FEWEST_QUERIES // 2)
    let_jobs_rest(worker, 60)

    assert due(worker) is None
    assert (by_rows["recall_sample"], by_rows["recall_sample_size"]) == ("rows", FROM_ROWS)
    assert by_queries["recall_sample"] == "queries"
    assert by_queries["recall_sample_size"] >= FEWEST_QUERIES
    assert by_queries["recall_at_10"] == by_rows["recall_at_10"] == 1.0
    assert jobs(gallery) == [("index_build", "succeeded")] * 2


@pytest.fixture
def near_copies(gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch) -> NearCopies:
    """Lists of a gallery of near copies, searched as wide as is right for rows, with changes since, and asked from
    outside meanwhile."""
    monkeypatch.setattr(kinds, "_FEWEST_LISTS_PROBED", 1)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((150 + 3 * FEWEST_QUERIES, DIMS["v1"][0])).astype(np.float32)
    copies = np.repeat(vectors[:150], 20, axis=0)
    copies += 0.1 * random.standard_normal(copies.shape).astype(np.float32)
    import_vectors(gallery, [f"copy-{number}" for number in range(len(copies))], embedding=copies)
    assert gallery.patch("/v1/galleries/g", json={"index": "ivf"}).is_success
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)
    replace_image(gallery, "image-1.png", 31)
    delete_image(gallery, 2)
    queries = vectors[150:].tolist()
    ask(gallery, queries)
    return NearCopies(gallery, row(worker, 1), queries)


def test_a_width_is_chosen_anew_for_the_file_that_is_there(
    near_copies: NearCopies, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, before = near_copies.gallery, near_copies.generation
    monkeypatch.delattr(index_builds, "build_index")
    rebuild(worker, gallery)

    after = row(worker, 1)
    assert after["index_name"] != before["index_name"]
    assert after["index_revision"] == before["index_revision"] < served(gallery).revision
    narrow, wide = before["index_parameters"], after["index_parameters"]
    assert wide["nprobe"] > narrow["nprobe"]
    assert (narrow["recall_sample"], wide["recall_sample"]) == ("rows", "queries")
    assert wide["recall_at_10"] >= 0.99
    assert {key: wide[key] for key in ("kind", "lists", "rows", "seconds")} == {
        key: narrow[key] for key in ("kind", "lists", "rows", "seconds")
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


def test_a_width_that_few_queries_chose_is_chosen_again_by_all_that_are_wanted(
    gallery: TestClient, worker: WorkerParts
) -> None:
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)
    ask_vectors(gallery, FEWEST_QUERIES)
    rebuild(worker, gallery)
    few = row(worker, 1)["index_parameters"]["recall_sample_size"]
    let_jobs_rest(worker, 60)
    while len(sample(gallery)) < 2 * FEWEST_QUERIES - 1:
        assert due(worker) is None
        ask(gallery, [np.random.default_rng(len(sample(gallery))).standard_normal(DIMS["v1"][0]).tolist()])

    while len(sample(gallery)) < 2 * FEWEST_QUERIES:
        ask_vectors(gallery, 1)
    rebuild_index(worker, 1)
    all_wanted = row(worker, 1)["index_parameters"]["recall_sample_size"]

    assert FEWEST_QUERIES - 2 <= few < 2 * FEWEST_QUERIES
    assert all_wanted == 2 * FEWEST_QUERIES
    let_jobs_rest(worker, 60)
    assert due(worker) is None


@pytest.mark.parametrize("settings", [{"blob_url": f"memory://{uuid.uuid4().hex}"}], indirect=True)
def test_of_a_remote_store_a_machine_keeps_copies_of_what_is_named(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    rebuild(worker, gallery)
    cache = settings.data / "index_cache" / "indexes"
    first = cache / Path(row(worker, 1)["index_name"]).name
    assert first.exists()
    for name in ("generation_99.5.faiss", "dead.part", "young.part"):
        (cache / name).write_bytes(b"")
    os.utime(cache / "dead.part", (0, 0))
    post_images(gallery, range(50, 60))
    let_jobs_rest(worker, 60)

    rebuild(worker, gallery)

    second = Path(row(worker, 1)["index_name"]).name
    assert {path.name for path in cache.iterdir()} == {second, "young.part"}
    assert worker.blobs.list_files("indexes") == [second]
    damage(cache / second)
    with gallery_restarted(gallery) as restarted:
        assert sorted(found(restarted)) == sorted(found(gallery))
        assert not (cache / second).exists()
    with gallery_restarted(gallery):
        assert (cache / second).stat().st_size > 100


def test_an_exact_index_is_not_due_for_its_width(gallery: TestClient, worker: WorkerParts) -> None:
    assert gallery.patch("/v1/galleries/g", json={"index": "flat"}).is_success
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)

    ask_vectors(gallery, FEWEST_QUERIES)

    assert due(worker) is None


def test_after_an_upgrade_only_queries_of_the_new_version_make_its_file_due(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(FROM_ROWS - 1))  # too few for a file of the first generation
    ask_vectors(client, FEWEST_QUERIES)
    upgrade_id = start_upgrade(client, "v2", cutover="auto")
    run_until(worker, client, upgrade_id, "live")
    wait_for(lambda: search(client, 1)["model_version"] == "v2")
    let_jobs_rest(worker, 60)
    assert row(worker, 2)["index_parameters"]["recall_sample"] == "rows"
    assert due(worker) is None

    ask_vectors(client, FEWEST_QUERIES, version="v2")
    rebuild(worker, client)

    assert row(worker, 2)["index_parameters"]["recall_sample"] == "queries"
    let_jobs_rest(worker, 60)
    assert due(worker) is None


def test_what_is_due_for_other_reasons_does_not_wait_until_more_has_changed(
    gallery: TestClient, worker: WorkerParts
) -> None:
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)
    for seed in range(31, 31 + AFTER_CHANGES):
        replace_image(gallery, "image-1.png", seed)
    assert due(worker) is None  # one item changed, again and again: it is not looked at again for a while

    ask_vectors(gallery, FEWEST_QUERIES)

    assert due(worker) == 1


def test_a_file_is_due_when_the_gallery_asks_for_another_kind(gallery: TestClient, worker: WorkerParts) -> None:
    rebuild(worker, gallery)
    before = found(gallery)
    let_jobs_rest(worker, 60)
    assert due(worker) is None

    assert gallery.patch("/v1/galleries/g", json={"index": "ivf"}).is_success
    rebuild(worker, gallery)

    assert row(worker, 1)["index_parameters"]["kind"] == "ivf"
    assert found(gallery) == before
    let_jobs_rest(worker, 60)
    assert gallery.patch("/v1/galleries/g", json={"index": "auto"}).is_success
    assert due(worker) is None


def test_a_file_that_gets_its_name_while_unneeded_ones_are_removed_stays(
    gallery: TestClient, worker: WorkerParts
) -> None:
    rebuild(worker, gallery)
    with worker.database.session_scope() as session:
        job_id = start_job(session, "index_build", 1, 1, upgrade_id=None)
    new = index_file(1, job_id)
    worker.blobs.publish(new, Path.touch)
    named = threading.Event()

    def name_it(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        if "FROM generations" in statement and not named.is_set():
            named.set()
            with worker.database.session_scope() as session:
                session.execute(text("UPDATE generations SET index_name = :new WHERE id = 1"), {"new": new})
                session.execute(text("UPDATE jobs SET state = 'succeeded' WHERE id = :id"), {"id": job_id})

    event.listen(worker.database.engine, "after_cursor_execute", name_it)
    try:
        remove_unneeded_files(worker.database, worker.blobs)
    finally:
        event.remove(worker.database.engine, "after_cursor_execute", name_it)

    assert named.is_set()
    assert Path(new).name in worker.blobs.list_files("indexes")


def test_items_that_change_over_and_over_are_no_more_than_they_are(gallery: TestClient, worker: WorkerParts) -> None:
    rebuild(worker, gallery)
    let_jobs_rest(worker, 60)
    for seed in range(40, 50):
        replace_image(gallery, "image-1.png", seed)

    assert due(worker) is None  # ten revisions, and one item
    (not_before,) = worker.rebuilds.not_before.values()

    assert not_before == served(gallery).revision + AFTER_CHANGES - 1


def test_a_rebuild_folds_tail_and_tombstones_in_and_changes_no_answer(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    rebuild(worker, gallery)
    first = row(worker, 1)
    replace_image(gallery, "image-1.png", 31)
    delete_image(gallery, 2)
    post_images(gallery, [50, 51, 52])
    before = [search(gallery, seed, k=50)["neighbors"] for seed in (1, 2, 31, 50)]
    assert leftovers(served(gallery).index) == (4, 2)
    let_jobs_rest(worker, 60)

    rebuild(worker, gallery)

    assert leftovers(served(gallery).index) == (0, 0)
    after = [search(gallery, seed, k=50)["neighbors"] for seed in (1, 2, 31, 50)]
    for one, other in zip(before, after, strict=True):
        assert [n["id"] for n in one] == [n["id"] for n in other]
        assert [n["distance"] for n in one] == pytest.approx([n["distance"] for n in other], abs=1e-2)
    second = row(worker, 1)
    assert second["index_revision"] == served(gallery).revision > first["index_revision"]
    assert [f"indexes/{name}" for name in worker.blobs.list_files("indexes")] == [second["index_name"]]
    assert jobs(gallery) == [("index_build", "succeeded")] * 2


def test_what_is_written_while_a_file_is_built_and_folded_in_is_found_at_once_and_stays(
    gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file, changes = GenerationRows.open_file, GenerationRows.changes
    rounds = iter(range(60, 99))
    written: set[str] = set()
    deleted: set[str] = set()

    def write() -> None:
        """Add an item, replace one and delete one; each is seen by the next query."""
        seed = next(rounds)
        post_images(gallery, [seed])
        replace_image(gallery, "image-1.png", seed + 100)
        delete_image(gallery, seed - 58)  # from 2 on
        written.add(f"image-{seed}.png")
        deleted.add(f"image-{seed - 58}.png")
        check(seed)

    def check(seed: int) -> None:
        assert is_nearest(gallery, f"image-{seed}.png", seed)
        assert is_nearest(gallery, "image-1.png", seed + 100)
        everything = {f"image-{number}.png" for number in range(FROM_ROWS)} - deleted | written
        assert set(found(gallery)) == everything

    def write_and_read(*arguments: Any) -> Any:
        if not written:
            write()
        return read_next_rows(*arguments)

    def open_and_write(*arguments: Any) -> ServedGeneration | None:
        opened = open_file(*arguments)
        if threading.current_thread().name == "loading" and opened is not None and len(written) == 1:
            write()  # the file is loaded, and the old index serves
        return opened

    def write_between(source: GenerationRows, following: ServedGeneration, to_revision: int) -> Changes:
        found = changes(source, following, to_revision)
        if threading.current_thread().name == "loading" and len(written) == 2:
            write()  # the first pass of the file has read its changes, and the swap is still to come
        return found

    monkeypatch.setattr(following, "read_next_rows", write_and_read)
    monkeypatch.setattr(GenerationRows, "open_file", open_and_write)
    monkeypatch.setattr(GenerationRows, "changes", write_between)
    before = served(gallery).index
    rebuild(worker, gallery)

    assert len(written) == 3
    assert served(gallery).index is not before
    check(62)
    with gallery_restarted(gallery) as restarted:
        assert sorted(found(restarted)) == sorted(found(gallery))


@contextmanager
def gallery_restarted(client: TestClient) -> Iterator[TestClient]:
    """A second process, started now, so that it loads the file and applies what came after."""
    with TestClient(create_app(client.app.state.parts.settings)) as second:  # type: ignore[attr-defined]
        wait_for(lambda: second.get("/readyz").status_code == 200)
        yield second


def test_searches_while_files_are_folded_in_are_never_without_an_item(gallery: TestClient, worker: WorkerParts) -> None:
    expected = set(found(gallery))
    stop = threading.Event()
    wrong: list[set[str]] = []

    def keep_asking() -> int:
        answers = 0
        while not stop.is_set():
            answer = set(found(gallery))
            answers += 1
            if not answer >= expected:
                wrong.append(expected - answer)
        return answers

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(keep_asking) for _ in range(2)]
        try:
            for start in (100, 110, 120):
                rebuild(worker, gallery)
                post_images(gallery, range(start, start + 10))
                let_jobs_rest(worker, 60)
        finally:
            stop.set()

    assert all(answers.result() > 0 for answers in asking)
    assert wrong == []
    assert len(jobs(gallery)) == 3


def test_one_that_fails_is_built_again_after_a_pause(
    gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("the disk is full")

    generation_id = due(worker)
    assert generation_id is not None
    with monkeypatch.context() as patch:
        patch.setattr(index_builds, "save_index", fail)
        with pytest.raises(OSError, match="the disk is full"):
            rebuild_index(worker, generation_id)
    assert jobs(gallery) == [("index_build", "failed")]
    assert gallery.get("/v1/jobs/1").json()["error"] == "OSError: the disk is full"

    assert due(worker) is None
    let_jobs_rest(worker, worker.settings.rebuild_pause_seconds + 1)
    rebuild(worker, gallery)

    assert jobs(gallery) == [("index_build", "failed"), ("index_build", "succeeded")]


def test_a_build_is_followed_by_a_rest_as_long_as_itself(gallery: TestClient, worker: WorkerParts) -> None:
    rebuild(worker, gallery)
    post_images(gallery, range(20, 30))
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE jobs SET created_at = updated_at - interval '100 s'"))

    let_jobs_rest(worker, 90)
    assert due(worker) is None
    let_jobs_rest(worker, 20)

    assert due(worker) is not None


def test_one_worker_builds_at_a_time_and_what_another_has_built_is_not_built_again(
    gallery: TestClient, worker: WorkerParts
) -> None:
    generation_id = due(worker)
    assert generation_id is not None

    with worker.database.advisory_lock(REBUILD_LOCK, 0) as mine:
        assert mine
        rebuild_index(worker, generation_id)
        assert jobs(gallery) == []
    for _ in range(2):
        rebuild_index(worker, generation_id)

    assert jobs(gallery) == [("index_build", "succeeded")]


def test_a_build_gives_way_to_an_upgrade_and_is_begun_again_when_that_is_ready(
    gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrades: list[int] = []

    def start_meanwhile(*arguments: Any) -> Any:
        if not upgrades:
            upgrades.append(start_upgrade(gallery, "v2", cutover="manual"))
        return read_next_rows(*arguments)

    generation_id = due(worker)
    assert generation_id is not None
    monkeypatch.setattr(following, "read_next_rows", start_meanwhile)
    rebuild_index(worker, generation_id)

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


def test_the_generation_that_is_kept_for_a_rollback_gets_a_file_after_the_active_one(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    run_until(worker, gallery, upgrade_id, "live")
    wait_for(lambda: search(gallery, 1)["model_version"] == "v2")
    post_images(gallery, range(20, 24))
    let_jobs_rest(worker, 60)

    rebuild(worker, gallery)
    assert (row(worker, 1)["index_name"], served(gallery).generation_id) == (None, 2)
    rebuild(worker, gallery)

    assert leftovers(served(gallery, 1).index) == leftovers(served(gallery, 2).index) == (0, 0)
    gallery.post(f"/v1/upgrades/{upgrade_id}/rollback")
    assert search(gallery, 1)["model_version"] == "v1"
    assert is_nearest(gallery, "image-23.png", 23)


def test_a_gallery_deleted_in_the_middle_of_a_build_ends_it_and_leaves_no_file(
    gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete_meanwhile(*arguments: Any) -> Any:
        gallery.delete("/v1/galleries/g")
        return read_next_rows(*arguments)

    generation_id = due(worker)
    assert generation_id is not None
    monkeypatch.setattr(following, "read_next_rows", delete_meanwhile)

    rebuild_index(worker, generation_id)

    assert due(worker) is None  # and the sweep has been round
    assert worker.blobs.list_files("indexes") == []


def test_a_file_that_is_damaged_is_left_alone_and_the_old_index_goes_on(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    rebuild(worker, gallery)
    before = served(gallery).index
    post_images(gallery, range(20, 30))
    let_jobs_rest(worker, 60)
    damage = damaging(settings)

    damage(lambda: rebuild(worker, gallery))
    post_images(gallery, [40])

    assert served(gallery).index is before
    assert is_nearest(gallery, "image-40.png", 40)
    assert len(found(gallery)) == 21


def damaging(settings: Settings) -> Callable[[Callable[[], None]], None]:
    """Return what runs a build with the file cut short before anybody loads it."""

    def run(build: Callable[[], None]) -> None:
        with pytest.MonkeyPatch.context() as patch:

            def save_half(built: BuiltIndex, path: Path) -> str:
                digest = save_index(built, path)
                path.write_bytes(path.read_bytes()[:-100])
                return digest

            patch.setattr(index_builds, "save_index", save_half)
            build()

    return run


def test_a_file_that_is_replaced_while_it_is_about_to_be_loaded_costs_a_second_look_and_no_rows(
    gallery: TestClient, worker: WorkerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild(worker, gallery)
    post_images(gallery, range(20, 30))
    let_jobs_rest(worker, 60)
    parts = gallery.app.state.parts  # type: ignore[attr-defined]  # Starlette's state is untyped
    fetch = parts.blobs.fetch_file

    def rebuild_first(*arguments: Any) -> Path:
        monkeypatch.setattr(parts.blobs, "fetch_file", fetch)
        rebuild_index(worker, 1)
        path: Path = fetch(*arguments)
        return path

    monkeypatch.setattr(parts.blobs, "fetch_file", rebuild_first)
    source = GenerationRows(parts.database, parts.blobs, parts.search.encoders, parts.settings)
    opened = source.open_file(1, 1)

    assert opened is not None
    assert opened.index_sha256 == row(worker, 1)["index_sha256"]
    assert len(opened.index) == 20


def test_a_process_keeps_the_file_that_it_has_mapped_when_it_is_removed(
    gallery: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    rebuild(worker, gallery)

    shutil.rmtree(Path(settings.blob_location.removeprefix("file://")) / "indexes")

    assert len(found(gallery)) == FROM_ROWS
