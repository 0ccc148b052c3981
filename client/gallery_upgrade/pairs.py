"""Pairs that h is trained from: which items are to be encoded again, and their vectors of both model versions."""

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa


@dataclass(frozen=True, order=True)
class Drawn:
    """An item that was drawn; `image_uri` is where its image is kept, "" where that is not known."""

    id: str
    image_uri: str = ""


def draw(items: "Iterable[tuple[str, str | None, str | None]]", wanted: int, seed: int) -> list[Drawn]:
    """Draw up to `wanted` of items, given as (id, label, image_uri) in any order: the same for the same seed and items,
    and of each label about its share.

    Memory holds at most `wanted` items of each label.
    """
    counts: Counter[str | None] = Counter()
    kept: dict[str | None, list[tuple[int, Drawn]]] = {}  # heaps: the greatest chance first
    for item_id, label, image_uri in items:
        counts[label] += 1
        heap = kept.setdefault(label, [])
        entry = (-_chance(item_id, seed), Drawn(item_id, image_uri or ""))
        if len(heap) < wanted:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    ranked = [
        (rank / counts[label], -negative, drawn)
        for label, heap in kept.items()
        for rank, (negative, drawn) in enumerate(sorted(heap, reverse=True), 1)
    ]
    return [drawn for _, _, drawn in sorted(ranked)[:wanted]]


def _chance(item_id: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}\0{item_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest)


@dataclass(frozen=True)
class Pairs:
    """A table for a training, one row for each item that is in both; `missing` are ids without a stored vector."""

    table: "pa.Table"
    missing: int


def pair(stored: "Iterable[pa.Table | pa.RecordBatch]", encoded: "Iterable[pa.Table]") -> Pairs:
    """Pair stored vectors with those of another model version, by id.

    `stored` have the columns id, embedding and perhaps side_information and label, and are read until every id was
    found; `encoded` have id, embedding and perhaps side_information, and are held in memory with their stored ones.
    Raises ValueError for tables without these columns, ids that occur twice, and vectors of several dimensions.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    new = _together(encoded, ["side_information"])
    ids = new["id"].combine_chunks()
    if pc.count_distinct(ids).as_py() != len(ids):
        raise ValueError("An id occurs twice among the vectors, or is null.")
    parts, places = [], []
    left = len(ids)
    for rows in stored:
        found = pc.index_in(_texts(rows["id"]), value_set=ids)
        is_found = pc.is_valid(found)
        parts.append(pa.table({name: rows[name] for name in rows.schema.names}).filter(is_found))
        places.append(found.filter(is_found))
        left -= len(places[-1])
        if left == 0:
            break
    if left == len(ids):
        raise ValueError("None of the ids of the vectors has a stored one.")
    old = _together(parts, ["side_information", "label"])
    new = new.take(pa.concat_arrays(places))
    columns = {
        f"{name}_{side}": _vectors(table, name)
        for side, table in (("from", old), ("to", new))
        for name in ("embedding", "side_information")
        if name in table.column_names
    }
    if "label" in old.column_names and old["label"].null_count == 0:
        columns["label"] = old["label"]
    return Pairs(pa.table(columns), left)


def _together(tables: "Iterable[pa.Table]", optional: list[str]) -> "pa.Table":
    """Return tables as one with the columns id, embedding, and those of `optional` that they have."""
    import pyarrow as pa

    parts = []
    for table in tables:
        lacking = {"id", "embedding"} - set(table.column_names)
        if lacking:
            raise ValueError(f"The column {' and '.join(sorted(lacking))} is missing; there are {table.column_names}.")
        names = ["embedding", *(name for name in optional if name in table.column_names)]
        parts.append(pa.table({"id": _texts(table["id"]), **{name: table[name] for name in names}}))
    if not parts:
        raise ValueError("There are no vectors.")
    return pa.concat_tables(parts)


def _texts(column: Any) -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.cast(whole, pa.string())


def _vectors(table: "pa.Table", name: str) -> "pa.Array":
    """Return a column of vectors as lists of float32, of one length."""
    import numpy as np
    import pyarrow as pa

    column = table[name].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    dim, rest = divmod(len(values), len(column))
    if rest or column.null_count:
        raise ValueError(f"The vectors of {name!r} have several dimensions, or some are null.")
    return pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(values, np.float32)), dim)


def network_of(choices: "Mapping[str, Any]") -> str:
    """Return in words what h is, by the choices that its training made on rows that it did not learn from."""
    share, members, width = choices.get("linear_share"), choices.get("members"), choices.get("inner_dim")
    if share is not None and share >= 1:
        return "the linear map alone, in closed form"
    mlp = f"{members} MLPs of width {width}" if members != 1 else f"an MLP of width {width}"
    return mlp if not share else f"{mlp}, and {share:.0%} of the linear map beside"
