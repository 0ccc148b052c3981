"""An upgrade goes live by itself on a pass alone, and past a failed gate by a recorded override alone."""

import json
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from sqlalchemy import text

from models.artifacts import save_network
from models.transformation import Transformation
from service.domain.upgrade.cutover import request_cutover
from service.domain.upgrade.upgrades import ask_for_report, get_upgrade
from tests.judged import (
    DIM,
    ITEMS,
    WRONG,
    cut_over,
    evaluate_again,
    judged,
    post_class_images,
    post_query_images,
    post_references,
    register_h,
    register_two_spaces,
    report_of,
)
from tests.registrations import post_transformation
from tests.scenario import start_upgrade, state_of
from tests.working import run_until
from workers import evaluating
from workers.app import WorkerParts
from workers.evaluating import evaluate
from workers.judging import Report, judge
from workers.upgrading import advance_upgrade

UNREACHABLE = {"metric": "cmc_at_1", "limit": 0.0, "slice": "label=nobody"}

pytestmark = pytest.mark.few_batches


def decision(verdict: str, report: int, by: str = "request", reason: str | None = None) -> dict[str, object]:
    who, asked_at = (None, None) if by == "auto" else ("-", ANY)
    return {"by": by, "who": who, "asked_at": asked_at, "reason": reason, "verdict": verdict, "report": report}


@pytest.fixture
def turn(client: TestClient) -> NDArray[np.float32]:
    """Gallery `g` of items in five classes, two versions of it, and the matrix that leads from one to the other."""
    matrix = register_two_spaces(client)
    post_class_images(client, range(ITEMS))
    return matrix


def test_without_evidence_nothing_is_judged_and_nothing_goes_live_by_itself(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)

    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    advance_upgrade(worker, upgrade_id)

    report = report_of(client, upgrade_id)
    assert (report["report"], report["verdict"], report["evidence"]) == (1, "not_judged", 0)
    assert "references" in report["content"]["wanted"]
    assert state_of(client, upgrade_id) == "ready"


def test_what_trainings_measured_on_held_out_rows_is_in_the_report_and_gates_nothing(
    client: TestClient, worker: WorkerParts
) -> None:
    turn = register_two_spaces(client)
    post_class_images(client, range(20))
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    registered = report_of(client, upgrade_id)

    metrics = {"held_out_rows": 100, "h": {"own_item_first": 0.25}}
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE transformations SET metrics = :metrics"), {"metrics": json.dumps(metrics)})
    trained = evaluate_again(client, worker, upgrade_id)

    assert registered["content"]["held_out"] == [{"transformation": 1, "metrics": None}]
    assert trained["content"]["held_out"] == [{"transformation": 1, "metrics": metrics}]
    assert trained["content"]["gates"] == registered["content"]["gates"]
    assert trained["verdict"] == registered["verdict"] == "not_judged"
    page = client.get(f"/v1/upgrades/{upgrade_id}/report?format=html").text
    assert "Transformation 1, on 100 rows" in page


def test_an_upgrade_goes_live_by_itself_once_its_references_pass(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    upgrade_id = judged(client, worker, turn, cutover="auto", observe=False)

    report = report_of(client, upgrade_id)
    assert (report["report"], report["verdict"], report["evidence"]) == (2, "pass", ITEMS)
    run_until(worker, client, upgrade_id, "live")
    body = client.get(f"/v1/upgrades/{upgrade_id}").json()
    assert body["judged"] == {"report": 2, "verdict": "pass"}
    assert body["decision"] == decision("pass", 2, by="auto")


@pytest.mark.parametrize("name", WRONG)
def test_an_h_that_leads_elsewhere_fails_and_goes_live_by_an_override_alone(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32], name: str
) -> None:
    upgrade_id = judged(client, worker, WRONG[name](turn).astype(np.float32), cutover="auto", observe=False)

    report = report_of(client, upgrade_id)
    assert report["verdict"] == "fail"
    advance_upgrade(worker, upgrade_id)
    assert state_of(client, upgrade_id) == "ready"

    refused = client.post(f"/v1/upgrades/{upgrade_id}/cutover")
    assert refused.status_code == 409
    assert "cmc_at_1" in refused.json()["detail"]
    assert client.post(f"/v1/upgrades/{upgrade_id}/cutover", json={"override": {"reason": " "}}).status_code == 422
    assert state_of(client, upgrade_id) == "ready"

    live = cut_over(client, worker, upgrade_id, "we want it so")
    assert live["decision"] == decision("fail", 2, reason="we want it so")


