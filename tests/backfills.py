"""Galleries whose items can be encoded again, and a client's steps of doing so."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx

from service.domain.upgrade.cutover import request_cutover
from tests.networks import image_bytes
from tests.scenario import create_upgradable_gallery, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts
from workers.backfilling import advance_backfill


def name_of(seed: int) -> str:
    return f"image-{seed}.png"


def post_images_with_uris(client: httpx.Client, folder: Path, seeds: Iterable[int]) -> None:
    """Write images into a folder, and post them to gallery `g` with where they are."""
    seeds = list(seeds)
    items = []
    for seed in seeds:
        (folder / name_of(seed)).write_bytes(image_bytes(seed))
        items.append({"id": name_of(seed), "image_uri": f"file://{folder / name_of(seed)}"})
    files = [("files", (name_of(seed), image_bytes(seed), "image/png")) for seed in seeds]
    answer = client.post("/v1/galleries/g/images", files=files, data={"items": json.dumps(items)})
    assert answer.status_code == 200, answer.text


def make_candidate(client: httpx.Client, worker: WorkerParts, folder: Path, items: int) -> int:
    """Make gallery `g` of images under v1, and upgrade it to v2 until it is ready; return the upgrade's id."""
    create_upgradable_gallery(client)
    post_images_with_uris(client, folder, range(items))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    return upgrade_id


def go_live(client: httpx.Client, worker: WorkerParts, upgrade_id: int) -> None:
    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id)
    run_until(worker, client, upgrade_id, "live")


def begin_backfill(client: httpx.Client, **options: Any) -> int:
    """Begin a backfill of gallery `g`, by default of the candidate, from URIs; return its id."""
    answer = client.post("/v1/galleries/g/backfills", json={"generation": "next", "source": "uri", **options})
    assert answer.status_code == 202, answer.text
    identifier: int = answer.json()["id"]
    assert answer.headers["Location"] == f"/v1/backfills/{identifier}"
    return identifier


def backfill_of(client: httpx.Client, backfill_id: int) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/v1/backfills/{backfill_id}").json()
    return body


def run_backfill(
    client: httpx.Client, worker: WorkerParts, backfill_id: int, state: str = "finished"
) -> dict[str, Any]:
    """Let the worker work on a backfill until it is in a state; return it."""
    for _ in range(30):
        advance_backfill(worker, backfill_id)
        found = backfill_of(client, backfill_id)
        if found["state"] == state:
            return found
    raise AssertionError(found)


def lease(client: httpx.Client, backfill_id: int, limit: int = 256) -> list[str]:
    answer = client.post(f"/v1/backfills/{backfill_id}/lease", params={"limit": limit})
    assert answer.status_code == 200, answer.text
    ids: list[str] = answer.json()["ids"]
    return ids


def send_images(client: httpx.Client, backfill_id: int, images: dict[str, bytes]) -> httpx.Response:
    files = [("files", (name, data, "image/png")) for name, data in images.items()]
    return client.post(f"/v1/backfills/{backfill_id}/images", files=files)


def refused(client: httpx.Client, backfill_id: int) -> dict[str, str]:
    """Return the reasons of refused items by id."""
    return {item["id"]: item["reason"] for item in client.get(f"/v1/backfills/{backfill_id}/refused").json()["items"]}
