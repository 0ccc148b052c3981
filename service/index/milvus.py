"""`MilvusIndex`: an index that lies in a Milvus server, for galleries past one machine's memory.

One index is one collection with the fields `id` and `embedding`; `Collections` makes, opens and drops them. Nothing is
kept in this process, so all processes that use a collection see the same rows. Which of them may write to it is decided
by `service.domain.indexes.milvus_engine`. Reads are strongly consistent: a search sees every write that was
acknowledged.

What Milvus does not give: of several rows at the same distance as the k-th, any may be found, not those with the
smallest ids; and rows that are replaced while a search runs may be found as they were or as they are.
Imports pymilvus: import this module only where a Milvus server is configured.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from service.index.protocol import (
    NO_ID,
    Ids,
    IndexAway,
    IndexGone,
    Metric,
    SearchResult,
    Vectors,
    exact_distances,
    from_faiss,
    nearest,
    no_rows,
    normalized,
)

Kind = Literal["flat", "hnsw"]

# Under cosine, vectors and queries are at unit norm here; of a zero vector Milvus's own COSINE finds nothing.
_METRICS: dict[Metric, str] = {"l2": "L2", "cosine": "IP", "ip": "IP"}
_HNSW = {"M": 32, "efConstruction": 80}  # as in service.index.kinds
_EF_SEARCH = 64
_COLLECTION_NOT_FOUND = 100
_COLLECTION_NOT_LOADED = 101

# What keeps one message well below Milvus's limit of 64 MiB.
_HITS_PER_SEARCH = 2**18
_BYTES_PER_MESSAGE = 2**22
_IDS_PER_MESSAGE = 10_000


@dataclass(frozen=True)
class Limits:
    """How much is asked of Milvus at once; `neighbors` is its own limit of a search.

    Rows of up to `gathered_bytes` of vectors are fetched and scored here.
    """

    ids_per_expression: int = 10_000
    neighbors: int = 16_384
    gathered_bytes: int = 2**20


class Collections:
    """The collections of one Milvus server, named by its URL, or of a Milvus Lite file (a path that ends in `.db`).

    Every method raises `IndexAway` when the server does not answer within `timeout_seconds`.
    """

    def __init__(self, url: str, timeout_seconds: float = 30.0, limits: Limits | None = None) -> None:
        self._timeout_seconds = timeout_seconds
        self._limits = limits or Limits()
        address, user, password = _without_credentials(url)
        with _answering():
            self._client = MilvusClient(address, user=user, password=password, timeout=timeout_seconds)

    def close(self) -> None:
        self._client.close()

    def names(self) -> list[str]:
        return list(self._ask(self._client.list_collections))

    def has(self, name: str) -> bool:
        return bool(self._ask(self._client.has_collection, name))

    def create(self, name: str, metric: Metric, dim: int, kind: Kind) -> "MilvusIndex":
        """Create an empty collection and return it as an index."""
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
        index = self._client.prepare_index_params()
        index.add_index(
            "embedding",
            index_type=kind.upper(),
            metric_type=_METRICS[metric],
            params=_HNSW if kind == "hnsw" else {},
        )
        self._ask(self._client.create_collection, name, schema=schema, index_params=index, consistency_level="Strong")
        return MilvusIndex(self._client, name, metric, dim, kind, self._timeout_seconds, self._limits)

    def open(self, name: str, metric: Metric, dim: int, kind: Kind) -> "MilvusIndex":
        """Return a collection, made with these parameters, as an index; raises `IndexGone` when it is not there."""
        self._ask(self._client.load_collection, name)
        return MilvusIndex(self._client, name, metric, dim, kind, self._timeout_seconds, self._limits)

    def drop(self, name: str) -> None:
        """Drop a collection with its aliases; one that is not there is not an error."""
        if self.has(name):
            for alias in self._aliases(name):
                self._ask(self._client.drop_alias, alias)
            self._ask(self._client.drop_collection, name)

    def flush(self, name: str) -> None:
        """Make Milvus seal what was added, so that it builds its index instead of scanning."""
        self._ask(self._client.flush, name)

    def compact(self, name: str) -> None:
        """Have Milvus write a collection's segments anew, without what was deleted; it does so by and by."""
        self.flush(name)
        self._ask(self._client.compact, name)

    def point(self, alias: str, name: str) -> None:
        """Let an alias stand for a collection from now on."""
        if alias not in self._aliases(name):
            is_there = alias in self._aliases()
            self._ask(self._client.alter_alias if is_there else self._client.create_alias, name, alias)

    def _aliases(self, name: str = "") -> list[str]:
        """Return a collection's aliases, or all."""
        return list(self._ask(self._client.list_aliases, name)["aliases"])

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with _answering():
            return call(*arguments, timeout=self._timeout_seconds, **options)


