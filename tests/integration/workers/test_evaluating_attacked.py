"""Ways in which a judgement is wrong, late, or got round."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from sqlalchemy import select, text

from service.domain.judging import evidence
from service.domain.judging.evidence import _metadata
from service.domain.judging.reports import wants_report
from service.domain.upgrade.cutover import request_cutover, withdraw_cutover
from service.domain.upgrade.upgrades import get_upgrade, upgrade_needs_workers
from service.tables import Item
from tests.judged import (
    DIM,
    ITEMS,
    WRONG,
    cut_over,
    encoded_outside,
    evaluate_again,
    judged,
    post_class_images,
    post_references,
    register_h,
    register_two_spaces,
    report_of,
)
from tests.networks import onnx_encoder_bytes
from tests.registrations import post_transformation, post_version
from tests.scenario import start_upgrade, state_of
from tests.unit.models.artifact_files import onnx_matrix
from tests.working import run_until
from workers import evaluating, upgrading
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade

pytestmark = pytest.mark.few_batches


@pytest.fixture
def turn(client: TestClient) -> NDArray[np.float32]:
    matrix = register_two_spaces(client)
    post_class_images(client, range(ITEMS), labels=False)
    return matrix


def after_evaluate(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something once, after an evaluation has read its rows and before its report is stored."""
    done: list[bool] = []

    def evaluate(*arguments: Any) -> Any:
        report = evaluating.evaluate(*arguments)
        if not done:
            done.append(True)
            act()
        return report

    monkeypatch.setattr(upgrading, "evaluate", evaluate)


