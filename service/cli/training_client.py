"""A client of `POST /v1/transformations/train`, for the command line."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.domain.job_state import UNFINISHED, JobState

_PATH = "/v1/transformations/train"
_PHASES = ("encoding", "training_h", "training_g", "evaluating")
_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 120.0
_REQUEST_SECONDS = 600.0


class TrainingFailed(Exception):
    """The service refused or failed, or does not answer; the message is for whoever typed the command."""


def ask_for_training(server: str, wanted: dict[str, Any], pairs: Path | None) -> int:
    """Post the request, with the file of paired vectors if there is one, and return the job's id."""
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    with httpx.Client(base_url=server, timeout=_REQUEST_SECONDS) as client:
        try:
            if pairs is None:
                answer = client.post(_PATH, json=wanted, headers=headers)
            else:
                fields = {
                    name: value if isinstance(value, str) else json.dumps(value) for name, value in wanted.items()
                }
                with pairs.open("rb") as stream:
                    files = {"pairs": (pairs.name, stream)}
                    answer = client.post(_PATH, data=fields, files=files, headers=headers)
        except httpx.HTTPError as error:
            raise TrainingFailed(f"{server} does not answer: {error}") from error

    job_id: int = _body(answer)["id"]
    return job_id


def follow_training(server: str, job_id: int) -> dict[str, Any]:
    """Show the job's progress until it has ended, and return the transformation. Outages of a minute or two pass."""
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with httpx.Client(base_url=server, timeout=30) as client, Progress(*columns, console=Console(stderr=True)) as bars:
        job = _get(client, f"/v1/jobs/{job_id}")
        shown = {name: bars.add_task(name.replace("_", " ")) for name in _PHASES if name in job["progress"]}
        while True:
            for name, bar in shown.items():
                phase = job["progress"][name]
                bars.update(bar, completed=phase["done"], total=phase["total"] or None)
            if job["state"] == JobState.SUCCEEDED:
                return _get(client, f"/v1/transformations/{job['result']['transformation']}")
            if job["state"] not in UNFINISHED:
                raise TrainingFailed(f"Job {job_id} is {job['state']}. {job['error'] or ''}".rstrip())
            time.sleep(_LOOK_SECONDS)
            job = _get(client, f"/v1/jobs/{job_id}")


def _get(client: httpx.Client, path: str) -> dict[str, Any]:
    ends = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            answer = client.get(path)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > ends:
                return _body(answer)
        except httpx.TransportError as error:
            if time.monotonic() > ends:
                raise TrainingFailed(f"{client.base_url} does not answer: {error}") from error
        time.sleep(_LOOK_SECONDS)


def _body(answer: httpx.Response) -> dict[str, Any]:
    """Return the answer's body, or raise with the sentence of its problem document."""
    try:
        body: dict[str, Any] = answer.json()
    except ValueError as error:
        raise TrainingFailed(f"{answer.url} is not this service: {answer.status_code}.") from error
    if answer.is_error:
        raise TrainingFailed(str(body.get("detail", answer.text)))
    return body
