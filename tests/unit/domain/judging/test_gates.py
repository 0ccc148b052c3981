"""Gates: every outcome, which measurement decides, and what each verdict takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.judging.gates import (
    DEFAULT_RULES,
    INSTANCE_RULES,
    Gate,
    GateMetric,
    GateRule,
    Measured,
    Outcome,
    UnknownGate,
    judge_gates,
    outcome,
    rules_for,
    verdict,
    what_would_judge,
)
from service.domain.verdict import Verdict

COMPLETE = Measured(GateMetric.COMPLETENESS, 1.0, 1.0, 1.0, 1000, "rows")
RECALL = Measured(GateMetric.ANN_RECALL, 0.995, 0.991, 0.998, 200, "queries")
GOOD_CMC = Measured(GateMetric.CMC_AT_1, 0.1, 0.08, 0.12, 5000, "references", 0.02)
BAD_CMC = Measured(GateMetric.CMC_AT_1, -0.1, -0.12, -0.08, 5000, "references", 0.02)
UNCLEAR_CMC = Measured(GateMetric.CMC_AT_1, 0.0, -0.04, 0.04, 500, "references", 0.06)
GOOD_OVERLAP = Measured(GateMetric.OVERLAP, 0.05, 0.03, 0.07, 1000, "references", 0.02)


def verdict_of(*measured: Measured) -> Verdict:
    return verdict(judge_gates(DEFAULT_RULES, [COMPLETE, RECALL, *measured]))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.02, 0.5, Outcome.PASS),
        (-0.0201, 0.5, Outcome.INCONCLUSIVE),
        (-0.5, -0.02, Outcome.INCONCLUSIVE),
        (-0.5, -0.0201, Outcome.FAIL),
        (-0.02, -0.02, Outcome.PASS),
        (float("nan"), float("nan"), Outcome.INCONCLUSIVE),
    ],
)
def test_an_outcome_follows_from_the_whole_interval(low: float, high: float, expected: Outcome) -> None:
    assert outcome(low, high, -0.02) is expected


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([GOOD_CMC], Verdict.PASS),
        ([GOOD_OVERLAP], Verdict.PASS),
        ([BAD_CMC], Verdict.FAIL),
        ([BAD_CMC, GOOD_OVERLAP], Verdict.FAIL),
        ([UNCLEAR_CMC, GOOD_OVERLAP], Verdict.INCONCLUSIVE),
        ([], Verdict.NOT_JUDGED),
    ],
)
def test_the_verdict_follows_from_the_gates(measured: list[Measured], expected: Verdict) -> None:
    assert verdict_of(*measured) is expected


@given(
    outcomes=st.lists(
        st.tuples(st.sampled_from(GateMetric), st.sampled_from(Outcome), st.sampled_from([0, 500])), max_size=6
    )
)
def test_nothing_passes_without_evidence_or_past_a_gate_that_does_not(
    outcomes: list[tuple[GateMetric, Outcome, int]],
) -> None:
    gates = [Gate(metric, None, 0.0, 0.0, 0.0, 0.0, result, n, "", None) for metric, result, n in outcomes]

    found = verdict(gates)

    rows_alone = {GateMetric.COMPLETENESS, GateMetric.ANN_RECALL}
    assert (found is Verdict.FAIL) == any(result is Outcome.FAIL for _, result, _ in outcomes)
    if found is Verdict.PASS:
        assert all(result is Outcome.PASS for _, result, _ in outcomes)
        assert any(metric not in rows_alone and n for metric, _, n in outcomes)


def test_completeness_and_recall_fail_alone_but_never_pass_alone() -> None:
    waiting = Measured(GateMetric.COMPLETENESS, 0.999, 0.999, 0.999, 1000, "rows")

    assert verdict(judge_gates(DEFAULT_RULES, [COMPLETE, RECALL])) is Verdict.NOT_JUDGED
    assert verdict(judge_gates(DEFAULT_RULES, [waiting, RECALL])) is Verdict.FAIL


@pytest.mark.parametrize("missing", [COMPLETE, RECALL])
def test_what_can_always_be_measured_is_not_left_out(missing: Measured) -> None:
    found = judge_gates(DEFAULT_RULES, [measured for measured in (COMPLETE, RECALL, GOOD_CMC) if measured != missing])

    assert [gate.outcome for gate in found if gate.metric is missing.metric] == [Outcome.INCONCLUSIVE]
    assert verdict(found) is Verdict.INCONCLUSIVE


def test_the_slice_that_decides_is_the_one_that_fails_else_the_lowest() -> None:
    wide = Measured(GateMetric.WORST_SLICE, -0.05, -0.30, 0.20, 200, "references", slice="country=IT")
    failing = Measured(GateMetric.WORST_SLICE, -0.15, -0.18, -0.12, 4000, "references", slice="country=DE")
    fine = Measured(GateMetric.WORST_SLICE, 0.10, 0.05, 0.15, 800, "references", slice="country=FR")
    finer = Measured(GateMetric.WORST_SLICE, 0.12, 0.07, 0.17, 800, "references", slice="country=ES")

    def worst(*slices: Measured) -> tuple[str | None, Outcome]:
        found = judge_gates(DEFAULT_RULES, [COMPLETE, RECALL, *slices])
        return next((gate.slice, gate.outcome) for gate in found if gate.metric is GateMetric.WORST_SLICE)

    assert worst(fine, wide, failing) == ("country=DE", Outcome.FAIL)
    assert worst(fine, wide) == ("country=IT", Outcome.INCONCLUSIVE)
    assert worst(finer, fine) == ("country=FR", Outcome.PASS)


def test_few_references_tell_nothing_of_overlap() -> None:
    few = Measured(GateMetric.OVERLAP, 0.1, 0.05, 0.15, 99, "references")

    assert verdict_of(few) is Verdict.INCONCLUSIVE


def test_own_item_first_is_a_gate_of_instance_galleries_alone() -> None:
    worse = Measured(GateMetric.OWN_ITEM_FIRST, -0.1, -0.12, -0.08, 1000, "references")

    found = {task: judge_gates(rules_for(task), [COMPLETE, RECALL, GOOD_CMC, worse]) for task in ("instance", "class")}

    assert verdict(found["instance"]) is Verdict.FAIL
    assert verdict(found["class"]) is Verdict.PASS


def test_overrides_replace_the_limit_of_their_gate_and_add_gates_of_slices() -> None:
    overrides = [GateRule(GateMetric.CMC_AT_1, -0.2), GateRule(GateMetric.CMC_AT_1, 0.0, "country=DE")]
    slice_ = Measured(GateMetric.CMC_AT_1, -0.05, -0.08, -0.02, 900, "references", slice="country=DE")

    rules = rules_for("class", overrides)
    found = judge_gates(rules, [COMPLETE, RECALL, BAD_CMC, slice_], overrides)

    assert len(rules) == len(DEFAULT_RULES) + 1
    outcomes = {(gate.metric, gate.slice): gate.outcome for gate in found}
    assert outcomes[GateMetric.CMC_AT_1, None] is Outcome.PASS
    assert outcomes[GateMetric.CMC_AT_1, "country=DE"] is Outcome.FAIL


def test_a_gate_that_was_asked_for_is_not_answered_by_its_absence() -> None:
    overrides = [GateRule(GateMetric.CMC_AT_1, 0.0, "country=AT")]

    found = judge_gates(rules_for("class", overrides), [COMPLETE, RECALL, GOOD_CMC], overrides)

    assert found[-1] == Gate(
        GateMetric.CMC_AT_1, "country=AT", None, None, None, 0.0, Outcome.INCONCLUSIVE, 0, "", None
    )
    assert verdict(found) is Verdict.INCONCLUSIVE


def test_a_gate_of_a_slice_that_has_none_is_refused() -> None:
    for metric in set(GateMetric) - {GateMetric.CMC_AT_1}:
        with pytest.raises(UnknownGate, match="no slices"):
            rules_for("class", [GateRule(metric, 0.0, "country=DE")])


def test_default_limits_are_those_of_the_promise() -> None:
    limits = {rule.metric: rule.limit for rule in INSTANCE_RULES}

    assert limits == {
        GateMetric.CMC_AT_1: -0.02,
        GateMetric.WORST_SLICE: -0.10,
        GateMetric.OVERLAP: -0.02,
        GateMetric.EXPLAINED: 0.0,
        GateMetric.OWN_ITEM_FIRST: -0.02,
        GateMetric.COMPLETENESS: 1.0,
        GateMetric.ANN_RECALL: 0.98,
    }


def test_what_would_judge_is_said_with_a_number() -> None:
    nothing = judge_gates(DEFAULT_RULES, [COMPLETE, RECALL])
    unclear = judge_gates(DEFAULT_RULES, [COMPLETE, RECALL, UNCLEAR_CMC])
    good = judge_gates(DEFAULT_RULES, [COMPLETE, RECALL, GOOD_CMC])

    assert "1,000 items" in what_would_judge(nothing)
    assert "cmc_at_1 would take about 2,000" in what_would_judge(unclear)
    assert what_would_judge(good) == ""


@pytest.mark.parametrize("value", [-0.02, 0.1, None])
def test_every_inconclusive_gate_has_a_sentence(value: float | None) -> None:
    gate = Gate(GateMetric.CMC_AT_1, "a=b", value, -0.5, 0.5, -0.02, Outcome.INCONCLUSIVE, 10, "queries", 0.4)

    assert "cmc_at_1 of a=b" in what_would_judge([gate])
