"""Two API replicas on one database: what is written through one is seen by the other when it next polls.

The second replica's own thread sleeps for an hour and hears of nothing, so a test says when it polls; other tests wait
for the first's, or let it hear.
"""

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.api.dependencies import Parts
from service.app import create_app
from service.domain.gallery.current_rows import read_current_rows, read_next_rows
from service.domain.gallery.generations import get_stored_generation
from service.domain.upgrade.cutover import request_cutover
from service.index.served import GenerationGone
from service.settings import Settings
from tests.fakes import Call, WatchedSource
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.replicas import watched_parts
from tests.scenario import create_gallery, post_images, register_transformation, register_version, search, start_upgrade
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts

NAMES = [f"image-{seed}.png" for seed in range(6)]


@dataclass(frozen=True)
class Follower:
    """The replica that takes no writes here."""

    client: TestClient
    parts: Parts
    source: WatchedSource

    def poll(self) -> None:
        """Do what its thread does at every interval."""
        for gallery_id in self.parts.replicas.sizes():
            self.parts.replicas.refresh(gallery_id, every_generation=True)


@pytest.fixture
def first(client: TestClient) -> TestClient:
    """The replica that takes the writes, with a gallery of six images and the way to v2."""
    register_version(client, "v1")
    register_version(client, "v2")
    register_transformation(client, "v1", "v2")
    create_gallery(client)
    post_images(client, range(6))
    return client


@pytest.fixture
def second(first: TestClient, settings: Settings) -> Iterator[Follower]:
    parts, source = watched_parts(settings.model_copy(update={"follow_every_seconds": 3600.0, "listen": False}))
    with TestClient(create_app(settings, lambda _: parts), raise_server_exceptions=False) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        yield Follower(client, parts, source)


def found(client: TestClient, seed: int = 0) -> list[str]:
    return sorted(neighbor["id"] for neighbor in search(client, seed, k=50)["neighbors"])


def check_same(answer: dict[str, Any], other: dict[str, Any]) -> None:
    """Both say the same; distances may differ in their last bits, by the order of the rows in an index."""
    neighbors, others = ([n | {"distance": 0} for n in a["neighbors"]] for a in (answer, other))
    distances, other_distances = ([n["distance"] for n in a["neighbors"]] for a in (answer, other))
    assert answer | {"neighbors": neighbors} == other | {"neighbors": others}
    assert distances == pytest.approx(other_distances, abs=1e-5)


def nearest(client: TestClient, seed: int) -> tuple[str, bool]:
    """Return the nearest item of an image, and whether it is that very image."""
    neighbor = search(client, seed, k=1)["neighbors"][0]
    return neighbor["id"], neighbor["distance"] < 1e-2


def test_new_images_are_found_by_the_other_replica_after_its_poll(first: TestClient, second: Follower) -> None:
    post_images(first, [20])

    assert found(first) == sorted([*NAMES, "image-20.png"])  # who took the write sees it at once
    assert found(second.client) == NAMES
    second.poll()
    check_same(search(second.client, 20), search(first, 20))
    assert nearest(second.client, 20) == ("image-20.png", True)


def test_a_replaced_image_is_found_by_its_new_pixels_alone_after_a_poll(first: TestClient, second: Follower) -> None:
    first.post("/v1/galleries/g/images", files=[("files", ("image-3.png", image_bytes(30)))])

    second.poll()

    assert nearest(second.client, 30) == ("image-3.png", True)
    assert not nearest(second.client, 3)[1]
    assert found(second.client) == NAMES


def test_a_deleted_item_is_not_found_even_before_a_poll_and_stays_gone_after(
    first: TestClient, second: Follower
) -> None:
    first.delete("/v1/galleries/g/items/image-3.png")

    before = found(second.client, 3)
    second.poll()

    assert before == found(second.client, 3) == sorted(set(NAMES) - {"image-3.png"})
    assert len(search(second.client, 3, k=5)["neighbors"]) == 5  # the index has let go of it: no place is lost


