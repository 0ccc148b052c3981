"""The queries of a gallery's query sets, as both versions of an upgrade have them.

An image is encoded once by each version: its vector is kept in `query_vectors`, where vectors that were given are too.
So another report costs no encoding, a later upgrade half of it, and the same rows give the same report, since what a
network computes differs in its last bits with what it computes at the same time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service import logs
from service.blobs import BlobDamaged, BlobMissing, BlobStore
from service.db import Database
from service.domain.judging.evidence import GalleryRows, JudgedItems
from service.domain.judging.reference_pairs import versions_of
from service.index.protocol import Ids, Vectors
from service.networks.encoders import Encoders, EncodingFailed, EncodingStopped, VersionEncoder
from service.networks.images import InvalidImage, ReducedImage
from service.tables import JudgedQuery, ModelVersion, QueryVector, Upgrade

events = logs.Events(__name__)

NO_ITEM = -1
SOURCE = "queries of query sets"

Images = list[tuple[Row[Any], ReducedImage]]


@dataclass(frozen=True)
class AskedQueries:
    """Q queries that are judged in the same way, by labels or by relevant items: before, (Q, D_old), by φ_old and
    after, (Q, D_new), by φ_new, float32; item_ids: (Q,) the item that is the same image, `NO_ITEM` for none; labels:
    (Q,) int64 class numbers, -1 for what no item has; relevant: query i has ids[starts[i]:starts[i + 1]] of its starts,
    (Q + 1,), and ids; attributes: by name (Q,) str, "" for none."""

    before: Vectors
    after: Vectors
    item_ids: Ids
    labels: NDArray[np.int64] | None
    relevant: tuple[NDArray[np.int64], Ids] | None
    attributes: dict[str, NDArray[np.str_]]

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True)
class AskedSet:
    """What became of a set's queries. left_out: they have no vector of one of the two versions, or of both; of the
    others, as many as may be are drawn from all sets together. Of those that were drawn: not_encoded: their images
    could not be read, or be encoded by both versions; references: they are images of items that are evidence already;
    asked: all others. Of these: unknown_ids: how many ids of what is relevant, or of the same image, no live item has;
    unknown_labels: how many have a label that no live item has."""

    name: str
    queries: int
    left_out: int
    drawn: int
    not_encoded: int
    references: int
    asked: int
    unknown_ids: int
    unknown_labels: int


@dataclass(frozen=True)
class AskedSets:
    """All queries that are asked, those with labels apart from those with relevant items, and which sets they are
    of."""

    parts: tuple[AskedQueries, ...]
    sets: tuple[AskedSet, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def encode_queries(
    database: Database, blobs: BlobStore, encoders: Encoders, upgrade: Upgrade, most: int, seed: int
) -> None:
    """Have both versions of an upgrade, or the one that has networks, encode the images of those queries that
    `asked_queries` will draw, if they have not yet, and keep the vectors; an image for which that fails is passed over,
    and so are the few that were encoded together where that takes too long. Memory holds a few images at a time.

    Running it again does what is left. Raises `ArtifactUnusable` (409) for a network that cannot be loaded.
    """
    with database.session_scope() as session:
        before, after = versions_of(session, upgrade)
        versions = (before.version, after.version)
        parameters = _parameters(upgrade, versions)
        rows = session.execute(text(_TO_ENCODE), parameters | {"most": most, "seed": seed}).all()

    encoding = [version for version in versions if version.has_networks]
    for images in _few_at_a_time(blobs, encoders, encoding, rows):
        for version in encoding:
            _encode_lacking(database, encoders, version, images)


def asked_queries(
    session: Session, upgrade: Upgrade, gallery: GalleryRows, items: JudgedItems | None, most: int, seed: int
) -> AskedSets:
    """Return up to `most` queries of the gallery's sets, drawn by `seed` among those that both versions have or can
    encode; images of `items` are left out, since these are evidence already."""
    parameters = _parameters(upgrade, (gallery.before.version, gallery.after.version))
    drawn = session.execute(text(_DRAWN_WHOLE), parameters | {"most": most, "seed": seed}).all()
    encoded = [row for row in drawn if row.before is not None and row.after is not None]
    evident = set() if items is None else set(items.ids.tolist())
    asked = [row for row in encoded if row.item_id not in evident]

    parts = [[row for row in asked if (row.label is None) is by_items] for by_items in (False, True)]
    sets = session.execute(text(_SETS), parameters).all()
    return AskedSets(tuple(_queries(part, gallery) for part in parts if part), _account(sets, drawn, encoded, asked))


_VECTORS = (
    " LEFT JOIN query_vectors b ON b.query_id = q.id AND b.model_version_id = :before"
    " LEFT JOIN query_vectors a ON a.query_id = q.id AND a.model_version_id = :after"
)
_BOTH_HAVE_IT = (
    "(b.query_id IS NOT NULL OR q.image_digest IS NOT NULL AND :before_encodes)"
    " AND (a.query_id IS NOT NULL OR q.image_digest IS NOT NULL AND :after_encodes)"
)

# The SQL that follows FROM for queries, as `q`, with their vectors, as `b` and `a`, that both versions have or can
# encode.
_USABLE = (
    f"judged_queries q JOIN query_sets s ON s.id = q.query_set_id {_VECTORS}"
    f" WHERE s.gallery_id = :gallery_id AND {_BOTH_HAVE_IT}"
)
_DRAW = "ORDER BY hashint8extended(q.id, :seed) LIMIT :most"

_TO_ENCODE = f"""
SELECT id, image_digest, encoded_by FROM (
    SELECT q.id, q.image_digest, array_remove(ARRAY[b.model_version_id, a.model_version_id], NULL) AS encoded_by
    FROM {_USABLE} {_DRAW}
) drawn WHERE cardinality(encoded_by) < 2 ORDER BY id
"""

_DRAWN_WHOLE = f"""
SELECT d.query_set_id, d.label, d.slice, d.before, d.after, d.item_external_id IS NOT NULL AS is_named,
    cardinality(d.relevant) AS relevant_names,
    (SELECT i.id FROM items i WHERE i.gallery_id = :gallery_id AND i.external_id = d.item_external_id
     AND i.deleted_at IS NULL) AS item_id,
    ARRAY(SELECT i.id FROM items i WHERE i.gallery_id = :gallery_id AND i.external_id = ANY(d.relevant)
     AND i.deleted_at IS NULL ORDER BY i.id) AS relevant_ids,
    (SELECT i.id FROM items i WHERE i.gallery_id = :gallery_id AND i.label = d.label
     AND i.deleted_at IS NULL LIMIT 1) AS like_it
