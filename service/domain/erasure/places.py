"""Where the service has something of an item or of a gallery in the database: how it is counted, and how it is removed.

Each place is rows of a table, by a condition on `t`; `:gallery_id`, `:gallery`, `:item_ids` and `:names` stand for
whose they are. Places are looked at in their order: what is found by other rows goes before these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CursorResult, func, select, text
from sqlalchemy.orm import Session

from service.tables import Generation, Json, embeddings_table


@dataclass(frozen=True)
class Place:
    """Rows of a table, which `name` begins with, before a dot if only a column of theirs is meant. `change` is what is
    done to them instead of a deletion, as SET wants it; `why` says why there may be some afterwards."""

    name: str
    where: str
    change: str | None = None
    why: str | None = None

    @property
    def table(self) -> str:
        return self.name.partition(".")[0]

    def count(self, session: Session, parameters: Json) -> int:
        """Return how many rows there are."""
        return session.scalar(text(f"SELECT count(*) FROM {self.table} t WHERE {self.where}"), parameters) or 0

    def remove(self, session: Session, parameters: Json) -> int:
        """Remove the rows, or change what identifies them, and return how many there were."""
        begin = f"DELETE FROM {self.table} t" if self.change is None else f"UPDATE {self.table} t SET {self.change}"
        result = session.execute(text(f"{begin} WHERE {self.where}"), parameters)
        assert isinstance(result, CursorResult)
        return result.rowcount


_OF_SETS = "t.query_set_id IN (SELECT id FROM query_sets WHERE gallery_id = :gallery_id)"
# Queries that are an item's image, or bear its name, and those that could find nothing else.
_OWN_QUERY = (
    f"{_OF_SETS} AND (t.item_external_id = ANY(:names) OR t.external_id = ANY(:names)"
    " OR t.label IS NULL AND t.relevant <@ CAST(:names AS text[]))"
)
_OF_JOBS = "t.job_id IN (SELECT id FROM jobs WHERE gallery_id = :gallery_id)"
_ANSWERS = (
    "t.tenant = :tenant AND (strpos(t.path || '/', '/galleries/' || CAST(:gallery AS text) || '/') > 0"
    " OR EXISTS (SELECT FROM upgrades u WHERE u.gallery_id = :gallery_id"
    "  AND strpos(t.path, '/upgrades/' || u.id || '/') > 0)"
    " OR EXISTS (SELECT FROM backfills b WHERE b.gallery_id = :gallery_id"
    "  AND strpos(t.path, '/backfills/' || b.id || '/') > 0))"
)
_OF_GALLERY = "t.gallery_id = :gallery_id"
_OF_ITEMS = f"{_OF_GALLERY} AND t.item_id = ANY(:item_ids)"
_AGAIN = "They came since: the service goes on answering, and draws a new sample."

_QUERIES = (
    Place("query_samples", _OF_GALLERY, why=_AGAIN),
    Place("shadowed_queries", _OF_GALLERY, why=_AGAIN),
    Place("idempotency_keys", _ANSWERS, why=_AGAIN),
)
# A row of items stays, so that whoever follows the gallery sees that it is deleted, under a name that no id can have.
ITEMS = Place(
    "items",
    f"{_OF_GALLERY} AND t.external_id = ANY(:names)",
    change=(
        "external_id = chr(1) || 'erased ' || t.id, metadata = '{}', label = NULL, image_uri = NULL, thumbnail = NULL,"
        " created_at = now()"
    ),
    why="They were written again since the erasure began.",
)

OWN_QUERIES = Place("judged_queries", _OWN_QUERY)
_PLACES_OF_ITEMS = (
    Place(
        "query_vectors",
        f"t.query_id IN (SELECT t.id FROM judged_queries t WHERE {_OWN_QUERY})",
    ),
    OWN_QUERIES,
    Place(
        "judged_queries.relevant",
        f"{_OF_SETS} AND t.relevant && CAST(:names AS text[])",
        change="relevant = ARRAY(SELECT name FROM unnest(t.relevant) AS name WHERE name <> ALL(:names))",
    ),
    Place("reference_pairs", _OF_ITEMS),
    Place("probe_images", _OF_ITEMS),
    Place("ingest_references", f"{_OF_JOBS} AND t.external_id = ANY(:names)"),
    *_QUERIES,
)
# Rows that say something of a gallery's items; the others of a gallery go with it, and name none.
_PLACES_OF_GALLERY = (
    Place("query_vectors", f"t.query_id IN (SELECT t.id FROM judged_queries t WHERE {_OF_SETS})"),
    Place("judged_queries", _OF_SETS),
    Place("reference_pairs", _OF_GALLERY),
    Place("probe_images", _OF_GALLERY),
    Place("ingest_references", _OF_JOBS),
    Place("reports", "t.upgrade_id IN (SELECT id FROM upgrades WHERE gallery_id = :gallery_id)"),
    *_QUERIES,
    Place("items", _OF_GALLERY),
)


def generation_places(session: Session, gallery_id: int, where: str = "true") -> list[Place]:
    """Return the rows of every generation that has a table, the ones that are kept for a rollback among them."""
    table = func.concat("embeddings_", Generation.id)
    query = select(Generation.id).where(Generation.gallery_id == gallery_id, func.to_regclass(table).is_not(None))
    return [Place(embeddings_table(id_), where) for id_ in session.scalars(query.order_by(Generation.id))]


def places_of_items(session: Session, gallery_id: int) -> Sequence[Place]:
    """Return where items of a gallery are, besides their own rows (`ITEMS`)."""
    return [*_PLACES_OF_ITEMS, *generation_places(session, gallery_id, "t.item_id = ANY(:item_ids)")]


def places_of_gallery(session: Session, gallery_id: int) -> Sequence[Place]:
    """Return where a gallery's items are."""
    return [*_PLACES_OF_GALLERY, *generation_places(session, gallery_id)]


# Sentences of errors may quote the ids of items.
_SENTENCES = {
    "upgrades": _OF_GALLERY,
    "upgrade_events": "t.upgrade_id IN (SELECT id FROM upgrades WHERE gallery_id = :gallery_id)",
    "upgrade_batches": "t.upgrade_id IN (SELECT id FROM upgrades WHERE gallery_id = :gallery_id)",
    "backfills": _OF_GALLERY,
    "backfill_events": "t.backfill_id IN (SELECT id FROM backfills WHERE gallery_id = :gallery_id)",
    "backfill_items": "t.backfill_id IN (SELECT id FROM backfills WHERE gallery_id = :gallery_id)",
    "jobs": _OF_GALLERY,
    "ingest_batches": _OF_JOBS,
}
_GONE = "What it said quoted an item that was erased."


def blank_sentences(session: Session, parameters: Json) -> int:
    """Replace the errors of a gallery's work that quote one of the names, and return how many there were."""
    names, found = parameters["names"], 0
    quotes = [quote for name in names for quote in (repr(name), f'"{name}"')]
    for table, where in _SENTENCES.items():
        rows: list[Any] = list(
            session.scalars(
                text(f"SELECT DISTINCT t.error FROM {table} t WHERE t.error IS NOT NULL AND ({where})"), parameters
            )
        )
        quoting = [error for error in rows if any(quote in error for quote in quotes)]
        if quoting:
            blank = Place(table, f"t.error = ANY(:errors) AND ({where})", change="error = :gone")
            found += blank.remove(session, {**parameters, "errors": quoting, "gone": _GONE})
    return found
