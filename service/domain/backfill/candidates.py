"""Which items of a generation are worth a backfill, and in which order they come.

A candidate's row was made by h: what was encoded or imported is as good as it gets. From URIs, it has one; from
thumbnails, it has one and h expects a larger error of it than a thumbnail has.
"""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.domain.gallery.better_rows import made_by_h
from service.domain.gallery.generations import StoredGeneration
from service.tables import Backfill, BackfillOrder, BackfillSource

_KNOWN = "nullif(e.uncertainty, 'NaN')"
_HAS_IMAGE: dict[BackfillSource, str] = {
    "uri": "i.image_uri IS NOT NULL",
    "client": "true",
    "thumbnails": f"i.thumbnail IS NOT NULL AND (CAST(:least_error AS float8) IS NULL OR {_KNOWN} > :least_error)",
}
# References are drawn by the hash of the ids alone, of the same seed: these items must not be the first of all.
_CHANCE = "hashint8extended(hashint8extended(i.id, 0), :seed)"
# The SQL of how often shadowed queries of the generation `:generation_id` found items `i`, as `t.times`.
FOUND_BY_QUERIES = (
    " LEFT JOIN (SELECT found.id, count(*) AS times FROM shadowed_queries q, unnest(q.answers_after) AS found (id)"
    " WHERE q.to_generation_id = :generation_id GROUP BY found.id) t ON t.id = i.id"
)
_ORDERS: dict[BackfillOrder, str] = {
    "uncertainty": f"{_KNOWN} DESC NULLS LAST, {_CHANCE}",
    "traffic": f"coalesce(t.times, 0) DESC, {_CHANCE}",
    "random": _CHANCE,
}


@dataclass(frozen=True)
class Candidates:
    """How many items are worth a backfill; of how many h says what error it expects; and how many a shadowed query
    found."""

    items: int
    with_uncertainty: int
    found: int


def count_candidates(
    session: Session, generation: StoredGeneration, source: BackfillSource, least_error: float | None
) -> Candidates:
    """Return how many candidates there are now."""
    query = f"SELECT count(*), count({_KNOWN}), count(t.times) FROM {_from(generation, source)}"
    parameters = {"gallery_id": generation.gallery_id, "generation_id": generation.id, "least_error": least_error}
    return Candidates(*session.execute(text(query), parameters).one())


def choose_items(session: Session, backfill: Backfill, generation: StoredGeneration) -> int:
    """Give a backfill its items, the first ones of its order that are candidates now; return how many."""
    order = _ORDERS[backfill.order]
    chosen: int | None = session.scalar(
        text(
            "WITH chosen AS (INSERT INTO backfill_items (backfill_id, position, item_id)"
            f" SELECT :backfill_id, row_number() OVER (ORDER BY {order}), i.id"
            f" FROM {_from(generation, backfill.source)} ORDER BY {order} LIMIT :items RETURNING 1)"
            " SELECT count(*) FROM chosen"
        ),
        {
            "backfill_id": backfill.id,
            "gallery_id": backfill.gallery_id,
            "generation_id": generation.id,
            "least_error": backfill.least_error,
            "seed": backfill.seed,
            "items": backfill.items,
        },
    )
    return chosen or 0


def _from(generation: StoredGeneration, source: BackfillSource) -> str:
    """Return the SQL that follows FROM for candidates, as `i`, their rows, as `e`, and how often they were found."""
    return (
        f"items i JOIN {generation.table} e ON {made_by_h('e')}{FOUND_BY_QUERIES}"
        f" WHERE i.gallery_id = :gallery_id AND {_HAS_IMAGE[source]}"
    )
