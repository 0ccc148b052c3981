"""Slices, rules and gaps: against counting by hand, and against planted losses."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.judging.intervals import Draws, Hits, hit_difference, holm, newcombe
from models.judging.slices import Attributes, found_rules, minority_gaps, named_slices
from models.statistics import mcnemar_test

DRAWS = Draws(resamples=500)


def queries(n: int, seed: int = 0, loss: float = 0.0) -> tuple[Attributes, Hits, Hits, NDArray[np.int64]]:
    """n queries whose hits are as likely before and after, less `loss` where country is DE and camera is phone."""
    generator = np.random.default_rng(seed)
    attributes = {
        "country": generator.choice(["DE", "FR", "IT", ""], n, p=[0.3, 0.4, 0.25, 0.05]),
        "camera": generator.choice(["phone", "film"], n, p=[0.3, 0.7]),
        "rare": np.where(np.arange(n) < 20, "yes", ""),
    }
    hard = (attributes["country"] == "DE") & (attributes["camera"] == "phone")
    before, after = generator.random(n) < 0.6, generator.random(n) < 0.6 - loss * hard
    return attributes, before, after, generator.integers(0, 40, n)


def test_slices_have_the_counts_and_intervals_of_their_queries() -> None:
    attributes, before, after, labels = queries(700)

    found = named_slices(attributes, before, after, labels, DRAWS)

    assert {slice_.name for slice_ in found} == {
        "country=DE", "country=FR", "country=IT", "camera=phone", "camera=film",
    }  # fmt: skip
    by_name = {slice_.name: slice_ for slice_ in found}
    for name, slice_ in by_name.items():
        attribute, value = name.split("=")
        rows = attributes[attribute] == value
        assert slice_.before == before[rows].mean()
        assert slice_.after == after[rows].mean()
        assert slice_.difference == hit_difference(before[rows], after[rows], labels[rows], DRAWS)
        assert slice_.p_value == mcnemar_test(before[rows], after[rows]).p_value
        assert (slice_.corrected_high is None) == (rows.sum() < 200)
        assert slice_.corrected_high is None or slice_.corrected_high > slice_.difference.high
    adjusted = [slice_.p_corrected for slice_ in found]
    assert adjusted == pytest.approx(holm([slice_.p_value for slice_ in found]))
    assert [slice_.difference.low for slice_ in found] == sorted(slice_.difference.low for slice_ in found)


def test_of_many_small_slices_the_worst_are_shown() -> None:
    values = np.repeat([f"v{number}" for number in range(150)], 30)
    before = np.ones(len(values), bool)
    after = ~np.isin(values, ["v7", "v140"])

    found = named_slices({"many": values}, before, after, None, DRAWS)

    assert len(found) == 100
    assert {found[0].name, found[1].name} == {"many=v7", "many=v140"}
    assert found[0].p_corrected == pytest.approx(150 * 2 * 0.5**30)


def test_a_rule_of_two_conditions_that_nobody_named_is_found() -> None:
    found = found_rules(*queries(4000, loss=0.4), draws=DRAWS)

    assert found[0].conditions == (("camera", "phone"), ("country", "DE"))
    assert found[0].difference.high < -0.2
    assert found[0].p_corrected < 1e-6
    assert found[0].difference.n == pytest.approx(4000 / 2 * 0.09, rel=0.3)


def test_what_is_found_by_chance_does_not_last() -> None:
    refuted = [
        rule.difference.high < 0 and rule.p_corrected < 0.05
        for seed in range(60)
        for rule in found_rules(*queries(600, seed), draws=DRAWS)
    ]

    assert len(refuted) > 60
    assert np.mean(refuted) <= 0.05


def test_there_is_no_rule_without_flips_or_attributes() -> None:
    attributes, before, after, labels = queries(400)

    assert found_rules(attributes, before, before, labels, DRAWS) == ()
    assert found_rules({"all": np.full(400, "one")}, before, after, labels, DRAWS) == ()
    assert found_rules({}, before, after, labels, DRAWS) == ()


def test_the_minority_gap_is_the_worst_groups() -> None:
    attributes, before, after, _ = queries(3000, loss=0.5)

    gaps = {gap.attribute: gap for gap in minority_gaps(attributes, before, after)}

    known = attributes["country"] != ""
    rates = {value: after[attributes["country"] == value].mean() for value in ("DE", "FR", "IT")}
    assert set(gaps) == {"country", "camera"}
    assert gaps["country"].after.value == "DE"
    assert gaps["country"].after.gap == pytest.approx(rates["DE"] - after[known].mean())
    assert gaps["country"].after.gap < gaps["country"].before.gap


def test_a_slice_of_one_label_is_judged_by_its_queries() -> None:
    labels = np.repeat([3, 4], 250)
    before, after = np.random.default_rng(0).random((2, 500)) < 0.5

    found = named_slices({"label": labels.astype(str)}, before, after, labels, DRAWS)

    own = labels == int(found[0].name.removeprefix("label="))
    assert found[0].difference == newcombe(before[own], after[own])
