"""Model versions without networks: what their galleries take and answer, and what changes once there are some."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from sqlalchemy import text

from service.settings import Settings
from tests.judged import (
    DIM,
    class_image,
    cut_over,
    encoded_outside,
    evaluate_again,
    post_class_images,
    post_query_images,
    post_query_vectors,
    post_references,
    register_h,
)
from tests.networks import encoder_bytes, onnx_encoder_bytes
from tests.problems import check_problem
from tests.registrations import post_transformation, post_version
from tests.scenario import create_gallery, start_upgrade
from tests.unit.models.artifact_files import onnx_matrix
from tests.without_networks import (
    NETWORKS_SPEC,
    add_networks,
    ids_of,
    import_table,
    parquet,
    register_without_networks,
    vectors_of,
)
from tests.working import run_until
from workers.app import WorkerParts

pytestmark = pytest.mark.few_batches

SAME = np.eye(DIM, dtype=np.float32)
TURN = np.linalg.qr(np.random.default_rng(3).standard_normal((DIM, DIM)))[0].astype(np.float32)
TYPE = "urn:gallery-upgrade:version-without-networks"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """As every test has them, with a place below which images are read, and every query shadowed."""
    return settings.model_copy(update={"images": "https://images.example/", "shadow_share": 1.0})


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1, which has no networks, has vectors of 120 images."""
    assert register_without_networks(client, "v1").status_code == 201
    create_gallery(client)
    import_table(client, vectors_of(SAME, range(120)))
    return client


def register_v2(client: TestClient) -> None:
    """Register v2 with its network, and the h from v1 to it."""
    assert post_version(client, "v2", onnx_encoder_bytes(DIM, seed=1, turn=TURN), embedding_dim=DIM).is_success
    register_h(client, TURN)


def search_image(client: TestClient, number: int, **parameters: Any) -> httpx.Response:
    answer: httpx.Response = client.post(
        "/v1/galleries/g/search", files={"file": class_image(number)}, params=parameters
    )
    return answer


def search_vector(client: TestClient, turn: NDArray[np.float32], number: int) -> str:
    vectors = encoded_outside(turn, [number]).tolist()
    answer = client.post("/v1/galleries/g/search/vectors", json={"vectors": vectors, "k": 1})
    name: str = answer.json()["neighbors"][0][0]["id"]
    return name


def test_such_a_version_says_that_it_has_none(client: TestClient) -> None:
    answer = register_without_networks(client, "v1", side_information_dim=3, normalize=True)

    view = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/model-versions/v1")
    assert (view["embedding_dim"], view["side_information_dim"], view["normalize"]) == (DIM, 3, True)
    of_networks = {name: value for name, value in view.items() if "_model_" in name or name == "preprocessing"}
    assert len(of_networks) == 7
    assert set(of_networks.values()) == {None}
    for part in ("embedding_model", "side_information_model"):
        check_problem(client.get(f"/v1/model-versions/v1/artifacts/{part}"), 404, "without networks")


def test_a_registration_without_files_says_nothing_of_networks(client: TestClient) -> None:
    wrong = register_without_networks(client, "v1", preprocessing=NETWORKS_SPEC["preprocessing"])
    check_problem(wrong, 422, "there is no file embedding_model")
    check_problem(register_without_networks(client, "v1", output={"name": "y"}), 422, "There is no preprocessing")
    alone = client.post(
        "/v1/model-versions",
        data={"name": "v1", "spec": '{"embedding_dim": 6, "side_information_dim": 5}'},
        files={"side_information_model": encoder_bytes(5, 1)},
    )
    check_problem(alone, 422, "embedding_model")
    assert client.get("/v1/model-versions").json()["items"] == []


