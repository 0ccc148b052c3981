"""The service's answers are PostgreSQL's own: for every metric, number format and kind of index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.index.protocol import Metric
from service.settings import Settings
from tests.conftest import Servers, small_settings
from tests.milvus import milvus
from tests.postgres_search import search_in_postgres
from tests.scenario import DIMS, create_gallery, create_upgradable_gallery, import_vectors, start_upgrade
from tests.unit.index.exhaustive import METRICS
from tests.working import run_until
from workers.app import WorkerParts

ITEMS = 60


@pytest.fixture(params=["faiss", "milvus"])
def settings(request: pytest.FixtureRequest, servers: Servers, database_url: str, tmp_path: Path) -> Iterator[Settings]:
    settings = small_settings(servers, database_url, tmp_path / "data")
    with milvus(tmp_path / "milvus") as url:
        yield settings.model_copy(update={"index_url": url if request.param == "milvus" else None})


def check_answers(client: TestClient, worker: WorkerParts, gallery: str, version: str, metric: Metric) -> None:
    queries = np.random.default_rng(3).standard_normal((4, DIMS[version][0])).round(3)
    for k in (1, 10, ITEMS + 5):
        answer = client.post(
            f"/v1/galleries/{gallery}/search/vectors",
            json={"vectors": queries.tolist(), "k": k, "model_version": version},
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        for query, neighbors in zip(queries.tolist(), body["neighbors"], strict=True):
            with worker.database.session_scope() as session:
                expected = search_in_postgres(session, body["generation"], metric, query, k)
            assert [neighbor["id"] for neighbor in neighbors] == [id_ for id_, _ in expected]
            np.testing.assert_allclose([n["distance"] for n in neighbors], [d for _, d in expected], atol=1e-5)
    query = queries[0].tolist()
    with worker.database.session_scope() as session:
        expected = search_in_postgres(session, body["generation"], metric, query, ITEMS)
    assert pages_of(client, gallery, query) == expected


def pages_of(client: TestClient, gallery: str, query: list[float]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    cursor: str | None = "*"
    while cursor is not None:
        body = {"vectors": [query], "k": 7, "cursor": cursor}
        page = client.post(f"/v1/galleries/{gallery}/search/vectors", json=body).json()
        found += [(neighbor["id"], neighbor["distance"]) for neighbor in page["neighbors"][0]]
        cursor = page["next_cursor"]
    return found


@pytest.fixture
def upgradable(client: TestClient) -> TestClient:
    """A client with a gallery of 60 imported items per metric, some replaced and some deleted; float32 under ip."""
    create_upgradable_gallery(client)
    for metric in METRICS:
        create_gallery(client, metric, metric=metric, dtype="float32" if metric == "ip" else "float16")
        import_vectors(client, [f"item {number}" for number in range(ITEMS)], metric)
        import_vectors(client, [f"item {number}" for number in range(0, 20, 2)], metric, seed=1)
        for number in (1, 2, 40):
            assert client.delete(f"/v1/galleries/{metric}/items/item {number}").status_code == 204
    return client


def test_every_metric_is_answered_as_postgresql_answers_it(upgradable: TestClient, worker: WorkerParts) -> None:
    for metric in METRICS:
        check_answers(upgradable, worker, metric, "v1", metric)


def test_so_it_is_of_what_an_upgrade_derived_by_a_process_that_starts_after_it(
    upgradable: TestClient, worker: WorkerParts, settings: Settings
) -> None:
    for metric in METRICS:
        run_until(worker, upgradable, start_upgrade(upgradable, "v2", metric, cutover="auto"), "live")

    with TestClient(create_app(settings)) as restarted:
        for metric in METRICS:
            check_answers(restarted, worker, metric, "v2", metric)
