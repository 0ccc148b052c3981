"""What the tables would get wrong without a sign: flips, own items, which queries a part has, and intervals."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.judging import RECIPES, Galleries, Judged, Table, own_item_ranks, shares_closed
from benchmarks.paper.transformations import SEEDS, Spec, Vectors
from models.metrics import RetrievalPerQuery
from tests.unit.benchmarks.paper.features import LABELS, FewFeatures, save_h


def _judged(ranks: list[int], own: list[int]) -> Judged:
    found = RetrievalPerQuery(np.array(ranks), np.ones(len(ranks)))
    return Judged((found,), (np.array(own),))


def _rows(text: str) -> dict[tuple[str, str], list[str]]:
    """The cells of a table's first part, by row and part."""
    lines = [line.strip("| ").split(" | ") for line in text.split("\n\n")[0].splitlines()[2:]]
    return {(cells[0], cells[1]): cells[2:] for cells in lines}


def test_flips_are_queries_that_were_hits_and_are_none_and_the_reverse() -> None:
    before = _judged([0, 0, 0, 3, 4], [0] * 5)
    after = _judged([0, 1, 2, 0, 9], [0] * 5)

    assert after.flips(before) == (40.0, 20.0)
    assert before.flips(before) == (0.0, 0.0)


def test_own_items_are_found_first_or_among_so_many() -> None:
    judged = _judged([0] * 4, [0, 1, 9, 10])

    assert judged.own_item_found().tolist() == [25.0]
    assert judged.own_item_found(10).tolist() == [75.0]


def test_the_rank_of_an_own_item_is_how_many_items_are_nearer() -> None:
    generator = np.random.default_rng(1)
    query, gallery = (generator.standard_normal((40, 5), np.float32) for _ in range(2))

    found = own_item_ranks(query, gallery)

    distances = np.linalg.norm(query[:, None] - gallery[None], axis=2)
    np.testing.assert_array_equal(found, (distances < distances.diagonal()[:, None]).sum(axis=1))


def test_without_a_gap_its_closed_share_is_no_number() -> None:
    found = shares_closed(np.array([[1.0, 3.0]]), np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]]))

    np.testing.assert_array_equal(found, [[np.nan, 50.0]])


def test_a_gallery_of_some_classes_has_no_item_of_others(tmp_path: Path) -> None:
    features = FewFeatures(tmp_path)

    galleries = Galleries(features, classes=[1, 4])

    chosen = np.isin(LABELS, [1, 4])
    np.testing.assert_array_equal(galleries.labels, LABELS[chosen])
    np.testing.assert_array_equal(galleries.vectors("old"), features.test("old")[chosen])
    np.testing.assert_array_equal(galleries.second_views("old"), features.second_view("old")[chosen])


def test_a_part_of_the_queries_still_asks_the_whole_gallery(tmp_path: Path) -> None:
    galleries = Galleries(FewFeatures(tmp_path))
    parts = galleries.parts(known=[0, 1])
    table = Table(galleries, parts=parts)

    rows = _rows(table.text())

    hits = _hits(galleries.vectors("old"))
    assert [part.sum() for part in parts.values()] == [60, 20, 40]
    for part, chosen in parts.items():
        assert rows["old/old", part][0] == f"{100 * hits[chosen].mean():.2f}"


def test_a_table_has_old_old_new_h_h_h_and_new_new_by_each_recipe_with_a_deviation_over_the_seeds(
    tmp_path: Path,
) -> None:
    for recipe in RECIPES:
        for seed in SEEDS:
            save_h(tmp_path, Spec("old", None, "new", recipe, seed))
    galleries = Galleries(FewFeatures(tmp_path))
    table = Table(galleries, parts={"all": np.ones(60, bool)})

    table.add_recipes(Spec("old", None, "new"))

    text = table.text()
    rows = _rows(text)
    names = ["old/old", "new/h, paper", "h/h, paper", "new/h, default", "h/h, default", "new/new"]
    assert [name for name, _ in rows] == names
    assert ["±" in rows[name, "all"][0] for name in names] == [False, True, True, True, True, False]
    assert rows["old/old", "all"][3:6] == ["0.0"] * 3
    assert rows["new/new", "all"][3:6] == ["100.0"] * 3
    assert rows["new/new", "all"][6] == "100.00"
    assert "| new/h, paper, against old/old | all |" in text
    assert "| new/h, default, against new/h, paper | all |" in text


def _hits(vectors: Vectors) -> NDArray[np.bool_]:
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    hits: NDArray[np.bool_] = LABELS[distances.argmin(axis=1)] == LABELS
    return hits
