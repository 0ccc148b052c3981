"""Pairs that a training learns from: which items are drawn, and that vectors of both versions are joined by id."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from gallery_upgrade.arrays import vectors_table
from gallery_upgrade.pairs import Drawn, draw, network_of, pair

ITEMS = [(f"{number}.png", ("a", "b", "c", "c")[number % 4], f"s3://x/{number}.png") for number in range(400)]


def some_vectors(ids: list[str], dim: int, *, side: int | None = None) -> pa.Table:
    """Return vectors that say which id they are of: the first number is the id's."""
    numbers = np.array([float(name.removesuffix(".png")) for name in ids], np.float32)
    embedding = np.random.default_rng(dim).normal(size=(len(ids), dim)).astype(np.float32)
    embedding[:, 0] = numbers
    return vectors_table(ids, embedding, None if side is None else np.repeat(numbers[:, None], side, axis=1))


def numbers_of(table: pa.Table, name: str) -> list[float]:
    return [vector[0] for vector in table[name].to_pylist()]


def test_items_are_drawn_by_seed_in_any_order_and_of_each_label_by_its_share() -> None:
    drawn = draw(ITEMS, 40, seed=1)

    assert len(set(drawn)) == 40
    assert drawn[0].image_uri == f"s3://x/{drawn[0].id}"
    labels = {item_id: label for item_id, label, _ in ITEMS}
    assert Counter(labels[each.id] for each in drawn) == {"a": 10, "b": 10, "c": 20}
    assert draw(reversed(ITEMS), 40, seed=1) == drawn
    assert draw(ITEMS, 40, seed=2) != drawn


def test_fewer_items_than_are_wanted_are_all_drawn() -> None:
    assert sorted(draw([("a", None, None), ("b", "x", None)], 10, seed=0)) == [Drawn("a"), Drawn("b")]
    assert draw([], 10, seed=0) == []


def test_vectors_of_the_same_ids_are_paired_whatever_their_order() -> None:
    ids = [f"{number}.png" for number in range(100)]
    stored = some_vectors(ids, 6, side=3).append_column("label", pa.array(["x"] * 100))
    encoded = some_vectors([*ids[90:], *ids[:5], "777.png"], 8)

    found = pair(iter([stored.slice(0, 30), stored.slice(30)]), iter([encoded.slice(0, 3), encoded.slice(3)]))

    assert found.missing == 1
    table = found.table
    assert table.column_names == ["embedding_from", "side_information_from", "embedding_to", "label"]
    assert sorted(numbers_of(table, "embedding_from")) == [*range(5), *range(90, 100)]
    assert numbers_of(table, "embedding_from") == numbers_of(table, "embedding_to")
    assert numbers_of(table, "embedding_from") == numbers_of(table, "side_information_from")
    assert (len(table["embedding_to"][0]), len(table["embedding_from"][0])) == (8, 6)


def test_a_gallery_is_read_no_further_than_all_ids_are_found() -> None:
    stored = some_vectors([f"{number}.png" for number in range(20)], 6)

    def parts() -> Iterator[pa.Table]:
        yield stored.slice(0, 10)
        raise AssertionError("nothing is left to be found")

    assert pair(parts(), iter([some_vectors(["3.png"], 8)])).table.num_rows == 1


def test_float16_and_labels_that_not_every_item_has_do_no_harm() -> None:
    stored = some_vectors(["1.png", "2.png"], 6)
    half = vectors_table(["2.png", "1.png"], np.array([[2, 0], [1, 0]], np.float16), None)

    found = pair([stored.append_column("label", pa.array(["x", None]))], [half]).table

    assert found.column_names == ["embedding_from", "embedding_to"]
    assert found.schema.field("embedding_to").type.value_type == pa.float32()
    assert sorted(numbers_of(found, "embedding_to")) == [1, 2]


@pytest.mark.parametrize(
    ("encoded", "sentence"),
    [
        (some_vectors(["1.png", "1.png"], 8), "occurs twice"),
        (some_vectors(["9.png"], 8), "None of the ids"),
        (pa.table({"id": ["1.png"]}), "embedding is missing"),
        (pa.table({"id": ["1.png", "2.png"], "embedding": [[1.0, 2.0], [1.0]]}), "several dimensions"),
    ],
)
def test_vectors_that_cannot_be_paired_are_refused_in_a_sentence(encoded: pa.Table, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pair([some_vectors(["1.png", "2.png"], 6)], [encoded])


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"members": 2, "inner_dim": 1024, "linear_share": 1.0}, "the linear map alone, in closed form"),
        (
            {"members": 2, "inner_dim": 256, "linear_share": 0.3},
            "2 MLPs of width 256, and 30% of the linear map beside",
        ),
        ({"members": 1, "inner_dim": 2048}, "an MLP of width 2048"),
    ],
)
def test_what_h_is_is_said_in_words(choices: dict[str, float], words: str) -> None:
    assert network_of(choices) == words
