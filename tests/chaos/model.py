"""What a reader must see, in plain dictionaries: the model that `test_model.py` holds against the service.

It knows an upgrade's documented rules and nothing of how they are kept. A generation's `rows` are its current rows; a
row that an upgrade derived is first computed here from the row it must come from, and from then on must stay as it is.
"""

from dataclasses import dataclass, field
from typing import Literal

from tests.chaos.offline import PATHS, Row, transformed

WORKING = ("planned", "transforming", "indexing", "evaluating")
WORKER_PATH = [*WORKING, "ready", "live"]
OPEN = {*WORKING, "ready", "paused", "failed"}

# Where each action is possible, and where it asks for what is true already.
POSSIBLE: dict[str, set[str]] = {
    "pause": {*WORKING},
    "resume": {"paused"},
    "retry": {"failed"},
    "cancel": OPEN,
    "cutover": {"ready"},
    "rollback": {"live"},
    "finalize": {"live"},
}
TRUE_ALREADY: dict[str, set[str]] = {
    "pause": {"paused"},
    "resume": {*WORKING, "ready"},
    "retry": {*WORKING, "ready"},
    "cancel": {"cancelled"},
    "cutover": {"live"},
    "rollback": {"rolled_back"},
    "finalize": {"finalized"},
}
Expected = Literal["done", "same", "refused"]


@dataclass
class Leg:
    """A generation to read, and the versions that its rows go through."""

    generation: int
    path: tuple[str, ...]


@dataclass
class Generation:
    """One stored generation; `legs` say where rows are derived from while it is not complete, and `hops` how often most
    of them were transformed."""

    id: int
    version: str
    legs: list[Leg] = field(default_factory=list)
    complete: bool = True
    rows: dict[str, Row] = field(default_factory=dict)
    hops: int = 0


@dataclass
class Upgrade:
    """`faults` are attempts at a batch that came to nothing since the start or the last retry; `poisoned` when one of
    them was for an item that cannot be upgraded: it fails once its other batches are done."""

    id: int
    from_generation: int
    to_generation: int
    cutover: str
    state: str = "planned"
    left: str = ""
    speed: float = 1.0
    faults: int = 0
    poisoned: bool = False

    @property
    def reached(self) -> str:
        """How far the work has come, paused or failed or not."""
        return self.left if self.state in ("paused", "failed") else self.state


