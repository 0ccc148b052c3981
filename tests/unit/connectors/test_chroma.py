"""Galleries in Chroma, in a folder and on a server."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from service.connectors.address import parse
from service.connectors.opening import open_store
from service.connectors.store import KeyRange, NewSide, Rows, StoreRefused
from tests.served import free_port, is_listening, wait_for
from tests.store_contract import NEW_DIM, POINTS, StoreContract, bring_all, h, new_side, some_rows
from tests.unit.connectors.odd_keys import ODD_KEYS

chromadb = pytest.importorskip("chromadb", reason="chromadb is not installed")
from service.connectors.chroma import client_of  # noqa: E402


@dataclass
class Collection:
    """A `tests.store_contract.Place`."""

    client: Any
    url: str
    has_side_information: bool = False
    tolerance: float = 1e-6

    def keys(self, count: int) -> list[str]:
        odd = [key for key in ODD_KEYS if key]
        return sorted([*odd, *(f"item {number}" for number in range(count - len(odd)))])

    def put(self, rows: Rows) -> None:
        labels: list[Any] = [{"label": f"of {key}"} if row % 2 else None for row, key in enumerate(rows.keys)]
        self.collection.upsert(rows.keys, embeddings=rows.embedding, metadatas=labels)

    def delete(self, keys: Sequence[str]) -> None:
        self.collection.delete(list(keys))

    @property
    def collection(self) -> Any:
        return self.client.get_collection("items", embedding_function=None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Chroma server's host and port."""
    port, program = free_port(), Path(sys.executable).with_name("chroma")
    folder = tmp_path_factory.mktemp("chroma")
    process = subprocess.Popen(
        [program, "run", "--path", folder, "--port", str(port)], cwd=folder, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: is_listening(port), 60)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Collection:
    where = (
        f"chroma://{tmp_path}" if request.param == "folder" else f"chroma+http://{request.getfixturevalue('server')}/"
    )
    url = f"{where}?collection=items"
    client = client_of(parse(url))
    for collection in client.list_collections():
        client.delete_collection(collection.name)
    client.create_collection("items", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None)
    return Collection(client, url)


class TestContract(StoreContract):
    crash_points: ClassVar[Sequence[str]] = POINTS["chroma"]


def test_metadata_come_along(place: Collection) -> None:
    place.put(some_rows(place, place.keys(5)))
    store = open_store(place.url, new_side(place))
    store.prepare()
    bring_all(store)
    store.switch(h)

    found = place.collection.get(place.keys(5)[:2], include=["metadatas"])

    labels = dict(zip(found["ids"], found["metadatas"], strict=True))
    assert labels == {place.keys(5)[0]: None, place.keys(5)[1]: {"label": f"of {place.keys(5)[1]}"}}
    assert store.describe().metric == "cosine"


def test_side_information_has_no_place(place: Collection) -> None:
    place.put(some_rows(place, place.keys(5)))

    with pytest.raises(StoreRefused, match="no place"):
        open_store(place.url, NewSide("v2", NEW_DIM, 3)).prepare()


def test_a_collection_that_is_not_there_is_refused(place: Collection) -> None:
    with pytest.raises(StoreRefused, match="no collection 'none'"):
        open_store(place.url.replace("items", "none"))


def test_what_it_says_of_its_items_is_read(place: Collection) -> None:
    keys = place.keys(30)
    rows = some_rows(place, keys)
    place.put(rows)
    place.collection.update(keys[0], embeddings=rows.embedding[0], documents="a page")
    store = open_store(place.url)

    found = store.payloads(KeyRange(None, keys[3]))

    labels = {key: {"label": f"of {key}"} if row % 2 else {} for row, key in enumerate(keys[:4])}
    assert found == labels | {keys[0]: {"document": "a page"}}
    store.close()
