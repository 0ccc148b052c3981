"""Examples: what is shown is what flipped and changed."""

import numpy as np

from models.judging.evidence import Queries
from models.judging.examples import Example, Hub, choose_examples
from models.judging.search import NO_ID, Neighbours


def asked(count: int, own: int) -> Queries:
    vectors = np.zeros((count, 1), np.float32)
    return Queries(vectors, vectors, np.full(count, own), "queries")


def answers(ids: list[list[int]]) -> Neighbours:
    return Neighbours(np.array(ids), np.zeros((len(ids), len(ids[0])), np.float32))


def test_flips_churn_and_hubs_are_shown_with_both_answers() -> None:
    before, after = answers([[1, 2], [3, 4], [5, NO_ID]]), answers([[2, 1], [2, 8], [5, 2]])

    found = choose_examples([asked(1, 77), asked(2, NO_ID)], before, after, np.array([0]), np.array([1, 2]), 0)

    assert found.negative_flips == (Example(0, 77, (1, 2), (2, 1)),)
    assert found.positive_flips == (Example(1, None, (3, 4), (2, 8)), Example(2, None, (5,), (5, 2)))
    assert [example.query for example in found.churn] == [1, 2, 0]
    assert found.hubs[0] == Hub(2, 1, 3)


def test_of_many_flips_some_are_drawn_by_the_seed() -> None:
    same = answers([[1, 2]] * 100)

    def drawn(seed: int) -> list[int]:
        found = choose_examples([asked(100, NO_ID)], same, same, np.arange(100), np.arange(0), seed)
        return [example.query for example in found.negative_flips]

    assert len(set(drawn(0))) == 20
    assert drawn(0) == drawn(0) != drawn(1)
