"""Curves of backfills, against slow obvious versions and galleries whose answers are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.judging.backfilling import (
    POINTS,
    Items,
    area,
    curve_scores,
    gains,
    has_classes,
    knee_of,
    largest_first,
    partly_encoded,
    shares,
)
from models.judging.intervals import Draws, Interval

N, DIM = 63, 8
_DRAWS = Draws(resamples=500)


def clustered(classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return (N, DIM) items near the centres of their classes, and their labels."""
    generator = np.random.default_rng(0)
    labels = np.arange(N) % classes
    centres = generator.standard_normal((classes, DIM)) * 5
    return (centres[labels] + generator.standard_normal((N, DIM)) * 0.3).astype(np.float32), labels


def failing(encoded: NDArray[np.float32], failed: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return what an h makes that is right but for some items, which it puts almost upon others of the next class."""
    transformed = encoded.copy()
    transformed[failed] = encoded[(failed + 1) % len(encoded)] + np.float32(1e-3)
    return transformed


def test_the_gallery_of_each_point_has_that_share_of_the_order_encoded_again() -> None:
    transformed, again = np.zeros((N, 1), np.float32), np.ones((N, 1), np.float32)
    order = np.random.default_rng(0).permutation(N)

    galleries = [gallery.copy() for gallery in partly_encoded(transformed, again, order)]

    assert [int(gallery.sum()) for gallery in galleries] == [point * N // (POINTS - 1) for point in range(POINTS)]
    assert (galleries[3][order[:9]] == 1).all()
    assert (transformed == 0).all()


@pytest.mark.parametrize("classes", [3, N])
def test_scores_are_those_of_asking_each_gallery_item_by_item(classes: int) -> None:
    encoded, labels = clustered(classes)
    items = Items(encoded, failing(encoded, np.arange(0, N, 4)), encoded, labels)
    order = np.arange(N)

    scores = curve_scores(items, order, "l2")

    galleries = [gallery.copy() for gallery in partly_encoded(items.transformed, encoded, order)]
    for point in (0, 7, POINTS - 1):
        for query in range(N):
            nearest, best = (_nearest(gallery, encoded[query], query) for gallery in (galleries[point], encoded))
            expected = labels[nearest[0]] == labels[query] if classes < N else len(set(nearest) & set(best)) / 10
            assert scores[point, query] == pytest.approx(float(expected))


def _nearest(gallery: NDArray[np.float32], query: NDArray[np.float32], own: int) -> list[int]:
    distances = np.square(gallery.astype(np.float64) - query).sum(axis=1)
    distances[own] = np.inf
    return [int(place) for place in np.argsort(distances, kind="stable")[:10]]


def test_doing_first_what_h_failed_on_has_the_larger_area_and_its_knee_where_the_failures_end() -> None:
    encoded, labels = clustered(3)
    failed = np.arange(0, N, 4)  # a quarter
    items = Items(encoded, failing(encoded, failed), encoded, labels)
    expected_errors = np.zeros(N, np.float32)
    expected_errors[failed] = 1

    informed = curve_scores(items, largest_first(expected_errors), "l2")
    random = curve_scores(items, np.random.default_rng(0).permutation(N), "l2")

    knee = knee_of(gains(informed, labels, _DRAWS))
    assert area(informed) > area(random)
    assert knee is not None
    assert 0.2 <= knee <= 0.3


def test_a_right_h_leaves_nothing_to_gain_and_so_no_knee() -> None:
    encoded, labels = clustered(3)
    items = Items(encoded, encoded.copy(), encoded, labels)

    curve = gains(curve_scores(items, np.arange(N), "l2"), labels, _DRAWS)

    assert [point.value for point in curve] == [0.0] * POINTS
    assert knee_of(curve) is None


def test_a_straight_curve_has_its_knee_at_its_end() -> None:
    curve = [Interval(float(share), float(share) - 0.01, float(share) + 0.01, 10) for share in shares()]

    assert knee_of(curve) is not None


def test_labels_are_used_where_most_items_share_theirs_with_another() -> None:
    encoded, labels = clustered(3)

    assert has_classes(Items(encoded, encoded, encoded, labels))
    assert not has_classes(Items(encoded, encoded, encoded, np.full(N, -1)))
    assert not has_classes(Items(encoded, encoded, encoded, np.arange(N)))


def test_one_item_has_no_curve() -> None:
    one = np.ones((1, DIM), np.float32)

    with pytest.raises(ValueError, match="no neighbours"):
        curve_scores(Items(one, one, one, np.array([0])), np.array([0]), "l2")


def test_unknown_errors_come_last() -> None:
    assert largest_first(np.array([1, np.nan, 3, 2], np.float32)).tolist() == [2, 3, 0, 1]
