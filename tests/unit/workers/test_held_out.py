"""What is said of a trained h and g, against a slow and obvious count."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.artifacts import TransformationNetwork
from service.domain.training.files import FeatureRows
from workers.held_out import held_out_metrics

Vectors = NDArray[np.float32]
CLASSES = 4


class Shifted:
    """A `network` that adds a number, and notes the size of each batch; `expects` says its errors from the input."""

    def __init__(self, by: float, dim: int, expects: Callable[[Vectors], Vectors] | None = None) -> None:
        self.batches: list[int] = []
        self.network = TransformationNetwork(self._run)
        self._by = by
        self._dim = dim
        self._expects = expects

    def _run(self, embedding: Vectors, side_information: Vectors | None) -> tuple[Vectors, Vectors | None]:
        self.batches.append(len(embedding))
        source = embedding if side_information is None else side_information
        return source[:, : self._dim] + np.float32(self._by), self._expects and self._expects(embedding)


def rows_of(count: int, *, labels: bool = True, side_information: bool = True) -> FeatureRows:
    """Return rows whose new vectors are the old side-information, if there is one, or the old embedding, with noise."""
    generator = np.random.default_rng(0)
    label = np.arange(count) % CLASSES
    before = (generator.standard_normal((CLASSES, 5))[label] + generator.standard_normal((count, 5))).astype(np.float32)
    side = generator.standard_normal((count, 5)).astype(np.float32) if side_information else None
    source = before if side is None else side
    after = source + 0.1 * generator.standard_normal((count, 5)).astype(np.float32)
    return FeatureRows(
        embedding_from=before,
        embedding_to=after,
        side_information_from=side,
        side_information_to=after[:, :3].copy(),
        labels=label.astype(np.int64) if labels else None,
    )


def measured(rows: FeatureRows, h: Shifted, g: Shifted | None = None, *, normalize: bool = False) -> dict[str, Any]:
    return held_out_metrics(rows, h.network, None if g is None else g.network, normalize=normalize, device="cpu")


def slow_own_item_first(query: Vectors, gallery: Vectors) -> float:
    """Return how often a row's own vector in the gallery is the nearest, the first of equals."""
    found = 0
    for row, vector in enumerate(query.tolist()):
        distances = [math.dist(vector, other) for other in gallery.tolist()]
        found += distances.index(min(distances)) == row
    return found / len(query)


def slow_errors(found: Vectors, expected: Vectors) -> dict[str, float]:
    rows, dim = expected.shape
    mean = [sum(float(row[d]) for row in expected) / rows for d in range(dim)]
    squared = guess = cosines = 0.0
    for a, b in zip(found.tolist(), expected.tolist(), strict=True):
        squared += sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        guess += sum((y - m) ** 2 for y, m in zip(b, mean, strict=True))
        cosines += sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
    return {
        "mean_squared_error": squared / rows / dim,
        "mean_predictor_error": guess / rows / dim,
        "mean_cosine": cosines / rows,
    }


def slow_cmc_at_1(query: Vectors, gallery: Vectors, labels: NDArray[np.int64]) -> float:
    """Return how often the nearest item but the query's own has its label."""
    hits = 0
    for row, vector in enumerate(query):
        distances = [math.dist(vector, other) for other in gallery]
        distances[row] = math.inf
        hits += labels[distances.index(min(distances))] == labels[row]
    return hits / len(query)


@pytest.mark.parametrize("count", [1, 8, 1_030])  # one row, and a ragged last batch
def test_errors_are_what_a_slow_count_says(count: int) -> None:
    rows = rows_of(count, labels=False)
    h, g = Shifted(0.5, 5), Shifted(-0.25, 3)
    assert rows.side_information_from is not None
    assert rows.side_information_to is not None

    metrics = measured(rows, h, g)

    assert metrics["held_out_rows"] == count
    given = rows.side_information_from + np.float32(0.5)
    own = {"own_item_first": slow_own_item_first(rows.embedding_to, given)}
    assert metrics["h"] == pytest.approx(slow_errors(given, rows.embedding_to) | own, abs=1e-5)
    assert metrics["g"] == pytest.approx(
        slow_errors(rows.side_information_from[:, :3] - 0.25, rows.side_information_to), abs=1e-5
    )
    assert sum(h.batches) == count
    assert max(h.batches) <= 1_024


def test_what_h_gives_is_normalised_where_the_new_version_is() -> None:
    rows = rows_of(8, side_information=False)
    given = rows.embedding_from + np.float32(0.5)
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)

    metrics = measured(rows, Shifted(0.5, 5), normalize=True)

    own = {"own_item_first": slow_own_item_first(rows.embedding_to, unit)}
    assert metrics["h"] == pytest.approx(slow_errors(unit, rows.embedding_to) | own, abs=1e-5)
    assert not {"g", "linear"} & set(metrics)


