"""One node of a graph for all copies of a row: which rows are copies, and that each still answers for itself."""

from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.index import copies as module
from service.index.faiss_index import FaissIndex
from service.index.files import IndexFileError, build_index, load_index, read_index, save_index
from service.index.kinds import BuiltIndex
from service.index.protocol import Ids, Metric, Vectors
from tests.unit.index.building import CODES, as_rows, built, some_ids, some_vectors
from tests.unit.index.exhaustive import METRICS, all_distances, assert_finds_the_nearest

DIM = 4

# Two values, so that most rows are copies of others, and float16 codes have them as they are.
a_vector = st.lists(st.integers(0, 1).map(float), min_size=DIM, max_size=DIM)
some_positions = st.sets(st.integers(0, 59), max_size=60)


def clustered(copies: int) -> tuple[Vectors, Vectors]:
    """Return 6,000 rows in 40 clusters and some copies of one other vector, mixed; and 100 queries 0.4 of the way from
    a row to the copies."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((40, 64))
    rows = centres[random.integers(40, size=6_000)] + 0.3 * random.standard_normal((6_000, 64))
    one = random.standard_normal((1, 64))
    near = random.permutation(rows)[:100]
    mixed = random.permutation(np.concatenate([rows, np.repeat(one, copies, axis=0)]))
    return mixed.astype(np.float32), (near + 0.4 * (one - near)).astype(np.float32)


@pytest.mark.parametrize("copies", [400, 4_000])
def test_many_copies_of_one_vector_hide_no_other_row(copies: int) -> None:
    vectors, queries = clustered(copies)
    index = built("l2", np.arange(len(vectors)), vectors, "hnsw")

    found = FaissIndex("l2", 64, index).search(queries, 10)

    distances = all_distances("l2", queries, vectors)
    tenth = np.sort(distances, axis=1)[:, 9:10]
    assert not found.is_exact
    assert (np.take_along_axis(distances, found.ids, axis=1) <= tenth + 1e-3).mean() >= 0.98
    assert len(index.copies) == copies - 1


def test_a_graph_has_a_node_for_each_vector_with_the_smallest_id() -> None:
    vectors = some_vectors(50, DIM)[np.random.default_rng(3).integers(0, 50, 900)]
    ids = some_ids(900)

    index = built("l2", ids, vectors, "hnsw", chunk=70)

    groups: dict[bytes, list[int]] = {}
    for id_, vector in zip(ids.tolist(), vectors, strict=True):
        groups.setdefault(vector.tobytes(), []).append(id_)
    nodes = index.index.ntotal
    assert nodes == len(groups)
    assert sorted(index.ids[:nodes].tolist()) == sorted(min(group) for group in groups.values())
    assert len(index) == 900
    assert Counter(index.copies.nodes.tolist()) == Counter(
        {
            place: len(group) - 1
            for place, id_ in enumerate(index.ids[:nodes].tolist())
            for group in groups.values()
            if id_ == min(group) and len(group) > 1
        }
    )
    found = dict(zip(index.ids.tolist(), index.vectors(np.arange(900)), strict=True))
    for id_, vector in zip(ids.tolist(), vectors, strict=True):
        np.testing.assert_allclose(found[id_], vector, atol=CODES["hnsw"])


def test_rows_of_one_hash_are_not_taken_for_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hashes", lambda codes: np.zeros(len(codes), np.int64))
    vectors = np.repeat(some_vectors(20, DIM), 2, axis=0)

    index = built("l2", np.arange(40), vectors, "hnsw", chunk=8)

    rows = as_rows(np.arange(40), vectors)
    assert_finds_the_nearest(FaissIndex("l2", DIM, index), "l2", rows, vectors[::4], 40, tolerance=CODES["hnsw"])
    assert 20 <= index.index.ntotal < 40


@settings(max_examples=60, deadline=None)
@given(
    metric=st.sampled_from(METRICS),
    vectors=st.lists(a_vector, min_size=1, max_size=60),
    removed=some_positions,
    added=st.dictionaries(st.integers(40, 70), a_vector, max_size=12),
    allowed=st.none() | some_positions,
    queries=st.lists(a_vector, min_size=1, max_size=3),
    k=st.integers(1, 70),
    gathered_rows=st.sampled_from([0, 2_000]),
)
def test_a_graph_with_copies_answers_as_exhaustive_search_does(
    metric: Metric,
    vectors: list[list[float]],
    removed: set[int],
    added: dict[int, list[float]],
    allowed: set[int] | None,
    queries: list[list[float]],
    k: int,
    gathered_rows: int,
) -> None:
    """With filters, removed and replaced members of groups, and rows in the tail; gathered and scanned."""
    sealed = np.array(vectors, np.float32)
    ids = np.random.default_rng(len(sealed)).permutation(len(sealed))
    rows = as_rows(ids, sealed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.index.faiss_index._GATHERED_ROWS", gathered_rows)
        index = FaissIndex(metric, DIM, built(metric, ids, sealed, "hnsw", chunk=7))
        index.remove(np.array(sorted(removed), np.int64))
        index.add(np.array(list(added), np.int64), np.array(list(added.values()), np.float32).reshape(-1, DIM))
        rows = {id_: vector for id_, vector in rows.items() if id_ not in removed}
        rows |= {id_: np.array(vector, np.float32) for id_, vector in added.items()}

        asked = np.array(queries, np.float32)
        assert_finds_the_nearest(index, metric, rows, asked, k, allowed, tolerance=CODES["hnsw"])


@pytest.mark.parametrize("copies", [0, 300])
def test_a_walk_answers_for_each_member_of_a_group(copies: int) -> None:
    """Enough nodes that they are walked to: filters and tombstones are each row's own, and equal rows come by id."""
    vectors = some_vectors(6_000, 16)
    vectors[::20][:copies] = vectors[0]
    ids = np.random.default_rng(1).permutation(6_000)
    index = FaissIndex("l2", 16, built("l2", ids, vectors, "hnsw"))
    members = np.sort(ids[::20][:copies])
    gone, replaced, passing = members[:5], members[5:8], np.setdiff1d(ids, members[8:20])

    index.remove(gone)
    index.add(replaced, vectors[1:2].repeat(len(replaced), axis=0))
    everywhere, among = index.search(vectors[:1], 25), index.search(vectors[:1], 25, passing)

    assert not everywhere.is_exact
    assert not among.is_exact
    if copies:
        assert everywhere.ids[0].tolist() == members[8:33].tolist()
        assert among.ids[0].tolist() == members[20:45].tolist()
    else:
        assert everywhere.ids[0].tolist() == among.ids[0].tolist()
        assert everywhere.ids[0, 0] == ids[0]


