"""Upgrades that are judged by the queries of a gallery's query sets."""

from typing import Any

import numpy as np
import onnx
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from service.settings import Settings
from tests.judged import (
    CLASSES,
    DIM,
    class_image,
    post_class_images,
    post_query_images,
    post_query_vectors,
    post_references,
    register_h,
    register_two_spaces,
    report_of,
)
from tests.networks import onnx_encoder_bytes, solid_image_bytes
from tests.registrations import artifacts, post_version, sha256
from tests.scenario import create_gallery, start_upgrade, state_of
from tests.working import run_until
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade

pytestmark = pytest.mark.few_batches

ITEMS, QUERIES = 100, 300
ASKED = range(1_000, 1_000 + QUERIES)  # images that are no items


@pytest.fixture
def turn(client: TestClient) -> NDArray[np.float32]:
    """Gallery `g` of items in five classes, two versions of it, and the matrix that leads from one to the other."""
    matrix = register_two_spaces(client)
    post_class_images(client, range(ITEMS))
    return matrix


def elsewhere(turn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an h that leads into a wrong space."""
    return turn @ np.linalg.qr(np.random.default_rng(9).standard_normal((DIM, DIM)))[0].astype(np.float32)


def judged(client: TestClient, worker: WorkerParts, **options: Any) -> int:
    """Start an upgrade and work on it until it is ready; return its id."""
    upgrade_id = start_upgrade(client, "v2", **options)
    run_until(worker, client, upgrade_id, "ready")
    return upgrade_id


def asked_set(client: TestClient, upgrade_id: int) -> dict[str, Any]:
    """Return what the newest report says of the only query set."""
    (found,) = report_of(client, upgrade_id)["content"]["query_sets"]
    assert isinstance(found, dict)
    return found


def served(client: TestClient, upgrade_id: int) -> dict[str, Any]:
    found: dict[str, Any] = report_of(client, upgrade_id)["content"]["measurements"]["served"]
    return found


def class_items(number: int) -> list[str]:
    """Return the ids of the items of an image's class."""
    return [f"{item}.png" for item in range(number % CLASSES, ITEMS, CLASSES)]


def test_an_upgrade_goes_live_by_itself_when_a_query_set_alone_says_so(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    assert post_query_images(client, ASKED).status_code == 201

    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "live")

    report = report_of(client, upgrade_id)
    assert (report["report"], report["verdict"], report["evidence"]) == (1, "pass", QUERIES)
    assert served(client, upgrade_id)["n"] == QUERIES
    assert asked_set(client, upgrade_id) == {
        "name": "asked",
        "queries": QUERIES,
        "left_out": 0,
        "drawn": QUERIES,
        "not_encoded": 0,
        "references": 0,
        "asked": QUERIES,
        "unknown_ids": 0,
        "unknown_labels": 0,
    }


def test_an_upgrade_that_a_query_set_refuses_does_not_go_live(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, elsewhere(turn))
    assert post_query_images(client, ASKED).is_success

    upgrade_id = judged(client, worker, cutover="auto", observe=False)
    advance_upgrade(worker, upgrade_id)

    assert report_of(client, upgrade_id)["verdict"] == "fail"
    assert state_of(client, upgrade_id) == "ready"


def test_a_later_upgrade_is_judged_by_the_same_queries_without_their_images(
    client: TestClient, worker: WorkerParts, settings: Settings, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    assert post_query_images(client, ASKED).is_success
    first = judged(client, worker)
    assert client.get("/v1/galleries/g/query-sets/asked").json()["vectors"] == {"v1": QUERIES, "v2": QUERIES}
    assert client.post(f"/v1/upgrades/{first}/cancel").is_success
    for number in ASKED:
        artifacts(settings)[sha256(class_image(number))].unlink()

    second = judged(client, worker)

    assert report_of(client, second)["verdict"] == "pass"
    assert report_of(client, second)["content"] == report_of(client, first)["content"] | {
        "about": report_of(client, second)["content"]["about"]
    }


def test_relevant_items_and_labels_are_judged_side_by_side(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, elsewhere(turn))
    by_label: list[dict[str, Any]] = [{"label": f"class {number % CLASSES}"} for number in ASKED]
    by_items: list[dict[str, Any]] = [{"relevant": class_items(number)} for number in ASKED]
    assert post_query_images(client, ASKED, by_label, "labels").is_success
    by_labels = served(client, judged(client, worker))
    assert client.post("/v1/upgrades/1/cancel").is_success
    assert client.delete("/v1/galleries/g/query-sets/labels").status_code == 204
    mixed = [*by_label[: QUERIES // 2], *by_items[QUERIES // 2 :]]

    assert post_query_images(client, ASKED, mixed, "mixed").is_success
    by_both = served(client, judged(client, worker))

    assert by_both["n"] == QUERIES
    for name in ("before", "after"):
        assert by_both["cmc1"][name]["value"] == by_labels["cmc1"][name]["value"]
        assert by_both["cmc5"][name]["value"] == by_labels["cmc5"][name]["value"]
    assert by_both["cmc1"]["after"]["value"] < by_both["cmc1"]["before"]["value"]


def test_vectors_under_one_version_alone_are_left_out_and_counted(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    vectors = np.random.default_rng(0).standard_normal((30, DIM)).astype(np.float32) * 20
    ids = [f"q{number}" for number in range(30)]
    labels = [f"class {number % CLASSES}" for number in range(30)]
    assert post_query_vectors(client, "v1", vectors[:20], id=ids[:20], label=labels[:20]).status_code == 201
    assert post_query_vectors(client, "v2", vectors[8:] @ turn, id=ids[8:], label=labels[8:]).status_code == 201

    found = asked_set(client, judged(client, worker))

    assert (found["queries"], found["left_out"], found["drawn"], found["asked"]) == (30, 18, 12, 12)
    assert served(client, 1)["cmc1"]["before"]["value"] == served(client, 1)["cmc1"]["after"]["value"]
    assert served(client, 1)["n"] == 12


def test_a_query_that_is_an_item_does_not_find_itself(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    itself = [{"id": f"own {n}", "relevant": [f"{n}.png"], "item_id": f"{n}.png"} for n in range(3)]
    with_others = [{"id": f"class {n}", "relevant": class_items(n), "item_id": f"{n}.png"} for n in range(4)]
    unsaid = [{"id": f"unsaid {n}", "relevant": [f"{n}.png"]} for n in range(5)]
    assert post_query_images(client, [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4], [*itself, *with_others, *unsaid]).is_success

    found = served(client, judged(client, worker))

    assert found["n"] == 9  # what should find itself alone finds nothing, and is not counted
    assert found["cmc1"]["before"]["value"] == 1


def test_names_that_no_item_has_are_counted_and_judge_nothing(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    said: list[dict[str, Any]] = [
        {"relevant": ["no item", "0.png"], "item_id": "none either"},
        {"relevant": ["no item"]},
        {"label": "no class"},
        {"label": "class 3"},
    ]
    assert post_query_images(client, [0, 1, 2, 3], said).is_success

    upgrade_id = judged(client, worker)

    found = asked_set(client, upgrade_id)
    assert (found["asked"], found["unknown_ids"], found["unknown_labels"]) == (4, 3, 1)
    assert served(client, upgrade_id)["n"] == 2


def test_a_slice_of_queries_has_a_gate(client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]) -> None:
    register_h(client, turn)
    said = [{"label": f"class {n % CLASSES}", "slice": "night" if n % 4 else "day"} for n in ASKED]
    assert post_query_images(client, ASKED, said).is_success

    upgrade_id = judged(client, worker, gates=[{"metric": "cmc_at_1", "limit": -0.1, "slice": "slice=day"}])

    gates = {(g["metric"], g["slice"]): g for g in report_of(client, upgrade_id)["content"]["gates"]}
    assert gates["worst_slice_cmc_at_1", "slice=night"]["n"] == QUERIES * 3 // 4
    assert gates["cmc_at_1", "slice=day"]["n"] == QUERIES // 4
    assert gates["cmc_at_1", None]["source"] == "queries of query sets"


def test_an_image_that_is_evidence_already_is_not_counted_twice(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    said = [{"label": f"class {n % CLASSES}", "item_id": f"{n}.png"} for n in range(30)]
    assert post_query_images(client, range(30), said).is_success
    upgrade_id = judged(client, worker)
    assert asked_set(client, upgrade_id)["asked"] == 30
    assert post_references(client, upgrade_id, range(10)).is_success

    assert client.post(f"/v1/upgrades/{upgrade_id}/evaluate").is_success
    advance_upgrade(worker, upgrade_id)

    found = asked_set(client, upgrade_id)
    assert (found["drawn"], found["references"], found["asked"]) == (30, 10, 20)
    assert report_of(client, upgrade_id)["evidence"] == 30


def test_more_queries_than_may_be_are_drawn_by_seed(
    client: TestClient, worker: WorkerParts, settings: Settings, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    assert post_query_images(client, ASKED).is_success
    worker.settings.evaluation_sample_items = 50

    upgrade_id = judged(client, worker)

    found = asked_set(client, upgrade_id)
    assert (found["queries"], found["drawn"], found["asked"]) == (QUERIES, 50, 50)
    assert client.get("/v1/galleries/g/query-sets/asked").json()["vectors"] == {"v1": 50, "v2": 50}
    assert client.post(f"/v1/upgrades/{upgrade_id}/evaluate", json={"seed": 1}).is_success
    advance_upgrade(worker, upgrade_id)
    assert asked_set(client, upgrade_id)["asked"] == 50
    assert client.get("/v1/galleries/g/query-sets/asked").json()["vectors"]["v1"] > 50


def test_an_image_that_is_lost_is_counted_and_the_others_judge(
    client: TestClient, worker: WorkerParts, settings: Settings, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    assert post_query_images(client, range(200, 210)).is_success
    artifacts(settings)[sha256(class_image(200))].unlink()
    artifacts(settings)[sha256(class_image(201))].write_bytes(b"damaged")

    found = asked_set(client, judged(client, worker))

    assert (found["drawn"], found["not_encoded"], found["asked"]) == (10, 2, 8)


def blind_to_black(turn: NDArray[np.float32]) -> bytes:
    """Return v2's encoder, which gives NaN for an image that is all black."""
    model = onnx.load_from_string(onnx_encoder_bytes(DIM, seed=1, turn=turn))
    nodes, last = model.graph.node, model.graph.node[-1]
    last.output[0] = "seen"
    nodes.append(helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0))
    nodes.append(helper.make_node("Add", ["mean", "offset"], ["above black"]))
    nodes.append(helper.make_node("Sqrt", ["above black"], ["root"]))
    nodes.append(helper.make_node("Mul", ["root", "nothing"], ["nothing or nan"]))
    nodes.append(helper.make_node("Unsqueeze", ["nothing or nan", "last axis"], ["column"]))
    nodes.append(helper.make_node("Add", ["seen", "column"], ["output"]))
    constants = {"offset": np.float32(1.99), "nothing": np.float32(0), "last axis": np.array([1])}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_an_image_that_a_version_cannot_encode_is_counted_and_the_others_judge(
    client: TestClient, worker: WorkerParts
) -> None:
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((DIM, DIM)))[0].astype(np.float32)
    phis = {"v1": onnx_encoder_bytes(DIM, seed=1, turn=np.eye(DIM, dtype=np.float32)), "v2": blind_to_black(turn)}
    for name, phi in phis.items():
        assert post_version(client, name, phi, embedding_dim=DIM).is_success
    create_gallery(client)
    post_class_images(client, range(ITEMS))
    register_h(client, turn)
    assert post_query_images(client, range(200, 210)).is_success
    said = '[{"label": "class 0"}]'
    black = [("files", ("black.png", solid_image_bytes(0)))]
    assert client.post("/v1/galleries/g/query-sets", files=black, data={"name": "black", "queries": said}).is_success

    upgrade_id = judged(client, worker)

    seen, unseen = report_of(client, upgrade_id)["content"]["query_sets"]
    assert (seen["asked"], seen["not_encoded"], unseen["asked"], unseen["not_encoded"]) == (10, 0, 0, 1)
    assert client.get("/v1/galleries/g/query-sets/black").json()["vectors"] == {"v1": 1}


def test_an_encoder_that_is_lost_fails_the_upgrade_with_the_reason(
    client: TestClient, worker: WorkerParts, settings: Settings, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    assert post_query_images(client, range(200, 210)).is_success
    eye = np.eye(DIM, dtype=np.float32)
    artifacts(settings)[sha256(onnx_encoder_bytes(DIM, seed=1, turn=eye))].unlink()

    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "failed")

    assert "could not be judged" in client.get(f"/v1/upgrades/{upgrade_id}").json()["error"]


def test_queries_that_are_posted_later_judge_the_upgrade_when_that_is_asked_for(
    client: TestClient, worker: WorkerParts, turn: NDArray[np.float32]
) -> None:
    register_h(client, turn)
    upgrade_id = judged(client, worker)
    assert report_of(client, upgrade_id)["verdict"] == "not_judged"

    assert post_query_images(client, ASKED).is_success
    assert client.post(f"/v1/upgrades/{upgrade_id}/evaluate").is_success
    advance_upgrade(worker, upgrade_id)

    assert report_of(client, upgrade_id)["verdict"] == "pass"