FROM (
    SELECT q.id, q.query_set_id, q.item_external_id, q.label, q.relevant, q.slice, b.vector AS before, a.vector AS after
    FROM {_USABLE} {_DRAW}
) d ORDER BY d.id
"""

_SETS = f"""
SELECT s.id, s.name, count(q.id) AS queries, count(q.id) FILTER (WHERE NOT ({_BOTH_HAVE_IT})) AS left_out
FROM query_sets s LEFT JOIN judged_queries q ON q.query_set_id = s.id {_VECTORS}
WHERE s.gallery_id = :gallery_id GROUP BY s.id ORDER BY s.id
"""


def _parameters(upgrade: Upgrade, versions: tuple[ModelVersion, ModelVersion]) -> dict[str, int | bool]:
    before, after = versions
    return {
        "gallery_id": upgrade.gallery_id,
        "before": before.id,
        "after": after.id,
        "before_encodes": before.has_networks,
        "after_encodes": after.has_networks,
    }


def _few_at_a_time(
    blobs: BlobStore, encoders: Encoders, versions: Sequence[ModelVersion], rows: Sequence[Row[Any]]
) -> Iterator[Images]:
    """Give queries with their images, reduced, a batch at a time; those that cannot be read are logged."""
    images: Images = []
    preprocessings = [encoders.get(version).preprocessing for version in versions] if rows else []
    for row in rows:
        try:
            image = encoders.images.reduce(blobs.get(row.image_digest), preprocessings)
        except (BlobMissing, BlobDamaged, InvalidImage) as error:
            events.warning("query.not_read", query_id=row.id, reason=error.message)
            continue
        images.append((row, image))
        if encoders.images.is_full(len(images), image):
            yield images
            images = []
    yield images


def _encode_lacking(database: Database, encoders: Encoders, version: ModelVersion, images: Images) -> None:
    lacking = [image for image in images if version.id not in image[0].encoded_by]
    if lacking:
        _encode(database, encoders.get(version), version, lacking)


def _encode(database: Database, encoder: VersionEncoder, version: ModelVersion, images: Images) -> None:
    """Keep the embeddings of images as queries have them; where one cannot be encoded, the others still are."""
    try:
        vectors = encoder.encode_embedding(lambda: [image for _, image in images])
    except EncodingStopped as error:  # one by one, each might take as long again
        for row, _ in images:
            events.warning("query.not_encoded", query_id=row.id, reason=error.message)
        return
    except EncodingFailed as error:
        if len(images) == 1:
            events.warning("query.not_encoded", query_id=images[0][0].id, reason=error.message)
            return
        for image in images:
            _encode(database, encoder, version, [image])
        return
    with database.session_scope() as session:
        _keep(session, version, [row.id for row, _ in images], vectors)


def _keep(session: Session, version: ModelVersion, query_ids: list[int], vectors: Vectors) -> None:
    """Store the vectors of queries that were not deleted meanwhile; another worker's are as good."""
    held = select(JudgedQuery.id).where(JudgedQuery.id.in_(query_ids)).order_by(JudgedQuery.id)
    there = set(session.scalars(held.with_for_update(read=True, key_share=True)))
    rows = [
        {"query_id": query_id, "model_version_id": version.id, "vector": vector.tobytes()}
        for query_id, vector in zip(query_ids, vectors.astype("<f4"), strict=True)
        if query_id in there
    ]
    if rows:
        session.execute(insert(QueryVector).on_conflict_do_nothing(), rows)


