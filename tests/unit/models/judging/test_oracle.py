"""CMC@k and mAP of a whole report against those of ir-measures, which asks trec_eval: another program's idea of them.

trec_eval orders equal scores by the names of documents, so they are named such that the gallery's order decides, as it
does here. It has no average precision that pools ties: where there are some, scikit-learn's is the measure.
"""

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, Success
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from models.judging.evidence import Evidence, Galleries, Queries
from models.judging.intervals import Draws
from models.judging.report import Measurements, Reading, measure
from models.metrics import Metric, query_metrics

ITEMS, QUERIES, DIM, CLASSES = 400, 80, 16, 12
Array = NDArray[np.float32]
Labels = NDArray[np.int64]


def classes(seed: int, spread: float) -> tuple[Array, Array, Labels, Labels]:
    """Return items and queries with their labels, in clusters that overlap, as embeddings of images are."""
    generator = np.random.default_rng(seed)
    means = generator.standard_normal((CLASSES, DIM))
    labels = generator.integers(0, CLASSES, ITEMS + QUERIES)
    vectors = (means[labels] + spread * generator.standard_normal((len(labels), DIM))).astype(np.float32)
    return vectors[:ITEMS], vectors[ITEMS:], labels[:ITEMS], labels[ITEMS:]


def distances(query: Array, items: Array, metric: Metric) -> NDArray[np.float64]:
    wide, others = query.astype(np.float64), items.astype(np.float64)
    if metric == "ip":
        product: NDArray[np.float64] = wide @ others.T
        return -product
    if metric == "cosine":
        wide, others = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (wide, others))
        cosine: NDArray[np.float64] = wide @ others.T
        return 1 - cosine
    found: NDArray[np.float64] = np.square(wide[:, None] - others[None]).sum(axis=2)
    return found


def by_trec(far: NDArray[np.float64], is_right: NDArray[np.bool_], *measures: ir_measures.Measure) -> dict[str, float]:
    """Return trec_eval's means over queries with something to find; `far` is rounded as the report rounds it."""
    rounded = far.astype(np.float32)
    run, judgements = [], []
    for query, row in enumerate(rounded):
        if not is_right[query].any():
            continue
        # Ranks by distance, tied where distances are: single precision would tie more.
        levels = np.unique(row, return_inverse=True)[1]
        for item, level in enumerate(levels.tolist()):
            name = f"{10**6 - item:07d}"
            run.append(ir_measures.ScoredDoc(str(query), name, float(-level)))
            judgements.append(ir_measures.Qrel(str(query), name, int(is_right[query, item])))
    found = ir_measures.pytrec_eval.calc_aggregate(list(measures), judgements, run)
    return {str(measure): float(value) for measure, value in found.items()}


def report(
    old: Array, new: Array, asked: tuple[Array, Array], labels: tuple[Labels, Labels], metric: Metric
) -> Measurements:
    ids = np.arange(ITEMS)
    galleries = Galleries(metric, [(ids, old)], [(ids, new)], item_ids=ids, labels=labels[0])
    queries = Queries(*asked, np.full(QUERIES, -1), "queries", labels[1])
    return measure(Evidence(galleries, queries=(queries,)), Reading(Draws(0), sample_items=ITEMS))


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_cmc_and_map_of_a_report_are_those_of_trec_eval(metric: Metric) -> None:
    old_items, old_queries, item_labels, query_labels = classes(0, 1.5)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0]
    noise = np.random.default_rng(2).standard_normal((ITEMS + QUERIES, DIM))
    new = ((np.concatenate([old_items, old_queries]) + 0.5 * noise) @ turn).astype(np.float32)
    new_items, new_queries = new[:ITEMS], new[ITEMS:]
    is_right = query_labels[:, None] == item_labels[None]

    served = report(old_items, new_items, (old_queries, new_queries), (item_labels, query_labels), metric).served

    assert served is not None
    assert served.average_precision is not None
    assert served.average_precision.items == ITEMS
    for side, query, items in (("before", old_queries, old_items), ("after", new_queries, new_items)):
        expected = by_trec(distances(query, items, metric), is_right, Success @ 1, Success @ 5, AP)
        assert getattr(served.cmc1, side).value == pytest.approx(expected["Success@1"], abs=1e-9)
        assert getattr(served.cmc5, side).value == pytest.approx(expected["Success@5"], abs=1e-9)
        assert getattr(served.average_precision, side) == pytest.approx(expected["AP"], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_cmc_with_ties_is_that_of_trec_eval_and_map_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    items = generator.integers(0, 2, (ITEMS, 5)).astype(np.float32)  # of 32 points: each query ties again and again
    queries = generator.integers(0, 2, (QUERIES, 5)).astype(np.float32)
    item_labels, query_labels = generator.integers(0, CLASSES, ITEMS), generator.integers(0, CLASSES, QUERIES)
    is_right = query_labels[:, None] == item_labels[None]
    far = distances(queries, items, "l2")

    served = report(items, items, (queries, queries), (item_labels, query_labels), "l2").served

    assert served is not None
    assert served.average_precision is not None
    expected = by_trec(far, is_right, Success @ 1, Success @ 5)
    pooled = np.mean([average_precision_score(right, -row) for right, row in zip(is_right, far, strict=True)])
    assert served.cmc1.after.value == pytest.approx(expected["Success@1"], abs=1e-9)
    assert served.cmc5.after.value == pytest.approx(expected["Success@5"], abs=1e-9)
    assert served.average_precision.after == pytest.approx(pooled, abs=1e-9)


@pytest.mark.parametrize("has_ties", [False, True])
def test_the_ranks_of_first_matches_are_those_of_trec_eval(has_ties: bool) -> None:
    items, queries, item_labels, query_labels = classes(5, 2.0)
    if has_ties:
        items, queries = np.round(items), np.round(queries)
    is_right = query_labels[:, None] == item_labels[None]

    found = query_metrics(queries, query_labels, items, item_labels)

    expected = by_trec(distances(queries, items, "l2"), is_right, RR)
    counted = ~np.isnan(found.average_precisions)
    assert np.mean(1 / (1 + found.first_match_ranks[counted])) == pytest.approx(expected["RR"], abs=1e-9)
