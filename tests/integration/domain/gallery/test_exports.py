"""Exports: one snapshot each, cursors that hold while nothing changed, and connections that are given back."""

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.db import Database
from service.domain.gallery.exports import CursorGone, Exports, NotACursor, TooManyExports, Wanted
from service.domain.gallery.generations import NoNextGeneration, NoSuchGeneration
from service.domain.gallery.new_items import canonical_id
from service.domain.gallery.writes import delete_items
from tests.exported import export, import_table, read
from tests.scenario import DIMS, create_upgradable_gallery, import_vectors, post_images, start_upgrade
from tests.working import cut_over, run_until
from workers.app import WorkerParts

if TYPE_CHECKING:
    from service.api.dependencies import Parts

IDS = [f"item {number}" for number in range(20)]


def exports_of(client: TestClient, batch_bytes: int = 1) -> Exports:
    """Return exports whose batches hold a row each, after the first."""
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]  # an ASGI application that is a FastAPI
    return Exports(parts.database, at_once=2, batch_bytes=batch_bytes)


def read_whole(exports: Exports, wanted: Wanted, between: Callable[[], None] = lambda: None) -> pa.Table:
    """Read an export, doing something after its first block."""
    found = exports.open(wanted)
    blocks = iter(found)
    content = next(blocks)
    between()
    content += b"".join(blocks)
    found.close()
    return read(content)


def fill(client: TestClient, count: int = 600) -> None:
    """Import more items than the first batch holds."""
    import_vectors(client, [f"item {number}" for number in range(count)])


@pytest.mark.parametrize("format_", ["arrow", "parquet"])
def test_an_export_while_items_are_written_is_the_snapshot_that_it_began_with(
    gallery: TestClient, format_: str
) -> None:
    fill(gallery)
    before = export(gallery)
    wanted = Wanted("g", format="arrow" if format_ == "arrow" else "parquet")

    def write() -> None:
        import_vectors(gallery, ["item 3", "item 400", "item 599", "new"], seed=9)
        for number in (5, 500):
            assert gallery.delete(f"/v1/galleries/g/items/item {number}").status_code == 204

    during = read_whole(exports_of(gallery), wanted, write)

    assert during.equals(before)
    after = export(gallery)
    assert after.num_rows == 599
    assert not after.equals(before)


def test_an_export_beside_a_writer_never_mixes_two_writes(gallery: TestClient) -> None:
    """Each import gives every item the number of the import; so every export has one number in all its rows."""
    stopped = threading.Event()

    def write_on() -> None:
        number = 1
        while not stopped.is_set():
            import_vectors(gallery, IDS, embedding=np.full((len(IDS), DIMS["v1"][0]), number % 1000, np.float32))
            number += 1

    import_vectors(gallery, IDS, embedding=np.zeros((len(IDS), DIMS["v1"][0]), np.float32))
    writer = threading.Thread(target=write_on)
    writer.start()
    tables = [export(gallery) for _ in range(15)]
    stopped.set()
    writer.join()

    numbers = [np.unique(table["embedding"].combine_chunks().flatten().to_numpy()) for table in tables]
    assert [len(found) for found in numbers] == [1] * len(tables)
    assert len({float(found[0]) for found in numbers}) > 1


def test_pages_of_an_unchanged_gallery_are_the_whole_and_any_batch_of_a_stream_can_be_continued_from(
    gallery: TestClient,
) -> None:
    fill(gallery)
    exports = exports_of(gallery)
    whole = read_whole(exports, Wanted("g"))

    pages, cursor = [], None
    while True:
        found = exports.open(Wanted("g", limit=250, cursor=cursor))
        pages.append(read(b"".join(found)))
        found.close()
        cursor = found.next_cursor
        if cursor is None:
            break
    found = exports.open(Wanted("g"))
    with pa.ipc.open_stream(b"".join(found)) as reader:
        first, metadata = reader.read_next_batch_with_custom_metadata()
    found.close()
    rest = read_whole(exports, Wanted("g", cursor=metadata["cursor"].decode()))

    assert [page.num_rows for page in pages] == [250, 250, 100]
    assert pa.concat_tables(pages).equals(whole)
    assert pa.concat_tables([pa.Table.from_batches([first]), rest]).equals(whole)


def test_a_page_that_ends_with_the_last_row_has_no_next_one(gallery: TestClient) -> None:
    import_vectors(gallery, IDS)

    found = exports_of(gallery).open(Wanted("g", limit=len(IDS)))
    found.close()

    assert found.next_cursor is None


