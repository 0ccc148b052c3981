"""Upgrades that smooth their rows, the worker's steps called one by one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.gallery.generations import GenerationKey
from service.domain.indexes.builds import build_generation_index
from service.domain.upgrade.upgrades import get_upgrade
from service.index.smoothing import Neighbourhoods
from service.vectors.rows import EmbeddingRows, Origin
from tests.fakes import WatchedEngine
from tests.rows import all_rows
from tests.scenario import (
    create_gallery,
    import_vectors,
    post_images,
    register_transformation,
    register_version,
    search,
    start_upgrade,
    state_of,
)
from tests.working import cut_over, run_until, with_settings
from workers.app import WorkerParts

SHARE, NEIGHBORS = 0.6, 4
SMOOTHING = {"share": SHARE, "neighbors": NEIGHBORS}
ITEMS = 40


class BeforeSmoothing(WatchedEngine):
    """An engine that runs something each time that rows are about to be smoothed."""

    def __init__(self, worker: WorkerParts, meanwhile: Callable[[], object]) -> None:
        super().__init__(worker.engine, int)
        self._before = meanwhile

    def neighbourhoods(self, generation: GenerationKey) -> Neighbourhoods:
        near = super().neighbourhoods(generation)
        self._before()
        return near


def watched(worker: WorkerParts, meanwhile: Callable[[], object]) -> WorkerParts:
    return replace(worker, engine=BeforeSmoothing(worker, meanwhile))


def prepare(client: TestClient, *, normalize: bool = False, **options: Any) -> None:
    register_version(client, "v1")
    register_version(client, "v2", normalize=normalize)
    register_transformation(client, "v1", "v2")
    create_gallery(client, **options)
    import_vectors(client, [f"vector-{number}" for number in range(ITEMS)])


def slow_smoothed(rows: EmbeddingRows, *, cosine: bool = False, normalize: bool = False) -> np.ndarray:
    """Return the rows of h moved towards the mean of their nearest ones, one row after another."""
    h = rows.embedding.astype(np.float64)
    near = h / np.linalg.norm(h, axis=1, keepdims=True) if cosine else h
    result = []
    for own in range(len(h)):
        distances = np.linalg.norm(near - near[own], axis=1)
        distances[own] = np.inf
        mean = near[np.argsort(distances)[:NEIGHBORS]].mean(axis=0)
        moved = (1 - SHARE) * h[own] + SHARE * mean * (np.linalg.norm(h[own]) if cosine else 1)
        result.append(moved / np.linalg.norm(moved) if normalize else moved)
    return np.array(result)


@pytest.mark.parametrize(
    ("metric", "normalize"), [("l2", False), ("l2", True), ("cosine", False), ("cosine", True)], ids=str
)
def test_every_row_of_h_moves_towards_the_mean_of_its_nearest_rows(
    client: TestClient, worker: WorkerParts, metric: str, normalize: bool
) -> None:
    prepare(client, metric=metric, normalize=normalize)
    upgrade_id = start_upgrade(client, "v2", smoothing=SMOOTHING)
    seen: list[EmbeddingRows] = []

    run_until(watched(worker, lambda: seen.append(all_rows(worker, upgrade_id)[1])), client, upgrade_id, "ready")

    _, rows = all_rows(worker, upgrade_id)
    expected = slow_smoothed(seen[0], cosine=metric == "cosine", normalize=normalize)
    np.testing.assert_allclose(rows.embedding.astype(np.float32), expected, atol=2e-3, rtol=2e-3)
    np.testing.assert_array_equal(rows.side_information, seen[0].side_information)
    assert (rows.origin == Origin.TRANSFORMED).all()
    upgrade = client.get(f"/v1/upgrades/{upgrade_id}").json()
    assert upgrade["smoothing"] == SMOOTHING
    smoothing = upgrade["progress"]["smoothing"]
    assert (smoothing["done"], smoothing["total"], smoothing["unit"]) == (ITEMS, ITEMS, "items")
    states = [event["state"] for event in _events(worker, upgrade_id)]
    assert states == ["planned", "transforming", "indexing", "smoothing", "indexing", "evaluating", "ready"]


def _events(worker: WorkerParts, upgrade_id: int) -> list[Any]:
    with worker.database.session_scope() as session:
        query = text("SELECT state FROM upgrade_events WHERE upgrade_id = :id ORDER BY id")
        return [row._asdict() for row in session.execute(query, {"id": upgrade_id})]


def test_what_answers_are_the_smoothed_rows(client: TestClient, worker: WorkerParts) -> None:
    prepare(client)
    post_images(client, range(3))
    upgrade_id = start_upgrade(client, "v2", smoothing=SMOOTHING)
    run_until(worker, client, upgrade_id, "ready")
    _, rows = all_rows(worker, upgrade_id)

    query = rows.embedding[5].astype(np.float32)
    candidate = _nearest(client, query, generation="next")
    cut_over(client, worker, upgrade_id)

    assert candidate == _nearest(client, query) == _by_hand(worker, rows, query)


def _nearest(client: TestClient, query: np.ndarray, **parameters: Any) -> list[str]:
    body = {"vectors": [query.tolist()], "model_version": "v2", "k": 10}
    answer = client.post("/v1/galleries/g/search/vectors", json=body, params=parameters)
    assert answer.status_code == 200, answer.text
    return [neighbor["id"] for neighbor in answer.json()["neighbors"][0]]


def _by_hand(worker: WorkerParts, rows: EmbeddingRows, query: np.ndarray) -> list[str]:
    distances = np.linalg.norm(rows.embedding.astype(np.float32) - query, axis=1)
    nearest = rows.item_id[np.argsort(distances, kind="stable")[:10]].tolist()
    with worker.database.session_scope() as session:
        names: dict[int, str] = dict(session.execute(text("SELECT id, external_id FROM items")).all())
    return [names[id_] for id_ in nearest]


def test_what_the_new_version_encoded_stays_as_it_is(client: TestClient, worker: WorkerParts) -> None:
    prepare(client)
    upgrade_id = start_upgrade(client, "v2", smoothing=SMOOTHING)
    post_images(client, range(5))
    seen: list[EmbeddingRows] = []

    run_until(watched(worker, lambda: seen.append(all_rows(worker, upgrade_id)[1])), client, upgrade_id, "ready")

    _, rows = all_rows(worker, upgrade_id)
    encoded = rows.origin == Origin.ENCODED
    assert encoded.sum() == 5
    assert (rows.embedding[encoded] == seen[0].embedding[encoded]).all()
    assert (rows.embedding[~encoded] != seen[0].embedding[~encoded]).any(axis=1).all()


def test_a_row_that_is_replaced_meanwhile_is_left_alone(client: TestClient, worker: WorkerParts) -> None:
    prepare(client)
    upgrade_id = start_upgrade(client, "v2", smoothing=SMOOTHING)

    def write() -> None:
        if state_of(client, upgrade_id) == "smoothing":
            import_vectors(client, ["vector-3", "new"], seed=5)
            assert client.delete("/v1/galleries/g/items/vector-4").status_code == 204

    run_until(watched(worker, write), client, upgrade_id, "ready")

    cut_over(client, worker, upgrade_id)  # which transforms the remainder

    old, rows = all_rows(worker, upgrade_id)
    with worker.database.session_scope() as session:
        live = session.execute(text("SELECT id, revision FROM items WHERE deleted_at IS NULL ORDER BY id")).all()
    assert [(int(id_), int(revision)) for id_, revision in zip(rows.item_id, rows.revision, strict=True)] == live
    assert set(old.item_id) >= set(rows.item_id)


@pytest.mark.parametrize("batch_items", [1, 7, 1_000])
def test_rows_come_out_the_same_however_they_are_cut(client: TestClient, worker: WorkerParts, batch_items: int) -> None:
    prepare(client)
    first, second = (start_and_finish(client, worker, items) for items in (ITEMS, batch_items))

    assert (first.embedding == second.embedding).all()


def start_and_finish(client: TestClient, worker: WorkerParts, batch_items: int) -> EmbeddingRows:
    upgrade_id = start_upgrade(client, "v2", smoothing=SMOOTHING)
    run_until(with_settings(worker, batch_items=batch_items), client, upgrade_id, "ready")
    _, rows = all_rows(worker, upgrade_id)
    assert client.post(f"/v1/upgrades/{upgrade_id}/cancel").status_code == 200
    return rows


def test_it_can_be_paused_and_resumed(client: TestClient, worker: WorkerParts) -> None:
    prepare(client)
    unpaused = start_and_finish(client, worker, 5)
    upgrade_id = start_upgrade(client, "v2", smoothing=SMOOTHING)
    paused: list[Any] = []

    def pause() -> None:
        if not paused:
            paused.append(client.post(f"/v1/upgrades/{upgrade_id}/pause").json())

    small = with_settings(worker, batch_items=5)
    run_until(watched(small, pause), client, upgrade_id, "paused")
    assert client.post(f"/v1/upgrades/{upgrade_id}/resume").json()["state"] == "smoothing"
    run_until(small, client, upgrade_id, "ready")

    _, rows = all_rows(worker, upgrade_id)
    assert paused[0]["state"] == "paused"
    assert (rows.embedding == unpaused.embedding).all()


def test_an_index_that_was_built_anew_meanwhile_fails_it(client: TestClient, worker: WorkerParts) -> None:
    """The rows are half smoothed by then: what is near them is not what it was."""
    prepare(client)
    upgrade_id = start_upgrade(client, "v2", smoothing=SMOOTHING)

    def rebuild() -> None:
        with worker.database.session_scope() as session:
            upgrade = get_upgrade(session, upgrade_id)
        build_generation_index(
            worker.database, worker.engine, GenerationKey(upgrade.gallery_id, upgrade.to_generation_id)
        )

    # A few batches, and then the index is another.
    slow = with_settings(worker, batch_items=3, batches_at_once=1, task_slice_seconds=0.05)
    post_images(client, range(2))  # so that the next build is of other rows
    run_until(watched(slow, rebuild), client, upgrade_id, "failed")

    assert "built anew while its rows were smoothed" in client.get(f"/v1/upgrades/{upgrade_id}").json()["error"]


@pytest.mark.parametrize("items", [0, 1, 2])
def test_a_gallery_of_hardly_any_items_is_upgraded(client: TestClient, worker: WorkerParts, items: int) -> None:
    register_version(client, "v1")
    register_version(client, "v2")
    register_transformation(client, "v1", "v2")
    create_gallery(client)
    if items:
        import_vectors(client, [str(number) for number in range(items)])

    upgrade_id = start_upgrade(client, "v2", smoothing=SMOOTHING)
    run_until(worker, client, upgrade_id, "ready")

    cut_over(client, worker, upgrade_id)
    assert len(search(client, 1)["neighbors"]) == items


@pytest.mark.parametrize(
    "wanted", [{"share": 0}, {"share": 1.1}, {"neighbors": 0}, {"neighbors": 201}, {"radius": 1}, 5, {"share": None}]
)
def test_what_is_no_smoothing_is_refused(client: TestClient, wanted: Any) -> None:
    prepare(client)

    answer = client.post("/v1/galleries/g/upgrades", json={"to_version": "v2", "smoothing": wanted})

    assert answer.status_code == 422
    assert "smoothing" in answer.text


def test_defaults_are_those_that_were_measured(client: TestClient) -> None:
    prepare(client)

    answer = client.post("/v1/galleries/g/upgrades", json={"to_version": "v2", "smoothing": {}})

    assert answer.json()["smoothing"] == {"share": 0.3, "neighbors": 20}


def test_a_dry_run_counts_the_rows_twice(client: TestClient, worker: WorkerParts) -> None:
    prepare(client)

    with_it, without = (
        client.post("/v1/galleries/g/upgrades", json={"to_version": "v2", "dry_run": True, **options}).json()
        for options in ({"smoothing": SMOOTHING}, {})
    )

    assert (with_it["bytes"], with_it["index_bytes"]) == (2 * without["bytes"], 2 * without["index_bytes"])


def test_an_upgrade_that_asks_for_none_has_no_such_phase(client: TestClient, worker: WorkerParts) -> None:
    prepare(client)
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")

    upgrade = client.get(f"/v1/upgrades/{upgrade_id}").json()

    assert upgrade["smoothing"] is None
    assert list(upgrade["progress"]) == ["transforming", "catching_up", "indexing", "evaluating"]