class MilvusIndex:
    """A `service.index.protocol.VectorIndex` in the collection `name`; vectors have `dim` numbers.

    Under cosine, vectors are stored at unit norm. Every method raises `IndexAway` when the server does not answer, and
    `IndexGone` when the collection was dropped.
    """

    def __init__(
        self,
        client: MilvusClient,
        name: str,
        metric: Metric,
        dim: int,
        kind: Kind,
        timeout_seconds: float,
        limits: Limits,
    ) -> None:
        self._client = client
        self._name = name
        self._metric = metric
        self._is_flat = kind == "flat"
        self._timeout_seconds = timeout_seconds
        self._limits = limits
        self._rows_per_message = max(1, _BYTES_PER_MESSAGE // (4 * dim))
        self._gathered_rows = max(1, limits.gathered_bytes // (4 * dim))

    def __len__(self) -> int:
        return int(self._query("", ["count(*)"])[0]["count(*)"])

    def ids(self) -> Ids:
        """Return every id, ascending."""
        found: list[int] = []
        with self._asking():
            rows = self._client.query_iterator(
                self._name, batch_size=_IDS_PER_MESSAGE, output_fields=["id"], timeout=self._timeout_seconds
            )
            while batch := rows.next():
                found += [row["id"] for row in batch]
            rows.close()
        return np.sort(np.array(found, np.int64))

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add (N,) ids with (N, D) float32 vectors; an id that is there already is replaced, in one step each.

        Always by upsert: an insertion that the client repeats after a lost answer would leave a row twice.
        """
        ids, last = np.unique(ids[::-1], return_index=True)
        vectors = vectors[::-1][last]
        if self._metric == "cosine":
            vectors = normalized(vectors)
        for part in _parts(len(ids), self._rows_per_message):
            rows = [{"id": id_, "embedding": v} for id_, v in zip(ids[part].tolist(), vectors[part], strict=True)]
            with _answering():
                self._client.upsert(self._name, rows, timeout=self._timeout_seconds)

    def remove(self, ids: Ids) -> None:
        """Remove (N,) ids; unknown ones are ignored."""
        for part in _parts(len(ids), self._limits.ids_per_expression):
            with _answering():
                self._client.delete(self._name, filter=_is_among(ids[part]), timeout=self._timeout_seconds)

    def search(
        self,
        queries: Vectors,
        k: int,
        allowed: Ids | None = None,
        *,
        exact: bool = False,  # noqa: ARG002 - Milvus scans no graph's rows
    ) -> SearchResult:
        """Return the k nearest of each of (Q, D) float32 queries, among `allowed` ids only when given; where there is a
        graph, it is walked although `exact` is asked for.

        Few allowed rows are fetched and scored here. For many, Milvus is asked for more neighbours than k without a
        condition, and those that are allowed are kept. Queries that are left with fewer than k search again, with the
        ids as a condition, some ids at a time. So do all queries if the ids fit into one condition, or if more
        neighbours would be asked for than Milvus allows.
        """
        if self._metric == "cosine":
            queries = normalized(queries)

        if allowed is None:
            return self._search(queries, k)
        allowed = np.unique(allowed)
        if len(allowed) <= self._gathered_rows:
            return self._gather(queries, k, allowed)

        fetch = math.ceil((2 * k + 20) * max(1.0, len(self) / len(allowed)))
        if len(allowed) <= self._limits.ids_per_expression or fetch > self._limits.neighbors:
            return self._search_among(queries, k, allowed)
        found = self._search(queries, fetch)
        passing = np.isin(found.ids, allowed)
        result = nearest(
            np.where(passing, found.ids, NO_ID), np.where(passing, found.distances, np.inf).astype(np.float32), k
        )

        missed = result.ids[:, -1] == NO_ID
        if missed.any():
            rest = self._search_among(queries[missed], k, allowed)
            result.ids[missed], result.distances[missed] = rest.ids, rest.distances

        return SearchResult(result.ids, result.distances, self._is_flat)

    def _search(self, queries: Vectors, k: int, condition: str = "") -> SearchResult:
        """Return Milvus's (Q, k) nearest of queries that are prepared."""
        ids = np.full((len(queries), k), NO_ID, np.int64)
        scores = np.zeros((len(queries), k), np.float32)
        for part in _parts(len(queries), max(1, _HITS_PER_SEARCH // k)):
            with self._asking():
                answer = self._client.search(
                    self._name,
                    data=list(queries[part]),
                    filter=condition,
                    limit=k,
                    output_fields=["id"],
                    search_params={} if self._is_flat else {"params": {"ef": max(_EF_SEARCH, 2 * k)}},
                    consistency_level="Strong",
                    timeout=self._timeout_seconds,
                )
            for row, hits in enumerate(answer, start=part.start):
                ids[row, : len(hits)] = [hit["id"] for hit in hits]
                scores[row, : len(hits)] = [hit["distance"] for hit in hits]

        distances = np.where(ids == NO_ID, np.inf, from_faiss(self._metric, scores)).astype(np.float32)
        found = nearest(ids, distances, k)
        return SearchResult(found.ids, found.distances, self._is_flat)

    def _search_among(self, queries: Vectors, k: int, allowed: Ids) -> SearchResult:
        """Return the nearest among many rows, by expressions that name them."""
        best = no_rows(queries)
        for part in _parts(len(allowed), self._limits.ids_per_expression):
            found = self._search(queries, k, _is_among(allowed[part]))
            best = nearest(np.hstack([best.ids, found.ids]), np.hstack([best.distances, found.distances]), k)
        return SearchResult(best.ids, best.distances, self._is_flat)

    def _gather(self, queries: Vectors, k: int, allowed: Ids) -> SearchResult:
        """Return the nearest among few rows, exactly."""
        rows = self._query(_is_among(allowed), ["id", "embedding"]) if len(allowed) else []
        if not rows:
            return nearest(np.empty(0, np.int64), np.empty((len(queries), 0), np.float32), k)
        vectors = np.array([row["embedding"] for row in rows], np.float32)
        ids: Ids = np.array([row["id"] for row in rows], np.int64)
        return nearest(ids, exact_distances(self._metric, queries, vectors), k)

    def _query(self, condition: str, fields: list[str]) -> list[dict[str, Any]]:
        with self._asking():
            rows: list[dict[str, Any]] = self._client.query(
                self._name,
                filter=condition,
                output_fields=fields,
                consistency_level="Strong",
                timeout=self._timeout_seconds,
            )
        return rows

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """As `_answering`; a collection that was released (by a restart of Milvus Lite) is loaded for the next try."""
        try:
            yield
        except MilvusException as error:
            if error.code == _COLLECTION_NOT_LOADED:
                with _answering():
                    self._client.load_collection(self._name, timeout=self._timeout_seconds)
            raise _own_error(error) from error


def _is_among(ids: Ids) -> str:
    """Return the expression; Milvus Lite knows no parameters in one."""
    return f"id in {ids.tolist()}"


def _parts(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _without_credentials(url: str) -> tuple[str, str, str]:
    """Return a URL's address, which errors and logs may show, its user and its password."""
    parts = urlsplit(url)
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else url
    return address, unquote(parts.username or ""), unquote(parts.password or "")


@contextmanager
def _answering() -> Iterator[None]:
    """Raise what Milvus raises as this package's own errors."""
    try:
        yield
    except MilvusException as error:
        raise _own_error(error) from error


def _own_error(error: MilvusException) -> IndexAway | IndexGone:
    if error.code == _COLLECTION_NOT_FOUND:
        return IndexGone(error.message)
    return IndexAway(f"Milvus: {error.message}")
