"""Measured recall, and the width of search that is chosen by it."""

from collections.abc import Iterator

import numpy as np
import pytest

from service.index.faiss_index import FaissIndex
from service.index.files import build_index
from service.index.kinds import ApproximateRows
from service.index.protocol import Ids, IndexKind, Metric, Vectors
from service.index.recall import Recall, Sample, choose_width, find_others, recall_of
from tests.unit.index.building import APPROXIMATE_KINDS, KINDS, built
from tests.unit.index.exhaustive import METRICS, all_distances, recall

DIM = 8


def some_rows(count: int, dim: int = DIM, seed: int = 0) -> tuple[Ids, Vectors]:
    random = np.random.default_rng(seed)
    return random.permutation(count).astype(np.int64) * 2**40, random.standard_normal((count, dim)).astype(np.float32)


def in_chunks(ids: Ids, vectors: Vectors, size: int = 77) -> Iterator[tuple[Ids, Vectors]]:
    return ((ids[at : at + size], vectors[at : at + size]) for at in range(0, len(ids), size))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [10, 600])
def test_an_exact_index_has_recall_1_whatever_the_chunks(metric: Metric, k: int) -> None:
    ids, vectors = some_rows(500)
    index, sample = FaissIndex(metric, DIM, built(metric, ids, vectors)), Sample(ids[:20], vectors[:20])

    found = find_others(index, sample, k)

    assert recall_of(metric, sample, found, in_chunks(ids, vectors)).recall_at_10 == 1.0


def test_a_row_does_not_count_as_its_own_neighbour() -> None:
    ids, vectors = some_rows(50)
    sample = Sample(ids[:5], vectors[:5])
    themselves_only = np.full((5, 10), -1, np.int64)
    themselves_only[:, 0] = sample.ids

    found = find_others(FaissIndex("l2", DIM, built("l2", ids, vectors)), sample)

    assert not (found == sample.ids[:, None]).any()
    assert (found >= 0).all()
    assert recall_of("l2", sample, themselves_only, [(ids, vectors)]).recall_at_10 == 0.0
    assert recall_of("l2", sample, found, [(ids, vectors)]).recall_at_10 == 1.0


def test_a_row_that_the_index_does_not_find_is_left_out_too() -> None:
    ids, vectors = some_rows(100)
    index, sample = FaissIndex("l2", DIM, built("l2", ids[20:], vectors[20:])), Sample(ids[:5], vectors[:5])

    found = find_others(index, sample)

    np.testing.assert_array_equal(found, index.search(vectors[:5], 10).ids)


def test_recall_counts_the_neighbours_that_an_index_lacks() -> None:
    ids, vectors = some_rows(101)
    index, sample = FaissIndex("l2", DIM, built("l2", ids[:76], vectors[:76])), Sample(ids[:1], vectors[:1])

    found = find_others(index, sample, k=100)

    assert recall_of("l2", sample, found, [(ids, vectors)]).recall_at_10 == 0.75


@pytest.mark.parametrize("metric", METRICS)
def test_the_recall_of_an_answer_is_what_a_slow_count_gives(metric: Metric) -> None:
    ids, vectors = some_rows(400)
    sample = Sample(ids[:30], vectors[:30])
    answers = [np.random.default_rng(seed).choice(ids[30:], (30, 10)) for seed in (1, 2)]
    for row, at in enumerate(np.argsort(all_distances(metric, vectors[:30], vectors), axis=1)[:, 1:4]):
        answers[1][row, :3] = ids[at]  # for ip a row need not be the nearest to itself

    distances = all_distances(metric, vectors[:30], vectors)
    distances[np.arange(30), np.arange(30)] = np.inf
    true = ids[np.argsort(distances, axis=1)[:, :10]].tolist()
    for answer in answers:
        measured = recall_of(metric, sample, answer, in_chunks(ids, vectors))
        counted = [sum(id_ in near for id_ in found) for found, near in zip(answer.tolist(), true, strict=True)]
        assert measured.recall_at_10 == pytest.approx(sum(counted) / 300)


def test_rows_as_near_as_the_true_ones_count_as_found() -> None:
    ids, vectors = some_rows(300)
    vectors[:100] = vectors[0]  # a hundred copies: any ten of them are the ten nearest
    index, sample = FaissIndex("l2", DIM, built("l2", ids[50:], vectors[50:])), Sample(ids[:1], vectors[:1])

    assert recall_of("l2", sample, find_others(index, sample), [(ids, vectors)]).recall_at_10 == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1])
