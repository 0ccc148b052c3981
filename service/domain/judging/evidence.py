"""The rows that an upgrade is judged by: items that both model versions encoded, and both generations as they are.

Two kinds of items have an embedding by the new version that no h made: references (`reference_pairs`), and images that
came while the upgrade was open, which both versions encoded. What h gives for an item is its row in the next
generation where h made that; where the new version encoded it, it is computed, from the row that the upgrade reads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import driver_connection
from service.domain.gallery.current_rows import (
    count_missing,
    current_rows_query,
    has_current,
    is_current,
    read_current_vectors,
)
from service.domain.gallery.generations import StoredGeneration, count_live, get_stored_generation
from service.domain.judging.reference_pairs import IS_REFERENCE, pair_parameters, versions_of
from service.index.protocol import Ids, Vectors
from service.tables import Gallery, Generation, Task, Transformation, Upgrade
from service.vectors.copy import read_rows
from service.vectors.rows import EmbeddingRows, Origin, VectorFormat

_REFERENCE, _INGESTED = "reference", "ingested"
_DECILES = 10
_MOST_VALUES = 50  # of a metadata field by which queries are told apart
_MOST_FIELDS = 20

# (rows of a leg's generation, the format of the rows to give, transformation ids) -> those rows.
Transform = Callable[[EmbeddingRows, VectorFormat, tuple[int, ...]], EmbeddingRows]


@dataclass(frozen=True)
class JudgedItems:
    """N items by ascending id: before, (N, D_old), and after, (N, D_new), are what the active and the new version make
    of their images, transformed, (N, D_new), what h gives, all float32; rows: what h read.

    uncertainty: (N,) float32, the squared error that h expects, NaN where it does not say; labels: (N,) int64 class
    numbers, -1 without a label; attributes: by name (N,) str, "" for none.
    """

    ids: Ids
    before: Vectors
    after: Vectors
    transformed: Vectors
    rows: EmbeddingRows
    uncertainty: NDArray[np.float32]
    labels: NDArray[np.int64]
    attributes: dict[str, NDArray[np.str_]]
    references: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ingested(self) -> int:
        """How many came while the upgrade was open."""
        return len(self) - self.references

    @property
    def source(self) -> str:
        """Where the evidence comes from, in words."""
        kinds = {"references": self.references, "images that came while the upgrade was open": self.ingested}
        return " and ".join(name for name, count in kinds.items() if count)


@dataclass(frozen=True)
class HeldOut:
    """What the training of a transformation measured on rows that it had not learned from; metrics: None for one that
    was registered, and not trained here."""

    transformation: int
    metrics: dict[str, Any] | None


@dataclass(frozen=True)
class GalleryRows:
    """Both generations at one revision, and the one that h reads.

    items_waiting: live items that the next one lacks, of those up to the revision that was verified; other_leg_items:
    live items that the first leg cannot read; recall: of the next one's index, None where none was measured;
    labelled_ids, labels: (M,) ids, ascending, and class numbers of the items that have a label; networks: the digests
    of each h and g in turn; held_out: what their trainings measured.
    """

    before: StoredGeneration
    after: StoredGeneration
    read: StoredGeneration
    revision: int
    items: int
    items_waiting: int
    other_leg_items: int
    recall: float | None
    recall_sample: int
    labelled_ids: Ids
    labels: NDArray[np.int64]
    task: Task
    networks: list[str]
    held_out: list[HeldOut]

    @property
    def generations(self) -> tuple[StoredGeneration, StoredGeneration, StoredGeneration]:
        return self.before, self.after, self.read


def gallery_rows(session: Session, upgrade: Upgrade) -> GalleryRows:
    """Return what an upgrade leads from and to, as it is now."""
    gallery = session.get_one(Gallery, upgrade.gallery_id)
    before, after, read = _generations(session, upgrade)
    index = session.get_one(Generation, after.id).index_parameters or {}
    transformations = [session.get_one(Transformation, id_) for id_ in upgrade.legs[0].transformation_ids]
    labelled_ids, labels = _labelled(session, gallery.id)
    return GalleryRows(
        before=before,
        after=after,
        read=read,
        revision=gallery.revision,
        items=count_live(session, gallery.id),
        items_waiting=count_missing(session, after.key, upgrade.verified_revision),
        other_leg_items=count_missing(session, read.key, gallery.revision) if len(upgrade.legs) > 1 else 0,
        recall=index.get("recall_at_10"),
        recall_sample=index.get("recall_sample_size") or 0,
        labelled_ids=labelled_ids,
        labels=labels,
        task=gallery.task,
        networks=[digest for transformation in transformations for digest in _digests(transformation)],
        held_out=[HeldOut(transformation.id, transformation.metrics) for transformation in transformations],
    )


def judged_items(
    session: Session, upgrade: Upgrade, gallery: GalleryRows, most: int, seed: int, transform: Transform
) -> JudgedItems | None:
    """Return up to `most` items that both versions encoded, drawn by `seed`; None where there are none."""
    columns = f"i.id, a.origin = {int(Origin.TRANSFORMED)} AS is_transformed, p.embedding_from, p.embedding_to"
    query = f"SELECT {columns} FROM {_evidence(*gallery.generations)} ORDER BY {_CHANCE} LIMIT :most"
    drawn = list(
        session.execute(text(query), {**pair_parameters(gallery.before, gallery.after), "most": most, "seed": seed})
    )
    if not drawn:
        return None
    drawn.sort(key=lambda row: row.id)
    ids = np.array([row.id for row in drawn], np.int64)

    rows = _whole_rows(session, gallery.read, ids)
    given = transform(rows, gallery.after.vector_format, upgrade.legs[0].transformation_ids)
    before, after = (
        read_current_vectors(session, stored, len(ids), ids)[1] for stored in (gallery.before, gallery.after)
    )
    transformed = given.embedding.astype(np.float32)
    for place, row in enumerate(drawn):
        if row.is_transformed:
            transformed[place] = after[place]  # as it will be served
        if row.embedding_to is not None:
            before[place] = np.frombuffer(row.embedding_from, "<f4")
            after[place] = np.frombuffer(row.embedding_to, "<f4")

    is_reference = [row.embedding_to is not None for row in drawn]
    attributes: dict[str, NDArray[np.str_]] = {
        **_metadata(session, ids),
        "evidence": np.where(is_reference, _REFERENCE, _INGESTED),
        "origin": np.array([Origin(origin).label for origin in rows.origin]),
        "hops": given.hops.astype(np.str_),
        "uncertainty decile": _deciles(given.uncertainty),
    }
    attributes = {name: values for name, values in attributes.items() if len(np.unique(values)) > 1}
    labels = _labels_of(ids, gallery)
    return JudgedItems(ids, before, after, transformed, rows, given.uncertainty, labels, attributes, sum(is_reference))


def count_evidence(session: Session, upgrade: Upgrade, after_revision: int = 0) -> int:
    """Return how many items both versions encoded, of those that changed after a revision."""
    generations = _generations(session, upgrade)
    query = f"SELECT count(*) FROM {_evidence(*generations)} AND i.revision > :after"
    return session.scalar(text(query), {**pair_parameters(*generations[:2]), "after": after_revision}) or 0


def count_given(session: Session, upgrade: Upgrade, since: datetime) -> int:
    """Return how many references and queries of sets were given after a time; 0 while more seem to come, since the last
    ones are not a minute old. Probe images, which judging itself makes references of, do not count."""
    before, after, _ = _generations(session, upgrade)
    parameters = {**pair_parameters(before, after), "since": since}
    return session.scalar(text(_GIVEN), parameters) or 0


def read_common_vectors(
    session: Session, generation: StoredGeneration, gallery: GalleryRows, rows_at_once: int
) -> Iterator[tuple[Ids, Vectors]]:
    """Give the embeddings of one of the generations, of the items that are current in both, by item id: (n,) ids and
    (n, D) float32 at a time. The session has a snapshot, and is busy until the end."""
    vector_format = VectorFormat(generation.vector_format.embedding_dim, None, generation.vector_format.dtype)
    for rows in _read_common(session, generation, vector_format, gallery, rows_at_once):
        yield rows.item_id, rows.embedding.astype(np.float32)


def read_common_rows(
    session: Session, generation: StoredGeneration, gallery: GalleryRows, rows_at_once: int
) -> Iterator[EmbeddingRows]:
    """Give rows as `read_common_vectors` does, with side-information, in the stored dtype."""
    return _read_common(session, generation, generation.vector_format, gallery, rows_at_once)


def _read_common(
    session: Session,
    generation: StoredGeneration,
    vector_format: VectorFormat,
    gallery: GalleryRows,
    rows_at_once: int,
) -> Iterator[EmbeddingRows]:
    others = [stored for stored in (gallery.before, gallery.after) if stored.id != generation.id]
    common = " AND ".join(has_current(stored.table) for stored in others)
    query = current_rows_query(generation, vector_format, common)
    return read_rows(driver_connection(session), query, (), vector_format, rows_at_once)


def _generations(session: Session, upgrade: Upgrade) -> tuple[StoredGeneration, StoredGeneration, StoredGeneration]:
    """Return what an upgrade leads from and to, and what its first leg reads."""
    read = get_stored_generation(session, upgrade.gallery_id, upgrade.legs[0].generation_id)
    return *versions_of(session, upgrade), read


_CHANCE = "hashint8extended(i.id, :seed)"


def _evidence(before: StoredGeneration, after: StoredGeneration, read: StoredGeneration) -> str:
    """Return the SQL that follows FROM for items, as `i`, that both versions encoded, and their references, as `p`.

    What was backfilled in the next generation is no evidence of its own: it was chosen because h was expected to fail.
    """
    from_pixels = f"IN ({int(Origin.ENCODED)}, {int(Origin.BACKFILLED)})"
    return (
        f"items i JOIN {before.table} b ON {is_current('b')} JOIN {after.table} a ON {is_current('a')}"
        f" JOIN {read.table} r ON {is_current('r')}"
        f" LEFT JOIN reference_pairs p ON {IS_REFERENCE}"
        # The few that may be evidence first: without, PostgreSQL joins the whole generations.
        " WHERE i.gallery_id = :gallery_id AND i.id IN (SELECT item_id FROM reference_pairs"
        " WHERE gallery_id = :gallery_id AND from_version_id = :from_version_id AND to_version_id = :to_version_id"
        f" UNION SELECT item_id FROM {after.table} WHERE origin = {int(Origin.ENCODED)})"
        f" AND (p.item_id IS NOT NULL OR a.origin = {int(Origin.ENCODED)} AND b.origin {from_pixels})"
    )


_GIVEN = f"""
WITH given AS (
  SELECT p.created_at FROM reference_pairs p
  JOIN items i ON {IS_REFERENCE} AND i.deleted_at IS NULL
  WHERE i.gallery_id = :gallery_id AND p.created_at > :since
    AND NOT EXISTS (SELECT FROM probe_images m WHERE m.gallery_id = p.gallery_id AND m.item_id = p.item_id)
  UNION ALL
  SELECT s.created_at FROM query_sets s JOIN judged_queries q ON q.query_set_id = s.id
  WHERE s.gallery_id = :gallery_id AND s.created_at > :since)
