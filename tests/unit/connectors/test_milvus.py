"""Galleries in Milvus, in its embedded form or a standalone server (`tests.milvus`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient

import service.connectors.milvus as milvus_store
from service.connectors.opening import open_store
from service.connectors.store import KeyRange, Rows, StoreAway, StoreRefused
from tests.milvus import milvus
from tests.store_contract import DIM, SIDE_DIM, StoreContract, bring_all, h, new_side, some_rows
from tests.unit.connectors.odd_keys import ODD_KEYS

pytestmark = pytest.mark.xdist_group("Milvus connector")


@dataclass
class Alias:
    """A `tests.store_contract.Place`: a collection behind an alias."""

    client: MilvusClient
    url: str
    is_text: bool
    has_side_information: bool
    tolerance: float = 1e-6

    def keys(self, count: int) -> list[str]:
        if not self.is_text:
            return [str(3 * number - 20) for number in range(count)]
        odd = [key for key in ODD_KEYS if key]
        return sorted([*odd, *(f"item {number}" for number in range(count - len(odd)))])

    def put(self, rows: Rows) -> None:
        items = []
        for row, key in enumerate(rows.keys):
            item: dict[str, Any] = {"id": key if self.is_text else int(key), "label": f"of {key}"}
            item["vector"] = rows.embedding[row]
            if rows.side_information is not None:
                item["psi"] = rows.side_information[row]
            items.append(item)
        self.client.upsert("items", items)

    def delete(self, keys: Sequence[str]) -> None:
        self.client.delete("items", ids=list(keys) if self.is_text else [int(key) for key in keys])


def make_alias(folder: Path, *, is_text: bool, side: bool) -> Iterator[Alias]:
    with milvus(folder) as path:
        if side and path.startswith("http"):
            pytest.skip("a collection of Milvus 2.3 has one vector field")
        client = MilvusClient(path)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        if is_text:
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=100)
        else:
            schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="L2")
        if side:
            schema.add_field("psi", DataType.FLOAT_VECTOR, dim=SIDE_DIM)
            index.add_index("psi", index_type="FLAT", metric_type="L2")
        client.create_collection("items_1", schema=schema, index_params=index, consistency_level="Strong")
        client.create_alias("items_1", "items")
        place = f"milvus+{path}/" if path.startswith("http") else f"milvus://{path}"
        url = f"{place}?collection=items&key=id&embedding=vector"
        yield Alias(client, f"{url}&side_information=psi" if side else url, is_text, side)
        client.close()


class TestContract(StoreContract):
    @pytest.fixture(params=["numbers", "text psi"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Alias]:
        yield from make_alias(tmp_path, is_text="text" in request.param, side="psi" in request.param)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Alias]:
    yield from make_alias(tmp_path, is_text=False, side=False)


def test_other_fields_come_along(place: Alias) -> None:
    place.put(some_rows(place, place.keys(5)))
    store = open_store(place.url, new_side(place))
    store.prepare()
    bring_all(store)
    store.switch(h)

    found = place.client.query("items", ids=[-20], output_fields=["label"])

    assert found[0]["label"] == "of -20"
    store.close()


def test_pages_of_many_segments_have_each_row_once_and_none_that_was_replaced_or_deleted(
    place: Alias, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_store, "_ITEMS_PER_PAGE", 7)
    keys = place.keys(60)
    drawn = some_rows(place, keys)
    for start in range(4):
        part = slice(start, None, 4)
        place.put(Rows(keys[part], drawn.embedding[part]))
        if start % 2:
            place.client.flush("items")
    place.put(Rows(keys[::3], -drawn.embedding[::3]))
    place.delete(keys[::5])
    store = open_store(place.url)

    found = store.read(KeyRange(None, None))

    expected = drawn.embedding.copy()
    expected[::3] *= -1
    kept = [number for number in range(60) if number % 5]
    assert found.keys == [keys[number] for number in kept]
    np.testing.assert_allclose(found.embedding, expected[kept], atol=1e-6)
    store.close()


def test_a_collection_that_is_searched_by_its_own_name_is_not_upgraded(place: Alias) -> None:
    store = open_store(place.url.replace("collection=items", "collection=items_1"), new_side(place))

    assert "alias" in str(store.describe().warning)
    with pytest.raises(StoreRefused, match="alias"):
        store.prepare()
    store.close()


@pytest.mark.parametrize("change", ["collection=none&", "key=vector", "embedding=label", "embedding=id"])
def test_what_is_not_there_is_refused(place: Alias, change: str) -> None:
    name = change.partition("=")[0]
    kept = [part for part in place.url.split("?")[1].split("&") if not part.startswith(name)]
    url = f"{place.url.split('?')[0]}?{'&'.join([*kept, change.rstrip('&')])}"

    with pytest.raises(StoreRefused):
        open_store(url)


def test_a_password_is_in_no_error() -> None:
    with pytest.raises((StoreAway, StoreRefused)) as refused:
        open_store("milvus+http://me:geheim@127.0.0.1:1/?collection=items&key=id&embedding=vector&colour=red")

    assert "geheim" not in f"{refused.value!r}"


def test_what_its_other_fields_say_is_read(place: Alias) -> None:
    keys = place.keys(10)
    place.put(some_rows(place, keys))
    store = open_store(place.url)

    found = store.payloads(KeyRange(keys[1], keys[3]))

    assert found == {key: {"label": f"of {key}"} for key in keys[2:4]}
    store.close()
