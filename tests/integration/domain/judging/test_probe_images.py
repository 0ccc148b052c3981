"""Probe images: which are kept, that they judge an upgrade by themselves, and that they show an encoder that drifts."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.app import create_app, make_parts
from service.db import Database
from service.domain.judging.drift import DriftWatch
from service.settings import Settings
from tests.fakes import WatchedEncoders
from tests.judged import (
    ITEMS,
    class_image,
    cut_over,
    judged,
    post_class_images,
    register_h,
    register_two_spaces,
    report_of,
)
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import create_gallery, import_vectors, post_images, register_version, search, start_upgrade
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts

pytestmark = pytest.mark.few_batches


def kept(database: Database) -> dict[str, bytes]:
    """Return the images that are kept, by the ids of their items."""
    query = "SELECT i.external_id, p.image FROM probe_images p JOIN items i ON i.id = p.item_id ORDER BY i.id"
    with database.session_scope() as session:
        return {row[0]: bytes(row[1]) for row in session.execute(text(query))}


def fill(client: TestClient, probe_images: int, seeds: range = range(30)) -> None:
    register_version(client, "v1")
    create_gallery(client, probe_images=probe_images)
    for start in range(0, len(seeds), 10):
        post_images(client, seeds[start : start + 10])


def number(name: str) -> int:
    return int(name.removeprefix("image-").removesuffix(".png"))


def test_as_many_originals_as_were_asked_for_are_kept_byte_for_byte(client: TestClient, worker: WorkerParts) -> None:
    fill(client, 7)

    found = kept(worker.database)

    assert len(found) == 7
    assert all(image == image_bytes(number(name)) for name, image in found.items())
    assert client.get("/v1/galleries/g").json()["probe_images"] == 7


def test_no_image_is_kept_unless_it_was_asked_for(client: TestClient, worker: WorkerParts) -> None:
    register_version(client, "v1")
    create_gallery(client)

    post_images(client, range(5))

    assert kept(worker.database) == {}
    for wrong in (-1, 1_001, 1.5):
        body = {"name": "h", "model_version": "v1", "probe_images": wrong}
        check_problem(client.post("/v1/galleries", json=body), 422)


def test_any_item_is_as_likely_to_be_kept_as_another(client: TestClient, worker: WorkerParts) -> None:
    register_version(client, "v1")
    counts: Counter[str] = Counter()
    for gallery in range(30):
        create_gallery(client, f"g{gallery}", probe_images=5)
        post_images(client, range(5), f"g{gallery}")
        post_images(client, range(5, 10), f"g{gallery}")
        counts.update(kept(worker.database).keys())
        client.delete(f"/v1/galleries/g{gallery}")

    assert len(counts) == 10
    early = sum(count for name, count in counts.items() if number(name) < 5)
    assert sum(counts.values()) == 150
    assert 50 < early < 100  # 75 of 150, with a deviation of at most 6


def test_what_replaces_an_item_replaces_its_image_and_what_deletes_it_deletes_it(
    client: TestClient, worker: WorkerParts
) -> None:
    fill(client, 1_000, range(4))

    replaced = client.post(
        "/v1/galleries/g/images",
        files=[("files", ("image-0.png", image_bytes(90)))],
        data={"items": json.dumps([{"id": "image-0.png"}])},
    )
    assert replaced.is_success
    assert client.delete("/v1/galleries/g/items/image-1.png").is_success
    import_vectors(client, ["image-2.png"])

    assert kept(worker.database) == {"image-0.png": image_bytes(90), "image-3.png": image_bytes(3)}


def test_an_image_that_is_too_large_or_refused_is_not_kept(client: TestClient, worker: WorkerParts) -> None:
    register_version(client, "v1")
    create_gallery(client, probe_images=10)
    large = image_bytes(1) + b"\0" * 2**20
    files = [("files", (name, data)) for name, data in (("bad", b"none"), ("large", large), ("good", image_bytes(2)))]

    results = client.post("/v1/galleries/g/images", files=files).json()["results"]

    assert [result["status"] for result in results] == ["rejected", "created", "created"]
    assert kept(worker.database) == {"good": image_bytes(2)}


def test_fewer_are_wanted_later_and_then_none(client: TestClient, worker: WorkerParts) -> None:
    fill(client, 10)
    before = kept(worker.database)

    client.patch("/v1/galleries/g", json={"probe_images": 4})
    fewer = kept(worker.database)
    client.patch("/v1/galleries/g", json={"probe_images": 0})

    assert len(fewer) == 4
    assert fewer.keys() <= before.keys()
    assert kept(worker.database) == {}


def test_probe_images_judge_an_upgrade_by_themselves(client: TestClient, worker: WorkerParts) -> None:
    turn = register_two_spaces(client)
    client.patch("/v1/galleries/g", json={"probe_images": ITEMS})
    post_class_images(client, range(ITEMS))
    register_h(client, turn)

    upgrade_id = start_upgrade(client, "v2", cutover="auto", observe=False)
    run_until(worker, client, upgrade_id, "live")

    report = report_of(client, upgrade_id)
    assert report["content"]["about"]["references"] == ITEMS
    assert report["verdict"] == "pass"


@contextmanager
def second_process(settings: Settings, before: Callable[[str], object] = lambda _: None) -> Iterator[httpx.Client]:
    """Another API process; its encoders call `before` with their version."""
    parts = make_parts(settings)
    encoders = WatchedEncoders(parts.blobs, settings, before)
    drift = DriftWatch(parts.database, encoders, images=4, every_seconds=0.2)
    with TestClient(create_app(settings, lambda _: replace(parts, drift=drift))) as client:
        yield client


def ready(client: httpx.Client) -> httpx.Response:
    """Return the answer of a process that has looked at the probe images."""
    wait_for(lambda: "being" not in client.get("/readyz").text)
    return client.get("/readyz")


def replace_encoder(worker: WorkerParts, version: str, by: str) -> None:
    """Let a version's artifact be another's, as in a process that computes something else."""
    with worker.database.session_scope() as session:
        session.execute(
            text(
                "UPDATE model_versions v SET embedding_model_digest = o.embedding_model_digest FROM model_versions o"
                " WHERE v.name = :version AND o.name = :by"
            ),
            {"version": version, "by": by},
        )


def test_a_process_whose_encoder_gives_what_it_gave_is_ready(client: TestClient, settings: Settings) -> None:
    fill(client, 10)

    with second_process(settings) as second:
        assert ready(second).status_code == 200


def test_a_process_whose_encoder_drifted_is_not_ready_and_its_log_says_which(
    client: TestClient, settings: Settings, worker: WorkerParts, caplog: pytest.LogCaptureFixture
) -> None:
    register_two_spaces(client)
    client.patch("/v1/galleries/g", json={"probe_images": 10})
    post_class_images(client, range(20))
    assert ready(client).status_code == 200
    replace_encoder(worker, "v1", by="v2")

    with second_process(settings) as second:
        detail = check_problem(ready(second), 503)

    assert "of 1 galleries" in detail
    assert "encoder.drifted" in caplog.text
    assert "Model version 'v1' gives other embeddings here than gallery 'g'" in caplog.text
    assert client.get("/readyz").status_code == 200, "it is that process's alone"


@pytest.mark.parametrize("drifts", [False, True])
def test_after_a_cutover_what_the_new_version_gave_is_compared(
    client: TestClient, settings: Settings, worker: WorkerParts, drifts: bool
) -> None:
    turn = register_two_spaces(client)
    client.patch("/v1/galleries/g", json={"probe_images": 20})
    post_class_images(client, range(300))
    upgrade_id = judged(client, worker, turn)
    cut_over(client, worker, upgrade_id)
    wait_for(lambda: search(client, 1)["model_version"] == "v2")
    asked: Counter[str] = Counter()
    if drifts:
        replace_encoder(worker, "v2", by="v1")

    with second_process(settings, lambda version: asked.update([version])) as second:
        answer = ready(second)

    assert answer.status_code == (503 if drifts else 200)
    assert set(asked) == {"v2"}


def test_a_process_gets_ready_again_when_its_encoder_gives_what_it_gave(
    client: TestClient, settings: Settings, worker: WorkerParts
) -> None:
    fill(client, 5)
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE probe_images SET image = :other"), {"other": class_image(3)})

    with second_process(settings) as second:
        assert ready(second).status_code == 503
        assert client.patch("/v1/galleries/g", json={"probe_images": 0}).is_success
        wait_for(lambda: second.get("/readyz").status_code == 200)
