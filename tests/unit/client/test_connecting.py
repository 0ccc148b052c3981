"""The commands on galleries in other stores."""

import json
from collections.abc import Iterator
from datetime import date
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from gallery_upgrade.arrays import vectors_table
from gallery_upgrade.cli import main, mount
from gallery_upgrade.cli.galleries import OpenedStore
from service.cli.stores import read_store
from tests.scripted_service import ScriptedService

DESCRIPTION: dict[str, Any] = {
    "rows": 30,
    "embedding_dim": 6,
    "side_information_dim": None,
    "metric": "l2",
    "dtype": "float32",
    "scales": False,
    "notices_writes": True,
    "warning": None,
}
UPGRADE: dict[str, Any] = {
    **dict.fromkeys(("verification", "judged", "decision", "late", "error", "cutover_requested_at", "live_at")),
    **dict.fromkeys(("finished_at", "removed_at")),
    "id": 1,
    "store": "shop",
    "state": "ready",
    "cutover": "manual",
    "speed": 1.0,
    "from_version": "v1",
    "to_version": "v2",
    "transformation": 1,
    "description": DESCRIPTION,
    "progress": {},
    "pass_number": 2,
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
}


@pytest.fixture(autouse=True)
def own_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GALLERY_CONFIG", str(tmp_path / "config.toml"))


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


def invoke(*arguments: str, app: typer.Typer = main) -> Result:
    return CliRunner().invoke(app, arguments)


def app_with(store: OpenedStore) -> typer.Typer:
    """Return the commands of an application that reads this store, whatever the URL."""
    app = typer.Typer()
    mount(app, lambda url, rows, described=False: store)
    return app


def of_rows(rows: int, faults: list[str] | None = None) -> OpenedStore:
    vectors = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32)
    table = vectors_table([str(row) for row in range(rows)], vectors, None)
    return OpenedStore(DESCRIPTION, iter([table.slice(0, 10), table.slice(10)]), faults or [])


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 3), ("inconclusive", 4), ("not_judged", 4)])
def test_an_upgrade_that_is_watched_ends_with_the_code_of_its_verdict(
    service: ScriptedService, verdict: str, code: int
) -> None:
    service.will_answer(200, {**UPGRADE, "judged": {"report": 1, "verdict": verdict}})

    watched = invoke("connect", "watch", "1", "--url", service.url)

    assert (watched.exit_code, watched.stderr) == (code, "")
    assert watched.stdout == "external upgrade 1 is ready\n"


def test_one_that_failed_says_why(service: ScriptedService) -> None:
    service.will_answer(200, {**UPGRADE, "state": "failed", "error": "1 row cannot be upgraded."})

    watched = invoke("connect", "watch", "1", "--url", service.url)

    assert watched.exit_code == 1
    assert "External upgrade 1 is failed. 1 row cannot be upgraded." in watched.stderr


def test_stores_are_listed_with_what_they_hold_or_why_they_say_nothing(service: ScriptedService) -> None:
    stores = [
        {"name": "shop", "description": DESCRIPTION, "error": None},
        {"name": "gone", "description": None, "error": "It does not answer."},
    ]
    service.will_answer(200, {"items": stores})

    listed = invoke("connect", "stores", "--json", "--url", service.url)

    rows = json.loads(listed.stdout)
    assert [(row["name"], row.get("rows"), row["error"]) for row in rows] == [
        ("shop", 30, None),
        ("gone", None, "It does not answer."),
    ]


def test_the_doctor_says_of_a_store_what_it_holds_and_what_an_upgrade_needs() -> None:
    found = invoke("doctor", "shop://x", app=app_with(of_rows(30, ["Key 7 is not finite."])))

    assert found.exit_code == 0
    assert "Key 7 is not finite." in found.stdout
    assert "An upgrade of it where it is needs model versions of 6 numbers" in found.stdout


def test_a_client_alone_reads_files_alone() -> None:
    told = invoke("doctor", "postgresql://x")

    assert told.exit_code == 2
    assert "This client reads files alone" in told.stderr
    assert invoke("doctor", "/nowhere").exit_code == 2


def test_the_service_reads_a_store_by_its_url(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(25, 6)).astype(np.float32)
    pq.write_table(vectors_table([f"{row:02}" for row in range(25)], vectors, None), tmp_path / "gallery.parquet")

    store = read_store(f"file://{tmp_path}/gallery.parquet", 10)
    tables = list(store.tables)

    assert (store.description["rows"], store.description["embedding_dim"]) == (25, 6)
    assert sum(table.num_rows for table in tables) == 25
    assert store.faults == []
    with pytest.raises(ValueError, match="A store's URL begins with one of"):
        read_store("ftp://x/y", 10)


def test_what_a_store_says_of_its_items_is_metadata_label_and_place(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    table = vectors_table(["a", "b"], vectors, None).append_column("label", pa.array(["cat", None]))
    table = table.append_column("image_uri", pa.array([None, "s3://x/b.png"]))
    table = table.append_column("year", pa.array([2020, None])).append_column("raw", pa.array([b"x", b"y"]))
    table = table.append_column("day", pa.array([date(2026, 1, 2)] * 2)).append_column("score", pa.array([nan, 0.5]))
    pq.write_table(table, tmp_path / "gallery.parquet")

    (found,) = read_store(f"file://{tmp_path}/gallery.parquet", 10, described=True).tables

    assert found["label"].to_pylist() == ["cat", None]
    assert found["image_uri"].to_pylist() == [None, "s3://x/b.png"]
    assert [json.loads(said) for said in found["metadata"].to_pylist()] == [
        {"year": 2020, "day": "2026-01-02"},
        {"day": "2026-01-02", "score": 0.5},
    ]


def test_an_import_that_creates_needs_to_be_told_the_version(service: ScriptedService) -> None:
    told = invoke("import", "g", "shop://x", "--create", "--url", service.url, app=app_with(of_rows(3)))

    assert told.exit_code == 2
    assert "--model-version" in told.output
    assert service.asked == []
