"""Trainings of h and g as workers run them: what is learned from, in slices, killed, and by two at once."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.gallery.generations import get_stored_generation
from service.domain.training.files import TrainingFiles
from service.queue import celery_application
from service.settings import Settings
from tests.networks import encoder_bytes
from tests.paired_vectors import paired_columns, parquet
from tests.registrations import post_version
from tests.rows import rows_of
from tests.scenario import (
    create_gallery,
    import_vectors,
    register_transformation,
    register_version,
    start_upgrade,
)
from tests.served import wait_for
from tests.trainings import (
    QUICK,
    begin,
    files_of_trainings,
    finish,
    job_of,
    one_epoch_a_slice,
    train,
    write_images,
)
from tests.working import run_until, with_settings
from workers.app import WorkerParts, make_worker_parts
from workers.training import advance_training, scratch_folder


def test_h_and_g_learned_from_uploaded_pairs_are_measured_and_can_upgrade_a_gallery(
    versions: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    pairs = parquet(paired_columns())
    job_id = begin(versions, pairs, with_g=True, options={**QUICK, "recipe": "paper"})
    queued = job_of(versions, job_id)

    transformation = finish(versions, worker, job_id)

    assert (queued["kind"], queued["state"]) == ("transformation_training", "queued")
    progress = job_of(versions, job_id)["progress"]
    assert {name: (phase["done"], phase["total"]) for name, phase in progress.items()} == {
        "training_h": (40, 40),
        "training_g": (40, 40),
        "evaluating": (1, 1),
    }
    losses = progress["training_h"]["losses"]
    assert len(losses) == 40
    assert losses[-1] < 0.5 * losses[0]
    page = versions.get(f"/console/jobs/{job_id}").text
    assert page.count('<polyline class="curve"') == 2
    assert "Training h: the mean loss of each epoch" in page
    training, metrics = transformation["training"], transformation["metrics"]
    assert (training["rows"], training["held_out_rows"], training["seed"]) == (270, 30, 0)
    assert training["options"]["inner_dim"] == 16
    assert len(training["dataset_sha256"]) == 64
    for network in ("h", "g"):
        assert metrics[network]["mean_squared_error"] < 0.5 * metrics[network]["mean_predictor_error"]
        assert metrics[network]["mean_cosine"] > 0.8
    assert set(metrics["retrieval"]) == {"old_old", "new_h", "new_new", "gap_closed"}
    assert files_of_trainings(settings) == []

    create_gallery(versions)
    import_vectors(versions, ["a", "b"])
    run_until(worker, versions, start_upgrade(versions, "v2", cutover="auto"), "live")


def test_by_default_h_errs_less_than_by_the_papers_recipe_and_keeps_items_apart(
    versions: TestClient, worker: WorkerParts
) -> None:
    pairs = parquet(paired_columns(1_000))

    paper, default = (
        train(versions, worker, pairs, with_g=True, options={**QUICK, "recipe": recipe})
        for recipe in ("paper", "default")
    )

    h, g = (default["architecture"][name]["config"] for name in ("h", "g"))
    choices = default["training"]["choices"]
    assert paper["training"]["choices"]["h"] == {"members": 1, "inner_dim": 16}
    assert (h["members"], h["linear"], h["classes"], choices["h"]["members"]) == (2, True, None, 2)
    assert (g["members"], g["linear"], choices["g"]["linear_share"]) == (None, True, 1.0)  # ψ follows linearly
    errors = [found["metrics"]["h"]["mean_squared_error"] for found in (paper, default)]
    assert errors[1] < errors[0]
    assert default["metrics"]["h"]["own_item_first"] >= paper["metrics"]["h"]["own_item_first"]
    assert default["metrics"]["linear"]["mean_squared_error"] < default["metrics"]["linear"]["mean_predictor_error"]


def test_an_inner_dimension_may_be_chosen_by_the_training(versions: TestClient, worker: WorkerParts) -> None:
    transformation = train(versions, worker, parquet(paired_columns()), options={"epochs": 1, "inner_dim": "auto"})

    training, h = transformation["training"], transformation["architecture"]["h"]["config"]
    assert training["options"]["inner_dim"] == "auto"
    assert training["choices"]["h"]["inner_dim"] == h["inner_dim"] == 1024  # 270 rows cannot tell widths apart


def test_rows_without_labels_or_side_information_are_learned_from(versions: TestClient, worker: WorkerParts) -> None:
    columns = paired_columns()

    transformation = train(versions, worker, parquet({n: columns[n] for n in ("embedding_from", "embedding_to")}))

    assert transformation["metrics"]["retrieval"] is None
    assert transformation["g_digest"] is None
    assert transformation["architecture"]["h"]["config"]["side_information_dim"] is None


def test_the_embeddings_of_versions_that_normalise_are_normalised(client: TestClient, worker: WorkerParts) -> None:
    for version in ("v1", "v2"):
        register_version(client, version, normalize=True)
    columns = paired_columns()
    del columns["label"]
    scaled = columns | {name: columns[name] * 7 for name in ("embedding_from", "embedding_to")}

    transformation = train(client, worker, parquet(columns))

    error = train(client, worker, parquet(scaled))["metrics"]["h"]["mean_squared_error"]
    assert error == pytest.approx(transformation["metrics"]["h"]["mean_squared_error"], rel=1e-2)


def test_images_in_class_folders_or_in_parquet_are_encoded_by_both_versions(
    versions: TestClient, worker: WorkerParts, datasets: Path
) -> None:
    worker = with_settings(worker, encode_batch_items=32, task_slice_seconds=0.0)  # every step in a slice of its own
    images = write_images(datasets / "photos")
    columns = {"label": [label for label, _ in images], "image": [{"bytes": data, "path": "x"} for _, data in images]}
    pq.write_table(pa.table(columns), datasets / "photos.parquet", row_group_size=50)

    trained = [
        train(versions, worker, dataset=name, with_g=True, options=QUICK | {"epochs": 3})
        for name in ("photos", "photos.parquet")
    ]

    assert trained[0]["h_digest"] == trained[1]["h_digest"]
    assert trained[0]["g_digest"] == trained[1]["g_digest"]
    for training in (transformation["training"] for transformation in trained):
        assert (training["rows"], training["held_out_rows"], training["images_skipped"]) == (108, 11, 1)
        assert training["dataset_sha256"] == trained[0]["training"]["dataset_sha256"]
    assert trained[0]["metrics"]["retrieval"]["new_new"]["cmc_at_1"] >= 0


@pytest.fixture
def chained(versions: TestClient, datasets: Path) -> TestClient:
    """A client with images to train from and a transformation of v1 to v2, so that a training from v2 is chained."""
    write_images(datasets / "photos")
    register_transformation(versions, "v1", "v2")
    return versions


FROM_V2: dict[str, Any] = {
    "from_version": "v2",
    "to_version": "v3",
    "dataset": "photos",
    "options": QUICK | {"epochs": 3},
}


def test_images_are_learned_from_by_what_an_earlier_upgrade_made_of_them_too(
    chained: TestClient, worker: WorkerParts
) -> None:
    job_id = begin(chained, **FROM_V2)

    transformation = finish(chained, worker, job_id)

    result = job_of(chained, job_id)["result"]
    assert result == {"transformation": transformation["id"], "chained_transformations": [1]}
    training, metrics = transformation["training"], transformation["metrics"]
    assert (training["rows"], training["held_out_rows"]) == (108, 11)
    assert training["chained_transformations"] == [1]
    (found,) = metrics["chained"]
    assert found["transformation"] == 1
    assert set(found["h"]) == set(metrics["h"])
    assert found["h"] != metrics["h"]
    plain = train(chained, worker, **FROM_V2 | {"options": {**QUICK, "epochs": 3, "chained": False}})
    assert plain["h_digest"] != transformation["h_digest"]
    assert (plain["training"]["chained_transformations"], plain["metrics"]["chained"]) == ([], [])


def test_what_is_learned_from_a_chain_is_what_an_upgrade_makes_of_the_same_images(
    chained: TestClient, worker: WorkerParts, datasets: Path
) -> None:
    create_gallery(chained, dtype="float32")
    files = sorted(path for path in (datasets / "photos").rglob("*.png") if path.read_bytes() != b"no image")
    items = json.dumps([{"id": f"{path.parent.name}/{path.name}"} for path in files])
    parts = [("files", (path.name, path.read_bytes(), "image/png")) for path in files]
    assert chained.post("/v1/galleries/g/images", files=parts, data={"items": items}).status_code == 200
    run_until(worker, chained, start_upgrade(chained, "v2", cutover="auto"), "live")
    with worker.database.session_scope() as session:
        upgraded = rows_of(session, get_stored_generation(session, 1, 2))

    job_id = begin(chained, **FROM_V2)
    advance_training(one_epoch_a_slice(worker), job_id)
    stored = TrainingFiles(worker.blobs, prefix_of(worker, job_id))
    (rows,) = stored.read_rows(stored.row_ranges())

    assert rows.chained_embedding_from is not None
    assert rows.chained_side_information_from is not None
    assert upgraded.side_information is not None
    np.testing.assert_allclose(rows.chained_embedding_from[0], upgraded.embedding, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(rows.chained_side_information_from[0], upgraded.side_information, atol=1e-4, rtol=1e-4)


def test_a_chained_training_in_slices_with_another_worker_after_each_ends_with_the_same_h_and_g(
    chained: TestClient, worker: WorkerParts
) -> None:
    wanted: dict[str, Any] = {**FROM_V2, "to_version": "v4", "with_g": True}
    post_version(chained, "v4", encoder_bytes(6, seed=4), encoder_bytes(5, seed=104), side_information_dim=5)

    hurried = with_settings(worker, encode_batch_items=32, task_slice_seconds=0.0)
    job_id = begin(chained, **wanted)
    while advance_training(hurried, job_id):
        hurried.training.forget()
    progress = job_of(chained, job_id)["progress"]
    in_slices = chained.get(f"/v1/transformations/{job_of(chained, job_id)['result']['transformation']}").json()
    at_once = train(chained, with_settings(worker, encode_batch_items=32), **wanted)

    assert len(progress["training_h"]["losses"]) == progress["training_h"]["done"]
    assert in_slices["metrics"] == at_once["metrics"]
    assert set(in_slices["metrics"]["chained"][0]) == {"transformation", "h", "g"}
    assert [in_slices[name] for name in ("h_digest", "g_digest")] == [at_once[n] for n in ("h_digest", "g_digest")]


def test_pairs_in_a_dataset_train_the_same_h_as_uploaded_ones(
    versions: TestClient, worker: WorkerParts, datasets: Path
) -> None:
    columns = paired_columns()
    (datasets / "whole.parquet").write_bytes(parquet(columns))
    (datasets / "parts").mkdir()
    for name, part in (("1", slice(0, 120)), ("2", slice(120, None))):
        (datasets / "parts" / f"{name}.parquet").write_bytes(parquet({n: v[part] for n, v in columns.items()}))

    uploaded = train(versions, worker, parquet(columns))
    whole = train(versions, worker, dataset="whole.parquet")
    parts = train(versions, worker, dataset=str(datasets / "parts"))

    assert uploaded["h_digest"] == whole["h_digest"] == parts["h_digest"]
    assert uploaded["training"]["dataset_sha256"] == whole["training"]["dataset_sha256"]


def test_a_cancel_in_the_middle_of_a_slice_ends_it(
    versions: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    worker = with_settings(worker, task_slice_seconds=60.0)
    job_id = begin(versions, parquet(paired_columns()), options=QUICK | {"epochs": 10_000})

    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(advance_training, worker, job_id)
        wait_for(lambda: job_of(versions, job_id)["progress"]["training_h"]["done"] > 0)
        cancelled = versions.post(f"/v1/jobs/{job_id}/cancel")

        assert cancelled.status_code == 200
        assert working.result(20) is False
    assert job_of(versions, job_id)["state"] == "cancelled"
    assert files_of_trainings(settings) == []


WORK = """
import sys
from workers.app import worker_parts
from workers.training import advance_training
while advance_training(worker_parts(), int(sys.argv[1])):
    pass
