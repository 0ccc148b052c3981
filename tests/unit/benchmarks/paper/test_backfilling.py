"""What a backfilling curve would get wrong without a sign: its points, its mean, and who is encoded first."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper.backfilling import Backfilling, Order, backfilling_curve, orders
from benchmarks.paper.judging import RECIPES, Galleries
from benchmarks.paper.transformations import SEEDS, Spec, Vectors
from models.judging.backfilling import POINTS
from models.metrics import retrieval_metrics
from tests.unit.benchmarks.paper.features import LABELS, FewFeatures, save_h

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


def test_the_table_has_the_expected_errors_of_the_default_recipe_and_no_curve_is_drawn_twice(tmp_path: Path) -> None:
    specs = [Spec("old", "simclr", "new", recipe, seed) for recipe in RECIPES for seed in SEEDS]
    for spec in specs:
        save_h(tmp_path, spec)
    galleries = Galleries(FewFeatures(tmp_path))
    encoded = galleries.vectors("new")
    errors = {spec: np.square(galleries.gallery(spec) - encoded).sum(axis=1) for spec in specs}

    first, again = (Backfilling(galleries, tmp_path, errors.__getitem__).curves() for _ in range(2))

    drawn = set((tmp_path / "backfilling").iterdir())
    assert first == again
    assert [line for line in first.splitlines() if line.startswith(f"| paper | {Order.UNCERTAINTY} |")] == []
    areas = [line.split(" | ") for line in first.splitlines() if line.startswith("| default |")]
    by_order = {cells[1]: cells[2:] for cells in areas}
    assert list(by_order) == list(Order)
    assert by_order[Order.UNCERTAINTY] == by_order[Order.ORACLE]  # it was the true error, and is the same curve
    assert len(drawn) == len(specs) * 3


def test_a_curve_begins_where_new_h_is_and_ends_where_new_new_is(tmp_path: Path) -> None:
    save_h(tmp_path, Spec("old", "simclr", "new"))
    galleries = Galleries(FewFeatures(tmp_path))
    transformed, encoded = galleries.gallery(Spec("old", "simclr", "new")), galleries.vectors("new")

    curve = backfilling_curve(transformed, encoded, LABELS, np.arange(60))

    np.testing.assert_allclose(curve.points[0], galleries.judged([(encoded, transformed)]).values()[0])
    np.testing.assert_allclose(curve.points[-1], galleries.direct("new", "new").values()[0])
