"""Groups: the best neighbour of each label, or of each value of a path, as a dictionary would find them."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.index.protocol import Metric
from tests.networks import image_bytes
from tests.paged import ITEMS, VECTORS, Mirror, asked, ids_of
from tests.problems import check_problem
from tests.scenario import create_gallery, post_images, register_version
from tests.unit.index.exhaustive import METRICS

SEARCH = "/v1/galleries/g/search"
VALUES: list[Any] = ["a", "1", 1, 1.0, True, False, None, [1], {"b": 1}, 0.25, "é"]


def filled(client: TestClient, metric: Metric = "l2", count: int = 400, labels: int = 12) -> Mirror:
    """Return a gallery with labels, some of them missing, and with `metadata.shop.product` of every kind."""
    random = np.random.default_rng(4)
    register_version(client, "v1")
    create_gallery(client, metric=metric)
    mirror = Mirror(metric)
    vectors = random.integers(0, 5, (count, 6)).astype(np.float32)
    vectors[:, 0] += 1
    if metric == "cosine":  # vectors of one direction are equally near but for rounding, which a dictionary does not do
        vectors = random.standard_normal((count, 6)).astype(np.float16).astype(np.float32)
    names = [None if number % 7 == 0 else f"label {random.integers(labels)}" for number in range(count)]
    metadata = [
        {} if number % 9 == 0 else {"shop": {"product": VALUES[number % len(VALUES)]}} for number in range(count)
    ]
    mirror.write(client, [f"item {number}" for number in range(count)], vectors, names, metadata)
    return mirror


def key_of(mirror: Mirror, id_: str, field: str) -> Any:
    """Return what tells an item's group from others: its own id where it has no value."""
    known = mirror.items[id_]
    value = known.label if field == "label" else known.metadata.get("shop", {}).get("product")
    if isinstance(value, str | bool):
        return type(value), value
    return ("number", float(value)) if isinstance(value, int | float) else ("none", id_)


def best_of_each(mirror: Mirror, query: list[float], field: str, but: set[str] = set()) -> list[str]:  # noqa: B006
    best: dict[Any, str] = {}
    for _, id_ in mirror.ranked(np.array(query)):
        if id_ not in but:
            best.setdefault(key_of(mirror, id_, field), id_)
    return list(best.values())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("field", ["label", "metadata.shop.product"])
def test_groups_are_what_a_dictionary_says(client: TestClient, metric: Metric, field: str) -> None:
    mirror, query = filled(client, metric), [1.0, 2, 3, 0, 1, 2]
    for id_ in best_of_each(mirror, query, field)[:3]:
        mirror.delete(client, id_)
    expected = best_of_each(mirror, query, field)

    for k in (1, 5, 40, 1000):
        answer = asked(client, VECTORS, {"vectors": [query], "k": k, "group_by": field})

        assert ids_of(answer) == expected[:k]
        assert answer["complete"] == [True]
        told = [mirror.items[neighbor["id"]] for neighbor in answer["neighbors"][0]]
        values = [each.label if field == "label" else each.metadata.get("shop", {}).get("product") for each in told]
        assert [n["group"] for n in answer["neighbors"][0]] == [
            None if isinstance(value, list | dict) else value for value in values
        ]


def test_groups_go_with_filters_excluded_items_and_a_largest_distance(client: TestClient) -> None:
    mirror, query = filled(client), [1.0, 2, 3, 0, 1, 2]
    excluded = set(best_of_each(mirror, query, "label")[:4])
    passing = {id_ for id_, known in mirror.items.items() if known.label is not None and known.label > "label 3"}
    limit = 4.5
    expected = [
        id_
        for id_ in best_of_each(mirror, query, "label", excluded | (set(mirror.items) - passing))
        if mirror.distance(id_, np.array(query)) <= limit
    ]

    answer = asked(
        client,
        VECTORS,
        {
            "vectors": [query],
            "k": 20,
            "group_by": "label",
            "filter": {"label": {"gt": "label 3"}},
            "exclude_ids": [sorted(excluded)],
            "max_distance": limit,
        },
    )

    assert ids_of(answer) == expected
    assert answer["complete"] == [True]


def test_each_of_many_queries_has_groups_of_its_own(client: TestClient) -> None:
    mirror = filled(client)
    queries = np.random.default_rng(8).integers(0, 5, (30, 6)).astype(float).tolist()

    answer = asked(client, VECTORS, {"vectors": queries, "k": 9, "group_by": "label"})

    assert [[n["id"] for n in own] for own in answer["neighbors"]] == [
        best_of_each(mirror, query, "label")[:9] for query in queries
    ]
    assert answer["complete"] == [True] * 30


def test_groups_of_an_item_and_of_an_image_are_those_of_their_vectors(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client)
    post_images(client, range(12))

    form = client.post(SEARCH, files={"file": ("q", image_bytes(3))}, data={"group_by": "label"}).json()
    raw = client.post(SEARCH, params={"group_by": "label"}, content=image_bytes(3)).json()
    by_item = asked(client, ITEMS, {"ids": ["image-3.png"], "group_by": "metadata.seed", "k": 3})

    assert form == raw
    assert form["complete"] is True
    assert form["neighbors"][0]["id"] == "image-3.png"
    assert sorted(neighbor["group"] for neighbor in form["neighbors"]) == ["class 0", "class 1", "class 2"]
    assert [neighbor["group"] for neighbor in by_item["neighbors"][0]] == [
        int(id_.removeprefix("image-").removesuffix(".png")) for id_ in ids_of(by_item)
    ]


def test_an_answer_says_where_groups_may_be_missing(client: TestClient) -> None:
    # One label has as many of the nearest items as are looked at, so the other one is not reached.
    register_version(client, "v1")
    create_gallery(client)
    mirror = Mirror("l2")
    near, far = 10_050, 5
    vectors = np.concatenate([np.ones((near, 6)), np.full((far, 6), 9)]).astype(np.float32)
    ids = [f"item {number}" for number in range(near + far)]
    mirror.write(client, ids, vectors, ["near"] * near + ["far"] * far)
    body = {"vectors": [[0.0] * 6], "group_by": "label"}

    short, enough = (asked(client, VECTORS, {**body, "k": k}) for k in (2, 1))

    assert [n["group"] for n in short["neighbors"][0]] == [n["group"] for n in enough["neighbors"][0]] == ["near"]
    assert (short["complete"], enough["complete"]) == ([False], [True])


def test_an_answer_that_was_not_asked_for_groups_or_pages_says_nothing_of_them(client: TestClient) -> None:
    filled(client, count=5)

    answer = asked(client, VECTORS, {"vectors": [[1.0] * 6]})

    assert set(answer) == {"model_version", "generation", "revision", "exact", "neighbors"}
    assert all("group" not in neighbor for neighbor in answer["neighbors"][0])


@pytest.mark.parametrize("field", ["id", "origin", "metadata", "metadata.", "colour", "metadata.\0", "x" * 2000, "", 1])
def test_what_cannot_be_grouped_by_is_422(client: TestClient, field: Any) -> None:
    filled(client, count=5)

    check_problem(client.post(VECTORS, json={"vectors": [[1.0] * 6], "group_by": field}), 422)
    if field and isinstance(field, str) and "\0" not in field:
        check_problem(client.post(SEARCH, params={"group_by": field}, content=image_bytes(1)), 422)