ASKED: dict[str, Callable[[TestClient], httpx.Response]] = {
    "an ingest": lambda c: c.post("/v1/galleries/g/images", files={"files": class_image(1)}),
    "an image query": lambda c: search_image(c, 1),
    "an ingest by reference": lambda c: c.post(
        "/v1/galleries/g/images/references", json=[{"id": "a", "image_uri": "https://images.example/a.png"}]
    ),
    "a backfill": lambda c: c.post("/v1/galleries/g/backfills", json={"generation": "active", "source": "client"}),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_needs_an_encoder_is_refused_and_says_how_to_add_one(gallery: TestClient, what: str) -> None:
    refused = ASKED[what](gallery)

    check_problem(refused, 409, "PUT /v1/model-versions/v1/networks")
    assert refused.json()["type"] == TYPE


def test_vectors_are_searched_and_the_service_is_ready(gallery: TestClient) -> None:
    assert search_vector(gallery, SAME, 7) == "7.png"
    by_item = gallery.post("/v1/galleries/g/search/items", json={"ids": ["7.png"], "k": 1, "exclude_self": False})
    assert by_item.json()["neighbors"][0][0]["id"] == "7.png"
    assert gallery.get("/readyz").status_code == 200


def test_networks_that_are_added_encode_at_once_and_for_good(gallery: TestClient) -> None:
    search_vector(gallery, SAME, 7)  # its generation is loaded, as a version without networks

    added = add_networks(gallery, "v1", SAME)

    assert added.status_code == 200, added.text
    assert added.json() == gallery.get("/v1/model-versions/v1").json()
    assert added.json()["embedding_model_kind"] == "onnx"
    assert added.json()["preprocessing"]["size"] == NETWORKS_SPEC["preprocessing"]["size"]
    assert search_image(gallery, 7).json()["neighbors"][0]["id"] == "7.png"
    post_class_images(gallery, [500])
    assert search_image(gallery, 500).json()["neighbors"][0]["id"] == "500.png"
    again = add_networks(gallery, "v1", SAME)
    check_problem(again, 409, "has networks already")
    assert again.json()["type"] == "urn:gallery-upgrade:version-has-networks"
    acts = [entry["action"] for entry in gallery.get("/v1/audit").json()["items"]]
    assert acts.count("model_version.networks_added") == 1


def test_networks_of_another_kind_than_the_version_says_are_refused(client: TestClient) -> None:
    register_without_networks(client, "v1")

    check_problem(add_networks(client, "v1", SAME, embedding_dim=7), 422, "The spec says embedding_dim 7")
    check_problem(add_networks(client, "v1", SAME, normalize=True), 422, "The spec says normalize true")
    check_problem(add_networks(client, "v1", SAME, side_information_dim=3), 422, "side_information_dim 3")
    check_problem(add_networks(client, "v1", SAME, preprocessing=None), 422, "preprocessing")
    check_problem(add_networks(client, "v9", SAME), 404, "'v9'")
    wide = client.put(
        "/v1/model-versions/v1/networks",
        data={"spec": f'{{"embedding_dim": {DIM}, "preprocessing": {{"size": 8, "mean": [0], "std": [1]}}}}'},
        files={"embedding_model": onnx_encoder_bytes(DIM + 1, seed=1)},
    )
    check_problem(wide, 422, "embedding_model")
    assert client.get("/v1/model-versions/v1").json()["embedding_model_digest"] is None


def test_of_two_who_add_networks_at_once_one_does(client: TestClient) -> None:
    register_without_networks(client, "v1")

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda turn: add_networks(client, "v1", turn), (SAME, TURN)))

    assert sorted(answer.status_code for answer in answers) == [200, 409]
    added = next(answer for answer in answers if answer.status_code == 200)
    assert client.get("/v1/model-versions/v1").json() == added.json()


def test_the_console_says_what_it_has_none_for_and_offers_to_add_them(gallery: TestClient) -> None:
    browser = {"Accept": "text/html"}
    versions, page = (gallery.get(path, headers=browser).text for path in ("/console/versions", "/console/galleries/g"))

    assert "/v1/model-versions/v1/networks" in versions
    assert "Vectors alone" in page
    assert "Search by a picture" not in page
    add_networks(gallery, "v1", SAME)
    versions, page = (gallery.get(path, headers=browser).text for path in ("/console/versions", "/console/galleries/g"))
    assert "/v1/model-versions/v1/networks" not in versions
    assert "Search by a picture" in page


def test_a_bake_and_shadowing_leave_out_what_cannot_be_asked(client: TestClient, worker: WorkerParts) -> None:
    assert post_version(client, "v1", onnx_encoder_bytes(DIM, seed=1, turn=SAME), embedding_dim=DIM).is_success
    create_gallery(client)
    post_class_images(client, range(30))
    register_without_networks(client, "v2")
    register_h(client, TURN)
    upgrade_id = start_upgrade(client, "v2", bake={"minutes": 60, "share": 1.0})
    run_until(worker, client, upgrade_id, "ready")
    assert search_vector(client, SAME, 7) == "7.png"

    answers = [search_image(client, number) for number in range(5)]
    cut_over(client, worker, upgrade_id)
    refused = search_image(client, 7)

    assert {answer.status_code for answer in answers} == {200}
    check_problem(refused, 409, "'v2' has no networks")
    with worker.database.session_scope() as session:
        for table in ("shadowed_queries", "baked_queries"):
            assert session.scalars(text(f"SELECT count(*) FROM {table}")).one() == 0


def test_its_gallery_is_upgraded_by_vectors_and_judged_by_vectors(gallery: TestClient, worker: WorkerParts) -> None:
    register_v2(gallery)
    planned = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2", "dry_run": True}).json()
    assert planned["warnings"][0].startswith("Nothing encodes images for 'v1'")
    upgrade_id = start_upgrade(gallery, "v2", observe=False)

    run_until(worker, gallery, upgrade_id, "ready")

    path = f"/v1/upgrades/{upgrade_id}"
    assert gallery.get(f"{path}/report").json()["verdict"] == "not_judged"
    check_problem(post_references(gallery, upgrade_id, range(3)), 409, "'v1' has no networks")
    given = gallery.post(f"{path}/references/vectors", content=parquet(vectors_of(TURN, range(119))))
    assert {result["status"] for result in given.json()["results"]} == {"accepted"}
    report = evaluate_again(gallery, worker, upgrade_id)
    assert report["evidence"] == 119
    assert report["verdict"] in ("pass", "inconclusive")
    cut_over(gallery, worker, upgrade_id)
    assert search_vector(gallery, TURN, 7) == "7.png"
    assert search_image(gallery, 7).json()["neighbors"][0]["id"] == "7.png"


