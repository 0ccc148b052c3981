"""Import of vectors that a user already has: Parquet, an Arrow IPC stream or an Arrow IPC file.

They go into the active generation; an open upgrade's catch-up transforms them. What was upgraded elsewhere says so
(`service.domain.gallery.provenance`). Between a cutover and its finalize, they
may come with the previous version's values beside them, so that a rollback keeps them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
from jiter import from_json
from numpy.typing import NDArray

from service.domain.gallery.generations import StoredGeneration
from service.domain.gallery.new_items import NewItem, item_faults
from service.domain.gallery.probe_images import Originals
from service.domain.gallery.provenance import read_provenance
from service.domain.gallery.writes import GalleryWriter, NewRows, Target, new_rows
from service.errors import Conflict, Unavailable
from service.metrics import INGESTED
from service.vectors.arrow import (
    BadRows,
    InvalidImport,
    RowFaults,
    check_columns,
    open_table,
    plain_values,
    read_strings,
    read_vectors,
    refuse_no_rows,
)
from service.vectors.arrow_bytes import written_bytes
from service.vectors.bounded_tables import TableLimits
from service.vectors.rows import EmbeddingRows, Origin
from service.vectors.storing import NotStorable, to_storage

COLUMNS = {
    "id",
    "embedding",
    "side_information",
    "origin",
    "hops",
    "uncertainty",
    "previous_embedding",
    "previous_side_information",
    "label",
    "metadata",
    "image_uri",
}


_METADATA_SPACE = 8


class OtherSpace(Conflict):
    """The vectors were said to be of another model version than the active one."""


def import_embeddings(writer: GalleryWriter, gallery_name: str, body: BinaryIO, model_version: str | None) -> int:
    """Store every row or none, and return how many. Memory holds a few rows at a time.

    Raises `InvalidImport` (422), `UnknownFormat` (415), `TableTooLarge` (413), `ImagesTooBusy` (429), and
    `OtherSpace` (409) when `model_version` is given and is not the active one.
    """
    busy = Unavailable("Upgrades of this gallery kept changing during the import; try again.")
    _, written = writer.write(gallery_name, partial(_Import, body, model_version, _limits(writer)), busy)
    INGESTED.labels("vectors", "stored").inc(written.items)
    return written.items


@dataclass(frozen=True)
class _Limits:
    table: TableLimits
    metadata_bytes: int


def _limits(writer: GalleryWriter) -> _Limits:
    """Return what one table may bring; it is decompressed within the process's budget of decoded bytes."""
    settings = writer.settings
    table = TableLimits(settings.max_table_rows, settings.max_table_bytes, writer.encoders.images.budget.hold)
    return _Limits(table, settings.max_metadata_bytes)


class _Import:
    """A table on its way into a gallery's active generation, and perhaps the previous one.

    Its parts are read from the body each time that they are asked for. Where a row is bad, the rest is read too, so
    that all such rows are counted, and then refused.
    """

    originals: ClassVar[Originals] = {}
    names_replaced = False

    def __init__(self, body: BinaryIO, model_version: str | None, limits: "_Limits", target: Target) -> None:
        """Raises `OtherSpace` (409)."""
        gallery = target.gallery
        by_id = {generation.id: generation for generation in target.generations}
        self.active_generation_id = gallery.active_generation_id
        self._active = next(g for g in target.generations if g.id == gallery.active_generation_id)
        self._previous = None if target.previous_generation_id is None else by_id.get(target.previous_generation_id)
        self._body = body
        self._limits = limits.table
        self._max_metadata_bytes = limits.metadata_bytes
        if model_version not in (None, self._active.version.name):
            raise OtherSpace(
                f"The active generation of {gallery.name!r} is under model version {self._active.version.name!r}, not"
                f" {model_version!r}."
            )

    def parts(self) -> Iterator[NewRows]:
        """Give all rows, in order; raises as `import_embeddings` says."""
        faults, ids = RowFaults(), _Ids()
        with open_table(self._body, self._limits) as table:
            names = table.schema.names
            check_columns(names, COLUMNS, required=("id", "embedding"))
            prefixes = self._prefixes(names)
            for batch in table.batches:
                part = self._part(pa.Table.from_batches([batch]), prefixes, faults, ids)
                if part is not None and not faults:
                    yield part
                faults.start += batch.num_rows
        refuse_no_rows(faults.start)
        faults.start = 0
        faults.add((row, "The id occurs twice in this request.") for row in ids.repeated())
        faults.refuse()

    def _prefixes(self, names: Sequence[str]) -> dict[str, StoredGeneration]:
        """Return the generations that the table has vectors for, by what the names of their columns begin with."""
        found = {"": self._active}
        if "previous_embedding" in names:
            if self._previous is None:
                raise InvalidImport("No previous generation is kept, so there is nothing for previous_embedding.")
            found["previous_"] = self._previous
        elif "previous_side_information" in names:
            raise InvalidImport("The column 'previous_side_information' comes with 'previous_embedding'.")

        for prefix, generation in found.items():
            name = f"{prefix}side_information"
            wanted = generation.vector_format.side_information_dim is not None
            if (name in names) != wanted:
                verb = "needs" if wanted else "has no"
                raise InvalidImport(f"The generation under {generation.version.name!r} {verb} {name}.")
        return found

    def _part(
        self, table: pa.Table, prefixes: dict[str, StoredGeneration], faults: RowFaults, ids: "_Ids"
    ) -> NewRows | None:
        """Return some rows of the table; None where one of them is bad."""
        items = self._items(table, faults)
        ids.add(items)
        provenance = faults.reading(read_provenance, table)
        found = {
            generation.id: faults.reading(_rows, table, prefix, generation) for prefix, generation in prefixes.items()
        }
        rows = {generation_id: rows for generation_id, rows in found.items() if rows is not None}
        if provenance is None or len(rows) < len(found):
            return None
        rows[self._active.id] = replace(rows[self._active.id], **vars(provenance))
        return NewRows(items, rows)

    def _items(self, table: pa.Table, faults: RowFaults) -> list[NewItem]:
        external_ids = read_strings(table, "id", nullable=True, cut=True)
        labels = read_strings(table, "label", nullable=True, cut=True)
        image_uris = read_strings(table, "image_uri", nullable=True, cut=True)
        metadata, metadata_faults = _metadata(table, self._max_metadata_bytes)
        items = [
            NewItem(external_id or "", said, label, image_uri)
            for external_id, said, label, image_uri in zip(external_ids, metadata, labels, image_uris, strict=True)
        ]
        faults.add((row, "The column 'id' is null.") for row, value in enumerate(external_ids) if value is None)
        faults.add(metadata_faults)
        faults.add(item_faults(items, self._max_metadata_bytes))
        return items