def test_references_of_images_that_the_new_model_encoded_do_not_hide_a_wrong_h(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, WRONG["to another target"](turn).astype(np.float32))
    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    post_class_images(client, range(ITEMS, 2 * ITEMS), labels=False)
    run_until(worker, client, upgrade_id, "ready")
    assert report_of(client, upgrade_id)["verdict"] == "fail"

    assert post_references(client, upgrade_id, range(ITEMS, 2 * ITEMS)).is_success
    report = evaluate_again(client, worker, upgrade_id)

    assert report["verdict"] == "fail", report["content"]["gates"]


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("sabotage", ["none", "half zero", "mostly noise"])
def test_a_few_images_are_not_enough_to_go_live_by_itself(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32], sabotage: str, count: int
) -> None:
    noise = np.random.default_rng(5).standard_normal((DIM, DIM)) / 12
    ways: dict[str, NDArray[Any]] = {
        "none": turn,
        "half zero": turn * (np.arange(DIM) < DIM // 2),
        "mostly noise": turn + noise,
    }
    register_h(client, ways[sabotage].astype(np.float32))
    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    post_class_images(client, range(ITEMS, ITEMS + count), labels=False)

    for _ in range(8):
        advance_upgrade(worker, upgrade_id)

    report = report_of(client, upgrade_id)
    gates = [(gate["metric"], gate["n"], gate["low"], gate["outcome"]) for gate in report["content"]["gates"]]
    assert report["evidence"] == count
    assert (state_of(client, upgrade_id), report["verdict"]) != ("live", "pass"), gates


def test_a_large_gallery_is_not_read_anew_for_every_hundred_writes_that_are_no_evidence(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE galleries SET items = 10000000"))
        assert not wants_report(session, get_upgrade(session, upgrade_id))
        session.execute(text("UPDATE galleries SET revision = revision + 100"))

    with worker.database.session_scope() as session:
        assert not wants_report(session, get_upgrade(session, upgrade_id))


def test_a_report_that_is_asked_for_while_another_is_made_is_made(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    places: list[str] = []

    def ask() -> None:
        assert post_references(client, upgrade_id, range(ITEMS)).is_success
        places.append(client.post(f"/v1/upgrades/{upgrade_id}/evaluate", json={"seed": 5}).headers["Location"])

    after_evaluate(monkeypatch, ask)
    client.post(f"/v1/upgrades/{upgrade_id}/evaluate", json={"seed": 4})
    for _ in range(3):
        advance_upgrade(worker, upgrade_id)

    content = client.get(places[0]).json()["content"]
    newest = report_of(client, upgrade_id)
    assert 5 in (content["seed"], newest["content"]["seed"]), (places, content["seed"], newest["report"])


def test_a_manual_upgrade_whose_cutover_was_withdrawn_does_not_go_live(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade_id = judged(client, worker, turn, cutover="manual", observe=False)
    assert report_of(client, upgrade_id)["verdict"] == "pass"
    load = upgrading._load_networks

    def slow_load(parts: WorkerParts, upgrade: Any) -> None:
        with parts.database.session_scope() as session:  # what the API does when its wait is over: 503
            withdraw_cutover(session, upgrade_id)
        load(parts, upgrade)

    monkeypatch.setattr(upgrading, "_load_networks", slow_load)
    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id)
    advance_upgrade(worker, upgrade_id)

    body = client.get(f"/v1/upgrades/{upgrade_id}").json()
    assert body["state"] == "ready", body["decision"]


def test_a_report_that_is_stale_when_it_is_stored_lets_nothing_go_live(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    assert post_references(client, upgrade_id, range(ITEMS)).is_success
    after_evaluate(monkeypatch, lambda: post_class_images(client, range(ITEMS), labels=False))
    client.post(f"/v1/upgrades/{upgrade_id}/evaluate")

    advance_upgrade(worker, upgrade_id)

    body = client.get(f"/v1/upgrades/{upgrade_id}").json()
    report = report_of(client, upgrade_id)
    assert body["state"] == "ready" or report["report"] > 2, body["decision"]


def test_an_upgrade_that_its_verdict_holds_does_not_keep_workers_from_other_work(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    advance_upgrade(worker, upgrade_id)

    with worker.database.session_scope() as session:
        assert not upgrade_needs_workers(session)


def post_plain_vectors(client: TestClient, version: str, ids: list[str], vectors: NDArray[np.float32]) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.table({"id": ids, "embedding": list(vectors)}), stream)
    answer = client.post("/v1/galleries/g/embeddings", params={"model_version": version}, content=stream.getvalue())
    assert answer.is_success, answer.text


def test_an_image_that_is_far_from_an_imported_vector_is_no_reference(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    others = np.random.default_rng(6).standard_normal((3, DIM)).astype(np.float32)
    post_plain_vectors(client, "v1", [f"{number}.png" for number in range(3)], others)
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2")

    answer = post_references(client, upgrade_id, range(3))

    assert answer.status_code == 422, answer.json()


def test_items_of_a_second_leg_are_judged_too(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    third = np.linalg.qr(np.random.default_rng(4).standard_normal((DIM, DIM)))[0].astype(np.float32)
    assert post_version(client, "v3", onnx_encoder_bytes(DIM, seed=1, turn=third), embedding_dim=DIM).is_success
    register_h(client, turn)
    first = start_upgrade(client, "v2")
    run_until(worker, client, first, "ready")
    cut_over(client, worker, first)
    numbers = range(ITEMS, 2 * ITEMS)
    post_plain_vectors(client, "v2", [f"{number}.png" for number in numbers], encoded_outside(turn, numbers))
    wrong = np.linalg.qr(np.random.default_rng(8).standard_normal((DIM, DIM)))[0].astype(np.float32)
    assert post_transformation(client, "v1", "v3", onnx_matrix(third)).is_success
    assert post_transformation(client, "v2", "v3", onnx_matrix(wrong)).is_success
    upgrade_id = start_upgrade(client, "v3", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    assert len(client.get(f"/v1/upgrades/{upgrade_id}").json()["path"]) == 2
    accepted = post_references(client, upgrade_id, range(2 * ITEMS))
    assert {result["status"] for result in accepted.json()["results"]} == {"accepted"}

    report = evaluate_again(client, worker, upgrade_id)

    assert report["verdict"] == "inconclusive"
    assert "300 items take the upgrade's second way" in report["content"]["wanted"]


def test_both_generations_are_read_with_the_same_items(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    original = evidence.read_common_vectors

    def read(session: Any, generation: Any, *rest: Any) -> Any:
        if generation.version.name == "v2":
            post_class_images(client, range(60), labels=False)
        yield from original(session, generation, *rest)

    monkeypatch.setattr("workers.evaluating.read_common_vectors", read)
    report = evaluate_again(client, worker, upgrade_id)

    spaces = report["content"]["measurements"]["spaces"]
    assert spaces["before"]["items"] == spaces["after"]["items"]


def test_a_long_metadata_value_does_not_cost_its_length_for_every_item(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    with worker.database.session_scope() as session:
        session.execute(text('UPDATE items SET metadata = \'{"note": "short"}\''))
        session.execute(
            text(
                "UPDATE items SET metadata = jsonb_build_object('note', repeat('x', 60000))"
                " WHERE id = (SELECT min(id) FROM items)"
            )
        )
    with worker.database.session_scope() as session:
        ids = np.array(session.scalars(select(Item.id).order_by(Item.id)).all(), np.int64)
        found = _metadata(session, ids)

    assert sum(values.nbytes for values in found.values()) < 2**20