def test_an_h_whose_own_linear_map_leads_elsewhere_too_fails_without_a_label(
    client: TestClient, worker: WorkerParts
) -> None:
    turn = register_two_spaces(client)
    post_class_images(client, range(ITEMS), labels=False)
    h = Transformation(DIM, None, DIM, members=None, linear=True)
    assert h.linear_map is not None
    wrong = WRONG["to another target"](turn).astype(np.float32)
    h.linear_map.weights.load_state_dict({"weight": torch.from_numpy(wrong.T), "bias": torch.zeros(DIM)})
    assert post_transformation(client, "v1", "v2", save_network(h)).is_success
    upgrade_id = start_upgrade(client, "v2", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    assert post_references(client, upgrade_id, range(ITEMS)).is_success

    report = evaluate_again(client, worker, upgrade_id)

    failed = {gate["metric"] for gate in report["content"]["gates"] if gate["outcome"] == "fail"}
    assert failed == {"explained_variance", "overlap_at_10", "own_item_first"}


def test_with_observe_a_verdict_holds_nothing_up_and_is_recorded(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    upgrade_id = judged(client, worker, WRONG["to another target"](turn).astype(np.float32), observe=True)
    assert report_of(client, upgrade_id)["verdict"] == "fail"

    live = cut_over(client, worker, upgrade_id)

    assert live["decision"] == decision("fail", 2)


def test_the_same_rows_and_seed_give_the_same_report(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    upgrade_id = judged(client, worker, turn)

    again, other = (evaluate_again(client, worker, upgrade_id, seed) for seed in (0, 1))

    assert again["content"] == client.get(f"/v1/upgrades/{upgrade_id}/reports/2").json()["content"]
    assert other["content"] != again["content"]
    numbers = [line["report"] for line in client.get(f"/v1/upgrades/{upgrade_id}/reports").json()["items"]]
    assert numbers == [1, 2, 3, 4]


def test_an_override_is_of_the_report_that_it_was_given_for(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    upgrade_id = judged(client, worker, WRONG["to another target"](turn).astype(np.float32))
    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id, "of report 2")
        ask_for_report(session, upgrade_id, seed=1)

    advance_upgrade(worker, upgrade_id)

    body = client.get(f"/v1/upgrades/{upgrade_id}").json()
    assert (body["state"], body["judged"], body["decision"]) == ("ready", {"report": 3, "verdict": "fail"}, None)


def test_images_that_come_while_it_is_open_are_evidence_and_judge_it_anew(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    assert report_of(client, upgrade_id)["verdict"] == "not_judged"

    post_class_images(client, range(ITEMS, 2 * ITEMS))
    run_until(worker, client, upgrade_id, "live")

    report = report_of(client, upgrade_id)
    assert (report["report"], report["verdict"], report["evidence"]) == (2, "pass", ITEMS)


def test_a_person_may_cut_over_what_was_not_judged_and_that_is_recorded(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2", observe=False)
    run_until(worker, client, upgrade_id, "ready")

    live = cut_over(client, worker, upgrade_id)

    assert live["decision"] == decision("not_judged", 1)


def test_a_report_is_the_same_however_many_rows_are_read_at_once(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade_id = judged(client, worker, turn)
    with worker.database.session_scope() as session:
        upgrade = get_upgrade(session, upgrade_id)

    whole = evaluate(worker, upgrade, seed=3)
    monkeypatch.setattr(evaluating, "_ROWS_AT_ONCE", 7)
    in_parts = evaluate(worker, upgrade, seed=3)

    assert in_parts.content == whole.content


def test_judging_has_all_cores_of_the_worker(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade_id = judged(client, worker, turn)
    with worker.database.session_scope() as session:
        upgrade = get_upgrade(session, upgrade_id)
    threads = []

    def judge_with_threads(*arguments: Any) -> Report:
        threads.append(torch.get_num_threads())
        return judge(*arguments)

    monkeypatch.setattr(evaluating, "judge", judge_with_threads)
    settings = worker.settings.model_copy(update={"batches_at_once": 6})  # three of them compute at a time
    of_a_batch = torch.get_num_threads()
    evaluate(replace(worker, settings=settings), upgrade, seed=0)

    assert threads == [3 * of_a_batch]
    assert torch.get_num_threads() == of_a_batch


def age(worker: WorkerParts, seconds: int) -> None:
    """Let that much time have passed since all references, query sets and reports."""
    with worker.database.session_scope() as session:
        for table in ("reference_pairs", "query_sets", "reports"):
            session.execute(text(f"UPDATE {table} SET created_at = created_at - interval '{seconds} s'"))


@pytest.mark.parametrize("give", ["references", "a query set"])
def test_evidence_is_judged_by_itself_once_no_more_of_it_comes(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32], give: str
) -> None:
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    age(worker, 3600)

    given = range(ITEMS, 2 * ITEMS)
    if give == "references":
        assert post_references(client, upgrade_id, range(ITEMS)).is_success
    else:
        assert post_query_images(client, given).is_success
    advance_upgrade(worker, upgrade_id)
    assert report_of(client, upgrade_id)["report"] == 1
    age(worker, 61)
    advance_upgrade(worker, upgrade_id)

    report = report_of(client, upgrade_id)
    assert (report["report"], report["verdict"], report["evidence"]) == (2, "pass", ITEMS)
    run_until(worker, client, upgrade_id, "live")


def test_few_references_and_those_of_the_last_report_ask_for_no_other_one(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    age(worker, 3600)

    assert post_references(client, upgrade_id, range(99)).is_success
    age(worker, 61)
    advance_upgrade(worker, upgrade_id)
    assert report_of(client, upgrade_id)["report"] == 1
    assert post_references(client, upgrade_id, range(99, 100)).is_success
    age(worker, 61)
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE upgrades SET gates = :gates"), {"gates": json.dumps([UNREACHABLE])})
    advance_upgrade(worker, upgrade_id)
    age(worker, 61)
    advance_upgrade(worker, upgrade_id)

    report = report_of(client, upgrade_id)
    assert (report["report"], report["verdict"], report["evidence"]) == (2, "inconclusive", 100)


def test_rows_that_change_after_a_report_make_it_stale(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    upgrade_id = judged(client, worker, turn)

    post_class_images(client, range(90))
    advance_upgrade(worker, upgrade_id)
    assert report_of(client, upgrade_id)["report"] == 2
    post_class_images(client, range(90, 120))
    advance_upgrade(worker, upgrade_id)

    assert report_of(client, upgrade_id)["report"] == 3


def test_gates_that_were_asked_for_take_the_place_of_the_default_ones(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    limits = {"cmc_at_1": -1, "overlap_at_10": -2, "own_item_first": -2, "explained_variance": -1_000}
    gates = [{"metric": metric, "limit": limit} for metric, limit in limits.items()]
    wrong = WRONG["to another target"](turn).astype(np.float32)

    upgrade_id = judged(client, worker, wrong, gates=gates)

    report = report_of(client, upgrade_id)
    assert report["verdict"] == "pass", report["content"]["gates"]
    asked = client.get(f"/v1/upgrades/{upgrade_id}").json()["gates"]
    assert {gate["metric"]: gate["limit"] for gate in asked} == limits
    sliced = {"to_version": "v2", "gates": [{"metric": "own_item_first", "limit": 0, "slice": "label=class 0"}]}
    assert client.post("/v1/galleries/g/upgrades", json=sliced).status_code in (400, 409, 422)
