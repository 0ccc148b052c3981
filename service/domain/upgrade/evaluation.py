"""The evaluation of an upgrade before it goes live: the rows that workers compute retrieval metrics from, and the
record of what they found. It gates nothing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from service.domain.gallery.current_rows import is_current, missing_items, read_current_vectors
from service.domain.gallery.generations import GenerationKey, count_live, get_stored_generation
from service.domain.upgrade.upgrades import get_upgrade
from service.index.protocol import Metric
from service.tables import Generation, Upgrade


@dataclass(frozen=True)
class LabelledSample:
    """The same labelled items in both generations: (N, D) float32 each, and (N,) int64 class numbers."""

    metric: Metric
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    labels: NDArray[np.int64]


def labelled_sample(session: Session, upgrade_id: int, items: int) -> LabelledSample | None:
    """Return up to `items` random labelled items that are current in both generations; None when no two of them have
    the same label, so that there is nothing to retrieve."""
    upgrade = get_upgrade(session, upgrade_id)
    before = get_stored_generation(session, upgrade.gallery_id, upgrade.from_generation_id)
    after = get_stored_generation(session, upgrade.gallery_id, upgrade.to_generation_id)

    drawn = session.execute(
        text(
            f"SELECT i.id, i.label FROM items i JOIN {before.table} b ON {is_current('b')}"
            f" JOIN {after.table} a ON {is_current('a')}"
            " WHERE i.gallery_id = :gallery_id AND i.label IS NOT NULL"
            " ORDER BY random() LIMIT :items"
        ),
        {"gallery_id": upgrade.gallery_id, "items": items},
    ).all()
    if len({label for _, label in drawn}) == len(drawn):
        return None

    ids = np.array(sorted(id_ for id_, _ in drawn), np.int64)
    label_of = {row.id: row.label for row in drawn}
    _, classes = np.unique([label_of[id_] for id_ in ids.tolist()], return_inverse=True)
    from_vectors, to_vectors = (read_current_vectors(session, stored, 4096, ids)[1] for stored in (before, after))
    return LabelledSample(before.metric, from_vectors, to_vectors, classes.astype(np.int64))


def record_evaluation(
    session: Session, upgrade_id: int, sample_items: int, cmc_before: float | None, cmc_after: float | None
) -> None:
    """Store what was found: completeness, the index's recall, and CMC@1 on the sample, old/old and h/h."""
    upgrade = get_upgrade(session, upgrade_id)
    generation = session.get_one(Generation, upgrade.to_generation_id)
    target = GenerationKey(upgrade.gallery_id, generation.id)
    evaluation = {
        "items": count_live(session, upgrade.gallery_id),
        "items_waiting": len(missing_items(session, target, upgrade.verified_revision)),
        "index": generation.index_parameters,
        "labelled_items": sample_items,
        "cmc_at_1": {"before": cmc_before, "after": cmc_after},
    }
    session.execute(update(Upgrade).where(Upgrade.id == upgrade_id).values(evaluation=evaluation))
