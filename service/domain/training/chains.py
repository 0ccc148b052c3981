"""Chained transformations of a training: those that lead into the version that it leads from.

A gallery that was upgraded by one of them holds what its h and g gave. An upgrade from there gives that to the h that
is trained now, which has learned nothing of it unless it learns from it: so each is a further view of every image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.access.tenancy import own_or_shared
from service.domain.choice import choose, unsoundness
from service.domain.registry.registration import NetworkStore
from service.errors import Unprocessable
from service.tables import ModelVersion, Task, Transformation


class ChainBroken(Unprocessable):
    """A chained transformation cannot be learned from any more."""


@dataclass(frozen=True)
class ChainedSource:
    """A transformation, and the version whose φ and ψ it is given."""

    transformation_id: int
    version: ModelVersion


def chained_transformations(
    store: NetworkStore, before: ModelVersion, after: ModelVersion, task: Task
) -> tuple[int, ...]:
    """Return the transformation into `before` from each version but `after`, by id: of those that lead on (with a g, if
    `before` has side-information), that may serve the task, and whose networks can be run here, the one that
    `service.domain.choice` takes. A version from which none is sound, or that has no networks, has none.

    Raises `AmbiguousTransformation` (409).
    """
    into = (
        select(Transformation, ModelVersion)
        .join(ModelVersion, ModelVersion.id == Transformation.from_version_id)
        .where(own_or_shared(Transformation), Transformation.to_version_id == before.id, ModelVersion.id != after.id)
        .order_by(Transformation.id)
    )
    candidates: dict[str, list[Transformation]] = {}
    for transformation, version in store.session.execute(into):
        if not version.has_networks:
            continue
        leads_on = before.side_information_dim is None or transformation.g_digest is not None
        trusted = store.settings.trust_torchscript or "torchscript" not in _kinds(transformation, version)
        if leads_on and trusted and transformation.may_serve(task) and unsoundness(transformation) is None:
            candidates.setdefault(version.name, []).append(transformation)
    chosen = [
        choose(found, f"from {name!r} to {before.name!r}", otherwise="set options.chained to false")
        for name, found in candidates.items()
    ]
    return tuple(sorted(transformation.id for transformation in chosen))


def _kinds(transformation: Transformation, version: ModelVersion) -> Iterable[str | None]:
    networks = (version.embedding_model_kind, version.side_information_model_kind)
    return (*networks, transformation.h_kind, transformation.g_kind)


def chained_sources(session: Session, transformation_ids: Sequence[int]) -> list[ChainedSource]:
    """Return the transformations' sources, in their order. Raises `ChainBroken` (422) when one was deleted."""
    sources = []
    for transformation_id in transformation_ids:
        transformation = session.get(Transformation, transformation_id)
        if transformation is None:
            raise ChainBroken(
                f"Transformation {transformation_id}, which this training was to learn from, was deleted while it ran:"
                " ask for it again."
            )
        version = session.get_one(ModelVersion, transformation.from_version_id)
        sources.append(ChainedSource(transformation_id, version))
    return sources