class GalleryModel:
    """One gallery: its live items (with the number of the image or vectors that each was last given), its stored
    generations, its upgrades and its revision."""

    def __init__(self, generation: int, version: str, dtype: str) -> None:
        self.dtype = dtype
        self.items: dict[str, int] = {}
        self.generations = {generation: Generation(generation, version)}
        self.active_id = generation
        self.upgrades: list[Upgrade] = []
        self.revision = 0

    @property
    def active(self) -> Generation:
        return self.generations[self.active_id]

    @property
    def open_upgrade(self) -> Upgrade | None:
        return next((upgrade for upgrade in self.upgrades if upgrade.state in OPEN), None)

    @property
    def previous(self) -> Generation | None:
        """The generation that a rollback of the live upgrade would make active again."""
        for upgrade in self.upgrades:
            if upgrade.state == "live" and upgrade.to_generation == self.active_id:
                return self.generations[upgrade.from_generation]
        return None

    @property
    def legs_of_open_upgrade(self) -> list[Leg]:
        opened = self.open_upgrade
        return self.generations[opened.to_generation].legs if opened else []

    def write(self, seeds: dict[str, int], rows: dict[int, dict[str, Row]]) -> None:
        """Items were written, with these rows by generation; every other row of theirs is out of date."""
        self.items |= seeds
        self.revision += len(seeds)
        for generation in self.generations.values():
            for id_ in seeds:
                generation.rows.pop(id_, None)
            generation.rows |= rows.get(generation.id, {})

    def delete(self, ids: list[str]) -> None:
        self.revision += len(ids)
        for id_ in ids:
            del self.items[id_]
            for generation in self.generations.values():
                generation.rows.pop(id_, None)

    def legs_to(self, version: str) -> list[Leg]:
        """Return where an upgrade must read: the fewest hops since the pixels, else the active generation, which has
        every item."""
        if version == self.active.version:
            return []
        found = [
            Leg(generation.id, PATHS[generation.version, version])
            for generation in self.generations.values()
            if generation.version != version
        ]
        found.sort(key=lambda leg: (self._hops_of(leg), leg.generation != self.active_id))
        fewest, everything = found[0], next(leg for leg in found if leg.generation == self.active_id)
        return [fewest] if fewest is everything else [fewest, everything]

    def plan(self, upgrade: Upgrade, version: str, legs: list[Leg]) -> None:
        self.upgrades.append(upgrade)
        made = Generation(upgrade.to_generation, version, legs, complete=False, hops=self._hops_of(legs[0]))
        self.generations[upgrade.to_generation] = made

    def _hops_of(self, leg: Leg) -> int:
        return self.generations[leg.generation].hops + len(leg.path) - 1

    def derived(self, generation: Generation, id_: str) -> Row | None:
        """Return the row that an item must be given in a generation that is derived; None if nothing has one."""
        for leg in generation.legs:
            source = self.generations.get(leg.generation)
            if source is not None and id_ in source.rows:
                return transformed(source.rows[id_], leg.path, self.dtype)
        return None

    def lost_by_rollback(self, upgrade: Upgrade) -> list[str]:
        """Return the live items that only the new generation has."""
        return [id_ for id_ in self.items if id_ not in self.generations[upgrade.from_generation].rows]

    def expected(self, action: str, upgrade: Upgrade, *, accept_loss: bool = False) -> Expected:
        """Return what must come of a user's action now; a cutover is `done` once a worker has answered."""
        if upgrade.state in TRUE_ALREADY[action]:
            return "same"
        if upgrade.state not in POSSIBLE[action]:
            return "refused"
        if action == "rollback":
            stands_on_it = self.open_upgrade is not None or self.active_id != upgrade.to_generation
            if stands_on_it or (self.lost_by_rollback(upgrade) and not accept_loss):
                return "refused"
        if action == "finalize":
            needed = {leg.generation for leg in self.legs_of_open_upgrade}
            needed |= {other.to_generation for other in self.upgrades if other.state == "live"}
            if upgrade.from_generation in needed:
                return "refused"
        return "done"

    def apply(self, action: str, upgrade: Upgrade) -> None:
        """The action is done."""
        if action == "pause":
            upgrade.left, upgrade.state = upgrade.state, "paused"
        elif action in ("resume", "retry"):
            upgrade.state = upgrade.left
            if action == "retry":
                upgrade.faults, upgrade.poisoned = 0, False
        elif action == "cancel":
            upgrade.state = "cancelled"
            del self.generations[upgrade.to_generation]
        elif action == "cutover":
            upgrade.state = "live"
            self.active_id = upgrade.to_generation
            self.active.complete = True
        elif action == "rollback":
            self.delete(self.lost_by_rollback(upgrade))
            upgrade.state = "rolled_back"
            self.active_id = upgrade.from_generation
            del self.generations[upgrade.to_generation]
        elif action == "finalize":
            upgrade.state = "finalized"
            del self.generations[upgrade.from_generation]

    def follow_worker(self, upgrade: Upgrade, state: str, *, requested: bool = False, max_faults: int) -> None:
        """The worker left the upgrade in `state`: it must be one that it may come to. A cutover is its own doing when
        the upgrade is `auto`, else it was `requested`."""
        assert state in ("failed", "transforming", upgrade.state) or not upgrade.poisoned, (
            "a poisoned item must fail the upgrade"
        )
        if state == upgrade.state:
            return
        assert upgrade.state in WORKER_PATH[:-1], f"the worker moved an upgrade that was {upgrade.state}"
        assert upgrade.speed > 0 or requested, "the worker moved an upgrade at speed 0"
        if state == "failed":
            assert upgrade.poisoned or upgrade.faults >= max_faults, f"failed after {upgrade.faults} faults"
            upgrade.left, upgrade.state = upgrade.state, state
            return
        assert WORKER_PATH.index(state) > WORKER_PATH.index(upgrade.state), f"{upgrade.state} -> {state}"
        upgrade.state = state
        if state == "live":
            assert upgrade.cutover == "auto" or requested, "the worker cut over and nobody asked for it"
            self.apply("cutover", upgrade)