def test_the_linear_map_is_compared_beside_h() -> None:
    rows = rows_of(8, side_information=False)

    metrics = held_out_metrics(
        rows, Shifted(0.5, 5).network, None, Shifted(0.1, 5).network, normalize=False, device="cpu"
    )

    shifted = measured(rows, Shifted(0.1, 5))
    assert metrics["linear"] == shifted["h"] != metrics["h"]


def test_expected_errors_are_compared_with_those_that_were_made() -> None:
    rows = rows_of(40, side_information=False)
    errors = np.square(rows.embedding_from + np.float32(0.5) - rows.embedding_to).sum(axis=1)
    order = np.argsort(errors)

    right = measured(rows, Shifted(0.5, 5, lambda _: errors))["uncertainty"]
    wrong = measured(rows, Shifted(0.5, 5, lambda _: -errors))["uncertainty"]

    assert right["rank_correlation"] == pytest.approx(1)
    assert wrong["rank_correlation"] == pytest.approx(-1)
    means = [float(errors[order[start : start + 4]].mean()) for start in range(0, 40, 4)]
    assert right["squared_errors"] == [
        {"expected": pytest.approx(mean, rel=1e-4), "true": pytest.approx(mean, rel=1e-4)} for mean in means
    ]
    assert [group["true"] for group in wrong["squared_errors"]] == pytest.approx(means[::-1], rel=1e-4)
    assert "uncertainty" not in measured(rows, Shifted(0.5, 5))


def test_retrieval_is_what_a_slow_count_says_and_the_gap_follows_from_it() -> None:
    rows = rows_of(40, side_information=False)
    labels = rows.labels
    assert labels is not None
    h = Shifted(2.0, 5)

    retrieval = measured(rows, h)["retrieval"]

    transformed = rows.embedding_from + np.float32(2.0)
    expected = {
        "old_old": slow_cmc_at_1(rows.embedding_from, rows.embedding_from, labels),
        "new_h": slow_cmc_at_1(rows.embedding_to, transformed, labels),
        "new_new": slow_cmc_at_1(rows.embedding_to, rows.embedding_to, labels),
    }
    assert {name: retrieval[name]["cmc_at_1"] for name in expected} == pytest.approx(expected)
    assert len(set(expected.values())) == 3
    gap = (expected["new_h"] - expected["old_old"]) / (expected["new_new"] - expected["old_old"])
    assert retrieval["gap_closed"]["cmc_at_1"] == pytest.approx(gap)


def test_a_gap_that_is_not_there_is_null() -> None:
    rows = rows_of(40, side_information=False)
    same = FeatureRows(embedding_from=rows.embedding_from, embedding_to=rows.embedding_from, labels=rows.labels)

    gaps = measured(same, Shifted(0.0, 5))["retrieval"]["gap_closed"]

    assert gaps == {"cmc_at_1": None, "cmc_at_5": None, "map": None}


@pytest.mark.parametrize("count", [CLASSES, 8])
def test_there_is_no_retrieval_without_two_rows_of_a_label(count: int) -> None:
    alone = measured(rows_of(count), Shifted(0.0, 5))["retrieval"]
    unlabelled = measured(rows_of(count, labels=False), Shifted(0.0, 5))["retrieval"]

    assert (alone is None, unlabelled) == (count == CLASSES, None)


def test_what_chained_transformations_give_is_measured_by_itself() -> None:
    rows = rows_of(8)
    assert rows.side_information_from is not None
    chains = [by * rows.side_information_from for by in (2.0, 3.0)]
    both = replace(
        rows,
        chained_embedding_from=np.zeros((2, *rows.embedding_from.shape), np.float32),
        chained_side_information_from=np.stack(chains).astype(np.float32),
    )
    h, g = Shifted(0.5, 5), Shifted(0.1, 3)

    metrics = held_out_metrics(
        both, h.network, g.network, chained_transformations=(4, 9), normalize=False, device="cpu"
    )

    alone = [measured(replace(rows, side_information_from=chain), h, g) for chain in chains]
    expected = [{"transformation": id_, "h": m["h"], "g": m["g"]} for id_, m in zip((4, 9), alone, strict=True)]
    assert metrics["chained"] == expected
    assert metrics["chained"][0] != metrics["chained"][1]
    assert {name: metrics[name] for name in ("h", "g")} == {name: measured(rows, h, g)[name] for name in ("h", "g")}
