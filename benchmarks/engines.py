"""The engines of benchmarks.search: each holds a corpus and searches it at several settings, one thread a search.

Graphs have the same links and the same width while they are built, whoever builds them. What builds may use all cores.
"""

import importlib.util
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from benchmarks.processes import api_process
from benchmarks.setting import Vectors
from service.domain.gallery.generations import StoredGeneration
from service.domain.indexes.builds import build_generation_index
from service.domain.indexes.query_samples import QuerySamples
from service.index.faiss_index import FaissIndex
from service.index.files import build_index
from service.index.kinds import BuiltIndex, training_rows
from service.index.protocol import Ids, IndexKind
from service.index.recall import Sample, choose_width
from service.tables import Generation
from workers.app import WorkerParts

K = 10
BATCH = 64
_LINKS = 32
_EF_CONSTRUCTION = 80
_EF_SEARCH = (16, 32, 64, 128, 256)
_PROBES = (8, 16, 32, 64, 96, 128, 192, 256)
_PEER_EF_SEARCH = (40, 100, 200)
GALLERY = "searched"
_PORT = 18_518
_UPSERT_ROWS = 1_000

Search = Callable[[Vectors], Ids]  # (Q, D) float32 -> (Q, K) int64 rows of the corpus, padded with -1


class NotMeasured(Exception):
    """An engine is left out, with the reason."""


@dataclass(frozen=True)
class Asked:
    """queries: (Q, D) float32, to be asked for `seconds` in batches, all of them at least, and then one by one."""

    queries: Vectors
    seconds: float


@dataclass(frozen=True)
class Answered:
    """found: (Q, K) int64; single: seconds of each query asked alone; batch: queries/s in batches."""

    found: Ids
    single: list[float]
    batch: float


@dataclass(frozen=True)
class Engine:
    """`build_seconds` from the vectors in memory, or in the database where it says so; `index_bytes` as it is saved."""

    name: str
    build_seconds: float
    index_bytes: int
    settings: tuple[str, ...]
    ask: Callable[[str, Asked], Answered]


@dataclass(frozen=True)
class Setting:
    """What engines are made from: (N, D) float32 vectors, which gallery `GALLERY` has too, in its active generation,
    and (S, D) float32 queries, by which the service and its index choose how wide they search.

    A build that takes longer than the limit is given up, where that can be done.
    """

    parts: WorkerParts
    vectors: Vectors
    sample_queries: Vectors
    stored: StoredGeneration
    build_limit_seconds: float
    cores: int


def ask(search: Search, asked: Asked) -> Answered:
    """Measure one search in this process; the first batch is not counted."""
    queries = asked.queries
    batches = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    search(batches[0])
    found, done, began = [], 0, time.perf_counter()
    for number in count():
        found.append(search(batches[number % len(batches)]))
        done += len(found[-1])
        seconds = time.perf_counter() - began
        if number >= len(batches) - 1 and seconds >= asked.seconds:
            break
    single: list[float] = []
    ends = time.perf_counter() + asked.seconds
    while not single or time.perf_counter() < ends:
        query = queries[len(single) % len(queries)][None]
        began = time.perf_counter()
        search(query)
        single.append(time.perf_counter() - began)
    return Answered(np.concatenate(found[: len(batches)]), single, done / seconds)


def _in_process(name: str, seconds: float, index_bytes: int, searches: dict[str, Search]) -> Engine:
    return Engine(name, seconds, index_bytes, tuple(searches), lambda setting, asked: ask(searches[setting], asked))


@contextmanager
def faiss_engines(setting: Setting, kind: IndexKind) -> Iterator[list[Engine]]:
    """One FAISS index, searched directly and as a FaissIndex of the service."""
    faiss.omp_set_num_threads(setting.cores)
    built = _build(kind, setting.vectors, setting.sample_queries[: setting.parts.settings.recall_sample_items])
    faiss.omp_set_num_threads(1)
    saved = _saved_bytes(built.index)
    index = FaissIndex("l2", setting.vectors.shape[1], built)
    yield [
        _in_process(f"FAISS {kind}", built.seconds, saved, _direct_searches(built.index)),
        _in_process(f"FaissIndex {kind}", built.seconds, saved, {"as served": lambda q: index.search(q, K).ids}),
    ]


def _build(kind: IndexKind, vectors: Vectors, queries: Vectors) -> BuiltIndex:
    """Build as a worker of the service does, the width of its searches chosen by these queries."""

    def rows() -> Iterator[tuple[Ids, Vectors]]:
        return ((np.arange(start, start + len(part)), part) for start, part in _parts(vectors, 100_000))

    drawn = np.random.default_rng(0).permutation(len(vectors))
    training = vectors[drawn[: training_rows(kind, vectors.shape[1], len(vectors))]]
    built = build_index("l2", vectors.shape[1], rows(), kind, training)
    choose_width(built, "l2", Sample.of_queries(queries), rows())
    return built


