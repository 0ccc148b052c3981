"""Galleries in a LanceDB table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from service.connectors.opening import open_store
from service.connectors.store import KeyRange, Rows, StoreRefused
from tests.store_contract import DIM, NEW_DIM, SIDE_DIM, StoreContract, bring_all, h, new_side, some_rows
from tests.unit.connectors.odd_keys import ODD_KEYS

lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
from lancedb.index import IvfPq  # noqa: E402


@dataclass
class Table:
    """A `tests.store_contract.Place`."""

    table: Any
    url: str
    is_text: bool
    has_side_information: bool
    tolerance: float = 1e-6

    def keys(self, count: int) -> list[str]:
        if not self.is_text:
            return [str(3 * number - 20) for number in range(count)]
        return sorted([*ODD_KEYS, *(f"item {number}" for number in range(count - len(ODD_KEYS)))])

    def put(self, rows: Rows) -> None:
        columns: dict[str, Any] = {
            "id": pa.array(rows.keys) if self.is_text else pa.array([int(key) for key in rows.keys]),
            "label": [f"of {key}" for key in rows.keys],
            "vector": as_lists(rows.embedding),
        }
        if rows.side_information is not None:
            columns["psi"] = as_lists(rows.side_information)
        self.table.checkout_latest()
        merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(pa.table(columns))

    def delete(self, keys: Sequence[str]) -> None:
        quoted = [f"""'{key.replace("'", "''")}'""" if self.is_text else key for key in keys]
        self.table.checkout_latest()
        self.table.delete(f"id IN ({', '.join(quoted)})")


def as_lists(vectors: Any) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])


def make_table(folder: Path, *, is_text: bool, side: bool) -> Table:
    fields = [("id", pa.string() if is_text else pa.int64()), ("label", pa.string())]
    fields.append(("vector", pa.list_(pa.float32(), DIM)))
    if side:
        fields.append(("psi", pa.list_(pa.float32(), SIDE_DIM)))
    table = lancedb.connect(str(folder)).create_table("items", schema=pa.schema(fields))
    url = f"lancedb://{folder}?table=items&key=id&embedding=vector"
    return Table(table, f"{url}&side_information=psi" if side else url, is_text, side)


class TestContract(StoreContract):
    @pytest.fixture(params=["numbers", "text psi"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Table:
        return make_table(tmp_path, is_text="text" in request.param, side="psi" in request.param)


@pytest.fixture
def place(tmp_path: Path) -> Table:
    return make_table(tmp_path, is_text=False, side=False)


def test_a_switch_is_one_version_of_the_table(place: Table) -> None:
    place.put(some_rows(place, place.keys(20)))
    store = open_store(place.url, new_side(place))
    store.prepare()
    bring_all(store)
    place.table.checkout_latest()
    before = place.table.version

    store.switch(h)

    place.table.checkout_latest()
    assert place.table.version == before + 1
    assert place.table.schema.field("vector").type.list_size == NEW_DIM


def test_a_switch_is_refused_while_rows_are_not_written(place: Table) -> None:
    place.put(some_rows(place, place.keys(20)))
    store = open_store(place.url, new_side(place))
    store.prepare()

    with pytest.raises(StoreRefused, match="20 rows have no embedding"):
        store.switch(h)


def test_the_new_side_gets_an_index_where_the_old_one_has_one(place: Table) -> None:
    place.put(some_rows(place, place.keys(300)))
    place.table.create_index("vector", config=IvfPq(distance_type="cosine", num_partitions=1, num_sub_vectors=2))
    store = open_store(place.url, new_side(place))
    store.prepare()
    bring_all(store, 100)

    store.index()
    store.switch(h)

    place.table.checkout_latest()
    assert store.describe().metric == "cosine"
    assert sorted(index.columns[0] for index in place.table.list_indices()) == ["vector", "vector_before_v2"]


@pytest.mark.parametrize("change", ["table=none", "key=label2", "key=vector", "embedding=label", "embedding=a b"])
def test_what_is_not_there_is_refused(place: Table, change: str) -> None:
    name = change.partition("=")[0]
    kept = [part for part in place.url.split("?")[1].split("&") if not part.startswith(name)]

    with pytest.raises(StoreRefused):
        open_store(f"{place.url.split('?')[0]}?{'&'.join([*kept, change])}")


def test_what_its_other_columns_say_is_read(place: Table) -> None:
    keys = place.keys(10)
    place.put(some_rows(place, keys))

    found = open_store(place.url).payloads(KeyRange(keys[1], keys[3]))

    assert found == {key: {"label": f"of {key}"} for key in keys[2:4]}
