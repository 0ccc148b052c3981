"""How fast galleries in other stores are read and their new side is written, beside the store's own insertion.

    python -m benchmarks.external [--rows 100000] [--dim 128] [--stores pgvector qdrant …]

One process and one range after another; h is a copy, so that only the stores are measured. Prints a table as Markdown.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

from service.connectors.address import parse
from service.connectors.opening import open_store
from service.connectors.store import NewSide, Vectors, keep_open_ends
from service.embedded.servers import EmbeddedServers

_RANGE_ROWS = 20_000
_INSERTED_AT_ONCE = 1_000
# Puts all rows and gives the URL and the seconds that the store's own client took.
Making = Callable[[Path, Vectors], Iterator[tuple[str, float]]]


def pgvector(folder: Path, vectors: Vectors) -> Iterator[tuple[str, float]]:
    yield from _pgvector(folder, vectors, "")


def pgvector_hnsw(folder: Path, vectors: Vectors) -> Iterator[tuple[str, float]]:
    yield from _pgvector(folder, vectors, "CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops)")


def _pgvector(folder: Path, vectors: Vectors, then: str) -> Iterator[tuple[str, float]]:
    with EmbeddedServers(folder) as servers:
        url = servers.database_url.replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute(f"CREATE TABLE items (id bigint PRIMARY KEY, embedding vector({vectors.shape[1]}))")
            start = time.perf_counter()
            with connection.cursor() as cursor, cursor.copy("COPY items FROM STDIN") as copy:
                for row, vector in enumerate(vectors.tolist()):
                    copy.write_row((row, str(vector)))
            seconds = time.perf_counter() - start
            connection.execute("ANALYZE items")
            if then:
                connection.execute(then)
        yield f"{url}&table=items&key=id&embedding=embedding", seconds


def qdrant(folder: Path, vectors: Vectors) -> Iterator[tuple[str, float]]:
    from qdrant_client import models

    from service.connectors.qdrant import local_client

    client, release = local_client(str(folder))
    params = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
    client.create_collection("items_1", params)
    alias = models.CreateAlias(alias_name="items", collection_name="items_1")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    start = time.perf_counter()
    for part in _parts(vectors):
        points = [models.PointStruct(id=row, vector=vectors[row].tolist()) for row in part]
        client.upsert("items", points)
    yield f"qdrant://{folder}?collection=items", time.perf_counter() - start
    release()


def milvus(folder: Path, vectors: Vectors) -> Iterator[tuple[str, float]]:
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus import DataType, MilvusClient

    path = str(folder / "milvus.db")
    client = MilvusClient(path)
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="L2")
    client.create_collection("items_1", schema=schema, index_params=index)
    client.create_alias("items_1", "items")
    start = time.perf_counter()
    for part in _parts(vectors):
        client.insert("items", [{"id": row, "vector": vectors[row]} for row in part])
    yield f"milvus://{path}?collection=items&key=id&embedding=vector", time.perf_counter() - start
    client.close()
    server_manager_instance.release_server(path)


def lancedb(folder: Path, vectors: Vectors) -> Iterator[tuple[str, float]]:
    import lancedb

    start = time.perf_counter()
    lancedb.connect(str(folder)).create_table("items", _table(np.arange(len(vectors)), vectors))
    yield f"lancedb://{folder}?table=items&key=id&embedding=vector", time.perf_counter() - start


def chroma(folder: Path, vectors: Vectors) -> Iterator[tuple[str, float]]:
    from service.connectors.chroma import client_of

    url = f"chroma://{folder}?collection=items"
    collection = client_of(parse(url)).create_collection("items", embedding_function=None)
    start = time.perf_counter()
    for part in _parts(vectors):
        collection.add([f"{row:09d}" for row in part], embeddings=vectors[part.start : part.stop])
    yield url, time.perf_counter() - start


def parquet(folder: Path, vectors: Vectors) -> Iterator[tuple[str, float]]:
    start = time.perf_counter()
    pq.write_table(_table(np.arange(len(vectors)), vectors), folder / "items.parquet")
    yield f"file://{folder}/items.parquet?embedding=vector", time.perf_counter() - start


def npy(folder: Path, vectors: Vectors) -> Iterator[tuple[str, float]]:
    start = time.perf_counter()
    np.save(folder / "items.npy", vectors)
    (folder / "items.ids.txt").write_text("".join(f"{row:09d}\n" for row in range(len(vectors))))
    yield f"file://{folder}/items.npy", time.perf_counter() - start


_STORES: dict[str, Making] = {
    made.__name__: made for made in (pgvector, pgvector_hnsw, qdrant, milvus, lancedb, chroma, parquet, npy)
}


def _parts(vectors: Vectors) -> Iterator[range]:
    for start in range(0, len(vectors), _INSERTED_AT_ONCE):
        yield range(start, min(start + _INSERTED_AT_ONCE, len(vectors)))


def _table(ids: Any, vectors: Vectors) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return pa.table({"id": pa.array(ids), "vector": column})


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def measure(url: str, dim: int) -> dict[str, float]:
    """Return the seconds of each step of an upgrade."""
    seconds: dict[str, float] = {}
    store = open_store(url, NewSide("v2", dim, None))
    store.prepare()
    with _timed(seconds, "bounds"):
        ranges = keep_open_ends(store.bounds(_RANGE_ROWS))
    for keys in ranges:
        with _timed(seconds, "read"):
            rows = store.read(keys)
        with _timed(seconds, "write"):
            store.write(keys, rows)
    with _timed(seconds, "index"):
        store.index()
    with _timed(seconds, "switch"):
        store.switch(lambda rows: rows)
    store.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--stores", nargs="+", choices=_STORES, default=list(_STORES))
    options = parser.parse_args()
    vectors = np.random.default_rng(0).standard_normal((options.rows, options.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    print(f"{options.rows:,} rows of {options.dim} numbers; rows a second, and seconds.\n")
    print("| store | own insertion | read | write | bounds s | index s | switch s |")
    print("|---|---|---|---|---|---|---|")
    for name in options.stores:
        with tempfile.TemporaryDirectory() as folder:
            for url, inserted in _STORES[name](Path(folder), vectors):
                took = measure(url, options.dim)
                rates = " | ".join(f"{options.rows / s:,.0f}" for s in (inserted, took["read"], took["write"]))
                steps = " | ".join(f"{took[step]:.2f}" for step in ("bounds", "index", "switch"))
                print(f"| {name} | {rates} | {steps} |", flush=True)


if __name__ == "__main__":
    main()
