"""The real service against a plain model: what users, workers and crashes do, in any order.

After every rule, everything that a reader can see is compared with the model (`tests.chaos.readers`). No rule has a
precondition and nothing that is drawn depends on what happened before: what is impossible now must be refused, and
change nothing. `--hypothesis-profile=long` is the long form.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service.domain.upgrade.batches import claim_batch, transform_items, work_on_batch
from service.networks.transformations import PoisonedItems
from service.settings import Settings
from tests.chaos.client import Client
from tests.chaos.model import WORKER_PATH, GalleryModel, Upgrade
from tests.chaos.offline import DIMS
from tests.chaos.readers import check_answers, check_candidate, check_lists, check_storage
from tests.chaos.world import WorkerDied, World
from workers.sweep import sweep
from workers.upgrading import advance_upgrade

if TYPE_CHECKING:
    import httpx

    from service.domain.claims import Claim
    from service.tables import UpgradeBatch

_MANY_STEPS = 100

ids = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True)
many_ids = st.lists(st.sampled_from("abcdefgh"), min_size=4, unique=True)
versions = st.sampled_from(sorted(DIMS))
apis = st.sampled_from([0, 1])
back = st.sampled_from([0, 0, 0, 1, 2])  # which upgrade, counted back from the latest
cutovers = st.sampled_from(["auto", "manual"])
writes = st.sampled_from(["images", "vectors", "vectors of both", "delete"])
actions = st.sampled_from(["pause", "resume", "cancel", "retry", "rollback", "rollback accepting loss", "finalize"])
meanwhile = st.sampled_from(["start", "cancel", "cutover", "rollback accepting loss", "finalize", "delete", "images"])


class GalleryMachine(RuleBasedStateMachine):
    """One gallery of `world` in each example; `client.fresh` are the APIs whose replicas have followed everything."""

    world: World

    @initialize(version=versions, dtype=st.sampled_from(["float16", "float32"]), first=many_ids)
    def create_gallery(self, version: str, dtype: str, first: list[str]) -> None:
        self.world.galleries += 1
        self.client = Client(self.world, f"g{self.world.galleries}", version, dtype)
        self.model: GalleryModel = self.client.model
        self.frozen: list[Claim[UpgradeBatch]] = []
        self.client.run(self.client.images(0, first))

    @rule(api=apis, kind=writes, ids=ids)
    def write(self, api: int, kind: str, ids: list[str]) -> None:
        self.client.run(self.client.write(api, kind, ids))

    @rule(api=apis, ids=ids, what=meanwhile, back=back, version=versions)
    def ingest_while_something_happens(self, api: int, ids: list[str], what: str, back: int, version: str) -> None:
        """The generations change, or an item goes, after the ingest has looked which there are."""
        if what == "start":
            inner = self.client.start(1 - api, version, "manual")
        elif what in ("delete", "images"):
            inner = self.client.write(1 - api, what, ids[:1])
        else:
            inner = self.client.act(1 - api, what, back)
        ingest, interruption = self.client.images(api, ids), self.world.apis[api].encoders.interruption
        answers = []
        interruption.arm(lambda: answers.append(inner.send()))
        answer = ingest.send()
        interruption.disarm()
        inner.settle(answers[0])
        self.client.has_acted = True
        ingest.settle(answer)

    @rule(api=apis, version=versions, cutover=cutovers, calls=st.sampled_from([0, 1, 2, 3]))
    def start_upgrade(self, api: int, version: str, cutover: str, calls: int) -> None:
        self.client.run(self.client.start(api, version, cutover))
        self.step_the_worker(calls)

    @rule(api=apis, version=versions, kind=writes, late=ids)
    def upgrade_in_one_go(self, api: int, version: str, kind: str, late: list[str]) -> None:
        """Including what is written after the upgrade got ready."""
        self.client.run(self.client.start(api, version, "manual"))
        self.run_the_worker()
        self.readers_see_what_the_model_says()
        self.client.run(self.client.write(api, kind, late))
        self.client.run(self.client.act(api, "cutover", 0))

    @rule(api=apis, action=actions, back=back)
    def act(self, api: int, action: str, back: int) -> None:
        self.client.run(self.client.act(api, action, back))

    @rule(api=apis, back=back, is_worker_there=st.sampled_from([True, True, False]))
    def cut_over(self, api: int, back: int, is_worker_there: bool) -> None:
        self.client.run(self.client.act(api, "cutover", back, is_worker_there=is_worker_there))

    @rule(api=apis, back=back, speed=st.sampled_from([0.0, 1.0, 1.0]))
    def set_speed(self, api: int, back: int, speed: float) -> None:
        self.client.run(self.client.set_speed(api, back, speed))

    @rule(calls=st.sampled_from([1, 1, 2, 4]))
    def step_the_worker(self, calls: int) -> None:
        for _ in range(calls):
            self._worker(lambda upgrade: advance_upgrade(self.world.worker, upgrade.id))

    @rule()
    def run_the_worker(self) -> None:
        """What an undisturbed worker starts, it finishes."""
        upgrade = self.model.open_upgrade
        moves = upgrade and upgrade.state in WORKER_PATH and upgrade.speed > 0
        stuck = upgrade and self.world.claimed_batches(upgrade.id)
        self._worker(self._advance_until_nothing_is_left)
        if upgrade and moves and not stuck and upgrade.state != "failed":
            assert upgrade.state == ("live" if upgrade.cutover == "auto" else "ready")

    @rule(api=apis, kind=writes, ids=ids, version=versions, goes_live=st.booleans())
    def write_in_the_middle_of_a_batch(
        self, api: int, kind: str, ids: list[str], version: str, goes_live: bool
    ) -> None:
        """Between the batch's reading of its rows and its writing."""
        upgrade = self._upgrade_with_batches(version)
        if upgrade is None or (upgrade.state == "ready" and upgrade.cutover == "auto"):
            return  # a cutover lets no write in between: it would wait for ever here
        requests = [
            self.client.write(api, kind, some) for some in ([[id_] for id_ in ids] if kind == "delete" else [ids])
        ]
        answers: list[httpx.Response] = []
        interruption = self.world.networks.interruption
        interruption.arm(lambda: answers.extend(request.send() for request in requests))
        advance_upgrade(self.world.worker, upgrade.id)
        if interruption.disarm():
            for request, answer in zip(requests, answers, strict=True):
                request.settle(answer)
        self.client.follow_worker(upgrade)
        if goes_live:
            self.readers_see_what_the_model_says()
            self.run_the_worker()
            self.client.run(self.client.act(api, "cutover", 0))

    @rule(fault=st.sampled_from(["died", "died", "device", "poison"]), version=versions)
    def fail_in_the_middle_of_a_batch(self, fault: str, version: str) -> None:
        upgrade = self._upgrade_with_batches(version)
        if upgrade is None:
            return
        networks = self.world.networks

        def fail() -> None:
            if fault == "poison":
                raise PoisonedItems({networks.item_ids[0]: "transformed embedding has a value that is not finite"})
            raise WorkerDied if fault == "died" else RuntimeError("the device fell off")

        networks.interruption.arm(fail)
        try:
            advance_upgrade(self.world.worker, upgrade.id)
        except (WorkerDied, RuntimeError):
            assert networks.interruption.happened
        happened = networks.interruption.disarm()
        upgrade.faults += happened
        upgrade.poisoned |= happened and fault == "poison"
        self.client.follow_worker(upgrade)

    @rule(what=st.sampled_from(["freezes", "wakes", "leases end"]), version=versions)
    def a_worker_freezes_or_wakes(self, what: str, version: str) -> None:
        """It says nothing more after it has claimed a batch; later it goes on, whoever may have the batch by then."""
        upgrade = self._upgrade_with_batches(version) if what == "freezes" else None
        if what == "leases end":
            self.world.end_leases()
        elif what == "wakes" and self.frozen:
            claim = self.frozen.pop(0)
            self.client.has_acted = True
            with self.world.database.session_scope() as session:
                work_on_batch(session, claim, partial(transform_items, transform=self.world.networks.transform))
        elif what == "freezes" and upgrade is not None and upgrade.state in ("transforming", "ready"):
            claimed = claim_batch(self.world.database, upgrade.id, self.world.settings.lease_seconds)
            if claimed is not None:
                upgrade.faults += 1
                self.frozen.append(claimed)

    @rule(api=apis, restarts=st.booleans())
    def an_api_follows_or_restarts(self, api: int, restarts: bool) -> None:
        if restarts:
            self.world.apis[api].stop()
            self.world.apis[api].start()
        else:
            self.world.apis[api].follow(self.client.gallery_id)
        self.client.has_acted = True
        self.client.fresh.add(api)
        check_candidate(self.world.apis[api], self.client.name, self.model, is_complete=True)

    @rule()
    def sweep(self) -> None:
        """A lost nudge is sent again, for exactly what a worker could work on."""
        self.world.worker_nudges.sent.clear()
        sweep(self.world.worker)
        upgrade = self.model.open_upgrade
        expected = [upgrade.id] if upgrade is not None and upgrade.state in WORKER_PATH else []
        assert self.world.worker_nudges.sent == expected

    @invariant()
    def readers_see_what_the_model_says(self) -> None:
        if not hasattr(self, "client") or not self.client.has_acted:
            return
        self.client.has_acted = False
        check_storage(self.world, self.client.name, self.model)
        check_lists(self.world.apis[self.client.seed % 2], self.client.name, self.model)
        for number, api in enumerate(self.world.apis):
            is_fresh = number in self.client.fresh
            check_answers(api, self.client.name, self.model, is_fresh=is_fresh)
            if is_fresh:
                check_candidate(api, self.client.name, self.model, is_complete=False)

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.delete_gallery()
            sweep(self.world.worker)

    def _worker(self, work: Callable[[Upgrade], object]) -> None:
        upgrade = self.model.open_upgrade
        if upgrade is not None:
            work(upgrade)
            self.client.follow_worker(upgrade)

    def _upgrade_with_batches(self, version: str) -> Upgrade | None:
        """Return the open upgrade, its batches planned if they were not; start one if that is possible."""
        if self.model.open_upgrade is None:
            self.client.run(self.client.start(0, version, "manual"))
        self._worker(lambda upgrade: upgrade.state == "planned" and advance_upgrade(self.world.worker, upgrade.id))
        return self.model.open_upgrade

    def _advance_until_nothing_is_left(self, upgrade: Upgrade) -> None:
        for _ in range(_MANY_STEPS):
            if not advance_upgrade(self.world.worker, upgrade.id):
                return
        raise AssertionError("the worker never comes to an end")


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    world = World(settings)
    yield world
    world.close()


