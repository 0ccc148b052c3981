"""A report as one HTML page, which is whole: no script, and nothing that it would load; or as a part of the console's.

Thumbnails are inside it as data URIs, so that a page that was kept or sent shows what was judged after items are gone;
at three examples of a kind they are about 1 MB at most. Every value is escaped by the template's engine.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from service.api.browsers import content_policy
from service.api.decisions import decision_on
from service.api.prefixes import address
from service.api.report_chart import Chart, chart_of
from service.domain.external.progress import ExternalDetails
from service.domain.external.reports import content_of
from service.domain.judging.examples import Example, ExampleKind, Examples
from service.domain.judging.gates import GateMetric, Outcome
from service.domain.upgrade.progress import UpgradeDetails
from service.domain.verdict import Verdict
from service.tables import ExternalReport, Report

EXAMPLES_SHOWN = 3
# Nothing of a page may run, be loaded or be sent, whatever a value on it says.
_FOLDER = Path(__file__).parent.parent / "console"
_NOTHING = "–"
_SHARES = {GateMetric.COMPLETENESS, GateMetric.ANN_RECALL, GateMetric.EXPLAINED}

_VERDICTS = {
    Verdict.PASS: "Every gate passes: as far as was measured, nothing gets worse by more than its limit.",
    Verdict.FAIL: "At least one gate fails: all of the interval that was measured is below its limit.",
    Verdict.INCONCLUSIVE: "Too little was measured to tell: no gate fails, but not every one passes.",
    Verdict.NOT_JUDGED: "Nothing that the new model encoded was compared: how retrieval changes is not known.",
}
_GATES = {
    GateMetric.CMC_AT_1: "CMC@1: new/h less old/old",
    GateMetric.WORST_SLICE: "CMC@1 of the worst slice: new/h less old/old",
    GateMetric.OVERLAP: "Overlap@10 with new/new: h less the linear map",
    GateMetric.OWN_ITEM_FIRST: "Own item first: h less the linear map",
    GateMetric.EXPLAINED: "Variance of the new embeddings that h explains",
    GateMetric.COMPLETENESS: "Items that are in the next generation",
    GateMetric.ANN_RECALL: "Recall@10 of the index",
}
_MARKS = {Outcome.PASS: "✓", Outcome.FAIL: "✗", Outcome.INCONCLUSIVE: "?"}
_ABOUT = {
    "code_version": "Version of the code",
    "most_evidence": "Images judged at most",
    "references": "References among them",
    "ingested": "Images that came while the upgrade was open",
    "networks": "Digests of h and g",
}


@dataclass(frozen=True)
class _Kind:
    """How a kind of examples is introduced; `answers`: what is listed of each."""

    title: str
    sentence: str
    answers: str = "Answer"


_KINDS = {
    ExampleKind.NEGATIVE_FLIPS: _Kind("Negative flips", "Right before and wrong after, furthest moved first."),
    ExampleKind.POSITIVE_FLIPS: _Kind("Positive flips", "Wrong before and right after, furthest moved first."),
    ExampleKind.CHURN: _Kind("Churn", "Both answers have least in common; either may be the better one."),
    ExampleKind.HUBS: _Kind(
        "Hubs", "The items that are in most answers of the next generation.", "Images that found it"
    ),
    ExampleKind.UNCERTAIN: _Kind("Uncertain", "The items of which h expects the largest error of its own."),
}


@dataclass(frozen=True)
class _GateRow:
    """A gate in words."""

    name: str
    slice: str
    value: str
    interval: str
    limit: str
    outcome: Outcome
    mark: str
    n: int
    detectable: str
    source: str


def render_report(
    details: UpgradeDetails,
    report: Report,
    examples: Examples,
    thumbnails: Mapping[int, bytes],
    *,
    is_page: bool = True,
) -> str:
    """Return the page, or what stands on it; `thumbnails`: JPEG by the `key` of the examples' items."""
    content = json.loads(report.content)
    gates = [_gate_row(gate) for gate in content["gates"]]
    return _TEMPLATE.render(
        layout="report_alone.html" if is_page else "report_part.html",
        report=report,
        address=address(f"/v1/upgrades/{details.upgrade.id}/reports/{report.number}"),
        upgrade=details.upgrade,
        gallery=details.gallery,
        from_version=details.from_version,
        to_version=details.to_version,
        content={"held_out": [], **content},
        verdict_sentence=_VERDICTS[report.verdict],
        gates=gates,
        decision=decision_on(report, details.upgrade),
        chart=_chart(content["gates"], gates),
        examples=examples,
        thumbnails={key: _data_uri(jpeg) for key, jpeg in thumbnails.items()},
        about=[(_ABOUT.get(name, name), value) for name, value in content["about"].items() if name != "revision"],
        unseen=what_was_not_seen(content["measurements"], report.evidence),
    )


def render_external_report(details: ExternalDetails, report: ExternalReport) -> str:
    """Return what stands on the page of an upgrade of another store of its report."""
    content = content_of(report)
    gates = [_gate_row(gate) for gate in content["gates"]]
    return _EXTERNAL.render(
        report=report,
        from_version=details.from_version,
        to_version=details.to_version,
        verdict_sentence=_VERDICTS[report.verdict],
        content=content,
        gates=gates,
        chart=_chart(content["gates"], gates),
    )


