"""Query sets: queries of a gallery of which a user says what they should find, kept and asked at every later upgrade.

A set's queries are images, which every version encodes, or vectors, given under each version that a user has them of
and matched by their ids. What a query should find is named as the user names it, known to the gallery or not: it may
come to be. All of a request is stored, or nothing; a process that dies while it stores images leaves blobs that no row
names, and no more.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from service.access.tenancy import gallery_named, version_named
from service.advisory_locks import AdvisoryLock, hold
from service.audit import Act, Subject, record
from service.blobs import BlobStore
from service.db import Database
from service.domain.gallery.galleries import get_gallery
from service.domain.judging.new_queries import (
    MAX_QUERIES,
    SHOWN,
    Fault,
    InvalidQueries,
    NewQuery,
    query_faults,
    read_queries,
    refuse_faults,
    vector_faults,
)
from service.domain.registry.blobs import delete_unreferenced_blobs
from service.domain.registry.versions import get_version
from service.errors import Conflict, NotFound
from service.index.protocol import Vectors
from service.networks.images import ImageDecoder, InvalidImage
from service.tables import Gallery, JudgedQuery, ModelVersion, QueryKind, QuerySet, QueryVector

_ROWS_AT_ONCE = 1_000


class UnknownQuerySet(NotFound):
    """The gallery has no query set of this name."""


class QuerySetExists(Conflict):
    """The name is taken, by queries that these cannot be added to."""


class OtherQueries(Conflict):
    """The set says otherwise of queries with the same ids."""


@dataclass(frozen=True)
class QueryImage:
    """A query that is an image, and how to read its bytes (they may be spooled on disk)."""

    query: NewQuery
    read: Callable[[], bytes]


@dataclass(frozen=True)
class QuerySetDetails:
    """A set and what is in it. labelled: queries that have a label, the others have relevant items; vectors: how many
    queries have one, by the name of the model version that gave it. No live item has the `unknown_ids`, of those that
    are relevant or a query's own, and none has the `unknown_labels`."""

    id: int
    name: str
    kind: QueryKind
    created_at: datetime
    queries: int
    labelled: int
    unknown_ids: int
    unknown_labels: int
    vectors: dict[str, int]


def add_image_set(
    database: Database, blobs: BlobStore, decoder: ImageDecoder, gallery_name: str, name: str, images: list[QueryImage]
) -> QuerySetDetails:
    """Store a new set of images.

    Raises `UnknownGallery` (404), `QuerySetExists` (409), and `InvalidQueries` (422) naming each that cannot be stored.
    """
    with database.session_scope() as session:
        _refuse_taken_name(session, get_gallery(session, gallery_name).id, name)
    queries = [image.query for image in images]
    refuse_faults(queries, [*query_faults(queries), *_unreadable(decoder, images)])

    with database.session_scope() as session:
        query_set = _add_set(session, _hold_gallery(session, gallery_name), name)
        hold(session, AdvisoryLock.BLOBS, shared=True)
        for start in range(0, len(images), _ROWS_AT_ONCE):
            part = images[start : start + _ROWS_AT_ONCE]
            _insert(session, [_row(query_set.id, image.query, blobs.put(image.read())) for image in part])
        return _details(session, [query_set])[0]


def add_vectors(
    database: Database, gallery_name: str, name: str, model_version: str, body: BinaryIO
) -> QuerySetDetails:
    """Store the vectors that queries have under a model version, in a new set or in one of vectors that is there.

    A query that the set has already needs no more than its id and vector. Raises `UnknownGallery` and `UnknownVersion`
    (404), `UnknownFormat` (415), `InvalidImport` and `InvalidQueries` (422), `QuerySetExists` and `OtherQueries` (409).
    """
    queries, vectors = read_queries(body)
    with database.session_scope() as session:
        gallery_id, version = _hold_gallery(session, gallery_name), _hold_version(session, model_version)
        refuse_faults(queries, vector_faults(vectors, version))
        query_set = _find_or_add_set(session, gallery_id, name)
        known = _queries_of(session, query_set.id, queries)
        refuse_faults(queries, query_faults(queries, known))
        _refuse_other(known, queries)

        _insert(session, [_row(query_set.id, query) for query in queries if query.external_id not in known])
        _check_size(session, query_set.id)
        _insert_vectors(session, query_set.id, version, queries, vectors)
        return _details(session, [query_set])[0]


def get_query_set(session: Session, gallery_name: str, name: str) -> QuerySetDetails:
    """Return a set, or raise `UnknownGallery` or `UnknownQuerySet` (404)."""
    return _details(session, [_find(session, gallery_name, name)])[0]


