"""Ingest by reference over HTTP: what is taken, what becomes of it, and what a user may do meanwhile."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from service.domain.ingest.batches import unfinished_ingests
from service.domain.ingest.references import remove_lists_of_ended
from service.settings import Settings
from service.tables import IngestReference
from tests.conftest import Servers, small_settings
from tests.networks import image_bytes
from tests.rows import all_rows
from tests.scenario import create_gallery, post_images, register_transformation, register_version, search, start_upgrade
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts
from workers.ingesting import advance_ingest

BATCH_IMAGES = 4


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The folder that the operator lists."""
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(servers: Servers, database_url: str, tmp_path: Path, images: Path) -> Settings:
    changes = {"images": images.as_uri(), "encode_batch_items": BATCH_IMAGES}
    return small_settings(servers, database_url, tmp_path / "data").model_copy(update=changes)


def references(folder: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Write images and return a list that names them."""
    for seed in seeds:
        (folder / f"{seed}.png").write_bytes(image_bytes(seed))
    return [{"id": f"image-{seed}.png", "image_uri": (folder / f"{seed}.png").as_uri()} for seed in seeds]


def post(client: TestClient, listed: list[dict[str, Any]], gallery: str = "g") -> int:
    answer = client.post(f"/v1/galleries/{gallery}/images/references", json=listed)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    identifier: int = answer.json()["id"]
    return identifier


def job(client: TestClient, job_id: int) -> dict[str, Any]:
    view: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return view


def rejected(client: TestClient, job_id: int) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in client.get(f"/v1/jobs/{job_id}/rejected").json()["items"]}


def finish(worker: WorkerParts, client: TestClient, job_id: int) -> dict[str, Any]:
    for _ in range(30):
        advance_ingest(worker, job_id)
        if job(client, job_id)["finished_at"] is not None:
            return job(client, job_id)
    raise AssertionError(job(client, job_id))


def item(client: TestClient, id_: str) -> dict[str, Any]:
    view: dict[str, Any] = client.get(f"/v1/galleries/g/items/{id_}").json()
    return view


def test_images_are_stored_as_if_they_had_been_posted(gallery: TestClient, worker: WorkerParts, images: Path) -> None:
    create_gallery(gallery, "posted")
    post_images(gallery, range(6), gallery="posted")
    listed = [
        one | {"label": f"class {n % 3}", "metadata": {"seed": n}} for n, one in enumerate(references(images, range(6)))
    ]

    ended = finish(worker, gallery, post(gallery, listed))

    assert (ended["state"], ended["result"]) == ("succeeded", {"created": 6, "replaced": 0, "rejected": 0})
    assert ended["progress"]["ingesting"]["done"] == ended["progress"]["ingesting"]["total"] == 6
    assert ended["request"] == {"gallery": "g", "images": 6}
    wait_for(lambda: search(gallery, 3)["revision"] == 6, seconds=30)
    by_reference, by_post = (
        gallery.post(f"/v1/galleries/{name}/search", files={"file": image_bytes(3)}).json()["neighbors"]
        for name in ("g", "posted")
    )
    seen = ("id", "distance", "origin", "label", "metadata")
    assert [[row[key] for key in seen] for row in by_reference] == [[row[key] for key in seen] for row in by_post]
    assert item(gallery, "image-3.png")["image_uri"] == listed[3]["image_uri"]
    assert gallery.get(by_reference[0]["thumbnail_url"]).headers["content-type"] == "image/jpeg"


def test_a_table_is_taken_like_a_list(gallery: TestClient, worker: WorkerParts, images: Path) -> None:
    listed = references(images, range(3))
    table = pa.table(
        {
            "id": [one["id"] for one in listed],
            "image_uri": [one["image_uri"] for one in listed],
            "label": ["cat", None, "dog"],
            "metadata": ['{"a": 1}', None, None],
        }
    )
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)

    answer = gallery.post("/v1/galleries/g/images/references", content=stream.getvalue().to_pybytes())
    finish(worker, gallery, answer.json()["id"])

    assert (item(gallery, "image-0.png")["label"], item(gallery, "image-0.png")["metadata"]) == ("cat", {"a": 1})
    assert item(gallery, "image-1.png")["label"] is None


def test_images_that_cannot_be_read_are_rejected_alone_with_their_reasons(
    gallery: TestClient, worker: WorkerParts, images: Path, tmp_path: Path
) -> None:
    listed = references(images, range(9))
    (images / "1.png").unlink()
    (images / "4.png").write_bytes(b"no image")
    (images / "5.png").write_bytes(image_bytes(5)[:-40])
    (tmp_path / "private.png").write_bytes(image_bytes(7))
    (images / "7.png").unlink()
    (images / "7.png").symlink_to(tmp_path / "private.png")
    listed[8]["image_uri"] = "https://127.0.0.1/private"

    job_id = post(gallery, listed)
    ended = finish(worker, gallery, job_id)

    assert (ended["state"], ended["result"]) == ("succeeded", {"created": 4, "replaced": 0, "rejected": 5})
    reasons = rejected(gallery, job_id)
    assert list(reasons) == [f"image-{n}.png" for n in (1, 4, 5, 7, 8)]
    assert reasons["image-1.png"] == "There is no such file."
    assert "symlink" in reasons["image-7.png"]
    assert "GALLERY_IMAGES" in reasons["image-8.png"]
    first = gallery.get(f"/v1/jobs/{job_id}/rejected?limit=2").json()
    second = gallery.get(f"/v1/jobs/{job_id}/rejected", params={"cursor": first["next_cursor"]}).json()
    assert [row["id"] for row in first["items"] + second["items"]] == list(reasons)


def test_a_job_of_broken_images_alone_succeeds_and_stores_nothing(
    gallery: TestClient, worker: WorkerParts, images: Path
) -> None:
    listed = [{"id": f"{n}", "image_uri": f"{images.as_uri()}/{n}"} for n in range(5)]

    ended = finish(worker, gallery, post(gallery, listed))

    assert ended["result"] == {"created": 0, "replaced": 0, "rejected": 5}
    assert gallery.get("/v1/galleries/g/items").json()["items"] == []


def test_while_an_upgrade_is_open_images_are_encoded_under_both_versions(
    gallery: TestClient, worker: WorkerParts, images: Path
) -> None:
    register_version(gallery, "v2")
    register_transformation(gallery, "v1", "v2")
    post_images(gallery, range(2))
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")

    finish(worker, gallery, post(gallery, references(images, range(1, 6))))

    old, new = all_rows(worker, upgrade_id)
    assert len(old) == len(new) == 6
    assert new.hops.tolist() == [1, 0, 0, 0, 0, 0]


def test_an_item_that_was_written_or_deleted_since_is_written_again_when_its_turn_comes(
    gallery: TestClient, worker: WorkerParts, images: Path
) -> None:
    job_id = post(gallery, references(images, range(2)))
    post_images(gallery, [0])
    post_images(gallery, [1])
    gallery.delete("/v1/galleries/g/items/image-1.png")

    ended = finish(worker, gallery, job_id)

    assert ended["result"] == {"created": 1, "replaced": 1, "rejected": 0}
    assert item(gallery, "image-0.png")["label"] is None
    assert len(gallery.get("/v1/galleries/g/items").json()["items"]) == 2


def test_a_paused_job_stores_nothing_until_it_is_resumed(
    gallery: TestClient, worker: WorkerParts, images: Path
) -> None:
    job_id = post(gallery, references(images, range(3)))

    paused = gallery.post(f"/v1/jobs/{job_id}/pause").json()
    advance_ingest(worker, job_id)

    assert (paused["state"], job(gallery, job_id)["state"]) == ("paused", "paused")
    assert gallery.get("/v1/galleries/g/items").json()["items"] == []
    with worker.database.session_scope() as session:
        assert list(unfinished_ingests(session)) == []
    assert gallery.post(f"/v1/jobs/{job_id}/pause").status_code == 200
    assert gallery.post(f"/v1/jobs/{job_id}/resume").json()["state"] == "queued"
    assert finish(worker, gallery, job_id)["result"]["created"] == 3
    assert gallery.post(f"/v1/jobs/{job_id}/pause").status_code == 409


def test_a_cancelled_job_keeps_what_it_stored_and_its_list_is_removed(
    gallery: TestClient, worker: WorkerParts, images: Path
) -> None:
    listed = references(images, range(9))
    listed[0]["image_uri"] += ".missing"
    job_id = post(gallery, listed)
    worker.settings.task_slice_seconds = 1e-3  # one batch

    advance_ingest(worker, job_id)
    cancelled = gallery.post(f"/v1/jobs/{job_id}/cancel").json()
    advance_ingest(worker, job_id)

    assert (cancelled["state"], cancelled["progress"]["ingesting"]["done"]) == ("cancelled", BATCH_IMAGES)
    assert len(gallery.get("/v1/galleries/g/items").json()["items"]) == BATCH_IMAGES - 1
    with worker.database.session_scope() as session:
        remove_lists_of_ended(session)
        assert session.query(IngestReference).count() == 1
    assert list(rejected(gallery, job_id)) == ["image-0.png"]


def test_a_job_at_speed_0_stands_still(gallery: TestClient, worker: WorkerParts, images: Path) -> None:
    job_id = post(gallery, references(images, range(2)))

    assert gallery.patch(f"/v1/jobs/{job_id}", json={"speed": 0}).json()["speed"] == 0
    assert advance_ingest(worker, job_id) is False

    assert job(gallery, job_id)["progress"]["ingesting"]["done"] == 0
    assert gallery.patch(f"/v1/jobs/{job_id}", json={"speed": 0.5}).json()["speed"] == 0.5
    assert finish(worker, gallery, job_id)["state"] == "succeeded"
    assert gallery.patch(f"/v1/jobs/{job_id}", json={"speed": 1}).status_code == 409
    assert gallery.patch(f"/v1/jobs/{job_id}", json={"speed": 2}).status_code == 422


REFUSED: dict[str, tuple[Any, str]] = {
    "no images": ([], "names no image"),
    "no uri": ([{"id": "a"}], "not a list of"),
    "no object": ({"id": "a"}, "not a list of"),
    "unknown key": ([{"id": "a", "image_uri": "file:///a", "lable": "cat"}], "not a list of"),
    "no URI": ([{"id": "a", "image_uri": "a.png"}], "not a URI"),
    "long uri": ([{"id": "a", "image_uri": "file:///" + "a" * 2_048}], "longer than 2,048"),
    "an id twice": ([{"id": "a", "image_uri": "file:///a"}] * 2, "occurs twice"),
}


@pytest.mark.parametrize(("listed", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_list_that_is_wrong_is_refused_at_once_and_nothing_of_it_is_kept(
    gallery: TestClient, listed: Any, sentence: str
) -> None:
    answer = gallery.post("/v1/galleries/g/images/references", json=listed)

    assert answer.status_code == 422, answer.text
    assert sentence in answer.json()["detail"]
    assert gallery.get("/v1/jobs").json()["items"] == []


def test_bodies_that_cannot_be_read_and_galleries_that_are_not_there_are_told(gallery: TestClient) -> None:
    url = "/v1/galleries/g/images/references"
    listed = [{"id": "a", "image_uri": "file:///a"}]

    assert gallery.post(url, content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert gallery.post(url, content=b"nonsense").status_code == 415
    assert gallery.post("/v1/galleries/none/images/references", json=listed).status_code == 404
    assert gallery.get("/v1/jobs/77/rejected").status_code == 404
    assert gallery.post("/v1/jobs/77/pause").status_code == 404


def test_the_same_list_under_one_idempotency_key_is_one_job(gallery: TestClient, images: Path) -> None:
    body, headers = references(images, range(2)), {"Idempotency-Key": "once"}

    answers = [gallery.post("/v1/galleries/g/images/references", json=body, headers=headers) for _ in range(2)]

    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert len(gallery.get("/v1/jobs").json()["items"]) == 1


def test_a_job_ends_with_its_gallery(gallery: TestClient, worker: WorkerParts, images: Path) -> None:
    job_id = post(gallery, references(images, range(2)))

    assert gallery.delete("/v1/galleries/g").status_code == 204

    assert advance_ingest(worker, job_id) is False
    assert gallery.get(f"/v1/jobs/{job_id}").status_code == 404
