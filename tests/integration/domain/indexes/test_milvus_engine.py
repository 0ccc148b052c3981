"""A gallery whose indexes are collections in Milvus (its embedded form), through its whole life."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.advisory_locks import AdvisoryLock
from service.api.dependencies import Parts
from service.app import create_app
from service.domain.gallery.generations import GenerationKey
from service.domain.indexes import milvus_engine as filling
from service.domain.indexes.faiss_engine import FaissEngine
from service.domain.indexes.milvus_engine import CollectionBusy, MilvusEngine
from service.domain.upgrade.cutover import request_cutover
from service.index.milvus import Collections
from service.index.protocol import Ids, IndexAway, SearchResult, Vectors
from service.settings import Settings
from tests.backfills import begin_backfill, lease, send_images
from tests.conftest import Servers, small_settings
from tests.erasures import erase
from tests.milvus import milvus
from tests.networks import image_bytes
from tests.scenario import (
    create_gallery,
    create_upgradable_gallery,
    import_vectors,
    post_images,
    search,
    start_upgrade,
)
from tests.working import run_until
from workers.app import WorkerParts
from workers.sweep import sweep


class AwayIndex:
    """An index whose server does not answer."""

    def __len__(self) -> int:
        raise IndexAway("it does not answer")

    def ids(self) -> Ids:
        raise IndexAway("it does not answer")

    def add(self, ids: Ids, vectors: Vectors) -> None:
        raise IndexAway("it does not answer")

    def remove(self, ids: Ids) -> None:
        raise IndexAway("it does not answer")

    def search(self, queries: Vectors, k: int, allowed: Ids | None = None, *, exact: bool = False) -> SearchResult:
        raise IndexAway("it does not answer")


@pytest.fixture
def settings(servers: Servers, database_url: str, tmp_path: Path) -> Iterator[Settings]:
    with milvus(tmp_path / "milvus") as url:
        settings = small_settings(servers, database_url, tmp_path / "data")
        yield settings.model_copy(update={"index_url": url, "follow_every_seconds": 3600.0})


def milvus_engine(parts: WorkerParts | Parts) -> MilvusEngine:
    assert isinstance(parts.engine, MilvusEngine)
    return parts.engine


@pytest.fixture
def collections(settings: Settings) -> Iterator[Collections]:
    """What somebody sees who reads Milvus directly."""
    assert settings.index_url is not None
    collections = Collections(settings.index_url)
    yield collections
    collections.close()


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 has 20 images and can be upgraded to v2."""
    create_upgradable_gallery(client)
    post_images(client, range(20))
    poll(client)  # so that it is loaded, however long a server takes
    return client


@pytest.fixture
def second(gallery: TestClient, settings: Settings) -> Iterator[TestClient]:
    """Another API process, as it were: with replicas of its own."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def poll(client: TestClient) -> None:
    """Do what the follower's thread does at every interval."""
    client.app.state.parts.replicas.refresh(1, every_generation=True)  # type: ignore[attr-defined]  # untyped state


def found(client: TestClient, seed: int = 0, **parameters: str) -> list[str]:
    return sorted(neighbor["id"] for neighbor in search(client, seed, k=50, **parameters)["neighbors"])


def nearest(client: TestClient, seed: int, **parameters: str) -> tuple[str, bool]:
    """Return the nearest item of an image, and whether it is that very image."""
    neighbor = search(client, seed, k=1, **parameters)["neighbors"][0]
    return neighbor["id"], neighbor["distance"] < 1e-2


def names(*seeds: int) -> list[str]:
    return sorted(f"image-{seed}.png" for seed in seeds)


def held(collections: Collections, name: str, dim: int) -> int:
    return len(collections.open(name, "l2", dim, "hnsw"))


def test_a_gallery_lives_in_its_collections_from_ingest_to_finalize(
    gallery: TestClient, worker: WorkerParts, collections: Collections
) -> None:
    assert nearest(gallery, 3) == ("image-3.png", True)
    assert held(collections, "gallery_1", 6) == 20

    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    post_images(gallery, [30])
    gallery.delete("/v1/galleries/g/items/image-0.png")
    everything = names(*range(1, 20), 30)
    assert (search(gallery, 1)["model_version"], found(gallery)) == ("v1", everything)
    assert found(gallery, generation="next") == everything

    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id)
    run_until(worker, gallery, upgrade_id, "live")
    assert search(gallery, 1)["model_version"] == "v2"
    assert found(gallery) == everything
    assert held(collections, "gallery_1", 8) == 20
    post_images(gallery, [31])
    assert nearest(gallery, 31) == ("image-31.png", True)

    assert gallery.post(f"/v1/upgrades/{upgrade_id}/finalize").is_success
    assert collections.names() == ["gallery_1_generation_2"]
    assert found(gallery) == names(*range(1, 20), 30, 31)


