"""Backfills by a worker, from images' URIs: what is written, what wins over it, and what it leaves as it was."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from models.artifacts import load_encoder
from models.images import decode_image
from models.preprocessing import Preprocessing, preprocess_batch
from service.domain.backfill.backfills import change_state
from service.domain.backfill.encoding import ReadImage, reader_of
from service.domain.backfill.planning import start_backfill
from service.domain.backfill.work import Encoding, claim_items, work_on_items
from service.domain.backfill_state import BackfillAction
from service.image_sources.source import ImageSource
from service.settings import Settings
from service.vectors.rows import EmbeddingRows, Origin
from tests.backfills import (
    backfill_of,
    begin_backfill,
    go_live,
    make_candidate,
    name_of,
    refused,
    run_backfill,
)
from tests.networks import PREPROCESSING, SIZE, encoder_bytes, image_bytes
from tests.rows import all_rows
from tests.scenario import DIMS, import_vectors, post_images, search, state_of
from tests.working import with_settings
from workers.app import WorkerParts
from workers.backfilling import advance_backfill
from workers.upgrading import advance_upgrade

ITEMS = 5


@pytest.fixture(autouse=True)
def images(settings: Settings, tmp_path: Path) -> Path:
    """The folder whose images the service may read; the service and the worker are told."""
    folder = tmp_path / "images"
    folder.mkdir()
    settings.images = f"file://{folder}/"
    return folder


@pytest.fixture
def upgrade(images: Path, client: TestClient, worker: WorkerParts) -> int:
    """A ready upgrade of gallery `g` from v1 to v2."""
    return make_candidate(client, worker, images, ITEMS)


def encoding_of(worker: WorkerParts) -> tuple[Encoding, ReadImage]:
    return Encoding(worker.writer.encoders), reader_of(worker.images)


def choose_items(worker: WorkerParts, backfill_id: int) -> None:
    with worker.database.session_scope() as session:
        start_backfill(session, backfill_id)


def by_version(version: str, seeds: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return what a version's φ makes of images, outside of the service."""
    dim = DIMS[version][0]
    encode = load_encoder(encoder_bytes(dim, seed=int(version[1:])), output_dim=dim, input_size=SIZE)
    images = [decode_image(image_bytes(seed)) for seed in seeds]
    return encode(preprocess_batch(images, Preprocessing.from_json(PREPROCESSING)))


def origins(rows: EmbeddingRows) -> list[Origin]:
    return [Origin(origin) for origin in rows.origin]


def test_a_candidate_gets_the_embeddings_that_the_new_version_makes_of_the_images(
    client: TestClient, worker: WorkerParts, upgrade: int
) -> None:
    old_before, _ = all_rows(worker, upgrade)

    found = run_backfill(client, worker, begin_backfill(client))

    old, new = all_rows(worker, upgrade)
    assert origins(new) == [Origin.BACKFILLED] * ITEMS
    np.testing.assert_allclose(new.embedding.astype(np.float32), by_version("v2", list(range(ITEMS))), atol=2e-2)
    assert (new.hops.tolist(), new.uncertainty.tolist()) == ([0] * ITEMS, [0.0] * ITEMS)
    assert new.side_information is not None
    assert (old.embedding == old_before.embedding).all()
    assert (old.revision == new.revision).all()
    assert origins(old) == [Origin.ENCODED] * ITEMS
    assert found["outcomes"] == {"backfilled": ITEMS, "superseded": 0, "refused": 0}
    assert found["progress"]["encoding"]["done"] == ITEMS
    assert found["order"] == "random"  # h says nothing of its errors, and there are no references


def test_backfilled_rows_reach_the_replica_and_live_on_through_cutover_and_rollback(
    client: TestClient, worker: WorkerParts, upgrade: int
) -> None:
    run_backfill(client, worker, begin_backfill(client))
    go_live(client, worker, upgrade)
    client.app.state.parts.replicas.refresh(1)  # type: ignore[attr-defined]  # what follows by itself soon

    answer = search(client, 3, k=1)
    rolled_back = client.post(f"/v1/upgrades/{upgrade}/rollback")

    assert answer["model_version"] == "v2"
    assert answer["neighbors"][0]["id"] == name_of(3)
    assert answer["neighbors"][0]["origin"] == "backfilled"
    assert answer["neighbors"][0]["distance"] == pytest.approx(0, abs=2e-2)
    assert rolled_back.json()["state"] == "rolled_back", rolled_back.text
    assert search(client, 3, k=1)["neighbors"][0]["distance"] == pytest.approx(0, abs=1e-2)


