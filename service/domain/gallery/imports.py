"""Import of vectors that a user already has, as an Arrow IPC stream or Parquet.

They go into the active generation; an open upgrade's catch-up transforms them. Between a cutover and its finalize, they
may come with the previous version's values beside them, so that a rollback keeps them.
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from service.domain.gallery.generations import StoredGeneration, previous_generation
from service.domain.gallery.new_items import NewItem, check_items
from service.domain.gallery.writes import GalleryWriter, NewRows, Target, new_rows
from service.errors import Conflict, Unavailable
from service.vectors.arrow import InvalidImport, check_columns, read_strings, read_table, read_vectors
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


def import_embeddings(writer: GalleryWriter, gallery_name: str, body: BinaryIO, model_version: str | None) -> int:
    """Store every row or none, and return how many.

    Raises `InvalidImport` (422), `UnknownFormat` (415), and `OtherSpace` (409) when `model_version` is given and is
    not the active one.
    """
    table = _parse(read_table(body))
    check_items(table.items, writer.settings.max_metadata_bytes)
    busy = Unavailable("Upgrades of this gallery kept changing during the import; try again.")
    writer.write(gallery_name, partial(_rows_for, writer, table, model_version), busy)
    return len(table.items)


def _rows_for(writer: GalleryWriter, table: _Table, model_version: str | None, target: Target) -> NewRows:
    active = next(g for g in target.generations if g.id == target.gallery.active_generation_id)
    if model_version not in (None, active.version.name):
        raise OtherSpace(
            f"The active generation of {target.gallery.name!r} is under model version {active.version.name!r}, not"
            f" {model_version!r}."
        )

    rows = {active.id: _rows(table.active, active)}
    if table.previous is not None:
        with writer.database.session_scope() as session:
            previous_id = previous_generation(session, active.id)
        previous = next((generation for generation in target.generations if generation.id == previous_id), None)
        if previous is None:
            raise InvalidImport("No previous generation is kept, so there is nothing for previous_embedding.")
        rows[previous.id] = _rows(table.previous, previous)
    return NewRows(table.items, rows, active_generation_id=active.id)


def _parse(table: pa.Table) -> _Table:
    check_columns(table, COLUMNS, required=("id", "embedding"))
    ids = read_strings(table, "id", nullable=False)
    labels = read_strings(table, "label", nullable=True)
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
    side_information = vectors.side_information
    names = (f"{vectors.prefix}embedding", f"{vectors.prefix}side_information")
    if (side_information is None) != (vector_format.side_information_dim is None):
        verb = "needs" if side_information is None else "has no"
        raise InvalidImport(f"The generation under {generation.version.name!r} {verb} {names[1]}.")

    stored_side = None
    if side_information is not None and vector_format.side_information_dim is not None:
        stored_side = _stored(side_information, vector_format.side_information_dim, names[1], generation)
    embedding = _stored(vectors.embedding, vector_format.embedding_dim, names[0], generation)
    return new_rows(Origin.IMPORTED, embedding, stored_side)


def _stored(values: NDArray[np.float32], dim: int, name: str, generation: StoredGeneration) -> NDArray[Any]:
    if values.shape[1] != dim:
        raise InvalidImport(
            f"Rows of {name!r} have {values.shape[1]} numbers; model version {generation.version.name!r} has {dim}."
        )
    try:
        return to_storage(values, generation.vector_format.dtype)
    except NotStorable as error:
        raise InvalidImport(f"Column {name!r}: {error}") from error
