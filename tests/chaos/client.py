"""A user of one gallery: requests, and what becomes of the model when they have been answered."""

from collections.abc import Callable
from dataclasses import dataclass

import httpx
from sqlalchemy import text

from tests.chaos.model import GalleryModel, Leg, Upgrade
from tests.chaos.offline import encoded, imported
from tests.chaos.world import MAX_BATCH_ATTEMPTS, World
from workers.upgrading import advance_upgrade

_NO_UPGRADE = 2**40


@dataclass(frozen=True)
class Request:
    """`send` may happen in the middle of something else; `settle` checks the answer and brings the model along."""

    send: Callable[[], httpx.Response]
    settle: Callable[[httpx.Response], None]


class Client:
    """Makes requests to one gallery through either API, and keeps its model.

    `fresh` are the APIs whose replicas have followed everything; `has_acted` says that something may have changed since
    it was last set to false. Each request writes images or vectors of its own.
    """

    def __init__(self, world: World, name: str, version: str, dtype: str) -> None:
        self.world = world
        self.name = name
        self.seed = 0
        self.fresh: set[int] = set()
        self.has_acted = False
        new = {"name": name, "model_version": version, "dtype": dtype, "thumbnails": False}
        answer = world.apis[0].client.post("/v1/galleries", json=new)
        assert answer.status_code == 201, answer.text
        self.model = GalleryModel(answer.json()["generation"], version, dtype)
        with world.database.session_scope() as session:
            query = text("SELECT id FROM galleries WHERE name = :name")
            self.gallery_id: int = session.scalars(query, {"name": name}).one()

    def run(self, request: Request) -> None:
        self.has_acted = True
        request.settle(request.send())

    def write(self, api: int, kind: str, ids: list[str]) -> Request:
        if kind == "images":
            return self.images(api, ids)
        if kind == "delete":
            return self.delete(api, ids[0])
        return self.vectors(api, ids, of_both=kind == "vectors of both")

    def images(self, api: int, ids: list[str]) -> Request:
        """Ingest new images; every stored generation must get their rows encoded by its own version."""
        seeds = self._new_seeds(ids)

        def settle(answer: httpx.Response) -> None:
            assert answer.status_code == 200, answer.text
            results = {result["id"]: result["status"] for result in answer.json()["results"]}
            assert results == {id_: "replaced" if id_ in self.model.items else "created" for id_ in ids}
            rows = {
                generation.id: {id_: encoded(generation.version, seed, self.model.dtype) for id_, seed in seeds.items()}
                for generation in self.model.generations.values()
            }
            self.model.write(seeds, rows)
            self.fresh = {api}

        return Request(lambda: self.world.apis[api].upload(self.name, seeds), settle)

    def vectors(self, api: int, ids: list[str], *, of_both: bool) -> Request:
        """Import new vectors for the active generation, and with `of_both` for the one that a rollback returns to."""
        seeds = self._new_seeds(ids)
        active, previous, dtype = self.model.active, self.model.previous, self.model.dtype
        columns = {"": {id_: imported(active.version, seed, dtype) for id_, seed in seeds.items()}}
        rows = {active.id: columns[""]}
        if of_both:
            version = (previous or active).version
            columns["previous_"] = {id_: imported(version, -seed, dtype) for id_, seed in seeds.items()}
            rows |= {previous.id: columns["previous_"]} if previous else {}

        def settle(answer: httpx.Response) -> None:
            if of_both and previous is None:
                assert answer.status_code == 422, answer.text
                return
            assert (answer.status_code, answer.json()) == (200, {"count": len(ids)}), answer.text
            self.model.write(seeds, rows)
            self.fresh = {api}

        return Request(lambda: self.world.apis[api].import_rows(self.name, active.version, columns), settle)

    def delete(self, api: int, id_: str) -> Request:
        def settle(answer: httpx.Response) -> None:
            assert answer.status_code == (204 if id_ in self.model.items else 404), answer.text
            if answer.status_code == 204:
                self.model.delete([id_])
                self.fresh = {api}

        url = f"/v1/galleries/{self.name}/items/{id_}"
        return Request(lambda: self.world.apis[api].client.delete(url), settle)

    def start(self, api: int, version: str, cutover: str) -> Request:
        """Start an upgrade: one at a time, to another version, along the shortest way."""
        new = {"to_version": version, "cutover": cutover, "observe": True}

        def settle(answer: httpx.Response) -> None:
            if self.model.open_upgrade is not None or self.model.active.version == version:
                assert answer.status_code == 409, answer.text
                return
            assert answer.status_code == 202, answer.text
            view, legs = answer.json(), self.model.legs_to(version)
            assert view["path"] == [self._path_view(leg) for leg in legs]
            assert (view["from_generation"], view["state"]) == (self.model.active_id, "planned")
            self.model.plan(Upgrade(view["id"], view["from_generation"], view["to_generation"], cutover), version, legs)

        url = f"/v1/galleries/{self.name}/upgrades"
        return Request(lambda: self.world.apis[api].client.post(url, json=new), settle)

    def _path_view(self, leg: Leg) -> dict[str, object]:
        hops = zip(leg.path, leg.path[1:], strict=False)
        return {"generation": leg.generation, "transformations": [self.world.transformations[hop] for hop in hops]}

    def act(self, api: int, action: str, back: int, *, is_worker_there: bool = True) -> Request:
        """Act on an upgrade, counted back from the latest; a rollback may accept the loss of items."""
        upgrade = self._upgrade(back)
        action, _, accepting = action.partition(" ")
        url = f"/v1/upgrades/{upgrade.id if upgrade else _NO_UPGRADE}/{action}"
        parameters = {"accept_loss": True} if accepting else {}

        def send() -> httpx.Response:
            self.world.nudges.answer = self._advance if action == "cutover" and is_worker_there else None
            try:
                return self.world.apis[api].client.post(url, params=parameters)
            finally:
                self.world.nudges.answer = None

        def settle(answer: httpx.Response) -> None:
            if upgrade is None:
                assert answer.status_code == 404, answer.text
                return
            expected = self.model.expected(action, upgrade, accept_loss=bool(accepting))
            if expected == "done" and action == "cutover":
                self._settle_cutover(api, answer, upgrade, is_worker_there)
                return
            assert answer.status_code == (409 if expected == "refused" else 200), answer.text
            if expected == "refused":
                self._check_refusal(action, upgrade, answer.json()["detail"])
                return
            if expected == "done":
                self.model.apply(action, upgrade)
                if action in ("cancel", "rollback", "finalize"):
                    self.fresh = {api}
            assert answer.json()["state"] == upgrade.state

        return Request(send, settle)

    def _settle_cutover(self, api: int, answer: httpx.Response, upgrade: Upgrade, is_worker_there: bool) -> None:
        """A ready upgrade goes live if a worker is there and no batch is in another's hands; else nothing happens."""
        may_go = is_worker_there and not self.world.claimed_batches(upgrade.id)
        self.follow_worker(upgrade, requested=is_worker_there)
        if upgrade.state == "live":
            assert answer.status_code == 200, answer.text
            self.fresh = {api}
        else:
            assert not may_go or upgrade.state == "failed"
            assert answer.status_code == (409 if upgrade.state == "failed" else 503), answer.text

    def _check_refusal(self, action: str, upgrade: Upgrade, detail: str) -> None:
        """A rollback that would lose items names them."""
        stands_on_it = self.model.open_upgrade is not None or self.model.active_id != upgrade.to_generation
        if action == "rollback" and upgrade.state == "live" and not stands_on_it:
            lost = self.model.lost_by_rollback(upgrade)
            assert f"lose {len(lost)} item(s)" in detail
            assert all(repr(id_) in detail for id_ in lost[:10]) or len(lost) > 10

    def set_speed(self, api: int, back: int, speed: float) -> Request:
        upgrade = self._upgrade(back)

        def settle(answer: httpx.Response) -> None:
            if upgrade is None:
                assert answer.status_code == 404, answer.text
            elif upgrade is not self.model.open_upgrade:
                assert answer.status_code == 409, answer.text
            else:
                assert answer.status_code == 200, answer.text
                upgrade.speed = speed

        url = f"/v1/upgrades/{upgrade.id if upgrade else _NO_UPGRADE}"
        return Request(lambda: self.world.apis[api].client.patch(url, json={"speed": speed}), settle)

    def follow_worker(self, upgrade: Upgrade, *, requested: bool = False) -> None:
        """Look where the worker left the upgrade."""
        self.has_acted = True
        view = self.world.apis[0].client.get(f"/v1/upgrades/{upgrade.id}").json()
        before = upgrade.state
        # One fault ends a judgement; it takes several to end a batch.
        is_unjudged = upgrade.faults > 0 and "could not be judged" in (view["error"] or "")
        max_faults = 1 if is_unjudged else MAX_BATCH_ATTEMPTS
        self.model.follow_worker(upgrade, view["state"], requested=requested, max_faults=max_faults)
        if upgrade.state == "failed" and before != "failed" and not is_unjudged:
            reasons = ("never finished", "cannot be upgraded") if upgrade.poisoned else ("never finished",)
            assert any(reason in view["error"] for reason in reasons)
        if upgrade.state == "live" and before != "live":
            self.fresh = set()

    def delete_gallery(self) -> None:
        """Leave nothing to the next example."""
        client = self.world.apis[0].client
        if self.model.open_upgrade is not None:
            client.post(f"/v1/upgrades/{self.model.open_upgrade.id}/cancel")
        client.delete(f"/v1/galleries/{self.name}")

    def _upgrade(self, back: int) -> Upgrade | None:
        """Return an upgrade counted back from the latest; the first, if there are not so many."""
        return self.model.upgrades[-min(back + 1, len(self.model.upgrades))] if self.model.upgrades else None

    def _new_seeds(self, ids: list[str]) -> dict[str, int]:
        first = self.seed + 1
        self.seed += len(ids)
        return dict(zip(ids, range(first, self.seed + 1), strict=True))

    def _advance(self, upgrade_id: int) -> None:
        """Be the worker that answers a nudge."""
        while advance_upgrade(self.world.worker, upgrade_id):
            pass