def test_the_active_generation_is_backfilled_while_it_answers_and_can_be_rolled_back_after(
    client: TestClient, worker: WorkerParts, upgrade: int
) -> None:
    go_live(client, worker, upgrade)

    run_backfill(client, worker, begin_backfill(client, generation="active"))

    answer = search(client, 2, k=ITEMS)
    assert {neighbor["origin"] for neighbor in answer["neighbors"]} == {"backfilled"}
    assert client.post(f"/v1/upgrades/{upgrade}/rollback").status_code == 200
    assert state_of(client, upgrade) == "rolled_back"


def test_an_item_that_is_written_while_its_image_is_encoded_keeps_what_was_written(
    client: TestClient, worker: WorkerParts, upgrade: int
) -> None:
    backfill_id = begin_backfill(client)
    encoding, read = encoding_of(worker)
    choose_items(worker, backfill_id)
    claim = claim_items(worker.database, worker.settings, backfill_id)
    assert claim is not None

    def written_meanwhile(item: object) -> bytes:
        if getattr(item, "external_id") == name_of(0):  # noqa: B009 - of whichever kind the item is
            post_images(client, [0])
            assert client.delete(f"/v1/galleries/g/items/{name_of(1)}").status_code == 204
        return read(item)  # type: ignore[arg-type]

    with worker.database.session_scope() as session:
        done = work_on_items(session, claim, encoding, written_meanwhile)
    found = run_backfill(client, worker, backfill_id)

    assert done is not None
    assert len(done.changed) == 2
    assert found["outcomes"] == {"backfilled": ITEMS - 2, "superseded": 2, "refused": 0}
    _, new = all_rows(worker, upgrade)
    assert origins(new) == [Origin.ENCODED, *[Origin.BACKFILLED] * (ITEMS - 2)]
    assert client.get(f"/v1/galleries/g/items/{name_of(1)}").status_code == 404


def test_the_catch_up_leaves_backfilled_rows_and_brings_along_what_came_after(
    client: TestClient, worker: WorkerParts, upgrade: int
) -> None:
    run_backfill(client, worker, begin_backfill(client))
    _, before = all_rows(worker, upgrade)
    import_vectors(client, ["late", name_of(0)])

    advance_upgrade(with_settings(worker, cutover_max_changes=0), upgrade)

    _, after = all_rows(worker, upgrade)
    assert origins(after) == [Origin.TRANSFORMED, *[Origin.BACKFILLED] * (ITEMS - 1), Origin.TRANSFORMED]
    assert (after.embedding[1:ITEMS] == before.embedding[1:]).all()
    assert (after.revision[1:ITEMS] == before.revision[1:]).all()


def test_images_that_are_missing_broken_or_others_are_listed_and_cost_no_other_item(
    client: TestClient, worker: WorkerParts, upgrade: int, images: Path
) -> None:
    (images / name_of(0)).unlink()
    (images / name_of(1)).write_bytes(b"no image")
    (images / name_of(2)).write_bytes(image_bytes(99))

    backfill_id = begin_backfill(client)
    found = run_backfill(client, worker, backfill_id)

    reasons = refused(client, backfill_id)
    assert set(reasons) == {name_of(0), name_of(1), name_of(2)}
    assert reasons[name_of(0)] == "There is no such file."
    assert "another image" in reasons[name_of(2)]
    assert found["outcomes"] == {"backfilled": 2, "superseded": 0, "refused": 3}
    _, new = all_rows(worker, upgrade)
    assert origins(new) == [Origin.TRANSFORMED] * 3 + [Origin.BACKFILLED] * 2