def test_a_rollback_switches_back_and_drops_the_collection_that_was_left(
    gallery: TestClient, worker: WorkerParts, collections: Collections
) -> None:
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    run_until(worker, gallery, upgrade_id, "live")
    poll(gallery)
    assert sorted(collections.names()) == ["gallery_1_generation_1", "gallery_1_generation_2"]
    post_images(gallery, [30])

    gallery.post(f"/v1/upgrades/{upgrade_id}/rollback")

    assert search(gallery, 1)["model_version"] == "v1"
    assert nearest(gallery, 30) == ("image-30.png", True)
    assert collections.names() == ["gallery_1_generation_1"]
    assert held(collections, "gallery_1", 6) == 21


def test_what_is_backfilled_reaches_the_collection_that_all_processes_share(
    gallery: TestClient, worker: WorkerParts, second: TestClient
) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    poll(gallery)
    before = nearest(gallery, 3, generation="next")
    backfill_id = begin_backfill(gallery, source="client")
    ids = lease(gallery, backfill_id)

    send_images(gallery, backfill_id, {name: image_bytes(int(name[6:-4])) for name in ids})

    poll(second)
    assert before[1] is False
    assert nearest(second, 3, generation="next") == ("image-3.png", True)
    assert nearest(gallery, 3, generation="next") == ("image-3.png", True)
    assert found(second, generation="next") == found(second) == names(*range(20))


def test_an_erased_item_is_taken_out_of_the_collection_by_the_worker(
    gallery: TestClient, worker: WorkerParts, collections: Collections
) -> None:
    search(gallery, 3)
    index = collections.open("gallery_1_generation_1", "l2", 6, "hnsw")
    assert len(index) == 20

    job = erase(gallery, worker, gallery="g", ids=["image-3.png"])

    assert len(index) == 19
    (place,) = [each for each in job["result"]["places"] if each["place"] == "index of generation 1"]
    assert "told to compact" in place["why"]


def test_a_build_records_what_it_made_and_is_not_repeated(gallery: TestClient, worker: WorkerParts) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")

    again = milvus_engine(worker).fill(GenerationKey(1, 2))

    with worker.database.session_scope() as session:
        name, sha256, revision, parameters = session.execute(
            text("SELECT index_name, index_sha256, index_revision, index_parameters FROM generations WHERE id = 2")
        ).one()
        result, progress = session.execute(text("SELECT result, progress FROM jobs WHERE kind = 'index_build'")).one()
    assert (name, sha256, revision) == ("gallery_1_generation_2", None, 20)
    assert {**parameters, "seconds": 0} == {
        "kind": "hnsw",
        "engine": "milvus",
        "rows": 20,
        "seconds": 0,
        "recall_at_10": 1.0,
        "recall_sample": "rows",
        "recall_sample_size": 20,
        "recalls": {"rows": 1.0, "between": 1.0},
    }
    assert result == parameters == again
    assert progress["total"] == 20


def test_the_recall_of_a_collection_is_that_of_queries_where_enough_were_asked(
    gallery: TestClient, collections: Collections
) -> None:
    parts = gallery.app.state.parts  # type: ignore[attr-defined]  # Starlette's state is untyped
    vectors = np.random.default_rng(0).standard_normal((100, 6)).tolist()
    for start in range(0, 100, 10):  # of more in one request, not all are kept
        gallery.post("/v1/galleries/g/search/vectors", json={"vectors": vectors[start : start + 10], "k": 1})
    parts.query_samples.write()
    collections.drop("gallery_1_generation_1")

    recorded = milvus_engine(parts).fill(GenerationKey(1, 1))

    assert (recorded["recall_at_10"], recorded["recall_sample"], recorded["recall_sample_size"]) == (
        1.0,
        "queries",
        100,
    )


def test_a_gallery_that_asks_for_a_flat_index_is_answered_exactly(
    gallery: TestClient, collections: Collections
) -> None:
    create_gallery(gallery, "exact", index="flat")
    post_images(gallery, range(5), gallery="exact")

    answers = [search(gallery, 1, gallery=name, k=2) for name in ("g", "exact")]

    assert [answer["exact"] for answer in answers] == [False, True]
    assert answers[1]["neighbors"][0]["id"] == "image-1.png"


def test_a_collection_that_a_crash_left_half_filled_is_started_over(
    gallery: TestClient, worker: WorkerParts, collections: Collections
) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    left = collections.create("gallery_1_generation_2", "l2", 8, "hnsw")
    left.add(np.array([1, 999]), np.ones((2, 8), np.float32))

    run_until(worker, gallery, upgrade_id, "ready")

    assert held(collections, "gallery_1_generation_2", 8) == 20
    assert found(gallery, generation="next") == names(*range(20))


