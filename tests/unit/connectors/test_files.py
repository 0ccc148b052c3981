"""Galleries in files: Parquet, .npy and FAISS."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.connectors.opening import open_store
from service.connectors.store import KeyRange, Rows, StoreRefused
from tests.store_contract import ALL, DIM, POINTS, SIDE_DIM, StoreContract, bring_all, h, new_side, some_rows
from tests.unit.connectors.odd_keys import ODD_KEYS


@dataclass
class Files:
    """A `tests.store_contract.Place`: files that their users replace as a whole."""

    path: Path
    kind: str
    has_side_information: bool = False
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        self.rows: dict[str, tuple[Any, Any]] = {}
        self.save()

    @property
    def url(self) -> str:
        return f"file://{self.path}" + ("?side_information=side_information" if self.has_side_information else "")

    def keys(self, count: int) -> list[str]:
        if self.kind in ("folder", "faiss", "hnsw"):
            return [str(5 * number) for number in range(count)]
        odd = [key for key in ODD_KEYS if key and "\n" not in key]
        return sorted([*odd, *(f"item {number}" for number in range(count - len(odd)))])

    def put(self, rows: Rows) -> None:
        for row, key in enumerate(rows.keys):
            side = None if rows.side_information is None else rows.side_information[row]
            self.rows[key] = (rows.embedding[row], side)
        self.save()

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.rows.pop(key, None)
        self.save()

    def save(self) -> None:
        keys = sorted(self.rows, key=hash)  # in no order
        vectors = np.array([self.rows[key][0] for key in keys], np.float32).reshape(len(keys), DIM)
        if self.kind == "folder":
            self.path.mkdir(exist_ok=True)
            for number in range(3):
                self.write_table(self.path / f"{number}.parquet", keys[number::3], vectors[number::3])
        elif self.kind == "parquet":
            self.write_table(self.path, keys, vectors)
        else:
            self.path.with_suffix(".ids.txt").write_text("".join(f"{key}\n" for key in keys))
            part = self.path.with_suffix(".part.npy")
            if self.kind == "npy":
                np.save(part, vectors)
            else:
                index = faiss.IndexHNSWFlat(DIM, 8) if self.kind == "hnsw" else faiss.IndexFlatIP(DIM)
                self.path.with_suffix(".ids.txt").unlink()
                index = faiss.IndexIDMap(index)
                index.add_with_ids(vectors, np.array(keys, np.int64))
                faiss.write_index(index, str(part))
            part.rename(self.path)

    def write_table(self, path: Path, keys: list[str], vectors: Any) -> None:
        number = pa.float16() if self.tolerance > 1e-4 else pa.float32()
        columns = {
            "label": pa.array([f"of {key}" for key in keys], pa.string()),
            "id": pa.array([int(key) for key in keys], pa.int64())
            if self.kind == "folder"
            else pa.array(keys, pa.string()),
            "embedding": pa.array(list(vectors.astype(number.to_pandas_dtype())), pa.list_(number, DIM)),
        }
        if self.has_side_information:
            sides = [self.rows[key][1] for key in keys]
            columns["side_information"] = pa.array(sides, pa.list_(pa.float32(), SIDE_DIM))
        part = path.with_suffix(".part")
        pq.write_table(pa.table(columns), part, row_group_size=16)
        part.rename(path)


class TestContract(StoreContract):
    crash_points: ClassVar[Sequence[str]] = POINTS["files"]

    @pytest.fixture(params=["parquet psi", "folder half", "npy", "faiss", "hnsw"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Files:
        kind, *more = request.param.split()
        names = {"parquet": "g.parquet", "folder": "g", "npy": "g.npy", "faiss": "g.faiss", "hnsw": "g.index"}
        return Files(tmp_path / names[kind], kind, more == ["psi"], 1e-3 if more == ["half"] else 1e-6)


def test_other_columns_are_kept_and_what_an_upgrade_made_is_gone_at_its_end(tmp_path: Path) -> None:
    place = Files(tmp_path / "g.parquet", "parquet")
    rows = some_rows(place, place.keys(20))
    place.put(rows)
    before = pq.read_table(place.path).to_pydict()

    store = open_store(place.url, new_side(place))
    store.prepare()
    bring_all(store)
    store.switch(h)
    store.drop_old()

    after = pq.read_table(place.path).to_pydict()
    assert (after["id"], after["label"]) == (before["id"], before["label"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.parquet"]


def test_a_file_that_was_replaced_since_the_whole_one_was_made_is_not_lost(tmp_path: Path) -> None:
    place = Files(tmp_path / "g.parquet", "parquet")
    place.put(some_rows(place, place.keys(20)))
    store = open_store(place.url, new_side(place))
    store.prepare()
    bring_all(store)
    store.index()

    place.put(some_rows(place, ["another"]))
    with pytest.raises(StoreRefused, match="1 rows have no embedding"):
        store.switch(h)
    bring_all(store)
    store.switch(h)

    assert len(store.read_new(ALL).keys) == 21


def test_vectors_that_are_not_finite_are_named(tmp_path: Path) -> None:
    place = Files(tmp_path / "g.npy", "npy")
    rows = some_rows(place, place.keys(20))
    rows.embedding[3, 0] = np.nan
    place.put(rows)

    with pytest.raises(StoreRefused, match="1 items are not finite") as refused:
        open_store(place.url).read(ALL)

    assert rows.keys[3] in refused.value.message


def test_a_quantised_index_says_that_it_has_codes(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
    index = faiss.index_factory(DIM, "IVF4,SQ8")
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "g.faiss"))
    (tmp_path / "g.ids.txt").write_text("".join(f"{row}\n" for row in range(300)))

    found = open_store(f"file://{tmp_path}/g.faiss").describe()

    assert (found.rows, found.embedding_dim) == (300, DIM)
    assert "codes" in str(found.warning)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.parquet", None),
        ("g.txt", b""),
        ("g.npy", b"nonsense"),
        ("g.parquet", b"nonsense"),
        ("g.faiss", b"x" * 99),
    ],
)
def test_what_is_no_gallery_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(StoreRefused):
        open_store(f"file://{tmp_path}/{name}")


def test_a_key_that_occurs_twice_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "g.npy", np.ones((3, DIM), np.float32))
    (tmp_path / "g.ids.txt").write_text("a\nb\na\n")

    with pytest.raises(StoreRefused, match="'a' occurs twice"):
        open_store(f"file://{tmp_path}/g.npy").bounds(2)


def test_who_may_read_the_file_may_read_the_new_one(tmp_path: Path) -> None:
    place = Files(tmp_path / "g.npy", "npy")
    place.put(some_rows(place, place.keys(5)))
    mode = place.path.stat().st_mode
    store = open_store(place.url, new_side(place))
    store.prepare()
    bring_all(store)

    store.switch(h)

    assert place.path.stat().st_mode == mode


@pytest.mark.parametrize("kind", ["parquet", "folder", "npy"])
def test_what_the_other_columns_say_is_read_by_key(tmp_path: Path, kind: str) -> None:
    place = Files(tmp_path / {"parquet": "g.parquet", "folder": "g", "npy": "g.npy"}[kind], kind)
    keys = place.keys(40)
    place.put(some_rows(place, keys))
    ordered = sorted(keys, key=int if kind == "folder" else str)

    found = open_store(place.url).payloads(KeyRange(ordered[1], ordered[4]))

    assert found == ({} if kind == "npy" else {key: {"label": f"of {key}"} for key in ordered[2:5]})
