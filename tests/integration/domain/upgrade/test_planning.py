"""Planning an upgrade: what refuses it, what it begins with, and that an outline only says so."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import Database
from service.domain.gallery.galleries import UnknownGallery
from service.domain.gallery.generations import get_stored_generation
from service.domain.registry.transformations import UnknownTransformation
from service.domain.registry.versions import UnknownVersion
from service.domain.upgrade.paths import NoPath
from service.domain.upgrade.planning import AlreadyThere, UpgradeOpen, WantedUpgrade, outline_upgrade, plan_upgrade
from service.errors import GalleryError
from service.queue import ADVANCE_UPGRADE
from service.settings import Settings
from service.tables import Upgrade
from tests.fakes import RecordingQueue
from tests.scenario import create_gallery, post_images, register_transformation, register_version, start_upgrade

WANTED = WantedUpgrade("g", "v2", cutover="auto", speed=0.5)
Ask = Callable[[Session, Settings, WantedUpgrade], object]
ASKS: dict[str, Ask] = {"plan": plan_upgrade, "outline": lambda session, _, wanted: outline_upgrade(session, wanted)}


def everything(database: Database) -> dict[str, list[Any]]:
    """Return the rows of every table, by its name."""
    with database.session_scope() as session:
        tables = session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")).all()
        return {
            name: list(session.scalars(text(f"SELECT to_jsonb(t) FROM {name} t ORDER BY t::text"))) for name in tables
        }


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(
    ("wanted", "refusal", "sentence"),
    [
        (WantedUpgrade("none", "v2"), UnknownGallery, "'none'"),
        (WantedUpgrade("g", "none"), UnknownVersion, "'none'"),
        (WantedUpgrade("g", "v2", transformation_id=99), UnknownTransformation, "99"),
        (WantedUpgrade("g", "v1"), AlreadyThere, "already under model version 'v1'"),
        (WantedUpgrade("g", "v3"), NoPath, "leads from model version 'v1' to 'v3'"),
        (WantedUpgrade("g", "v2", transformation_id=2), NoPath, "leads from model version 'v1' to 'v2'"),
        (WantedUpgrade("busy", "v2"), UpgradeOpen, "Upgrade 1 of gallery 'busy' is open"),
    ],
    ids=["gallery", "version", "transformation", "already there", "no path", "wrong transformation", "open"],
)
def test_what_refuses_a_plan_refuses_its_outline_and_both_write_nothing(
    gallery: TestClient,
    database: Database,
    settings: Settings,
    ask: str,
    wanted: WantedUpgrade,
    refusal: type[GalleryError],
    sentence: str,
) -> None:
    register_version(gallery, "v3")
    register_transformation(gallery, "v2", "v1")
    create_gallery(gallery, "busy")
    start_upgrade(gallery, "v2", "busy")
    before = everything(database)

    with pytest.raises(refusal, match=sentence), database.session_scope() as session:
        ASKS[ask](session, settings, wanted)

    assert everything(database) == before


def test_an_outline_says_what_a_plan_would_make_and_writes_nothing(gallery: TestClient, database: Database) -> None:
    gallery.delete("/v1/galleries/g/items/image-0.png")
    before = everything(database)

    with database.session_scope() as session:
        outline = outline_upgrade(session, WANTED)

    assert [leg.to_json() for leg in outline.legs] == [{"generation": 1, "transformations": [1]}]
    assert (outline.target.version.name, outline.target.state, outline.items) == ("v2", "building", 19)
    assert outline.bytes.database > 19 * 2 * (8 + 4)
    assert everything(database) == before
    assert isinstance(database.queue, RecordingQueue)
    assert database.queue.sent == []


def test_a_plan_makes_an_empty_generation_of_the_outlines_format_and_nudges_a_worker(
    gallery: TestClient, database: Database, settings: Settings
) -> None:
    post_images(gallery, [3])
    with database.session_scope() as session:
        outline = outline_upgrade(session, WANTED)

    with database.session_scope() as session:
        upgrade_id = plan_upgrade(session, settings, WANTED).id

    with database.session_scope() as session:
        upgrade = session.get_one(Upgrade, upgrade_id)
        target = get_stored_generation(session, 1, upgrade.to_generation_id)
        rows = session.scalar(text(f"SELECT count(*) FROM {target.table}"))
        events = session.scalars(text("SELECT state FROM upgrade_events WHERE upgrade_id = :id"), {"id": upgrade_id})
        assert list(events) == ["planned"]
    assert (target.vector_format, target.state, rows) == (outline.target.vector_format, "building", 0)
    assert [leg.to_json() for leg in upgrade.legs] == [leg.to_json() for leg in outline.legs]
    assert (upgrade.state, upgrade.cutover, upgrade.speed, upgrade.start_revision) == ("planned", "auto", 0.5, 21)
    assert isinstance(database.queue, RecordingQueue)
    assert database.queue.sent == [(ADVANCE_UPGRADE, (upgrade_id,))]


def test_a_plan_that_is_rolled_back_leaves_nothing_and_nudges_nobody(
    gallery: TestClient, database: Database, settings: Settings
) -> None:
    before = everything(database)

    def plan_and_fail() -> None:
        with database.session_scope() as session:
            plan_upgrade(session, settings, WANTED)
            raise KeyError

    with pytest.raises(KeyError):
        plan_and_fail()

    assert everything(database) == before
    assert isinstance(database.queue, RecordingQueue)
    assert database.queue.sent == []


def test_of_plans_that_come_at_once_one_is_made(gallery: TestClient, database: Database, settings: Settings) -> None:
    def plan(_: int) -> bool:
        try:
            with database.session_scope() as session:
                plan_upgrade(session, settings, WANTED)
        except UpgradeOpen:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(plan, range(8)))

    assert sum(made) == 1
    assert len(gallery.get("/v1/galleries/g/upgrades").json()["items"]) == 1
    with database.session_scope() as session:
        assert session.scalar(text("SELECT count(*) FROM generations")) == 2
