"""Trainings of h and g: from uploaded pairs and from data sets, refused, cancelled, killed, and run by two workers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import Database
from service.domain.training.files import TrainingFiles
from service.queue import celery_application
from service.settings import Settings
from tests.networks import image_bytes
from tests.scenario import create_gallery, import_vectors, register_version, start_upgrade
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts, make_worker_parts
from workers.sweep import sweep
from workers.training import advance_training, scratch_folder

ROWS = 300
QUICK = {"epochs": 40, "inner_dim": 16, "batch": 64, "learning_rate": 5e-3}


def paired_columns(rows: int = ROWS) -> dict[str, Any]:
    """Return columns of rows in three classes, in which the new features follow from the old ones."""
    generator = np.random.default_rng(0)
    label = np.arange(rows) % 3
    embedding = generator.standard_normal((3, 6))[label] + 0.5 * generator.standard_normal((rows, 6))
    side = generator.standard_normal((rows, 5))
    both = np.concatenate([embedding, side], axis=1)
    columns: dict[str, Any] = {
        "embedding_from": embedding,
        "side_information_from": side,
        "embedding_to": np.maximum(both @ generator.standard_normal((11, 8)), 0),
        "side_information_to": both @ generator.standard_normal((11, 4)),
    }
    return {name: values.astype(np.float32) for name, values in columns.items()} | {"label": [f"c{n}" for n in label]}


def parquet(columns: dict[str, Any]) -> bytes:
    stream = BytesIO()
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), stream, row_group_size=70)
    return stream.getvalue()


def ask(client: httpx.Client, pairs: bytes | None = None, *, key: str | None = None, **fields: Any) -> httpx.Response:
    wanted = {"from_version": "v1", "to_version": "v2", "options": QUICK, **fields}
    headers = {} if key is None else {"Idempotency-Key": key}
    if pairs is None:
        return client.post("/v1/transformations/train", content=json.dumps(wanted), headers=headers)
    data = {name: value if isinstance(value, str) else json.dumps(value) for name, value in wanted.items()}
    return client.post("/v1/transformations/train", data=data, files={"pairs": ("pairs", pairs)}, headers=headers)


def begin(client: httpx.Client, pairs: bytes | None = None, **fields: Any) -> int:
    answer = ask(client, pairs, **fields)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    job_id: int = answer.json()["id"]
    return job_id


def job_of(client: httpx.Client, job_id: int) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return body


def finish(client: httpx.Client, worker: WorkerParts, job_id: int) -> dict[str, Any]:
    """Let the worker work until the training has succeeded; return the transformation."""
    while advance_training(worker, job_id):
        pass
    job = job_of(client, job_id)
    assert job["state"] == "succeeded", job
    transformation: dict[str, Any] = client.get(f"/v1/transformations/{job['result']['transformation']}").json()
    return transformation


def train(client: httpx.Client, worker: WorkerParts, pairs: bytes | None = None, **fields: Any) -> dict[str, Any]:
    return finish(client, worker, begin(client, pairs, **fields))


def files_of_trainings(settings: Settings) -> list[str]:
    folders = (settings.data / "blobs" / "trainings", scratch_folder(settings))
    return [path.name for folder in folders if folder.exists() for path in folder.iterdir()]


@pytest.fixture
def versions(client: TestClient) -> TestClient:
    for version in ("v1", "v2", "v3"):
        register_version(client, version)
    return client


@pytest.fixture
def datasets(settings: Settings, tmp_path: Path) -> Path:
    """The operator's folder for data sets; the service and the worker are told."""
    settings.datasets = tmp_path / "datasets"
    settings.datasets.mkdir()
    return settings.datasets


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


def test_by_default_h_learns_from_labels_and_retrieval_is_better(versions: TestClient, worker: WorkerParts) -> None:
    pairs = parquet(paired_columns(1_000))

    paper, default = (
        train(versions, worker, pairs, with_g=True, options={**QUICK, "recipe": recipe})
        for recipe in ("paper", "default")
    )

    assert default["architecture"]["h"]["config"]["classes"] == 3
    assert default["architecture"]["g"]["config"]["classes"] is None
    assert paper["architecture"]["h"]["config"]["classes"] is None
    assert default["metrics"]["retrieval"]["new_h"]["map"] > paper["metrics"]["retrieval"]["new_h"]["map"]


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