SELECT count(*) FROM given HAVING max(created_at) < clock_timestamp() - interval '1 minute'
"""


def _digests(transformation: Transformation) -> list[str]:
    return [digest for digest in (transformation.h_digest, transformation.g_digest) if digest is not None]


def _whole_rows(session: Session, generation: StoredGeneration, ids: Ids) -> EmbeddingRows:
    """Return the current rows of items that have one, with side-information, by item id."""
    query = current_rows_query(generation, generation.vector_format, "i.id = ANY(%s)")
    chunks = read_rows(driver_connection(session), query, (ids.tolist(),), generation.vector_format)
    return EmbeddingRows.concatenate(list(chunks))


def _labelled(session: Session, gallery_id: int) -> tuple[Ids, NDArray[np.int64]]:
    """Return the ids of live items that have a label, ascending, and the numbers of their labels; by COPY."""
    query = (
        "COPY (SELECT id, dense_rank() OVER (ORDER BY label) FROM items WHERE gallery_id = %s AND deleted_at IS NULL"
        " AND label IS NOT NULL ORDER BY id) TO STDOUT"
    )
    with driver_connection(session).cursor() as cursor, cursor.copy(query, (gallery_id,)) as copy:
        data = b"".join(bytes(block) for block in copy)
    numbers = np.fromstring(data, dtype=np.int64, sep=" ") if data else np.empty(0, np.int64)
    return numbers[0::2], numbers[1::2]


def _labels_of(ids: Ids, gallery: GalleryRows) -> NDArray[np.int64]:
    """Return the class number of each item, -1 without a label."""
    known = gallery.labelled_ids
    if not len(known):
        return np.full(len(ids), -1, np.int64)
    places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[places] == ids, gallery.labels[places], -1)


_FIELDS = """
SELECT field.key FROM items i, jsonb_each(i.metadata) AS field (key, value)
WHERE i.id = ANY(:ids) AND jsonb_typeof(field.value) IN ('string', 'number', 'boolean')
GROUP BY field.key
HAVING count(*) >= :least AND count(DISTINCT field.value) BETWEEN 2 AND :values
ORDER BY count(*) DESC, field.key LIMIT :fields
"""
_VALUES = """
SELECT label, ARRAY(SELECT left(metadata ->> name, 200) FROM unnest(CAST(:names AS text[])) name) AS values
FROM items WHERE id = ANY(:ids) ORDER BY id
"""


def _metadata(session: Session, ids: Ids) -> dict[str, NDArray[np.str_]]:
    """Return the labels, and the metadata fields that tell items apart: by name (N,) str, "" where one is missing.

    What metadata holds is a user's: which fields there are is found out by the database.
    """
    parameters = {"ids": ids.tolist(), "least": max(2, len(ids) // 20), "values": _MOST_VALUES, "fields": _MOST_FIELDS}
    names = list(session.scalars(text(_FIELDS), parameters))
    rows = session.execute(text(_VALUES), {"ids": ids.tolist(), "names": names}).all()
    columns = {"label": np.array([row.label or "" for row in rows])}
    for number, name in enumerate(names):
        columns[f"metadata.{name}"] = np.array([row.values[number] or "" for row in rows])
    return columns


def _deciles(uncertainty: NDArray[np.float32]) -> NDArray[np.str_]:
    """Return each item's tenth by its expected error, 1 to 10; "" where it is not known."""
    known = np.flatnonzero(~np.isnan(uncertainty))
    names = np.full(len(uncertainty), "", "U2")
    order = known[np.argsort(uncertainty[known], kind="stable")]
    names[order] = (np.arange(len(order)) * _DECILES // max(len(order), 1) + 1).astype(np.str_)
    return names
