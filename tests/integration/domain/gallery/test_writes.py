"""Writing, replacing and deleting items, under ids of any kind, is seen by every way to read; and while the generations
change, vectors are made again for those that are there by then, and at last refused."""

import json

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.gallery.new_items import NewItem
from service.domain.gallery.writes import GalleryWriter, NewRows, Target, new_rows
from service.errors import Unavailable
from service.tables import embeddings_table
from service.vectors.rows import Origin
from tests.items import check_same, found, names, page, post_one
from tests.networks import image_bytes
from tests.scenario import create_upgradable_gallery, post_images, search, start_upgrade, state_of
from tests.working import run_until
from workers.app import WorkerParts

ROUNDING = 1e-2  # an image's distance from itself as stored in float16 is below, from any other image above
BUSY = Unavailable("busy")


def test_a_deleted_item_is_gone_from_everywhere(gallery: TestClient) -> None:
    post_images(gallery, range(4))
    path = "/v1/galleries/g/items/image-2.png"

    assert gallery.delete(path).status_code == 204

    assert gallery.get(path).status_code == 404
    assert gallery.get(f"{path}/thumbnail").status_code == 404
    assert gallery.delete(path).status_code == 404
    assert page(gallery, 10) == (names(0, 1, 3), None)
    assert sorted(found(search(gallery, 2, k=10))) == names(0, 1, 3)
    assert gallery.get("/v1/galleries/g").json() | {"items": 3, "revision": 5} == gallery.get("/v1/galleries/g").json()


def test_a_deleted_id_can_be_used_again_and_nothing_of_before_comes_back(gallery: TestClient) -> None:
    post_one(gallery, "x", 1, label="old", metadata={"old": 1})
    before = gallery.get("/v1/galleries/g/items/x").json()
    gallery.delete("/v1/galleries/g/items/x")

    status = post_one(gallery, "x", 2)

    after = gallery.get("/v1/galleries/g/items/x").json()
    assert status == "created"
    assert (after["label"], after["metadata"]) == (None, {})
    assert after["created_at"] > before["created_at"]
    assert search(gallery, 2)["neighbors"][0]["distance"] < ROUNDING < search(gallery, 1)["neighbors"][0]["distance"]


def test_the_same_bytes_again_replace_the_item_with_the_same_answers(gallery: TestClient) -> None:
    post_images(gallery, range(4))
    before = search(gallery, 1, k=4)

    results = post_images(gallery, range(4)).json()["results"]

    after = search(gallery, 1, k=4)
    assert {result["status"] for result in results} == {"replaced"}
    check_same(after["neighbors"], before["neighbors"])
    assert after["revision"] == before["revision"] + 4
    assert page(gallery, 10) == (names(0, 1, 2, 3), None)


def test_other_bytes_under_an_id_replace_what_it_was(gallery: TestClient) -> None:
    post_images(gallery, [1, 2])
    created_at = gallery.get("/v1/galleries/g/items/image-1.png").json()["created_at"]

    status = post_one(gallery, "image-1.png", 50, label="other")

    item = gallery.get("/v1/galleries/g/items/image-1.png").json()
    assert (status, item["label"], item["metadata"], item["created_at"]) == ("replaced", "other", {}, created_at)
    nearest = search(gallery, 50)["neighbors"][0]
    assert (nearest["id"], nearest["label"]) == ("image-1.png", "other")
    assert nearest["distance"] < ROUNDING < search(gallery, 1)["neighbors"][0]["distance"]
    assert gallery.get("/v1/galleries/g").json()["items"] == 2


@pytest.mark.parametrize("identifier", ["a/b c.png", "ümläut 猫.jpg", "100%", "?x#y", "..a", "a//b", " "])
def test_unusual_ids_can_be_stored_read_and_deleted(gallery: TestClient, identifier: str) -> None:
    gallery.post(
        "/v1/galleries/g/images",
        files=[("files", ("x", image_bytes(1)))],
        data={"items": json.dumps([{"id": identifier}])},
    )
    path = "/v1/galleries/g/items/" + "".join(f"%{byte:02X}" for byte in identifier.encode())

    assert gallery.get(path).json()["id"] == identifier
    assert gallery.get(f"{path}/thumbnail").headers["content-type"] == "image/jpeg"
    assert gallery.delete(path).status_code == 204
    assert gallery.get(path).status_code == 404


@pytest.fixture
def upgradable(client: TestClient) -> TestClient:
    create_upgradable_gallery(client)
    return client


@pytest.fixture
def writer(upgradable: TestClient) -> GalleryWriter:
    assert isinstance(upgradable.app, FastAPI)
    writer: GalleryWriter = upgradable.app.state.parts.writer
    return writer


def zeros(target: Target) -> NewRows:
    """One item `a` with a row in every generation."""
    rows = {}
    for generation in target.generations:
        dims = generation.vector_format.embedding_dim, generation.vector_format.side_information_dim
        embedding, side = (None if dim is None else np.zeros((1, dim), np.float16) for dim in dims)
        assert embedding is not None
        rows[generation.id] = new_rows(Origin.ENCODED, embedding, side)
    return NewRows([NewItem("a")], rows)


def test_vectors_are_made_again_for_a_generation_that_came_meanwhile(
    upgradable: TestClient, writer: GalleryWriter
) -> None:
    generations: list[list[int]] = []

    def make(target: Target) -> NewRows:
        generations.append([generation.id for generation in target.generations])
        if len(generations) == 1:
            start_upgrade(upgradable, "v2")
        return zeros(target)

    _, written = writer.write("g", make, BUSY)

    assert generations == [[1], [1, 2]]
    assert written.revision == 1
    with writer.database.reading() as connection:
        counts = [connection.scalar(text(f"SELECT count(*) FROM {embeddings_table(id_)}")) for id_ in (1, 2)]
    assert counts == [1, 1]


def test_a_rollback_during_an_import_of_both_spaces_is_a_conflict_and_not_the_senders_mistake(
    upgradable: TestClient, writer: GalleryWriter, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(upgradable, "v2", cutover="auto")
    run_until(worker, upgradable, upgrade_id, "live")
    previous: list[int | None] = []

    def make(target: Target) -> NewRows:
        if not previous:
            rolled_back = upgradable.post(f"/v1/upgrades/{upgrade_id}/rollback")
            assert rolled_back.json()["state"] == "rolled_back"
        previous.append(target.previous_generation_id)
        return zeros(target)

    writer.write("g", make, BUSY)

    assert previous == [1, None]  # of one moment each: the first is the rollback's target, whatever happened since


def test_a_write_during_which_generations_change_each_time_is_refused_and_writes_nothing(
    upgradable: TestClient, writer: GalleryWriter
) -> None:
    upgrades: list[int] = []

    def make(target: Target) -> NewRows:
        if upgrades and state_of(upgradable, upgrades[-1]) != "cancelled":
            upgradable.post(f"/v1/upgrades/{upgrades[-1]}/cancel")
        else:
            upgrades.append(start_upgrade(upgradable, "v2"))
        return zeros(target)

    with pytest.raises(Unavailable) as refused:
        writer.write("g", make, BUSY)

    assert refused.value is BUSY
    assert len(upgrades) == 5  # of ten attempts, every other one
    assert upgradable.get("/v1/galleries/g/items").json()["items"] == []