def _parts(vectors: Vectors, size: int) -> Iterator[tuple[int, Vectors]]:
    return ((start, vectors[start : start + size]) for start in range(0, len(vectors), size))


def _saved_bytes(index: Any) -> int:
    with tempfile.NamedTemporaryFile() as file:
        faiss.write_index(index, file.name)
        return Path(file.name).stat().st_size


def _direct_searches(mapped: Any) -> dict[str, Search]:
    """FAISS's own search of an IDMap, by what its kind can be told; of rows with equal codes a graph finds one."""
    index, ids = faiss.downcast_index(mapped.index), faiss.vector_to_array(mapped.id_map)
    parameters: dict[str, Any]
    if hasattr(index, "hnsw"):
        parameters = {f"efSearch {ef}": faiss.SearchParametersHNSW(efSearch=ef) for ef in _EF_SEARCH}
    elif hasattr(index, "nprobe"):
        parameters = {f"nprobe {n}": faiss.SearchParametersIVF(nprobe=n) for n in _PROBES if n <= index.nlist}
    else:
        parameters = {"exact": None}

    def search(chosen: Any, queries: Vectors) -> Ids:
        found: Ids = ids[index.search(queries, K, params=chosen)[1]]
        return found

    return {name: partial(search, chosen) for name, chosen in parameters.items()}


@contextmanager
def service_engine(setting: Setting) -> Iterator[list[Engine]]:
    """The service: an API process, PostgreSQL, and this process as its client. Its index is of the kind that the
    service chooses for so many rows, and as wide as the sample of queries says, which the gallery was asked before."""
    faiss.omp_set_num_threads(setting.cores)
    parts, stored = setting.parts, setting.stored
    samples = QuerySamples(parts.database, parts.settings.query_sample_items)
    for _, queries in _parts(setting.sample_queries, 10):  # of more in one request, not all are kept
        samples.note(stored.gallery_id, stored.version.id, queries)
        samples.write()
    built = build_generation_index(parts.database, parts.engine, stored.key)
    faiss.omp_set_num_threads(1)
    with parts.database.session_scope() as session:
        name = session.get_one(Generation, stored.id).index_name
        assert name is not None
        saved = parts.blobs.fetch_file(name, parts.settings.data / "index_cache").stat().st_size
    with api_process(parts, _PORT) as api:

        def search(queries: Vectors) -> Ids:
            body = {"vectors": queries.tolist(), "k": K}
            answer = api.client.post(f"/v1/galleries/{GALLERY}/search/vectors", json=body).raise_for_status().json()
            return _as_ids(
                [[int(n["id"].removeprefix("item-")) for n in neighbors] for neighbors in answer["neighbors"]]
            )

        yield [_in_process(f"service, {built['kind']}, HTTP", built["seconds"], saved, {"as served": search})]


def _as_ids(found: Sequence[Sequence[int]]) -> Ids:
    ids = np.full((len(found), K), -1, np.int64)
    for row, ids_of_row in enumerate(found):
        ids[row, : len(ids_of_row)] = ids_of_row
    return ids


@contextmanager
def pgvector_engine(setting: Setting) -> Iterator[list[Engine]]:
    """pgvector's HNSW over the same rows as halfvec, in the service's own PostgreSQL."""
    url = setting.parts.database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        seconds = _build_pgvector(connection, setting)
        size = connection.execute("SELECT pg_relation_size('pgvector_hnsw')").fetchone()
        assert size is not None
        connection.execute("SET enable_seqscan = off; SET max_parallel_workers_per_gather = 0")

        def asking(setting: str, asked: Asked) -> Answered:
            connection.execute(f"SET hnsw.{setting.replace(' ', ' = ')}")
            return ask(partial(_search_pgvector, connection), asked)

        settings = tuple(f"ef_search {ef}" for ef in _PEER_EF_SEARCH)
        yield [Engine("pgvector HNSW", seconds, size[0], settings, asking)]


def _build_pgvector(connection: psycopg.Connection, setting: Setting) -> float:
    """Return the seconds of CREATE INDEX."""
    connection.execute(
        "CREATE TABLE pgvector_rows AS SELECT substr(i.external_id, 6)::bigint AS id, e.embedding"
        f" FROM {setting.stored.table} e JOIN items i ON i.id = e.item_id"
    )
    connection.execute("SET maintenance_work_mem = '2GB'")
    connection.execute(f"SET max_parallel_maintenance_workers = {setting.cores - 1}")
    connection.execute(f"SET statement_timeout = {round(1_000 * setting.build_limit_seconds)}")
    began = time.monotonic()
    try:
        connection.execute(
            "CREATE INDEX pgvector_hnsw ON pgvector_rows USING hnsw (embedding halfvec_l2_ops)"
            f" WITH (m = {_LINKS}, ef_construction = {_EF_CONSTRUCTION})"
        )
    except psycopg.errors.QueryCanceled as error:
        raise NotMeasured(f"its index was not built in {setting.build_limit_seconds:.0f} s") from error
    seconds = time.monotonic() - began
    connection.execute("SET statement_timeout = 0")
    connection.execute("VACUUM ANALYZE pgvector_rows")
    return seconds


