"""`FaissIndex` against a dictionary: additions, removals and searches in any order give what it would."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.index.faiss_index import FaissIndex
from service.index.files import build_index
from service.index.protocol import Ids, Metric, Vectors
from tests.unit.index.exhaustive import METRICS, assert_finds_the_nearest

DIM = 3

# Few ids, so that they meet each other; small whole numbers, so that ties and zero vectors are common.
an_id = st.one_of(st.integers(0, 12), st.sampled_from([2**31, 2**32 + 1, 2**62]))
a_vector = st.lists(st.integers(-2, 2).map(float), min_size=DIM, max_size=DIM)
some_rows = st.lists(st.tuples(an_id, a_vector), max_size=8)


def arrays(rows: list[tuple[int, list[float]]]) -> tuple[Ids, Vectors]:
    return (
        np.array([id_ for id_, _ in rows], np.int64),
        np.array([vector for _, vector in rows], np.float32).reshape(len(rows), DIM),
    )


class FlatIndexIsADictionary(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.metric: Metric = "l2"
        self.rows: dict[int, Vectors] = {}
        self.index = FaissIndex("l2", DIM)

    @initialize(metric=st.sampled_from(METRICS), rows=some_rows, has_sealed_part=st.booleans())
    def build(self, metric: Metric, rows: list[tuple[int, list[float]]], has_sealed_part: bool) -> None:
        self.metric = metric
        ids, vectors = arrays(list(dict(rows).items()) if has_sealed_part else [])
        built = build_index(metric, DIM, [(ids, vectors)], "flat") if has_sealed_part else None
        self.index = FaissIndex(metric, DIM, built)
        self.rows = dict(zip(ids.tolist(), vectors, strict=True))

    @rule(rows=some_rows)
    def add(self, rows: list[tuple[int, list[float]]]) -> None:
        ids, vectors = arrays(rows)
        self.index.add(ids, vectors)
        self.rows.update(zip(ids.tolist(), vectors, strict=True))

    @rule(ids=st.lists(an_id, max_size=6))
    def remove(self, ids: list[int]) -> None:
        self.index.remove(np.array(ids, np.int64))
        for id_ in ids:
            self.rows.pop(id_, None)

    @rule(
        queries=st.lists(a_vector, min_size=1, max_size=3),
        k=st.integers(1, 20),
        allowed=st.none() | st.lists(an_id, max_size=10),
    )
    def search(self, queries: list[list[float]], k: int, allowed: list[int] | None) -> None:
        assert_finds_the_nearest(self.index, self.metric, self.rows, np.array(queries, np.float32), k, allowed)

    @invariant()
    def holds_the_same_ids(self) -> None:
        assert self.index.ids().tolist() == sorted(self.rows)
        assert len(self.index) == len(self.rows)
        assert self.index.tail_size <= len(self.rows)


TestFlatIndexIsADictionary = FlatIndexIsADictionary.TestCase
TestFlatIndexIsADictionary.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
