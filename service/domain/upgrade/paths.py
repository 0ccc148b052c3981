"""The path of an upgrade: which stored generation it starts from and which transformations it applies in turn."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.access.tenancy import own_or_shared
from service.column_types import Leg
from service.domain.choice import choose, unsoundness
from service.domain.gallery.generations import StoredGeneration
from service.domain.registry.transformations import get_transformation
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


@dataclass(frozen=True)
class Route:
    """A way from a generation to a version: for each hop its versions in words, and the transformations that could make
    it."""

    generation_id: int
    hops: tuple[tuple[str, tuple[Transformation, ...]], ...]

    def leg(self, named: int | None) -> FoundLeg:
        """Return the leg along this route. Raises what `service.domain.choice.choose` raises."""
        chosen = [choose(candidates, way, named) for way, candidates in self.hops]
        ids = tuple(transformation.id for transformation in chosen)
        return FoundLeg(self.generation_id, ids, chosen[-1].g_digest is not None)

    def may_be_by(self, transformation_id: int) -> bool:
        """Whether the transformation could make one of the hops."""
        return any(transformation.id == transformation_id for _, hop in self.hops for transformation in hop)


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
    nothing is chained where there is a direct way from a generation that is still stored. Which transformation makes a
    hop is `service.domain.choice`'s to say; one that is named leads all the way, or is one of the hops where it cannot.
    The second leg is for items that only the active generation has (vectors imported since a cutover). None of them may
    erase which item is which in a gallery that is searched for items, and a generation whose items were made alike,
    when the gallery was searched by class, comes after all others.
    Raises `NoPath`, `ErasesItems`, `AmbiguousTransformation` and `NoSoundTransformation` (409), or
    `UnknownTransformation` (404) when `transformation_id` is given and does not exist.
    """
    usable = select(Transformation).where(own_or_shared(Transformation))
    registered = list(session.scalars(usable.order_by(Transformation.id.desc())))
    versions = {version.id: version for version in session.scalars(select(ModelVersion))}
    known = _Known(to_version, versions, registered, task, transformation_id)
    if transformation_id is not None:
        get_transformation(session, transformation_id)
    sources = [generation for generation in (active, *retained) if generation.version.id != to_version.id]
    routes = known.routes(sources)
    if not routes:
        raise known.refusal(sources, active)

    histories = Histories(session, active.gallery_id, registered)

    def rank(route: Route) -> tuple[bool, int, bool]:
        history = histories.of(route.generation_id)
        alike = task == "instance" and history.drawn_to_classes
        return alike, history.hops + len(route.hops), route.generation_id != active.id

    first = min(routes, key=rank)
    legs = [first.leg(transformation_id)]
    if first.generation_id != active.id:
        rest = replace(known, named=None).sound_routes([active])
        legs += [route.leg(transformation_id) for route in rest]

    if any(leg.gives_side_information != legs[0].gives_side_information for leg in legs):
        # A generation's rows all carry side-information or none does: keep to one leg, the one that was asked for, or
        # the active generation's, which every item can take.
        legs = [leg for leg in legs if (leg.generation_id == active.id) == (transformation_id is None)]

    return legs


@dataclass(frozen=True)
class _Known:
    """What is registered, for a gallery of a task that is to come to `to_version`; `named` is a transformation that is
    to be used."""

    to_version: ModelVersion
    versions: dict[int, ModelVersion]
    registered: Sequence[Transformation]
    task: Task
    named: int | None

    def routes(self, sources: Sequence[StoredGeneration]) -> list[Route]:
        """Return the shortest route of each generation that has one, of transformations that may be taken; where none
        has, of those too that are taken only where they are named, so that their metrics are the refusal."""
        return self.sound_routes(sources) or self._by(sources, self._serving())

    def sound_routes(self, sources: Sequence[StoredGeneration]) -> list[Route]:
        """Return the shortest route of each generation that has one, of transformations that may be taken."""
        return self._by(sources, [one for one in self._serving() if one.id == self.named or unsoundness(one) is None])

    def _serving(self) -> list[Transformation]:
        return [one for one in self.registered if one.may_serve(self.task)]

    def _by(self, sources: Sequence[StoredGeneration], usable: Sequence[Transformation]) -> list[Route]:
        if self.named is None:
            return self._shortest(sources, usable)
        named = [one for one in usable if one.id == self.named]
        direct = self._shortest(sources, named)
        # In the place of all others between its versions it is on the way, or another way is shorter.
        pairs = {(one.from_version_id, one.to_version_id) for one in named}
        others = [one for one in usable if (one.from_version_id, one.to_version_id) not in pairs]
        through = [route for route in self._shortest(sources, [*named, *others]) if route.may_be_by(self.named)]
        return direct or through

    def _shortest(self, sources: Sequence[StoredGeneration], usable: Sequence[Transformation]) -> list[Route]:
        found = [_shortest_route(generation, self.to_version, usable, self.versions) for generation in sources]
        return [route for route in found if route is not None]

    def refusal(self, sources: Sequence[StoredGeneration], active: StoredGeneration) -> Conflict:
        """Say why there is no route."""
        routes = self._by(sources, self.registered)
        if not routes:
            by = "registered transformation" if self.named is None else f"shortest way by transformation {self.named}"
            return NoPath(
                f"No {by} leads from model version {active.version.name!r} to {self.to_version.name!r} (a path through"
                " another version needs a g on the way)."
            )
        on_the_way = min(routes, key=lambda route: len(route.hops)).hops
        drawing = next(one.id for _, hop in on_the_way for one in hop if one.draws_to_classes)
        return ErasesItems(
            f"Transformation {drawing} draws items to the means of their classes, and this gallery is searched for"
            " items: train one with the task 'instance', or change the gallery's task to 'class'."
        )


def _shortest_route(
    source: StoredGeneration,
    to_version: ModelVersion,
    transformations: Sequence[Transformation],
    versions: dict[int, ModelVersion],
) -> Route | None:
    """Breadth-first over (version, whether ψ is at hand); a version that has ψ cannot be left without it."""
    start = (source.version.id, source.vector_format.side_information_dim is not None)
    queue: deque[tuple[tuple[int, bool], tuple[int, ...]]] = deque([(start, (source.version.id,))])
    seen = {start}
    while queue:
        (version_id, has_side_information), way = queue.popleft()
        if len(way) > 1 and version_id == to_version.id:
            return _route_along(source.id, way, transformations, versions)
        if versions[version_id].side_information_dim is not None and not has_side_information:
            continue
        for transformation in transformations:
            reached = (transformation.to_version_id, transformation.g_digest is not None)
            if transformation.from_version_id == version_id and reached not in seen:
                seen.add(reached)
                queue.append((reached, (*way, transformation.to_version_id)))
    return None


def _route_along(
    generation_id: int,
    way: Sequence[int],
    transformations: Sequence[Transformation],
    versions: dict[int, ModelVersion],
) -> Route:
    """Return the route by these versions, of which those between are left with side-information, if they have any."""
    hops = []
    for before, after in pairwise(way):
        leads_on = after != way[-1] and versions[after].side_information_dim is not None
        between = [one for one in transformations if (one.from_version_id, one.to_version_id) == (before, after)]
        candidates = tuple(one for one in between if one.g_digest is not None or not leads_on)
        hops.append((f"from {versions[before].name!r} to {versions[after].name!r}", candidates))
    return Route(generation_id, tuple(hops))
