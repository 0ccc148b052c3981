"""A client's steps, shared by tests that talk HTTP: register versions and transformations, fill a gallery."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tests.networks import PREPROCESSING, encoder_bytes, image_bytes, transformation_bytes

# Embedding and side-information dimensions of the test versions; v3 has no ψ.
DIMS: dict[str, tuple[int, int | None]] = {"v1": (6, 5), "v2": (8, 4), "v3": (10, None)}


def register_version(client: httpx.Client, name: str, *, normalize: bool = False) -> None:
    embedding_dim, side_dim = DIMS[name]
    spec = {
        "embedding_dim": embedding_dim,
        "side_information_dim": side_dim,
        "normalize": normalize,
        "preprocessing": PREPROCESSING,
    }
    files = {"embedding_model": ("phi", encoder_bytes(embedding_dim, seed=int(name[1:])))}
    if side_dim is not None:
        files["side_information_model"] = ("psi", encoder_bytes(side_dim, seed=100 + int(name[1:])))
    answer = client.post("/v1/model-versions", data={"name": name, "spec": json.dumps(spec)}, files=files)
    assert answer.status_code == 201, answer.text


def register_transformation(client: httpx.Client, before: str, after: str) -> int:
    (from_dim, from_side), (to_dim, to_side) = DIMS[before], DIMS[after]
    files = {"h": ("h", transformation_bytes(from_dim, from_side, to_dim, seed=7))}
    if to_side is not None:
        files["g"] = ("g", transformation_bytes(from_dim, from_side, to_side, seed=8))
    answer = client.post("/v1/transformations", data={"from_version": before, "to_version": after}, files=files)
    assert answer.status_code == 201, answer.text
    identifier: int = answer.json()["id"]
    return identifier


def create_gallery(client: httpx.Client, name: str = "g", version: str = "v1", **options: Any) -> None:
    answer = client.post("/v1/galleries", json={"name": name, "model_version": version, **options})
    assert answer.status_code == 201, answer.text


def create_upgradable_gallery(client: httpx.Client) -> None:
    """Register v1, v2 and a transformation between them, and create the empty gallery `g` under v1."""
    for version in ("v1", "v2"):
        register_version(client, version)
    register_transformation(client, "v1", "v2")
    create_gallery(client)


def post_images(client: httpx.Client, seeds: Iterable[int], gallery: str = "g") -> httpx.Response:
    seeds = list(seeds)
    files = [("files", (f"image-{seed}.png", image_bytes(seed), "image/png")) for seed in seeds]
    items = [{"label": f"class {seed % 3}", "metadata": {"seed": seed}} for seed in seeds]
    answer = client.post(f"/v1/galleries/{gallery}/images", files=files, data={"items": json.dumps(items)})
    assert answer.status_code == 200, answer.text
    return answer


def post_vectors(
    client: httpx.Client,
    ids: Sequence[str],
    gallery: str = "g",
    version: str = "v1",
    previous: str | None = None,
    scale: float = 1.0,
    seed: int = 0,
    embedding: NDArray[np.float32] | None = None,
) -> httpx.Response:
    """Post random vectors of one version, or of the active and the previous one; or these embeddings of the one."""
    generator = np.random.default_rng(seed)
    columns: dict[str, Any] = {"id": list(ids)}
    for prefix, name in {"": version, "previous_": previous}.items():
        if name is not None:
            embedding_dim, side_dim = DIMS[name]
            columns[f"{prefix}embedding"] = list(generator.standard_normal((len(ids), embedding_dim)) * scale)
            if side_dim is not None:
                columns[f"{prefix}side_information"] = list(generator.standard_normal((len(ids), side_dim)))
    if embedding is not None:
        columns["embedding"] = list(embedding)
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return client.post(f"/v1/galleries/{gallery}/embeddings", content=sink.getvalue().to_pybytes())


def import_vectors(client: httpx.Client, ids: Sequence[str], gallery: str = "g", **options: Any) -> None:
    """Import random vectors; `options` are those of `post_vectors`."""
    answer = post_vectors(client, ids, gallery, **options)
    assert answer.json() == {"count": len(ids)}, answer.text


def start_upgrade(client: httpx.Client, to_version: str, gallery: str = "g", **options: Any) -> int:
    """Start an upgrade. Tests' networks lead nowhere near each other, so no verdict holds it up unless `observe=False`
    says so."""
    wanted = {"to_version": to_version, "observe": True, **options}
    answer = client.post(f"/v1/galleries/{gallery}/upgrades", json=wanted)
    assert answer.status_code == 202, answer.text
    identifier: int = answer.json()["id"]
    return identifier


def state_of(client: httpx.Client, upgrade_id: int) -> str:
    state: str = client.get(f"/v1/upgrades/{upgrade_id}").json()["state"]
    return state


def search(client: httpx.Client, seed: int, gallery: str = "g", k: int = 3, **parameters: Any) -> dict[str, Any]:
    answer = client.post(
        f"/v1/galleries/{gallery}/search",
        files={"file": ("query.png", image_bytes(seed))},
        data={"k": str(k)},
        params=parameters,
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body