def what_was_not_seen(measurements: Mapping[str, Any], evidence: int) -> list[str]:
    """Return what the measurements of a report say nothing of, in sentences."""
    references, served = measurements["references"], measurements["served"]
    found = []
    if references is None:
        found.append("How near h comes to encoding anew: no image of an item was encoded by the new model.")
    elif references["linear"] is None:
        found.append("Whether h does better than a linear map: there is none of this upgrade's transformation.")
    if references is not None and references["labelled"] is None:
        found.append("How much of the new model's gain h brings: no two references have the same label.")
    if served is None:
        found.append("Whether right answers stay right: no query has a label or relevant items in the gallery.")
    elif not any(slice_["corrected_high"] is not None for slice_ in served["slices"]):
        found.append("For whom it is worse: no group has the 200 queries that a gate needs.")
    if measurements["churn"] is None:
        found.append("What users will notice: none of their queries was asked of both generations.")
    if not measurements["examples"]["uncertain"]:
        found.append("Which items h is least sure of: it does not say, or not of images that both models encoded.")
    about = f"the {evidence:,} images" if evidence else "images"
    return [
        *found,
        f"Images that are unlike {about} that were judged: no number here is about them.",
        "Labels that are wrong, and answers that are right although the labels differ: labels are taken at their word.",
        "What is outside the gallery: vectors that clients keep, classifiers and thresholds that were made for the old"
        " space.",
    ]


def _gate_row(gate: Mapping[str, Any]) -> _GateRow:
    metric, result = GateMetric(gate["metric"]), Outcome(gate["outcome"])
    form = _percent if metric in _SHARES else _points
    interval = _NOTHING if gate["low"] is None else f"{form(gate['low'])} to {form(gate['high'])}"
    return _GateRow(
        _GATES[metric],
        gate["slice"] or "all",
        form(gate["value"]),
        interval,
        form(gate["limit"]),
        result,
        _MARKS[result],
        gate["n"],
        _points(gate["detectable"]).lstrip("+"),
        gate["source"] or _NOTHING,
    )


def _chart(gates: Sequence[Mapping[str, Any]], rows: Sequence[_GateRow]) -> Chart | None:
    named = [
        (f"{row.mark} {row.outcome}: {row.name}{'' if gate['slice'] is None else f', {row.slice}'}", row.outcome, gate)
        for gate, row in zip(gates, rows, strict=True)
    ]
    return chart_of(
        [
            (name, outcome, *(gate[place] - gate["limit"] for place in ("low", "value", "high")))
            for name, outcome, gate in named
            if gate["value"] is not None
        ]
    )


def _told(kind: ExampleKind, example: Example) -> str:
    """Return what an example was chosen by."""
    before, after = example.value_before, example.value_after
    if kind in (ExampleKind.NEGATIVE_FLIPS, ExampleKind.POSITIVE_FLIPS):
        ranks = ["beyond the first ten" if rank is None else f"at rank {rank:g}" for rank in (before, after)]
        return f"the first right item is {ranks[0]} before, and {ranks[1]} after"
    if kind is ExampleKind.CHURN:
        return f"both answers have {_percent(after)} in common"
    if kind is ExampleKind.HUBS:
        return f"in {_count(before)} answers before, and {_count(after)} after"
    return f"expected squared error {_number(after)}"


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _conditions(conditions: Sequence[Sequence[str]]) -> str:
    return " & ".join(f"{attribute}={value}" for attribute, value in conditions)


def _count(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return _NOTHING if value is None else _signed(f"{value:.4g}")


def _percent(share: float | None) -> str:
    """Return a share in percent; what is below 100 % never reads as 100."""
    if share is None:
        return _NOTHING
    text = f"{100 * share:.1f}"
    return f"{_signed(f'{100 * share:.9g}' if text == '100.0' and share < 1 else text)} %"


def _points(difference: float | None) -> str:
    if difference is None:
        return _NOTHING
    rounded = math.copysign(round(100 * abs(difference), 1), difference)
    return _signed(f"{rounded:+.1f}" if rounded else "0.0")


def _percent_between(interval: Mapping[str, float] | None) -> str:
    return _NOTHING if interval is None else _between(interval, _percent)


def _points_between(interval: Mapping[str, float] | None) -> str:
    return _NOTHING if interval is None else _between(interval, _points)


def _between(interval: Mapping[str, float], form: Callable[[float], str]) -> str:
    return f"{form(interval['value'])} ({form(interval['low'])} to {form(interval['high'])})"


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _figures(values: Mapping[str, Any], within: str = "") -> list[tuple[str, float]]:
    """Return the numbers of nested records, each with the names that lead to it; those of lists are left out."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        named = f"{within}, {_words(name)}" if within else _words(name)
        if isinstance(value, Mapping):
            found += _figures(value, named)
        elif isinstance(value, int | float):
            found.append((named, value))
    return found


def _words(name: str) -> str:
    return name.replace("_", " ")


def _make_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "number": _number,
        "percent": _percent,
        "points": _points,
        "percent_between": _percent_between,
        "points_between": _points_between,
        "conditions": _conditions,
        "figures": _figures,
        "words": _words,
    }
    environment.globals |= {
        "told": _told,
        "kinds": _KINDS,
        "formatted": lambda value, form: environment.filters[form](value),
    }
    return environment


_ENVIRONMENT = _make_environment()
_TEMPLATE = _ENVIRONMENT.get_template("report.html")
_EXTERNAL = _ENVIRONMENT.get_template("external_report.html")
# Of the template, not of what is rendered: nothing that a report shows can add to it.
SECURITY_POLICY = content_policy((_FOLDER / "report_alone.html").read_text())
