"""Model versions and transformations: what can be registered, used, listed and deleted, and what becomes of blobs."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from sqlalchemy import text
from torch import nn

from service.app import create_app
from service.blobs import BlobStore
from service.db import Database
from service.domain import registry
from service.queue import celery_application
from service.settings import Settings
from tests.networks import (
    PREPROCESSING,
    PublicForm,
    encoder_bytes,
    image_bytes,
    onnx_encoder_bytes,
    torchscript_bytes,
    transformation_bytes,
)
from tests.rows import all_rows
from tests.scenario import (
    DIMS,
    create_gallery,
    post_images,
    register_transformation,
    register_version,
    search,
    start_upgrade,
    state_of,
)
from tests.served import wait_for
from tests.unit.models.artifact_files import Images
from workers.app import WorkerParts, make_worker_parts
from workers.upgrading import advance_upgrade

PROBLEM = "application/problem+json"
SPEC: dict[str, Any] = {"embedding_dim": 6, "preprocessing": PREPROCESSING}

# Each makes an encoder of so many dimensions from a seed; two of them give (B, D, 1, 1).
ENCODERS: dict[str, tuple[str, Callable[[int, int], bytes]]] = {
    "safetensors": ("safetensors", encoder_bytes),
    "onnx": ("onnx", onnx_encoder_bytes),
    "onnx, trailing axes": ("onnx", lambda dim, seed: onnx_encoder_bytes(dim, seed, trailing=True)),
    "torchscript, trailing axes": ("torchscript", lambda dim, seed: torchscript_bytes(seeded(Images, dim, seed=seed))),
}


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings))
    yield parts
    parts.database.engine.dispose()


def seeded(make: Callable[..., nn.Module], *dims: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make(*dims)


def post_version(client: httpx.Client, name: str, phi: bytes, psi: bytes | None = None, **spec: Any) -> httpx.Response:
    files = {"embedding_model": phi} | ({} if psi is None else {"side_information_model": psi})
    return client.post("/v1/model-versions", data={"name": name, "spec": json.dumps(SPEC | spec)}, files=files)


def post_transformation(
    client: httpx.Client, before: str, after: str, h: bytes, g: bytes | None = None
) -> httpx.Response:
    files = {"h": h} | ({} if g is None else {"g": g})
    return client.post("/v1/transformations", data={"from_version": before, "to_version": after}, files=files)


def check_problem(answer: httpx.Response, status: int, sentence: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    assert sentence in answer.json()["detail"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def artifacts(settings: Settings) -> dict[str, Path]:
    """Return the files of all stored artifacts by digest."""
    return {path.name: path for path in (settings.data / "blobs" / "artifacts").glob("*/*")}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_version_of_every_kind_is_registered_and_encodes(client: TestClient, name: str) -> None:
    kind, make = ENCODERS[name]
    phi, psi = make(6, 1), make(5, 2)

    answer = post_version(client, "v", phi, psi, side_information_dim=5)
    create_gallery(client, version="v")
    post_images(client, range(3))

    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/model-versions/v")
    view = answer.json()
    assert (view["embedding_model_kind"], view["side_information_model_kind"]) == (kind, kind)
    assert (view["embedding_model_digest"], view["side_information_model_digest"]) == (sha256(phi), sha256(psi))
    assert client.get("/v1/model-versions/v").json() == view
    nearest = search(client, 2)["neighbors"][0]
    assert nearest["id"] == "image-2.png"
    assert nearest["distance"] == pytest.approx(0, abs=0.02)


def test_a_gallery_is_upgraded_by_networks_in_the_papers_public_form(client: TestClient, worker: WorkerParts) -> None:
    for name, embedding_dim, side_dim, seed in (("v1", 6, 5, 1), ("v2", 8, 4, 3)):
        make = ENCODERS["torchscript, trailing axes"][1]
        dims = {"embedding_dim": embedding_dim, "side_information_dim": side_dim}
        assert (
            post_version(client, name, make(embedding_dim, seed), make(side_dim, seed + 1), **dims).status_code == 201
        )
    h, g = seeded(PublicForm, 6, 5, 8, seed=5), seeded(PublicForm, 6, 5, 4, seed=6)
    registered = post_transformation(client, "v1", "v2", torchscript_bytes(h), torchscript_bytes(g))
    create_gallery(client)
    post_images(client, range(9))

    upgrade_id = start_upgrade(client, "v2", cutover="auto")
    for _ in range(20):
        advance_upgrade(worker, upgrade_id)
        if state_of(client, upgrade_id) == "live":
            break

    assert (registered.json()["h_kind"], registered.json()["g_kind"]) == ("torchscript", "torchscript")
    assert state_of(client, upgrade_id) == "live"
    old, new = all_rows(worker, upgrade_id)
    assert old.side_information is not None
    assert new.side_information is not None
    np.testing.assert_allclose(new.embedding, public_form(h, old.embedding, old.side_information), atol=5e-3)
    np.testing.assert_allclose(new.side_information, public_form(g, old.embedding, old.side_information), atol=5e-3)


def public_form(network: nn.Module, embedding: NDArray[Any], side_information: NDArray[Any]) -> NDArray[Any]:
    """Run a network on (B, D, 1, 1) inputs, without the service; (B, D_to)."""
    inputs = [torch.from_numpy(rows.astype(np.float32))[:, :, None, None] for rows in (embedding, side_information)]
    output: NDArray[Any] = network(*inputs).detach().numpy()[:, :, 0, 0]
    return output


def test_torchscript_is_refused_where_the_operator_does_not_trust_it(settings: Settings) -> None:
    scripted = torchscript_bytes(seeded(Images, 6, seed=1))
    h = torchscript_bytes(seeded(PublicForm, 6, 5, 8, seed=1))
    with TestClient(create_app(settings.model_copy(update={"trust_torchscript": False}))) as client:
        for name in ("v1", "v2"):
            register_version(client, name)
        before = set(artifacts(settings))

        check_problem(post_version(client, "v", scripted), 422, "GALLERY_TRUST_TORCHSCRIPT=1")
        check_problem(post_transformation(client, "v1", "v2", h), 422, "GALLERY_TRUST_TORCHSCRIPT=1")

        check_problem(client.get("/v1/model-versions/v"), 404)
        assert client.get("/v1/transformations").json()["items"] == []
        assert set(artifacts(settings)) == before


def test_a_registered_torchscript_is_not_run_once_the_operator_trusts_it_no_more(
    settings: Settings, client: TestClient
) -> None:
    post_version(client, "v", torchscript_bytes(seeded(Images, 6, seed=1)))
    create_gallery(client, version="v")
    with TestClient(create_app(settings.model_copy(update={"trust_torchscript": False}))) as distrusting:
        answer = distrusting.post("/v1/galleries/g/search/vectors", json={"vectors": [[1] * 6]})
        image = distrusting.post("/v1/galleries/g/images", files={"files": ("x", image_bytes(1))})

    assert answer.status_code == 200
    check_problem(image, 500, "GALLERY_TRUST_TORCHSCRIPT=1")


REFUSED_VERSIONS: dict[str, dict[str, Any]] = {
    "name with a slash": {"name": "a/b"},
    "name with a line end": {"name": "v\n"},
    "name that is too long": {"name": "x" * 129},
    "no name": {"name": ""},
    "no dimensions": {"embedding_dim": 0},
    "too many dimensions": {"embedding_dim": 16_001},
    "other dimensions": {"embedding_dim": 7},
    "unknown key": {"norm": True},
    "mean that is not a number": {"preprocessing": PREPROCESSING | {"mean": [float("nan"), 0, 0]}},
    "infinite std": {"preprocessing": PREPROCESSING | {"std": [float("inf"), 1, 1]}},
    "std of 0": {"preprocessing": PREPROCESSING | {"std": [0, 1, 1]}},
    "huge images": {"preprocessing": PREPROCESSING | {"size": 10**9}},
    "ψ declared and not given": {"side_information_dim": 5},
    "ψ given and not declared": {"psi": encoder_bytes(5, 1)},
    "no file": {"phi": b""},
    "transformation": {"phi": transformation_bytes(6, 5, 8, 1)},
}


def test_a_version_that_is_refused_leaves_nothing_behind(client: TestClient, settings: Settings) -> None:
    good: dict[str, Any] = {"name": "v", "phi": encoder_bytes(6, 1)}

    for refused in REFUSED_VERSIONS.values():
        check_problem(post_version(client, **(good | refused)), 422)

    assert client.get("/v1/model-versions").json()["items"] == []
    assert artifacts(settings) == {}
    assert post_version(client, **good).status_code == 201
    check_problem(post_version(client, **good), 409, "'v' exists")


def test_a_transformation_that_is_refused_leaves_nothing_behind(client: TestClient, settings: Settings) -> None:
    for name in DIMS:
        register_version(client, name)
    before = set(artifacts(settings))
    h, g = transformation_bytes(6, 5, 8, 1), transformation_bytes(6, 5, 4, 1)

    check_problem(post_transformation(client, "v1", "v\0", h), 422, "'to_version' is not a name")
    check_problem(post_transformation(client, "v1", "none", h), 404, "'none'")
    check_problem(post_transformation(client, "v1", "v1", h), 422, "from one model version to another")
    check_problem(post_transformation(client, "v2", "v1", h), 422, "from_dim is 6; 8 was declared")
    check_problem(post_transformation(client, "v1", "v2", h, h), 422, "to_dim is 8; 4 was declared")
    check_problem(post_transformation(client, "v1", "v2", encoder_bytes(8, 1)), 422, "is an encoder")
    check_problem(post_transformation(client, "v1", "v3", transformation_bytes(6, 5, 10, 1), g), 422, "no g to it")
    misspelt = client.post(
        "/v1/transformations", data={"from_version": "v1", "to_version": "v2"}, files={"h": h, "G": g}
    )

    check_problem(misspelt, 422, "not known: G")
    assert client.get("/v1/transformations").json()["items"] == []
    assert set(artifacts(settings)) == before


def test_lists_come_in_pages(client: TestClient) -> None:
    for name in DIMS:
        register_version(client, name)
    for _ in range(3):
        register_transformation(client, "v1", "v2")

    for path, key in (("/v1/model-versions", "name"), ("/v1/transformations", "id")):
        first = client.get(path, params={"limit": 2}).json()
        second = client.get(path, params={"limit": 2, "cursor": first["next_cursor"]}).json()
        exact = client.get(path, params={"limit": 3}).json()

        assert [len(page["items"]) for page in (first, second, exact)] == [2, 1, 3]
        assert first["items"] + second["items"] == exact["items"]
        assert [row[key] for row in exact["items"]] == sorted(row[key] for row in exact["items"])
        assert (second["next_cursor"], exact["next_cursor"]) == (None, None)
        for bad in ({"limit": 0}, {"limit": 1001}, {"cursor": "?"}, {"cursor": "LTE"}, {"cursor": "eA"}):
            check_problem(client.get(path, params=bad), 422)


def test_what_is_in_use_is_kept_and_the_rest_goes_with_its_blobs(client: TestClient, settings: Settings) -> None:
    for name in ("v1", "v2"):
        register_version(client, name)
    post_version(client, "same", encoder_bytes(6, 1))  # the φ of v1
    used, unused = (register_transformation(client, "v1", "v2") for _ in range(2))
    create_gallery(client)
    upgrade_id = start_upgrade(client, "v2", transformation=used)

    check_problem(client.delete(f"/v1/transformations/{used}"), 409, f"Upgrade {upgrade_id}")
    assert client.delete(f"/v1/transformations/{unused}").status_code == 204
    check_problem(client.delete("/v1/model-versions/v1"), 409, "Gallery 'g'")
    check_problem(client.delete("/v1/model-versions/v2"), 409, "Gallery 'g'")
    client.post(f"/v1/upgrades/{upgrade_id}/cancel")
    assert client.delete("/v1/galleries/g").status_code == 204
    check_problem(client.delete("/v1/model-versions/v1"), 409, f"Transformation {used}")
    assert len(artifacts(settings)) == 6
    for path in (f"transformations/{used}", "model-versions/v1", "model-versions/v2"):
        assert client.delete(f"/v1/{path}").status_code == 204
        check_problem(client.get(f"/v1/{path}"), 404)
        check_problem(client.delete(f"/v1/{path}"), 404)
    assert set(artifacts(settings)) == {sha256(encoder_bytes(6, 1))}
    assert client.delete("/v1/model-versions/same").status_code == 204
    assert artifacts(settings) == {}


def test_of_two_transformations_of_a_pair_the_newest_is_used_unless_one_is_named(client: TestClient) -> None:
    for name in ("v1", "v2"):
        register_version(client, name)
    older, newer = (register_transformation(client, "v1", "v2") for _ in range(2))
    create_gallery(client)

    paths = []
    for named in (None, older):
        upgrade_id = start_upgrade(client, "v2", transformation=named)
        paths.append(client.get(f"/v1/upgrades/{upgrade_id}").json()["path"][0]["transformations"])
        client.post(f"/v1/upgrades/{upgrade_id}/cancel")

    assert paths == [[newer], [older]]


def waits_for_the_blobs_lock(database: Database) -> bool:
    query = (
        "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
        " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    )
    with database.session_scope() as session:
        return bool(session.scalar(text(query)))


def test_deleting_blobs_waits_for_a_registration_that_is_about_to_name_one(
    client: TestClient, database: Database, settings: Settings
) -> None:
    phi = encoder_bytes(6, 1)
    post_version(client, "old", phi)
    spec = registry.VersionSpec(6, None, False, PREPROCESSING)

    with ThreadPoolExecutor() as threads:
        with database.session_scope() as session:
            blobs = BlobStore(settings.blob_location)
            registry.register_model_version(session, blobs, settings, "new", spec, phi, None)
            deletion = threads.submit(client.delete, "/v1/model-versions/old")
            wait_for(lambda: waits_for_the_blobs_lock(database))
        assert deletion.result().status_code == 204

    check_problem(client.get("/v1/model-versions/old"), 404)
    create_gallery(client, version="new")
    assert post_images(client, [1]).json()["results"][0]["status"] == "created"


def test_a_registration_waits_for_the_deletion_of_the_blob_that_it_stores(
    client: TestClient, database: Database, settings: Settings
) -> None:
    phi = encoder_bytes(6, 1)
    post_version(client, "old", phi)
    with database.session_scope() as session:
        digests = registry.delete_version(session, "old")

    with ThreadPoolExecutor() as threads:
        with database.session_scope() as session:
            registry.delete_unreferenced_blobs(session, BlobStore(settings.blob_location), digests)
            registration = threads.submit(post_version, client, "new", phi)
            wait_for(lambda: waits_for_the_blobs_lock(database))
        assert registration.result().status_code == 201

    assert set(artifacts(settings)) == {sha256(phi)}


def test_of_registrations_at_once_under_one_name_one_succeeds(client: TestClient) -> None:
    with ThreadPoolExecutor() as threads:
        sent = [threads.submit(post_version, client, "v", encoder_bytes(6, seed)) for seed in range(4)]
        answers = sorted((request.result() for request in sent), key=lambda answer: answer.status_code)

    assert [answer.status_code for answer in answers] == [201, 409, 409, 409]
    assert client.get("/v1/model-versions/v").json() == answers[0].json()


@pytest.mark.parametrize("kind", ["blob-damaged", "blob-missing"])
def test_a_blob_that_was_lost_is_named_and_registering_its_artifact_again_restores_it(
    client: TestClient, settings: Settings, kind: str
) -> None:
    phi = encoder_bytes(6, 1)
    for name, data in (("lost", phi), ("sound", encoder_bytes(6, 2))):
        post_version(client, name, data)
    path = artifacts(settings)[sha256(phi)]
    path.unlink()
    if kind == "blob-damaged":
        path.write_bytes(phi[:-1] + bytes([phi[-1] ^ 1]))
    for name in ("lost", "sound"):  # only now: a gallery's encoder is loaded in the background, soon after
        create_gallery(client, name, version=name)

    answer = client.post("/v1/galleries/lost/images", files={"files": ("x", image_bytes(1))})

    check_problem(answer, 500, sha256(phi))
    assert answer.json()["type"] == f"urn:gallery-upgrade:{kind}"
    assert client.get("/v1/galleries/lost").json()["items"] == 0
    assert post_images(client, [1], "sound").json()["results"][0]["status"] == "created"
    assert post_version(client, "again", phi).status_code == 201
    assert post_images(client, [1], "lost").json()["results"][0]["status"] == "created"
