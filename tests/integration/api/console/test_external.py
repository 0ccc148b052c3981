"""Pages of upgrades of other stores, at every state of one: whole, naming no call that the API does not have, and with
what its rows say."""

import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

import service.app
from service.db import Database
from service.queue import celery_application
from service.settings import Settings
from tests.external_stores import away, key_of, open_fake
from tests.external_upgrades import (
    STORE,
    act,
    drawn,
    make_fake_parts,
    named,
    register_both,
    start,
    store_of_v1,
    work_until,
    work_until_removed,
)
from tests.statements import least_statements
from workers.app import WorkerParts, make_worker_parts
from workers.connecting import advance_external


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def settings(settings: Settings, path: Path) -> Settings:
    return settings.model_copy(update={"stores": named(path)})


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(service.app.create_app(settings, make_fake_parts), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerParts]:
    parts = make_worker_parts(settings, celery_application(settings), open_fake)
    yield parts
    parts.database.engine.dispose()


def page_of(client: TestClient, path: str) -> str:
    """Return a page's text, after checks that hold of every page."""
    page = client.get(path)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8"), page.text
    assert page.text.count("<h1") == 1
    assert not re.search(r"<(script|style)>|\sstyle=|\son[a-z]+=", page.text)
    ids = re.findall(r'\sid="([^"]+)"', page.text)
    assert len(ids) == len(set(ids)), ids
    known = [re.compile(re.sub(r"\\{[^}]*\\}", "[^/?]+", re.escape(each))) for each in _paths(client)]
    for asked in re.findall(r'data-(?:path|events)="([^"?]*)', page.text):
        assert any(each.fullmatch(unquote(asked)) for each in known), asked
    text: str = page.text
    return text


def _paths(client: TestClient) -> list[str]:
    return list(client.get("/openapi.json").json()["paths"])


def steps_of(page: str) -> dict[str, bool]:
    """Return the states of the timeline, and which were reached."""
    part = page[page.index('<ol class="phases">') :].partition("</ol>")[0]
    return {name: look == "reached" for look, name in re.findall(r'<li class="(\w*)"><h3>(.*?)</h3>', part)}


def looks_of(page: str) -> list[str]:
    """Return the squares of the grid of ranges."""
    return re.findall(r'<li class="(\w+)" title=', page)


