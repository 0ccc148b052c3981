"""The files of a training: another machine goes on from them, and they are removed when nothing needs them."""

from dataclasses import replace
from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import Database
from service.queue import celery_application
from service.settings import Settings
from tests.fakes import RecordingQueue
from tests.paired_vectors import paired_columns, parquet
from tests.trainings import begin, files_of_trainings, finish, job_of, one_epoch_a_slice, train
from workers.app import WorkerParts, make_worker_parts
from workers.sweep import sweep
from workers.training import advance_training, scratch_folder


def test_another_machine_goes_on_from_the_blob_store(
    versions: TestClient, worker: WorkerParts, settings: Settings, tmp_path: Path
) -> None:
    hurried = one_epoch_a_slice(worker)
    pairs = parquet(paired_columns())
    job_id = begin(versions, pairs)
    for _ in range(10):
        assert advance_training(hurried, job_id)
    before = job_of(versions, job_id)["progress"]["training_h"]["done"]
    elsewhere = hurried.settings.model_copy(update={"data": tmp_path / "elsewhere", "blob_url": settings.blob_location})
    other = make_worker_parts(elsewhere, celery_application(elsewhere))

    assert advance_training(other, job_id)
    progress = job_of(versions, job_id)["progress"]["training_h"]["done"]
    transformation = finish(versions, worker, job_id)

    assert 0 < before <= progress <= before + 1  # a slice may end inside an epoch
    assert transformation["h_digest"] == train(versions, worker, pairs)["h_digest"]
    other.database.engine.dispose()


def test_a_checkpoint_that_cannot_be_gone_on_from_does_not_start_every_slice_over(
    versions: TestClient, worker: WorkerParts
) -> None:
    hurried = one_epoch_a_slice(worker)
    job_id = begin(versions, parquet(paired_columns()))
    for _ in range(5):
        advance_training(hurried, job_id)
    with worker.database.session_scope() as session:  # as of another release, which had other settings
        session.execute(text("UPDATE jobs SET request = jsonb_set(request, '{options,seed}', '1')"))
    worker.training.forget()

    for _ in range(3):
        advance_training(hurried, job_id)

    assert job_of(versions, job_id)["progress"]["training_h"]["done"] == 3
    assert finish(versions, worker, job_id)["training"]["seed"] == 1


def test_the_sweep_nudges_a_training_and_removes_what_no_training_needs(
    versions: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    job_id = begin(versions, parquet(paired_columns()))
    queue = RecordingQueue()
    kept = files_of_trainings(settings)
    (settings.data / "blobs" / "trainings" / "0123.rows-0-1-1").write_bytes(b"of a request that failed")
    scratch_folder(settings).mkdir(exist_ok=True)
    (scratch_folder(settings) / "0123.h").write_bytes(b"of a training that ended")

    sweep(replace(worker, database=Database(worker.database.engine, queue)))

    assert ("workers.advance_training", (job_id,)) in queue.sent
    assert files_of_trainings(settings) == kept
