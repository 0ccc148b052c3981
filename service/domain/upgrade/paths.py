"""The path of an upgrade: which stored generation it starts from and which transformations it applies in turn."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.column_types import Leg
from service.domain.gallery.generations import StoredGeneration
from service.domain.registry import get_transformation
from service.domain.upgrade.history import Histories
from service.errors import Conflict
from service.tables import ModelVersion, Task, Transformation


class NoPath(Conflict):
    """No registered transformations lead from a stored generation to the version asked for."""


class ErasesItems(Conflict):
    """The transformation would make items indistinguishable in a gallery that is searched for them."""


@dataclass(frozen=True)
class FoundLeg(Leg):
    """A leg, and whether the rows that it gives have side-information."""

    gives_side_information: bool


def find_legs(
    session: Session,
    to_version: ModelVersion,
    active: StoredGeneration,
    retained: Sequence[StoredGeneration],
    transformation_id: int | None,
    task: Task,
) -> list[FoundLeg]:
    """Return the leg of fewest hops first; then, when that one starts at a retained generation, the active one's.

    Hops are counted since the images were encoded: rows that an upgrade made have gone through some already, and
    nothing is chained where there is a direct way from a generation that is still stored. The second leg is for items
    that only the active generation has (vectors imported since a cutover); it may use any registered transformation.
    None of them may erase which item is which in a gallery that is searched for items, and a generation whose items
    were made alike, when the gallery was searched by class, comes after all others.
    Raises `NoPath` and `ErasesItems` (409), or `UnknownTransformation` (404) when `transformation_id` is given and does
    not exist.
    """
    versions = {version.id: version for version in session.scalars(select(ModelVersion))}
    registered = list(session.scalars(select(Transformation).order_by(Transformation.id.desc())))
    usable = registered if transformation_id is None else [get_transformation(session, transformation_id)]
    sources = [generation for generation in (active, *retained) if generation.version.id != to_version.id]

    legs = _legs_from(sources, to_version, _that_may_serve(task, usable), versions)
    if not legs:
        raise _refusal(_legs_from(sources, to_version, usable, versions), usable, active, to_version)

    histories = Histories(session, active.gallery_id, registered)

    def rank(leg: FoundLeg) -> tuple[bool, int, bool]:
        history = histories.of(leg.generation_id)
        alike = task == "instance" and history.drawn_to_classes
        return alike, history.hops + len(leg.transformation_ids), leg.generation_id != active.id

    legs.sort(key=rank)
    chosen_legs = [legs[0]]
    if legs[0].generation_id != active.id:
        rest = _shortest_leg(active, to_version, _that_may_serve(task, registered), versions)
        chosen_legs += [] if rest is None else [rest]

    if any(leg.gives_side_information != chosen_legs[0].gives_side_information for leg in chosen_legs):
        # A generation's rows all carry side-information or none does: keep to one leg, the one that was asked for, or
        # the active generation's, which every item can take.
        chosen_legs = [leg for leg in chosen_legs if (leg.generation_id == active.id) == (transformation_id is None)]

    return chosen_legs


def _that_may_serve(task: Task, transformations: Sequence[Transformation]) -> list[Transformation]:
    """Return the transformations that a gallery of this task may be upgraded by."""
    return [transformation for transformation in transformations if transformation.may_serve(task)]


def _refusal(
    legs_by_class: Sequence[FoundLeg],
    transformations: Sequence[Transformation],
    active: StoredGeneration,
    to_version: ModelVersion,
) -> Conflict:
    """Say why there is no leg; `legs_by_class` are those that a gallery that is searched by class would have."""
    if not legs_by_class:
        return NoPath(
            f"No registered transformation leads from model version {active.version.name!r} to {to_version.name!r}"
            " (a path through another version needs a g on the way)."
        )

    on_the_way = min(legs_by_class, key=lambda leg: len(leg.transformation_ids)).transformation_ids
    drawing = next(t.id for t in transformations if t.id in on_the_way and t.draws_to_classes)
    return ErasesItems(
        f"Transformation {drawing} draws items to the means of their classes, and this gallery is searched for items:"
        " train one with the task 'instance', or change the gallery's task to 'class'."
    )


def _legs_from(
    sources: Sequence[StoredGeneration],
    to_version: ModelVersion,
    transformations: Sequence[Transformation],
    versions: dict[int, ModelVersion],
) -> list[FoundLeg]:
    """Return the shortest leg of each generation that has one."""
    legs = [_shortest_leg(generation, to_version, transformations, versions) for generation in sources]
    return [leg for leg in legs if leg is not None]


def _shortest_leg(
    source: StoredGeneration,
    to_version: ModelVersion,
    transformations: Sequence[Transformation],
    versions: dict[int, ModelVersion],
) -> FoundLeg | None:
    """Breadth-first over (version, whether ψ is at hand); a version that has ψ cannot be left without it."""
    start = (source.version.id, source.vector_format.side_information_dim is not None)
    queue: deque[tuple[tuple[int, bool], tuple[int, ...]]] = deque([(start, ())])
    seen = {start}
    while queue:
        (version_id, has_side_information), path = queue.popleft()
        if path and version_id == to_version.id:
            return FoundLeg(source.id, path, has_side_information)
        if versions[version_id].side_information_dim is not None and not has_side_information:
            continue
        for transformation in transformations:
            reached = (transformation.to_version_id, transformation.g_digest is not None)
            if transformation.from_version_id == version_id and reached not in seen:
                seen.add(reached)
                queue.append((reached, (*path, transformation.id)))
    return None
