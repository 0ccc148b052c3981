"""What a scrape says of rows: as the last look found them, with a bounded number of labels, and without a statement."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.api.dependencies import Parts
from service.app import create_app
from service.db import Database
from service.domain.figures import Figures
from service.queue import TaskQueue, celery_application
from service.settings import Settings
from tests.scenario import (
    create_gallery,
    create_upgradable_gallery,
    import_vectors,
    post_images,
    register_version,
    search,
    start_upgrade,
)
from tests.served import free_port
from tests.statements import recorded_statements
from tests.working import run_until
from workers.app import WorkerParts

Samples = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of a process that looks when it is told."""
    quiet = settings.model_copy(update={"metrics_galleries": 2, "follow_every_seconds": 3600.0})
    with TestClient(create_app(quiet)) as client:
        yield client


def parts_of(client: TestClient) -> Parts:
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # the client's type says any ASGI application
    return parts


def scraped(client: TestClient) -> Samples:
    """Return the samples of a scrape by their names and the values of their labels."""
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def looked(client: TestClient) -> Samples:
    parts_of(client).figures.look()
    return scraped(client)


def test_galleries_past_the_cap_share_a_label(client: TestClient) -> None:
    register_version(client, "v1")
    for name, items in {"a": 1, "b": 2, "c": 3, "d": 4}.items():
        create_gallery(client, name)
        import_vectors(client, [f"{name}{number}" for number in range(items)], name)

    found = looked(client)

    assert {labels: value for (name, labels), value in found.items() if name == "gallery_items"} == {
        ("a",): 1,
        ("b",): 2,
        ("other",): 7,
    }
    assert found["gallery_index_vectors", ("other",)] == 7
    assert found["gallery_index_bytes", ("a",)] == 4 * 6
    assert found["gallery_replica_lag_revisions", ("other",)] == 0
    assert found["gallery_galleries", ()] == 4


def test_an_upgrade_is_seen_from_its_plan_to_its_verdict(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(20))
    upgrade_id = start_upgrade(client, "v2")

    planned = looked(client)
    run_until(worker, client, upgrade_id, "ready")
    ready = looked(client)

    assert planned["gallery_upgrades", ("planned",)] == 1
    assert planned["gallery_upgrade_idle_seconds", ("g",)] >= 0
    assert ready["gallery_upgrades", ("ready",)] == 1
    assert ready["gallery_upgrade_progress_ratio", ("g", "transforming")] == 1
    assert ready["gallery_upgrade_batches", ("done",)] == 3
    assert ready["gallery_upgrade_verdict", ("g", "not_judged")] == 1
    assert ready["gallery_upgrade_verdict", ("g", "pass")] == 0
    assert ("gallery_upgrade_idle_seconds", ("g",)) not in ready
    assert ready["gallery_jobs", ("index_build", "succeeded")] == 1


def test_a_scrape_sends_no_statement_and_a_look_as_many_for_many_galleries(
    client: TestClient, database: Database, settings: Settings
) -> None:
    register_version(client, "v1")
    parts, queue = parts_of(client), TaskQueue(celery_application(settings))
    figures = Figures(database, queue, parts.replicas, parts.drift, settings)

    looks = []
    for name in ("a", "b", "c"):
        create_gallery(client, name)
        with recorded_statements(database.engine) as looking:
            figures.look()
        looks.append(looking)
    parts.figures.look()
    with recorded_statements(parts.database.engine) as scraping:
        found = scraped(client)

    assert found["gallery_galleries", ()] == 3
    assert looks[0] == looks[1] == looks[2]
    assert set(scraping).isdisjoint(looks[0])


def test_the_stages_of_a_search_are_timed(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client)
    post_images(client, range(3))

    search(client, 1)
    found = scraped(client)

    stages = {
        stage: found["gallery_search_stage_seconds_count", (stage,)] for stage in ("decode", "encode", "index", "rows")
    }
    assert stages == {"decode": 1, "encode": 1, "index": 1, "rows": 1}
    assert found["gallery_encoder_busy_seconds_total", ("cpu",)] > 0


def test_a_process_is_scraped_while_the_database_and_the_broker_are_away(settings: Settings) -> None:
    away = settings.model_copy(
        update={
            "database_url": f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/nothing",
            "broker_url": f"redis://127.0.0.1:{free_port()}",
        }
    )
    with TestClient(create_app(away)) as client:
        found = looked(client)

    assert (found["gallery_database_up", ()], found["gallery_broker_up", ()]) == (0, 0)
    assert ("gallery_figures_age_seconds", ()) not in found
    assert found["gallery_disk_free_bytes", ()] > 0
