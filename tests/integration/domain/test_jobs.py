"""Which jobs can be cancelled."""

from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import Database
from tests.paired_vectors import paired_columns, parquet
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