def test_many_writes_between_two_polls_come_out_as_the_last_of_them(first: TestClient, second: Follower) -> None:
    post_images(first, [7, 8])
    first.delete("/v1/galleries/g/items/image-7.png")
    first.delete("/v1/galleries/g/items/image-0.png")
    post_images(first, [0, 1])
    first.post("/v1/galleries/g/images", files=[("files", ("image-8.png", image_bytes(80)))])

    second.poll()

    assert found(second.client) == sorted([*NAMES, "image-8.png"])
    for seed in (0, 1, 8, 80):
        check_same(search(second.client, seed, k=50), search(first, seed, k=50))


def test_imported_vectors_reach_the_other_replica_too(first: TestClient, second: Follower) -> None:
    embedding, side = np.full((1, 6), 3, np.float32), np.ones((1, 5), np.float32)
    stream = io.BytesIO()
    pq.write_table(pa.table({"id": ["x"], "embedding": list(embedding), "side_information": list(side)}), stream)
    first.post("/v1/galleries/g/embeddings", content=stream.getvalue())

    second.poll()

    answer = second.client.post("/v1/galleries/g/search/vectors", json={"vectors": embedding.tolist(), "k": 1}).json()
    assert [(n["id"], n["distance"], n["origin"]) for n in answer["neighbors"][0]] == [("x", 0.0, "imported")]


def test_a_gallery_made_by_one_is_served_by_the_other_at_once_and_one_deleted_is_gone(
    first: TestClient, second: Follower
) -> None:
    create_gallery(first, "more", "v2")
    post_images(first, [1], gallery="more")

    assert search(second.client, 1, gallery="more")["neighbors"][0]["id"] == "image-1.png"
    first.delete("/v1/galleries/more")
    gone = second.client.post("/v1/galleries/more/search", content=image_bytes(1))
    create_gallery(first, "more", "v1")

    assert gone.status_code == 404
    assert search(second.client, 1, gallery="more")["neighbors"] == []


def test_a_cutover_and_a_rollback_flip_a_replica_that_has_loaded_the_candidate_without_a_poll(
    first: TestClient, second: Follower, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(first, "v2", cutover="manual")
    run_until(worker, first, upgrade_id, "ready")
    second.poll()
    assert search(second.client, 1)["model_version"] == "v1"
    candidate = search(second.client, 1, k=6, generation="next")

    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id)
    run_until(worker, first, upgrade_id, "live")

    after = search(second.client, 1, k=6)
    check_same(after, candidate)
    assert after["model_version"] == "v2"
    post_images(first, [9])
    first.post(f"/v1/upgrades/{upgrade_id}/rollback")
    back = search(second.client, 1)
    assert (back["model_version"], nearest(second.client, 1)) == ("v1", ("image-1.png", True))
    second.poll()
    assert nearest(second.client, 9) == ("image-9.png", True)


