"""Probe images: the files of a uniform sample of a gallery's items, kept where that was asked for.

They let an encoder be tried on images of which it is known what it gave, and are references of later upgrades. Of the
items that were ingested as images since the gallery wants some, those of the smallest priority are kept, a hash of
their ids: so any item is as likely to be one as another, and one that is written twice counts once. After deletions,
the places that got free go to the images that come next.

Everything here happens in the transaction that writes the items, which holds the gallery's row: an item's probe image
is the image that its rows were made of, or there is none. Memory holds one image at a time.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db import driver_connection
from service.tables import Gallery

MAX_PROBE_IMAGES = 1_000
MAX_BYTES = 2**20  # of one image; a larger one is not kept

Originals = dict[int, Callable[[], bytes]]  # by the item's position in the request

_FORGET_WRITTEN = """
DELETE FROM probe_images p USING items i, staging_items s
WHERE p.gallery_id = :gallery_id AND i.id = p.item_id AND i.gallery_id = :gallery_id AND i.external_id = s.external_id
RETURNING p.item_id
"""
# The request's items that may be among the kept ones, of the smallest priority first.
_CANDIDATES = """
SELECT i.id, s.position, hashint8extended(i.id, :gallery_id) AS priority
FROM staging_items s JOIN items i ON i.gallery_id = :gallery_id AND i.external_id = s.external_id
WHERE s.position = ANY(:positions)
ORDER BY priority LIMIT :wanted
"""
_PRIORITIES = "SELECT priority FROM probe_images WHERE gallery_id = :gallery_id"
_TRIM = """
DELETE FROM probe_images WHERE gallery_id = :gallery_id AND item_id IN (
  SELECT item_id FROM probe_images WHERE gallery_id = :gallery_id ORDER BY priority OFFSET :wanted)
"""


def keep_probe_images(session: Session, gallery: Gallery, originals: Originals) -> None:
    """Let go of what is kept of the items that are written just now (`staging_items`), and keep those of their new
    images that are due."""
    parameters = {"gallery_id": gallery.id, "wanted": gallery.probe_images}
    if gallery.probe_images == 0:
        return
    session.execute(text(_FORGET_WRITTEN), parameters)
    kept = session.scalars(text(_PRIORITIES), parameters).all()
    candidates = session.execute(text(_CANDIDATES), {**parameters, "positions": list(originals)}).all()
    due = sorted([*kept, *(row.priority for row in candidates)])[: gallery.probe_images]
    for row in candidates:
        if row.priority <= due[-1]:
            image = originals[row.position]()
            _add(session, gallery.id, row.id, row.priority, image)
    session.execute(text(_TRIM), parameters)


def _add(session: Session, gallery_id: int, item_id: int, priority: int, image: bytes) -> None:
    with driver_connection(session).cursor() as cursor:
        cursor.execute(
            "INSERT INTO probe_images (gallery_id, item_id, priority, image) VALUES (%s, %s, %s, %b)",
            (gallery_id, item_id, priority, image),
        )


def forget_probe_images(session: Session, gallery_id: int, item_ids: Sequence[int]) -> None:
    """Remove the images of items that are deleted."""
    session.execute(
        text("DELETE FROM probe_images WHERE gallery_id = :gallery_id AND item_id = ANY(:ids)"),
        {"gallery_id": gallery_id, "ids": list(item_ids)},
    )


def want_probe_images(session: Session, gallery: Gallery, wanted: int) -> None:
    """Keep up to `wanted` images of a gallery from now on, and remove what is beyond. The gallery's row is held."""
    gallery.probe_images = wanted
    session.flush()
    session.execute(text(_TRIM), {"gallery_id": gallery.id, "wanted": wanted})
