"""Shadowed queries: which are, what is kept of them, and that whoever asks notices nothing."""

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from service.api.dependencies import Parts
from service.app import create_app, make_parts
from service.domain.judging.shadowed_queries import ShadowDraw, Shadowing
from service.domain.upgrade.cutover import request_cutover
from service.index.served import ServedGeneration
from service.networks.encoders import Encoded
from service.settings import Settings
from service.tables import Item, ModelVersion, ShadowedQuery
from tests.fakes import WatchedEncoders
from tests.networks import image_bytes
from tests.scenario import (
    DIMS,
    create_upgradable_gallery,
    post_images,
    register_transformation,
    register_version,
    search,
    start_upgrade,
)
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade

WAITING = 8  # as many as wait for the thread


@dataclass
class App:
    """A service that shadows every query; `before` is told which version encodes one. `draws` are its random numbers,
    then 0, `drawn` counts them: one for each query that was offered."""

    client: TestClient = field(init=False)
    parts: Parts = field(init=False)
    before: Callable[[str], object] = lambda version: None
    draws: list[float] = field(default_factory=list)
    drawn: int = 0

    def draw(self) -> float:
        self.drawn += 1
        return self.draws.pop(0) if self.draws else 0.0

    def kept(self) -> list[ShadowedQuery]:
        """Return the rows, oldest first."""
        with self.parts.database.session_scope() as session:
            return list(session.scalars(select(ShadowedQuery).order_by(ShadowedQuery.id)))

    def wait_for_kept(self, count: int) -> list[ShadowedQuery]:
        wait_for(lambda: len(self.kept()) >= count)
        return self.kept()

    def encoded(self, version: str, seed: int) -> Encoded:
        """Return what a version makes of an image."""
        encoders = self.parts.search.encoders
        with self.parts.database.session_scope() as session:
            row = session.scalars(select(ModelVersion).where(ModelVersion.name == version)).one()
        encoder = encoders.get(row)
        return encoder.encode([encoders.images.reduce(image_bytes(seed), [encoder.preprocessing])])

    def pairs(self) -> tuple[ServedGeneration, ServedGeneration]:
        candidate = self.parts.replicas.loaded_next(1)
        assert candidate is not None
        return self.parts.replicas.active(1, None), candidate


@contextmanager
def running(settings: Settings, share: float = 1.0, per_second: int = 1_000, kept: int = 1_000) -> Iterator[App]:
    app, parts = App(), make_parts(settings)
    encoders = WatchedEncoders(parts.blobs, settings, lambda version: app.before(version))
    draw = ShadowDraw(share, per_second, app.draw, lambda: 0.0)
    shadowing = Shadowing(parts.database, encoders, draw, kept)
    app.parts = replace(parts, shadowing=shadowing, search=replace(parts.search, shadowing=shadowing))
    with TestClient(create_app(settings, lambda _: app.parts), raise_server_exceptions=False) as app.client:
        yield app


def fill(app: App) -> None:
    create_upgradable_gallery(app.client)
    post_images(app.client, range(12))


def open_upgrade(app: App, worker: WorkerParts, to_version: str = "v2") -> int:
    """Start an upgrade, and wait until its candidate is loaded."""
    upgrade_id = start_upgrade(app.client, to_version, cutover="manual")
    run_until(worker, app.client, upgrade_id, "ready")
    wait_for(lambda: app.parts.replicas.loaded_next(1) is not None)
    return upgrade_id


@pytest.fixture
def app(settings: Settings) -> Iterator[App]:
    """A service with a gallery of 12 images that can be upgraded to v2."""
    with running(settings) as app:
        fill(app)
        yield app


def embeddings_from(app: App) -> list[bytes]:
    return [row.embedding_from for row in app.kept()]


def as_bytes(app: App, *seeds: int) -> list[bytes]:
    return [app.encoded("v1", seed).embedding[0].astype("<f4").tobytes() for seed in seeds]


def test_queries_are_shadowed_while_an_upgrade_has_a_candidate_and_at_no_other_time(
    app: App, worker: WorkerParts
) -> None:
    search(app.client, 50)
    upgrade_id = start_upgrade(app.client, "v2", cutover="manual")
    search(app.client, 50)
    assert (app.drawn, app.kept()) == (0, [])

    run_until(worker, app.client, upgrade_id, "ready")
    wait_for(lambda: app.parts.replicas.loaded_next(1) is not None)
    search(app.client, 50)
    app.wait_for_kept(1)
    search(app.client, 50, generation="next")
    assert app.drawn == 1

    with worker.database.session_scope() as session:
        request_cutover(session, upgrade_id)
    run_until(worker, app.client, upgrade_id, "live")
    wait_for(lambda: search(app.client, 50)["model_version"] == "v2")
    drawn = app.drawn
    search(app.client, 50)
    assert app.drawn == drawn
    assert {row.to_generation_id for row in app.kept()} == {2}


