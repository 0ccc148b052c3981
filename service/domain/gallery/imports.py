"""Import of vectors that a user already has, as an Arrow IPC stream or Parquet.

They go into the active generation; an open upgrade's catch-up transforms them. Between a cutover and its finalize, they
may come with the previous version's values beside them, so that a rollback keeps them.
"""

import json
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from service.db import Database
from service.domain.gallery.galleries import get_gallery
from service.domain.gallery.generations import StoredGeneration, previous_generation, stored_generations
from service.domain.gallery.new_items import NewItem, check_items
from service.domain.gallery.writes import GenerationsChanged, write_items
from service.errors import Conflict, Unavailable
from service.index.replica import Replicas
from service.settings import Settings
from service.vectors.arrow import InvalidImport, read_table, read_vectors
from service.vectors.rows import EmbeddingRows, NotStorable, Origin, to_storage

COLUMNS = {
    "id",
    "embedding",
    "side_information",
    "previous_embedding",
    "previous_side_information",
    "label",
    "metadata",
}
_WRITE_ATTEMPTS = 10


class OtherSpace(Conflict):
    """The vectors were said to be of another model version than the active one."""


@dataclass(frozen=True)
class _Vectors:
    """(N, D) and (N, S) under one model version; `prefix` is that of their columns' names."""

    prefix: str
    embedding: NDArray[np.float32]
    side_information: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Table:
    items: list[NewItem]
    active: _Vectors
    previous: _Vectors | None


def import_embeddings(
    database: Database,
    replicas: Replicas,
    settings: Settings,
    gallery_name: str,
    body: BinaryIO,
    model_version: str | None,
) -> int:
    """Store every row or none, and return how many.

    Raises `InvalidImport` (422), `UnknownFormat` (415), and `OtherSpace` (409) when `model_version` is given and is
    not the active one.
    """
    table = _parse(read_table(body))
    check_items(table.items, settings.max_metadata_bytes)
    for _ in range(_WRITE_ATTEMPTS):
        with database.session_scope() as session:
            gallery = get_gallery(session, gallery_name)
            generations = stored_generations(session, gallery.id)
            previous_id = previous_generation(session, gallery.active_generation_id)
        active = next(g for g in generations if g.id == gallery.active_generation_id)
        if model_version not in (None, active.version.name):
            raise OtherSpace(
                f"The active generation of {gallery_name!r} is under model version {active.version.name!r}, not"
                f" {model_version!r}."
            )
        rows = {active.id: _rows(table.active, active)}
        if table.previous is not None:
            previous = next((generation for generation in generations if generation.id == previous_id), None)
            if previous is None:
                raise InvalidImport("No previous generation is kept, so there is nothing for previous_embedding.")
            rows[previous.id] = _rows(table.previous, previous)
        try:
            with database.session_scope() as session:
                written = write_items(
                    session,
                    gallery.id,
                    table.items,
                    generations,
                    rows,
                    active_generation_id=active.id,
                )
        except GenerationsChanged:
            continue
        replicas.sync(gallery.id, written.revision)
        return len(table.items)
    raise Unavailable("Upgrades of this gallery kept changing during the import; try again.")


def _parse(table: pa.Table) -> _Table:
    unknown = set(table.column_names) - COLUMNS
    if unknown or len(set(table.column_names)) != len(table.column_names):
        raise InvalidImport(f"Columns are {', '.join(sorted(COLUMNS))}, each once; got {table.column_names}.")
    for required in ("id", "embedding"):
        if required not in table.column_names:
            raise InvalidImport(f"The column {required!r} is missing.")
    if table.num_rows == 0:
        raise InvalidImport("The table has no rows.")
    ids = _strings(table, "id", nullable=False)
    labels = _strings(table, "label", nullable=True)
    metadata = _metadata(table)
    items = [NewItem(str(id_), metadata[row], label) for row, (id_, label) in enumerate(zip(ids, labels, strict=True))]
    previous = None
    if "previous_embedding" in table.column_names:
        previous = _vectors_of(table, "previous_")
    elif "previous_side_information" in table.column_names:
        raise InvalidImport("The column 'previous_side_information' comes with 'previous_embedding'.")
    return _Table(items, _vectors_of(table, ""), previous)


def _vectors_of(table: pa.Table, prefix: str) -> _Vectors:
    side_information = f"{prefix}side_information"
    return _Vectors(
        prefix,
        read_vectors(table, f"{prefix}embedding"),
        read_vectors(table, side_information) if side_information in table.column_names else None,
    )


def _strings(table: pa.Table, name: str, *, nullable: bool) -> list[str | None]:
    if name not in table.column_names:
        return [None] * table.num_rows
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_null(column.type)):
        raise InvalidImport(f"The column {name!r} has strings; got {column.type}.")
    if column.null_count and not nullable:
        raise InvalidImport(f"The column {name!r} has nulls.")
    values: list[str | None] = column.to_pylist()
    return values


def _metadata(table: pa.Table) -> list[dict[str, Any]]:
    """Metadata comes as structs, maps or JSON text; null is no metadata."""
    if "metadata" not in table.column_names:
        return [{} for _ in range(table.num_rows)]
    try:
        values = table.column("metadata").to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError) as error:  # a key that occurs twice, a date that Python has not
        raise InvalidImport(f"The column 'metadata' cannot be read as JSON objects: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, value in enumerate(values):
        try:
            parsed = json.loads(value) if isinstance(value, str) else value
            json.dumps(parsed)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidImport(f"The metadata of row {number} is not JSON: {error}") from error
        if parsed is not None and not isinstance(parsed, dict):
            raise InvalidImport(f"The metadata of row {number} is not an object.")
        rows.append(parsed or {})
    return rows


def _rows(vectors: _Vectors, generation: StoredGeneration) -> EmbeddingRows:
    vector_format = generation.vector_format
    count = len(vectors.embedding)
    side_information = vectors.side_information
    names = (f"{vectors.prefix}embedding", f"{vectors.prefix}side_information")
    if (side_information is None) != (vector_format.side_information_dim is None):
        verb = "needs" if side_information is None else "has no"
        raise InvalidImport(f"The generation under {generation.version.name!r} {verb} {names[1]}.")
    stored_side = None
    if side_information is not None and vector_format.side_information_dim is not None:
        stored_side = _stored(side_information, vector_format.side_information_dim, names[1], generation)
    return EmbeddingRows(
        item_id=np.arange(count, dtype=np.int64),
        revision=np.zeros(count, np.int64),
        origin=np.full(count, Origin.IMPORTED, np.int16),
        embedding=_stored(vectors.embedding, vector_format.embedding_dim, names[0], generation),
        side_information=stored_side,
    )


def _stored(values: NDArray[np.float32], dim: int, name: str, generation: StoredGeneration) -> NDArray[Any]:
    if values.shape[1] != dim:
        raise InvalidImport(
            f"Rows of {name!r} have {values.shape[1]} numbers; model version {generation.version.name!r} has {dim}."
        )
    try:
        return to_storage(values, generation.vector_format.dtype)
    except NotStorable as error:
        raise InvalidImport(f"Column {name!r}: {error}") from error
