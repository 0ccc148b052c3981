"""A training as a job: refused, cancelled, failed."""

from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.paired_vectors import paired_columns, parquet
from tests.scenario import register_version
from tests.trainings import ask, begin, check_refused, files_of_trainings, job_of, one_epoch_a_slice
from workers.app import WorkerParts
from workers.training import advance_training


def test_more_rows_than_memory_allows_are_refused(versions: TestClient, settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"max_training_bytes": 10_000}))) as small:
        answer = ask(small, parquet(paired_columns()))

    check_refused(versions, settings, answer, 413, "a training may take 10000")


def test_a_cancelled_training_registers_nothing_and_leaves_nothing(
    versions: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    worker = one_epoch_a_slice(worker)
    job_id = begin(versions, parquet(paired_columns()))
    for _ in range(3):
        assert advance_training(worker, job_id)
    before = job_of(versions, job_id)

    answers = [versions.post(f"/v1/jobs/{job_id}/cancel") for _ in range(2)]
    goes_on = advance_training(worker, job_id)

    assert before["state"] == "running"
    assert 0 < before["progress"]["training_h"]["done"] <= 3  # a slice may end inside an epoch
    assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [(200, "cancelled")] * 2
    assert not goes_on
    assert job_of(versions, job_id)["finished_at"] is not None
    assert versions.get("/v1/transformations").json()["items"] == []
    assert files_of_trainings(settings) == []


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
