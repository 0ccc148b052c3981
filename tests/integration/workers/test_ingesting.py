"""A worker's part of an ingest by reference: sources that are away, batches that kill, networks that fail."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.settings import Settings
from tests.conftest import Servers, small_settings
from tests.networks import image_bytes
from workers.app import WorkerParts
from workers.ingesting import advance_ingest

ATTEMPTS = 3


class FlakyHost(HTTPServer):
    """Gives images over http; the paths in `away` answer 503, as many times as it is said."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Image)
        self.away: dict[str, int] = {}
        self.answered = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Image(BaseHTTPRequestHandler):
    server: FlakyHost

    def do_GET(self) -> None:
        self.server.answered += 1
        left = self.server.away.get(self.path, 0)
        self.server.away[self.path] = left - 1
        body = image_bytes(len(self.path)) if left <= 0 else b""
        self.send_response(200 if left <= 0 else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def settings(servers: Servers, database_url: str, tmp_path: Path) -> Settings:
    changes = {
        "images": f"http://127.0.0.1:{_free_port()}/",
        "encode_batch_items": 4,
        "max_batch_attempts": ATTEMPTS,
    }
    return small_settings(servers, database_url, tmp_path / "data").model_copy(update=changes)


@pytest.fixture
def host(settings: Settings) -> Iterator[FlakyHost]:
    host = FlakyHost(int(settings.images.rstrip("/").rpartition(":")[2]))
    yield host
    host.shutdown()
    host.server_close()


def _post(client: TestClient, settings: Settings, count: int) -> int:
    listed = [{"id": str(number), "image_uri": f"{settings.images}{number}"} for number in range(count)]
    identifier: int = client.post("/v1/galleries/g/images/references", json=listed).json()["id"]
    return identifier


def _finish(worker: WorkerParts, client: TestClient, job_id: int) -> dict[str, Any]:
    for _ in range(20):
        advance_ingest(worker, job_id)
        view: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if view["finished_at"] is not None:
            return view
    raise AssertionError(view)


def test_an_image_whose_source_is_away_for_a_while_is_stored_all_the_same(
    gallery: TestClient, worker: WorkerParts, settings: Settings, host: FlakyHost
) -> None:
    host.away["/2"] = ATTEMPTS - 1
    job_id = _post(gallery, settings, 4)
    one_batch = replace(worker, settings=settings.model_copy(update={"task_slice_seconds": 1e-3}))

    advance_ingest(one_batch, job_id)
    assert "503" in gallery.get(f"/v1/jobs/{job_id}").json()["error"]
    ended = _finish(worker, gallery, job_id)

    assert ended["error"] is None
    assert ended["result"] == {"created": 4, "replaced": 0, "rejected": 0}


def test_an_image_whose_source_stays_away_is_rejected_alone(
    gallery: TestClient, worker: WorkerParts, settings: Settings, host: FlakyHost
) -> None:
    host.away["/2"] = 1_000
    job_id = _post(gallery, settings, 6)

    ended = _finish(worker, gallery, job_id)

    assert (ended["state"], ended["result"]) == ("succeeded", {"created": 5, "replaced": 0, "rejected": 1})
    (rejected,) = gallery.get(f"/v1/jobs/{job_id}/rejected").json()["items"]
    assert rejected["id"] == "2"
    assert "503" in rejected["reason"]


def test_a_batch_that_killed_its_worker_every_time_is_rejected_and_the_others_are_stored(
    gallery: TestClient, worker: WorkerParts, settings: Settings, host: FlakyHost
) -> None:
    job_id = _post(gallery, settings, 6)
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE ingest_batches SET attempts = :n WHERE first_position = 0"), {"n": ATTEMPTS})

    ended = _finish(worker, gallery, job_id)

    assert ended["result"] == {"created": 2, "replaced": 0, "rejected": 4}
    rejected = gallery.get(f"/v1/jobs/{job_id}/rejected").json()["items"]
    assert [row["id"] for row in rejected] == ["0", "1", "2", "3"]
    assert "a worker died each of the 3 times" in rejected[0]["reason"]


def test_a_job_whose_network_is_missing_fails_with_the_reason_and_keeps_nothing_half(
    gallery: TestClient, worker: WorkerParts, settings: Settings, host: FlakyHost
) -> None:
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE model_versions SET embedding_model_digest = repeat('0', 64)"))
    job_id = _post(gallery, settings, 6)

    ended = _finish(worker, gallery, job_id)

    assert ended["state"] == "failed"
    assert "is not in the blob store" in ended["error"]
    assert gallery.get("/v1/galleries/g/items").json()["items"] == []


def test_two_workers_share_a_job_and_store_every_image_once(
    gallery: TestClient, worker: WorkerParts, settings: Settings, host: FlakyHost
) -> None:
    job_id = _post(gallery, settings, 40)

    threads = [threading.Thread(target=advance_ingest, args=(worker, job_id)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert _finish(worker, gallery, job_id)["result"] == {"created": 40, "replaced": 0, "rejected": 0}
    assert host.answered == 40
    assert gallery.get("/v1/galleries/g").json()["revision"] == 40
