"""Searches over HTTP: the URLs of thumbnails, and what is refused."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.bad_files import BAD_FILES
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import create_gallery, import_vectors, post_images, register_version, search

SEARCH = "/v1/galleries/g/search"


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    """A client whose gallery `g` under v1 has 8 images."""
    register_version(client, "v1")
    create_gallery(client)
    post_images(client, range(8))
    return client


def test_a_neighbour_names_the_url_of_its_thumbnail(gallery: TestClient) -> None:
    odd = "a folder/../ü?# &.png"
    gallery.post(
        "/v1/galleries/g/images", files=[("files", ("x", image_bytes(50)))], data={"items": json.dumps([{"id": odd}])}
    )

    neighbor = search(gallery, 50, k=1)["neighbors"][0]
    thumbnail = gallery.get(neighbor["thumbnail_url"])

    assert neighbor["id"] == odd
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert ".." not in neighbor["thumbnail_url"].split("/")  # a browser would resolve it


def test_a_neighbour_without_a_thumbnail_has_no_url_of_one(gallery: TestClient) -> None:
    create_gallery(gallery, "bare", thumbnails=False)
    post_images(gallery, [1], gallery="bare")
    import_vectors(gallery, ["vector"])

    assert search(gallery, 1, gallery="bare")["neighbors"][0]["thumbnail_url"] is None
    urls = {neighbor["id"]: neighbor["thumbnail_url"] for neighbor in search(gallery, 1, k=20)["neighbors"]}
    assert [id_ for id_, url in urls.items() if url is None] == ["vector"]


@pytest.mark.parametrize("value", ["nan", "inf", "near", "1e999"])
def test_a_largest_distance_that_is_no_number_is_422(gallery: TestClient, value: str) -> None:
    form = gallery.post(SEARCH, files={"file": ("q", image_bytes(1))}, data={"max_distance": value})
    raw = gallery.post(SEARCH, params={"max_distance": value}, content=image_bytes(1))

    assert check_problem(form, 422) == check_problem(raw, 422) == "max_distance is a finite number."


def test_an_id_to_exclude_that_is_none_is_422(gallery: TestClient) -> None:
    file = ("q", image_bytes(1))
    vectors = {"vectors": [[0.0] * 6], "exclude_id": "\0"}

    check_problem(gallery.post(SEARCH, files={"file": file, "exclude_id": file}), 422)
    check_problem(gallery.post(SEARCH, params={"exclude_id": "\0"}, content=image_bytes(1)), 422)
    check_problem(gallery.post(f"{SEARCH}/vectors", json=vectors), 422)


BAD_ITEMS: dict[str, dict[str, Any]] = {
    "no ids": {},
    "an empty list": {"ids": []},
    "an empty id": {"ids": [""]},
    "a number": {"ids": [1]},
    "a NUL": {"ids": ["\0"]},
    "half a surrogate pair": {"ids": ["\ud800"]},
    "too many": {"ids": ["image-1.png"] * 1001},
    "an unknown key": {"ids": ["image-1.png"], "exclude_id": "x"},
    "k of 0": {"ids": ["image-1.png"], "k": 0},
    "too many neighbours": {"ids": ["image-1.png"] * 101, "k": 1000},
    "a distance that is text": {"ids": ["image-1.png"], "max_distance": "near"},
    "a bad filter": {"ids": ["image-1.png"], "filter": {"colour": "red"}},
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_a_bad_query_by_items_is_422(gallery: TestClient, name: str) -> None:
    body = json.dumps(BAD_ITEMS[name]).encode()

    check_problem(gallery.post(f"{SEARCH}/items", content=body, headers={"content-type": "application/json"}), 422)


def test_a_search_by_an_item_that_is_not_there_is_404(gallery: TestClient) -> None:
    detail = check_problem(gallery.post(f"{SEARCH}/items", json={"ids": ["image-1.png", "none"]}), 404)

    assert detail == "Gallery 'g' has no item 'none'."
    check_problem(gallery.post("/v1/galleries/none/search/items", json={"ids": ["x"]}), 404)


@pytest.mark.parametrize("k", ["0", "-1", "1000000", "x", "1.5", ""])
def test_a_bad_k_is_422(gallery: TestClient, k: str) -> None:
    form = gallery.post("/v1/galleries/g/search", files={"file": ("q", image_bytes(1))}, data={"k": k})
    raw = gallery.post("/v1/galleries/g/search", params={"k": k}, content=image_bytes(1))

    check_problem(form, 422)
    check_problem(raw, 422)


@pytest.mark.parametrize("twice", ["k", "filter", "file"])
def test_what_a_form_says_twice_is_422(gallery: TestClient, twice: str) -> None:
    parts: list[tuple[str, tuple[str | None, bytes]]] = [
        ("file", ("q", image_bytes(1))),
        ("k", (None, b"1")),
        ("filter", (None, b"{}")),
    ]
    parts += [part for part in parts if part[0] == twice]

    check_problem(gallery.post("/v1/galleries/g/search", files=parts), 422)


BAD_VECTORS: dict[str, Any] = {
    "wrong dimensions": {"vectors": [[1.0] * 7]},
    "none": {"vectors": []},
    "ragged": {"vectors": [[1.0] * 6, [1.0] * 5]},
    "too large": {"vectors": [[1e300] * 6]},
    "too long": {"vectors": [[0.0] * 6, [1e18, 1e17, 0.0, 0.0, 0.0, 0.0]]},
    "strings": {"vectors": [["x"] * 6]},
    "k of 0": {"vectors": [[1.0] * 6], "k": 0},
    "k of a million": {"vectors": [[1.0] * 6], "k": 1_000_000},
    "unknown key": {"vectors": [[1.0] * 6], "top": 5},
    "bad filter": {"vectors": [[1.0] * 6], "filter": {"colour": "red"}},
    "deep filter": {"vectors": [[1.0] * 6], "filter": {"not": {"not": {"not": {"and": [{"x": 1}]}}}}},
    "NUL in filter": {"vectors": [[1.0] * 6], "filter": {"label": "\0"}},
}


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_a_bad_vector_query_is_422(gallery: TestClient, name: str) -> None:
    check_problem(gallery.post("/v1/galleries/g/search/vectors", json=BAD_VECTORS[name]), 422)


@pytest.mark.parametrize(
    ("gallery_name", "content", "content_type"),
    [
        ("g", b'{"vectors": [[1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1]], "k": 3.0}', "application/json"),
        ("g", b'{"vectors": [[1, 1, 1, 1, 1, 1]], "k": 3}', "application/problem+json; charset=utf-8"),
        ("g", b'{"vectors": [[1, 1, 1, 1, 1, 1]], "k": 3}', "text/plain"),
        ("g", b'{"vectors": [[1, 1, 1, 1, 1, 1]], "k": "3", "top": 1}', "application/json"),
        ("g", b"[]", "application/json"),
        ("g", b"{", "application/json"),
        ("g", b"", "application/json"),
        ("g", b'{"vectors": [[1, 1, 1, 1, 1, 1]], "model_version": "v2"}', "application/json"),
        ("other", b'{"vectors": [[1, 1, 1, 1, 1, 1]], "k": 3}', "application/json"),
        ("-g", b'{"vectors": [[1, 1, 1, 1, 1, 1]], "k": 3}', "application/json"),
    ],
)
def test_a_call_with_and_one_without_parameters_are_answered_and_refused_alike(
    gallery: TestClient, gallery_name: str, content: bytes, content_type: str
) -> None:
    plain, with_parameters = (
        gallery.post(
            f"/v1/galleries/{gallery_name}/search/vectors",
            params=parameters,
            content=content,
            headers={"content-type": content_type, "x-request-id": "same"},
        )
        for parameters in ({}, {"generation": "active"})
    )

    assert (plain.status_code, plain.json()) == (with_parameters.status_code, with_parameters.json())
    assert plain.headers == with_parameters.headers


def test_nan_in_a_query_is_422(gallery: TestClient) -> None:
    body = '{"vectors": [[NaN, 1, 1, 1, 1, 1]]}'

    check_problem(
        gallery.post(
            "/v1/galleries/g/search/vectors", content=body.encode(), headers={"content-type": "application/json"}
        ),
        422,
    )


def test_vectors_of_another_version_are_409(gallery: TestClient) -> None:
    body = {"vectors": [[1.0] * 6], "model_version": "v2"}

    check_problem(gallery.post("/v1/galleries/g/search/vectors", json=body), 409)


def test_searching_with_what_is_no_image_is_422(gallery: TestClient) -> None:
    for data in BAD_FILES.values():
        check_problem(gallery.post("/v1/galleries/g/search", content=data), 422)
