"""What references tell, against rankings made one query at a time."""

import numpy as np
import pytest

from models.judging.evidence import Queries, References
from models.judging.intervals import Draws, hit_difference, score_difference
from models.judging.references import judge_references
from models.metrics import Labels, Metric, Vectors, gap_closed, retrieval_metrics
from models.statistics import mcnemar_test

N = 90
DRAWS = Draws(resamples=300)


def distances(query: Vectors, items: Vectors, metric: Metric) -> list[float]:
    a, b = query.astype(np.float64), items.astype(np.float64)
    products = (a * b).sum(axis=1)
    found = {
        "l2": np.sqrt(((a - b) ** 2).sum(axis=1)),
        "ip": -products,
        "cosine": 1 - products / np.linalg.norm(a) / np.linalg.norm(b, axis=1),
    }[metric]
    return list(map(float, found))


def ranking(query: Vectors, items: Vectors, metric: Metric) -> list[int]:
    return sorted(range(len(items)), key=lambda item: (distances(query, items, metric)[item], item))


def references(labels: Labels | None) -> References:
    generator = np.random.default_rng(0)
    new = generator.standard_normal((N, 6), np.float32)
    old = generator.standard_normal((N, 4), np.float32)
    queries = Queries(old, new, np.arange(N) + 100, "references", labels)
    noise = [scale * generator.standard_normal((N, 6), np.float32) for scale in (0.3, 0.6)]
    return References(queries, (new + noise[0]).astype(np.float32), (new + noise[1]).astype(np.float32))


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_overlap_and_own_item_first_are_those_of_rankings_one_by_one(metric: Metric) -> None:
    given = references(None)

    found = judge_references(given, metric, DRAWS)

    new, overlaps, firsts = given.queries.after, [], []
    assert given.linear is not None
    stand_ins = ((given.transformed, new), (given.linear, new), (given.queries.before, given.queries.before))
    for (items, asked), standing in zip(stand_ins, (found.h, found.linear, found.nothing), strict=True):
        assert standing is not None
        shares, ranks = [], []  # per query
        for row in range(N):
            order = ranking(asked[row], items, metric)
            ranks.append(order.index(row))
            wanted = [item for item in ranking(new[row], new, metric) if item != row][:10]
            shares.append(len(set(wanted) & set([item for item in order if item != row][:10])) / 10)
        overlaps.append(np.array(shares))
        assert standing.overlap == pytest.approx(np.mean(shares))
        assert standing.own_item_first.at_1 == pytest.approx(np.mean(np.array(ranks) < 1))
        assert standing.own_item_first.at_10 == pytest.approx(np.mean(np.array(ranks) < 10))
        firsts.append(np.array(ranks) < 1)
    assert found.overlap_above_linear == score_difference(overlaps[1], overlaps[0], None, DRAWS)
    assert found.own_item_above_linear == hit_difference(firsts[1], firsts[0], None)


def test_the_relative_error_is_that_of_h_over_that_of_the_mean() -> None:
    given = references(None)

    found = judge_references(given, "l2", DRAWS)

    new = given.queries.after.astype(np.float64)
    error = ((given.transformed - new) ** 2).mean() / ((new - new.mean(axis=0)) ** 2).mean()
    assert found.h.relative_error == pytest.approx(error, rel=1e-5)
    assert found.nothing.relative_error is None
    assert found.labelled is None


def test_labelled_references_are_judged_where_they_have_a_positive() -> None:
    labels = np.random.default_rng(1).integers(0, 12, N)
    labels[:6], labels[6] = -1, 77
    given = references(labels)

    found = judge_references(given, "l2", DRAWS).labelled

    assert found is not None
    chosen = [row for row in range(N) if labels[row] >= 0 and (labels == labels[row]).sum() > 1]
    old, new, h = (vectors[chosen] for vectors in (given.queries.before, given.queries.after, given.transformed))
    own = labels[chosen]
    for name, query, items in (("old_old", old, old), ("new_h", new, h), ("new_new", new, new), ("h_h", h, h)):
        expected = retrieval_metrics(query, own, items, own, self_match=True)
        assert vars(getattr(found, name)) == pytest.approx(vars(expected))
    assert found.n == len(chosen)
    assert found.gap_closed["cmc1"] == pytest.approx(
        gap_closed(found.old_old.cmc1, found.new_h.cmc1, found.new_new.cmc1)
    )
    hits = [
        np.array([own[next(item for item in ranking(query[row], items, "l2") if item != row)] == own[row] for row in
                  range(len(chosen))])
        for query, items in ((old, old), (new, h), (new, new))
    ]  # fmt: skip
    for flips, after in ((found.new_h_flips, hits[1]), (found.new_new_flips, hits[2])):
        test = mcnemar_test(hits[0], after)
        assert flips.negative.value == pytest.approx(test.lost / len(chosen))
        assert flips.positive.value == pytest.approx(test.gained / len(chosen))
        assert flips.p_value == test.p_value


def test_references_of_a_collapsed_h_do_not_find_their_items() -> None:
    given = references(None)

    found = judge_references(References(given.queries, np.ones_like(given.transformed)), "l2", DRAWS)

    assert found.h.own_item_first.at_1 == pytest.approx(1 / N)
    assert found.linear is None
    assert found.overlap_above_linear is None


def test_columns_of_unequal_length_are_an_error() -> None:
    new, old, ids = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32), np.arange(3)

    with pytest.raises(ValueError, match="every column"):
        Queries(old, new[:2], ids, "references")
    with pytest.raises(ValueError, match="vector of the new space"):
        References(Queries(old, new, ids, "references"), new[:, :1])
    with pytest.raises(ValueError, match="image of an item"):
        References(Queries(old, new, ids - 1, "references"), new)
    with pytest.raises(ValueError, match="no neighbours"):
        judge_references(References(Queries(old[:1], new[:1], ids[:1], "references"), new[:1]), "l2", DRAWS)
