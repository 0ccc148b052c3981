"""References: items whose images an operator gives again, so that both model versions encode them.

No image is kept: of each there are its embeddings under the gallery's active version and under the one that an upgrade
leads to. They count for every later upgrade between these versions, while the item has the same revision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sqlalchemy import func, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db import Database
from service.domain.gallery.current_rows import has_revision, is_current
from service.domain.gallery.generations import StoredGeneration, get_stored_generation
from service.domain.gallery.same_image import ANOTHER_IMAGE, StoredRow, stored_rows
from service.errors import Unprocessable
from service.index.protocol import Vectors
from service.networks.encoders import Encoders, check_encodes
from service.networks.images import InvalidImage, ReducedImage
from service.tables import ReferencePair, Upgrade

_POOL = 20  # of how many times as many items as are wanted they are drawn, so that a large gallery is not sorted


# The condition that `p` of `reference_pairs` is the one of item `i` as it is, between the two versions of an upgrade.
IS_REFERENCE = (
    f"p.gallery_id = i.gallery_id AND {has_revision('p')}"
    " AND p.from_version_id = :from_version_id AND p.to_version_id = :to_version_id"
)


class NoReferenceAccepted(Unprocessable):
    """Every image of the request was rejected; nothing was stored."""


@dataclass(frozen=True)
class ReferenceImage:
    """An item's image, and how to read its bytes (they may be spooled on disk)."""

    external_id: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class ReferenceResult:
    """What became of one image."""

    id: str
    status: Literal["accepted", "rejected"]
    error: str | None = None


@dataclass(frozen=True)
class WantedReferences:
    """Items whose images would be evidence, and how many of the gallery's there are."""

    ids: list[str]
    given: int


def draw_references(session: Session, upgrade: Upgrade, wanted: int, seed: int) -> WantedReferences:
    """Draw up to `wanted` items that have a current embedding and are no reference yet, the same for the same seed and
    items: of each label about its share of the gallery."""
    source = get_stored_generation(session, upgrade.gallery_id, upgrade.from_generation_id)
    pair = pair_parameters(*versions_of(session, upgrade))
    parameters = {**pair, "seed": seed, "wanted": wanted, "pool": wanted * _POOL}
    chance = "hashint8extended(i.id, :seed)"
    drawn = session.scalars(
        text(
            "WITH pool AS ("
            f" SELECT i.id, i.external_id, i.label, {chance} AS chance FROM items i"
            f" JOIN {source.table} e ON {is_current('e')}"
            " WHERE i.gallery_id = :gallery_id AND NOT EXISTS ("
            f" SELECT FROM reference_pairs p WHERE {IS_REFERENCE})"
            f" ORDER BY {chance} LIMIT :pool)"
            " SELECT external_id FROM pool ORDER BY"
            " row_number() OVER (PARTITION BY label ORDER BY chance)::float8 / count(*) OVER (PARTITION BY label),"
            " chance LIMIT :wanted"
        ),
        parameters,
    )
    return WantedReferences(list(drawn), count_references(session, upgrade))


def count_references(session: Session, upgrade: Upgrade) -> int:
    """Return how many references there are whose items are as they were."""
    query = text(
        f"SELECT count(*) FROM reference_pairs p JOIN items i ON {IS_REFERENCE}"
        " WHERE p.gallery_id = :gallery_id AND i.deleted_at IS NULL"
    )
    return session.scalar(query, pair_parameters(*versions_of(session, upgrade))) or 0


