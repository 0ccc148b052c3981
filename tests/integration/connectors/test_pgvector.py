"""Galleries in a PostgreSQL table with pgvector."""

import json
import threading
import traceback
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode

import numpy as np
import psycopg
import pytest
from psycopg import sql

from service.connectors.opening import open_store
from service.connectors.pgvector import PgvectorStore
from service.connectors.store import KeyRange, Rows, StoreAway, StoreRefused
from tests.store_contract import (
    ALL,
    DIM,
    NEW_DIM,
    POINTS,
    SIDE_DIM,
    StoreContract,
    assert_rows,
    bring_all,
    h,
    new_side,
    some_rows,
)
from tests.unit.connectors.odd_keys import ODD_KEYS

_TABLE = sql.Identifier("items of a test")


@dataclass
class Table:
    """A `tests.store_contract.Place`: a table of this key type and vector type."""

    connection: psycopg.Connection
    url: str
    key_type: str
    has_side_information: bool
    tolerance: float
    database: str  # where others connect to, with the password that a connection does not tell

    def keys(self, count: int) -> list[str]:
        if self.key_type == "uuid":
            return sorted(str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in range(count))
        if self.key_type == "text":
            keys = [*ODD_KEYS, *(f"item {number}" for number in range(count - len(ODD_KEYS)))]
            query = "SELECT key FROM unnest(%s::text[]) AS key ORDER BY key"
            return [key for (key,) in self.connection.execute(query, [keys])]
        return [str(number * 2**20 - 2**22) for number in range(count)]

    def put(self, rows: Rows) -> None:
        names = ["embedding", "psi"] if self.has_side_information else ["embedding"]
        arrays = [rows.embedding, rows.side_information]
        vectors = [[str(v.tolist()) for v in array] for array in arrays if array is not None]
        query = sql.SQL(
            "INSERT INTO {table} (id, {names}) VALUES (%s, {values}) ON CONFLICT (id) DO UPDATE SET {changes}"
        ).format(
            table=_TABLE,
            names=sql.SQL(", ").join(map(sql.Identifier, names)),
            values=sql.SQL(", ").join([sql.SQL("%s")] * len(names)),
            changes=sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in names),
        )
        with self.connection.cursor() as cursor:
            cursor.executemany(query, list(zip(rows.keys, *vectors, strict=False)))

    def delete(self, keys: Sequence[str]) -> None:
        self.run("DELETE FROM {} WHERE id::text = ANY(%s)", list(keys))

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(sql.SQL(statement).format(_TABLE), values or None)
        return cursor.fetchall() if cursor.description else []


def make_table(
    database_url: str, key_type: str = "bigint", vector: str = "vector", *, side: bool = False, more: str = ""
) -> Iterator[Table]:
    url = database_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        names = {"table": "items of a test", "key": "id", "embedding": "embedding"}
        if side:
            names["side_information"] = "psi"
        place = Table(
            connection,
            f"{url}{'&' if '?' in url else '?'}{urlencode(names)}",
            key_type,
            side,
            1e-6 if vector == "vector" else 1e-3,
            url,
        )
        psi = f", psi {vector}({SIDE_DIM})" if side else ""
        place.run(f"CREATE TABLE {{}} (id {key_type} PRIMARY KEY, embedding {vector}({DIM}){psi}, label text {more})")
        yield place


class TestContract(StoreContract):
    crash_points: ClassVar[Sequence[str]] = POINTS["pgvector"]
    notices_writes = True

    @pytest.fixture(params=["bigint vector", "uuid halfvec psi", "text vector psi"])
    def place(self, request: pytest.FixtureRequest, database_url: str) -> Iterator[Table]:
        key_type, vector, *side = request.param.split()
        yield from make_table(database_url, key_type, vector, side=bool(side))


@pytest.fixture
def place(database_url: str) -> Iterator[Table]:
    yield from make_table(database_url, more="NOT NULL DEFAULT ''")


@pytest.fixture
def put(place: Table) -> Rows:
    rows = some_rows(place, place.keys(60))
    place.put(rows)
    return rows


@pytest.fixture
def prepared(place: Table, put: Rows) -> Iterator[PgvectorStore]:
    """A store of sixty rows whose new side is written."""
    store = opened(place)
    store.prepare()
    bring_all(store, 20)
    yield store
    store.close()


def opened(place: Table, url: str | None = None) -> PgvectorStore:
    store = open_store(url or place.url, new_side(place))
    assert isinstance(store, PgvectorStore)
    return store


