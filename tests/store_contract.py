"""What every `ExternalStore` promises, asked of one store by a subclass of `StoreContract` in its module of tests.

The subclass gives the fixture `place`: a gallery in that store, and what its users do to it by the store's own client.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol

import numpy as np
import pytest

from service.connectors.opening import open_store, tables
from service.connectors.store import (
    ExternalStore,
    KeyRange,
    NewSide,
    Rows,
    StoreRefused,
    Vectors,
    keep_open_ends,
)

DIM, NEW_DIM, SIDE_DIM = 8, 6, 3
ALL = KeyRange(None, None)
_H = np.random.default_rng(9).standard_normal((DIM + SIDE_DIM, NEW_DIM)).astype(np.float32)


# Where a switch dies, of the stores that take more than one step for it.
POINTS = {
    "chroma": ("connectors.chroma.renamed",),
    "files": ("connectors.files.named", "connectors.files.switched"),
    "pgvector": ("connectors.pgvector.settled", "connectors.pgvector.renamed"),
}


class Place(Protocol):
    """A gallery in a store, as its users see it. `url` names it; `tolerance` is how far a number may be from what was
    put; `dim` is what `put` takes; `has_side_information` whether its items have some."""

    tolerance: float
    has_side_information: bool

    @property
    def url(self) -> str: ...

    def keys(self, count: int) -> list[str]:
        """Return keys that the store can have, ascending in its order."""

    def put(self, rows: Rows) -> None:
        """Write items on the side that searches see: those that are there are replaced."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete items."""


def unit(vectors: Vectors) -> Vectors:
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def some_rows(place: Place, keys: Sequence[str], seed: int = 0) -> Rows:
    """Return items of random unit vectors."""
    random = np.random.default_rng([seed, len(keys)])
    embedding = unit(random.standard_normal((len(keys), DIM)).astype(np.float32))
    side = random.standard_normal((len(keys), SIDE_DIM)).astype(np.float32) if place.has_side_information else None
    return Rows(list(keys), embedding, side)


def h(rows: Rows) -> Rows:
    """Transform rows, by a random matrix."""
    side = (
        rows.side_information if rows.side_information is not None else np.zeros((len(rows.keys), SIDE_DIM), np.float32)
    )
    made = unit(np.hstack([rows.embedding, side]) @ _H)
    return Rows(rows.keys, made, rows.side_information)


def new_side(place: Place, name: str = "v2") -> NewSide:
    return NewSide(name, NEW_DIM, SIDE_DIM if place.has_side_information else None)


def bring_all(store: ExternalStore, rows: int = 7) -> None:
    """Write every range of the new side once."""
    for keys in keep_open_ends(store.bounds(rows)):
        store.write(keys, h(store.read(keys)))


def converge(store: ExternalStore) -> None:
    """Bring what was written meanwhile."""
    if not store.describe().notices_writes:
        bring_all(store)
    while store.settle(h, 3):
        pass


def assert_rows(found: Rows, expected: Rows, tolerance: float) -> None:
    assert found.keys == expected.keys
    assert found.embedding.dtype == np.float32
    assert found.embedding.shape == expected.embedding.shape
    np.testing.assert_allclose(found.embedding, expected.embedding, atol=tolerance)
    if expected.side_information is None:
        assert found.side_information is None
    else:
        assert found.side_information is not None
        np.testing.assert_allclose(found.side_information, expected.side_information, atol=4 * tolerance)