def test_where_there_is_no_other_row_nothing_is_missed(kind: IndexKind, count: int) -> None:
    ids, vectors = some_rows(count)

    recorded = choose_width(built("l2", ids, vectors, kind), "l2", Sample(ids, vectors), [(ids, vectors)])

    assert recorded == Recall(1.0, "rows", count, {"rows": 1.0})


@pytest.mark.parametrize("kind", APPROXIMATE_KINDS)
def test_the_narrowest_width_that_is_good_enough_is_chosen(kind: IndexKind) -> None:
    ids, vectors = some_rows(6_000, dim=32)  # no clusters: hard for lists
    index, sample = built("l2", ids, vectors, kind), Sample(ids[:50], vectors[:50])
    rows = index.rows
    assert isinstance(rows, ApproximateRows)

    chosen = choose_width(index, "l2", sample, [(ids, vectors)])

    assert rows.width in rows.widths
    place = rows.widths.index(rows.width)
    asked = sample.with_points_between("l2", np.empty((0, 32), np.float32))
    others = []
    for width in rows.widths:
        rows.width = width
        found = find_others(FaissIndex("l2", 32, index), asked)
        others.append(recall_of("l2", asked, found, [(ids, vectors)]))
    assert others[place] == chosen
    shares = np.array([[other.recalls["rows"], other.recalls["between"]] for other in others])
    enough = (shares >= 0.995 * shares.max(axis=0)).all(axis=1)
    assert enough[place]
    assert not enough[:place].any()


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_in_a_gallery_of_near_copies_only_queries_choose_a_width_that_finds_what_other_queries_ask(
    kind: IndexKind,
) -> None:
    random = np.random.default_rng(0)
    photographs = random.standard_normal((1_400, 32)).astype(np.float32)
    copies = np.repeat(photographs[:1_000], 20, axis=0)
    copies += 0.3 * random.standard_normal(copies.shape).astype(np.float32)
    ids = np.arange(len(copies))
    index, some = built("l2", ids, copies, kind), random.permutation(len(copies))[:200]
    rows, asked, of_rows = index.rows, photographs[1_200:], Sample(ids[some], copies[some])
    assert isinstance(rows, ApproximateRows)

    def found() -> float:
        return recall(FaissIndex("l2", 32, index).search(asked, 10), "l2", ids, copies, asked, 10)

    by_rows_alone = recall_of("l2", of_rows, find_others(FaissIndex("l2", 32, index), of_rows), [(ids, copies)])
    narrowest = found()
    by_rows = choose_width(index, "l2", of_rows, [(ids, copies)])
    width_by_rows, found_by_rows = rows.width, found()
    by_queries = choose_width(index, "l2", Sample.of_queries(photographs[1_000:1_200]), [(ids, copies)])

    assert by_rows_alone.recall_at_10 >= 0.99
    assert by_rows.recall_at_10 == by_rows.recalls["between"] >= 0.99
    assert by_queries.recalls == {"queries": by_queries.recall_at_10}
    assert by_queries.recall_sample_size == by_rows.recall_sample_size == 200
    assert rows.width > width_by_rows
    assert found() >= 0.99 > found_by_rows
    if kind == "ivf":
        assert found_by_rows > narrowest + 0.2


def test_what_is_recorded_is_the_lowest_recall_and_of_which_questions_it_is() -> None:
    ids, vectors = some_rows(400)
    vectors[:60] = vectors[0]
    index = built("l2", ids, vectors, "hnsw")
    sample = Sample(ids[::8], vectors[::8])

    asked = sample.with_points_between("l2", index.vectors(index.copies.largest(10, 10)))

    assert asked.between == 50
    assert (asked.ids[50:] == -1).all()
    towards_copies = (asked.vectors[50::2] - 0.4 * vectors[0]) / 0.6
    gaps = all_distances("l2", towards_copies, vectors[::8]).min(axis=1)
    np.testing.assert_allclose(gaps, 0, atol=1e-2)
    half = np.full((100, 10), -1, np.int64)
    true = ids[np.argsort(all_distances("l2", asked.vectors, vectors), axis=1, kind="stable")]
    half[:50] = find_others(FaissIndex("l2", DIM, built("l2", ids, vectors)), asked)[:50]
    half[50:, :5] = true[50:, :5]
    assert recall_of("l2", asked, half, in_chunks(ids, vectors)) == Recall(
        0.5, "between", 50, {"rows": 1.0, "between": 0.5}
    )


