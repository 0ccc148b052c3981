"""Indexes on a GPU; and on a CPU, with a copy that stands in for the one on the GPU, what is searched where."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
import pytest

from service.index.faiss_index import FaissIndex
from service.index.gpu import rows_on, with_copy
from service.index.kinds import ApproximateRows
from service.index.protocol import IndexKind, Metric
from tests.unit.index.building import CODES, KINDS, built_and_measured
from tests.unit.index.exhaustive import METRICS, assert_is_nearest

DIM = 16
IDS = np.arange(3_000)
VECTORS = np.random.default_rng(0).standard_normal((3_000, DIM)).astype(np.float32)
QUERIES = np.random.default_rng(1).standard_normal((20, DIM)).astype(np.float32)
on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="there is no GPU that this FAISS can use"),
]


class Copy:
    """Counts the searches of a copied index, which refuses selectors as FAISS's GPU indexes do."""

    def __init__(self, index: Any) -> None:
        self.index = faiss.clone_index(index)
        self.searches = 0

    def search(self, queries: Any, k: int, params: Any = None) -> Any:
        assert params is None or params.sel is None
        self.searches += 1
        return self.index.search(queries, k, params=params)


@pytest.mark.parametrize(("kind", "copied"), [("flat", True), ("hnsw", False), ("ivf", True), ("ivf_sq8", True)])
def test_searches_without_a_selector_run_in_the_copy_and_find_the_same(kind: IndexKind, copied: bool) -> None:
    rows = built_and_measured("l2", IDS, VECTORS, kind)[0].rows
    copies: list[Copy] = []

    def copy(index: Any) -> Copy:
        copies.append(Copy(index))
        return copies[-1]

    there = with_copy(rows, copy)
    selector = faiss.IDSelectorRange(0, 1_000)

    found, expected = there.scan(QUERIES, 10, None), rows.scan(QUERIES, 10, None)
    few, few_expected = there.scan(QUERIES, 10, selector), rows.scan(QUERIES, 10, selector)
    many = there.scan(QUERIES, 2_500, None)

    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(few[1], few_expected[1])
    assert many[1].shape == (20, 2_500)
    assert [one.searches for one in copies] == ([1] if copied else [])
    if isinstance(there, ApproximateRows) and isinstance(rows, ApproximateRows):
        near, near_expected = there.search(QUERIES, 10, rows.width), rows.search(QUERIES, 10, rows.width)
        np.testing.assert_array_equal(near[1], near_expected[1])
        assert there.width == rows.width
        assert [one.searches for one in copies] == ([2] if copied else [])


def test_only_one_copy_is_searched_at_a_time() -> None:
    searching, together = threading.Lock(), []

    class SlowCopy(Copy):
        def search(self, queries: Any, k: int, params: Any = None) -> Any:
            together.append(not searching.acquire(blocking=False))
            time.sleep(0.005)
            found = super().search(queries, k, params)
            if searching.locked():
                searching.release()
            return found

    rows = built_and_measured("l2", IDS, VECTORS, "flat")[0].rows
    indexes = [with_copy(rows, SlowCopy) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: index.scan(QUERIES, 10, None), 3 * indexes))

    assert together == [False] * 12


def test_rows_stay_where_they_are_without_a_gpu() -> None:
    rows = built_and_measured("l2", IDS, VECTORS, "flat")[0].rows

    assert rows_on("cpu", rows) is rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("where", [pytest.param("cuda", marks=on_a_gpu)])
def test_every_kind_answers_on_a_gpu_as_on_the_cpu(where: str, kind: IndexKind, metric: Metric) -> None:
    built, recall = built_and_measured(metric, IDS, VECTORS, kind)
    index = FaissIndex(metric, DIM, built, where)
    gone, replaced = IDS[:500], IDS[500:600]

    index.remove(gone)
    index.add(replaced, -VECTORS[500:600])
    found = index.search(QUERIES, 10)
    among = index.search(QUERIES, 10, IDS[::7])

    live = {id_: vector for id_, vector in zip(IDS.tolist(), VECTORS, strict=True) if id_ >= 600}
    live |= {id_: -VECTORS[id_] for id_ in replaced.tolist()}
    if found.is_exact:
        assert_is_nearest(found, metric, live, QUERIES, 10, CODES[kind])
    assert set(found.ids.ravel().tolist()) <= live.keys()
    assert set(among.ids.ravel().tolist()) <= set(IDS[::7].tolist()) & live.keys()
    assert recall >= 0.95
