"""A gallery that can be judged: images in classes, and transformations that are right, or wrong in known ways."""

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from models.artifacts import load_encoder
from models.images import decode_image
from models.preprocessing import Preprocessing, preprocess_batch
from service.domain.upgrade.cutover import request_cutover
from tests.networks import PREPROCESSING, SIZE, onnx_encoder_bytes
from tests.registrations import post_transformation, post_version
from tests.scenario import create_gallery, start_upgrade
from tests.unit.models.artifact_files import onnx_matrix
from tests.working import run_until
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade

DIM = 12
CLASSES = 5
ITEMS = 300  # that a judged gallery has
_NOISE = 25.0

# What a right h, as a matrix, becomes.
WRONG: dict[str, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    "into a wrong space": lambda turn: turn @ np.linalg.qr(np.random.default_rng(9).standard_normal((DIM, DIM)))[0],
    "to zero in most of its outputs": lambda turn: turn * (np.arange(DIM) < 1),
    "to another target": lambda turn: np.linalg.qr(np.random.default_rng(8).standard_normal((DIM, DIM)))[0],
}


def class_image(number: int) -> bytes:
    """Return an image of class `number % CLASSES`, as PNG."""
    base = np.random.default_rng(number % CLASSES).integers(0, 256, (SIZE, SIZE, 3))
    noise = np.random.default_rng(1_000 + number).normal(0, _NOISE, (SIZE, SIZE, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def post_class_images(
    client: httpx.Client,
    numbers: Iterable[int],
    *,
    labels: bool = True,
    metadata: Callable[[int], dict[str, Any]] | None = None,
) -> None:
    numbers = list(numbers)
    files = [("files", (f"{number}.png", class_image(number), "image/png")) for number in numbers]
    items: list[dict[str, Any]] = [
        ({"label": f"class {number % CLASSES}"} if labels else {})
        | ({"metadata": metadata(number)} if metadata else {})
        for number in numbers
    ]
    answer = client.post("/v1/galleries/g/images", files=files, data={"items": json.dumps(items)})
    assert answer.is_success, answer.text


def post_references(
    client: httpx.Client, upgrade_id: int, numbers: Iterable[int], of: dict[int, int] | None = None
) -> httpx.Response:
    """Post images as references; `of` says which image is sent under a number's id."""
    files = [
        ("files", (f"{number}.png", class_image((of or {}).get(number, number)), "image/png")) for number in numbers
    ]
    return client.post(f"/v1/upgrades/{upgrade_id}/references", files=files)


def encoded_outside(turn: NDArray[np.float32], numbers: Iterable[int]) -> NDArray[np.float32]:
    """Return what the encoder of a version makes of class images, outside of the service."""
    encode = load_encoder(onnx_encoder_bytes(DIM, seed=1, turn=turn), output_dim=DIM, input_size=SIZE)
    images = [decode_image(class_image(number)) for number in numbers]
    return encode(preprocess_batch(images, Preprocessing.from_json(PREPROCESSING)))


def register_two_spaces(client: httpx.Client) -> NDArray[np.float32]:
    """Register v1 and v2, whose embedding is v1's times an orthogonal matrix, and create gallery `g` under v1; return
    the matrix: what a perfect h is."""
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((DIM, DIM)))[0].astype(np.float32)
    for name, matrix in (("v1", np.eye(DIM, dtype=np.float32)), ("v2", turn)):
        phi = onnx_encoder_bytes(DIM, seed=1, turn=matrix)
        assert post_version(client, name, phi, embedding_dim=DIM).is_success
    create_gallery(client)
    return turn


def register_h(client: httpx.Client, matrix: NDArray[np.float32]) -> None:
    assert post_transformation(client, "v1", "v2", onnx_matrix(matrix)).is_success


def post_query_images(
    client: httpx.Client, numbers: Iterable[int], queries: Iterable[dict[str, Any]] | None = None, name: str = "asked"
) -> httpx.Response:
    """Post class images as a query set, with what is said of each: without, the label of its class."""
    numbers = list(numbers)
    files = [("files", (f"{number}.png", class_image(number), "image/png")) for number in numbers]
    said = list(queries) if queries is not None else [{"label": f"class {number % CLASSES}"} for number in numbers]
    return client.post("/v1/galleries/g/query-sets", files=files, data={"name": name, "queries": json.dumps(said)})


def post_query_vectors(
    client: httpx.Client, version: str, embedding: NDArray[np.floating[Any]], name: str = "asked", **columns: Any
) -> httpx.Response:
    """Post (N, D) vectors under a version as queries of a set."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"embedding": list(embedding), **columns}), stream)
    parameters = {"name": name, "model_version": version}
    return client.post("/v1/galleries/g/query-sets", params=parameters, content=stream.getvalue())


def report_of(client: httpx.Client, upgrade_id: int) -> dict[str, Any]:
    """Return the newest report on an upgrade."""
    answer = client.get(f"/v1/upgrades/{upgrade_id}/report")
    assert answer.is_success, answer.text
    body: dict[str, Any] = answer.json()
    return body


def evaluate_again(client: httpx.Client, worker: WorkerParts, upgrade_id: int, seed: int = 0) -> dict[str, Any]:
    """Ask for another report, let the worker write it, and return it."""
    asked = client.post(f"/v1/upgrades/{upgrade_id}/evaluate", json={"seed": seed})
    assert asked.status_code == 202, asked.text
    assert client.get(asked.headers["Location"]).status_code == 404
    advance_upgrade(worker, upgrade_id)
    body: dict[str, Any] = client.get(asked.headers["Location"]).json()
    return body


def cut_over(client: httpx.Client, worker: WorkerParts, upgrade_id: int, override: str | None = None) -> dict[str, Any]:
    """Ask for a cutover as the service does, and let the worker do it; return the upgrade."""
    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id, override)
    run_until(worker, client, upgrade_id, "live")
    body: dict[str, Any] = client.get(f"/v1/upgrades/{upgrade_id}").json()
    return body


def judged(client: httpx.Client, worker: WorkerParts, matrix: NDArray[np.float32], **options: Any) -> int:
    """Start an upgrade by an h and judge it with evidence; return its id."""
    register_h(client, matrix)
    upgrade_id = start_upgrade(client, "v2", **{"observe": False, **options})
    run_until(worker, client, upgrade_id, "ready")
    assert post_references(client, upgrade_id, range(ITEMS)).is_success
    evaluate_again(client, worker, upgrade_id)
    return upgrade_id
