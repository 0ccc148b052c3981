"""Vectors over HTTP: what comes out can go in again, and no client keeps a database connection."""

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from service.db import Database
from tests.exported import export, import_table, table_of
from tests.problems import check_problem
from tests.scenario import (
    create_gallery,
    create_upgradable_gallery,
    import_vectors,
    post_images,
    register_version,
    start_upgrade,
)
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts

if TYPE_CHECKING:
    from starlette.types import Message

URL = "/v1/galleries/g/embeddings"
COLUMNS = ["id", "embedding", "side_information", "origin", "hops", "uncertainty", "label", "metadata", "image_uri"]


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_comes_out_goes_in_again(client: TestClient, worker: WorkerParts, format_: str, dtype: str) -> None:
    create_upgradable_gallery(client)
    create_gallery(client, "h", dtype=dtype)
    post_images(client, range(5), "h")
    import_vectors(client, ["a", "b"], "h")
    upgrade_id = start_upgrade(client, "v2", "h", cutover="auto")
    run_until(worker, client, upgrade_id, "live")
    post_images(client, [7], "h")
    where = {"image_uri": 's3://bucket/"a", b.jpg'}
    assert client.patch("/v1/galleries/h/items/a", json=where).status_code == 200

    answer = client.get("/v1/galleries/h/embeddings", params={"format": format_})
    found = table_of(answer)
    create_gallery(client, "copy", "v2", dtype=dtype)
    imported = client.post("/v1/galleries/copy/embeddings", content=answer.content, params={"model_version": "v2"})

    assert found.column_names == COLUMNS
    assert answer.headers["gallery-model-version"] == "v2"
    assert answer.headers["gallery-revision"] == str(client.get("/v1/galleries/h").json()["revision"])
    assert (answer.headers["gallery-rows"], imported.json()) == ("8", {"count": 8})
    again = export(client, "copy")
    origin = again.column_names.index("origin")
    assert again.remove_column(origin).equals(found.remove_column(origin))
    assert found["origin"].to_pylist() == ["transformed"] * 7 + ["encoded"]
    assert again["origin"].to_pylist() == ["transformed"] * 7 + ["imported"]
    assert found["hops"].to_pylist() == [1] * 7 + [0]
    assert dict(zip(found["id"].to_pylist(), found["image_uri"].to_pylist(), strict=True)) == {
        **dict.fromkeys(found["id"].to_pylist()),
        "a": where["image_uri"],
    }


def test_a_gallery_without_side_information_or_items_comes_out_too(client: TestClient) -> None:
    register_version(client, "v3")
    create_gallery(client, version="v3")

    empty = [export(client, format=format_) for format_ in ("arrow", "parquet")]
    import_vectors(client, ["a"], version="v3")

    assert [table.num_rows for table in empty] == [0, 0]
    assert "side_information" not in empty[0].column_names
    assert export(client)["id"].to_pylist() == ["a"]


def test_pages_are_followed_by_the_header_until_it_is_missing(gallery: TestClient) -> None:
    import_vectors(gallery, [f"item {number}" for number in range(5)])
    whole = export(gallery)

    first = gallery.get(URL, params={"limit": 3})
    second = gallery.get(URL, params={"limit": 3, "cursor": first.headers["next-cursor"], "format": "parquet"})

    assert "next-cursor" not in second.headers
    assert pa.concat_tables([table_of(first), table_of(second)]).equals(whole)
    import_vectors(gallery, ["item 4"])
    check_problem(gallery.get(URL, params={"cursor": first.headers["next-cursor"]}), 410, "begin the export again")


def test_what_cannot_come_out_is_refused_in_words(gallery: TestClient) -> None:
    check_problem(gallery.get("/v1/galleries/other/embeddings"), 404)
    check_problem(gallery.get(URL, params={"generation": "next"}), 409, "no next generation")
    check_problem(gallery.get(URL, params={"generation": "99"}), 410, "keeps no generation 99")
    wrong: list[dict[str, str]] = [
        {"generation": "0"},
        {"generation": "last"},
        {"format": "csv"},
        {"limit": "0"},
        {"cursor": "x"},
        {"cursor": "1.2.3"},
        {"cursor": "1.2.3.4.5"},
    ]
    for parameters in wrong:
        check_problem(gallery.get(URL, params=parameters), 422)