def list_query_sets(session: Session, gallery_name: str, after_id: int, limit: int) -> list[QuerySetDetails]:
    """Return up to `limit` sets of a gallery with ids above `after_id`, by id."""
    query = select(QuerySet).where(QuerySet.gallery_id == get_gallery(session, gallery_name).id, QuerySet.id > after_id)
    return _details(session, session.scalars(query.order_by(QuerySet.id).limit(limit)).all())


def remove_query_set(database: Database, blobs: BlobStore, gallery_name: str, name: str) -> None:
    """Delete a set, and then its images that no other row refers to. Raises as `get_query_set` does."""
    with database.session_scope() as session:
        query_set = _find(session, gallery_name, name)
        images = select(JudgedQuery.image_digest).where(
            JudgedQuery.query_set_id == query_set.id, JudgedQuery.image_digest.is_not(None)
        )
        digests = [str(digest) for digest in session.scalars(images)]
        session.execute(delete(QuerySet).where(QuerySet.id == query_set.id))
        record(session, Act.QUERY_SET_DELETED, Subject("gallery", gallery_name), before={"query_set": name})
    with database.session_scope() as session:
        delete_unreferenced_blobs(session, blobs, digests)


def _find(session: Session, gallery_name: str, name: str) -> QuerySet:
    gallery = get_gallery(session, gallery_name)
    found = session.scalar(select(QuerySet).where(QuerySet.gallery_id == gallery.id, QuerySet.name == name))
    if found is None:
        raise UnknownQuerySet(f"Gallery {gallery_name!r} has no query set named {name!r}.")
    return found


def _hold_gallery(session: Session, name: str) -> int:
    """Keep the gallery from being deleted until the transaction ends; return its id."""
    session.execute(select(Gallery.id).where(gallery_named(name)).with_for_update(read=True, key_share=True))
    return get_gallery(session, name).id


def _hold_version(session: Session, name: str) -> ModelVersion:
    """Keep the version from being deleted until the transaction ends."""
    session.execute(select(ModelVersion.id).where(version_named(name)).with_for_update(read=True, key_share=True))
    return get_version(session, name)


def _refuse_taken_name(session: Session, gallery_id: int, name: str) -> None:
    taken = select(QuerySet.id).where(QuerySet.gallery_id == gallery_id, QuerySet.name == name)
    if session.scalar(taken) is not None:
        raise QuerySetExists(f"A query set named {name!r} exists; its images stay as they are.")


def _add_set(session: Session, gallery_id: int, name: str) -> QuerySet:
    """Return a new set of images; of two requests at once the second waits here, before it stores any blob."""
    new = upsert(QuerySet).values(gallery_id=gallery_id, name=name, kind="images").on_conflict_do_nothing()
    added = session.scalars(new.returning(QuerySet)).one_or_none()
    if added is None:
        raise QuerySetExists(f"A query set named {name!r} exists; its images stay as they are.")
    return added


def _find_or_add_set(session: Session, gallery_id: int, name: str) -> QuerySet:
    """Return a set of vectors, and hold it until the transaction ends. Raises `QuerySetExists` (409) for one of
    images."""
    session.execute(upsert(QuerySet).values(gallery_id=gallery_id, name=name, kind="vectors").on_conflict_do_nothing())
    query = select(QuerySet).where(QuerySet.gallery_id == gallery_id, QuerySet.name == name).with_for_update()
    query_set = session.scalars(query).one_or_none()
    if query_set is None or query_set.kind != "vectors":
        raise QuerySetExists(f"The query set {name!r} has images, or is being deleted: it takes no vectors.")
    return query_set


def _unreadable(decoder: ImageDecoder, images: Sequence[QueryImage]) -> Iterator[Fault]:
    for place, image in enumerate(images):
        try:
            decoder.reduce(image.read(), [])
        except InvalidImage as error:
            yield place, error.message


def _refuse_other(known: dict[str, JudgedQuery], queries: Sequence[NewQuery]) -> None:
    """Raise `OtherQueries` (409) where what a request says of known queries is not what the set says."""
    errors: list[dict[str, object]] = [
        {"query": query.external_id, "detail": "The set says otherwise of this query."}
        for query in queries
        if query.external_id in known and _differs(query, known[query.external_id])
    ]
    if errors:
        raise OtherQueries(f"The set says otherwise of {len(errors)} queries.", errors[:SHOWN])


def _differs(query: NewQuery, row: JudgedQuery) -> bool:
    pairs = [(query.item_id, row.item_external_id), (query.label, row.label), (query.slice, row.slice)]
    if any(said is not None and said != stored for said, stored in pairs):
        return True
    return bool(query.relevant) and _distinct(query.relevant) != row.relevant


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _queries_of(session: Session, query_set_id: int, queries: Sequence[NewQuery]) -> dict[str, JudgedQuery]:
    """Return those that the set has, by their ids."""
    ids = {query.external_id for query in queries}
    rows = session.scalars(select(JudgedQuery).where(JudgedQuery.query_set_id == query_set_id))
    return {row.external_id: row for row in rows if row.external_id in ids}