def test_a_replica_that_missed_a_whole_upgrade_never_fails_a_query(
    first: TestClient, second: Follower, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(first, "v2", cutover="auto")
    run_until(worker, first, upgrade_id, "live")

    kept = search(second.client, 1)
    first.post(f"/v1/upgrades/{upgrade_id}/finalize")  # drops the table that the second replica still serves
    after = search(second.client, 1, k=6)

    assert (kept["model_version"], nearest(first, 1)[0]) == ("v1", after["neighbors"][0]["id"])
    check_same(after, search(first, 1, k=6))
    assert after["model_version"] == "v2"


def test_a_write_meets_a_generation_that_is_dropped_before_its_rows_are_read(
    first: TestClient, second: Follower, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(first, "v2", cutover="auto")
    run_until(worker, first, upgrade_id, "live")
    second.poll()
    dropped = threading.Event()

    def drop(call: Call) -> None:
        if call == "galleries" and not dropped.is_set():
            dropped.set()
            assert first.post(f"/v1/upgrades/{upgrade_id}/finalize").is_success

    second.source.after = drop
    post_images(second.client, [20])

    assert dropped.is_set()
    assert nearest(second.client, 20) == ("image-20.png", True)


def test_a_table_that_is_dropped_before_its_rows_are_read_is_a_generation_that_has_gone(
    first: TestClient, worker: WorkerParts
) -> None:
    with worker.database.session_scope() as session:
        stored = get_stored_generation(session, 1, 1)
    with worker.database.session_scope() as session:
        session.execute(text(f"DROP TABLE {stored.table}"))

    with pytest.raises(GenerationGone), worker.database.session_scope() as session:
        list(read_current_rows(session, stored, 10))
    with pytest.raises(GenerationGone), worker.database.session_scope() as session:
        read_next_rows(session, stored, 0, 100, 10)


def test_a_replica_polls_by_itself(first: TestClient, second: Follower) -> None:
    post_images(second.client, [20])

    ends = time.monotonic() + 20
    while "image-20.png" not in found(first) and time.monotonic() < ends:
        pass

    assert nearest(first, 20) == ("image-20.png", True)


def test_a_process_says_live_only_once_it_answers_by_the_new_version(
    first: TestClient, second: Follower, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(first, "v2", cutover="auto")
    run_until(worker, first, upgrade_id, "live")

    before = search(second.client, 1)["model_version"]
    said = second.client.get(f"/v1/upgrades/{upgrade_id}").json()["state"]
    after = search(second.client, 1)["model_version"]

    assert (before, said, after) == ("v1", "live", "v2")


def test_while_the_new_version_is_being_loaded_here_live_is_not_said(
    first: TestClient, second: Follower, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(first, "v2", cutover="auto")
    run_until(worker, first, upgrade_id, "live")
    opening, may_open = threading.Event(), threading.Event()

    def wait_before_opening(call: Call) -> None:
        if call == "open":
            opening.set()
            may_open.wait(60)

    second.source.before = wait_before_opening
    polling = threading.Thread(target=second.poll)
    polling.start()
    opening.wait(60)
    refused = second.client.get(f"/v1/upgrades/{upgrade_id}")
    streamed = second.parts.upgrade_actions.news(upgrade_id)
    may_open.set()
    polling.join()
    told = second.parts.upgrade_actions.news(upgrade_id)

    check_problem(refused, 503)
    assert (streamed.changes, streamed.ended) == ([], False)
    assert told.changes[-1].state == "live"


def test_a_replica_hears_of_writes_cutovers_and_rollbacks_of_others(
    first: TestClient, settings: Settings, worker: WorkerParts
) -> None:
    parts, _ = watched_parts(settings.model_copy(update={"follow_every_seconds": 3600.0}))
    with TestClient(create_app(settings, lambda _: parts), raise_server_exceptions=False) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        post_images(first, [20])
        wait_for(lambda: "image-20.png" in found(client))
        upgrade_id = start_upgrade(first, "v2", cutover="manual")
        run_until(worker, first, upgrade_id, "ready")
        (gallery_id,) = parts.replicas.sizes()
        wait_for(lambda: parts.replicas.loaded_next(gallery_id) is not None)
        with worker.database.session_scope() as session:
            request_cutover(session, upgrade_id)
        run_until(worker, first, upgrade_id, "live")
        wait_for(lambda: parts.replicas.active(gallery_id, None).version.name == "v2")
        first.post(f"/v1/upgrades/{upgrade_id}/rollback")
        wait_for(lambda: parts.replicas.active(gallery_id, None).version.name == "v1")


def test_while_the_generation_that_went_live_is_loaded_writes_reach_the_one_that_answers(
    first: TestClient, second: Follower, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(first, "v2", cutover="auto")
    run_until(worker, first, upgrade_id, "live")
    opening, may_open = threading.Event(), threading.Event()

    def wait_before_opening(call: Call) -> None:
        if call == "open":
            opening.set()
            may_open.wait(60)

    second.source.before = wait_before_opening
    polling = threading.Thread(target=second.poll)
    polling.start()
    opening.wait(60)
    post_images(second.client, [20])

    assert nearest(second.client, 20) == ("image-20.png", True)
    assert search(second.client, 20)["model_version"] == "v1"
    may_open.set()
    polling.join()
    assert nearest(second.client, 20) == ("image-20.png", True)
    assert search(second.client, 20)["model_version"] == "v2"