@pytest.mark.parametrize("change", ["write", "delete"])
def test_a_cursor_is_gone_when_the_gallery_has_changed(gallery: TestClient, change: str) -> None:
    import_vectors(gallery, IDS)
    exports = exports_of(gallery)
    found = exports.open(Wanted("g", limit=5))
    found.close()

    if change == "write":
        import_vectors(gallery, ["item 19"])
    else:
        gallery.delete("/v1/galleries/g/items/item 19")

    with pytest.raises(CursorGone, match="changed since"):
        exports.open(Wanted("g", cursor=found.next_cursor))


def test_a_cursor_keeps_to_its_generation_and_is_gone_with_it(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(10))
    exports = exports_of(client)
    found = exports.open(Wanted("g", limit=4))
    found.close()
    first_page = read_whole(exports, Wanted("g", limit=4))
    whole = export(client)

    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    candidate = export(client, generation="next")
    cut_over(client, worker, upgrade_id)
    second_page = read_whole(exports, Wanted("g", cursor=found.next_cursor))
    active = export(client)
    with pytest.raises(NotACursor, match="belongs to generation"):
        exports.open(Wanted("g", generation="999", cursor=found.next_cursor))
    with pytest.raises(NoNextGeneration):
        exports.open(Wanted("g", generation="next"))
    with pytest.raises(NoSuchGeneration, match="keeps no generation 999"):
        exports.open(Wanted("g", generation="999"))
    client.post(f"/v1/upgrades/{upgrade_id}/finalize")

    assert pa.concat_tables([first_page, second_page]).equals(whole)
    assert active.equals(candidate)
    assert set(active["origin"].to_pylist()) == {"transformed"}
    assert set(active["hops"].to_pylist()) == {1}
    with pytest.raises(CursorGone, match="not kept any more"):
        exports.open(Wanted("g", cursor=found.next_cursor))


def test_a_cursor_into_a_generation_under_way_is_gone_when_an_upgrade_has_added_rows(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    import_vectors(client, IDS)
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    import_vectors(client, ["item 3", "later"])  # what catch-up has yet to bring to the next generation
    exports = exports_of(client)
    found = exports.open(Wanted("g", generation="next", limit=5))
    found.close()

    cut_over(client, worker, upgrade_id)

    assert found.rows == len(IDS) - 1
    with pytest.raises(CursorGone, match="changed since"):
        exports.open(Wanted("g", cursor=found.next_cursor))


def test_what_is_not_read_to_its_end_gives_its_connection_back(gallery: TestClient, database: Database) -> None:
    fill(gallery)
    exports = exports_of(gallery)

    for blocks in (0, 1, 2):
        found = exports.open(Wanted("g"))
        for _ in zip(range(blocks), found, strict=False):
            pass
        found.close()
        found.close()

    assert idle_in_transaction(database) == 0
    assert read_whole(exports, Wanted("g")).num_rows == 600


def test_more_exports_than_may_run_are_told_to_wait(gallery: TestClient) -> None:
    exports = exports_of(gallery)
    running = [exports.open(Wanted("g")) for _ in range(2)]

    with pytest.raises(TooManyExports):
        exports.open(Wanted("g"))
    running[0].close()
    exports.open(Wanted("g")).close()
    running[1].close()


text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).map(
    lambda word: canonical_id(f"x{word}")
)
values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text
described = st.lists(
    st.tuples(words, st.none() | text, st.dictionaries(text, values | st.lists(values, max_size=3), max_size=4)),
    min_size=1,
    max_size=30,
    unique_by=lambda item: item[0],
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(described)
def test_texts_come_out_as_they_went_in_whatever_they_hold(
    gallery: TestClient, items: list[tuple[str, str | None, dict[str, object]]]
) -> None:
    delete_all(gallery)
    ids, labels, metadata = zip(*items, strict=True)
    table = pa.table(
        {
            "id": list(ids),
            "embedding": [[1.0] * 6] * len(ids),
            "side_information": [[1.0] * 5] * len(ids),
            "label": pa.array(labels, pa.string()),
            "metadata": [json.dumps(value) for value in metadata],
        }
    )
    assert import_table(gallery, table).status_code == 200

    found = export(gallery)

    rows = zip(found["id"].to_pylist(), found["label"].to_pylist(), found["metadata"].to_pylist(), strict=True)
    assert {id_: (label, json.loads(text)) for id_, label, text in rows} == {
        id_: (label, value) for id_, label, value in items
    }


def delete_all(client: TestClient) -> None:
    parts: Parts = client.app.state.parts  # type: ignore[attr-defined]
    ids = export(client)["id"].to_pylist()
    if ids:
        with parts.database.session_scope() as session:
            delete_items(session, 1, ids)


def idle_in_transaction(database: Database) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
    with database.reading() as connection:
        found: int = connection.exec_driver_sql(query).scalar_one()
        return found
