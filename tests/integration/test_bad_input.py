"""Bad input costs its sender a problem document, and leaves nothing behind (promise 9)."""

import io
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.networks import image_bytes
from tests.scenario import create_gallery, post_images, register_transformation, register_version, start_upgrade

PROBLEM = "application/problem+json"


@pytest.fixture
def gallery(client: TestClient) -> TestClient:
    register_version(client, "v1")
    create_gallery(client)
    return client


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def bomb() -> bytes:
    """Return a PNG of a few kilobytes whose 1-bit pixels would be 20,000 x 20,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = 20_000
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def check_problem(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert {"type", "title", "status", "detail"} <= set(body)
    assert body["status"] == status
    detail: str = body["detail"]
    return detail


BAD_FILES = {
    "empty": b"",
    "text": b"this is not an image",
    "truncated png": image_bytes(1, size=(64, 64))[:200],
    "truncated jpeg": image_bytes(1, "JPEG", size=(64, 64))[:-300],
    "bomb": bomb(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_alone_is_422_and_stores_nothing(gallery: TestClient, name: str) -> None:
    answer = gallery.post("/v1/galleries/g/images", files=[("files", ("x.png", BAD_FILES[name]))])

    check_problem(answer, 422)
    assert answer.json()["errors"][0]["id"] == "x.png"
    assert gallery.get("/v1/galleries/g").json() | {"created_at": 0} == gallery.get("/v1/galleries/g").json() | {
        "items": 0,
        "revision": 0,
        "created_at": 0,
    }


def test_bad_files_are_rejected_alone_among_good_ones(gallery: TestClient) -> None:
    files = [("files", (name, data)) for name, data in BAD_FILES.items()]
    files.insert(2, ("files", ("good.png", image_bytes(5))))

    results = gallery.post("/v1/galleries/g/images", files=files).json()["results"]

    assert [result["id"] for result in results] == [name for _, (name, _) in files]
    assert [result["id"] for result in results if result["status"] == "created"] == ["good.png"]
    assert all(result["error"] for result in results if result["status"] == "rejected")
    assert gallery.get("/v1/galleries/g").json()["items"] == 1


UNUSUAL = {
    "cmyk.jpg": saved(Image.new("CMYK", (20, 10), (10, 20, 30, 40)), "JPEG"),
    "palette.png": saved(Image.new("P", (20, 10), 3), "PNG"),
    "alpha.png": saved(Image.new("RGBA", (20, 10), (255, 0, 0, 0)), "PNG"),
    "sixteen.png": saved(Image.fromarray(np.full((10, 20), 40_000, np.uint16)), "PNG"),
    "one-bit.png": saved(Image.new("1", (20, 10), 1), "PNG"),
    "animated.gif": saved(
        Image.new("RGB", (20, 10), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (20, 10), "blue")]
    ),
    "photo.webp": saved(Image.new("RGB", (20, 10), "green"), "WEBP"),
}


def test_unusual_images_are_converted(gallery: TestClient) -> None:
    files = [("files", (name, data)) for name, data in UNUSUAL.items()]

    results = gallery.post("/v1/galleries/g/images", files=files).json()["results"]

    assert {result["status"] for result in results} == {"created"}
    red = np.asarray(Image.open(io.BytesIO(gallery.get("/v1/galleries/g/items/animated.gif/thumbnail").content)))
    assert (red[..., 0] > 200).all()
    grey = np.asarray(Image.open(io.BytesIO(gallery.get("/v1/galleries/g/items/sixteen.png/thumbnail").content)))
    assert abs(int(grey[5, 5, 0]) - 40_000 // 257) <= 3


def test_exif_rotation_is_honoured(gallery: TestClient) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    files = [("files", ("upright", saved(upright, "PNG"))), ("files", ("turned", turned))]
    gallery.post("/v1/galleries/g/images", files=files)

    answer = gallery.post("/v1/galleries/g/search", params={"k": 2}, content=saved(upright, "PNG")).json()

    assert {neighbor["id"] for neighbor in answer["neighbors"]} == {"upright", "turned"}
    assert all(neighbor["distance"] < 1e-2 for neighbor in answer["neighbors"])


def test_too_many_files_are_413(gallery: TestClient) -> None:
    files = [("files", (f"{number}", b"x")) for number in range(10_001)]

    check_problem(gallery.post("/v1/galleries/g/images", files=files), 413)


def test_ten_thousand_files_are_accepted_and_told_apart(gallery: TestClient) -> None:
    files = [("files", (f"{number}", b"x")) for number in range(9_999)] + [("files", ("good", image_bytes(1)))]

    results = gallery.post("/v1/galleries/g/images", files=files).json()["results"]

    assert [result["id"] for result in results if result["status"] == "created"] == ["good"]
    assert len(results) == 10_000


BAD_ITEMS: dict[str, object] = {
    "not json": "{",
    "not a list": {},
    "wrong count": [],
    "unknown key": [{"identifier": "x"}],
    "number as id": [{"id": 5}],
    "empty id": [{"id": ""}],
    "NUL in id": [{"id": "a\0b"}],
    "control character": [{"id": "a\nb"}],
    "long id": [{"id": "x" * 513}],
    "surrogate": '[{"id": "\\ud800"}]',
    "NUL in metadata": [{"metadata": {"a": ["\0"]}}],
    "NaN in metadata": '[{"metadata": {"a": NaN}}]',
    "surrogate in metadata": '[{"metadata": {"\\udc00": 1}}]',
    "metadata is a list": [{"metadata": []}],
    "large metadata": [{"metadata": {"a": "x" * 70_000}}],
    "deep metadata": '[{"metadata": {"a": ' + "[" * 200 + "]" * 200 + "}}]",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_a_bad_items_part_is_422(gallery: TestClient, name: str) -> None:
    items = BAD_ITEMS[name]
    part = items if isinstance(items, str) else json.dumps(items)

    answer = gallery.post(
        "/v1/galleries/g/images", files=[("files", ("x", image_bytes(1)))], data={"items": part.encode()}
    )

    check_problem(answer, 422)
    assert gallery.get("/v1/galleries/g").json()["items"] == 0


def test_an_id_twice_in_one_request_is_422(gallery: TestClient) -> None:
    files = [("files", ("same", image_bytes(1))), ("files", ("same", image_bytes(2)))]

    assert "'same' occurs twice" in check_problem(gallery.post("/v1/galleries/g/images", files=files), 422)


@pytest.mark.parametrize("identifier", ["a/b c.png", "ümläut 猫.jpg", "100%", "?x#y", "..a", "a//b", " "])
def test_unusual_ids_can_be_stored_read_and_deleted(gallery: TestClient, identifier: str) -> None:
    gallery.post(
        "/v1/galleries/g/images",
        files=[("files", ("x", image_bytes(1)))],
        data={"items": json.dumps([{"id": identifier}])},
    )
    path = "/v1/galleries/g/items/" + "".join(f"%{byte:02X}" for byte in identifier.encode())

    assert gallery.get(path).json()["id"] == identifier
    assert gallery.get(f"{path}/thumbnail").headers["content-type"] == "image/jpeg"
    assert gallery.delete(path).status_code == 204
    assert gallery.get(path).status_code == 404


BAD_NAMES = ["a/b", "a b", "a\0b", "x" * 300, "", "ä", "-a", ".a"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(gallery: TestClient, name: str) -> None:
    created = gallery.post("/v1/galleries", json={"name": name, "model_version": "v1"})
    asked = gallery.get("/v1/galleries/" + "".join(f"%{byte:02X}" for byte in name.encode()))

    check_problem(created, 422)
    assert asked.status_code in (404, 422, 200 if name == "" else 404)


def parquet(**columns: object) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def vectors(count: int, dim: int, value: float = 1.0) -> list[np.ndarray]:
    return [np.full(dim, value, np.float32) for _ in range(count)]


BAD_TABLES: dict[str, bytes] = {
    "wrong dimensions": parquet(id=["a"], embedding=vectors(1, 7), side_information=vectors(1, 5)),
    "no side-information": parquet(id=["a"], embedding=vectors(1, 6)),
    "NaN": parquet(id=["a"], embedding=vectors(1, 6, float("nan")), side_information=vectors(1, 5)),
    "infinite": parquet(id=["a"], embedding=vectors(1, 6), side_information=vectors(1, 5, float("inf"))),
    "too large for float16": parquet(id=["a"], embedding=vectors(1, 6, 1e5), side_information=vectors(1, 5)),
    "ragged": parquet(id=["a", "b"], embedding=[[1.0] * 6, [1.0] * 5], side_information=vectors(2, 5)),
    "null vector": parquet(id=["a", "b"], embedding=[[1.0] * 6, None], side_information=vectors(2, 5)),
    "null number": parquet(id=["a"], embedding=[[1.0] * 5 + [None]], side_information=vectors(1, 5)),
    "duplicate ids": parquet(id=["a", "a"], embedding=vectors(2, 6), side_information=vectors(2, 5)),
    "null id": parquet(id=["a", None], embedding=vectors(2, 6), side_information=vectors(2, 5)),
    "numbers as ids": parquet(id=[1], embedding=vectors(1, 6), side_information=vectors(1, 5)),
    "strings as vectors": parquet(id=["a"], embedding=["x"], side_information=vectors(1, 5)),
    "unknown column": parquet(id=["a"], embedding=vectors(1, 6), side_information=vectors(1, 5), more=[1]),
    "no rows": parquet(id=pa.array([], pa.string()), embedding=pa.array([], pa.list_(pa.float32()))),
    "bad metadata": parquet(id=["a"], embedding=vectors(1, 6), side_information=vectors(1, 5), metadata=["{"]),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_422_and_stores_no_row_of_it(gallery: TestClient, name: str) -> None:
    check_problem(gallery.post("/v1/galleries/g/embeddings", content=BAD_TABLES[name]), 422)
    assert gallery.get("/v1/galleries/g").json()["items"] == 0


@pytest.mark.parametrize("body", [b"", b"PAR1", b"PAR1" + bytes(100), b"\xff\xff\xff\xff\x10\0\0\0", b"hello"])
def test_a_body_that_is_no_table_is_415(gallery: TestClient, body: bytes) -> None:
    check_problem(gallery.post("/v1/galleries/g/embeddings", content=body), 415)


def test_an_import_for_another_version_is_409(gallery: TestClient) -> None:
    body = parquet(id=["a"], embedding=vectors(1, 6), side_information=vectors(1, 5))

    check_problem(gallery.post("/v1/galleries/g/embeddings", params={"model_version": "v2"}, content=body), 409)


@pytest.mark.parametrize("k", ["0", "-1", "1000000", "x", "1.5", ""])
def test_a_bad_k_is_422(gallery: TestClient, k: str) -> None:
    form = gallery.post("/v1/galleries/g/search", files={"file": ("q", image_bytes(1))}, data={"k": k})
    raw = gallery.post("/v1/galleries/g/search", params={"k": k}, content=image_bytes(1))

    check_problem(form, 422)
    check_problem(raw, 422)


BAD_VECTORS: dict[str, Any] = {
    "wrong dimensions": {"vectors": [[1.0] * 7]},
    "none": {"vectors": []},
    "ragged": {"vectors": [[1.0] * 6, [1.0] * 5]},
    "too large": {"vectors": [[1e300] * 6]},
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


def test_unknown_things_are_404(gallery: TestClient) -> None:
    check_problem(gallery.get("/v1/galleries/none"), 404)
    check_problem(gallery.post("/v1/galleries/none/images", files=[("files", ("x", image_bytes(1)))]), 404)
    check_problem(gallery.post("/v1/galleries/none/search", content=image_bytes(1)), 404)
    check_problem(gallery.post("/v1/galleries", json={"name": "x", "model_version": "none"}), 404)
    check_problem(gallery.post("/v1/galleries/g/upgrades", json={"to_version": "none"}), 404)
    check_problem(gallery.get("/v1/galleries/g/items/none"), 404)
    check_problem(gallery.delete("/v1/galleries/g/items/none"), 404)
    check_problem(gallery.get("/v1/upgrades/99"), 404)
    check_problem(gallery.get("/v1/jobs/99"), 404)
    check_problem(gallery.get("/nowhere"), 404)
    check_problem(gallery.put("/v1/galleries"), 405)


def test_an_upgrade_without_a_transformation_is_409(gallery: TestClient) -> None:
    register_version(gallery, "v2")

    check_problem(gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2"}), 409)
    check_problem(gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v1"}), 409)


def test_a_second_upgrade_at_once_is_409_and_names_the_first(gallery: TestClient) -> None:
    register_version(gallery, "v2")
    register_transformation(gallery, "v1", "v2")
    first = start_upgrade(gallery, "v2")

    second = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2"})

    assert f"Upgrade {first}" in check_problem(second, 409)


def test_refused_actions_say_what_is_possible(gallery: TestClient) -> None:
    register_version(gallery, "v2")
    register_transformation(gallery, "v1", "v2")
    upgrade_id = start_upgrade(gallery, "v2")

    detail = check_problem(gallery.post(f"/v1/upgrades/{upgrade_id}/rollback"), 409)

    assert detail == "An upgrade that is planned cannot rollback; possible now: cancel, pause."


def test_one_senders_bad_request_does_not_disturb_the_gallery(gallery: TestClient) -> None:
    post_images(gallery, range(3))
    gallery.post("/v1/galleries/g/images", files=[("files", ("bomb", bomb()))])

    answer = gallery.post("/v1/galleries/g/search", params={"k": 1}, content=image_bytes(2)).json()

    assert answer["neighbors"][0]["id"] == "image-2.png"