def test_every_answer_during_a_switch_is_of_one_space(place: Table, prepared: PgvectorStore, put: Rows) -> None:
    spaces = {DIM: put.embedding, NEW_DIM: h(put).embedding}
    seen: list[set[int]] = []
    stop = threading.Event()

    def query() -> set[int]:
        found = set()
        with psycopg.connect(place.database, autocommit=True, prepare_threshold=None) as connection:
            while not stop.is_set():
                query = sql.SQL("SELECT embedding::text FROM {} ORDER BY id").format(_TABLE)
                answer = [np.array(json.loads(text), np.float32) for (text,) in connection.execute(query)]
                dims = {len(vector) for vector in answer}
                assert len(dims) == 1
                np.testing.assert_allclose(np.array(answer), spaces[min(dims)], atol=1e-6)
                found |= dims
        return found

    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(query) for _ in range(8)]
        for _ in range(3):
            prepared.switch(h)
            prepared.switch_back()
        prepared.switch(h)
        stop.set()
        seen = [one.result() for one in running]

    assert set().union(*seen) == {DIM, NEW_DIM}
    assert prepared.is_switched()


def test_writers_during_an_upgrade_lose_nothing_and_never_fail(place: Table, put: Rows) -> None:
    """Writers write before, during and after every step but the switch; then the new side is h of what they left."""
    stop = threading.Event()

    def write(seed: int) -> int:
        random = np.random.default_rng(seed)
        written = 0
        with psycopg.connect(place.database, autocommit=True) as connection:
            mine = Table(connection, place.url, place.key_type, False, 0, place.database)
            while not stop.is_set():
                # In one order, so that they do not block each other.
                keys = sorted(random.choice(place.keys(80), 3, replace=False).tolist(), key=int)
                if random.random() < 0.3:
                    mine.delete(keys[:1])
                else:
                    mine.put(some_rows(mine, keys, seed=int(random.integers(2**31))))
                written += 1
        return written

    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(write, seed) for seed in range(3)]
        store = opened(place)
        store.prepare()
        bringing = threads.submit(bring_thrice, place)
        while not bringing.done():
            store.settle(h, 5)
        bringing.result()
        stop.set()
        written = [writer.result() for writer in writers]
    while store.settle(h, 7):
        pass

    left = store.read(ALL)
    assert min(written) > 0
    assert_rows(store.read_new(ALL), h(left), 1e-6)
    store.switch(h)
    assert_rows(store.read_new(ALL), h(left), 1e-6)
    store.close()


def bring_thrice(place: Table) -> None:
    store = opened(place)
    for _ in range(3):
        bring_all(store, 9)
    store.close()


def test_a_late_write_does_not_replace_what_was_settled(place: Table, prepared: PgvectorStore, put: Rows) -> None:
    read = prepared.read(ALL)
    changed = some_rows(place, [put.keys[4]], seed=5)
    place.put(changed)
    prepared.settle(h, 10)

    prepared.write(ALL, h(read))

    assert prepared.changed_keys(10) == []
    np.testing.assert_allclose(prepared.read_new(ALL).embedding[4], h(changed).embedding[0], atol=1e-6)


def test_a_settling_that_was_overtaken_writes_nothing(place: Table, prepared: PgvectorStore, put: Rows) -> None:
    later = some_rows(place, [put.keys[4]], seed=6)

    def overtaken(rows: Rows) -> Rows:
        other = opened(place)
        place.put(later)
        other.settle(h, 10)
        other.close()
        return h(rows)

    place.put(some_rows(place, [put.keys[4]], seed=5))
    prepared.settle(overtaken, 10)

    np.testing.assert_allclose(prepared.read_new(ALL).embedding[4], h(later).embedding[0], atol=1e-6)


def test_a_switch_brings_what_was_written_just_before(place: Table, prepared: PgvectorStore, put: Rows) -> None:
    changed = some_rows(place, [put.keys[4], "77"], seed=5)
    place.put(changed)
    place.delete([put.keys[5]])

    prepared.switch(h)

    found = prepared.read_new(ALL)
    assert len(found.keys) == 60
    assert prepared.searched(h(changed).embedding[1], 1) == ["77"]


def test_a_switch_is_refused_while_rows_are_not_written(place: Table, put: Rows) -> None:
    store = opened(place)
    store.prepare()

    with pytest.raises(StoreRefused, match="60 rows have no embedding"):
        store.switch(h)

    store.close()


