"""Import of vectors as Arrow streams and Parquet: forms of columns, replacement, and refusals that leave nothing."""

import datetime
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from tests.scenario import DIMS, create_gallery, post_images, register_version, search

IDS = ["a", "b", "c", "d"]
# float16 numbers, so that every column type says the same and what is stored is exact.
EMBEDDING = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float16)
SIDE = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float16)


def lists(values: np.ndarray, kind: Any = None) -> pa.Array:
    return pa.array(values.astype(np.float32).tolist(), kind or pa.list_(pa.float32()))


def table(**columns: Any) -> pa.Table:
    """Return a table that can be imported, with `columns` in place of its own."""
    return pa.table({"id": IDS, "embedding": lists(EMBEDDING), "side_information": lists(SIDE)} | columns)


def arrow(content: pa.Table, rows_per_batch: int = 3) -> bytes:
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, content.schema) as writer:
        writer.write_table(content, rows_per_batch)
    return stream.getvalue()


def parquet(content: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(content, stream, row_group_size=3)
    return stream.getvalue()


def post(client: TestClient, body: bytes, gallery: str = "g") -> None:
    answer = client.post(f"/v1/galleries/{gallery}/embeddings", content=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"count": len(IDS)}


def nearest(client: TestClient, queries: np.ndarray, gallery: str = "g") -> list[tuple[str, str, float]]:
    """Return each query's nearest neighbour: id, origin and distance."""
    answer = client.post(f"/v1/galleries/{gallery}/search/vectors", json={"vectors": queries.tolist(), "k": 1})
    found = [neighbors[0] for neighbors in answer.json()["neighbors"]]
    return [(neighbor["id"], neighbor["origin"], neighbor["distance"]) for neighbor in found]


FORMS: dict[str, tuple[Any, Any]] = {
    "list of float16": (pa.list_(pa.float16()), pa.list_(pa.float16())),
    "list of float32": (pa.list_(pa.float32()), pa.list_(pa.float32())),
    "list of float64": (pa.list_(pa.float64()), pa.list_(pa.float64())),
    "large list": (pa.large_list(pa.float32()), pa.large_list(pa.float16())),
    "fixed-size list": (pa.list_(pa.float32(), 6), pa.list_(pa.float32(), 5)),
    "fixed-size list of float16": (pa.list_(pa.float16(), 6), pa.list_(pa.float16(), 5)),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_vector_column_is_stored_exactly(gallery: TestClient, name: str) -> None:
    embedding_kind, side_kind = FORMS[name]
    content = table(embedding=lists(EMBEDDING, embedding_kind), side_information=lists(SIDE, side_kind))

    for body in (arrow(content), parquet(content)):
        post(gallery, body)

        assert nearest(gallery, EMBEDDING) == [(id_, "imported", 0.0) for id_ in IDS]


def test_a_version_without_side_information_takes_none(client: TestClient) -> None:
    register_version(client, "v3")
    create_gallery(client, version="v3", dtype="float32")
    embedding = np.random.default_rng(2).standard_normal((4, DIMS["v3"][0])).astype(np.float32)
    content = pa.table({"id": IDS, "embedding": lists(embedding)})

    post(client, arrow(content))
    refused = client.post(
        "/v1/galleries/g/embeddings", content=parquet(content.append_column("side_information", lists(SIDE)))
    )

    assert nearest(client, embedding) == [(id_, "imported", 0.0) for id_ in IDS]
    assert refused.status_code == 422
    assert "has no side_information" in refused.json()["detail"]


METADATA: dict[str, Any] = {
    "structs": pa.array([{"year": 2020, "tags": ["x"]}, {"year": 2021, "tags": None}, None, {}]),
    "maps": pa.array([[("year", 2020)], [], None, [("a", 1), ("b", 2)]], pa.map_(pa.string(), pa.int64())),
    "JSON text": ['{"year": 2020, "tags": ["x"]}', "{}", None, '{"deep": {"er": null}}'],
    "nulls": pa.nulls(4),
}
READ = {
    "structs": [{"year": 2020, "tags": ["x"]}, {"year": 2021, "tags": None}, {}, {"year": None, "tags": None}],
    "maps": [{"year": 2020}, {}, {}, {"a": 1, "b": 2}],
    "JSON text": [{"year": 2020, "tags": ["x"]}, {}, {}, {"deep": {"er": None}}],
    "nulls": [{}, {}, {}, {}],
}


@pytest.mark.parametrize("name", METADATA)
def test_labels_and_metadata_come_in_several_forms(gallery: TestClient, name: str) -> None:
    labels = pa.array(["cat", None, "dog", "cat"]).dictionary_encode()
    content = table(id=pa.array(IDS, pa.large_string()), label=labels, metadata=METADATA[name])

    for body in (arrow(content), parquet(content)):
        post(gallery, body)

        items = gallery.get("/v1/galleries/g/items").json()["items"]
        assert [item["label"] for item in items] == ["cat", None, "dog", "cat"]
        assert [item["metadata"] for item in items] == READ[name]


def test_an_import_replaces_items_whole_and_leaves_the_others(gallery: TestClient) -> None:
    post(gallery, arrow(table(label=["old"] * 4, metadata=[{"old": 1}] * 4)))
    post_images(gallery, [7])
    before = gallery.get("/v1/galleries/g").json()

    answer = gallery.post(
        "/v1/galleries/g/embeddings",
        content=arrow(
            table(id=["c", "image-7.png", "new", "d"], label=["new", None, None, None], embedding=lists(EMBEDDING + 10))
        ),
    )

    assert answer.json() == {"count": 4}
    items = {item["id"]: item for item in gallery.get("/v1/galleries/g/items").json()["items"]}
    assert list(items) == ["a", "b", "c", "d", "image-7.png", "new"]
    assert [(items[id_]["label"], items[id_]["metadata"]) for id_ in "abcd"] == [
        ("old", {"old": 1}),
        ("old", {"old": 1}),
        ("new", {}),
        (None, {}),
    ]
    assert items["image-7.png"]["origin"] == "imported"
    assert gallery.get("/v1/galleries/g/items/image-7.png/thumbnail").status_code == 404  # it showed other pixels
    assert gallery.get("/v1/galleries/g").json() == before | {"items": 6, "revision": before["revision"] + 4}
    assert [id_ for id_, _, _ in nearest(gallery, EMBEDDING[:2])] == ["a", "b"]
    assert nearest(gallery, EMBEDDING + 10) == [(id_, "imported", 0.0) for id_ in ("c", "image-7.png", "new", "d")]


def test_an_image_takes_the_place_of_an_imported_vector(gallery: TestClient) -> None:
    post(gallery, arrow(table(id=["image-3.png", "b", "c", "d"])))

    results = post_images(gallery, [3]).json()["results"]

    assert [result["status"] for result in results] == ["replaced"]
    assert search(gallery, 3)["neighbors"][0] | {"distance": 0} == {
        "id": "image-3.png",
        "distance": 0,
        "origin": "encoded",
        "hops": 0,
        "uncertainty": None,
        "label": "class 0",
        "metadata": {"seed": 3},
        "image_uri": None,
        "thumbnail_url": "/v1/galleries/g/items/image-3.png/thumbnail",
    }


def test_vectors_say_where_their_images_are(gallery: TestClient) -> None:
    post(gallery, parquet(table(image_uri=["s3://bucket/a.jpg", None, "https://host/c?d=1", "file:///d"])))

    found = gallery.get("/v1/galleries/g/items").json()["items"]
    assert [item["image_uri"] for item in found] == ["s3://bucket/a.jpg", None, "https://host/c?d=1", "file:///d"]
    refused = gallery.post("/v1/galleries/g/embeddings", content=arrow(table(image_uri=["a.jpg"] * 4)))
    assert (refused.status_code, "is not a URI" in refused.json()["detail"]) == (422, True)


def damaged(found: list[int], put: list[int]) -> bytes:
    """Return a stream in which one column's offsets are others."""
    before, after = (np.array(offsets, np.int32).tobytes() for offsets in (found, put))
    whole = arrow(table(), rows_per_batch=4)
    assert whole.count(before) == 1
    return whole.replace(before, after)


def not_utf8(count: int) -> pa.Array:
    return pa.array([b"\xff" + bytes([65 + number]) for number in range(count)]).view(pa.string())


REFUSED: dict[str, bytes] = {
    "string offsets beyond the data": damaged([0, 1, 2, 3, 4], [0, 1, 2, 3, 2**30]),
    "list offsets beyond the data": damaged([0, 6, 12, 18, 24], [0, 2**20, 2**21, 2**22, 2**23]),
    "no rows in a stream": arrow(table().slice(0, 0)),
    "no rows in a file": parquet(table().slice(0, 0)),
    "no batches": arrow(table().schema.empty_table()),
    "null vector in a fixed-size list": arrow(
        table(embedding=pa.array([*EMBEDDING[:3].astype(np.float32).tolist(), None], pa.list_(pa.float32(), 6)))
    ),
    "null side-information": arrow(table(side_information=pa.array([None] * 4, pa.list_(pa.float32())))),
    "side-information of another length": arrow(table(side_information=lists(SIDE[:, :4]))),
    "vectors of no numbers": arrow(table(embedding=pa.array([[]] * 4, pa.list_(pa.float32())))),
    "whole numbers": arrow(table(embedding=pa.array([[1] * 6] * 4))),
    "too large for float32": arrow(table(embedding=pa.array([[1e300] * 6] * 4))),
    "duplicate ids in two batches": arrow(table(id=["a", "b", "c", "a"])),
    "null id in a dictionary": arrow(table(id=pa.array(["a", "b", "c", None]).dictionary_encode())),
    "id of control characters": parquet(table(id=["a", "b", "c", "d\n"])),
    "bytes as ids": arrow(table(id=[b"a", b"b", b"c", b"d"])),
    "ids that are not UTF-8": arrow(table(id=not_utf8(4))),
    "labels that are not UTF-8": arrow(table(label=not_utf8(4))),
    "metadata that is not UTF-8": arrow(table(metadata=not_utf8(4))),
    "metadata key twice": arrow(table(metadata=pa.array([[("a", 1), ("a", 2)]] * 4, pa.map_(pa.string(), pa.int8())))),
    "metadata of dates": arrow(table(metadata=[{"day": datetime.date(2020, 1, 1)}] * 4)),
    "metadata of a time that no clock shows": arrow(
        table(metadata=pa.StructArray.from_arrays([pa.array([2**62] * 4).view(pa.timestamp("s"))], ["at"]))
    ),
    "metadata of NaN": arrow(table(metadata=[{"a": float("nan")}] * 4)),
    "metadata that is a list": arrow(table(metadata=["[]"] * 4)),
    "id column missing": arrow(table().drop_columns("id")),
    "id column twice": arrow(pa.Table.from_arrays([pa.array(IDS)] * 2, ["id", "id"])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_import_is_422_and_leaves_the_gallery_as_it_was(gallery: TestClient, name: str) -> None:
    post(gallery, arrow(table(label=["kept"] * 4)))
    before = [gallery.get(f"/v1/galleries/g{path}").json() for path in ("", "/items")]

    answer = gallery.post("/v1/galleries/g/embeddings", content=REFUSED[name])

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert [gallery.get(f"/v1/galleries/g{path}").json() for path in ("", "/items")] == before
    assert nearest(gallery, EMBEDDING) == [(id_, "imported", 0.0) for id_ in IDS]


def many(rows: int = 3_000) -> dict[str, Any]:
    """Return the columns of a table of several parts."""
    return {
        "id": [f"item {row}" for row in range(rows)],
        "embedding": lists(np.ones((rows, 6), np.float32)),
        "side_information": lists(np.ones((rows, 5), np.float32)),
        "label": [f"label {row}" for row in range(rows)],
        "metadata": [f'{{"row": {row}}}' for row in range(rows)],
    }


@pytest.mark.parametrize("write", [arrow, parquet])
def test_a_table_of_several_parts_is_stored_row_by_row(gallery: TestClient, write: Callable[..., bytes]) -> None:
    embedding = np.random.default_rng(3).standard_normal((3_000, 6)).astype(np.float16)
    content = pa.table(many() | {"embedding": lists(embedding)})
    asked = [0, 1_023, 1_024, 2_999]

    answer = gallery.post("/v1/galleries/g/embeddings", content=write(content))

    assert answer.json() == {"count": 3_000}
    assert gallery.get("/v1/galleries/g").json()["items"] == 3_000
    assert nearest(gallery, embedding[asked]) == [(f"item {row}", "imported", 0.0) for row in asked]
    found = gallery.get("/v1/galleries/g/items", params={"ids": [f"item {row}" for row in asked]}).json()["items"]
    assert [(item["label"], item["metadata"]) for item in found] == [(f"label {row}", {"row": row}) for row in asked]


def test_bad_rows_of_every_kind_and_part_are_counted_and_nothing_is_stored(gallery: TestClient) -> None:
    columns = many()
    embedding = columns["embedding"].to_pylist()
    columns["id"][1] = None
    columns["metadata"][2] = "["
    columns["metadata"][3] = '{"row": 3, "row": 4}'
    columns["id"][1_500] = "item 3"
    columns["label"][1_600] = "x" * 600
    embedding[2_000] = [float("nan")] * 6
    embedding[2_001] = [1.0]
    embedding[2_999] = None

    content = pa.table(columns | {"embedding": embedding})
    answer = gallery.post("/v1/galleries/g/embeddings", content=arrow(content, rows_per_batch=len(content)))

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("8 rows cannot be stored")
    assert [(error["row"], error["detail"]) for error in answer.json()["errors"]] == [
        (1, "The column 'id' is null."),
        (2, "The metadata is not JSON: EOF while parsing a list at line 1 column 1"),
        (3, 'The metadata is not JSON: Detected duplicate key "row" at line 1 column 18'),
        (1_500, "The id occurs twice in this request."),
        (1_600, "The label of 'item 1600' cannot be stored: at most 512 characters, no NUL."),
        (2_000, "The vector of 'embedding' has a value that is not finite in float32."),
        (2_001, "The vector of 'embedding' has another length: 1 numbers, not 6."),
        (2_999, "The column 'embedding' is null."),
    ]
    assert gallery.get("/v1/galleries/g").json()["items"] == 0


@pytest.mark.parametrize("kept_bytes", [3, 100, 300, -400])
def test_a_body_that_was_cut_off_is_415_and_stores_nothing(gallery: TestClient, kept_bytes: int) -> None:
    for body in (arrow(table()), parquet(table())):
        answer = gallery.post("/v1/galleries/g/embeddings", content=body[:kept_bytes])

        assert answer.status_code == 415, answer.text
    assert gallery.get("/v1/galleries/g").json()["items"] == 0


def test_the_version_named_must_be_the_active_one(gallery: TestClient) -> None:
    named = gallery.post("/v1/galleries/g/embeddings", params={"model_version": "v1"}, content=arrow(table()))
    other = gallery.post("/v1/galleries/g/embeddings", params={"model_version": "v2"}, content=arrow(table()))

    assert (named.status_code, other.status_code) == (200, 409)
    assert "under model version 'v1', not 'v2'" in other.json()["detail"]
