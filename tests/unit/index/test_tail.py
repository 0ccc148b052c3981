"""The exact part of an index against a dictionary that is searched one row at a time."""

import numpy as np
import pytest

from service.index.protocol import Ids, Metric, Vectors, normalized
from service.index.tail import _BLOCK_ROWS, Tail
from tests.unit.index.exhaustive import METRICS, assert_is_nearest

DIM = 3

Rows = dict[int, Vectors]


def some_vectors(count: int, seed: int = 0) -> Vectors:
    """Return unit vectors, which are what an index puts into its tail under every metric."""
    return normalized(np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32))


def filled(metric: Metric, count: int) -> tuple[Tail, Rows]:
    tail, vectors = Tail(metric, DIM), some_vectors(count)
    tail.put(np.arange(count), vectors)
    return tail, dict(enumerate(vectors))


def check(tail: Tail, metric: Metric, rows: Rows, k: int = 5, allowed: Ids | None = None) -> None:
    """The tail holds exactly these rows, and finds the nearest of those that are allowed."""
    queries = some_vectors(4, seed=9)
    chosen = rows if allowed is None else {id_: rows[id_] for id_ in allowed.tolist() if id_ in rows}
    found = tail.search(queries, k, allowed)
    assert len(tail) == len(rows)
    assert sorted(tail.ids().tolist()) == sorted(rows)
    assert_is_nearest(found, metric, chosen, queries, k if chosen else 0, 1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_come_change_and_go_are_what_a_dictionary_has(metric: Metric) -> None:
    random = np.random.default_rng(1)
    tail, rows = Tail(metric, DIM), dict[int, Vectors]()

    for step in range(60):
        ids = random.choice(40, size=random.integers(1, 12), replace=False)
        if step % 3 == 2:
            tail.drop(ids)
            rows = {id_: vector for id_, vector in rows.items() if id_ not in ids}
        else:
            vectors = some_vectors(len(ids), seed=step)
            tail.put(ids, vectors)
            rows |= dict(zip(ids.tolist(), vectors, strict=True))

        check(tail, metric, rows)
        check(tail, metric, rows, allowed=random.choice(50, size=15, replace=False))


@pytest.mark.parametrize("count", [_BLOCK_ROWS - 1, _BLOCK_ROWS, _BLOCK_ROWS + 1])
def test_blocks_of_rows_give_what_all_rows_at_once_give(count: int) -> None:
    tail, rows = filled("l2", count)

    check(tail, "l2", rows)
    check(tail, "l2", rows, allowed=np.arange(0, count, 2))


def test_an_empty_tail_and_an_empty_choice_find_nothing() -> None:
    empty, (tail, _) = Tail("l2", DIM), filled("l2", 3)
    queries = some_vectors(2)

    answers = [empty.search(queries, 5, None), tail.search(queries, 5, np.empty(0, np.int64))]

    assert [(answer.ids >= 0).sum() for answer in answers] == [0, 0]
    assert [len(answer.ids) for answer in answers] == [2, 2]


def test_dropping_unknown_ids_and_the_last_row_leaves_the_others() -> None:
    tail, rows = filled("ip", 4)

    tail.drop(np.array([77, 3, 3, 0]))

    check(tail, "ip", {id_: rows[id_] for id_ in (1, 2)})


def test_the_ids_that_were_given_out_do_not_change_with_the_tail() -> None:
    tail, _ = filled("l2", 3)

    before = tail.ids()
    tail.drop(np.array([0]))

    assert before.tolist() == [0, 1, 2]
