"""Galleries in Qdrant, in its local mode."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.connectors.opening import open_store
from service.connectors.store import KeyRange, Rows, StoreAway, StoreRefused
from tests.store_contract import DIM, SIDE_DIM, StoreContract, bring_all, h, new_side, some_rows

qdrant_client = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
from qdrant_client import QdrantClient, models  # noqa: E402

from service.connectors.qdrant import local_client  # noqa: E402


@dataclass
class Alias:
    """A `tests.store_contract.Place`: a collection behind an alias."""

    client: QdrantClient
    url: str
    ids: str
    vector: str
    has_side_information: bool
    tolerance: float = 1e-6

    def keys(self, count: int) -> list[str]:
        names = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in range(count)]
        numbers = [str(7 * number) for number in range(count)]
        if self.ids == "mixed":
            return [*numbers[: count // 4], *sorted(names[: count - count // 4])]
        return numbers

    def put(self, rows: Rows) -> None:
        points = []
        for row, key in enumerate(rows.keys):
            vector: Any = rows.embedding[row].tolist()
            if self.vector:
                vector = {self.vector: vector}
            if rows.side_information is not None:
                vector["psi"] = rows.side_information[row].tolist()
            points.append(
                models.PointStruct(id=int(key) if key.isdigit() else key, vector=vector, payload={"label": key})
            )
        self.client.upsert("items", points)

    def delete(self, keys: Sequence[str]) -> None:
        self.client.delete("items", [int(key) if key.isdigit() else key for key in keys])


def make_alias(folder: Path, ids: str, vector: str, distance: models.Distance, *, side: bool) -> Iterator[Alias]:
    client, release = local_client(str(folder))
    params = models.VectorParams(size=DIM, distance=distance)
    vectors: Any = {vector: params} if vector else params
    if side:
        vectors["psi"] = models.VectorParams(size=SIDE_DIM, distance=models.Distance.DOT)
    client.create_collection("items_1", vectors)
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(alias_name="items", collection_name="items_1"))]
    )
    url = f"qdrant://{folder}?collection=items"
    url += f"&vector={vector}" if vector else ""
    yield Alias(client, f"{url}&side_information=psi" if side else url, ids, vector, side)
    release()


class TestContract(StoreContract):
    @pytest.fixture(params=["numbers cosine", "mixed l2 psi"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Alias]:
        ids, metric, *side = request.param.split()
        distance = models.Distance.COSINE if metric == "cosine" else models.Distance.EUCLID
        yield from make_alias(tmp_path, ids, "image" if side else "", distance, side=bool(side))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Alias]:
    yield from make_alias(tmp_path, "numbers", "", models.Distance.COSINE, side=False)


def test_payloads_and_other_vectors_come_along(tmp_path: Path) -> None:
    for place in make_alias(tmp_path, "numbers", "image", models.Distance.DOT, side=True):
        rows = some_rows(place, place.keys(5))
        place.put(rows)
        # Without naming psi, it is one of the point's other vectors.
        store = open_store(place.url.removesuffix("&side_information=psi"), new_side(_without_side(place)))
        store.prepare()
        bring_all(store)
        store.switch(h)

        point: Any = place.client.retrieve("items", [7], with_vectors=True)[0]

        assert point.payload == {"label": "7"}
        assert rows.side_information is not None
        assert point.vector["psi"] == pytest.approx(rows.side_information[1].tolist())
        assert len(point.vector["image"]) == len(h(rows).embedding[0])
        store.close()


def _without_side(place: Alias) -> Alias:
    return Alias(place.client, place.url, place.ids, place.vector, False)


def test_a_collection_that_is_searched_by_its_own_name_is_described_and_not_upgraded(place: Alias) -> None:
    place.put(some_rows(place, place.keys(5)))
    store = open_store(place.url.replace("collection=items", "collection=items_1"), new_side(place))

    described = store.describe()

    assert (described.rows, described.scales) == (5, True)
    assert "alias" in str(described.warning)
    with pytest.raises(StoreRefused, match="alias"):
        store.prepare()
    store.close()


@pytest.mark.parametrize("change", ["collection=nothing", "collection=items&vector=other"])
def test_what_is_not_there_is_refused(place: Alias, change: str) -> None:
    with pytest.raises(StoreRefused, match=r"nothing|other"):
        open_store(place.url.replace("collection=items", change))


def test_an_api_key_is_in_no_error_and_no_repr() -> None:
    with pytest.warns(UserWarning, match="insecure"), pytest.raises(StoreAway, match="Qdrant") as refused:
        open_store("qdrant+http://127.0.0.1:1/?collection=items&api_key=geheim")

    assert "geheim" not in f"{refused.value!r} {refused.value.__cause__!r}"


def test_what_it_says_of_its_points_is_read(place: Alias) -> None:
    place.put(some_rows(place, place.keys(5)))
    store = open_store(place.url)

    found = store.payloads(KeyRange("7", "21"))

    assert found == {"14": {"label": "14"}, "21": {"label": "21"}}
    store.close()
