"""How often the gates are wrong: identical systems that fail, and planted losses that do not.

The trials draw what each query scores; everything after that is what judges an upgrade.
"""

import numpy as np
import pytest

from models.judging.examples import Examples
from models.judging.flips import flips
from models.judging.intervals import Draws, Hits, Labels
from models.judging.report import Measurements, Spaces
from models.judging.served import ServedReport
from models.judging.slices import Attributes, named_slices
from models.judging.spaces import SpaceReport
from service.domain.judging.gates import DEFAULT_RULES, GateMetric, Outcome, judge_gates, verdict
from service.domain.verdict import Verdict
from workers.judging import Known, measured

SPACE = SpaceReport(10_000, 0, 0, 0, 1.0, 0.0, None, None)
SPACES = Spaces(SPACE, SPACE, None, None, (), ())


def hits(
    generator: np.random.Generator, n: int, discordant: float, loss: float, spread: float, labels: Labels
) -> tuple[Hits, Hits]:
    """Draw hits before and after, `discordant` of them different, `loss` more lost than gained; each label has a shift
    of its own around that, of standard deviation `spread`."""
    shift = loss + spread * generator.standard_normal(labels.max() + 1)[labels]
    drawn, same = generator.random(n), generator.random(n) < 0.5
    lost = drawn < np.clip((discordant + shift) / 2, 0, discordant)
    gained = ~lost & (drawn < discordant)
    return np.where(lost | gained, lost, same), np.where(lost | gained, gained, same)


def verdict_of(before: Hits, after: Hits, labels: Labels, attributes: Attributes, seed: int) -> tuple[Verdict, Outcome]:
    """Return the verdict, and the outcome of the gate on all queries."""
    draws = Draws(seed, 500)
    slices = named_slices(attributes, before, after, labels, draws)
    found = flips(before, after, labels, draws)
    served = ServedReport(len(before), "query sets", found, found, None, slices, (), ())
    measurements = Measurements(None, None, served, None, None, SPACES, Examples())
    gates = judge_gates(DEFAULT_RULES, measured(measurements, Known(10_000, 0, 0, None, 0, "")))
    return verdict(gates), next(gate.outcome for gate in gates if gate.metric is GateMetric.CMC_AT_1)


@pytest.mark.parametrize(("spread", "least_passed"), [(0.0, 200), (0.1, 150)])
def test_of_identical_systems_at_most_one_in_twenty_fails(spread: float, least_passed: int) -> None:
    verdicts = []
    for seed in range(500):
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 100, 5000)
        attributes = {"country": generator.integers(0, 12, 5000).astype(str)}
        pair = hits(generator, 5000, 0.25, 0.0, spread, labels)
        verdicts.append(verdict_of(*pair, labels, attributes, seed)[0])

    assert verdicts.count(Verdict.FAIL) <= 25
    assert verdicts.count(Verdict.PASS) >= least_passed


def test_at_the_limit_itself_one_in_twenty_is_wrong_at_most_either_way() -> None:
    outcomes = []
    for seed in range(500):
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 100, 5000)
        outcomes.append(verdict_of(*hits(generator, 5000, 0.25, 0.02, 0.05, labels), labels, {}, seed)[1])

    assert outcomes.count(Outcome.FAIL) <= 25
    assert outcomes.count(Outcome.PASS) <= 25


@pytest.mark.parametrize(("queries", "discordant"), [(5000, 0.2), (7000, 0.25)])
def test_a_planted_loss_of_four_points_is_refused(queries: int, discordant: float) -> None:
    outcomes = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 100, queries)
        pair = hits(generator, queries, discordant, 0.04, 0.0, labels)
        outcomes.append(verdict_of(*pair, labels, {}, seed)[1])

    assert outcomes.count(Outcome.PASS) == 0
    assert outcomes.count(Outcome.FAIL) >= 160


def test_where_a_quarter_of_5000_queries_flip_a_loss_of_four_points_still_never_passes() -> None:
    outcomes = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 100, 5000)
        outcomes.append(verdict_of(*hits(generator, 5000, 0.25, 0.04, 0.05, labels), labels, {}, seed)[1])

    assert outcomes.count(Outcome.PASS) == 0
    assert outcomes.count(Outcome.FAIL) >= 90


def test_a_planted_loss_of_a_slice_is_found_among_others_that_are_as_before() -> None:
    outcomes = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 100, 5000)
        country = generator.integers(0, 12, 5000)
        before, after = hits(generator, 5000, 0.25, 0.0, 0.0, labels)
        after &= ~((country == 3) & (generator.random(5000) < 0.5))
        outcomes.append(verdict_of(before, after, labels, {"country": country.astype(str)}, seed)[0])

    assert outcomes.count(Verdict.PASS) == 0
    assert outcomes.count(Verdict.FAIL) >= 48