def test_the_page_follows_an_upgrade_from_plan_to_finalized(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    register_both(client)
    store_of_v1(path, notices=False)
    assert "No upgrade of another store yet" in page_of(client, "/console/external-upgrades")
    upgrade_id = start(client)
    address = f"/console/external-upgrades/{upgrade_id}"

    planned = page_of(client, address)
    assert "None are cut yet." in planned
    assert steps_of(planned) == {
        "Planned": True,
        "Transforming": False,
        "Verifying": False,
        "Ready": False,
        "Live": False,
        "Finalized": False,
    }

    work_until(worker, client, upgrade_id, "ready")
    ready = page_of(client, address)
    assert [name for name, reached in steps_of(ready).items() if not reached] == ["Live", "Finalized"]
    assert looks_of(ready) == ["done"] * 5
    assert "5 of 5 ranges" in ready
    assert re.search(r'title="range 1, keys after key-\d{3} up to key-\d{3}: done"', ready)
    assert "Both sides of every range were read and compared: 30 rows in 5 ranges, in 1 pass." in ready
    assert "Verdict: not judged" in ready
    assert "Items that are in the next generation" in ready  # the gate of completeness
    assert "Hold writes to it from then" in ready
    assert "0 of 30 are given" in ready
    assert re.search(r'data-path="/v1/external-upgrades/\d+/evaluate"', ready)

    act(client, upgrade_id, "cutover")
    work_until(worker, client, upgrade_id, "live")
    live = page_of(client, address)
    assert re.search(rf'data-must-be="{STORE}"', live)
    assert "30 rows of 6 numbers each. From then on there is no rollback." in live
    assert "accept_loss" not in live  # the store does not notice writes

    act(client, upgrade_id, "finalize")
    ended = page_of(client, address)
    assert "A worker removes what it left in the store" in ended
    assert 'data-every="3"' in ended
    work_until_removed(worker, client, upgrade_id)
    assert "What it left in the store was removed" in page_of(client, address)
    line = page_of(client, "/console/external-upgrades")
    assert re.search(rf'href="{address}"><bdi>{STORE}</bdi>, upgrade {upgrade_id}<', line)
    assert '<span class="tag finalized">finalized</span>' in line


def test_a_range_that_failed_says_why_and_a_store_that_is_away_too(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    register_both(client)
    embedding, side = drawn(1)
    store_of_v1(path).put({key_of(11): (embedding[0] * np.nan, side[0])})
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "failed")

    page = page_of(client, f"/console/external-upgrades/{upgrade_id}")

    assert looks_of(page) == ["done", "failed", "done", "done", "done"]
    assert "1 row cannot be upgraded, first key-011: its embedding has a value that is not finite" in page
    assert "1 failed</span>" in page
    away(path)
    gone = page_of(client, f"/console/stores/{STORE}")
    assert "does not answer" in gone
    assert "hunter2" not in gone


def test_a_gate_that_failed_is_shown_as_an_interval_and_takes_a_reason(
    client: TestClient, worker: WorkerParts, path: Path
) -> None:
    register_both(client)
    store_of_v1(path, 150)
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "ready")
    ids = client.get(f"/v1/external-upgrades/{upgrade_id}/references", params={"wanted": 110}).json()["ids"]
    body = io.BytesIO()
    others = np.random.default_rng(2).standard_normal((110, 8)).astype(np.float32)
    pq.write_table(pa.table({"id": ids, "embedding": list(others)}), body)
    client.post(f"/v1/external-upgrades/{upgrade_id}/references", content=body.getvalue())
    act(client, upgrade_id, "evaluate")
    for _ in range(3):
        advance_external(worker, upgrade_id)

    page = page_of(client, f"/console/external-upgrades/{upgrade_id}")

    assert "Verdict: fail" in page
    assert "Intervals of the gates against their limits" in page
    assert re.search(r'<td class="fail"><b>✗ fail</b></td><td>110</td>', page)
    assert "Inside the set of references" in page
    assert 'name="override.reason"' in page
    assert "110 of 112 are given" in page


def test_a_dry_run_of_a_store_shows_numbers_and_writes_nothing(client: TestClient, path: Path) -> None:
    register_both(client)
    store_of_v1(path)

    found = page_of(client, f"/console/stores/{STORE}?from_version=v1&to_version=v2")
    refused = page_of(client, f"/console/stores/{STORE}?from_version=v2&to_version=v1")

    assert "<dt>Rows to transform</dt><dd>30</dd>" in found
    assert "<dt>Ranges</dt><dd>5</dd>" in found
    assert "Start the upgrade to v2" in found
    assert re.search(r'class="problem" role="alert">[^<]*v2[^<]*</p>', refused)
    assert client.get("/v1/external-upgrades").json()["items"] == []
    unknown = client.get("/console/stores/nowhere")
    assert (unknown.status_code, "There is no store" in unknown.text) == (404, True)
    assert client.get("/console/external-upgrades/99").status_code == 404


def test_a_list_of_upgrades_costs_as_many_statements_for_one_and_for_three(
    client: TestClient, worker: WorkerParts, database: Database, path: Path
) -> None:
    register_both(client)
    store_of_v1(path)
    counts = []
    for _ in range(3):
        upgrade_id = start(client)
        advance_external(worker, upgrade_id)
        page = page_of(client, "/console/external-upgrades")
        engine = client.app.state.parts.database.engine  # type: ignore[attr-defined]
        counts.append(least_statements(engine, partial(client.get, "/console/external-upgrades")))
        act(client, upgrade_id, "cancel")
        work_until_removed(worker, client, upgrade_id)

    assert page.count("data-row") == 3
    assert counts[0] > 0
    assert counts[0] == counts[2]