def _check_size(session: Session, query_set_id: int) -> None:
    count = session.scalar(select(func.count()).where(JudgedQuery.query_set_id == query_set_id)) or 0
    if count > MAX_QUERIES:
        raise InvalidQueries(f"A set has at most {MAX_QUERIES} queries; with these it would have {count}.")


def _row(query_set_id: int, query: NewQuery, image_digest: str | None = None) -> dict[str, object]:
    return {
        "query_set_id": query_set_id,
        "external_id": query.external_id,
        "item_external_id": query.item_id,
        "label": query.label,
        "relevant": _distinct(query.relevant),
        "slice": query.slice,
        "image_digest": image_digest,
    }


def _insert(session: Session, rows: Sequence[dict[str, object]]) -> None:
    if rows:
        session.execute(insert(JudgedQuery), rows)


def _insert_vectors(
    session: Session, query_set_id: int, version: ModelVersion, queries: Sequence[NewQuery], vectors: Vectors
) -> None:
    """Add vectors to queries of a set. Raises `OtherQueries` (409) if some have one under the version already."""
    found = session.execute(
        select(JudgedQuery.external_id, JudgedQuery.id, QueryVector.query_id.is_not(None))
        .outerjoin(QueryVector, (QueryVector.query_id == JudgedQuery.id) & (QueryVector.model_version_id == version.id))
        .where(JudgedQuery.query_set_id == query_set_id)
    )
    ids = {name: (query_id, has_one) for name, query_id, has_one in found}
    given = [query.external_id for query in queries if ids[query.external_id][1]]
    if given:
        detail = f"It has a vector under {version.name!r} already."
        errors: list[dict[str, object]] = [{"query": name, "detail": detail} for name in given[:SHOWN]]
        raise OtherQueries(f"{len(given)} of the queries have a vector under {version.name!r} already.", errors)
    rows = [
        {"query_id": ids[query.external_id][0], "model_version_id": version.id, "vector": vector.tobytes()}
        for query, vector in zip(queries, vectors.astype("<f4"), strict=True)
    ]
    session.execute(insert(QueryVector), rows)


def _details(session: Session, query_sets: Sequence[QuerySet]) -> list[QuerySetDetails]:
    """Return the sets with what is in them, in as many statements for one as for many."""
    parameters = {"ids": [query_set.id for query_set in query_sets]}
    counts = {row.id: row for row in session.execute(text(_COUNTS), parameters)}
    vectors: dict[int, dict[str, int]] = {}
    for set_id, version, count in session.execute(text(_VECTORS), parameters):
        vectors.setdefault(set_id, {})[version] = count
    return [
        QuerySetDetails(
            id=query_set.id,
            name=query_set.name,
            kind=query_set.kind,
            created_at=query_set.created_at,
            queries=counts[query_set.id].queries,
            labelled=counts[query_set.id].labelled,
            unknown_ids=counts[query_set.id].unknown_ids,
            unknown_labels=counts[query_set.id].unknown_labels,
            vectors=vectors.get(query_set.id, {}),
        )
        for query_set in query_sets
    ]


_COUNTS = """
SELECT s.id,
    (SELECT count(*) FROM judged_queries q WHERE q.query_set_id = s.id) AS queries,
    (SELECT count(q.label) FROM judged_queries q WHERE q.query_set_id = s.id) AS labelled,
    (SELECT count(DISTINCT n.name) FROM judged_queries q, unnest(q.relevant || q.item_external_id) n (name)
     WHERE q.query_set_id = s.id AND n.name IS NOT NULL AND NOT EXISTS (
        SELECT FROM items i WHERE i.gallery_id = s.gallery_id AND i.external_id = n.name AND i.deleted_at IS NULL)
    ) AS unknown_ids,
    (SELECT count(DISTINCT q.label) FROM judged_queries q WHERE q.query_set_id = s.id AND q.label IS NOT NULL
     AND NOT EXISTS (
        SELECT FROM items i WHERE i.gallery_id = s.gallery_id AND i.label = q.label AND i.deleted_at IS NULL)
    ) AS unknown_labels
FROM query_sets s WHERE s.id = ANY(:ids)
"""

_VECTORS = """
SELECT q.query_set_id, m.name, count(*) FROM judged_queries q JOIN query_vectors v ON v.query_id = q.id
JOIN model_versions m ON m.id = v.model_version_id WHERE q.query_set_id = ANY(:ids)
GROUP BY q.query_set_id, m.name ORDER BY m.name
"""