class _Ids:
    """The ids of a table, by their digests: 16 bytes each, whatever their length."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def add(self, items: Sequence[NewItem]) -> None:
        for item in items:
            encoded = item.external_id.encode(errors="surrogatepass")
            self._digests += hashlib.blake2b(encoded, digest_size=16).digest()

    def repeated(self) -> list[int]:
        """Return the rows whose id an earlier row has."""
        digests = np.frombuffer(self._digests, np.uint64).reshape(-1, 2)
        order = np.lexsort(digests.T)  # of equal ones, the earlier row comes first
        again = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        return [int(row) for row in order[1:][again]]


def read_metadata(table: pa.Table, max_bytes: int = 2**16) -> list[dict[str, Any]]:
    """Return each row's metadata: structs, maps or JSON text; null is none. Raises `InvalidImport` (422), for metadata
    that is far larger than `max_bytes` too."""
    metadata, faults = _metadata(table, max_bytes)
    if faults:
        raise BadRows(faults)
    return metadata


def _metadata(table: pa.Table, max_bytes: int) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """Return each row's metadata, none where it is bad, and what is wrong with the bad ones."""
    if "metadata" not in table.column_names:
        return [{} for _ in range(table.num_rows)], []
    rows: list[dict[str, Any]] = []
    faults: list[tuple[int, str]] = []
    column = table.column("metadata")
    for number in range(table.num_rows):
        value = column.slice(number, 1)
        # JSON may have spaces and escapes, and numbers take 8 bytes: what is far larger is no Python object first.
        if written_bytes(value) > _METADATA_SPACE * max_bytes:
            faults.append((number, f"The metadata is larger than {max_bytes} bytes."))
            rows.append({})
            continue
        said, fault = _said(plain_values(value)[0])
        if fault is not None:
            faults.append((number, fault))
        rows.append(said)
    return rows, faults


def _said(value: Any) -> tuple[dict[str, Any], str | None]:
    """Return metadata as it is said, and what is wrong with it."""
    try:
        parsed = from_json(value.encode(), catch_duplicate_keys=True) if isinstance(value, str) else value
        json.dumps(parsed)
    except (ValueError, TypeError, RecursionError) as error:
        return {}, f"The metadata is not JSON: {error}"
    if parsed is not None and not isinstance(parsed, dict):
        return {}, "The metadata is not an object."
    return parsed or {}, None


def _rows(table: pa.Table, prefix: str, generation: StoredGeneration) -> EmbeddingRows:
    vector_format = generation.vector_format
    name, side_name = f"{prefix}embedding", f"{prefix}side_information"
    side_information = None
    if vector_format.side_information_dim is not None:
        side_information = _stored(table, side_name, vector_format.side_information_dim, generation)
    needs_direction = vector_format.needs_direction
    embedding = _stored(table, name, vector_format.embedding_dim, generation, needs_direction)
    return new_rows(Origin.IMPORTED, embedding, side_information)


def _stored(
    table: pa.Table, name: str, dim: int, generation: StoredGeneration, needs_direction: bool = False
) -> NDArray[Any]:
    values = read_vectors(table, name, dim)
    try:
        return to_storage(values, generation.vector_format.dtype, needs_direction=needs_direction)
    except NotStorable as error:
        faults = [(row, f"The vector of {name!r} {error.reason_of(row)}.") for row in error.rows.tolist()]
        raise BadRows(faults) from error
