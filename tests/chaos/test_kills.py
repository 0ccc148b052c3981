"""Kills at bad moments: the upgrade completes, every live item has one current row, and the rows are h's."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.artifacts import load_transformation_network
from service.db import Database, create_database_engine, driver_connection
from service.domain.gallery.current_rows import missing_items
from service.domain.gallery.generations import count_live, stored_generations
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows
from tests.fakes import RecordingQueue
from tests.networks import transformation_bytes
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
from tests.served import Served, wait_for

ITEMS = 3_000
pytestmark = pytest.mark.xdist_group("deaths")


@pytest.fixture
def slow(tmp_path: Path, serve_settings: dict[str, str]) -> Iterator[Served]:
    """A service whose upgrade has hundreds of batches, so that there is time to kill it."""
    running = Served(tmp_path / "data", batch_items="20", lease_seconds="1", **serve_settings)
    running.start()
    yield running
    running.stop()


def import_vectors(served: Served, count: int, first: int = 0) -> None:
    embedding_dim, side_dim = DIMS["v1"]
    assert side_dim is not None
    generator = np.random.default_rng(first)
    table = pa.table(
        {
            "id": [f"vector-{number}" for number in range(first, first + count)],
            "embedding": list(generator.standard_normal((count, embedding_dim)).astype(np.float32)),
            "side_information": list(generator.standard_normal((count, side_dim)).astype(np.float32)),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    answer = served.client.post("/v1/galleries/g/embeddings", content=sink.getvalue().to_pybytes())
    assert answer.json() == {"count": count}


def prepare(served: Served) -> int:
    for version in ("v1", "v2"):
        register_version(served.client, version)
    register_transformation(served.client, "v1", "v2")
    create_gallery(served.client)
    import_vectors(served, ITEMS)
    return start_upgrade(served.client, "v2")


def done(served: Served, upgrade_id: int) -> int:
    progress = served.client.get(f"/v1/upgrades/{upgrade_id}").json()["progress"]
    count: int = progress["transforming"]["done"]
    return count


def check_rows(served: Served) -> None:
    """Every live item has exactly one row, current and equal to h applied offline, in the next generation."""
    engine = create_database_engine(served.database_url)
    with Database(engine, RecordingQueue()).session_scope() as session:
        source, target = stored_generations(session, 1)
        assert missing_items(session, target.key) == []
        read = [
            EmbeddingRows.concatenate(
                list(
                    read_rows(
                        driver_connection(session),
                        f"SELECT * FROM {generation.table} WHERE origin <> 1 ORDER BY item_id",
                        (),
                        generation.vector_format,
                    )
                )
            )
            for generation in (source, target)
        ]
        live = count_live(session, 1)
    engine.dispose()
    old, new = read
    (from_dim, from_side), (to_dim, _) = DIMS["v1"], DIMS["v2"]
    h = load_transformation_network(
        transformation_bytes(from_dim, from_side, to_dim, seed=7),
        from_dim=from_dim,
        side_information_dim=from_side,
        to_dim=to_dim,
    )
    assert old.side_information is not None
    assert (old.item_id == new.item_id).all()
    assert (old.revision == new.revision).all()
    assert live >= len(new)
    expected = h(old.embedding.astype(np.float32), old.side_information.astype(np.float32))
    np.testing.assert_allclose(new.embedding.astype(np.float32), expected, atol=1e-3, rtol=1e-3)


def test_killing_the_worker_and_then_everything_costs_nothing_but_time(slow: Served) -> None:
    upgrade_id = prepare(slow)
    wait_for(lambda: done(slow, upgrade_id) > 200)

    (worker,) = slow.children("workers.app")
    os.kill(worker, signal.SIGKILL)
    post_images(slow.client, range(5))
    assert slow.client.delete("/v1/galleries/g/items/vector-17").status_code == 204
    before = done(slow, upgrade_id)
    wait_for(lambda: done(slow, upgrade_id) > before, seconds=60)
    slow.kill()
    slow.start()
    wait_for(lambda: state_of(slow.client, upgrade_id) == "ready", seconds=120)

    check_rows(slow)
    live = slow.client.post(f"/v1/upgrades/{upgrade_id}/cutover").json()
    assert live["state"] == "live"
    answer = search(slow.client, 3, k=1)
    assert (answer["model_version"], answer["neighbors"][0]["id"]) == ("v2", "image-3.png")
    assert slow.client.get("/v1/galleries/g/items/vector-17").status_code == 404
    assert slow.client.get("/v1/galleries/g").json()["items"] == ITEMS + 5 - 1


def test_pausing_stops_batches_and_resuming_goes_on(slow: Served) -> None:
    upgrade_id = prepare(slow)
    wait_for(lambda: done(slow, upgrade_id) > 200)

    paused = slow.client.post(f"/v1/upgrades/{upgrade_id}/pause").json()
    counts = {done(slow, upgrade_id) for _ in range(40)}
    slow.client.post(f"/v1/upgrades/{upgrade_id}/resume")
    wait_for(lambda: state_of(slow.client, upgrade_id) == "ready", seconds=120)

    assert paused["state"] == "paused"
    assert counts == {paused["progress"]["transforming"]["done"]}
    check_rows(slow)
