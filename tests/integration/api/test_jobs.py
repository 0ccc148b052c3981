"""The events of a job over HTTP."""

import json
from concurrent.futures import ThreadPoolExecutor

from fastapi.testclient import TestClient

from tests.paired_vectors import paired_columns, parquet
from tests.trainings import begin, finish
from workers.app import WorkerParts


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