@pytest.mark.parametrize("metric", METRICS)
def test_the_recorded_recall_of_a_graph_is_what_a_slow_count_gives(metric: Metric) -> None:
    ids, vectors = some_rows(6_000, dim=16)
    vectors[:500] = vectors[0]
    if metric == "ip":  # approximate search by it is only good for vectors of like norms
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, sample = built(metric, ids, vectors, "hnsw"), Sample(ids[::100], vectors[::100])

    recorded = choose_width(index, metric, sample, in_chunks(ids, vectors, 1_000))

    asked = sample.with_points_between(metric, index.vectors(index.copies.largest(10, 10)))
    found = FaissIndex(metric, 16, index).search(asked.vectors, 11).ids
    distances = all_distances(metric, asked.vectors, vectors)
    place = {int(id_): at for at, id_ in enumerate(ids)}
    hits: dict[str, int] = {"rows": 0, "between": 0}
    for number, (own, answer) in enumerate(zip(asked.ids.tolist(), found.tolist(), strict=True)):
        others = [at for id_, at in place.items() if id_ != own]
        tenth = np.sort(distances[number, others])[9]
        given = [id_ for id_ in answer if id_ != own][:10]
        near = [distances[number, place[id_]] <= tenth + 1e-5 * max(1.0, abs(tenth)) for id_ in given]
        hits["rows" if number < len(sample.ids) else "between"] += sum(near)
    assert recorded.recalls == pytest.approx({kind: count / (10 * len(sample.ids)) for kind, count in hits.items()})
    assert recorded.recall_at_10 >= 0.98


@pytest.mark.parametrize("metric", METRICS)
def test_queries_and_a_single_row_have_no_points_between(metric: Metric) -> None:
    ids, vectors = some_rows(20)
    crowds = np.empty((0, DIM), np.float32)

    for sample in (Sample.of_queries(vectors), Sample(ids[:1], vectors[:1])):
        assert sample.with_points_between(metric, crowds) is sample


def test_nothing_is_left_out_of_the_answer_to_a_query_though_it_be_a_row() -> None:
    ids, vectors = some_rows(100)
    index, sample = FaissIndex("l2", DIM, built("l2", ids, vectors)), Sample.of_queries(vectors[:5])

    found = find_others(index, sample)

    np.testing.assert_array_equal(found[:, 0], ids[:5])
    others = find_others(index, Sample(ids[:5], vectors[:5]))
    assert recall_of("l2", sample, found, in_chunks(ids, vectors)).recall_at_10 == 1.0
    assert recall_of("l2", sample, others, in_chunks(ids, vectors)).recall_at_10 == 0.9


def test_without_anything_to_ask_nothing_is_said_to_be_of_queries() -> None:
    nothing = Sample.of_queries(np.empty((0, DIM), np.float32))

    none = np.empty(0, np.int64)
    assert nothing.describe(none, none) == Recall(1.0, "rows", 0, {"rows": 1.0})


@pytest.mark.parametrize("kind", ["ivf", "ivf_sq8"])
def test_lists_are_learnt_from_the_sample_alone(kind: IndexKind) -> None:
    """The rows come ordered: the first ones say nothing of the rest."""
    ids, vectors = some_rows(6_000)
    vectors[:, 0] += np.repeat([0, 50, 100], 2_000)

    index = built("l2", ids, vectors, kind, chunk=500)

    choose_width(index, "l2", Sample(ids[::60], vectors[::60]), [(ids, vectors)])
    found = FaissIndex("l2", DIM, index).search(vectors[::60], 10)
    assert not found.is_exact
    assert recall(found, "l2", ids, vectors, vectors[::60], 10) >= 0.95


def test_lists_without_a_sample_are_one() -> None:
    ids, vectors = some_rows(3_000)

    index = build_index("l2", DIM, [(ids, vectors)], "ivf")

    assert index.rows.parameters == {"lists": 1, "nprobe": 1, "codes": "float16"}
    assert FaissIndex("l2", DIM, index).search(vectors[:2], 3).is_exact
