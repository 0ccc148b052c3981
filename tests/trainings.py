"""Asking for trainings of h and g over HTTP, and working on them as a worker does."""

import json
from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.networks import image_bytes
from tests.working import with_settings
from workers.app import WorkerParts
from workers.training import advance_training, scratch_folder

QUICK = {"epochs": 40, "inner_dim": 16, "batch": 64, "learning_rate": 5e-3}


def ask(client: httpx.Client, pairs: bytes | None = None, *, key: str | None = None, **fields: Any) -> httpx.Response:
    wanted = {"from_version": "v1", "to_version": "v2", "options": QUICK, **fields}
    headers = {} if key is None else {"Idempotency-Key": key}
    if pairs is None:
        headers["Content-Type"] = "application/json"
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


def check_refused(client: TestClient, settings: Settings, answer: httpx.Response, status: int, sentence: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert sentence in answer.json()["detail"]
    assert client.get("/v1/jobs").json()["items"] == []
    assert files_of_trainings(settings) == []


def one_epoch_a_slice(worker: WorkerParts) -> WorkerParts:
    return with_settings(worker, task_slice_seconds=0.0)
