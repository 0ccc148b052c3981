"""What moves a job: which can be cancelled, and that nothing moves one which has ended."""

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import Database
from service.domain.job_state import JobAction, JobState
from service.domain.jobs import INDEX_BUILD, change_jobs, end_jobs_left_running, start_job, succeed_job
from service.tables import Job
from tests.paired_vectors import paired_columns, parquet
from tests.scenario import create_upgradable_gallery
from tests.trainings import begin, finish
from workers.app import WorkerParts


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


def test_a_job_that_was_ended_as_cut_off_does_not_succeed_afterwards(client: TestClient, database: Database) -> None:
    create_upgradable_gallery(client)
    with database.session_scope() as session:
        job_id = start_job(session, INDEX_BUILD, gallery_id=1, generation_id=1, upgrade_id=None)
    with database.session_scope() as session:
        end_jobs_left_running(session, generation_id=1)

    with database.session_scope() as session:
        succeeded = succeed_job(session, job_id, {"rows": 1})

    with database.session_scope() as session:
        job = session.get_one(Job, job_id)
    assert not succeeded
    assert (job.state, job.result) == (JobState.FAILED, None)
    assert job.error is not None
    assert job.error.startswith("It was cut off")


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
@pytest.mark.parametrize("action", list(JobAction))
def test_no_action_moves_the_row_of_a_job_that_has_ended(
    database: Database, state: JobState, action: JobAction
) -> None:
    with database.session_scope() as session:
        job = Job(kind=INDEX_BUILD, state=state)
        session.add(job)

    with database.session_scope() as session:
        moved = change_jobs(session, Job.id == job.id, action)

    with database.session_scope() as session:
        assert (moved, session.get_one(Job, job.id).state) == (False, state)
