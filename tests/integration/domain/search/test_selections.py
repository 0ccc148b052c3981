"""Deleting many items at once, and describing one anew, as searches see it."""

import unicodedata
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.domain.gallery.current_rows import missing_items
from service.domain.gallery.generations import GenerationKey
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import post_images, register_transformation, register_version, start_upgrade
from tests.working import run_until, with_settings
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade

DELETE = "/v1/galleries/g/items/delete"


def ids_of(client: TestClient) -> list[str]:
    return [item["id"] for item in client.get("/v1/galleries/g/items").json()["items"]]


def found(client: TestClient, **condition: Any) -> set[str]:
    query = {"vectors": [[1.0] * 6], "k": 50, "filter": condition}
    answer = client.post("/v1/galleries/g/search/vectors", json=query).json()
    return {neighbor["id"] for neighbor in answer["neighbors"][0]}


def test_items_are_deleted_by_their_ids_and_those_that_are_not_there_are_not_counted(gallery: TestClient) -> None:
    post_images(gallery, range(5))

    answer = gallery.post(DELETE, json={"ids": ["image-1.png", "image-3.png", "never", "image-1.png"]})

    assert answer.status_code == 200
    assert answer.json() == {"deleted": 2, "revision": gallery.get("/v1/galleries/g").json()["revision"]}
    assert set(ids_of(gallery)) == found(gallery) == {"image-0.png", "image-2.png", "image-4.png"}
    assert gallery.get("/v1/galleries/g").json()["items"] == 3
    assert gallery.post(DELETE, json={"ids": ["never"]}).json()["deleted"] == 0


def test_items_are_deleted_by_a_filter(gallery: TestClient) -> None:
    post_images(gallery, range(9))

    answer = gallery.post(DELETE, json={"filter": {"label": "class 1", "metadata.seed": {"gt": 1}}})

    assert answer.json()["deleted"] == 2
    assert set(ids_of(gallery)) == found(gallery) == {f"image-{n}.png" for n in (0, 1, 2, 3, 5, 6, 8)}


@pytest.mark.parametrize(
    "wanted", [{}, {"filter": {}}, {"ids": []}, {"ids": ["a"], "filter": {"label": "b"}}, {"ids": ["a\n"]}, {"id": "a"}]
)
def test_a_selection_that_cannot_be_meant_deletes_nothing(gallery: TestClient, wanted: dict[str, Any]) -> None:
    post_images(gallery, range(2))

    check_problem(gallery.post(DELETE, json=wanted), 422)

    assert len(ids_of(gallery)) == 2


def test_a_label_and_metadata_change_without_the_image(gallery: TestClient) -> None:
    post_images(gallery, range(3))
    before = gallery.get("/v1/galleries/g/items/image-1.png").json()

    answer = gallery.patch("/v1/galleries/g/items/image-1.png", json={"label": "new", "metadata": {"a": 1}})

    after = answer.json()
    assert answer.status_code == 200
    assert after == {**before, "label": "new", "metadata": {"a": 1}, "revision": 4}
    assert found(gallery, label="new") == found(gallery, **{"metadata.a": 1}) == {"image-1.png"}
    assert gallery.patch("/v1/galleries/g/items/image-1.png", json={"label": None}).json()["label"] is None
    assert gallery.get("/v1/galleries/g/items/image-1.png").json()["metadata"] == {"a": 1}
    check_problem(gallery.patch("/v1/galleries/g/items/never", json={"label": "x"}), 404)
    check_problem(gallery.patch("/v1/galleries/g/items/image-1.png", json={"label": "x" * 513}), 422)
    check_problem(gallery.patch("/v1/galleries/g/items/image-1.png", json={"embedding": [1]}), 422)


