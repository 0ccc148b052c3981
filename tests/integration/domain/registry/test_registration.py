"""Model versions and transformations: what can be registered, kept and deleted, and what becomes of blobs."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.app import create_app
from service.blobs import BlobStore
from service.db import Database
from service.domain.registry import registration
from service.domain.registry.blobs import delete_unreferenced_blobs
from service.domain.registry.registration import NetworkStore
from service.domain.registry.versions import delete_version
from service.settings import Settings
from tests.networks import (
    PREPROCESSING,
    PublicForm,
    encoder_bytes,
    image_bytes,
    torchscript_bytes,
    transformation_bytes,
)
from tests.problems import check_problem
from tests.registrations import artifacts, post_transformation, post_version, seeded, sha256
from tests.scenario import DIMS, create_gallery, post_images, register_transformation, register_version, start_upgrade
from tests.served import wait_for
from tests.unit.models.artifact_files import Images


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
    for version in ("v1", "v2"):
        register_version(client, version)
    old = register_transformation(client, "v1", "v2")
    h = transformation_bytes(6, 5, 8, seed=7)  # that of the old one

    with ThreadPoolExecutor() as threads:
        with database.session_scope() as session:
            store = NetworkStore(session, BlobStore(settings.blob_location), settings)
            new = registration.register_transformation(store, "v1", "v2", h, None, "a test").id
            deletion = threads.submit(client.delete, f"/v1/transformations/{old}")
            wait_for(lambda: waits_for_the_blobs_lock(database))
        assert deletion.result().status_code == 204

    check_problem(client.get(f"/v1/transformations/{old}"), 404)
    assert client.get(f"/v1/transformations/{new}/artifacts/h").content == h


def test_a_registration_waits_for_the_deletion_of_the_blob_that_it_stores(
    client: TestClient, database: Database, settings: Settings
) -> None:
    phi = encoder_bytes(6, 1)
    post_version(client, "old", phi)
    with database.session_scope() as session:
        digests = delete_version(session, "old")

    with ThreadPoolExecutor() as threads:
        with database.session_scope() as session:
            delete_unreferenced_blobs(session, BlobStore(settings.blob_location), digests)
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