def assert_finds(store: ExternalStore, rows: Rows) -> None:
    """Assert that a search for each of some vectors finds its own item first."""
    for row in range(0, len(rows.keys), max(1, len(rows.keys) // 5)):
        assert store.searched(rows.embedding[row], 3)[0] == rows.keys[row]


def merged(place: Place, *parts: Rows) -> Rows:
    """Return the rows of all parts by ascending key, the later of two of one key."""
    found = {key: (part, row) for part in parts for row, key in enumerate(part.keys)}
    order = [key for key in place.keys(200) if key in found]
    embedding = np.array([found[key][0].embedding[found[key][1]] for key in order], np.float32)
    sides = [found[key][0].side_information for key in order]
    side = [values[found[key][1]] for key, values in zip(order, sides, strict=True) if values is not None]
    return Rows(order, embedding, np.array(side, np.float32) if side else None)


class StoreContract:
    crash_points: ClassVar[Sequence[str]] = ()  # of a switch
    notices_writes: ClassVar[bool] = False

    @pytest.fixture
    def put(self, place: Place) -> Rows:
        """Forty items that are there."""
        rows = some_rows(place, place.keys(200)[:120:3])
        place.put(rows)
        return rows

    def test_describes_the_gallery(self, place: Place, put: Rows) -> None:
        store = open_store(place.url)

        found = store.describe()

        assert (found.rows, found.embedding_dim) == (40, DIM)
        assert found.side_information_dim == (SIDE_DIM if place.has_side_information else None)
        assert found.notices_writes == self.notices_writes
        assert found.dtype in ("float32", "float16")
        store.close()

    @pytest.mark.parametrize("rows", [1, 7, 39, 40, 41, 1000])
    def test_ranges_give_every_row_once_and_in_order(self, place: Place, put: Rows, rows: int) -> None:
        store = open_store(place.url)

        parts = [store.read(keys) for keys in keep_open_ends(store.bounds(rows))]

        assert max(len(part.keys) for part in parts) <= max(2 * rows, 1)
        assert_rows(merged(place, *parts), put, place.tolerance)
        assert [key for part in parts for key in part.keys] == put.keys
        store.close()

    def test_tables_have_the_same_rows(self, place: Place, put: Rows) -> None:
        store = open_store(place.url)

        found = list(tables(store, 15))

        assert [key for table in found for key in table["id"].to_pylist()] == put.keys
        assert set(found[0].column_names) >= {"id", "embedding"}
        assert ("side_information" in found[0].column_names) == place.has_side_information
        store.close()

    def test_what_is_written_is_read_again(self, place: Place, put: Rows) -> None:
        store = open_store(place.url, new_side(place))
        store.prepare()
        store.prepare()

        bring_all(store)

        assert_rows(store.read_new(ALL), h(put), 10 * place.tolerance)
        assert_rows(store.read(ALL), put, place.tolerance)
        assert not store.is_switched()
        store.close()

    def test_a_range_that_is_written_again_has_the_last_rows_alone(self, place: Place, put: Rows) -> None:
        store = open_store(place.url, new_side(place))
        store.prepare()
        bring_all(store)
        keys = KeyRange(put.keys[9], put.keys[19])
        read = store.read(keys)
        fewer = Rows(
            read.keys[::2],
            -read.embedding[::2],
            None if read.side_information is None else read.side_information[::2],
        )

        for _ in range(2):
            store.write(keys, h(fewer))

        assert_rows(store.read_new(keys), h(fewer), 10 * place.tolerance)
        assert len(store.read_new(ALL).keys) == 35
        store.close()

    def test_writes_between_a_read_and_its_write_are_brought(self, place: Place, put: Rows) -> None:
        store = open_store(place.url, new_side(place))
        store.prepare()
        parts = [(keys, store.read(keys)) for keys in keep_open_ends(store.bounds(7))]
        changed = some_rows(place, [put.keys[3], put.keys[20], *place.keys(200)[121:124]], seed=1)
        gone = [put.keys[5], put.keys[30]]
        place.put(changed)
        place.delete(gone)
        converge(store)

        for keys, rows in parts:
            store.write(keys, h(rows))  # of before the change
        later = some_rows(place, [put.keys[7]], seed=2)
        place.put(later)
        converge(store)

        expected = merged(place, put, changed, later)
        kept = [row for row, key in enumerate(expected.keys) if key not in gone]
        side = expected.side_information
        expected = Rows(
            [expected.keys[row] for row in kept], expected.embedding[kept], None if side is None else side[kept]
        )
        assert_rows(store.read_new(ALL), h(expected), 10 * place.tolerance)
        assert store.changed_keys(10) == []
        store.close()

    def test_searches_see_the_new_side_from_the_switch_on(self, place: Place, put: Rows) -> None:
        store = open_store(place.url, new_side(place))
        assert_finds(store, put)
        store.prepare()
        bring_all(store)
        store.index()
        store.index()
        assert_finds(store, put)

        for _ in range(2):
            store.switch(h)
            assert store.is_switched()
        store.prepare()
        with pytest.raises(StoreRefused, match="users"):
            store.write(ALL, h(put))

        assert_finds(store, h(put))
        assert_rows(store.read(ALL), put, place.tolerance)
        assert_rows(store.read_new(ALL), h(put), 10 * place.tolerance)
        store.close()

    def test_every_step_may_be_another_process(self, place: Place, put: Rows) -> None:
        def opened() -> ExternalStore:
            return open_store(place.url, new_side(place))

        steps: list[Callable[[ExternalStore], object]] = [
            lambda store: store.prepare(),
            bring_all,
            lambda store: store.index(),
            lambda store: store.switch(h),
            lambda store: store.switch_back(),
            lambda store: store.switch_back(),
            converge,
            lambda store: store.switch(h),
            lambda store: store.drop_old(),
            lambda store: store.drop_old(),
        ]
        seen = []
        for step in steps:
            store = opened()
            step(store)
            store.close()
            store = opened()
            seen.append(len(store.searched(put.embedding[0], 3)) if not self._is_new(store, put) else "new")
            store.close()

        assert seen == [3, 3, 3, "new", 3, 3, 3, "new", "new", "new"]
        store = open_store(self.after_url(place))
        assert store.describe().embedding_dim == NEW_DIM
        assert_rows(store.read(ALL), h(put), 10 * place.tolerance)
        store.close()

    def after_url(self, place: Place) -> str:
        """Return the URL of the gallery when it was upgraded."""
        return place.url

    def _is_new(self, store: ExternalStore, put: Rows) -> bool:
        try:
            return store.searched(h(put).embedding[0], 1) == [put.keys[0]]
        except StoreRefused:  # another dimension
            return False

    def test_a_side_that_searches_see_is_not_dropped(self, place: Place, put: Rows) -> None:
        store = open_store(place.url, new_side(place))
        store.prepare()
        bring_all(store)

        with pytest.raises(StoreRefused, match="old side"):
            store.drop_old()
        store.switch(h)
        with pytest.raises(StoreRefused, match="new side"):
            store.drop_new()
        store.switch_back()
        for _ in range(2):
            store.drop_new()

        assert_finds(store, put)
        assert_rows(store.read(ALL), put, place.tolerance)
        store.close()
        other = open_store(place.url, new_side(place, "v3"))
        other.prepare()
        bring_all(other)
        other.switch(h)
        assert_finds(other, h(put))
        other.close()

    def test_rows_of_another_width_are_refused(self, place: Place, put: Rows) -> None:
        store = open_store(place.url, new_side(place))
        store.prepare()

        with pytest.raises(StoreRefused):
            store.write(ALL, put)

        store.close()
        store = open_store(place.url, replace(new_side(place), embedding_dim=NEW_DIM + 1))
        with pytest.raises(StoreRefused, match="v2"):
            store.prepare()
        store.close()

    def test_without_a_new_side_nothing_is_changed(self, place: Place, put: Rows) -> None:
        store = open_store(place.url)

        for call in (
            store.prepare,
            store.index,
            store.is_switched,
            store.switch_back,
            store.drop_new,
            store.drop_old,
            lambda: store.read_new(ALL),
            lambda: store.switch(h),
        ):
            with pytest.raises(StoreRefused, match="new side"):
                call()
        store.close()

    def test_an_unknown_parameter_is_refused_with_those_that_are_known(self, place: Place, put: Rows) -> None:
        with pytest.raises(StoreRefused, match="parameters") as refused:
            open_store(f"{place.url}{'&' if '?' in place.url else '?'}colour=red")

        assert "colour" in refused.value.message

    def test_an_empty_gallery_is_upgraded(self, place: Place, put: Rows) -> None:
        place.delete(put.keys)
        store = open_store(place.url, new_side(place))

        described = store.describe()
        store.prepare()
        bring_all(store)
        store.switch(h)

        assert (described.rows, described.embedding_dim) == (0, DIM)
        assert store.is_switched()
        assert store.read_new(ALL).embedding.shape == (0, NEW_DIM)
        store.close()

    def test_a_crash_within_a_switch_is_completed_by_the_next(self, place: Place, put: Rows) -> None:
        for number, point in enumerate(self.crash_points):
            name = f"v{number}"
            store = open_store(place.url, new_side(place, name))
            store.prepare()
            bring_all(store)
            store.close()

            dead = subprocess.run([sys.executable, "-c", _DIES, place.url, name, point], check=False, timeout=120)

            store = open_store(place.url, new_side(place, name))
            assert dead.returncode == 137, point
            assert_finds(store, h(put) if store.is_switched() else put)
            store.switch(h)
            assert_finds(store, h(put))
            assert_rows(store.read(ALL), put, place.tolerance)
            store.switch_back()
            store.drop_new()
            assert_rows(store.read(ALL), put, place.tolerance)
            store.close()


_DIES = f"""
import sys
from service import crash_points
from service.connectors.opening import open_store
from service.connectors.store import NewSide
from tests.store_contract import SIDE_DIM, h
url, name, point = sys.argv[1:]
side = SIDE_DIM if "side_information" in url else None
store = open_store(url, NewSide(name, {NEW_DIM}, side))
crash_points.arm(point)
store.switch(h)
"""