def test_an_item_that_is_described_anew_stays_complete_through_an_upgrade_and_a_rollback(
    gallery: TestClient, worker: WorkerParts
) -> None:
    register_version(gallery, "v2")
    register_transformation(gallery, "v1", "v2")
    post_images(gallery, range(10))
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    advance_upgrade(with_settings(worker, task_slice_seconds=0.01), upgrade_id)
    described = {f"image-{number}.png": f"at {number}" for number in range(0, 10, 3)}
    for name, label in described.items():
        gallery.patch(f"/v1/galleries/g/items/{name}", json={"label": label})
    run_until(worker, gallery, upgrade_id, "live")
    gallery.patch("/v1/galleries/g/items/image-4.png", json={"label": "while live"})

    with worker.database.session_scope() as session:
        missing = [missing_items(session, GenerationKey(1, generation_id)) for generation_id in (1, 2)]
    rolled_back = gallery.post(f"/v1/upgrades/{upgrade_id}/rollback")

    assert missing == [[], []]
    assert rolled_back.status_code == 200
    labels = {item["id"]: item["label"] for item in gallery.get("/v1/galleries/g/items").json()["items"]}
    assert {name: labels[name] for name in described} == described
    assert labels["image-4.png"] == "while live"
    assert len(found(gallery)) == 10


def test_evidence_of_an_item_stays_evidence_when_it_is_described_anew(gallery: TestClient, worker: WorkerParts) -> None:
    register_version(gallery, "v2")
    register_transformation(gallery, "v1", "v2")
    post_images(gallery, range(4))
    upgrade_id = start_upgrade(gallery, "v2", cutover="manual")
    files = [("files", ("image-1.png", image_bytes(1)))]
    assert gallery.post(f"/v1/upgrades/{upgrade_id}/references", files=files).status_code == 200

    gallery.patch("/v1/galleries/g/items/image-1.png", json={"label": "new"})

    assert gallery.get(f"/v1/upgrades/{upgrade_id}/references").json()["given"] == 1


def test_each_query_vector_leaves_out_its_own_items(gallery: TestClient) -> None:
    post_images(gallery, range(4))
    probe = {"vectors": [[1.0] * 6, [-1.0] * 6], "k": 4}
    everything = gallery.post("/v1/galleries/g/search/vectors", json=probe).json()["neighbors"]
    left_out = [[everything[0][0]["id"], everything[0][2]["id"]], []]

    answer = gallery.post("/v1/galleries/g/search/vectors", json=probe | {"exclude_ids": left_out})

    first, second = answer.json()["neighbors"]
    assert first == [everything[0][1], everything[0][3]]
    assert second == everything[1]
    check_problem(gallery.post("/v1/galleries/g/search/vectors", json=probe | {"exclude_ids": [["a"]]}), 422)


def test_several_items_are_looked_at_in_one_request(gallery: TestClient) -> None:
    post_images(gallery, range(4))

    answer = gallery.get("/v1/galleries/g/items", params={"ids": ["image-3.png", "never", "image-0.png"]})

    assert [item["id"] for item in answer.json()["items"]] == ["image-3.png", "image-0.png"]


def test_an_id_is_the_same_item_however_its_letters_are_composed(gallery: TestClient) -> None:
    composed, decomposed = (unicodedata.normalize(form, "image-Ä.png") for form in ("NFC", "NFD"))
    post_images(gallery, [0])
    body = gallery.get("/v1/galleries/g/items/image-0.png/thumbnail").content
    statuses = [
        gallery.post("/v1/galleries/g/images", files=[("files", (name, body))]).json()["results"][0]["status"]
        for name in (decomposed, composed)
    ]

    assert statuses == ["created", "replaced"]
    assert ids_of(gallery) == ["image-0.png", composed]
    assert gallery.get(f"/v1/galleries/g/items/{decomposed}").json()["id"] == composed
    for operand in (decomposed, {"in": [decomposed]}):
        assert (
            gallery.post(
                "/v1/galleries/g/search/vectors", json={"vectors": [[1.0] * 6], "filter": {"id": operand}}
            ).json()["neighbors"][0][0]["id"]
            == composed
        )
    near = gallery.post("/v1/galleries/g/search/items", json={"ids": [decomposed]}).json()["neighbors"]
    assert [neighbor["id"] for neighbor in near[0]] == ["image-0.png"]
    assert gallery.post(DELETE, json={"ids": [decomposed]}).json()["deleted"] == 1
