"""Collections of a Milvus server (its embedded form), apart from what every index promises (`test_contract`)."""

from collections.abc import Iterator

import numpy as np
import pytest
from pymilvus import MilvusClient

from service.index.milvus import Collections
from service.index.protocol import IndexAway, IndexGone
from tests.milvus import milvus
from tests.unit.index.building import as_rows, some_ids, some_vectors
from tests.unit.index.exhaustive import assert_finds_the_nearest

pytestmark = pytest.mark.xdist_group("Milvus collections")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with milvus(tmp_path_factory.mktemp("milvus")) as url:
        yield url


@pytest.fixture(scope="module")
def collections(url: str) -> Iterator[Collections]:
    collections = Collections(url)
    yield collections
    collections.close()


def test_collections_are_known_by_their_names_until_they_are_dropped(collections: Collections) -> None:
    for name in ("one", "two"):
        collections.create(name, "l2", 4, "flat")

    collections.drop("one")

    assert (collections.has("one"), collections.has("two")) == (False, True)
    assert {"one", "two"} & set(collections.names()) == {"two"}


def test_what_one_client_writes_another_sees_at_once(collections: Collections, url: str) -> None:
    index, vectors = collections.create("shared", "l2", 4, "hnsw"), some_vectors(3, 4)
    other = Collections(url)
    seen = other.open("shared", "l2", 4, "hnsw")

    index.add(np.array([3, 1, 2]), vectors)
    index.add(np.array([2]), vectors[2:])
    index.remove(np.array([1]))

    assert (len(seen), seen.ids().tolist()) == (2, [2, 3])
    assert seen.search(vectors[2:], 1).ids.tolist() == [[2]]
    other.close()


def test_a_collection_that_is_opened_again_has_its_rows(collections: Collections) -> None:
    ids, vectors = some_ids(20), some_vectors(20, 4)
    collections.create("again", "l2", 4, "hnsw").add(ids, vectors)

    index = collections.open("again", "l2", 4, "hnsw")

    assert_finds_the_nearest(index, "l2", as_rows(ids, vectors), vectors[:2], 3)


def test_a_collection_that_was_released_answers_from_the_second_try_on(collections: Collections, url: str) -> None:
    ids, vectors = some_ids(20), some_vectors(20, 4)
    index = collections.create("released", "l2", 4, "hnsw")
    index.add(ids, vectors)
    other = MilvusClient(url)
    other.release_collection("released")
    other.close()

    with pytest.raises(IndexAway, match=r"released|not loaded"):
        index.search(vectors[:1], 1)

    assert_finds_the_nearest(index, "l2", as_rows(ids, vectors), vectors[:2], 3)


def test_a_dropped_collection_is_gone_with_its_alias_and_says_so(collections: Collections) -> None:
    first, second = (collections.create(name, "l2", 4, "flat") for name in ("first", "second"))
    second.add(np.array([2]), some_vectors(1, 4))
    collections.point("pointer", "first")
    collections.point("pointer", "second")
    collections.point("pointer", "second")
    aliased = collections.open("pointer", "l2", 4, "flat")
    assert aliased.ids().tolist() == [2]

    for name in ("first", "second", "second"):
        collections.drop(name)

    assert not {"first", "second"} & set(collections.names())
    for index in (first, aliased):
        with pytest.raises(IndexGone):
            index.search(some_vectors(1, 4), 1)
    with pytest.raises(IndexGone):
        collections.open("second", "l2", 4, "flat")


def test_a_server_that_is_not_there_is_an_error_of_our_own() -> None:
    with pytest.raises(IndexAway):
        Collections("http://127.0.0.1:1", timeout_seconds=0.5)