def test_what_is_kept_is_what_the_encoders_and_both_generations_give(app: App, worker: WorkerParts) -> None:
    open_upgrade(app, worker)

    search(app.client, 50, k=1)
    (row,) = app.wait_for_kept(1)

    before, after = (app.encoded(version, 50) for version in ("v1", "v2"))
    assert before.side_information is not None
    assert row.side_information_from is not None
    for data, vector in (
        (row.embedding_from, before.embedding),
        (row.side_information_from, before.side_information),
        (row.embedding_to, after.embedding),
    ):
        np.testing.assert_allclose(np.frombuffer(data, "<f4"), vector[0], rtol=1e-5, atol=1e-5)
    with app.parts.database.session_scope() as session:
        names = {item.id: item.external_id for item in session.scalars(select(Item))}
    for answer, which in ((row.answers_before, "active"), (row.answers_after, "next")):
        found = search(app.client, 50, k=10, generation=which)
        assert [names[id_] for id_ in answer] == [neighbor["id"] for neighbor in found["neighbors"]]


def test_a_version_without_side_information_has_none_and_a_short_answer_is_filled_up(
    settings: Settings, worker: WorkerParts
) -> None:
    with running(settings) as app:
        for version in ("v3", "v1"):
            register_version(app.client, version)
        register_transformation(app.client, "v3", "v1")
        app.client.post("/v1/galleries", json={"name": "g", "model_version": "v3"})
        post_images(app.client, range(4))
        open_upgrade(app, worker, "v1")

        search(app.client, 50)
        (row,) = app.wait_for_kept(1)

        assert row.side_information_from is None
        assert sorted(row.answers_after) == [-1] * 6 + [1, 2, 3, 4]


def test_no_image_is_kept(app: App, worker: WorkerParts) -> None:
    open_upgrade(app, worker)

    search(app.client, 50)
    (row,) = app.wait_for_kept(1)

    sizes = [len(data or b"") for data in (row.embedding_from, row.side_information_from, row.embedding_to)]
    assert sizes == [4 * DIMS["v1"][0], 4 * (DIMS["v1"][1] or 0), 4 * DIMS["v2"][0]]
    with app.parts.database.session_scope() as session:
        kept = session.execute(text("SELECT s::text FROM shadowed_queries s")).scalar_one()
    assert image_bytes(50)[:8].hex() not in kept


class File(bytearray):
    """A file's bytes, of which it can be told whether anybody holds them."""


def test_an_image_is_let_go_as_soon_as_it_is_encoded(app: App, worker: WorkerParts) -> None:
    open_upgrade(app, worker)
    active, candidate = app.pairs()
    file = File(image_bytes(50))
    held = weakref.ref(file)

    with worker.database.session_scope() as session:
        session.execute(text("SELECT FROM galleries FOR UPDATE"))  # nothing can be written
        app.parts.shadowing.offer(file, np.zeros(DIMS["v1"][0], np.float32), active, candidate)  # type: ignore[arg-type]  # bytes cannot be watched
        del file
        wait_for(lambda: held() is None)
        assert app.kept() == []

    app.wait_for_kept(1)


def test_the_share_and_the_limit_decide_what_is_kept(settings: Settings, worker: WorkerParts) -> None:
    with running(settings, share=0.01, per_second=2) as app:
        fill(app)
        open_upgrade(app, worker)
        app.draws = [0.5, 0.005, 0.01, 0.0, 0.0, 0.9]

        for seed in range(50, 56):
            search(app.client, seed)
        app.wait_for_kept(2)

        assert app.drawn == 6
        assert embeddings_from(app) == as_bytes(app, 51, 53)


def test_with_share_0_nothing_is_kept_and_what_was_is_removed(settings: Settings, worker: WorkerParts) -> None:
    with running(settings) as app:
        fill(app)
        open_upgrade(app, worker)
        search(app.client, 50)
        app.wait_for_kept(1)

    with running(settings, share=0.0) as app:
        wait_for(lambda: app.parts.replicas.is_loaded and app.kept() == [])
        app.draws = [0.0]
        search(app.client, 50)
        app.parts.shadowing.stop()
        assert (app.drawn, app.kept()) == (1, [])


def test_the_newest_are_kept(settings: Settings, worker: WorkerParts) -> None:
    with running(settings, kept=3) as app:
        fill(app)
        open_upgrade(app, worker)

        for seed in range(50, 56):
            search(app.client, seed)

        wait_for(lambda: embeddings_from(app) == as_bytes(app, 53, 54, 55))