def add_references(
    database: Database, encoders: Encoders, upgrade: Upgrade, images: Sequence[ReferenceImage]
) -> list[ReferenceResult]:
    """Encode images by both versions and keep the embeddings, with one result per image in order.

    An image whose embedding is far from what is stored of its item is another image, and rejected; where the stored one
    was transformed itself, that cannot be told. Raises `NoReferenceAccepted` (422) when none is accepted, and
    `VersionWithoutNetworks` (409) where one of the versions has none.
    """
    with database.session_scope(snapshot=True) as session:
        versions = versions_of(session, upgrade)
        for each in versions:
            check_encodes(each.version)
        stored = stored_rows(session, versions[0], [image.external_id for image in images])

    rejected: dict[int, str] = {}
    preprocessings = [encoders.get(each.version).preprocessing for each in versions]
    reduced: dict[int, ReducedImage] = {}
    for place, reference in enumerate(images):
        if reference.external_id not in stored:
            rejected[place] = "The gallery has no such item with a current embedding."
            continue
        try:
            reduced[place] = encoders.images.reduce(reference.read(), preprocessings)
        except InvalidImage as error:
            rejected[place] = error.message
            continue
        if encoders.images.is_full(len(reduced), reduced[place]):
            rejected |= _add_some(database, encoders, versions, stored, images, reduced)
            reduced = {}
    if reduced:
        rejected |= _add_some(database, encoders, versions, stored, images, reduced)

    results = [
        ReferenceResult(reference.external_id, "rejected" if place in rejected else "accepted", rejected.get(place))
        for place, reference in enumerate(images)
    ]
    if len(rejected) == len(images):
        errors: list[dict[str, object]] = [{"id": result.id, "detail": result.error} for result in results]
        raise NoReferenceAccepted("No image of the request is a reference.", errors)
    return results


def _add_some(
    database: Database,
    encoders: Encoders,
    versions: tuple[StoredGeneration, StoredGeneration],
    stored: dict[str, StoredRow],
    images: Sequence[ReferenceImage],
    reduced: dict[int, ReducedImage],
) -> dict[int, str]:
    """Keep what both versions make of images, by their places in the request; return why others are none."""
    rejected = {}
    before, after = (encoders.get(each.version).encode_each(list(reduced.values())).embedding for each in versions)
    rows = []
    for place, old, new in zip(reduced, before, after, strict=True):
        row = stored[images[place].external_id]
        broken = [each for each, values in zip(versions, (old, new), strict=True) if not np.isfinite(values).all()]
        if broken:
            rejected[place] = f"Model version {broken[0].version.name!r} gives values that are not finite for it."
            continue
        if row.is_of_another_image(old):
            rejected[place] = ANOTHER_IMAGE
            continue
        rows.append(pair_of(versions, row, old, new))

    if rows:
        with database.session_scope() as session:
            keep_pairs(session, rows)
    return rejected


def pair_of(
    versions: tuple[StoredGeneration, StoredGeneration], row: StoredRow, before: Vectors, after: Vectors
) -> dict[str, object]:
    """Return the row of a reference: what both versions give for an item's image, (D_from,) and (D_to,) float32."""
    return {
        **pair_parameters(*versions),
        "item_id": row.item_id,
        "revision": row.revision,
        "embedding_from": before.astype("<f4").tobytes(),
        "embedding_to": after.astype("<f4").tobytes(),
    }


def keep_pairs(session: Session, rows: Sequence[dict[str, object]]) -> None:
    """Add references; one that is there is replaced. In the order of item ids, so that no two wait in a circle."""
    statement = insert(ReferencePair)
    replaced = {name: statement.excluded[name] for name in ("revision", "embedding_from", "embedding_to")}
    by_item = {int(str(row["item_id"])): row for row in rows}  # an item that occurs twice has its last image
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["gallery_id", "from_version_id", "to_version_id", "item_id"],
            set_={**replaced, "created_at": func.now()},
        ),
        [by_item[item_id] for item_id in sorted(by_item)],
    )


def pair_parameters(before: StoredGeneration, after: StoredGeneration) -> dict[str, int]:
    """Return what identifies the references between the versions of two generations of a gallery in SQL."""
    return {
        "gallery_id": after.gallery_id,
        "from_version_id": before.version.id,
        "to_version_id": after.version.id,
    }


def versions_of(session: Session, upgrade: Upgrade) -> tuple[StoredGeneration, StoredGeneration]:
    """Return the generations that an upgrade leads from and to."""
    return (
        get_stored_generation(session, upgrade.gallery_id, upgrade.from_generation_id),
        get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id),
    )
