"""A gallery of two dozen items with an upgrade from v1 to v2: what its client knows, a worker that is told what to do
by the sweep alone, and what must be true whenever processes have died and the sweep has been round."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from models.artifacts import load_transformation_network
from service.db import Database, driver_connection
from service.domain.gallery.generations import StoredGeneration, stored_generations
from service.domain.upgrade.upgrades import get_upgrade
from service.domain.upgrade_state import OPEN, State
from service.queue import celery_application
from service.settings import Settings
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows, Origin
from tests.fakes import RecordingQueue
from tests.networks import image_bytes, transformation_bytes
from tests.scenario import DIMS, create_gallery, import_vectors, post_images, search, start_upgrade, state_of
from tests.served import wait_for
from workers.app import WorkerParts, make_worker_parts
from workers.sweep import sweep
from workers.upgrading import advance_upgrade

# In each state at rest: which of the upgrade's generations have a table, and which of them every live item is in.
STORED = {
    State.READY: ("v1", "v2"),
    State.LIVE: ("v1", "v2"),
    State.FINALIZED: ("v2",),
    State.ROLLED_BACK: ("v1",),
    State.CANCELLED: ("v1",),
}
ASKED = "image-100.png"  # encoded by both versions, so that a search for it finds it at no distance in either
_ENCODED_BEFORE = range(3)
_IMPORTED = [f"vector-{number}" for number in range(20)]


class SweptWorker:
    """A worker whose only messages are those of its own sweep."""

    def __init__(self, settings: Settings) -> None:
        self._queue = RecordingQueue()
        parts = make_worker_parts(settings, celery_application(settings))
        self.parts: WorkerParts = replace(parts, database=Database(parts.database.engine, self._queue))

    def sweep(self) -> None:
        """Sweep once, and do what that asks for; whatever else was sent is lost."""
        self._queue.sent.clear()
        sweep(self.parts)
        for _, (upgrade_id,) in list(self._queue.sent):
            advance_upgrade(self.parts, upgrade_id)


@dataclass
class SmallGallery:
    """`live` are the ids that a reader must see; of those, `encoded` were encoded by both versions."""

    client: TestClient
    worker: SweptWorker
    name: str

    def __post_init__(self) -> None:
        create_gallery(self.client, self.name)
        import_vectors(self.client, _IMPORTED, self.name)
        post_images(self.client, _ENCODED_BEFORE, self.name)
        self.upgrade_id = start_upgrade(self.client, "v2", self.name)
        post_images(self.client, [100], self.name)
        self.encoded = {ASKED}
        self.live = {*_IMPORTED, *(f"image-{seed}.png" for seed in _ENCODED_BEFORE), ASKED}
        self.remember()

    def write(self) -> None:
        """Add an item, replace two and delete two."""
        post_images(self.client, [101, 0, 100], self.name)
        self.encoded |= {"image-101.png", "image-0.png"}
        self.live.add("image-101.png")
        for deleted in ("image-1.png", "vector-3"):
            assert self.client.delete(f"/v1/galleries/{self.name}/items/{deleted}").status_code == 204
            self.live.remove(deleted)

    def import_late(self) -> None:
        """Import vectors in the active space alone: they have to be transformed."""
        late = ["late-0", "late-1", "vector-0"]
        import_vectors(self.client, late, self.name, seed=1)
        self.live |= set(late)
        self.remember()

    def import_over_encoded(self) -> None:
        """Let an item of the first batch have an older row in the next generation: an image came, and then vectors."""
        name = "vector-5"
        files = [("files", (name, image_bytes(5)))]
        assert self.client.post(f"/v1/galleries/{self.name}/images", files=files).is_success
        import_vectors(self.client, [name], self.name, seed=2)
        self.remember()

    def remember(self) -> None:
        """Keep the rows of the generation that is transformed: h and g of them are what must come out."""
        with self.worker.parts.database.session_scope() as session:
            upgrade = get_upgrade(session, self.upgrade_id)
            (source, *_) = stored_generations(session, upgrade.gallery_id)
            self.sources = _rows_of(self.worker.parts.database, source)

    def post(self, action: str) -> tuple[int, str]:
        """Take an action; return the status and the state that the answer says."""
        answer = self.client.post(f"/v1/upgrades/{self.upgrade_id}/{action}")
        return answer.status_code, answer.json().get("state", answer.text)

    @property
    def state(self) -> State:
        return State(state_of(self.client, self.upgrade_id))

    def sweep_until(self, state: State) -> None:
        """Let the unarmed worker go on until the upgrade is in a state; one sweep at least."""

        def reached() -> bool:
            self.worker.sweep()
            return self.state is state

        wait_for(reached)

    def check_answers(self, version: str) -> None:
        """Every answer is of one version, until soon all are of this one; then it has every live item and no other."""

        def answer() -> dict[str, Any]:
            found = search(self.client, 100, self.name, k=100)
            first = found["neighbors"][0]
            assert (first["id"], first["distance"]) == (ASKED, pytest.approx(0, abs=1e-2)), found["model_version"]
            return found

        def settled() -> bool:
            found = answer()
            ids = [neighbor["id"] for neighbor in found["neighbors"]]
            return found["model_version"] == version and sorted(ids) == sorted(self.live)

        wait_for(settled)

    def check(self, state: State) -> None:
        """The upgrade rests in this state, and the promises hold."""
        assert self.state is state
        database = self.worker.parts.database
        with database.session_scope() as session:
            gallery_id = get_upgrade(session, self.upgrade_id).gallery_id
            stored = stored_generations(session, gallery_id)
            items = {
                external_id: (id_, revision)
                for id_, external_id, revision in session.execute(
                    text("SELECT id, external_id, revision FROM items WHERE gallery_id = :id AND deleted_at IS NULL"),
                    {"id": gallery_id},
                )
            }
        assert set(items) == self.live
        assert tuple(generation.version.name for generation in stored) == STORED[state]
        for generation in stored:
            rows = _rows_of(database, generation)
            assert sorted(zip(rows.item_id, rows.revision, strict=True)) == sorted(items.values())
            if generation.version.name == "v2":
                self._check_transformed(rows, {items[name][0] for name in self.live - self.encoded})
            else:
                self._check_untouched(rows)
        self._check_nothing_left(stored)
        self.check_answers("v2" if state in (State.LIVE, State.FINALIZED) else "v1")

    def _check_transformed(self, rows: EmbeddingRows, expected_ids: set[int]) -> None:
        """These rows are h and g of what they were transformed from, and all others were encoded."""
        transformed = rows.origin == Origin.TRANSFORMED
        assert set(rows.item_id[transformed].tolist()) == expected_ids
        assert (rows.origin[~transformed] == Origin.ENCODED).all()
        of_source = {int(id_): position for position, id_ in enumerate(self.sources.item_id)}
        positions = np.array([of_source[id_] for id_ in rows.item_id[transformed].tolist()])
        assert (rows.revision[transformed] == self.sources.revision[positions]).all()
        (to_dim, to_side_dim), side = DIMS["v2"], self.sources.side_information
        assert to_side_dim is not None
        assert side is not None
        assert rows.side_information is not None
        inputs = self.sources.embedding[positions].astype(np.float32), side[positions].astype(np.float32)
        for found, h_or_g in (
            (rows.embedding, _network(7, to_dim)),
            (rows.side_information, _network(8, to_side_dim)),
        ):
            np.testing.assert_allclose(found[transformed].astype(np.float32), h_or_g(*inputs), atol=1e-3, rtol=1e-3)

    def _check_untouched(self, rows: EmbeddingRows) -> None:
        """What nobody wrote since is, bit by bit, what it was."""
        before = {key: position for position, key in enumerate(zip(*_keys(self.sources), strict=True))}
        same = [(position, before[key]) for position, key in enumerate(zip(*_keys(rows), strict=True)) if key in before]
        now, then = np.array(same).T
        assert len(now) >= len(_IMPORTED) - 3
        assert (rows.embedding[now] == self.sources.embedding[then]).all()

    def _check_nothing_left(self, stored: list[StoredGeneration]) -> None:
        """There is no table and no file but those of stored generations."""
        parts = self.worker.parts
        with parts.database.session_scope() as session:
            tables = session.scalars(text("SELECT tablename FROM pg_tables WHERE tablename ~ '^embeddings_'"))
            assert set(tables) == {generation.table for generation in stored}
            running = session.scalars(text("SELECT id FROM jobs WHERE state = 'running'")).all()
        assert running == []
        files = [f"generation_{generation.id}" for generation in stored if generation.version.name == "v2"]
        assert [name.split(".")[0] for name in parts.blobs.list_files("indexes")] == files

    def remove(self) -> None:
        if self.state in OPEN:
            self.client.post(f"/v1/upgrades/{self.upgrade_id}/cancel")
        self.client.delete(f"/v1/galleries/{self.name}")
        self.worker.sweep()


def _keys(rows: EmbeddingRows) -> tuple[list[int], list[int]]:
    return rows.item_id.tolist(), rows.revision.tolist()


def _rows_of(database: Database, generation: StoredGeneration) -> EmbeddingRows:
    query = f"SELECT * FROM {generation.table} ORDER BY item_id"
    with database.session_scope() as session:
        return EmbeddingRows.concatenate(
            list(read_rows(driver_connection(session), query, (), generation.vector_format))
        )


def _network(seed: int, to_dim: int) -> Any:
    from_dim, from_side_dim = DIMS["v1"]
    return load_transformation_network(
        transformation_bytes(from_dim, from_side_dim, to_dim, seed=seed),
        from_dim=from_dim,
        side_information_dim=from_side_dim,
        to_dim=to_dim,
    )
