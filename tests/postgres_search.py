"""Exact search in PostgreSQL itself, by pgvector's operators: what an index's answers must equal."""

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.domain.gallery.current_rows import is_current
from service.index.protocol import Metric
from service.tables import embeddings_table

_OPERATORS: dict[Metric, str] = {"l2": "<->", "cosine": "<=>", "ip": "<#>"}


def search_in_postgres(
    session: Session, generation_id: int, metric: Metric, query: Sequence[float], k: int
) -> list[tuple[str, float]]:
    """Return the external ids and distances of a generation's k nearest live items; ties go to the smaller item id.

    Computed in float32 of what is stored: the query is not rounded to the gallery's number format.
    """
    dim = len(query)
    distance = f"e.embedding::vector({dim}) {_OPERATORS[metric]} CAST(:query AS vector({dim}))"
    rows = session.execute(
        text(
            f"SELECT i.external_id, {distance} AS distance FROM {embeddings_table(generation_id)} e"
            f" JOIN items i ON {is_current('e')}"
            " ORDER BY distance, i.id LIMIT :k"
        ),
        {"query": str(list(query)), "k": k},
    )
    return [(external_id, distance) for external_id, distance in rows]