def test_a_query_whose_shadow_fails_is_answered_and_the_next_one_is_kept(
    app: App, worker: WorkerParts, caplog: pytest.LogCaptureFixture
) -> None:
    open_upgrade(app, worker)
    before = search(app.client, 50)

    def fail(version: str) -> None:
        app.before = lambda version: None
        raise RuntimeError(f"{version} is broken")

    app.wait_for_kept(1)
    app.before = fail
    assert search(app.client, 50) == before
    wait_for(lambda: "shadowed_query.failed reason='RuntimeError: v2 is broken'" in caplog.text)
    search(app.client, 51)

    app.wait_for_kept(2)
    assert embeddings_from(app) == as_bytes(app, 50, 51)


def test_no_query_waits_for_a_shadow_and_what_is_too_much_is_dropped(app: App, worker: WorkerParts) -> None:
    open_upgrade(app, worker)
    begun, may_end = threading.Event(), threading.Event()

    def block(_: str) -> None:
        begun.set()
        assert may_end.wait(60)

    app.before = block
    try:
        search(app.client, 50)
        assert begun.wait(60)
        for seed in range(51, 71):
            assert search(app.client, seed)["model_version"] == "v1"
            assert search(app.client, seed, generation="next")["model_version"] == "v2"
        assert app.kept() == []
    finally:
        may_end.set()

    app.wait_for_kept(1 + WAITING)
    assert embeddings_from(app) == as_bytes(app, *range(50, 51 + WAITING))


def test_a_query_whose_upgrade_ends_before_its_shadow_is_not_kept(
    app: App, worker: WorkerParts, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade_id = open_upgrade(app, worker)
    begun, may_end = threading.Event(), threading.Event()

    def block(_: str) -> None:
        begun.set()
        assert may_end.wait(60)

    app.before = block
    try:
        search(app.client, 50)
        assert begun.wait(60)
        assert app.client.post(f"/v1/upgrades/{upgrade_id}/cancel").is_success
        with caplog.at_level(logging.INFO):
            may_end.set()
            wait_for(lambda: "shadowed_query.unwanted" in caplog.text)
    finally:
        may_end.set()

    assert app.kept() == []


def test_a_gallery_is_deleted_while_a_query_is_kept(
    app: App, worker: WorkerParts, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade_id = open_upgrade(app, worker)

    with ThreadPoolExecutor() as threads:
        with worker.database.session_scope() as session:
            session.execute(text("SELECT FROM model_versions WHERE name = 'v2' FOR UPDATE"))
            search(app.client, 50)
            wait_until_waiting(app, 1)
            assert app.client.post(f"/v1/upgrades/{upgrade_id}/cancel").is_success
            deleting = threads.submit(app.client.delete, "/v1/galleries/g")
            wait_until_waiting(app, 2)
        assert deleting.result().status_code == 204

    assert app.kept() == []
    assert "shadowed_query" not in caplog.text


def wait_until_waiting(app: App, count: int) -> None:
    """Wait until so many connections wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with app.parts.database.reading() as connection:
        wait_for(lambda: connection.scalar(text(query)) == count)


def measured(app: App, worker: WorkerParts, upgrade_id: int) -> dict[str, Any]:
    """Have a report made, and return it."""
    asked = app.client.post(f"/v1/upgrades/{upgrade_id}/evaluate", json={"seed": 0})
    advance_upgrade(worker, upgrade_id)
    report: dict[str, Any] = app.client.get(asked.headers["Location"]).json()
    return report


def test_the_churn_of_shadowed_queries_is_in_the_report_of_their_upgrade_and_gates_nothing(
    app: App, worker: WorkerParts
) -> None:
    upgrade_id = open_upgrade(app, worker)
    before = measured(app, worker, upgrade_id)
    for seed in range(50, 56):
        search(app.client, seed)
    rows = app.wait_for_kept(6)

    after = measured(app, worker, upgrade_id)

    churn = after["content"]["measurements"]["churn"]
    shares = [len(set(row.answers_before) & set(row.answers_after)) / 10 for row in rows]
    assert (churn["n"], churn["overlap"]) == (6, pytest.approx(np.mean(shares)))
    assert 0 < churn["rank_biased_overlap"] < 1
    assert before["content"]["measurements"]["churn"] is None
    assert after["content"]["gates"] == before["content"]["gates"]
    assert after["verdict"] == before["verdict"] == "not_judged"

    app.client.post(f"/v1/upgrades/{upgrade_id}/cancel")
    later = open_upgrade(app, worker)
    assert measured(app, worker, later)["content"]["measurements"]["churn"] is None
