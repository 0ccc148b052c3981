"""What a backfilling curve would get wrong without a sign: its points, its mean, and who is encoded first."""

import numpy as np
import pytest

from benchmarks.paper.backfilling import POINTS, Order, backfilling_curve, orders
from benchmarks.paper.transformations import Vectors
from models.metrics import retrieval_metrics

_COUNT = 100


def _gallery() -> tuple[Vectors, Vectors, np.ndarray]:
    """What h gives, what φ_new gives, and labels of five classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(_COUNT) % 5
    means = 2 * generator.standard_normal((5, 8))
    encoded = (means[labels] + generator.standard_normal((_COUNT, 8))).astype(np.float32)
    transformed = (encoded + 2 * generator.standard_normal((_COUNT, 8))).astype(np.float32)
    return transformed, encoded, labels


def test_a_curve_has_22_points_from_all_transformed_to_all_encoded_and_its_area_is_their_plain_mean() -> None:
    transformed, encoded, labels = _gallery()
    order = np.random.default_rng(1).permutation(_COUNT)

    curve = backfilling_curve(transformed, encoded, labels, order)

    expected = []
    for point in range(22):
        rows = [encoded[item] if item in order[: point * _COUNT // 21] else transformed[item] for item in range(_COUNT)]
        found = retrieval_metrics(encoded, labels, np.stack(rows), labels, self_match=True)
        expected.append([100 * found.cmc1, 100 * found.cmc5, 100 * found.map])
    assert POINTS == len(curve.points) == 22
    np.testing.assert_allclose(curve.points, expected)
    np.testing.assert_allclose(curve.area(), np.mean(expected, axis=0))


def test_what_the_queries_score_over_a_curve_averages_to_its_area() -> None:
    transformed, encoded, labels = _gallery()

    curve = backfilling_curve(transformed, encoded, labels, np.arange(_COUNT))

    np.testing.assert_allclose(100 * curve.of_queries.mean(axis=1), curve.area())


def test_every_order_has_each_item_once_and_the_worst_by_its_measure_first() -> None:
    transformed, encoded, labels = _gallery()
    uncertainty = np.random.default_rng(2).random(_COUNT, np.float32)

    found = orders(transformed, encoded, labels, seed=0, uncertainty=uncertainty)

    means = np.stack([transformed[labels == label].mean(axis=0) for label in labels])
    errors = np.linalg.norm(transformed - encoded, axis=1)
    for order, values in {
        Order.UNCERTAINTY: uncertainty,
        Order.OWN_CLASS_MEAN: np.linalg.norm(transformed - means, axis=1),
        Order.ORACLE: errors,
    }.items():
        assert (np.diff(values[found[order]]) <= 1e-6).all(), order
    for positions in found.values():
        np.testing.assert_array_equal(np.sort(positions), np.arange(_COUNT))


def test_without_uncertainty_there_is_no_such_order() -> None:
    assert set(orders(*_gallery(), seed=0)) == set(Order) - {Order.UNCERTAINTY}


@pytest.mark.parametrize("labels", [np.repeat([3, 9], 50), np.repeat([0, 1], 50)], ids=["numbers with gaps", "0 and 1"])
def test_the_mean_that_counts_is_that_of_the_items_own_label_whatever_its_number(labels: np.ndarray) -> None:
    transformed = np.where(labels[:, None] == labels[0], 0.0, 10.0) + np.zeros((_COUNT, 4), np.float32)
    transformed = transformed.astype(np.float32)
    transformed[7] += 3

    found = orders(transformed, transformed, labels, seed=0)

    assert found[Order.OWN_CLASS_MEAN][0] == 7


def test_the_random_order_is_that_of_its_seed() -> None:
    first, again, other = (orders(*_gallery(), seed=seed)[Order.RANDOM] for seed in (0, 0, 1))

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
