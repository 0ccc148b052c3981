"""An upgrade with a report, of items whose ids, labels and metadata are written to break out of a page."""

import json

import httpx
import torch

from models.artifacts import save_network
from models.transformation import Transformation
from tests.networks import encoder_bytes, image_bytes
from tests.registrations import post_transformation, post_version
from tests.scenario import create_gallery, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade

ITEMS, REFERENCES = 80, 60
LABELS = ['"><img src=x onerror=alert(1)>', "</td><script>alert(2)</script>"]
FIELD, VALUES = "<b onclick=alert(3)>", ["{{ 7 * 7 }}", "<svg onload=alert(4)>&amp;"]


def hostile_id(number: int) -> str:
    return f"<script>alert('{number}')</script>"


def ready_upgrade(client: httpx.Client, worker: WorkerParts) -> int:
    """Return an upgrade of gallery `g` by an h that is wrong, and says so; its first report has no evidence."""
    for seed, (name, dim, side_dim) in enumerate((("v1", 6, 5), ("v2", 8, 4))):
        phi, psi = encoder_bytes(dim, seed), encoder_bytes(side_dim, 10 + seed)
        assert post_version(client, name, phi, psi, embedding_dim=dim, side_information_dim=side_dim).is_success
    torch.manual_seed(0)
    h = Transformation(6, 5, 8, inner_dim=16, members=2, linear=True, error_head=True).eval()
    assert post_transformation(client, "v1", "v2", save_network(h)).is_success
    create_gallery(client)
    items = [
        {"id": hostile_id(number), "label": LABELS[number % 2], "metadata": {FIELD: VALUES[number // 2 % 2]}}
        for number in range(ITEMS)
    ]
    answer = client.post("/v1/galleries/g/images", files=_files(ITEMS), data={"items": json.dumps(items)})
    assert answer.is_success, answer.text
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    return upgrade_id


def reported_upgrade(client: httpx.Client, worker: WorkerParts) -> int:
    """Return the same with a second report, which references of most items were given for."""
    upgrade_id = ready_upgrade(client, worker)
    ids = json.dumps([{"id": hostile_id(number)} for number in range(REFERENCES)])
    answer = client.post(f"/v1/upgrades/{upgrade_id}/references", files=_files(REFERENCES), data={"items": ids})
    assert answer.is_success, answer.text
    assert client.post(f"/v1/upgrades/{upgrade_id}/evaluate").is_success
    advance_upgrade(worker, upgrade_id)
    return upgrade_id


def _files(count: int) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("files", ("image.png", image_bytes(number), "image/png")) for number in range(count)]