def _search_pgvector(connection: psycopg.Connection, queries: Vectors) -> Ids:
    """One statement, whatever the number of queries."""
    if len(queries) == 1:
        query = f"SELECT id FROM pgvector_rows ORDER BY embedding <-> %s LIMIT {K}"
        rows = connection.execute(query, (HalfVector(queries[0]),), prepare=True, binary=True).fetchall()
        return _as_ids([[id_ for (id_,) in rows]])
    query = (
        "SELECT array_agg(f.id ORDER BY f.distance) FROM unnest(%s::halfvec[]) WITH ORDINALITY AS q(vector, n)"
        " CROSS JOIN LATERAL (SELECT id, embedding <-> q.vector AS distance FROM pgvector_rows"
        f" ORDER BY embedding <-> q.vector LIMIT {K}) f GROUP BY q.n ORDER BY q.n"
    )
    asked = [HalfVector(vector) for vector in queries]
    return _as_ids([ids for (ids,) in connection.execute(query, (asked,), prepare=True, binary=True)])


@contextmanager
def qdrant_engine(setting: Setting) -> Iterator[list[Engine]]:
    """Qdrant's engine, in a process of its own: it holds the GIL while it builds."""
    if importlib.util.find_spec("qdrant_edge") is None:
        raise NotMeasured("qdrant-edge-py is not installed")
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    with tempfile.TemporaryDirectory(prefix="benchmark-qdrant-") as folder:
        np.save(Path(folder) / "vectors.npy", setting.vectors)
        process = spawn.Process(target=_run_qdrant, args=(there, Path(folder)), daemon=True)
        process.start()
        there.close()
        try:
            if not here.poll(setting.build_limit_seconds):
                raise NotMeasured(f"its index was not built in {setting.build_limit_seconds:.0f} s")
            try:
                seconds, size = here.recv()
            except EOFError as error:
                raise NotMeasured("its process died while it built") from error

            def asking(setting: str, asked: Asked) -> Answered:
                here.send((int(setting.split()[1]), asked))
                answered: Answered = here.recv()
                return answered

            settings = tuple(f"hnsw_ef {ef}" for ef in _PEER_EF_SEARCH)
            yield [Engine("Qdrant Edge HNSW", seconds, size, settings, asking)]
        finally:
            process.kill()
            process.join()


def _run_qdrant(connection: Connection, folder: Path) -> None:
    """Build, say how long it took and how large it is, and answer until killed."""
    import qdrant_edge as qdrant

    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    config = qdrant.EdgeConfig(
        vectors=qdrant.EdgeVectorParams(
            size=vectors.shape[1],
            distance=qdrant.Distance.Euclid,
            datatype=qdrant.VectorStorageDatatype.Float16,
        ),
        hnsw_config=qdrant.HnswIndexConfig(m=_LINKS, ef_construct=_EF_CONSTRUCTION, full_scan_threshold=10),
        optimizers=qdrant.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1_000),
        max_search_threads=1,
    )

    began = time.monotonic()
    (folder / "shard").mkdir()
    shard = qdrant.EdgeShard.create(str(folder / "shard"), config)
    for start, part in _parts(vectors, _UPSERT_ROWS):
        points = [qdrant.Point(id=start + row, vector=vector) for row, vector in enumerate(part.tolist())]
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.flush()
    seconds = time.monotonic() - began

    parts = [file for part in ("vector_storage", "vector_index") for file in folder.rglob(f"{part}/**/*")]
    connection.send((seconds, sum(file.stat().st_blocks * 512 for file in parts if file.is_file())))

    def request(ef_search: int, query: list[float]) -> Any:
        params = qdrant.SearchParams(hnsw_ef=ef_search)
        return qdrant.QueryRequest(limit=K, query=qdrant.Query.Nearest(query), params=params)

    def search(ef_search: int, queries: Vectors) -> Ids:
        requests = [request(ef_search, query) for query in queries.tolist()]
        found = shard.query_batch(qdrant.QueryBatchRequest(requests))
        return _as_ids([[int(point.id) for point in points] for points in found])

    while True:
        ef_search, asked = connection.recv()
        connection.send(ask(partial(search, ef_search), asked))


KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
ENGINES: dict[str, Callable[[Setting], AbstractContextManager[list[Engine]]]] = {
    **{kind: partial(faiss_engines, kind=kind) for kind in KINDS},
    "service": service_engine,
    "pgvector": pgvector_engine,
    "qdrant": qdrant_engine,
}