"""


def test_a_killed_worker_costs_its_slice_and_another_one_ends_with_the_same_h(
    versions: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    options = {**QUICK, "epochs": 150}
    pairs = parquet(paired_columns())
    job_id = begin(versions, pairs, with_g=True, options=options)
    environment = {**os.environ, **settings.environment(), "GALLERY_TASK_SLICE_SECONDS": "0"}

    process = subprocess.Popen([sys.executable, "-c", WORK, str(job_id)], env=environment)
    wait_for(lambda: job_of(versions, job_id)["progress"]["training_h"]["done"] >= 5)
    process.kill()
    process.wait()
    stored = TrainingFiles(worker.blobs, prefix_of(worker, job_id)).newest_checkpoint("h")
    interrupted = finish(versions, worker, job_id)

    assert 4 <= stored.epochs < 150
    uninterrupted = train(versions, worker, pairs, with_g=True, options=options)
    assert interrupted["h_digest"] == uninterrupted["h_digest"]
    assert interrupted["g_digest"] == uninterrupted["g_digest"]
    assert interrupted["metrics"] == uninterrupted["metrics"]


def test_what_h_learned_is_kept_while_g_is_trained(
    versions: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    hurried = one_epoch_a_slice(worker)
    job_id = begin(versions, parquet(paired_columns()), with_g=True, options=QUICK | {"epochs": 4})
    while job_of(versions, job_id)["progress"].get("training_g", {"done": 0})["done"] < 1:
        assert advance_training(hurried, job_id)
    scratch = scratch_folder(settings) / f"{prefix_of(worker, job_id)}.h"
    scratch.unlink()

    advance_training(hurried, job_id)

    assert job_of(versions, job_id)["progress"]["training_g"]["done"] == 2
    assert not scratch.exists()  # it was not read again, to choose a linear map again


def prefix_of(worker: WorkerParts, job_id: int) -> str:
    with worker.database.session_scope() as session:
        prefix: str = session.execute(text("SELECT file_prefix FROM jobs WHERE id = :id"), {"id": job_id}).scalar_one()
        return prefix


def test_two_workers_at_once_train_once(versions: TestClient, worker: WorkerParts, settings: Settings) -> None:
    pairs = parquet(paired_columns())
    job_id = begin(versions, pairs)
    other = make_worker_parts(settings, celery_application(settings))
    both = (one_epoch_a_slice(worker), one_epoch_a_slice(other))

    def work(parts: WorkerParts) -> None:
        while job_of(versions, job_id)["state"] in ("queued", "running"):
            advance_training(parts, job_id)

    with ThreadPoolExecutor(2) as threads:
        for working in [threads.submit(work, parts) for parts in both]:
            working.result(60)

    job = job_of(versions, job_id)
    assert (job["state"], job["error"]) == ("succeeded", None)
    assert len(versions.get("/v1/transformations").json()["items"]) == 1
    alone = train(versions, worker, pairs)
    trained = versions.get(f"/v1/transformations/{job['result']['transformation']}").json()
    assert trained["h_digest"] == alone["h_digest"]
    other.database.engine.dispose()
