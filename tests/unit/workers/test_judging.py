"""Whole judgements: an honest h passes, sabotaged ones never do, and the same rows give the same bytes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from models.judging.evidence import Answers, Evidence, Galleries, Queries, References, RelevantItems
from models.judging.intervals import Draws
from models.judging.linear_floor import cross_fitted
from models.judging.report import Reading, to_json
from models.judging.search import NO_ID
from models.metrics import Metric, retrieval_metrics
from service.domain.judging.gates import Gate, GateMetric, GateRule, Outcome
from service.domain.verdict import Verdict
from workers.judging import Judging, Known, Report, judge

Vectors = NDArray[np.float32]
Map = Callable[[Vectors], Vectors]
CLASSES, ITEMS, REFERENCES, OLD, SIDE, NEW = 40, 4000, 1500, 32, 24, 48
KNOWN = Known(ITEMS, 0, 0, 0.995, 200, "queries")
SETTINGS = Judging(KNOWN, "instance", reading=Reading(Draws(resamples=1000), sample_items=500))


@dataclass(frozen=True)
class World:
    """Items of classes as three networks see them: (N, D) old, side and new, and (N,) labels; and of other images what
    h can be learned from."""

    old: Vectors
    side: Vectors
    new: Vectors
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, items: int, seed: int) -> "World":
        networks, generator = np.random.default_rng(7), np.random.default_rng(seed)
        centres = networks.standard_normal((CLASSES, 24))
        labels = generator.integers(0, CLASSES, items)
        seen = centres[labels] + 0.9 * generator.standard_normal((items, 24))

        def network(dim: int, noise: float) -> Vectors:
            weights, bias = networks.standard_normal((24, dim)), networks.standard_normal(dim)
            features = np.maximum(seen @ weights / 5 + bias / 4, 0)
            return (features + noise * generator.standard_normal((items, dim))).astype(np.float32)

        return cls(network(OLD, 0.45), network(SIDE, 0.25), network(NEW, 0.05), labels)

    @property
    def inputs(self) -> Vectors:
        return np.hstack([self.old, self.side])


def ridge(inputs: Vectors, targets: Vectors, penalty: float = 1.0) -> Map:
    def with_one(rows: Vectors) -> NDArray[np.float64]:
        return np.hstack([rows, np.ones((len(rows), 1))])

    x = with_one(inputs)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ targets)
    return lambda rows: (with_one(rows) @ weights).astype(np.float32)


def random_features(inputs: Vectors, targets: Vectors) -> Map:
    """A network whose first layer is drawn and whose last one is fitted."""
    generator = np.random.default_rng(1)
    weights = generator.standard_normal((inputs.shape[1], 600)) / np.sqrt(inputs.shape[1])
    bias = generator.standard_normal(600) / 2

    def hidden(rows: Vectors) -> Vectors:
        features: Vectors = np.hstack([rows, np.maximum(rows @ weights + bias, 0)]).astype(np.float32)
        return features

    last = ridge(hidden(inputs), targets, 3.0)
    return lambda rows: np.maximum(last(hidden(rows)), 0)


LEARNED, GALLERY, OTHER = World.of(6000, 1), World.of(ITEMS, 2), World.of(6000, 3)
HONEST = random_features(LEARNED.inputs, LEARNED.new)(GALLERY.inputs)
LINEAR = ridge(LEARNED.inputs, LEARNED.new)(GALLERY.inputs)
IDS = np.arange(ITEMS) * 5 + 3


def chunks(vectors: Vectors, size: int = 1100) -> list[tuple[NDArray[np.int64], Vectors]]:
    return [(IDS[start : start + size], vectors[start : start + size]) for start in range(0, ITEMS, size)]


def evidence(transformed: Vectors, labels: bool = True, size: int = 1100) -> Evidence:
    some = slice(0, REFERENCES)
    attributes = {"label": GALLERY.labels[some].astype(str), "half": np.where(np.arange(REFERENCES) % 2, "odd", "even")}
    own = GALLERY.labels[some] if labels else None
    queries = Queries(GALLERY.old[some], GALLERY.new[some], IDS[some], "references", own, attributes=attributes)
    galleries = Galleries(
        "l2", chunks(GALLERY.old, size), chunks(transformed, size), chunks(LINEAR, size), IDS, GALLERY.labels
    )
    return Evidence(galleries, References(queries, transformed[some], LINEAR[some]))


def rotated(vectors: Vectors) -> Vectors:
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((NEW, NEW)))[0]
    turned: Vectors = (vectors @ turn).astype(np.float32)
    return turned


def with_shuffled_side() -> Vectors:
    shuffled = np.random.default_rng(0).permutation(ITEMS)
    inputs = np.hstack([GALLERY.old, GALLERY.side[shuffled]])
    return random_features(LEARNED.inputs, LEARNED.new)(inputs)


def of_another_target() -> Vectors:
    return random_features(LEARNED.inputs, OTHER.new[:, ::-1].copy())(GALLERY.inputs)


def half_zeroed() -> Vectors:
    return np.where(np.arange(NEW) < NEW // 2, HONEST, np.float32(0))


def every_second_row_zero() -> Vectors:
    return np.where(np.arange(ITEMS)[:, None] % 2, HONEST, np.float32(0))


def hardly_trained() -> Vectors:
    return ridge(LEARNED.inputs[:60], LEARNED.new[:60], 1000.0)(GALLERY.inputs)


def broken() -> Vectors:
    return np.full_like(HONEST, np.nan)


SABOTAGED = {
    "rotated": lambda: rotated(HONEST),
    "shuffled side-information": with_shuffled_side,
    "another target": of_another_target,
    "half of each output": half_zeroed,
    "half of the outputs": every_second_row_zero,
    "hardly trained": hardly_trained,
    "not finite": broken,
}


def gates_of(report: Report) -> dict[GateMetric, Gate]:
    return {gate.metric: gate for gate in report.gates}


@pytest.mark.parametrize("labels", [True, False])
def test_an_honest_h_passes(labels: bool) -> None:
    report = judge(evidence(HONEST, labels), SETTINGS)

    assert report.verdict is Verdict.PASS, report.gates
    expected = set(GateMetric) - (set() if labels else {GateMetric.CMC_AT_1, GateMetric.WORST_SLICE})
    assert set(gates_of(report)) == expected
    assert report.wanted == ""


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("sabotage", SABOTAGED)
def test_a_sabotaged_h_never_passes(sabotage: str, labels: bool) -> None:
    report = judge(evidence(SABOTAGED[sabotage](), labels), SETTINGS)

    assert report.verdict is Verdict.FAIL, report.gates


@pytest.mark.parametrize("transformed", [HONEST, rotated(HONEST)])
def test_without_evidence_by_the_new_model_nothing_is_judged(transformed: Vectors) -> None:
    whole = evidence(transformed)

    report = judge(replace(whole, references=None), SETTINGS)

    assert report.verdict is Verdict.NOT_JUDGED
    assert {gate.metric for gate in report.gates} == {GateMetric.COMPLETENESS, GateMetric.ANN_RECALL}
    assert "references" in report.wanted


def test_the_same_rows_and_seed_give_the_same_bytes_whatever_the_chunks() -> None:
    first = to_json(judge(evidence(HONEST), SETTINGS))

    assert to_json(judge(evidence(HONEST, size=333), SETTINGS)) == first
    other_seed = replace(SETTINGS, reading=Reading(Draws(1, 1000), sample_items=500))
    assert to_json(judge(evidence(HONEST), other_seed)) != first
    assert json.loads(first)["verdict"] == "pass"


def test_what_is_served_is_what_exhaustive_metrics_say() -> None:
    asked = World.of(300, 9)
    labels = np.where(np.arange(300) < 5, CLASSES + 1, asked.labels)
    queries = Queries(asked.old, asked.new, np.full(300, NO_ID), "query sets", labels)
    whole = replace(evidence(HONEST), references=None, queries=(queries,))

    served = judge(whole, replace(SETTINGS, reading=Reading(Draws(resamples=200), sample_items=ITEMS))).measurements

    assert served.served is not None
    assert served.served.n == 295
    for name, query, items in (("before", asked.old, GALLERY.old), ("after", asked.new, HONEST)):
        expected = retrieval_metrics(query, labels, items, GALLERY.labels)
        assert getattr(served.served.cmc1, name).value == pytest.approx(expected.cmc1)
        assert getattr(served.served.cmc5, name).value == pytest.approx(expected.cmc5)
        assert getattr(served.served.average_precision, name) == pytest.approx(expected.map, abs=1e-6)


def test_relevant_items_are_judged_like_labels_that_say_the_same() -> None:
    by_label = evidence(HONEST).references
    assert by_label is not None
    queries = by_label.queries
    relevant = [IDS[GALLERY.labels == label] for label in GALLERY.labels[:REFERENCES]]
    starts = np.cumsum([0, *map(len, relevant)])
    judged = replace(queries, labels=None, relevant=RelevantItems(starts, np.concatenate(relevant)))

    found = [
        judge(replace(evidence(HONEST), references=None, queries=(asked,)), SETTINGS).measurements.served
        for asked in (queries, judged)
    ]

    assert found[0] is not None
    assert found[1] is not None
    assert found[0].n == found[1].n
    assert found[0].cmc1.negative == found[1].cmc1.negative
    assert found[0].cmc5.after == found[1].cmc5.after


def test_a_planted_loss_of_one_label_fails_the_worst_slice() -> None:
    country = np.where(GALLERY.labels[:REFERENCES] < 8, "DE", "FR")
    transformed = HONEST.copy()
    lost = np.flatnonzero(GALLERY.labels < 8)
    transformed[lost] = transformed[np.random.default_rng(0).permutation(ITEMS)[: len(lost)]]
    whole = evidence(transformed)
    assert whole.references is not None
    queries = replace(whole.references.queries, attributes={"country": country})

    report = judge(replace(whole, references=replace(whole.references, queries=queries)), SETTINGS)

    gate = gates_of(report)[GateMetric.WORST_SLICE]
    assert (gate.slice, gate.outcome) == ("country=DE", Outcome.FAIL)


def test_an_override_of_a_limit_is_what_decides() -> None:
    strict = replace(SETTINGS, gates=(GateRule(GateMetric.CMC_AT_1, 0.9),))

    report = judge(evidence(HONEST), strict)

    assert report.verdict is Verdict.FAIL
    assert gates_of(report)[GateMetric.CMC_AT_1].limit == 0.9


def test_churn_of_shadowed_queries_is_shown_and_no_gates() -> None:
    answers = Answers(np.array([[1, 2], [3, 4]]), np.array([[1, 9], [8, 7]]))

    report = judge(replace(evidence(HONEST), shadowed=answers), SETTINGS)

    assert report.measurements.churn is not None
    assert (report.measurements.churn.n, report.measurements.churn.overlap) == (2, 0.25)
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("known", "verdict"),
    [
        (replace(KNOWN, items_waiting=1), Verdict.FAIL),
        (replace(KNOWN, ann_recall=0.9), Verdict.FAIL),
        (replace(KNOWN, ann_recall=0.982), Verdict.INCONCLUSIVE),
        (replace(KNOWN, recall_sample_size=0), Verdict.INCONCLUSIVE),
        (replace(KNOWN, ann_recall=None), Verdict.PASS),
    ],
)
def test_what_rows_say_is_gated_too(known: Known, verdict: Verdict) -> None:
    assert judge(evidence(HONEST), replace(SETTINGS, known=known)).verdict is verdict


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_other_metrics_tell_an_honest_h_from_a_rotated_one(metric: Metric) -> None:
    def verdict_of(transformed: Vectors) -> Verdict:
        whole = evidence(transformed)
        return judge(replace(whole, galleries=replace(whole.galleries, metric=metric)), in_class).verdict

    in_class = replace(SETTINGS, task="class")
    assert verdict_of(HONEST) is Verdict.PASS
    assert verdict_of(rotated(HONEST)) is Verdict.FAIL


@pytest.mark.parametrize("sabotage", ["rotated", "shuffled side-information", "another target", "hardly trained"])
def test_query_sets_alone_refuse_what_harms_them(sabotage: str) -> None:
    asked = World.of(1500, 9)
    queries = Queries(asked.old, asked.new, np.full(1500, NO_ID), "query sets", asked.labels)

    report = judge(replace(evidence(SABOTAGED[sabotage]()), references=None, queries=(queries,)), SETTINGS)

    assert report.verdict is Verdict.FAIL
    assert GateMetric.OVERLAP not in gates_of(report)


@pytest.mark.parametrize(("transformed", "verdict"), [(HONEST, Verdict.PASS), (rotated(HONEST), Verdict.FAIL)])
def test_the_references_own_linear_map_is_a_floor_where_none_was_kept(transformed: Vectors, verdict: Verdict) -> None:
    whole = evidence(transformed, labels=False)
    assert whole.references is not None
    some = slice(0, REFERENCES)
    linear = cross_fitted(GALLERY.old[some], GALLERY.side[some], GALLERY.new[some])
    given = replace(
        whole, references=replace(whole.references, linear=linear), galleries=replace(whole.galleries, linear=None)
    )

    report = judge(given, replace(SETTINGS, task="class"))

    assert report.verdict is verdict
    assert gates_of(report)[GateMetric.OVERLAP].outcome.value == verdict.value


def test_examples_are_queries_that_flipped() -> None:
    found = judge(evidence(HONEST), SETTINGS).measurements
    label_of = dict(zip(IDS.tolist(), GALLERY.labels.tolist(), strict=True))

    assert len(found.examples.negative_flips) > 20
    for example in found.examples.negative_flips:
        label = label_of[example.item_id]
        assert label_of[example.before.ids[0]] == label != label_of[example.after.ids[0]]


def test_galleries_without_items_and_no_evidence_at_all_are_not_judged() -> None:
    empty = Evidence(Galleries("l2", [], []))

    report = judge(empty, replace(SETTINGS, known=Known(0, 0, 0, None, 0, "")))

    assert report.verdict is Verdict.NOT_JUDGED
    assert json.loads(to_json(report))["measurements"]["spaces"]["after"]["items"] == 0


def test_a_queryless_gallery_still_has_its_space_checked() -> None:
    report = judge(replace(evidence(broken()), references=None), SETTINGS)

    assert report.measurements.spaces.after.non_finite == ITEMS
    assert report.verdict is Verdict.FAIL
    assert gates_of(report)[GateMetric.COMPLETENESS].value == 0