def with_copies() -> tuple[Ids, Vectors, BuiltIndex]:
    ids, vectors = some_ids(500), some_vectors(500, DIM)
    vectors[100:200] = vectors[0]
    vectors[200:210] = vectors[1]
    return ids, vectors, built("l2", ids, vectors, "hnsw")


def test_copies_are_in_the_file_and_mapped(tmp_path: Path) -> None:
    ids, vectors, index = with_copies()

    digest = save_index(index, tmp_path / "a")

    read = read_index(tmp_path / "a", "l2", DIM, digest)
    assert isinstance(read.copies.ids, np.memmap)
    assert isinstance(read.copies.nodes, np.memmap)
    np.testing.assert_array_equal(read.ids, index.ids)
    np.testing.assert_array_equal(read.copies.nodes, index.copies.nodes)
    assert read.parameters == index.parameters
    assert read.parameters["copies"] == 110
    loaded = load_index(tmp_path / "a", "l2", DIM, digest)
    assert_finds_the_nearest(loaded, "l2", as_rows(ids, vectors), vectors[:5], 120, tolerance=CODES["hnsw"])


def test_a_file_without_copies_is_what_faiss_writes(tmp_path: Path) -> None:
    ids, vectors = some_ids(50), some_vectors(50, DIM)
    index = build_index("l2", DIM, [(ids, vectors)], "hnsw")

    digest = save_index(index, tmp_path / "a")

    faiss.write_index(index.index, str(tmp_path / "b"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(read_index(tmp_path / "a", "l2", DIM, digest).copies) == 0


def test_copies_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, index = with_copies()
    monkeypatch.setattr(module, "_VERSION", 2)
    digest = save_index(index, tmp_path / "a")
    monkeypatch.undo()

    with pytest.raises(IndexFileError, match="of version 2"):
        load_index(tmp_path / "a", "l2", DIM, digest)


def test_the_largest_groups_come_first() -> None:
    _, vectors, index = with_copies()

    largest = index.copies.largest(10, 10)

    np.testing.assert_allclose(index.vectors(largest), vectors[:2], atol=CODES["hnsw"])
    assert index.copies.largest(1, 10).tolist() == largest[:1].tolist()
    assert index.copies.largest(10, 12).tolist() == largest[:1].tolist()
