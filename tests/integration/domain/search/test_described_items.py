"""What answers say of items is what is stored, although it is kept between queries."""

import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text

import service.domain.search.described_items as module
import service.domain.search.queries as module_of_queries
from service.api.search_answers import BatchAnswer
from service.domain.gallery.galleries import find_serving
from service.domain.gallery.generations import GenerationKey
from service.domain.search.answers import Query
from service.domain.search.candidates import nearest_of
from service.domain.search.described_items import DescribedItem, DescribedItems
from service.domain.upgrade.cutover import request_cutover
from tests.items import embedding_of, post_one
from tests.scenario import DIMS, create_gallery, create_upgradable_gallery, post_images, register_version, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts

if TYPE_CHECKING:
    from service.api.dependencies import Parts

IDS = [f"image-{seed}.png" for seed in range(8)]


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 has 8 images."""
    register_version(client, "v1")
    create_gallery(client)
    post_images(client, range(8))
    return client


def parts_of(client: TestClient) -> "Parts":
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # an ASGI application that is a FastAPI
    return parts


def item_ids(client: TestClient) -> np.ndarray:
    with parts_of(client).database.session_scope() as session:
        return np.array(session.scalars(text("SELECT id FROM items ORDER BY id")).all(), np.int64)


def described(client: TestClient, by: DescribedItems, ids: np.ndarray) -> dict[int, DescribedItem]:
    database = parts_of(client).database
    serving = find_serving(database, "g")
    key = GenerationKey(serving.gallery_id, serving.active_generation_id)
    return by.of(database, key, ids, serving.revision)


def rows_read(client: TestClient, do: Callable[[], object]) -> list[int]:
    """Return of how many items each statement asked that reads rows of found ones."""
    asked: list[int] = []

    def record(connection: Any, cursor: Any, statement: str, parameters: Any, *others: Any) -> None:
        if "i.external_id, e.origin" in statement:
            asked.append(len(parameters["ids"]))

    engine = parts_of(client).database.engine
    event.listen(engine, "before_cursor_execute", record)
    try:
        do()
    finally:
        event.remove(engine, "before_cursor_execute", record)
    return asked


def delete(client: TestClient, id_: str) -> None:
    assert client.delete(f"/v1/galleries/g/items/{id_}").status_code == 204


def test_what_was_shown_before_costs_no_row(gallery: TestClient) -> None:
    body = {"vectors": [embedding_of(gallery, 3)], "k": 5}

    def ask() -> None:
        answer = gallery.post("/v1/galleries/g/search/vectors", json=body)
        assert answer.status_code == 200
        BatchAnswer.model_validate_json(answer.content)

    assert rows_read(gallery, ask) == [5]
    assert rows_read(gallery, ask) == []


def test_only_what_changed_is_read_again(gallery: TestClient) -> None:
    kept, ids = DescribedItems(2**20), item_ids(gallery)
    described(gallery, kept, ids)
    post_one(gallery, IDS[2], 2, label="other", metadata={"new": [1.5, 'ü"\\']})
    delete(gallery, IDS[4])

    assert rows_read(gallery, lambda: described(gallery, kept, ids)) == [2]
    found = described(gallery, kept, ids)
    assert set(ids.tolist()) - set(found) == {int(ids[4])}
    assert (found[int(ids[2])].label, json.loads(found[int(ids[2])].metadata)) == ("other", {"new": [1.5, 'ü"\\']})


def test_what_another_process_changed_is_said_before_the_index_has_followed(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"vectors": [embedding_of(gallery, 3)], "k": 8}
    gallery.post("/v1/galleries/g/search/vectors", json=body)
    monkeypatch.setattr(parts_of(gallery).replicas, "sync", lambda *_: None)  # the write was somewhere else
    monkeypatch.setattr(parts_of(gallery).replicas, "note_change", lambda *_: None)
    post_one(gallery, IDS[2], 2, label="other")
    delete(gallery, IDS[4])

    answer = gallery.post("/v1/galleries/g/search/vectors", json=body).json()

    labels = {neighbor["id"]: neighbor["label"] for neighbor in answer["neighbors"][0]}
    assert labels[IDS[2]] == "other"
    assert IDS[4] not in labels


def test_rows_that_were_read_before_a_change_are_not_kept(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, ids, read = DescribedItems(2**20), item_ids(gallery), module._read
    described(gallery, kept, ids[:1])

    def slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(module, "_read", read)
        rows = read(*arguments)
        post_one(gallery, IDS[3], 3, label="newer")
        described(gallery, kept, ids[:1])  # looks for what changed while the rows of the others are under way
        return rows

    monkeypatch.setattr(module, "_read", slowly)
    described(gallery, kept, ids)

    assert described(gallery, kept, ids)[int(ids[3])].label == "newer"


def test_an_item_is_described_as_it_was_found(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    search = parts_of(gallery).search
    vectors = [embedding_of(gallery, 3)]
    body = {"vectors": vectors, "k": 8, "filter": {"label": "class 0"}}
    assert len(gallery.post("/v1/galleries/g/search/vectors", json=body).json()["neighbors"][0]) == 3
    nearest = nearest_of

    def after_a_write(*arguments: Any) -> Any:
        post_one(gallery, IDS[3], 3, label="changed while the index is searched")
        return nearest(*arguments)

    monkeypatch.setattr(module_of_queries, "nearest_of", after_a_write)
    answer = search.by_vectors("g", vectors, Query(8))

    labels = {neighbor.item.id: neighbor.item.label for neighbor in answer.neighbors[0]}
    assert labels[IDS[3]] == "changed while the index is searched"


def test_more_changes_than_are_looked_for_forget_the_generation(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_CHANGES", 2)
    kept, ids = DescribedItems(2**20), item_ids(gallery)
    described(gallery, kept, ids)
    for seed in range(3):
        post_one(gallery, IDS[seed], seed, label="newer")

    found = described(gallery, kept, ids)

    assert [found[int(id_)].label for id_ in ids[:3]] == ["newer"] * 3
    assert found == described(gallery, DescribedItems(0), ids)


def test_no_more_is_kept_than_may_be(gallery: TestClient) -> None:
    ids = item_ids(gallery)
    sizes = [module._size(item) for item in described(gallery, DescribedItems(0), ids).values()]
    kept = DescribedItems(3 * max(sizes))

    assert rows_read(gallery, lambda: described(gallery, kept, ids)) == [8]
    assert rows_read(gallery, lambda: described(gallery, kept, ids[-3:])) == []
    assert rows_read(gallery, lambda: described(gallery, kept, ids)) == [5]
    assert described(gallery, kept, ids) == described(gallery, DescribedItems(0), ids)


def test_a_generation_that_is_not_active_is_read_each_time(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(8))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    body = {"vectors": [[0.5] * DIMS["v2"][0]], "k": 8}

    def ask_next() -> None:
        answer = client.post("/v1/galleries/g/search/vectors", json=body, params={"generation": "next"})
        assert {n["origin"] for n in answer.json()["neighbors"][0]} == {"transformed"}

    assert [rows_read(client, ask_next) for _ in range(2)] == [[8], [8]]

    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id)
    run_until(worker, client, upgrade_id, "live")
    active = client.post("/v1/galleries/g/search/vectors", json=body).json()["neighbors"][0]
    assert {(n["origin"], n["hops"]) for n in active} == {("transformed", 1)}


def test_writers_and_readers_at_once_leave_nothing_old(gallery: TestClient) -> None:
    kept, ids, ends = DescribedItems(6_000), item_ids(gallery), threading.Event()

    def read() -> None:
        while not ends.is_set():
            described(gallery, kept, np.array(random.sample(ids.tolist(), 5)))

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for turn in range(40):
                seed = turn % 8
                if turn % 5 == 4:
                    delete(gallery, IDS[seed])
                post_one(gallery, IDS[seed], seed, label=f"turn {turn}")
                assert described(gallery, kept, ids) == described(gallery, DescribedItems(0), ids)
        finally:
            ends.set()
        for reader in readers:
            reader.result()