def test_reference_vectors_of_no_item_or_with_no_meaning_are_rejected_alone(
    gallery: TestClient, worker: WorkerParts
) -> None:
    register_v2(gallery)
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    path = f"/v1/upgrades/{upgrade_id}/references/vectors"
    table = vectors_of(TURN, [1, 2, 3_000])
    broken = table.to_pydict()
    broken["embedding"][1] = [float("nan")] * DIM

    given = gallery.post(path, content=parquet(type(table).from_pydict(broken))).json()["results"]

    assert [(result["id"], result["status"]) for result in given] == [
        ("1.png", "accepted"),
        ("2.png", "rejected"),
        ("3000.png", "rejected"),
    ]
    refused = gallery.post(path, content=parquet(vectors_of(TURN, [3_000])))
    check_problem(refused, 422, "No vector of the request is a reference")


def test_what_h_made_is_no_reference(gallery: TestClient, worker: WorkerParts) -> None:
    register_v2(gallery)
    first = start_upgrade(gallery, "v2")
    run_until(worker, gallery, first, "ready")
    cut_over(gallery, worker, first)
    gallery.post(f"/v1/upgrades/{first}/finalize")
    register_without_networks(gallery, "v3")
    post_transformation(gallery, "v2", "v3", onnx_matrix(TURN))
    second = start_upgrade(gallery, "v3")
    run_until(worker, gallery, second, "ready")

    refused = gallery.post(f"/v1/upgrades/{second}/references/vectors", content=parquet(vectors_of(TURN, [1])))

    check_problem(refused, 422)
    assert "made by h" in refused.json()["errors"][0]["detail"]


def test_images_that_come_while_it_leads_to_such_a_version_are_transformed(
    client: TestClient, worker: WorkerParts
) -> None:
    assert post_version(client, "v1", onnx_encoder_bytes(DIM, seed=1, turn=SAME), embedding_dim=DIM).is_success
    create_gallery(client, probe_images=5)
    post_class_images(client, range(30))
    register_without_networks(client, "v2")
    register_h(client, TURN)
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")

    post_class_images(client, [200])
    canary = client.patch(f"/v1/upgrades/{upgrade_id}", json={"canary": 0.5})
    next_image = search_image(client, 200, generation="next")
    cut_over(client, worker, upgrade_id)

    check_problem(canary, 409, "'v2' has no networks")
    check_problem(next_image, 409, "'v2' has no networks")
    item = client.get("/v1/galleries/g/items/200.png").json()
    assert (item["origin"], search_vector(client, TURN, 200)) == ("transformed", "200.png")
    check_problem(search_image(client, 200), 409, "'v2' has no networks")
    assert client.get("/readyz").status_code == 200


def test_images_that_come_after_its_upgrade_are_in_the_new_generation_alone(
    gallery: TestClient, worker: WorkerParts
) -> None:
    register_v2(gallery)
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    cut_over(gallery, worker, upgrade_id)

    post_class_images(gallery, [300])
    refused = gallery.post(f"/v1/upgrades/{upgrade_id}/rollback")
    gallery.post(f"/v1/upgrades/{upgrade_id}/rollback", params={"accept_loss": True})

    check_problem(refused, 409, "300.png")
    assert gallery.get("/v1/galleries/g").json()["model_version"] == "v1"
    assert search_vector(gallery, SAME, 7) == "7.png"


def test_it_is_judged_by_query_sets_of_vectors_and_not_by_those_of_images(
    gallery: TestClient, worker: WorkerParts
) -> None:
    register_v2(gallery)
    said = [{"relevant": [name]} for name in ids_of(range(20))]
    assert post_query_images(gallery, range(20), said, name="pictures").is_success
    for version, turn in (("v1", SAME), ("v2", TURN)):
        names = ids_of(range(100))
        vectors, relevant = encoded_outside(turn, range(100)), [[name] for name in names]
        assert post_query_vectors(gallery, version, vectors, id=names, relevant=relevant).is_success

    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")

    sets = gallery.get(f"/v1/upgrades/{upgrade_id}/report").json()["content"]["query_sets"]
    assert {found["name"]: (found["left_out"], found["asked"]) for found in sets} == {
        "pictures": (20, 0),
        "asked": (0, 100),
    }


def test_a_training_from_images_is_refused(client: TestClient, datasets: Path) -> None:
    (datasets / "photos" / "a").mkdir(parents=True)
    for number in range(100):
        (datasets / "photos" / "a" / f"{number}.png").write_bytes(class_image(number))
    for name in ("v1", "v2"):
        register_without_networks(client, name)

    refused = client.post(
        "/v1/transformations/train", json={"from_version": "v1", "to_version": "v2", "dataset": "photos"}
    )

    check_problem(refused, 409, "'v1' has no networks")
    assert refused.json()["type"] == TYPE
