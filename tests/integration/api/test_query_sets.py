"""Query sets over HTTP: what is stored of them, what is refused, and what is left when they are deleted."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from tests.bad_files import BAD_FILES
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.registrations import artifacts, sha256
from tests.scenario import create_gallery, post_images, register_version

SETS = "/v1/galleries/g/query-sets"


@pytest.fixture
def networks(gallery: TestClient, settings: Settings) -> set[str]:
    """The digests of what the blob store has without any query."""
    register_version(gallery, "v2")
    return set(artifacts(settings))


def post_images_as_queries(
    client: httpx.Client, seeds: list[int], name: str = "asked", gallery: str = "g", **said: Any
) -> httpx.Response:
    files = [("files", (f"q{seed}.png", image_bytes(seed))) for seed in seeds]
    queries = json.dumps([{"label": "class 0", **said} for _ in seeds])
    return client.post(f"/v1/galleries/{gallery}/query-sets", files=files, data={"name": name, "queries": queries})


def table(**columns: object) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def vectors(count: int, dim: int = 6, value: float = 1.0) -> list[np.ndarray]:
    return [np.full(dim, value, np.float32) for _ in range(count)]


def post_vectors_as_queries(
    client: httpx.Client, body: bytes, name: str = "asked", version: str = "v1"
) -> httpx.Response:
    return client.post(SETS, params={"name": name, "model_version": version}, content=body)


def names(client: httpx.Client) -> list[str]:
    return [line["name"] for line in client.get(SETS).json()["items"]]


def test_a_set_of_images_is_shown_with_what_is_in_it(gallery: TestClient) -> None:
    post_images(gallery, range(3))  # of classes 0, 1 and 2
    files = [("files", (f"q{seed}.png", image_bytes(seed))) for seed in (10, 11, 12)]
    queries = [
        {"label": "class 1", "slice": "night"},
        {"id": "other", "relevant": ["image-0.png", "missing", "missing"], "item_id": "missing too"},
        {"label": "class 7"},
    ]

    answer = gallery.post(SETS, files=files, data={"name": "asked", "queries": json.dumps(queries)})

    assert answer.status_code == 201
    view = answer.json()
    assert gallery.get(answer.headers["location"]).json() == view
    assert gallery.get(SETS).json()["items"] == [view]
    del view["created_at"]
    assert view == {
        "name": "asked",
        "kind": "images",
        "queries": 3,
        "labelled": 2,
        "unknown_ids": 2,
        "unknown_labels": 1,
        "vectors": {},
    }


def test_what_is_unknown_is_known_once_an_item_has_it(gallery: TestClient) -> None:
    assert post_images_as_queries(gallery, [10], label=None, relevant=["image-0.png"]).json()["unknown_ids"] == 1

    post_images(gallery, [0])
    known = gallery.get(f"{SETS}/asked").json()
    gallery.delete("/v1/galleries/g/items/image-0.png")
    gone = gallery.get(f"{SETS}/asked").json()

    assert (known["unknown_ids"], gone["unknown_ids"]) == (0, 1)


def test_vectors_under_another_version_join_the_queries_with_their_ids(gallery: TestClient, networks: set[str]) -> None:
    first = table(id=["a", "b"], embedding=vectors(2), label=["x", None], relevant=[None, ["i", "j"]])
    assert post_vectors_as_queries(gallery, first).json()["vectors"] == {"v1": 2}

    same = table(id=["b", "c"], embedding=vectors(2, 8), label=[None, "y"], relevant=[["i", "j"], []])
    answer = post_vectors_as_queries(gallery, same, version="v2")

    assert answer.status_code == 201
    view = answer.json()
    assert (view["kind"], view["queries"], view["labelled"]) == ("vectors", 3, 2)
    assert view["vectors"] == {"v1": 2, "v2": 2}


def test_an_arrow_stream_is_taken_too(gallery: TestClient) -> None:
    rows = pa.table({"id": ["a"], "embedding": vectors(1), "label": ["x"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)

    assert post_vectors_as_queries(gallery, sink.getvalue().to_pybytes()).json()["queries"] == 1


TABLES: dict[str, dict[str, object]] = {
    "large lists": {"relevant": pa.array([["i"], ["i", "j"]], pa.large_list(pa.large_string()))},
    "no relevant at all": {"relevant": pa.nulls(2), "label": ["x", "y"]},
    "empty lists": {"relevant": [[], ["i"]], "label": ["x", None]},
    "a category": {"label": pa.array(["x", "y"]).dictionary_encode()},
    "halves": {"embedding": [vector.astype(np.float16) for vector in vectors(2)], "label": ["x", "y"]},
    "a slice and an item": {"label": ["x", "y"], "slice": ["night", None], "item_id": [None, "i"]},
}


@pytest.mark.parametrize("name", TABLES)
def test_columns_may_come_in_every_type_that_holds_them(gallery: TestClient, name: str) -> None:
    body = table(**{"id": ["a", "b"], "embedding": vectors(2), **TABLES[name]})

    answer = post_vectors_as_queries(gallery, body)

    assert answer.status_code == 201, answer.text
    assert answer.json()["queries"] == 2


REFUSED_AS_OTHER: dict[str, bytes] = {
    "another label": table(id=["a"], embedding=vectors(1, 8), label=["z"]),
    "another item": table(id=["a"], embedding=vectors(1, 8), item_id=["other"]),
    "another slice": table(id=["a"], embedding=vectors(1, 8), slice=["other"]),
    "other relevant items": table(id=["b"], embedding=vectors(1, 8), relevant=[["j"]]),
}


@pytest.mark.parametrize("name", REFUSED_AS_OTHER)
def test_what_is_said_otherwise_of_a_query_is_409_and_adds_nothing(
    gallery: TestClient, networks: set[str], name: str
) -> None:
    first = table(id=["a", "b"], embedding=vectors(2), label=["x", None], relevant=[None, ["i"]])
    before = post_vectors_as_queries(gallery, first).json()

    refused = post_vectors_as_queries(gallery, REFUSED_AS_OTHER[name], version="v2")

    check_problem(refused, 409)
    assert refused.json()["errors"][0]["query"] in ("a", "b")
    assert gallery.get(f"{SETS}/asked").json() == before


def test_a_vector_is_given_once_and_images_take_none(gallery: TestClient, networks: set[str]) -> None:
    one = table(id=["a"], embedding=vectors(1), label=["x"])
    assert post_vectors_as_queries(gallery, one).is_success
    two = table(id=["a", "b"], embedding=vectors(2), label=["x", "x"])

    check_problem(post_vectors_as_queries(gallery, two), 409, "1 of the queries have a vector under 'v1' already")
    assert gallery.get(f"{SETS}/asked").json()["queries"] == 1
    assert post_images_as_queries(gallery, [1], "images").is_success
    check_problem(post_vectors_as_queries(gallery, one, "images"), 409)
    check_problem(post_images_as_queries(gallery, [2], "images"), 409)
    check_problem(post_images_as_queries(gallery, [2], "asked"), 409)


BAD_QUERIES: dict[str, object] = {
    "not json": "{",
    "not a list": {},
    "wrong count": [],
    "unknown key": [{"labels": "x"}],
    "number as label": [{"label": 5}],
    "nothing to find": [{"slice": "x"}],
    "label and relevant": [{"label": "x", "relevant": ["a"]}],
    "nothing relevant": [{"relevant": []}],
    "relevant is text": [{"relevant": "a"}],
    "empty relevant id": [{"relevant": [""]}],
    "NUL in relevant id": [{"relevant": ["a\0"]}],
    "surrogate as id": '[{"id": "\\ud800", "label": "x"}]',
    "surrogate as label": '[{"label": "\\ud800"}]',
    "NUL in slice": [{"label": "x", "slice": "\0"}],
    "long id": [{"id": "x" * 513, "label": "x"}],
    "long label": [{"label": "x" * 513}],
    "control character in item": [{"label": "x", "item_id": "a\n"}],
    "too many relevant": [{"relevant": [str(number) for number in range(1_001)]}],
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", BAD_QUERIES)
def test_a_bad_queries_part_is_422_and_stores_nothing(
    gallery: TestClient, settings: Settings, networks: set[str], name: str
) -> None:
    queries = BAD_QUERIES[name]
    part = queries if isinstance(queries, str) else json.dumps(queries)

    answer = gallery.post(
        SETS, files=[("files", ("x", image_bytes(1)))], data={"name": "asked", "queries": part.encode()}
    )

    check_problem(answer, 422)
    assert names(gallery) == []
    assert set(artifacts(settings)) == networks


def test_images_that_cannot_be_read_are_named_and_no_other_is_stored(
    gallery: TestClient, settings: Settings, networks: set[str]
) -> None:
    contents = {"good": image_bytes(1), **BAD_FILES, "fine": image_bytes(2)}
    files = [("files", (name, data)) for name, data in contents.items()]
    queries = json.dumps([{"label": "x"} for _ in contents])

    answer = gallery.post(SETS, files=files, data={"name": "asked", "queries": queries})

    check_problem(answer, 422, f"{len(BAD_FILES)} of the queries")
    assert {error["query"] for error in answer.json()["errors"]} == set(BAD_FILES)
    assert [error["position"] for error in answer.json()["errors"]] == list(range(1, len(BAD_FILES) + 1))
    assert names(gallery) == []
    assert set(artifacts(settings)) == networks


BAD_TABLES: dict[str, bytes] = {
    "wrong dimensions": table(id=["a"], embedding=vectors(1, 7), label=["x"]),
    "NaN": table(id=["a"], embedding=vectors(1, 6, float("nan")), label=["x"]),
    "infinite as float32": table(id=["a"], embedding=[[1e300] * 6], label=["x"]),
    "ragged": table(id=["a", "b"], embedding=[[1.0] * 6, [1.0] * 5], label=["x", "x"]),
    "null vector": table(id=["a", "b"], embedding=[[1.0] * 6, None], label=["x", "x"]),
    "id twice": table(id=["a", "a"], embedding=vectors(2), label=["x", "x"]),
    "null id": table(id=["a", None], embedding=vectors(2), label=["x", "x"]),
    "no id": table(embedding=vectors(1), label=["x"]),
    "nothing to find": table(id=["a"], embedding=vectors(1)),
    "label and relevant": table(id=["a"], embedding=vectors(1), label=["x"], relevant=[["i"]]),
    "relevant is text": table(id=["a"], embedding=vectors(1), relevant=["i"]),
    "relevant is numbers": table(id=["a"], embedding=vectors(1), relevant=[[1]]),
    "null in relevant": table(id=["a"], embedding=vectors(1), relevant=[["i", None]]),
    "too many relevant": table(id=["a"], embedding=vectors(1), relevant=[[str(number) for number in range(1_001)]]),
    "number as slice": table(id=["a"], embedding=vectors(1), label=["x"], slice=[1]),
    "unknown column": table(id=["a"], embedding=vectors(1), label=["x"], metadata=["{}"]),
    "no rows": table(id=pa.array([], pa.string()), embedding=pa.array([], pa.list_(pa.float32()))),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_422_and_stores_nothing(gallery: TestClient, name: str) -> None:
    check_problem(post_vectors_as_queries(gallery, BAD_TABLES[name]), 422)
    assert names(gallery) == []


@pytest.mark.parametrize("body", [b"", b"PAR1", b"hello"])
def test_a_body_that_is_no_table_is_415(gallery: TestClient, body: bytes) -> None:
    check_problem(post_vectors_as_queries(gallery, body), 415)


def test_parameters_and_bodies_that_do_not_fit_are_refused(gallery: TestClient) -> None:
    body = table(id=["a"], embedding=vectors(1), label=["x"])
    files = {"files": ("x", image_bytes(1))}
    form = {"name": "asked", "queries": '[{"label": "x"}]'}

    check_problem(gallery.post(SETS, content=body), 422)
    check_problem(gallery.post(SETS, params={"name": "asked"}, content=body), 422)
    check_problem(gallery.post(SETS, params={"name": "no name", "model_version": "v1"}, content=body), 422)
    check_problem(post_vectors_as_queries(gallery, body, version="v9"), 404)
    check_problem(gallery.post("/v1/galleries/other/query-sets", files=files, data=form), 404)
    check_problem(gallery.post(SETS, files=files, data=form, params={"model_version": "v1"}), 422)
    check_problem(gallery.post(SETS, files=files, data={"queries": form["queries"]}), 422)
    check_problem(gallery.post(SETS, files=files, data={**form, "name": "no name"}), 422)
    check_problem(gallery.post(SETS, files=files, data={"name": "asked"}), 422)
    check_problem(gallery.post(SETS, files=files, data={**form, "more": "x"}), 422)
    check_problem(gallery.get(f"{SETS}/asked"), 404)
    check_problem(gallery.delete(f"{SETS}/asked"), 404)
    assert names(gallery) == []


def test_of_requests_at_once_for_one_name_one_succeeds_and_the_others_store_nothing(
    gallery: TestClient, settings: Settings, networks: set[str]
) -> None:
    with ThreadPoolExecutor() as threads:
        sent = [threads.submit(post_images_as_queries, gallery, [seed]) for seed in range(4)]
        answers = sorted(request.result().status_code for request in sent)

    assert answers == [201, 409, 409, 409]
    assert len(set(artifacts(settings)) - networks) == 1


def test_vectors_of_several_versions_at_once_make_one_set(gallery: TestClient, networks: set[str]) -> None:
    bodies = {
        "v1": table(id=["a", "b"], embedding=vectors(2), label=["x", "x"]),
        "v2": table(id=["a", "b"], embedding=vectors(2, 8), label=["x", "x"]),
    }

    with ThreadPoolExecutor() as threads:
        sent = [threads.submit(post_vectors_as_queries, gallery, body, "asked", v) for v, body in bodies.items()]
        answers = [request.result().status_code for request in sent]

    assert answers == [201, 201]
    assert gallery.get(f"{SETS}/asked").json()["vectors"] == {"v1": 2, "v2": 2}


def test_sets_are_listed_in_pages(gallery: TestClient) -> None:
    for name in ("one", "two", "three"):
        assert post_images_as_queries(gallery, [1], name).is_success

    first = gallery.get(SETS, params={"limit": 2}).json()
    second = gallery.get(SETS, params={"limit": 2, "cursor": first["next_cursor"]}).json()

    assert [line["name"] for line in [*first["items"], *second["items"]]] == ["one", "two", "three"]
    assert second["next_cursor"] is None


def test_deleting_a_set_removes_the_images_that_no_other_has(
    gallery: TestClient, settings: Settings, networks: set[str]
) -> None:
    for name, seeds in (("one", [1, 2]), ("two", [2, 3])):
        assert post_images_as_queries(gallery, seeds, name).is_success

    assert gallery.delete(f"{SETS}/one").status_code == 204

    assert names(gallery) == ["two"]
    assert set(artifacts(settings)) == networks | {sha256(image_bytes(2)), sha256(image_bytes(3))}
    assert post_images_as_queries(gallery, [1], "one").status_code == 201


def test_deleting_a_gallery_removes_its_sets_and_the_images_that_no_other_has(
    gallery: TestClient, settings: Settings, networks: set[str]
) -> None:
    create_gallery(gallery, "other")
    assert post_images_as_queries(gallery, [1, 2]).is_success
    assert post_images_as_queries(gallery, [2, 3], gallery="other").is_success

    assert gallery.delete("/v1/galleries/g").status_code == 204

    assert set(artifacts(settings)) == networks | {sha256(image_bytes(2)), sha256(image_bytes(3))}
    create_gallery(gallery)
    assert names(gallery) == []


def test_a_version_that_only_queries_have_vectors_of_can_be_deleted(gallery: TestClient, networks: set[str]) -> None:
    body = table(id=["a"], embedding=vectors(1, 8), label=["x"])
    assert post_vectors_as_queries(gallery, body, version="v2").is_success

    assert gallery.delete("/v1/model-versions/v2").status_code == 204

    assert gallery.get(f"{SETS}/asked").json()["vectors"] == {}
