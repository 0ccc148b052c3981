"""Answering a query: one serving pair, its encoder, its index, and the items that it found."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from service import logs
from service.db import Database
from service.domain.filters import compile_filter
from service.domain.galleries import get_gallery
from service.domain.generations import GenerationGone
from service.encoder import Encoders
from service.errors import Conflict, Unavailable, Unprocessable
from service.index.protocol import SearchResult
from service.index.replica import NotServed, Replicas, ServedGeneration
from service.tables import Gallery, Item, embeddings_table
from service.vectors.rows import Origin

MAX_K = 1000
_ATTEMPTS = 3

events = logs.Events(__name__)


class NoNextGeneration(Conflict):
    """`generation=next` was asked for and no candidate is loaded."""


class WrongSpace(Conflict):
    """The query was said to be of another model version than the generation that answers."""


class InvalidQuery(Unprocessable):
    """The query vectors do not fit the generation."""


@dataclass(frozen=True)
class Neighbor:
    id: str
    distance: float
    origin: str
    label: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """Neighbours per query, nearest first, all of one generation at one revision."""

    model_version: str
    generation: int
    revision: int
    neighbors: list[list[Neighbor]]


@dataclass(frozen=True)
class Query:
    """What to search for besides the vectors."""

    k: int
    condition: dict[str, Any] | None = None
    generation: Literal["active", "next"] = "active"
    model_version: str | None = None


def search_image(
    database: Database, encoders: Encoders, replicas: Replicas, gallery: str, data: bytes, query: Query
) -> Answer:
    """Return the nearest items of an image, encoded by the generation's own model version."""
    image = encoders.decode(data)
    return _search(
        database,
        replicas,
        gallery,
        query,
        lambda served: encoders.get(served.version).encode_embedding([image]),
    )


def search_vectors(
    database: Database, replicas: Replicas, gallery: str, vectors: Sequence[Sequence[float]], query: Query
) -> Answer:
    """Return the nearest items of each vector; vectors of another space are a 4xx, never a wrong answer."""

    def checked(served: ServedGeneration) -> NDArray[np.float32]:
        if query.model_version not in (None, served.version.name):
            raise WrongSpace(
                f"Generation {served.generation_id} is under model version {served.version.name!r}, not"
                f" {query.model_version!r}."
            )
        dim = served.version.embedding_dim
        if any(len(vector) != dim for vector in vectors):
            raise InvalidQuery(f"Query vectors have {dim} numbers under model version {served.version.name!r}.")
        with np.errstate(over="ignore"):
            array = np.asarray(vectors, np.float32)
        if not np.isfinite(array).all():
            raise InvalidQuery("Query vectors are finite numbers within float32.")
        return array

    return _search(database, replicas, gallery, query, checked)


def _search(database: Database, replicas: Replicas, gallery_name: str, query: Query, vectors_for: Any) -> Answer:
    """Search; again, with the pair that is served by then, when the generation was dropped meanwhile."""
    for _ in range(_ATTEMPTS):
        with database.session_scope() as session:
            gallery = get_gallery(session, gallery_name)
        try:
            return _search_once(database, replicas, gallery, query, vectors_for)
        except (ProgrammingError, GenerationGone, NotServed) as error:
            events.info("search.repeated", gallery_id=gallery.id, reason=f"{type(error).__name__}: {error}")
            with suppress(GenerationGone):
                replicas.refresh(gallery.id)
    raise Unavailable("The gallery's generations change just now; try again.")


def _search_once(database: Database, replicas: Replicas, gallery: Gallery, query: Query, vectors_for: Any) -> Answer:
    served = _pair(replicas, gallery, query)
    vectors = vectors_for(served)
    with database.session_scope() as session:
        allowed = None
        if query.condition is not None:
            allowed = _allowed(session, gallery.id, query.condition)
        found = served.index.search(vectors, query.k, allowed)
        neighbors = _describe(session, served.generation_id, found)
    return Answer(served.version.name, served.generation_id, served.revision, neighbors)


def _pair(replicas: Replicas, gallery: Gallery, query: Query) -> ServedGeneration:
    if query.generation == "next":
        served = replicas.next(gallery.id)
        if served is None:
            raise NoNextGeneration("No open upgrade of this gallery has an index to ask yet.")
        return served
    return replicas.active(gallery.id, gallery.active_generation_id)


def _allowed(session: Session, gallery_id: int, condition: dict[str, Any]) -> NDArray[np.int64]:
    query = select(Item.id).where(Item.gallery_id == gallery_id, Item.deleted_at.is_(None), compile_filter(condition))
    return np.fromiter(session.scalars(query), np.int64)


def _describe(session: Session, generation_id: int, found: SearchResult) -> list[list[Neighbor]]:
    """Return the found items as neighbours; one that was deleted since the index followed is left out."""
    ids = [int(id_) for id_ in np.unique(found.ids) if id_ >= 0]
    rows = session.execute(
        text(
            "SELECT i.id, i.external_id, e.origin, i.label, i.metadata FROM items i"
            f" JOIN {embeddings_table(generation_id)} e ON e.item_id = i.id"
            " WHERE i.id = ANY(:ids) AND i.deleted_at IS NULL"
        ),
        {"ids": ids},
    )
    items = {row[0]: row for row in rows}
    return [
        [
            Neighbor(items[id_][1], float(distance), Origin(items[id_][2]).label, items[id_][3], items[id_][4])
            for id_, distance in zip(row_ids.tolist(), row_distances.tolist(), strict=True)
            if id_ in items
        ]
        for row_ids, row_distances in zip(found.ids, found.distances, strict=True)
    ]