def test_two_workers_claim_other_items_and_a_claim_that_was_taken_over_writes_nothing(
    client: TestClient, worker: WorkerParts, upgrade: int
) -> None:
    worker = with_settings(worker, backfill_batch_items=2, lease_seconds=60.0)
    backfill_id = begin_backfill(client)
    choose_items(worker, backfill_id)

    first, second, third = (claim_items(worker.database, worker.settings, backfill_id) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert claim_items(worker.database, worker.settings, backfill_id) is None
    encoding, read = encoding_of(worker)
    sizes = []
    for claim in (first, second, third, first):
        with worker.database.session_scope() as session:
            done = work_on_items(session, claim, encoding, read)
        sizes.append(None if done is None else len(done.backfilled))

    assert sizes == [2, 2, 1, None]


class HangingImages(ImageSource):
    """A place that answers nothing until it is `let_go`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.is_asked = threading.Event()
        self.let_go = threading.Event()

    def read(self, uri: str) -> bytes:
        self.is_asked.set()
        assert self.let_go.wait(60), "the stop waited for an image"
        return super().read(uri)


@pytest.mark.parametrize(("action", "ends"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_stop_does_not_wait_for_images_whose_place_hangs(
    client: TestClient, worker: WorkerParts, settings: Settings, upgrade: int, action: str, ends: str
) -> None:
    backfill_id = begin_backfill(client)
    images = HangingImages(settings)
    working = threading.Thread(target=advance_backfill, args=(replace(worker, images=images), backfill_id))
    working.start()
    assert images.is_asked.wait(30)

    stopped = client.post(f"/v1/backfills/{backfill_id}/{action}")

    assert (stopped.status_code, stopped.json()["state"]) == (200, ends)
    assert not images.let_go.is_set()
    working.join(30)
    images.let_go.set()
    with worker.database.session_scope() as session:
        tried = session.execute(text("SELECT DISTINCT state, attempts FROM backfill_items")).all()
    assert tried == [("pending", 0)]
    if action == "pause":
        client.post(f"/v1/backfills/{backfill_id}/resume")
        assert run_backfill(client, worker, backfill_id)["outcomes"]["backfilled"] == ITEMS
    assert state_of(client, upgrade) == "ready"


def test_a_pause_gives_claimed_items_back_and_a_resume_goes_on(
    client: TestClient, worker: WorkerParts, upgrade: int
) -> None:
    backfill_id = begin_backfill(client)
    choose_items(worker, backfill_id)
    claim = claim_items(worker.database, worker.settings, backfill_id)
    assert claim is not None
    assert client.post(f"/v1/backfills/{backfill_id}/pause").json()["state"] == "paused"
    encoding, read = encoding_of(worker)

    with worker.database.session_scope() as session:
        done = work_on_items(session, claim, encoding, read)
    idle = advance_backfill(worker, backfill_id)
    resumed = client.post(f"/v1/backfills/{backfill_id}/resume").json()["state"]

    assert done is None
    assert idle is False
    assert resumed == "running"
    assert run_backfill(client, worker, backfill_id)["outcomes"]["backfilled"] == ITEMS


def test_a_budget_bounds_the_items_and_what_is_left_can_be_done_by_another_backfill(
    client: TestClient, worker: WorkerParts, upgrade: int
) -> None:
    first = run_backfill(client, worker, begin_backfill(client, budget={"share": 0.5}))
    second = run_backfill(client, worker, begin_backfill(client))

    again = client.post("/v1/galleries/g/backfills", json={"generation": "next", "source": "uri"})

    assert (first["candidates"], first["items"]) == (ITEMS, 3)
    assert second["items"] == 2
    assert again.status_code == 409
    assert "image_uri" in again.json()["detail"]


def test_the_end_of_its_generation_ends_a_backfill(client: TestClient, worker: WorkerParts, upgrade: int) -> None:
    backfill_id = begin_backfill(client)
    assert client.post(f"/v1/upgrades/{upgrade}/cancel").status_code == 200

    found = run_backfill(client, worker, backfill_id, "cancelled")

    assert "generation was dropped" in found["error"]


def test_an_image_that_kills_workers_is_refused_alone_after_some_tries(
    client: TestClient, worker: WorkerParts, upgrade: int
) -> None:
    worker = with_settings(worker, lease_seconds=1e-6, max_batch_attempts=2)
    backfill_id = begin_backfill(client, budget={"items": 2})
    choose_items(worker, backfill_id)
    claimed = [claim_items(worker.database, worker.settings, backfill_id) for _ in range(3)]  # of workers that died

    found = run_backfill(client, worker, backfill_id)

    assert all(claimed)
    assert found["outcomes"] == {"backfilled": 1, "superseded": 0, "refused": 1}
    assert "its worker died" in next(iter(refused(client, backfill_id).values()))


def test_a_cancelled_backfill_keeps_what_it_wrote(client: TestClient, worker: WorkerParts, upgrade: int) -> None:
    worker = with_settings(worker, backfill_batch_items=2)
    backfill_id = begin_backfill(client)
    choose_items(worker, backfill_id)
    claim = claim_items(worker.database, worker.settings, backfill_id)
    assert claim is not None
    encoding, read = encoding_of(worker)
    with worker.database.session_scope() as session:
        work_on_items(session, claim, encoding, read)

    with worker.database.session_scope() as session:
        change_state(session, backfill_id, BackfillAction.CANCEL)

    _, new = all_rows(worker, upgrade)
    assert sorted(origins(new)) == [Origin.TRANSFORMED] * 3 + [Origin.BACKFILLED] * 2
    assert backfill_of(client, backfill_id)["outcomes"]["backfilled"] == 2
