"""Upgrades of other stores, from planning to the end, by a worker in the test's thread."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

import service.app
from service.connectors.store import KeyRange
from service.queue import celery_application
from service.settings import Settings
from tests.external_stores import away, key_of, open_fake
from tests.external_upgrades import (
    act,
    assert_upgraded,
    drawn,
    make_fake_parts,
    named,
    register_both,
    start,
    store_of_v1,
    view,
    watched,
    work_until,
    work_until_removed,
)
from workers.app import WorkerParts, make_worker_parts
from workers.connecting import advance_external

EVERYTHING = KeyRange(None, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def settings(settings: Settings, path: Path) -> Settings:
    return settings.model_copy(update={"stores": named(path), "cutover_max_changes": 2})


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(service.app.create_app(settings, make_fake_parts), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings), open_fake)
    yield parts
    parts.database.engine.dispose()


@pytest.mark.parametrize("notices", [True, False])
def test_a_store_is_upgraded_beside_its_old_side_switched_and_finalized(
    client: TestClient, worker: WorkerParts, path: Path, notices: bool
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path, 30, notices=notices)
    before = store.read(EVERYTHING)

    upgrade_id = start(client)
    ready = work_until(worker, client, upgrade_id, "ready")

    assert_upgraded(worker, transformation, store)
    assert not store.is_switched()
    assert ready["verification"] == {
        **ready["verification"],
        "rows": 30,
        "rows_in_store": 30,
        "ranges": 5,
        "repaired_ranges": 0,
        "rows_transformed_anew": 30,
        "number_format": "float32",
    }
    assert ready["verification"]["largest_difference"] < 1e-5
    assert ready["judged"] == {"report": 1, "verdict": "not_judged"}

    act(client, upgrade_id, "cutover")
    live = work_until(worker, client, upgrade_id, "live")
    assert store.is_switched()
    np.testing.assert_array_equal(store.read(EVERYTHING).embedding, before.embedding)
    assert live["decision"] == {
        "by": "request",
        "who": "-",
        "reason": None,
        "verdict": "not_judged",
        "report": 1,
    }

    act(client, upgrade_id, "finalize")
    ended = work_until_removed(worker, client, upgrade_id)
    assert ended["state"] == "finalized"
    assert store.read(EVERYTHING).embedding.shape == (30, 8)


def test_a_rollback_shows_the_old_side_at_once_and_removes_the_new_one(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    act(client, upgrade_id, "cutover")
    work_until(worker, client, upgrade_id, "live")

    rolled_back = act(client, upgrade_id, "rollback")

    assert rolled_back["state"] == "rolled_back"
    assert not store.is_switched()
    work_until_removed(worker, client, upgrade_id)
    assert store.read_new(EVERYTHING).keys == []
    assert len(store.read(EVERYTHING).keys) == 30
    assert start(client) == upgrade_id + 1


def test_a_pause_in_the_middle_leaves_what_is_done_and_goes_on_from_there(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)
    short = replace(worker, settings=worker.settings.model_copy(update={"task_slice_seconds": 0.0}))
    while not store.writes():
        advance_external(short, upgrade_id)
    paused = act(client, upgrade_id, "pause")
    done = len(store.writes())
    advance_external(worker, upgrade_id)

    assert paused["state"] == "paused"
    assert 0 < done < 5
    assert len(store.writes()) == done

    act(client, upgrade_id, "resume")
    work_until(worker, client, upgrade_id, "ready")
    assert len(store.writes()) == 5
    assert_upgraded(worker, transformation, store)


@pytest.mark.parametrize("notices", [True, False])
def test_what_is_written_and_deleted_meanwhile_is_on_the_new_side_before_the_switch(
    client: TestClient, worker: WorkerParts, path: Path, notices: bool
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path, notices=notices)
    embedding, side = drawn(3, seed=5)
    rows = {key: (embedding[place], side[place]) for place, key in enumerate([key_of(3), "key-0035", "zzz"])}
    times: list[str] = []

    def meanwhile(step: str, keys: KeyRange | None) -> None:
        times.append(step)
        if times.count("written") == 3 and step == "written":
            store.put(rows)
            store.delete([key_of(0), key_of(29)])

    upgrade_id = start(client)
    work_until(watched(worker, meanwhile), client, upgrade_id, "ready")
    store.delete([key_of(7)])
    act(client, upgrade_id, "cutover")
    work_until(worker, client, upgrade_id, "live")

    assert_upgraded(worker, transformation, store)
    assert {key_of(3), "key-0035", "zzz"} <= set(store.read_new(EVERYTHING).keys)
    assert not {key_of(0), key_of(7), key_of(29)} & set(store.read_new(EVERYTHING).keys)


def test_a_range_that_is_written_while_it_is_transformed_is_transformed_again(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path, notices=False)
    embedding, side = drawn(1, seed=6)
    steps = iter(["write"])

    def meanwhile(step: str, keys: KeyRange | None) -> None:
        if step == next(steps, None):
            store.put({"key-0000": (embedding[0], side[0])})

    upgrade_id = start(client)
    work_until(watched(worker, meanwhile), client, upgrade_id, "ready")

    assert_upgraded(worker, transformation, store)


def test_a_store_that_notices_writes_is_upgraded_though_no_range_is_ever_at_rest(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    """Its users write at every step: what they wrote is settled, and no range waits for them to stop."""
    transformation = register_both(client)
    store = store_of_v1(path, notices=True)
    writes = count()

    def meanwhile(step: str, keys: KeyRange | None) -> None:
        number = next(writes)
        embedding, side = drawn(2, seed=100 + number)
        store.put({key_of(number % 20): (embedding[0], side[0]), f"new-{number}": (embedding[1], side[1])})
        store.delete([f"new-{number - 5}"])

    upgrade_id = start(client)
    work_until(watched(worker, meanwhile), client, upgrade_id, "ready")
    act(client, upgrade_id, "cutover")
    work_until(worker, client, upgrade_id, "live")

    assert next(writes) > 20
    assert_upgraded(worker, transformation, store)


def test_a_store_that_goes_away_for_a_while_keeps_the_upgrade_waiting(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)
    away(path)
    for _ in range(10):
        advance_external(worker, upgrade_id)
    waiting = view(client, upgrade_id)
    away(path, back=True)
    ready = work_until(worker, client, upgrade_id, "ready")

    assert waiting["state"] == "planned"
    assert "does not answer" in waiting["error"]
    assert "hunter2" not in waiting["error"]
    assert ready["error"] is None
    assert_upgraded(worker, transformation, store)


def test_a_store_that_goes_away_in_the_middle_of_a_range_costs_no_attempt(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)

    def meanwhile(step: str, keys: KeyRange | None) -> None:
        if step == "write":
            away(path)

    for _ in range(8):
        advance_external(watched(worker, meanwhile), upgrade_id)
        if path.with_suffix(".away").exists():
            away(path, back=True)
    ready = work_until(worker, client, upgrade_id, "ready")

    assert ready["error"] is None
    assert_upgraded(worker, transformation, store)


def test_rows_that_are_not_finite_are_named_and_a_retry_goes_on_once_they_are_replaced(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path)
    embedding, side = drawn(1, seed=9)
    store.put({key_of(11): (embedding[0] * np.nan, side[0])})
    upgrade_id = start(client)

    failed = work_until(worker, client, upgrade_id, "failed")

    assert failed["error"] == (
        "1 row cannot be upgraded: 'key-011': its embedding has a value that is not finite."
        " Replace or delete them and retry, or cancel."
    )
    assert len(store.writes()) == 4

    store.put({key_of(11): (embedding[0], side[0])})
    act(client, upgrade_id, "retry")
    work_until(worker, client, upgrade_id, "ready")
    assert_upgraded(worker, transformation, store)


def test_what_is_written_over_on_the_new_side_is_repaired_before_the_upgrade_is_ready(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    transformation = register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)
    spoiled = iter([True])

    def meanwhile(step: str, keys: KeyRange | None) -> None:
        if step == "written" and len(store.writes()) == 5 and next(spoiled, False):
            store.spoil(key_of(2))

    ready = work_until(watched(worker, meanwhile), client, upgrade_id, "ready")

    assert ready["verification"]["passes"] == 2
    assert_upgraded(worker, transformation, store)


def test_a_store_that_does_not_keep_what_it_is_given_fails_the_upgrade(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)

    def meanwhile(step: str, keys: KeyRange | None) -> None:
        if step == "written":
            store.spoil(key_of(2))

    failed = work_until(watched(worker, meanwhile), client, upgrade_id, "failed")

    assert "vectors are other ones than were written" in failed["error"]


def test_a_number_format_of_the_store_is_what_is_compared(client: TestClient, worker: WorkerParts, path: Path) -> None:
    transformation = register_both(client)
    store = store_of_v1(path, dtype="float16")

    ready = work_until(worker, client, start(client), "ready")

    assert_upgraded(worker, transformation, store, within=2e-3)
    assert ready["verification"]["number_format"] == "float16"


def test_keys_whose_sides_differ_after_writes_around_the_switch_are_named_and_left(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    register_both(client)
    store = store_of_v1(path, notices=False)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    before = store.read_new(EVERYTHING)
    embedding, side = drawn(2, seed=3)
    mine = np.ones(8, np.float32)

    def meanwhile(step: str, keys: KeyRange | None) -> None:
        if step == "switch":  # late: the pass before it has gone by
            store.put_old({key_of(1): (embedding[0], side[0]), key_of(20): (embedding[1], side[1])})
        if step == "switched":
            store.put({key_of(0): (mine, np.ones(4, np.float32))})

    act(client, upgrade_id, "cutover")
    work_until(watched(worker, meanwhile), client, upgrade_id, "live")
    for _ in range(5):
        advance_external(worker, upgrade_id)
    live = view(client, upgrade_id)

    assert live["late"]["changed_ranges"] == 2
    assert live["late"]["conflicting_keys"] == [key_of(0), key_of(1), key_of(20)]
    new = store.read_new(EVERYTHING)
    np.testing.assert_array_equal(new.embedding[0], mine)
    np.testing.assert_array_equal(new.embedding[1:], before.embedding[1:])


def test_a_cancel_removes_the_new_side_also_when_the_store_had_been_switched_and_nothing_recorded(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    store.switch(lambda rows: rows)

    act(client, upgrade_id, "cancel")
    ended = work_until_removed(worker, client, upgrade_id)

    assert ended["state"] == "cancelled"
    assert not store.is_switched()
    assert store.read_new(EVERYTHING).keys == []


def test_a_cancel_is_answered_while_the_store_is_away_and_its_new_side_goes_later(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    register_both(client)
    store = store_of_v1(path)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    away(path)
    cancelled = act(client, upgrade_id, "cancel")
    advance_external(worker, upgrade_id)
    waiting = view(client, upgrade_id)
    away(path, back=True)
    ended = work_until_removed(worker, client, upgrade_id)

    assert cancelled["state"] == "cancelled"
    assert waiting["removed_at"] is None
    assert "does not answer" in waiting["error"]
    assert ended["error"] is None
    assert store.read_new(EVERYTHING).keys == []
