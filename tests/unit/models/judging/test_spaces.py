"""Space checks and thresholds against slow versions; samples whatever the chunks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.judging.search import AnyVectors, exact_distances
from models.judging.spaces import ItemSample, SpaceCheck, pair_distances, thresholds
from models.metrics import Metric


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_broken_rows_are_counted_and_the_others_measured(dtype: type) -> None:
    rows: AnyVectors = np.random.default_rng(0).standard_normal((500, 6)).astype(dtype)
    rows[3], rows[4, 0], rows[10:15], rows[20] = np.nan, np.inf, 0, rows[21]
    target = np.ones((4, 6), np.float32)
    check = SpaceCheck()

    for start in range(0, 500, 77):
        check.add(rows[start : start + 77])

    found, finite = check.report(target), rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
    norms = np.linalg.norm(finite, axis=1)
    assert (found.items, found.non_finite, found.zero, found.copies) == (500, 2, 5, 5)
    assert (found.norm_mean, found.norm_deviation) == pytest.approx((norms.mean(), norms.std()))
    assert found.mean_offset == pytest.approx(np.linalg.norm(finite.mean(axis=0) - 1) / np.sqrt(6))
    assert found.norm_ratio == pytest.approx(norms.mean() / np.sqrt(6))


def test_a_space_without_rows_has_a_report() -> None:
    found = SpaceCheck().report(np.ones((1, 2), np.float32))

    assert (found.items, found.copies, found.norm_mean) == (0, 0, 0)


@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=9), seed=st.integers(0, 3))
def test_the_same_items_are_drawn_whatever_the_chunks(sizes: list[int], seed: int) -> None:
    count = sum(sizes)
    ids = np.random.default_rng(1).permutation(count) * 3
    vectors = ids[:, None].astype(np.float32)
    without = ids[::4]
    whole, parts = ItemSample(40, seed, without), ItemSample(40, seed, without)
    whole.add(ids, vectors)

    for order in np.split(np.random.default_rng(seed).permutation(count), np.cumsum(sizes)[:-1]):
        parts.add(ids[order], vectors[order].astype(np.float16).astype(np.float32))

    drawn, rows = parts.drawn()
    assert drawn.tolist() == whole.drawn()[0].tolist() == sorted(set(drawn.tolist()) - set(without.tolist()))
    assert len(drawn) == min(40, count - len(without))
    assert rows[:, 0].astype(np.int64).tolist() == drawn.tolist()


def test_a_sample_is_as_likely_to_have_one_item_as_another() -> None:
    ids = np.arange(1000)
    counts = np.zeros(1000)
    for seed in range(200):
        sample = ItemSample(100, seed, np.empty(0, np.int64))
        sample.add(ids, np.zeros((1000, 1), np.float32))
        counts[sample.drawn()[0]] += 1

    assert counts.sum() == 200 * 100
    assert counts.std() == pytest.approx(np.sqrt(200 * 0.1 * 0.9), rel=0.1)


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_pairs_have_the_searchs_distances(metric: Metric) -> None:
    generator = np.random.default_rng(0)
    queries, items = generator.standard_normal((5, 4), np.float32), generator.standard_normal((7, 4), np.float32)

    found = pair_distances(queries, items, metric)

    expected = exact_distances(np.repeat(queries, 7, axis=0), np.tile(items, (5, 1)), metric)
    np.testing.assert_allclose(found, np.sort(expected), atol=1e-6)


def test_a_threshold_lets_as_many_pairs_pass_after_as_before() -> None:
    generator = np.random.default_rng(0)
    before, after = np.sort(generator.random(10_000)), np.sort(7 + 3 * generator.random(10_000) ** 2)

    for row in thresholds(before, after):
        assert row.before == pytest.approx(np.quantile(before, row.share))
        assert row.after == pytest.approx(np.quantile(after, row.share))
    assert min(row.share for row in thresholds(before, after)) == 1e-4