def write_images(folder: Path) -> list[tuple[str, bytes]]:
    """Write 120 images in four class folders, and one that cannot be read; return (label, bytes) in their order."""
    images = []
    for label in "abcd":
        (folder / label).mkdir(parents=True)
        for number in range(30):
            data = image_bytes(100 * ord(label) + number) if (label, number) != ("b", 7) else b"no image"
            (folder / label / f"{number:02}.png").write_bytes(data)
            images.append((label, data))
    return images


def test_images_in_class_folders_or_in_parquet_are_encoded_by_both_versions(
    versions: TestClient, worker: WorkerParts, datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.settings, "encode_batch_items", 32)
    monkeypatch.setattr(worker.settings, "task_slice_seconds", 0.0)  # every step in a slice of its own
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


def changed(**columns: Any) -> bytes:
    """Return pairs with some columns replaced, or left away where they are None."""
    return parquet({name: values for name, values in (paired_columns() | columns).items() if values is not None})


def with_value(name: str, value: float) -> bytes:
    values = paired_columns()[name]
    values[-1, -1] = value
    return changed(**{name: values})


BAD_PAIRS: dict[str, tuple[int, bytes, str]] = {
    "not Parquet": (415, b"not Parquet at all", "readable Parquet"),
    "cut off": (415, parquet(paired_columns())[:-40], "readable Parquet"),
    "too few": (422, parquet({name: values[:99] for name, values in paired_columns().items()}), "at least 100 rows"),
    "NaN": (422, with_value("embedding_to", np.nan), "not finite"),
    "infinite side-information": (422, with_value("side_information_from", np.inf), "not finite"),
    "too short": (422, changed(embedding_from=paired_columns()["embedding_from"][:, :5]), "5 numbers"),
    "too long": (422, changed(embedding_to=np.zeros((ROWS, 9), np.float32)), "longer than the 8 numbers"),
    "no target": (422, changed(embedding_to=None), "'embedding_to' is missing"),
    "nothing for g": (422, changed(side_information_to=None), "g learns from it"),
    "unknown column": (422, changed(extra=[1] * ROWS), "Columns are"),
    "some labels": (422, changed(label=["a", None] * (ROWS // 2)), "nulls"),
    "labels of lists": (422, changed(label=[["a"]] * ROWS), "strings or whole numbers"),
    "numbers for vectors": (422, changed(embedding_from=[1.0] * ROWS), "lists of numbers"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs_are_refused_with_a_sentence_and_nothing_is_stored(
    versions: TestClient, settings: Settings, name: str
) -> None:
    status, pairs, sentence = BAD_PAIRS[name]

    answer = ask(versions, pairs, with_g=True)

    check_refused(versions, settings, answer, status, sentence)


BAD_REQUESTS: dict[str, tuple[int, dict[str, Any], str]] = {
    "unknown version": (404, {"to_version": "v9"}, "no model version named 'v9'"),
    "same version": (422, {"to_version": "v1"}, "from one model version to another"),
    "no side-information to learn": (422, {"to_version": "v3", "with_g": True}, "no g to it"),
    "data set and pairs": (422, {"dataset": "x"}, "give one of them"),
    "unknown recipe": (422, {"options": {"recipe": "magic"}}, "options.recipe"),
    "no epochs": (422, {"options": {"epochs": 0}}, "options.epochs"),
    "unknown option": (422, {"options": {"epoch": 1}}, "options.epoch"),
    "unknown field": (422, {"form_version": "v1"}, "form_version"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_refused_with_a_sentence(versions: TestClient, settings: Settings, name: str) -> None:
    status, fields, sentence = BAD_REQUESTS[name]

    answer = ask(versions, parquet(paired_columns()), **fields)

    check_refused(versions, settings, answer, status, sentence)


def test_what_is_neither_a_form_nor_json_is_refused(versions: TestClient, settings: Settings) -> None:
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"[]"):
        answer = versions.post("/v1/transformations/train", content=body)

        check_refused(versions, settings, answer, 422, "")


def test_more_rows_than_memory_allows_are_refused(
    versions: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "max_training_bytes", 10_000)

    answer = ask(versions, parquet(paired_columns()))

    check_refused(versions, settings, answer, 413, "a training may take 10000")


def check_refused(client: TestClient, settings: Settings, answer: httpx.Response, status: int, sentence: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert sentence in answer.json()["detail"]
    assert client.get("/v1/jobs").json()["items"] == []
    assert files_of_trainings(settings) == []


def link_folder(root: Path) -> None:
    write_images(root.parent / "elsewhere")
    (root / "bad").symlink_to(root.parent / "elsewhere")


def link_class(root: Path) -> None:
    write_images(root.parent / "elsewhere")
    (root / "bad").mkdir()
    (root / "bad" / "a").symlink_to(root.parent / "elsewhere" / "a")


def link_image(root: Path) -> None:
    write_images(root / "bad")
    (root.parent / "secret.png").write_bytes(image_bytes(1))
    (root / "bad" / "a" / "secret.png").symlink_to(root.parent / "secret.png")


def link_parquet(root: Path) -> None:
    (root.parent / "secret.parquet").write_bytes(parquet(paired_columns()))
    (root / "bad").mkdir()
    (root / "bad" / "x.parquet").symlink_to(root.parent / "secret.parquet")


def few_images(root: Path) -> None:
    (root / "bad" / "a").mkdir(parents=True)
    (root / "bad" / "a" / "1.png").write_bytes(image_bytes(1))


def other_parquet(root: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), root / "bad")


def no_parquet(root: Path) -> None:
    (root / "bad").write_bytes(b"x")


def nothing(root: Path) -> None:
    (root.parent / "pairs.parquet").write_bytes(parquet(paired_columns()))


BAD_DATASETS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "not there": (nothing, "bad", "no data set 'bad'"),
    "above the folder": (nothing, "../pairs.parquet", "no data set"),
    "somewhere else": (nothing, "/etc", "no data set"),
    "a web address": (nothing, "https://example.com/pairs.parquet", "no data set"),
    "NUL in the name": (nothing, "a\0b", "no data set"),
    "a name too long": (nothing, "x" * 900, "no data set"),
    "half a character": (nothing, "\ud800", "body.dataset"),
    "empty": (nothing, ".", "neither Parquet files nor class folders"),
    "a link out": (link_folder, "bad", "no data set"),
    "a class that is a link out": (link_class, "bad", "leads out"),
    "an image that is a link out": (link_image, "bad", "leads out"),
    "a Parquet file that is a link out": (link_parquet, "bad", "leads out"),
    "too few images": (few_images, "bad", "at least 100 images; there are 1"),
    "other columns": (other_parquet, "bad", "neither columns image and label nor"),
    "not Parquet": (no_parquet, "bad", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_bad_datasets_are_refused_with_a_sentence(
    versions: TestClient, settings: Settings, datasets: Path, name: str
) -> None:
    prepare, dataset, sentence = BAD_DATASETS[name]
    prepare(datasets)

    answer = ask(versions, dataset=dataset)

    check_refused(versions, settings, answer, 422, sentence)


def test_without_a_folder_from_the_operator_every_dataset_is_refused(
    versions: TestClient, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "pairs.parquet").write_bytes(parquet(paired_columns()))

    answer = ask(versions, dataset=str(tmp_path / "pairs.parquet"))

    check_refused(versions, settings, answer, 422, "has not set GALLERY_DATASETS")


def test_images_that_changed_meanwhile_fail_the_training(
    versions: TestClient, worker: WorkerParts, datasets: Path, settings: Settings
) -> None:
    write_images(datasets / "photos")
    job_id = begin(versions, dataset="photos")
    (datasets / "photos" / "a" / "00.png").unlink()

    assert not advance_training(worker, job_id)

    job = job_of(versions, job_id)
    assert (job["state"], job["result"]) == ("failed", None)
    assert "changed since" in job["error"]
    assert files_of_trainings(settings) == []


def one_epoch_a_slice(worker: WorkerParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.settings, "task_slice_seconds", 0.0)


def test_a_cancelled_training_registers_nothing_and_leaves_nothing(
    versions: TestClient, worker: WorkerParts, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_epoch_a_slice(worker, monkeypatch)
    job_id = begin(versions, parquet(paired_columns()))
    for _ in range(3):
        assert advance_training(worker, job_id)
    before = job_of(versions, job_id)

    answers = [versions.post(f"/v1/jobs/{job_id}/cancel") for _ in range(2)]
    goes_on = advance_training(worker, job_id)

    assert (before["state"], before["progress"]["training_h"]["done"]) == ("running", 3)
    assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [(200, "cancelled")] * 2
    assert not goes_on
    assert job_of(versions, job_id)["finished_at"] is not None
    assert versions.get("/v1/transformations").json()["items"] == []
    assert files_of_trainings(settings) == []


def test_a_cancel_in_the_middle_of_a_slice_ends_it(
    versions: TestClient, worker: WorkerParts, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.settings, "task_slice_seconds", 60.0)
    job_id = begin(versions, parquet(paired_columns()), options=QUICK | {"epochs": 10_000})

    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(advance_training, worker, job_id)
        wait_for(lambda: job_of(versions, job_id)["progress"]["training_h"]["done"] > 0)
        cancelled = versions.post(f"/v1/jobs/{job_id}/cancel")

        assert cancelled.status_code == 200
        assert working.result(20) is False
    assert job_of(versions, job_id)["state"] == "cancelled"
    assert files_of_trainings(settings) == []


def test_a_job_that_has_ended_or_is_part_of_an_upgrade_cannot_be_cancelled(
    versions: TestClient, worker: WorkerParts, database: Database
) -> None:
    job_id = begin(versions, parquet(paired_columns()))
    finish(versions, worker, job_id)
    with database.engine.begin() as connection:
        statement = "INSERT INTO jobs (kind, state) VALUES ('index_build', 'running') RETURNING id"
        other_id = connection.scalar(text(statement))

    for id_, status in ((job_id, 409), (other_id, 409), (10**6, 404)):
        answer = versions.post(f"/v1/jobs/{id_}/cancel")

        assert answer.status_code == status, answer.text
    assert len(versions.get("/v1/transformations").json()["items"]) == 1


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

    assert 4 <= stored < 150
    uninterrupted = train(versions, worker, pairs, with_g=True, options=options)
    assert interrupted["h_digest"] == uninterrupted["h_digest"]
    assert interrupted["g_digest"] == uninterrupted["g_digest"]
    assert interrupted["metrics"] == uninterrupted["metrics"]


def prefix_of(worker: WorkerParts, job_id: int) -> str:
    with worker.database.session_scope() as session:
        prefix: str = session.execute(text("SELECT file_prefix FROM jobs WHERE id = :id"), {"id": job_id}).scalar_one()
        return prefix


def test_another_machine_goes_on_from_the_blob_store(
    versions: TestClient, worker: WorkerParts, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_epoch_a_slice(worker, monkeypatch)
    pairs = parquet(paired_columns())
    job_id = begin(versions, pairs)
    for _ in range(10):
        assert advance_training(worker, job_id)
    elsewhere = settings.model_copy(update={"data": tmp_path / "elsewhere", "blob_url": settings.blob_location})
    other = make_worker_parts(elsewhere, celery_application(elsewhere))

    assert advance_training(other, job_id)
    progress = job_of(versions, job_id)["progress"]["training_h"]["done"]
    monkeypatch.undo()
    transformation = finish(versions, worker, job_id)

    assert progress == 11
    assert transformation["h_digest"] == train(versions, worker, pairs)["h_digest"]
    other.database.engine.dispose()


def test_two_workers_at_once_train_once(
    versions: TestClient, worker: WorkerParts, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_epoch_a_slice(worker, monkeypatch)
    pairs = parquet(paired_columns())
    job_id = begin(versions, pairs)
    other = make_worker_parts(settings, celery_application(settings))

    def work(parts: WorkerParts) -> None:
        while job_of(versions, job_id)["state"] in ("queued", "running"):
            advance_training(parts, job_id)

    with ThreadPoolExecutor(2) as threads:
        for working in [threads.submit(work, parts) for parts in (worker, other)]:
            working.result(60)

    job = job_of(versions, job_id)
    assert (job["state"], job["error"]) == ("succeeded", None)
    assert len(versions.get("/v1/transformations").json()["items"]) == 1
    monkeypatch.undo()
    alone = train(versions, worker, pairs)
    trained = versions.get(f"/v1/transformations/{job['result']['transformation']}").json()
    assert trained["h_digest"] == alone["h_digest"]
    other.database.engine.dispose()


def test_a_training_that_never_gets_on_fails_with_its_last_error(
    versions: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    job_id = begin(versions, parquet(paired_columns()))
    for path in (settings.data / "blobs" / "trainings").iterdir():
        path.write_bytes(b"damaged")

    for _ in range(settings.max_batch_attempts):
        assert not advance_training(worker, job_id)
        assert job_of(versions, job_id)["state"] == "running"
    assert not advance_training(worker, job_id)

    job = job_of(versions, job_id)
    assert job["state"] == "failed"
    assert "5 times" in job["error"]
    assert "SafetensorError" in job["error"]


def test_a_version_deleted_meanwhile_fails_the_training(versions: TestClient, worker: WorkerParts) -> None:
    job_id = begin(versions, parquet(paired_columns()))
    assert versions.delete("/v1/model-versions/v2").status_code == 204
    register_version(versions, "v2")

    assert not advance_training(worker, job_id)

    assert "was deleted" in job_of(versions, job_id)["error"]
    assert versions.get("/v1/transformations").json()["items"] == []


def test_the_same_request_again_is_the_same_training(versions: TestClient) -> None:
    pairs = parquet(paired_columns())

    answers = [ask(versions, pairs, key="k"), ask(versions, pairs, key="k"), ask(versions, pairs, key="k", with_g=True)]

    assert [answer.status_code for answer in answers] == [202, 202, 422]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[1].headers["location"] == answers[0].headers["location"]
    assert len(versions.get("/v1/jobs").json()["items"]) == 1


def test_the_sweep_nudges_a_training_and_removes_what_no_training_needs(
    versions: TestClient, worker: WorkerParts, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = begin(versions, parquet(paired_columns()))
    sent: list[tuple[str, tuple[int, ...]]] = []
    monkeypatch.setattr(worker.database.queue, "send", lambda name, *arguments: sent.append((name, arguments)))
    kept = files_of_trainings(settings)
    (settings.data / "blobs" / "trainings" / "0123.rows-0-1-1").write_bytes(b"of a request that failed")
    scratch_folder(settings).mkdir(exist_ok=True)
    (scratch_folder(settings) / "0123.h").write_bytes(b"of a training that ended")

    sweep(worker)

    assert ("workers.advance_training", (job_id,)) in sent
    assert files_of_trainings(settings) == kept


def test_the_events_of_a_job_show_its_state_and_progress_until_it_ends(
    versions: TestClient, worker: WorkerParts
) -> None:
    job_id = begin(versions, parquet(paired_columns()))
    with ThreadPoolExecutor(1) as thread, versions.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        working = thread.submit(finish, versions, worker, job_id)
        lines = [line for line in stream.iter_lines() if line.startswith(("event:", "data:"))]
        working.result(30)

    events = list(zip(lines[::2], lines[1::2], strict=True))
    states = [json.loads(data[5:])["state"] for event, data in events if event == "event: state"]
    last = [json.loads(data[5:]) for event, data in events if event == "event: progress"][-1]
    assert states[-1] == "succeeded"
    assert last["training_h"]["done"] == 40
    assert versions.get("/v1/jobs/999/events").status_code == 404
