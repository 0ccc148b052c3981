"""What a report's page says, of reports that are made up: full, empty, and with values of users that are markup."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest

from models.judging.examples import Examples as MeasuredExamples
from models.judging.report import Measurements, Spaces, to_json
from models.judging.spaces import SpaceReport, Threshold
from service.api.report_page import render_report, what_was_not_seen
from service.domain.judging.asked_queries import AskedSet
from service.domain.judging.evidence import HeldOut
from service.domain.judging.examples import Example, ExampleItem, ExampleKind, Examples, FoundItem, Since
from service.domain.judging.gates import DEFAULT_RULES, Gate, GateMetric, Outcome, judge_gates
from service.domain.upgrade.progress import UpgradeDetails
from service.domain.verdict import Verdict
from service.tables import Report as StoredReport
from service.tables import Upgrade
from workers.judging import Known, Report

HOSTILE = "<script>alert('x')</script>\"&amp;{{ 1 }}"
SPACE = SpaceReport(10, 1, 0, 0, 1.0, 0.0, None, None)
MEASURED = Measurements(None, None, None, None, None, Spaces(SPACE, SPACE, None, None, (), ()))
NOTHING_SHOWN: Examples = {kind: [] for kind in ExampleKind}


def page(
    verdict: Verdict = Verdict.NOT_JUDGED,
    gates: tuple[Gate, ...] = (),
    measured: Measurements = MEASURED,
    examples: Examples = NOTHING_SHOWN,
    thumbnails: dict[int, bytes] | None = None,
    query_sets: tuple[AskedSet, ...] = (),
    held_out: tuple[HeldOut, ...] = (),
) -> str:
    known = Known(10, 1, 0, None, 0, HOSTILE)
    about = {"networks": "h g", HOSTILE: HOSTILE}
    content = to_json(Report(verdict, gates, HOSTILE, 0, known, measured, about, query_sets, held_out))
    stored = StoredReport(
        number=3,
        verdict=verdict,
        revision=7,
        evidence=0,
        content=content.decode(),
        seconds=1.25,
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    details = UpgradeDetails(Upgrade(id=5), HOSTILE, HOSTILE, HOSTILE, {}, stored)
    return render_report(details, stored, examples, thumbnails or {})


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_is_a_word_with_a_sentence(verdict: Verdict) -> None:
    found = page(verdict)

    assert f'<div class="verdict {verdict}">' in found
    assert f"<strong>Verdict: {verdict.replace('_', ' ')}</strong>" in found


def test_kinds_of_examples_are_those_that_are_measured() -> None:
    assert list(asdict(MeasuredExamples())) == [str(kind) for kind in ExampleKind]


def test_every_kind_of_example_says_what_it_was_chosen_by() -> None:
    item = ExampleItem(1, HOSTILE, None, False, Since.SAME)
    values: dict[ExampleKind, tuple[float | None, float | None, str]] = {
        ExampleKind.NEGATIVE_FLIPS: (1, None, "at rank 1 before, and beyond the first ten after"),
        ExampleKind.POSITIVE_FLIPS: (4, 1, "at rank 4 before, and at rank 1 after"),
        ExampleKind.CHURN: (None, 0.1, "10.0 % in common"),
        ExampleKind.HUBS: (3, 1200, "in 3 answers before, and 1,200 after"),
        ExampleKind.UNCERTAIN: (None, 0.25, "expected squared error 0.25"),
    }
    examples = {kind: [Example(item, before, after, [], [])] for kind, (before, after, _) in values.items()}

    found = page(examples=examples)

    assert all(words in found for *_, words in values.values())


def test_nothing_that_a_user_wrote_is_markup() -> None:
    gone = ExampleItem(1, HOSTILE, HOSTILE, True, Since.GONE)
    query = Example(gone, None, 0.5, [FoundItem(gone, 0.5)], [])
    gates = (Gate(GateMetric.CMC_AT_1, HOSTILE, 0.1, 0.0, 0.2, -0.02, Outcome.PASS, 9, HOSTILE, 0.1),)

    found = page(Verdict.PASS, gates, examples=NOTHING_SHOWN | {ExampleKind.CHURN: [query]}, thumbnails={1: b"\xff"})

    assert "<script" not in found
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&#34;&amp;amp;{{ 1 }}" in found
    assert 'src="data:image/jpeg;base64,/w=="' in found
    assert "deleted since" in found


def test_held_out_rows_are_shown_as_what_they_are() -> None:
    metrics = {"held_out_rows": 1234, "h": {"own_item_first": 0.75}, "retrieval": None, "chained": [{"h": {}}]}

    found = page(held_out=(HeldOut(1, metrics), HeldOut(2, None), HeldOut(3, {HOSTILE: 0.5})))

    assert "Transformation 1, on 1,234 rows" in found
    assert '<th scope="row">h, own item first</th><td>0.75</td>' in found
    assert "Transformation 2 was registered, and not trained here" in found
    assert "no gate&#39;s" in found or "no gate's" in found
    assert "<script" not in found


def test_a_query_that_is_no_item_is_shown_as_one() -> None:
    found = page(examples=NOTHING_SHOWN | {ExampleKind.CHURN: [Example(None, None, 0.0, [], [])]})

    assert "A query that is no item" in found


def test_what_is_just_not_complete_does_not_read_as_complete() -> None:
    complete = 1 - 1e-7
    gate = Gate(GateMetric.COMPLETENESS, None, complete, complete, complete, 1.0, Outcome.FAIL, 10**7, "rows", None)

    found = page(Verdict.FAIL, (gate,))

    assert "99.99999 %" in found
    assert "✗ fail" in found


def test_gates_without_a_measurement_have_dashes_and_no_bar() -> None:
    gates = judge_gates(DEFAULT_RULES, [])

    found = page(Verdict.NOT_JUDGED, gates)

    assert len(gates) == 2
    assert found.count("? inconclusive") == 2
    assert "<svg" not in found
    assert "None" not in found.replace("<p>None.</p>", "")


def test_a_threshold_that_lets_nothing_pass_is_a_dash() -> None:
    spaces = Spaces(SPACE, SPACE, None, None, (Threshold(0.1, 0.0, float("-inf")),), ())

    found = page(measured=Measurements(None, None, None, None, None, spaces))

    assert '<th scope="row">0.1</th><td>0 %</td><td>–</td>' in found


def test_what_was_not_seen_depends_on_what_was_measured() -> None:
    nothing: dict[str, Any] = json.loads(to_json(MEASURED))

    without = what_was_not_seen(nothing, 0)
    everything = nothing | {
        "references": {"linear": {}, "labelled": {}},
        "served": {"slices": [{"corrected_high": 0.1}]},
        "churn": {},
        "examples": {"uncertain": [{}]},
    }

    seen = what_was_not_seen(everything, 1000)
    assert len(seen) == 3
    assert "the 1,000 images" in seen[0]
    assert len(without) == 7
    small = everything | {"served": {"slices": [{"corrected_high": None}]}}
    assert "200 queries" in what_was_not_seen(small, 1000)[0]


def test_every_gate_is_called_by_its_name() -> None:
    gates = [Gate(metric, None, 0.5, 0.25, 0.75, 0.0, Outcome.PASS, 10, "references", 0.1) for metric in GateMetric]

    found = page(Verdict.PASS, tuple(gates))

    assert not [metric for metric in GateMetric if f">{metric}<" in found]
    assert found.count("references") >= len(GateMetric)


def test_query_sets_are_listed_with_what_became_of_their_queries() -> None:
    found = page(query_sets=(AskedSet(HOSTILE, 1_200, 7, 1_193, 3, 2, 1_188, 0, 0),))

    cells = ("1,200", "7", "1,193", "3", "2", "1,188")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in found
    assert "<script>" not in found
