"""Examples of every kind, against a choice made one query at a time."""

from dataclasses import replace

import numpy as np
import pytest

from models.judging.evidence import Evidence, Galleries, Queries, References
from models.judging.examples import MOST, SHOWN, Example, Examples, Shown
from models.judging.intervals import Draws
from models.judging.report import Reading, measure
from models.judging.search import NO_ID

ITEMS, REFERENCES, ASKED, K = 120, 70, 20, 10
READING = Reading(Draws(resamples=50), sample_items=50)
IDS = np.arange(ITEMS) * 3 + 5
Ranking = list[tuple[float, int]]


def evidence(noise: float = 0.8) -> Evidence:
    """References in six classes, some without a label, and queries that are no items."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, ITEMS)
    labels[:4] = -1
    centres = generator.standard_normal((7, 5))
    old = (centres[labels] + 1.2 * generator.standard_normal((ITEMS, 5))).astype(np.float32)
    new = (centres[labels] + 0.9 * generator.standard_normal((ITEMS, 5))).astype(np.float32)
    transformed = (new + noise * generator.standard_normal((ITEMS, 5))).astype(np.float32)
    some = slice(0, REFERENCES)
    uncertainty = generator.random(REFERENCES).astype(np.float32).round(1)  # many are equal
    uncertainty[::7] = np.nan
    galleries = Galleries("l2", [(IDS, old)], [(IDS, transformed)], item_ids=IDS, labels=labels)
    references = Queries(old[some], new[some], IDS[some], "references", labels[some])
    wanted = generator.integers(0, 6, ASKED)
    seen = (centres[wanted] + generator.standard_normal((2, ASKED, 5))).astype(np.float32)
    asked = Queries(seen[0], seen[1], np.full(ASKED, NO_ID), "query sets", wanted)
    return Evidence(galleries, References(references, transformed[some], uncertainty=uncertainty), (asked,))


def rankings(given: Evidence, name: str) -> list[Ranking]:
    """Return (distance, id) of the ten nearest to each query, its own item left out."""
    (ids, items), *_ = getattr(given.galleries, name)
    assert given.references is not None
    found = []
    for queries in (given.references.queries, *given.queries):
        for query, own in zip(getattr(queries, name), queries.item_ids, strict=True):
            far = np.sqrt(((items.astype(np.float64) - query) ** 2).sum(axis=1)).astype(np.float32)
            found.append(sorted((float(d), int(i)) for d, i in zip(far, ids, strict=True) if i != own)[:K])
    return found


def own_and_label(given: Evidence) -> list[tuple[int, int]]:
    assert given.references is not None
    found = []
    for queries in (given.references.queries, *given.queries):
        assert queries.labels is not None
        found += list(zip(queries.item_ids.tolist(), queries.labels.tolist(), strict=True))
    return found


def shown(ranking: Ranking) -> Shown:
    return Shown(tuple(id_ for _, id_ in ranking[:SHOWN]), tuple(distance for distance, _ in ranking[:SHOWN]))


def first_right(given: Evidence, ranking: Ranking, label: int) -> int:
    label_of = dict(zip(IDS.tolist(), given.galleries.labels.tolist(), strict=True))
    return next((rank for rank, (_, id_) in enumerate(ranking, 1) if label_of[id_] == label), K + 1)


def slow_flips(given: Evidence, negative: bool) -> list[Example]:
    before, after = rankings(given, "before"), rankings(given, "after")
    found = []
    for place, (own, label) in enumerate(own_and_label(given)):
        ranks = [first_right(given, answer[place], label) for answer in (before, after)]
        kept, lost = ranks if negative else ranks[::-1]
        if label >= 0 and kept == 1 and lost > 1:
            old, new = (rank if rank <= K else None for rank in ranks)
            found.append((-lost, place, Example(own, old, new, shown(before[place]), shown(after[place]))))
    return [example for *_, example in sorted(found, key=lambda row: row[:2])]


def test_flips_are_those_whose_first_right_item_moved_furthest() -> None:
    given = evidence()

    found = measure(given, READING)

    assert list(found.examples.negative_flips) == slow_flips(given, negative=True)
    assert list(found.examples.positive_flips) == slow_flips(given, negative=False)
    assert found.served is not None
    counts = [round(rate.value * found.served.n) for rate in (found.served.cmc1.negative, found.served.cmc1.positive)]
    assert [len(found.examples.negative_flips), len(found.examples.positive_flips)] == counts
    assert min(counts) > 3
    assert any(example.item_id == NO_ID for example in found.examples.negative_flips)
    assert any(example.value_after is None for example in found.examples.negative_flips)


def test_churn_is_the_answers_that_have_least_in_common() -> None:
    given = evidence()

    found = measure(given, READING).examples.churn

    before, after = rankings(given, "before"), rankings(given, "after")
    common = [len({i for _, i in b} & {i for _, i in a}) / K for b, a in zip(before, after, strict=True)]
    assert [example.value_after for example in found] == sorted(common)[:MOST]
    assert len(found) == MOST
    places = {shown(ranking): place for place, ranking in enumerate(before)}
    for example in found:
        place = places[example.before]
        assert (example.item_id, example.value_before) == (own_and_label(given)[place][0], None)
        assert example.value_after == common[place]
        assert example.after == shown(after[place])


def test_answers_that_did_not_change_are_no_churn() -> None:
    given = evidence()
    same = replace(given.galleries, after=given.galleries.before)
    assert given.references is not None
    queries = replace(given.references.queries, after=given.references.queries.before)

    found = measure(Evidence(same, References(queries, queries.before)), READING).examples

    assert (found.churn, found.negative_flips, found.positive_flips, found.uncertain) == ((), (), (), ())
    assert all(example.value_before == example.value_after for example in found.hubs)


def test_hubs_are_the_items_of_most_answers_with_the_items_whose_queries_found_them() -> None:
    given = evidence()

    found = measure(given, READING).examples.hubs

    sides = [rankings(given, name) for name in ("before", "after")]
    times = [{id_: sum(id_ in [i for _, i in ranking] for ranking in side) for id_ in IDS.tolist()} for side in sides]
    expected = sorted(IDS.tolist(), key=lambda id_: (-times[1][id_], id_))[:MOST]
    assert [example.item_id for example in found] == expected
    for example in found:
        assert (example.value_before, example.value_after) == tuple(side[example.item_id] for side in times)
        for side, answer in zip(sides, (example.before, example.after), strict=True):
            finders = sorted(
                (distance, place, own)
                for place, (ranking, (own, _)) in enumerate(zip(side, own_and_label(given), strict=True))
                for distance, id_ in ranking
                if id_ == example.item_id and own != NO_ID
            )
            assert answer == shown([(distance, own) for distance, _, own in finders])


def test_uncertain_are_the_references_of_which_the_largest_error_is_expected() -> None:
    given = evidence()

    found = measure(given, READING).examples.uncertain

    assert given.references is not None
    assert given.references.uncertainty is not None
    expected = given.references.uncertainty.tolist()
    known = [place for place in range(REFERENCES) if expected[place] == expected[place]]
    places = sorted(known, key=lambda place: (-expected[place], place))[:MOST]
    assert [(example.item_id, example.value_after) for example in found] == [
        (int(IDS[place]), expected[place]) for place in places
    ]


def test_without_queries_there_are_no_examples() -> None:
    assert measure(Evidence(evidence().galleries), READING).examples == Examples()


def test_answers_of_a_gallery_of_few_items_are_shorter() -> None:
    given = evidence()
    few = [(IDS[:3], np.zeros((3, 5), np.float32))]
    galleries = replace(given.galleries, before=few, after=few)

    found = measure(replace(given, galleries=galleries), READING).examples

    assert {len(example.before.ids) for example in found.uncertain} <= {2, 3}
    assert all(np.isfinite(example.before.distances).all() for example in found.uncertain)


def test_an_expected_error_is_of_each_reference() -> None:
    given = evidence().references
    assert given is not None

    with pytest.raises(ValueError, match="expected error"):
        replace(given, uncertainty=np.zeros(3, np.float32))
