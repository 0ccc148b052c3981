"""Why an upgrade takes its path, as a sentence for whoever asks before it starts."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.access.tenancy import own_or_shared
from service.domain.choice import unsoundness
from service.domain.gallery.generations import StoredGeneration
from service.domain.upgrade.history import Histories
from service.domain.upgrade.paths import FoundLeg
from service.tables import Generation, ModelVersion, Task, Transformation


def reason_for(
    session: Session,
    legs: Sequence[FoundLeg],
    stored: Sequence[StoredGeneration],
    to_version: ModelVersion,
    task: Task,
    *,
    asked_for: bool,
) -> str:
    """Say why `find_legs` gave these legs: that the way is direct, or what keeps it from being direct and what would
    make it so. `asked_for` says that the client named the transformation."""
    usable = select(Transformation).where(own_or_shared(Transformation))
    registered = list(session.scalars(usable.order_by(Transformation.id)))
    first = legs[0]
    history = Histories(session, stored[0].gallery_id, registered).of(first.generation_id)
    root = session.get_one(Generation, history.root_generation_id)
    root_version = session.get_one(ModelVersion, root.model_version_id)
    hops = history.hops + len(first.transformation_ids)

    if asked_for and len(first.transformation_ids) == 1:
        reason = f"{_named(first)} was asked for."
    elif hops == 1:
        reason = (
            "Direct, as always where there is a direct way, with side-information or without:"
            f" {_named(first).lower()} leads to {to_version.name!r} from generation {root.id}, whose images were"
            f" encoded by {root_version.name!r}.{_of_several(registered, first.transformation_ids[0])}"
        )
    else:
        is_stored = root.id in {generation.id for generation in stored}
        direct = [t for t in registered if (t.from_version_id, t.to_version_id) == (root_version.id, to_version.id)]
        why = _no_direct_way(root.id, root_version, to_version, direct, task) if is_stored else _dropped(root.id)
        reason = f"{hops} hops since the images were encoded by {root_version.name!r}, because {why}"
    rest = [f" Items that only generation {leg.generation_id} has take {_named(leg).lower()}." for leg in legs[1:]]
    return "".join([reason, *rest])


def _dropped(generation_id: int) -> str:
    return (
        f"generation {generation_id}, which they were encoded into, is no longer stored: a later upgrade can be direct"
        " if it is made before the one before it is finalized."
    )


def _no_direct_way(
    generation_id: int,
    root_version: ModelVersion,
    to_version: ModelVersion,
    direct: Sequence[Transformation],
    task: Task,
) -> str:
    """Say why none of the transformations from the root's version is taken, though generation `generation_id` is
    stored."""
    names = f"from {root_version.name!r} to {to_version.name!r}"
    if not direct:
        return f"no transformation {names} is registered: train or register one for a direct way."

    serving = [transformation for transformation in direct if transformation.may_serve(task)]
    if not serving:
        return (
            f"transformation {direct[-1].id} {names} draws items to the means of their classes, and this gallery is"
            " searched for items: train one with the task 'instance' for a direct way."
        )
    sound = [transformation for transformation in serving if unsoundness(transformation) is None]
    if not sound:
        return (
            f"transformation {serving[-1].id} {names} {unsoundness(serving[-1])}: it is taken only where it is named."
        )
    return (
        f"transformation {sound[-1].id} {names} and the active generation's way do not agree on whether there is"
        f" side-information afterwards, and items that generation {generation_id} lacks need the latter: have a g in"
        " both for a direct way."
    )


def _of_several(registered: Sequence[Transformation], chosen_id: int) -> str:
    """Say why one is taken where there are others between the same versions."""
    chosen = next(one for one in registered if one.id == chosen_id)
    pair = (chosen.from_version_id, chosen.to_version_id)
    others = [one.id for one in registered if (one.from_version_id, one.to_version_id) == pair and one is not chosen]
    if not others:
        return ""
    why = "the default" if chosen.is_default else "the only sound one"
    return f" It is {why} of {len(others) + 1} between these versions."


def _named(leg: FoundLeg) -> str:
    ids = [str(number) for number in leg.transformation_ids]
    return f"Transformation {ids[0]}" if len(ids) == 1 else f"Transformations {', '.join(ids[:-1])} and {ids[-1]}"
