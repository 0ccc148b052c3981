"""New queries of a query set: what a user says of each, and whether it can be stored; read from tables too."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from service.db import is_storable
from service.domain.gallery.new_items import MAX_ID_LENGTH, InvalidItem, canonical_id, check_external_id, shown_id
from service.errors import Unprocessable
from service.index.protocol import Vectors
from service.tables import ModelVersion
from service.vectors.arrow import (
    check_columns,
    read_string_lists,
    read_strings,
    read_table,
    read_vectors,
    refuse_no_rows,
)

COLUMNS = {"id", "embedding", "item_id", "label", "relevant", "slice"}
MAX_QUERIES = 100_000  # of a set
MAX_RELEVANT = 1_000  # items of a query
MAX_RELEVANT_IN_ALL = 1_000_000  # of a request
SHOWN = 100  # queries that a refusal names

Fault = tuple[int, str]  # the position of a query in the request, and what is wrong with it


class InvalidQueries(Unprocessable):
    """Some queries of the request cannot be stored; nothing of it was."""


@dataclass(frozen=True)
class NewQuery:
    """A query by its id, and what it should find: items with the label, or the relevant ones, one of the two. `item_id`
    names the item that is the same image, which no answer counts. Ids are canonical, however they were given."""

    external_id: str
    item_id: str | None = None
    label: str | None = None
    relevant: tuple[str, ...] = ()
    slice: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "external_id", canonical_id(self.external_id))
        object.__setattr__(self, "item_id", None if self.item_id is None else canonical_id(self.item_id))
        object.__setattr__(self, "relevant", tuple(map(canonical_id, self.relevant)))


def read_queries(body: BinaryIO) -> tuple[list[NewQuery], Vectors]:
    """Return the queries of a table and their vectors, (N, D) float32. Raises as `read_table` does, `InvalidImport`,
    and `InvalidQueries` for too many."""
    table = read_table(body)
    check_columns(table.column_names, COLUMNS, required=("id", "embedding"))
    refuse_no_rows(table.num_rows)
    if table.num_rows > MAX_QUERIES:
        raise InvalidQueries(f"A set has at most {MAX_QUERIES} queries; the table has {table.num_rows}.")
    ids = read_strings(table, "id", nullable=False)
    item_ids, labels, slices = (read_strings(table, name, nullable=True) for name in ("item_id", "label", "slice"))
    relevant = read_string_lists(table, "relevant", MAX_RELEVANT_IN_ALL)
    queries = [
        NewQuery(str(id_), item_id, label, tuple(names), slice_)
        for id_, item_id, label, names, slice_ in zip(ids, item_ids, labels, relevant, slices, strict=True)
    ]
    return queries, read_vectors(table, "embedding")


def refuse_faults(queries: Sequence[NewQuery], faults: Iterable[Fault]) -> None:
    """Raise `InvalidQueries` (422) that names the first queries with faults, if there are any."""
    found = sorted(faults)
    if found:
        errors: list[dict[str, object]] = [
            {"query": shown_id(queries[place].external_id), "position": place, "detail": fault}
            for place, fault in found[:SHOWN]
        ]
        raise InvalidQueries(f"{len({place for place, _ in found})} of the queries cannot be stored.", errors)


def query_faults(queries: Sequence[NewQuery], known: Collection[str] = ()) -> Iterator[Fault]:
    """Give what is wrong with the queries, except those with known ids, of which nothing need be said."""
    yield from _repeated(queries)
    if sum(len(query.relevant) for query in queries) > MAX_RELEVANT_IN_ALL:
        yield 0, f"A request names at most {MAX_RELEVANT_IN_ALL} relevant items."
    for place, query in enumerate(queries):
        if query.external_id not in known:
            yield from ((place, fault) for fault in _faults_of(query))


def _faults_of(query: NewQuery) -> Iterator[str]:
    for name in [query.external_id, *query.relevant, *([] if query.item_id is None else [query.item_id])]:
        try:
            check_external_id(name)
        except InvalidItem as error:
            yield error.message
    for word, value in (("label", query.label), ("slice", query.slice)):
        if value is not None and (not is_storable(value) or len(value) > MAX_ID_LENGTH):
            yield f"The {word} cannot be stored: at most {MAX_ID_LENGTH} characters, no NUL."
    if len(query.relevant) > MAX_RELEVANT:
        yield f"At most {MAX_RELEVANT} items are relevant to a query."
    if (query.label is None) == (not query.relevant):
        yield "A query has a label or relevant items, one of the two."


def _repeated(queries: Sequence[NewQuery]) -> Iterator[Fault]:
    seen: set[str] = set()
    for place, query in enumerate(queries):
        if query.external_id in seen:
            yield place, "The id occurs twice in this request."
        seen.add(query.external_id)


def vector_faults(vectors: Vectors, version: ModelVersion) -> Iterator[Fault]:
    """Give what is wrong with (N, D) vectors of a version."""
    if vectors.shape[1] != version.embedding_dim:
        yield 0, f"The vectors have {vectors.shape[1]} numbers; {version.name!r} has {version.embedding_dim}."
        return
    for place in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
        yield place, "The vector has a value that is not finite."
