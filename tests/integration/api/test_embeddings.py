"""Tables of vectors that are refused over HTTP."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from tests.problems import check_problem


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