def test_a_switch_gives_up_while_a_long_query_holds_the_table_and_writers_go_on(
    place: Table, prepared: PgvectorStore, put: Rows
) -> None:
    prepared.patience_seconds = 1.0
    with psycopg.connect(place.database) as reader:
        reader.execute(sql.SQL("SELECT count(*) FROM {}").format(_TABLE))

        with pytest.raises(StoreAway, match="locks"):
            prepared.switch(h)

    place.put(some_rows(place, [put.keys[0]], seed=3))
    prepared.switch(h)
    assert prepared.is_switched()


def test_what_was_written_since_the_switch_keeps_it_from_being_taken_back(
    place: Table, prepared: PgvectorStore, put: Rows
) -> None:
    prepared.switch(h)
    fresh = h(some_rows(place, [put.keys[2], "77"], seed=4))
    place.put(fresh)

    with pytest.raises(StoreRefused, match="2 rows were written"):
        prepared.switch_back()
    prepared.switch_back(forget_written=True)

    assert prepared.read(ALL).keys == [key for key in put.keys if key != put.keys[2]]
    prepared.switch(h)  # and what they wrote is there again
    assert prepared.searched(fresh.embedding[1], 1) == ["77"]
    assert prepared.searched(fresh.embedding[0], 1) == [put.keys[2]]


def test_not_null_moves_with_the_name(place: Table, prepared: PgvectorStore, put: Rows) -> None:
    place.run("ALTER TABLE {} ALTER embedding SET NOT NULL")
    insert = "INSERT INTO {} (id, embedding) VALUES (%s, %s)"

    prepared.switch(h)
    with pytest.raises(psycopg.errors.CheckViolation):
        place.run(insert, 99, None)
    prepared.switch_back()
    with pytest.raises(psycopg.errors.NotNullViolation):
        place.run(insert, 99, None)
    prepared.switch(h)
    prepared.drop_old()

    with pytest.raises(psycopg.errors.NotNullViolation):
        place.run(insert, 99, None)
    place.run(insert, 99, str([0.5] * NEW_DIM))


def test_a_finished_upgrade_leaves_nothing_else(place: Table, prepared: PgvectorStore) -> None:
    query = (
        "SELECT 'relation ' || relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        " AND proname LIKE '%%items of%%' UNION ALL SELECT 'column ' || attname FROM pg_attribute"
        " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
        " UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgrelid = to_regclass(%s)"
    )
    names = ['"items of a test"'] * 2
    prepared.switch(h)
    prepared.drop_old()

    found = {name for (name,) in place.connection.execute(query, names) if "items of" in name or "column" in name}

    assert found == {
        "relation items of a test",
        "relation items of a test_pkey",
        "column id",
        "column embedding",
        "column label",
    }


def test_an_application_with_no_more_rights_than_before_goes_on_writing(place: Table, put: Rows) -> None:
    if place.connection.info.parameter_status("is_superuser") != "on":
        pytest.skip("the user of this database may not make another one")
    store = opened(place)
    role = f"writer_{uuid.uuid4().hex}"
    place.connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    grant = sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}")
    place.connection.execute(grant.format(_TABLE, sql.Identifier(role)))
    store.prepare()
    bring_all(store)

    place.connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    place.put(some_rows(place, [put.keys[3], "77"], seed=8))
    place.delete([put.keys[9]])
    place.connection.execute("RESET ROLE")

    assert sorted(store.changed_keys(10)) == sorted([put.keys[3], "77", put.keys[9]])
    place.connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))
    store.close()


def test_a_trigger_of_the_tables_own_that_changes_embeddings_is_noticed(
    place: Table, prepared: PgvectorStore, put: Rows
) -> None:
    place.connection.execute(
        "CREATE FUNCTION negate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.embedding ="
        " (SELECT array_agg(-x) FROM unnest(NEW.embedding::real[]) x)::vector; RETURN NEW; END $$"
    )
    place.run("CREATE TRIGGER negate BEFORE UPDATE OF label ON {} FOR EACH ROW EXECUTE FUNCTION negate()")

    place.run("UPDATE {} SET label = 'x' WHERE id = %s", int(put.keys[2]))
    place.run("UPDATE {} SET embedding = embedding WHERE id = %s", int(put.keys[3]))

    assert prepared.changed_keys(10) == [put.keys[2]]


def test_a_row_whose_key_changes_keeps_its_embedding(place: Table, prepared: PgvectorStore, put: Rows) -> None:
    place.run("UPDATE {} SET id = 1 WHERE id = %s", int(put.keys[2]))

    prepared.settle(h, 10)

    assert "1" in prepared.read_new(ALL).keys
    assert put.keys[2] not in prepared.read_new(ALL).keys


