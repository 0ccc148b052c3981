"""Writes while the generations change: vectors are made again for those that are there by then, and at last refused."""

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.gallery.new_items import NewItem
from service.domain.gallery.writes import GalleryWriter, NewRows, Target, new_rows
from service.errors import Unavailable
from service.tables import embeddings_table
from service.vectors.rows import Origin
from tests.scenario import create_upgradable_gallery, start_upgrade, state_of

BUSY = Unavailable("busy")


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    create_upgradable_gallery(client)
    return client


@pytest.fixture
def writer(gallery: TestClient) -> GalleryWriter:
    assert isinstance(gallery.app, FastAPI)
    writer: GalleryWriter = gallery.app.state.parts.writer
    return writer


def zeros(target: Target) -> NewRows:
    """One item `a` with a row in every generation."""
    rows = {}
    for generation in target.generations:
        dims = generation.vector_format.embedding_dim, generation.vector_format.side_information_dim
        embedding, side = (None if dim is None else np.zeros((1, dim), np.float16) for dim in dims)
        assert embedding is not None
        rows[generation.id] = new_rows(Origin.ENCODED, embedding, side)
    return NewRows([NewItem("a")], rows)


def test_vectors_are_made_again_for_a_generation_that_came_meanwhile(
    gallery: TestClient, writer: GalleryWriter
) -> None:
    generations: list[list[int]] = []

    def make(target: Target) -> NewRows:
        generations.append([generation.id for generation in target.generations])
        if len(generations) == 1:
            start_upgrade(gallery, "v2")
        return zeros(target)

    _, written = writer.write("g", make, BUSY)

    assert generations == [[1], [1, 2]]
    assert written.revision == 1
    with writer.database.reading() as connection:
        counts = [connection.scalar(text(f"SELECT count(*) FROM {embeddings_table(id_)}")) for id_ in (1, 2)]
    assert counts == [1, 1]


def test_a_write_during_which_generations_change_each_time_is_refused_and_writes_nothing(
    gallery: TestClient, writer: GalleryWriter
) -> None:
    upgrades: list[int] = []

    def make(target: Target) -> NewRows:
        if upgrades and state_of(gallery, upgrades[-1]) != "cancelled":
            gallery.post(f"/v1/upgrades/{upgrades[-1]}/cancel")
        else:
            upgrades.append(start_upgrade(gallery, "v2"))
        return zeros(target)

    with pytest.raises(Unavailable) as refused:
        writer.write("g", make, BUSY)

    assert refused.value is BUSY
    assert len(upgrades) == 5  # of ten attempts, every other one
    assert gallery.get("/v1/galleries/g/items").json()["items"] == []
