"""The calls of searches, by whatever is at hand."""

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from gallery_upgrade.api import requests
from gallery_upgrade.core.calls import UNSET, Call
from gallery_upgrade.images import ImageQuery, ItemQuery, VectorQuery

if TYPE_CHECKING:
    from gallery_upgrade.api import models

FIRST_PAGE = "*"
OneQuery: TypeAlias = ImageQuery | VectorQuery | ItemQuery


def search_call(gallery: str, query: OneQuery, **options: Any) -> Call[Any]:
    """Return the call that searches by one query; `options` are those of `requests.search_by_image`, of which a search
    by an item has no `exclude_id`.

    Raises TypeError for several vectors.
    """
    if isinstance(query, VectorQuery):
        if not query.single:
            raise TypeError("Several vectors are searched for by search_vectors.")
        return requests.search_by_vectors(name=gallery, vectors=query.vectors, **options)
    if isinstance(query, ItemQuery):
        options.pop("exclude_id", None)
        return requests.search_by_items(name=gallery, ids=[query.item_id], **options)
    if options.get("filter") is None:
        options["filter"] = UNSET
    return requests.search_by_image(name=gallery, file=query.file, **options)


def found_by(
    query: OneQuery, answer: "models.ImageAnswer | models.BatchAnswer"
) -> "tuple[list[models.NeighborView], bool | None]":
    """Return the neighbours of the one query, and whether its groups are complete; None without any."""
    if isinstance(query, ImageQuery):
        of_image = cast("models.ImageAnswer", answer)
        return of_image.neighbors, of_image.complete
    batch = cast("models.BatchAnswer", answer)
    return batch.neighbors[0], None if batch.complete is None else batch.complete[0]