def machine_on(chosen_world: World) -> type[GalleryMachine]:
    class Machine(GalleryMachine):
        world = chosen_world

    return Machine


@pytest.mark.chaos
def test_readers_see_what_the_model_says_whatever_happens_in_any_order(world: World) -> None:
    profile = hypothesis_settings()
    is_long = hypothesis_settings.get_current_profile_name() == "long"
    chosen = hypothesis_settings(
        max_examples=profile.max_examples if is_long else 15,
        stateful_step_count=profile.stateful_step_count if is_long else 30,
        deadline=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine_on(world), settings=chosen)


def test_an_item_transformed_after_the_index_was_built_is_found_by_an_api_that_loads_it_after_the_cutover(
    world: World,
) -> None:
    machine = machine_on(world)()
    machine.create_gallery(version="v1", dtype="float16", first=["a", "b", "c", "d"])

    machine.write_in_the_middle_of_a_batch(api=0, kind="vectors", ids=["a"], version="v3", goes_live=True)

    machine.readers_see_what_the_model_says()
    machine.an_api_follows_or_restarts(api=1, restarts=True)
    machine.readers_see_what_the_model_says()


def test_an_item_written_between_two_legs_of_a_batch_takes_the_first(world: World) -> None:
    machine = machine_on(world)()
    machine.create_gallery(version="v1", dtype="float16", first=["a", "b", "c", "d"])
    machine.upgrade_in_one_go(api=0, version="v2", kind="images", late=["a"])

    machine.write_in_the_middle_of_a_batch(api=0, kind="vectors of both", ids=["a", "b"], version="v3", goes_live=True)

    machine.readers_see_what_the_model_says()
