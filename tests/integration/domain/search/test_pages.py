"""Pages of neighbours: each once, in one order, whatever is written between two of them and whoever answers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from service.app import create_app
from service.domain.search.cursors import MAX_PAGED
from service.index.protocol import Metric
from service.settings import Settings
from tests.networks import image_bytes
from tests.paged import ITEMS, VECTORS, Mirror, all_pages, asked, ids_of
from tests.postgres_search import search_in_postgres
from tests.problems import check_problem
from tests.rebuilds import leftovers, rebuild, served, soon_due
from tests.scenario import create_gallery, create_upgradable_gallery, post_images, register_version, start_upgrade
from tests.unit.index.exhaustive import METRICS
from tests.working import run_until
from workers.app import WorkerParts

SEARCH = "/v1/galleries/g/search"
LABELS = ["cat", "dog", None]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return soon_due(settings)


@pytest.fixture
def other(client: TestClient, settings: Settings) -> Iterator[TestClient]:
    """A second API process' application beside the first, with replicas of its own."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as other:
        yield other


def few(metric: Metric, random: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Return vectors of which many are equally near to a query; none is zero. Under cosine that are equal ones alone:
    others of one direction are equally near but for rounding, which a dictionary does not do."""
    if metric == "cosine":
        different = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float16).astype(np.float32)
        return different[random.integers(0, len(different), count)]
    vectors = random.integers(0, 3, (count, 6)).astype(np.float32)
    vectors[:, 0] += 1
    return vectors


def filled(client: TestClient, metric: Metric, random: np.random.Generator, count: int, index: str = "auto") -> Mirror:
    register_version(client, "v1")
    create_gallery(client, metric=metric, index=index)
    mirror = Mirror(metric)
    labels = [LABELS[number % 3] for number in range(count)]
    mirror.write(client, [f"item {number}" for number in range(count)], few(metric, random, count), labels)
    return mirror


def change(mirror: Mirror, client: TestClient, random: np.random.Generator) -> set[str]:
    """Write or delete some items, and return which."""
    some = [str(id_) for id_ in random.choice(sorted(mirror.items), 3, replace=False)]
    mirror.delete(client, some[0])
    mirror.write(client, some[1:], few(mirror.metric, random, 2), ["cat", "dog"])
    new = f"new {len(mirror.came)}"
    mirror.write(client, [new], few(mirror.metric, random, 1), ["cat"])
    return {*some, new}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("condition", [None, {"label": {"in": ["cat"]}}])
def test_pages_are_what_a_dictionary_says_although_it_is_written_to_between_them(
    client: TestClient, other: TestClient, metric: Metric, condition: dict[str, Any] | None
) -> None:
    random = np.random.default_rng(5)
    mirror = filled(client, metric, random, 300)
    query = few(metric, random, 1)[0].astype(np.float64)
    excluded = ["item 3", "item 6"]
    body = {"vectors": [query.tolist()], "filter": condition, "exclude_ids": [excluded]}
    left = [
        pair
        for pair in mirror.ranked(query)
        if pair[1] not in excluded and (condition is None or mirror.items[pair[1]].label == "cat")
    ]
    cursor: str | None = "*"
    revisions, pages = set(), 0

    while cursor is not None:
        k = int(random.integers(1, 40))
        page = asked((client, other)[pages % 2], VECTORS, {**body, "k": k, "cursor": cursor})

        assert ids_of(page) == [id_ for _, id_ in left[:k]]
        np.testing.assert_allclose([n["distance"] for n in page["neighbors"][0]], [d for d, _ in left[:k]], atol=1e-4)
        assert page["exact"]
        cursor, left = page["next_cursor"], left[k:]
        revisions.add(page["revision"])
        pages += 1
        touched = change(mirror, (other, client)[pages % 2], random)
        left = [pair for pair in left if pair[1] not in touched]
    assert left == []
    assert len(revisions) == 1
    assert pages > 3


@pytest.mark.parametrize("index", ["hnsw", "ivf_sq8"])
def test_pages_go_on_alike_when_rows_have_moved_into_a_file_that_rounds_them(
    client: TestClient, worker: WorkerParts, index: str
) -> None:
    random = np.random.default_rng(7)
    mirror = filled(client, "cosine", random, 10, index)
    spread = random.standard_normal((3_000, 6)).astype(np.float16).astype(np.float32)
    mirror.write(client, [f"spread {number}" for number in range(3_000)], spread, ["cat"] * 3_000)
    query = random.standard_normal(6).astype(np.float32).tolist()
    with worker.database.session_scope() as session:
        expected = search_in_postgres(session, 1, "cosine", query, 1_200)
    pages = all_pages(client, VECTORS, {"vectors": [query], "k": 300})

    found = next(pages)["neighbors"][0]
    rebuild(worker, client)
    found += [neighbor for _ in range(3) for neighbor in next(pages)["neighbors"][0]]

    assert leftovers(served(client).index) == (0, 0)
    assert [(neighbor["id"], neighbor["distance"]) for neighbor in found] == expected


def test_more_equally_near_items_than_an_index_is_asked_for_come_by_their_ids(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client)
    mirror, count = Mirror("l2"), 17_000
    ids = [f"same {number}" for number in range(count)]
    mirror.write(client, ids, np.ones((count, 6), np.float32), [None] * count)
    pages = all_pages(client, VECTORS, {"vectors": [[0.0] * 6], "k": 1000})

    found = [id_ for _ in range(MAX_PAGED // 1000) for id_ in ids_of(next(pages))]

    assert found == ids[:MAX_PAGED]


def test_pages_end_at_a_depth_that_is_said(client: TestClient) -> None:
    random = np.random.default_rng(3)
    mirror = filled(client, "l2", random, MAX_PAGED + 500)
    query = random.standard_normal(6).astype(np.float32).astype(np.float64)
    body = {"vectors": [query.tolist()], "k": 999}
    expected = [id_ for _, id_ in mirror.ranked(query)][:MAX_PAGED]

    found: list[str] = []
    cursor = "*"
    for _ in range(MAX_PAGED // 999 + 1):
        page = asked(client, VECTORS, {**body, "cursor": cursor})
        found += ids_of(page)
        cursor = page["next_cursor"]

    assert len(found) == len(set(found)) == MAX_PAGED
    assert set(found) == set(expected)
    detail = check_problem(client.post(VECTORS, json={**body, "cursor": cursor}), 422)
    assert detail == "The pages of a query end at its 10,000th neighbour; narrow it by a filter."


def test_a_page_by_an_image_an_item_and_a_vector_is_the_same(client: TestClient) -> None:
    register_version(client, "v1")
    create_gallery(client)
    post_images(client, range(12))
    whole = client.post(SEARCH, params={"k": 12}, content=image_bytes(3)).json()["neighbors"]
    ids = [neighbor["id"] for neighbor in whole]

    first = client.post(SEARCH, params={"k": 5, "cursor": "*"}, content=image_bytes(3)).json()
    form = {"k": "7", "cursor": first["next_cursor"]}
    second = client.post(SEARCH, files={"file": ("q", image_bytes(3))}, data=form).json()
    by_item = list(all_pages(client, ITEMS, {"ids": ["image-3.png"], "k": 4}))

    assert [neighbor["id"] for page in (first, second) for neighbor in page["neighbors"]] == ids
    assert second["next_cursor"] is None
    assert [id_ for page in by_item for id_ in ids_of(page)] == ids[1:]
    np.testing.assert_allclose(
        [neighbor["distance"] for neighbor in first["neighbors"]],
        [neighbor["distance"] for neighbor in whole[:5]],
        atol=1e-5,
    )


def test_a_largest_distance_ends_the_pages(client: TestClient) -> None:
    mirror = filled(client, "l2", np.random.default_rng(2), 200)
    query = np.array([1.0, 0, 0, 0, 0, 0])
    near = [id_ for distance, id_ in mirror.ranked(query) if distance <= 2]

    pages = list(all_pages(client, VECTORS, {"vectors": [query.tolist()], "k": 7, "max_distance": 2}))

    assert [id_ for page in pages for id_ in ids_of(page)] == near
    assert len(pages) == -(-len(near) // 7)


def test_a_cursor_keeps_to_its_generation_and_is_410_when_that_is_gone(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(12))
    body = {"ids": ["image-3.png"], "k": 4}
    first = asked(client, ITEMS, {**body, "cursor": "*"})
    upgrade = start_upgrade(client, "v2", cutover="auto")
    run_until(worker, client, upgrade, "live")

    second = asked(client, ITEMS, {**body, "cursor": first["next_cursor"]})
    afresh = asked(client, ITEMS, {**body, "cursor": "*"})
    assert client.post(f"/v1/upgrades/{upgrade}/finalize").is_success
    gone = client.post(ITEMS, json={**body, "cursor": second["next_cursor"]})

    assert second["generation"] == first["generation"] != afresh["generation"]
    assert (second["model_version"], afresh["model_version"]) == ("v1", "v2")
    assert "is not stored" in check_problem(gone, 410)


def test_an_item_that_was_written_since_the_first_page_has_no_next_one(client: TestClient) -> None:
    filled(client, "l2", np.random.default_rng(2), 20)
    body = {"ids": ["item 3"], "k": 4}
    first = asked(client, ITEMS, {**body, "cursor": "*"})
    assert client.patch("/v1/galleries/g/items/item 3", json={"label": "other"}).is_success

    detail = check_problem(client.post(ITEMS, json={**body, "cursor": first["next_cursor"]}), 410)

    assert detail == "The item that is asked by was written since the first page; begin again with it."


def test_a_cursor_is_of_its_own_query_alone(client: TestClient) -> None:
    filled(client, "l2", np.random.default_rng(2), 20)
    create_gallery(client, "empty")
    body: dict[str, Any] = {"vectors": [[1.0] * 6], "k": 4}
    cursor = asked(client, VECTORS, {**body, "cursor": "*"})["next_cursor"]
    others: list[dict[str, Any]] = [
        {"vectors": [[2.0] * 6]},
        {"filter": {"label": "cat"}},
        {"max_distance": 3},
        {"exclude_id": "item 1"},
        {"exclude_ids": [["item 1"]]},
        {"model_version": "v1"},
    ]

    for other in others:
        detail = check_problem(client.post(VECTORS, json={**body, **other, "cursor": cursor}), 422)
        assert detail.startswith("The cursor is of another query")
    check_problem(client.post(VECTORS, json={**body, "cursor": cursor}, params={"generation": 1}), 422)
    check_problem(client.post("/v1/galleries/empty/search/vectors", json={**body, "cursor": cursor}), 422)
    check_problem(client.post(ITEMS, json={"ids": ["item 1"], "cursor": cursor}), 422)
    check_problem(client.post(SEARCH, params={"cursor": cursor}, content=image_bytes(1)), 422)
    assert len(ids_of(asked(client, VECTORS, {**body, "k": 9, "cursor": cursor}))) == 9


@pytest.mark.parametrize(
    "wrong",
    [
        {"cursor": "x"},
        {"cursor": ""},
        {"cursor": "*" * 600},
        {"cursor": 1},
        {"cursor": "*", "group_by": "label"},
        {"cursor": "*", "vectors": [[1.0] * 6] * 2},
        {"cursor": "*", "filter": {"colour": "red"}},
        {"cursor": "*", "vectors": [[1e300] * 6]},
    ],
)
def test_a_bad_page_is_422(client: TestClient, wrong: dict[str, Any]) -> None:
    filled(client, "l2", np.random.default_rng(2), 5)

    check_problem(client.post(VECTORS, json={"vectors": [[1.0] * 6], **wrong}), 422)


def test_an_empty_gallery_has_one_page(gallery: TestClient) -> None:
    (page,) = all_pages(gallery, VECTORS, {"vectors": [[1.0] * 6]})

    assert page["neighbors"] == [[]]


def test_a_zero_vector_is_paged_under_cosine(client: TestClient) -> None:
    mirror = filled(client, "cosine", np.random.default_rng(2), 30)

    pages = list(all_pages(client, VECTORS, {"vectors": [[0.0] * 6], "k": 11}))

    assert [id_ for page in pages for id_ in ids_of(page)] == list(mirror.items)
    assert {n["distance"] for page in pages for n in page["neighbors"][0]} == {1.0}