def _queries(rows: Sequence[Row[Any]], gallery: GalleryRows) -> AskedQueries:
    """Return queries that all have a label, or all have relevant items."""
    by_label = rows[0].label is not None
    relevant = [np.array(row.relevant_ids, np.int64) for row in rows]
    attributes = {"slice": np.array([row.slice or "" for row in rows])}
    if by_label:
        attributes["label"] = np.array([row.label for row in rows])
    return AskedQueries(
        before=np.stack([np.frombuffer(row.before, "<f4") for row in rows]),
        after=np.stack([np.frombuffer(row.after, "<f4") for row in rows]),
        item_ids=np.array([row.item_id or NO_ITEM for row in rows], np.int64),
        labels=_class_numbers(rows, gallery) if by_label else None,
        relevant=None if by_label else (np.cumsum([0, *map(len, relevant)]), np.concatenate(relevant)),
        attributes=attributes,
    )


def _class_numbers(rows: Sequence[Row[Any]], gallery: GalleryRows) -> NDArray[np.int64]:
    """Return the class number of each query's label: that of an item that has it."""
    numbers = np.full(len(rows), -1, np.int64)
    known = [place for place, row in enumerate(rows) if row.like_it is not None]
    numbers[known] = gallery.labels[np.searchsorted(gallery.labelled_ids, [rows[place].like_it for place in known])]
    return numbers


def _account(
    sets: Sequence[Row[Any]], drawn: Sequence[Row[Any]], encoded: Sequence[Row[Any]], asked: Sequence[Row[Any]]
) -> tuple[AskedSet, ...]:
    drawn_of, encoded_of, asked_of = (Counter(row.query_set_id for row in rows) for rows in (drawn, encoded, asked))
    unknown_ids: Counter[int] = Counter()
    unknown_labels: Counter[int] = Counter()
    for row in asked:
        unknown_ids[row.query_set_id] += row.relevant_names - len(row.relevant_ids)
        unknown_ids[row.query_set_id] += row.is_named and row.item_id is None
        unknown_labels[row.query_set_id] += row.label is not None and row.like_it is None
    return tuple(
        AskedSet(
            name=set_.name,
            queries=set_.queries,
            left_out=set_.left_out,
            drawn=drawn_of[set_.id],
            not_encoded=drawn_of[set_.id] - encoded_of[set_.id],
            references=encoded_of[set_.id] - asked_of[set_.id],
            asked=asked_of[set_.id],
            unknown_ids=unknown_ids[set_.id],
            unknown_labels=unknown_labels[set_.id],
        )
        for set_ in sets
    )