ROWS: dict[str, Any] = {
    "id": ["a", "b", "c", "d"],
    "embedding": [[1.0] * 6] * 4,
    "side_information": [[1.0] * 5] * 4,
}


def test_vectors_that_were_upgraded_elsewhere_come_in_as_such_and_no_others_can_claim_pixels(
    gallery: TestClient,
) -> None:
    table = pa.table(
        {
            **ROWS,
            "origin": pa.array(["transformed", "encoded", None, "transformed"]).dictionary_encode(),
            "hops": pa.array([2, 0, None, 1], pa.int64()),
            "uncertainty": pa.array([0.5, 9.0, None, None]),
        }
    )

    assert import_table(gallery, table).status_code == 200

    items = gallery.get("/v1/galleries/g/items").json()["items"]
    assert [(item["origin"], item["hops"], item["uncertainty"]) for item in items] == [
        ("transformed", 2, 0.5),
        ("imported", 0, None),
        ("imported", 0, None),
        ("transformed", 1, None),
    ]


REFUSED: dict[str, dict[str, Any]] = {
    "an unknown origin": {"origin": ["guessed"] * 4},
    "no hops at all": {"origin": ["transformed"] * 4},
    "no hops": {"origin": ["transformed"] * 4, "hops": [1, 1, None, 1]},
    "zero hops": {"origin": ["transformed"] * 4, "hops": [1, 1, 0, 1]},
    "more hops than are counted": {"origin": ["transformed"] * 4, "hops": [1, 1, 40_000, 1]},
    "hops without an origin": {"hops": [0, 0, 1, 0]},
    "hops of pixels": {"origin": ["encoded"] * 4, "hops": [0, 0, 1, 0]},
    "hops that are not whole": {"origin": ["transformed"] * 4, "hops": [1.0] * 4},
    "a negative error": {"origin": ["transformed"] * 4, "hops": [1] * 4, "uncertainty": [0.1, -0.1, 0.1, 0.1]},
    "an infinite error": {"origin": ["transformed"] * 4, "hops": [1] * 4, "uncertainty": [np.inf] * 4},
    "an error beyond float32": {"origin": ["transformed"] * 4, "hops": [1] * 4, "uncertainty": [1e300] * 4},
    "origins that are numbers": {"origin": [3] * 4},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_provenance_that_cannot_be_is_422_and_stores_nothing(gallery: TestClient, name: str) -> None:
    check_problem(import_table(gallery, pa.table({**ROWS, **REFUSED[name]})), 422)
    assert gallery.get("/v1/galleries/g").json()["items"] == 0


def scope_of(client: TestClient) -> dict[str, Any]:
    """Return an export as a server asks for it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "path": URL,
        "raw_path": URL.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "app": client.app,
    }


def held(database: Database) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
    with database.reading() as connection:
        found: int = connection.exec_driver_sql(query).scalar_one()
        return found


def test_a_client_that_goes_away_or_takes_nothing_frees_the_connection(gallery: TestClient, database: Database) -> None:
    import_vectors(gallery, [f"item {number}" for number in range(600)])
    gallery.app.state.parts.settings.export_stalled_after_seconds = 0.2  # type: ignore[attr-defined]  # a FastAPI
    seen: list[int] = []

    async def gone_after_the_first_block() -> None:
        left = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not seen:
                await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: "Message") -> None:
            if message.get("body"):
                seen.append(held(database))
                left.set()
                await asyncio.sleep(30)

        await gallery.app(scope_of(gallery), receive, send)

    async def stalled() -> None:
        async def send(message: "Message") -> None:
            if message.get("body"):
                seen.append(held(database))
                await asyncio.sleep(30)

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(30)
            return {"type": "http.disconnect"}

        await gallery.app(scope_of(gallery), receive, send)

    for client in (gone_after_the_first_block, stalled):
        asyncio.run(client())
        wait_for(lambda: held(database) == 0)  # a thread rolls back

    assert seen == [1, 1]
    assert export(gallery).num_rows == 600
