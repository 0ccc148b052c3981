"""Death of a worker at every named point between the steps of a backfill: what is claimed comes back, and no row is
lost, written twice or half."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.domain.gallery.current_rows import missing_items
from service.domain.gallery.generations import GenerationKey
from service.domain.upgrade.upgrades import get_upgrade
from service.queue import celery_application
from service.settings import Settings
from service.vectors.rows import Origin
from tests.backfills import backfill_of, begin_backfill, make_candidate, run_backfill
from tests.chaos import dying
from tests.conftest import Servers, small_settings
from tests.rows import all_rows
from workers.app import WorkerParts, make_worker_parts

ITEMS = 6
DEAD = 137
# At which point the worker dies, and how many items have their new rows then.
DEATHS = {"backfill.claimed": 0, "backfill.encoded": 0, "backfill.written": 0, "backfill.committed": 4}

pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group("deaths")]


@pytest.fixture
def settings(servers: Servers, database_url: str, tmp_path: Path) -> Settings:
    images = tmp_path / "images"
    images.mkdir()
    changes = {"images": f"file://{images}/", "lease_seconds": 0.3, "backfill_batch_items": 4}
    return small_settings(servers, database_url, tmp_path / "data").model_copy(update=changes)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings))
    yield parts
    parts.database.engine.dispose()


@pytest.mark.parametrize(("point", "written"), DEATHS.items())
def test_a_death_at_any_point_costs_no_item_and_leaves_no_half_row(
    client: TestClient, worker: WorkerParts, settings: Settings, tmp_path: Path, point: str, written: int
) -> None:
    upgrade_id = make_candidate(client, worker, tmp_path / "images", ITEMS)
    backfill_id = begin_backfill(client)

    code = dying.exit_code_of(dying.backfill, settings.model_copy(update={"crash_at": point}), backfill_id)

    _, left = all_rows(worker, upgrade_id)
    assert code == DEAD
    assert np.count_nonzero(left.origin == Origin.BACKFILLED) == written
    assert backfill_of(client, backfill_id)["outcomes"]["backfilled"] == written
    assert missing(worker, upgrade_id) == []
    found = run_backfill(client, worker, backfill_id)
    _, new = all_rows(worker, upgrade_id)
    assert found["outcomes"] == {"backfilled": ITEMS, "superseded": 0, "refused": 0}
    assert (new.origin == Origin.BACKFILLED).all()
    assert missing(worker, upgrade_id) == []


def missing(worker: WorkerParts, upgrade_id: int) -> list[int]:
    """Return the items that either generation of an upgrade lacks."""
    with worker.database.session_scope() as session:
        upgrade = get_upgrade(session, upgrade_id)
        generations = (upgrade.from_generation_id, upgrade.to_generation_id)
        keys = [GenerationKey(upgrade.gallery_id, generation_id) for generation_id in generations]
        return [item_id for key in keys for item_id in missing_items(session, key)]
