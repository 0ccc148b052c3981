"""What searches answer: models for the document of the API, and JSON that is written in the thread that found it, from
what there is, since models would be made of it, and checked, only to be written."""

from decimal import Decimal
from typing import Any

import orjson
from fastapi import Response
from pydantic import BaseModel

from service.api.items import thumbnail_url
from service.domain.search.answers import Answer, Neighbor, Query


class NeighborView(BaseModel):
    """`hops` counts the transformations since the item's pixels, or its import. `uncertainty` is the squared error (l2)
    that h expects of its embedding, null where no h made it or h does not say. `thumbnail_url` is null for an item
    without one: it was imported, or the gallery keeps none. `group` comes with `group_by`: the value of which it is the
    best neighbour, null where it has none and is a group by itself."""

    id: str
    distance: float
    origin: str
    hops: int
    uncertainty: float | None
    label: str | None
    metadata: dict[str, Any]
    image_uri: str | None
    thumbnail_url: str | None
    group: str | bool | float | None = None


class ImageAnswer(BaseModel):
    """Neighbours of the image, nearest first, and the one generation that they all come from.

    `exact` is true when all vectors that pass the filter were compared with the query, as the index holds them (float16
    in a graph), and false when a graph was walked, which may miss a few of the nearest. `next_cursor` comes with
    `cursor`, null on the last page. `complete` comes with `group_by`: false where fewer groups than k were found among
    as many neighbours as are looked at.
    """

    model_version: str
    generation: int
    revision: int
    exact: bool
    neighbors: list[NeighborView]
    next_cursor: str | None = None
    complete: bool | None = None


class BatchAnswer(BaseModel):
    """The same, with one list of neighbours, and one `complete`, per query; `exact` when it is so of all of them."""

    model_version: str
    generation: int
    revision: int
    exact: bool
    neighbors: list[list[NeighborView]]
    next_cursor: str | None = None
    complete: list[bool] | None = None


def written_of_one(gallery: str, query: Query, answer: Answer) -> Response:
    """Return an `ImageAnswer`, of the only query."""
    complete = answer.complete and answer.complete[0]
    return _written(answer, query, _views(gallery, answer.neighbors[0], query), complete)


def written_of_each(gallery: str, query: Query, answer: Answer) -> Response:
    """Return a `BatchAnswer`."""
    return _written(answer, query, [_views(gallery, own, query) for own in answer.neighbors], answer.complete)


def _written(answer: Answer, query: Query, neighbors: list[Any], complete: bool | list[bool] | None) -> Response:
    view = {
        "model_version": answer.model_version,
        "generation": answer.generation,
        "revision": answer.revision,
        "exact": answer.is_exact,
        "neighbors": neighbors,
    }
    if query.cursor is not None:
        view["next_cursor"] = answer.next_cursor
    if query.group_by is not None:
        view["complete"] = complete
    return Response(orjson.dumps(view), media_type="application/json")


def _views(gallery: str, neighbors: list[Neighbor], query: Query) -> list[dict[str, Any]]:
    """Return what is written of each `NeighborView`."""
    views = [
        {
            "id": item.id,
            "distance": neighbor.distance,
            "origin": item.origin,
            "hops": item.hops,
            "uncertainty": item.uncertainty,
            "label": item.label,
            "metadata": orjson.Fragment(item.metadata),
            "image_uri": item.image_uri,
            "thumbnail_url": thumbnail_url(gallery, item.id) if item.has_thumbnail else None,
        }
        for neighbor in neighbors
        for item in [neighbor.item]
    ]
    if query.group_by is not None:
        for view, neighbor in zip(views, neighbors, strict=True):
            value = neighbor.group
            view["group"] = orjson.Fragment(str(value)) if isinstance(value, Decimal) else value
    return views