def test_a_table_that_is_emptied_is_empty_on_both_sides(place: Table, prepared: PgvectorStore, put: Rows) -> None:
    place.run("TRUNCATE {}")
    place.put(some_rows(place, put.keys[:2], seed=3))

    prepared.switch(h)

    assert len(prepared.read_new(ALL).keys) == 2


def test_the_new_side_gets_the_indexes_that_the_old_one_has(place: Table, prepared: PgvectorStore) -> None:
    place.run("CREATE INDEX old_one ON {} USING hnsw (embedding vector_cosine_ops) WITH (m = 7, ef_construction = 33)")

    described = prepared.describe()
    prepared.index()
    prepared.index()
    prepared.switch(h)
    prepared.drop_old()

    found = place.connection.execute("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'").fetchall()
    assert (described.metric, "index" in str(described.warning)) == ("cosine", True)
    assert len(found) == 1
    assert "vector_cosine_ops" in found[0][0]
    assert "m='7'" in found[0][0]


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE VIEW seen AS SELECT id, embedding FROM {}", "view seen"),
        ("ALTER TABLE {} ADD CONSTRAINT wide CHECK (vector_dims(embedding) = 8)", "wide"),
        ("GRANT SELECT (embedding) ON {} TO PUBLIC", "grants"),
        ("ALTER TABLE {} ADD COLUMN embedding_new_other int", "embedding_new_other"),
    ],
)
def test_what_would_go_on_to_mean_the_old_column_is_named(place: Table, statement: str, named: str) -> None:
    place.run(statement)
    store = opened(place)

    with pytest.raises(StoreRefused, match=named):
        store.prepare()

    store.close()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"table": "nothing"}, "nothing"),
        ({"table": 'bad"quotes'}, "no table"),
        ({"key": "label"}, "unique"),
        ({"key": "embedding"}, "vector"),
        ({"embedding": "label"}, "label"),
        ({"embedding": "none"}, "none"),
        ({"side_information": "none"}, "none"),
        ({"key": ""}, "key"),
    ],
)
def test_what_is_not_there_or_cannot_be_is_refused(place: Table, change: dict[str, str], named: str) -> None:
    address, _, query = place.url.partition("?")
    url = f"{address}?{urlencode(dict(parse_qsl(query)) | change)}"

    with pytest.raises(StoreRefused, match=named):
        open_store(url)


def test_rows_without_side_information_are_counted(database_url: str) -> None:
    for place in make_table(database_url, side=True):
        place.put(some_rows(place, place.keys(5)))
        place.run("UPDATE {} SET psi = NULL WHERE id = %s", int(place.keys(5)[1]))
        store = opened(place)

        with pytest.raises(StoreRefused, match="1 rows have an embedding and no side information"):
            store.describe()
        with pytest.raises(StoreRefused, match="psi"):
            store.read(ALL)
        store.close()


def test_a_password_is_in_no_error(place: Table) -> None:
    for url in (
        "postgresql://me:geheim@127.0.0.1:1/x?table=a&key=id&embedding=e",
        "postgresql://me:geheim@127.0.0.1:1/x?colour=a",
        "postgresql://me:ge/heim@127.0.0.1:1/x?table=a&key=id&embedding=e",
        "unknown://me:geheim@host/",
    ):
        with pytest.raises((StoreRefused, StoreAway)) as refused:
            open_store(url)

        told = "".join(traceback.format_exception(refused.value))
        assert "heim" not in f"{told} {refused.value!r}".replace(url, "")


def test_what_its_other_columns_say_is_read_without_vectors(database_url: str) -> None:
    more = ", made timestamptz DEFAULT '2026-01-02 03:04:05+00', tags text[] DEFAULT ARRAY['a', 'b'], thumb vector(2)"
    for place in make_table(database_url, side=True, more=more):
        keys = place.keys(10)
        place.put(some_rows(place, keys))
        place.run("UPDATE {} SET label = 'cat', thumb = '[1,2]' WHERE id = %s", int(keys[2]))
        store = opened(place)
        store.prepare()

        found = store.payloads(KeyRange(keys[1], keys[3]))

        assert {key: (said["label"], said["tags"]) for key, said in found.items()} == {
            keys[2]: ("cat", ["a", "b"]),
            keys[3]: (None, ["a", "b"]),
        }
        assert set(found[keys[2]]) == {"label", "made", "tags"}
        store.close()
