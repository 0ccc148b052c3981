"""Query sets that are added at the moment at which what they stand on is deleted."""

from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import numpy as np
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.blobs import BlobStore
from service.db import Database
from service.domain.gallery.galleries import delete_gallery
from service.domain.judging.new_queries import NewQuery
from service.domain.judging.query_sets import QueryImage, add_image_set
from service.domain.registry.blobs import delete_unreferenced_blobs
from service.domain.registry.versions import delete_version
from service.networks.images import ImageDecoder
from service.settings import Settings
from tests.judged import post_query_vectors
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.registrations import artifacts, sha256
from tests.scenario import DIMS, register_version
from tests.served import wait_for

IMAGE = image_bytes(1)


def somebody_waits(database: Database) -> bool:
    """Return whether a statement waits for a lock of another."""
    query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with database.session_scope() as session:
        return bool(session.scalar(query))


def test_images_that_are_added_while_their_gallery_is_deleted_go_with_it(
    gallery: TestClient, database: Database, settings: Settings
) -> None:
    before = set(artifacts(settings))
    reads, deletions = iter(range(2)), list[Future[httpx.Response]]()

    def read() -> bytes:
        if next(reads) == 1:  # the first one is to see whether it is an image
            deletions.append(threads.submit(gallery.delete, "/v1/galleries/g"))
            wait_for(lambda: somebody_waits(database))
        return IMAGE

    with ThreadPoolExecutor() as threads:
        query = NewQuery("q", label="x")
        blobs = BlobStore(settings.blob_location)
        add_image_set(database, blobs, ImageDecoder(settings), "g", "asked", [QueryImage(query, read)])
        assert deletions[0].result().status_code == 204

    assert set(artifacts(settings)) == before


def test_images_are_not_added_while_the_same_ones_are_removed(
    gallery: TestClient, database: Database, settings: Settings
) -> None:
    digest = BlobStore(settings.blob_location).put(IMAGE)
    form = {"name": "asked", "queries": '[{"label": "x"}]'}

    with ThreadPoolExecutor() as threads:
        with database.session_scope() as session:
            delete_unreferenced_blobs(session, BlobStore(settings.blob_location), [digest])
            addition = threads.submit(
                gallery.post, "/v1/galleries/g/query-sets", files={"files": ("q", IMAGE)}, data=form
            )
            wait_for(lambda: somebody_waits(database))
        assert addition.result().status_code == 201

    assert sha256(IMAGE) in artifacts(settings)


def test_images_for_a_gallery_that_has_just_been_deleted_are_404(gallery: TestClient, database: Database) -> None:
    form = {"name": "asked", "queries": '[{"label": "x"}]'}

    with ThreadPoolExecutor() as threads:
        with database.session_scope() as session:
            delete_gallery(session, "g")
            addition = threads.submit(
                gallery.post, "/v1/galleries/g/query-sets", files={"files": ("q", IMAGE)}, data=form
            )
            wait_for(lambda: somebody_waits(database))
        check_problem(addition.result(), 404)


def test_vectors_under_a_version_that_has_just_been_deleted_are_404(gallery: TestClient, database: Database) -> None:
    register_version(gallery, "v2")
    vectors = np.ones((1, DIMS["v2"][0]), np.float32)

    with ThreadPoolExecutor() as threads:
        with database.session_scope() as session:
            delete_version(session, "v2")
            addition = threads.submit(post_query_vectors, gallery, "v2", vectors, id=["a"], label=["x"])
            wait_for(lambda: somebody_waits(database))
        check_problem(addition.result(), 404)

    assert gallery.get("/v1/galleries/g/query-sets").json()["items"] == []