@pytest.mark.parametrize("point", ["index.streamed", "index.built", "index.named"])
def test_a_worker_that_dies_between_two_steps_of_a_filling_leaves_what_the_next_one_ends(
    gallery: TestClient,
    worker: WorkerParts,
    collections: Collections,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    dying = iter([True])

    def die_once(name: str) -> None:
        if name == point and next(dying, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(filling, "crash_point", die_once)
    with pytest.raises(KeyboardInterrupt):
        run_until(worker, gallery, upgrade_id, "ready")
    poll(gallery)
    post_images(gallery, [30])

    run_until(worker, gallery, upgrade_id, "ready")

    assert next(dying, False) is False
    poll(gallery)
    assert held(collections, "gallery_1_generation_2", 8) == 21
    assert found(gallery, generation="next") == names(*range(20), 30)


def test_what_one_process_writes_another_finds_at_once_and_both_follow_once(
    gallery: TestClient, second: TestClient, collections: Collections
) -> None:
    post_images(gallery, [30])
    post_images(second, [31])
    gallery.delete("/v1/galleries/g/items/image-2.png")
    second.post("/v1/galleries/g/images", files=[("files", ("image-3.png", image_bytes(33)))])

    for client in (gallery, second):
        assert found(client) == names(0, 1, *range(3, 20), 30, 31)
        assert nearest(client, 33) == ("image-3.png", True)
        poll(client)
    assert held(collections, "gallery_1_generation_1", 6) == 21


def test_vectors_that_a_catch_up_brings_late_reach_the_candidate_and_the_cutover(
    gallery: TestClient, second: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    import_vectors(gallery, ["late"])  # it has a row of v2 only when the worker transforms it
    post_images(gallery, [30])
    for client in (gallery, second):
        poll(client)
        assert "late" not in found(client, generation="next")
        assert "image-30.png" in found(client, generation="next")

    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id)
    run_until(worker, gallery, upgrade_id, "live")

    for client in (second, gallery):
        assert search(client, 1)["model_version"] == "v2"
        assert found(client) == sorted([*names(*range(20), 30), "late"])


def test_a_gallery_that_was_indexed_by_files_is_filled_into_a_collection_at_the_next_start(
    gallery: TestClient, settings: Settings, worker: WorkerParts, collections: Collections
) -> None:
    by_files = replace(worker, engine=FaissEngine(worker.database, worker.blobs, worker.settings))
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    run_until(by_files, gallery, upgrade_id, "live")

    with TestClient(create_app(settings)) as restarted:
        answer = search(restarted, 1, k=50)

    assert (answer["model_version"], len(answer["neighbors"])) == ("v2", 20)
    assert held(collections, "gallery_1", 8) == 20
    with TestClient(create_app(settings.model_copy(update={"index_url": None}))) as by_files_again:
        assert len(search(by_files_again, 1, k=50)["neighbors"]) == 20


def test_a_collection_that_milvus_lost_is_filled_again_at_the_next_write(
    gallery: TestClient, collections: Collections
) -> None:
    collections.drop("gallery_1_generation_1")
    lost = gallery.post("/v1/galleries/g/search", content=image_bytes(1))

    post_images(gallery, [30])

    assert (lost.status_code, lost.headers["retry-after"]) == (503, "1")
    assert found(gallery) == names(*range(20), 30)


def test_while_milvus_is_away_answers_are_503_and_a_write_is_kept(gallery: TestClient) -> None:
    served = gallery.app.state.parts.replicas.active(1, 1)  # type: ignore[attr-defined]  # untyped state
    index, served.index = served.index, AwayIndex()

    refused = [
        gallery.post("/v1/galleries/g/search", content=image_bytes(1)),
        gallery.post("/v1/galleries/g/images", files=[("files", ("image-30.png", image_bytes(30)))]),
    ]
    served.index = index
    poll(gallery)

    assert [(answer.status_code, answer.headers["retry-after"]) for answer in refused] == [(503, "1")] * 2
    assert found(gallery) == names(*range(20), 30)


def test_the_collections_of_a_deleted_gallery_and_of_a_cancelled_upgrade_are_dropped(
    gallery: TestClient, worker: WorkerParts, collections: Collections
) -> None:
    create_gallery(gallery, "more")
    post_images(gallery, [1], gallery="more")
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    poll(gallery)

    gallery.post(f"/v1/upgrades/{upgrade_id}/cancel")
    gallery.delete("/v1/galleries/more")
    sweep(worker)

    assert collections.names() == ["gallery_1_generation_1"]
    assert found(gallery) == names(*range(20))


def test_a_collection_that_is_being_filled_is_not_dropped_under_the_filling(
    gallery: TestClient, worker: WorkerParts, collections: Collections
) -> None:
    start_upgrade(gallery, "v2")
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE generations SET state = 'dropped' WHERE id = 2"))
    collections.create("gallery_1_generation_2", "l2", 8, "hnsw")

    with worker.database.advisory_lock(AdvisoryLock.COLLECTION, 2), pytest.raises(CollectionBusy):
        worker.engine.remove_unneeded(wait_seconds=0)

    assert "gallery_1_generation_2" in collections.names()
    worker.engine.remove_unneeded(wait_seconds=0)
    assert "gallery_1_generation_2" not in collections.names()
