"""Rows of embeddings as arrays, and the byte layout in which PostgreSQL's binary COPY carries them.

Every row of a generation has the same byte width, so a chunk of rows is one numpy structured array: field count, then
for each field its length and its bytes, big-endian. A vector is in pgvector's wire format: int16 dim, int16 unused,
values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

StoredDtype = Literal["float16", "float32"]
Vectors = NDArray[Any]  # float16 as stored, or float32


class Origin(IntEnum):
    """Where a row's embedding came from."""

    ENCODED = 1
    IMPORTED = 2
    TRANSFORMED = 3
    BACKFILLED = 4

    @property
    def label(self) -> str:
        return self.name.lower()


class UnexpectedRow(RuntimeError):
    """A COPY stream is not one of a generation's rows: a row has another width, or the end is missing."""


@dataclass(frozen=True)
class VectorFormat:
    """The dimensions and dtype of a generation's vectors; `side_information_dim` is None when its rows carry no ψ, and
    `needs_direction` says that no embedding may be zero."""

    embedding_dim: int
    side_information_dim: int | None
    dtype: StoredDtype
    needs_direction: bool = False

    @property
    def sql_types(self) -> dict[str, str]:
        """Return the types of a row's columns by name, in COPY's order."""
        vector = "halfvec" if self.dtype == "float16" else "vector"
        types = {"item_id": "bigint", "revision": "bigint", "origin": "smallint", "hops": "smallint"}
        types |= {"uncertainty": "real", "embedding": f"{vector}({int(self.embedding_dim)})"}
        if self.side_information_dim is not None:
            types["side_information"] = f"{vector}({int(self.side_information_dim)})"
        return types

    @property
    def column_names(self) -> list[str]:
        """Return the columns of a row, in COPY's order."""
        return list(self.sql_types)

    @cached_property
    def row_dtype(self) -> np.dtype[np.void]:
        """The packed layout of one binary COPY row."""
        value = ">f2" if self.dtype == "float16" else ">f4"
        fields: list[tuple[Any, ...]] = [
            ("field_count", ">i2"),
            ("item_id_length", ">i4"),
            ("item_id", ">i8"),
            ("revision_length", ">i4"),
            ("revision", ">i8"),
            ("origin_length", ">i4"),
            ("origin", ">i2"),
            ("hops_length", ">i4"),
            ("hops", ">i2"),
            ("uncertainty_length", ">i4"),
            ("uncertainty", ">f4"),
        ]
        for name, dim in (("embedding", self.embedding_dim), ("side_information", self.side_information_dim)):
            if dim is not None:
                fields += [(f"{name}_length", ">i4"), (f"{name}_dim", ">i2"), (f"{name}_unused", ">i2")]
                fields.append((name, value, (dim,)))
        return np.dtype(fields)

    @cached_property
    def template(self) -> NDArray[np.void]:
        """One row with every count and length filled in and every value zero."""
        row = np.zeros(1, self.row_dtype)
        row["field_count"] = len(self.column_names)
        row["item_id_length"] = row["revision_length"] = 8
        row["origin_length"] = row["hops_length"] = 2
        row["uncertainty_length"] = 4
        item_bytes = 2 if self.dtype == "float16" else 4
        for name, dim in (("embedding", self.embedding_dim), ("side_information", self.side_information_dim)):
            if dim is not None:
                row[f"{name}_length"] = 4 + dim * item_bytes
                row[f"{name}_dim"] = dim
        return row


@dataclass
class EmbeddingRows:
    """Rows of one generation: item_id and revision (N,) int64, origin and hops (N,) int16, uncertainty (N,) float32,
    embedding (N, D) and side_information (N, S) or None, both in the stored dtype.

    `hops` counts the transformations since the pixels or the import. `uncertainty` is the squared error that h expects
    of its output: 0 where there was no h, NaN where h does not say.
    """

    item_id: NDArray[np.int64]
    revision: NDArray[np.int64]
    origin: NDArray[np.int16]
    hops: NDArray[np.int16]
    uncertainty: NDArray[np.float32]
    embedding: NDArray[Any]
    side_information: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.item_id)

    def part(self, positions: slice) -> "EmbeddingRows":
        """Return some of the rows; the arrays are views."""
        side = self.side_information
        return EmbeddingRows(
            item_id=self.item_id[positions],
            revision=self.revision[positions],
            origin=self.origin[positions],
            hops=self.hops[positions],
            uncertainty=self.uncertainty[positions],
            embedding=self.embedding[positions],
            side_information=None if side is None else side[positions],
        )

    @staticmethod
    def concatenate(parts: Sequence["EmbeddingRows"]) -> "EmbeddingRows":
        """Return the rows of all parts in order; there must be at least one part."""
        side = [part.side_information for part in parts if part.side_information is not None]
        return EmbeddingRows(
            item_id=np.concatenate([part.item_id for part in parts]),
            revision=np.concatenate([part.revision for part in parts]),
            origin=np.concatenate([part.origin for part in parts]),
            hops=np.concatenate([part.hops for part in parts]),
            uncertainty=np.concatenate([part.uncertainty for part in parts]),
            embedding=np.concatenate([part.embedding for part in parts]),
            side_information=np.concatenate(side) if side else None,
        )
