"""What the gallery's upgrade goes through during a run, in a thread of its own, asking until it is answered.

A step is repeated until the service says that it is done: every action is safe to ask for again.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from tests.chaos.storm.traffic import GALLERY, Client, Traffic
from tests.chaos.storm.values import Kind, picture

_STEP_SECONDS = 600.0  # building an index and judging each begin anew with every kill
_POLL_SECONDS = 0.1
_LEASED_ITEMS = 10_000
_IMAGES_PER_POST = 8
_LEASES = 25
_IMAGES = 120
_ANOTHER = 10**12  # added to a token: an image that was never written

Plan = Callable[["Conductor"], None]


class Stuck(Exception):
    """The service did not do in time what it was asked for."""


class Conductor:
    """Asks for upgrades and what becomes of them; `dwell_seconds` of traffic pass after each step."""

    def __init__(self, traffic: Traffic, client: Client, dwell_seconds: float) -> None:
        self._traffic = traffic
        self._client = client
        self._dwell_seconds = dwell_seconds
        self.upgrade_id = 0
        self.backfill_id = 0
        self.steps_done = 0

    def start_upgrade(self, speed: float = 1.0, **options: Any) -> None:
        """Start the upgrade to v2; one that was started by a request whose answer was lost is found. The storm's h
        leads nowhere near v2, so it is only observed unless the options say otherwise."""

        def ask() -> bool:
            wanted = {"to_version": "v2", "speed": speed, "observe": True, **options}
            answer = self._client.send("POST", f"{GALLERY}/upgrades", json=wanted)
            self._allow(answer, 202, 409)
            found = self._get(f"{GALLERY}/upgrades")
            upgrades = [] if found is None else found["items"]
            if not upgrades or upgrades[-1]["state"] in ("cancelled", "rolled_back"):
                return False
            self.upgrade_id = upgrades[-1]["id"]
            for side in ("from", "to"):
                self._traffic.learn_generation(upgrades[-1][f"{side}_generation"], upgrades[-1][f"{side}_version"])
            return True

        self._until("the upgrade has started", ask)

    def wait_for_progress(self, share: float) -> None:
        """Return when this share of the bulk pass is done."""

        def ask() -> bool:
            upgrade = self._upgrade()
            if upgrade is None:
                return False
            phase = upgrade["progress"]["transforming"]
            return upgrade["state"] not in ("planned", "transforming") or phase["done"] > share * phase["total"]

        self._until(f"{share:.0%} are transformed", ask)

    def wait_until_ready(self) -> None:
        self._until("the upgrade is ready", lambda: self._state() == "ready")

    def wait_until_failed_by_its_gates(self) -> None:
        """Have it judged, by what images come, until a gate fails; it must not be live meanwhile."""

        def ask() -> bool:
            self._allow(self._client.send("POST", f"/v1/upgrades/{self.upgrade_id}/evaluate"), 202, 409)
            self.check_held()
            upgrade = self._upgrade()
            return upgrade is not None and (upgrade["judged"] or {}).get("verdict") == "fail"

        self._until("a gate has failed", ask)

    def check_held(self) -> None:
        """An upgrade that goes live by itself waits for a pass, which this one never gets."""
        upgrade = self._upgrade()
        if upgrade is not None and (upgrade["state"] == "live" or (upgrade["judged"] or {}).get("verdict") == "pass"):
            self._traffic.violations.add(f"an h that leads elsewhere is {upgrade['state']}: {upgrade['judged']}")

    def act(self, action: str, *wanted: str, body: dict[str, Any] | None = None) -> None:
        """Ask for an action until the upgrade is in one of the states wanted, and let some traffic pass.

        The first is the one that a success must be answered with.
        """

        def ask() -> bool:
            answer = self._client.send("POST", f"/v1/upgrades/{self.upgrade_id}/{action}", json=body)
            self._allow(answer, 200, 409)
            if answer is not None and answer.is_success and answer.json()["state"] not in wanted:
                self._traffic.violations.add(f"{action} was answered with {answer.json()['state']}, not {wanted[0]}")
            return self._state() in wanted

        self._until(f"{action} is done", ask)
        self.dwell()

    def set_speed(self, speed: float) -> None:
        def ask() -> bool:
            answer = self._client.send("PATCH", f"/v1/upgrades/{self.upgrade_id}", json={"speed": speed})
            self._allow(answer, 200)
            return answer is not None and answer.is_success

        self._until(f"the speed is {speed}", ask)

    def dwell(self) -> None:
        time.sleep(self._dwell_seconds)

    def import_in(self, space: Kind) -> None:
        """From now on, vectors are imported in this space."""
        self._traffic.space = space

    def write_images(self, count: int) -> None:
        """Let the traffic go on until this many more images were acknowledged."""
        wanted = self._traffic.counts["images"] + count
        self._until(f"{wanted} images are acknowledged", lambda: self._traffic.counts["images"] >= wanted)

    def begin_backfill(self, generation: str, source: str, **options: Any) -> None:
        """Begin the run's backfill from a source; one whose answer was lost is found."""
        wanted = {"generation": generation, "source": source, "order": "random", **options}

        def ask() -> bool:
            found = self._get(f"{GALLERY}/backfills")
            if found is None:
                return False
            begun = [backfill for backfill in found["items"] if backfill["source"] == source]
            if begun:
                self.backfill_id = begun[-1]["id"]
                return True
            self._allow(self._client.send("POST", f"{GALLERY}/backfills", json=wanted), 202, 409)
            return False

        self._until(f"a backfill from {source} has begun", ask)

    def wait_until_backfilled(self) -> None:
        """Return when the backfill is through; it must have encoded something."""
        self._until(
            "the backfill is finished", lambda: (self._backfill() or {}).get("state") in ("finished", "cancelled")
        )
        self._until("the backfill is counted", self._count_backfilled)

    def bring_images(self) -> None:
        """Lease items and send the images of those that have one, but to some of them another image, which must not be
        taken. What is left after some leases is given up."""
        path = f"/v1/backfills/{self.backfill_id}/lease"
        for _ in range(_LEASES):
            answer = self._client.send("POST", path, params={"limit": _LEASED_ITEMS})
            self._allow(answer, 200, 409)
            if answer is None or not answer.is_success:
                time.sleep(_POLL_SECONDS)
                continue
            images = [(id_, token) for id_ in answer.json()["ids"] if (token := self._token_of_image(id_)) is not None]
            for start in range(0, len(images), _IMAGES_PER_POST):
                self._send_images(images[start : start + _IMAGES_PER_POST])
        self._until("the backfill is counted", self._count_backfilled)
        self._until("the backfill has ended", self._cancel_backfill)

    def _send_images(self, images: Sequence[tuple[str, int]]) -> None:
        """Send images of items, of the last one an image that was never written."""
        wrong = images[-1][0]
        tokens = [(id_, token + _ANOTHER if id_ == wrong else token) for id_, token in images]
        files = [("files", (id_, picture(token), "image/png")) for id_, token in tokens]
        answer = self._client.send("POST", f"/v1/backfills/{self.backfill_id}/images", files=files)
        self._allow(answer, 200, 422)
        if answer is not None and answer.is_success:
            for result in answer.json()["results"]:
                if result["id"] == wrong and result["status"] == "backfilled":
                    self._traffic.violations.add(f"the image of another was taken for {wrong}")

    def _token_of_image(self, id_: str) -> int | None:
        """Return the token of an item whose last write is known to be an image."""
        values = self._traffic.oracle.records[id_].candidates
        return values[0].token if len(values) == 1 and values[0] is not None and values[0].kind == "image" else None

    def _count_backfilled(self) -> bool:
        backfill = self._backfill()
        if backfill is None:
            return False
        count = backfill["outcomes"]["backfilled"]
        self._traffic.count("backfilled", count)
        if not count:
            self._traffic.violations.add(f"a backfill gave no item a new row: {backfill}")
        return True

    def _cancel_backfill(self) -> bool:
        backfill = self._backfill()
        if backfill is None:
            return False
        if backfill["state"] in ("finished", "cancelled"):
            return True
        self._allow(self._client.send("POST", f"/v1/backfills/{self.backfill_id}/cancel"), 200, 409)
        return False

    def _backfill(self) -> dict[str, Any] | None:
        """Return the backfill; one that failed is retried."""
        backfill = self._get(f"/v1/backfills/{self.backfill_id}")
        if backfill is not None and backfill["state"] == "failed":
            print(f"  backfill {self.backfill_id} failed and is retried: {backfill['error']}", flush=True)
            self._client.send("POST", f"/v1/backfills/{self.backfill_id}/retry")
        return backfill

    def write_at_least(self, count: int) -> None:
        """Let the traffic go on until this many writes were acknowledged."""
        self._until(f"{count} writes are acknowledged", lambda: self._traffic.counts["writes"] >= count)

    def check_pause(self) -> None:
        """A paused upgrade writes nothing."""
        if self._state() != "paused":
            return  # it was ready before it could be paused
        before = self._done()
        self.dwell()
        after = self._done()
        if None not in (before, after) and before != after:
            self._traffic.violations.add(f"a paused upgrade went on: {before} and then {after} items")

    def _done(self) -> int | None:
        upgrade = self._upgrade()
        return None if upgrade is None else sum(phase["done"] for phase in upgrade["progress"].values())

    def _state(self) -> str | None:
        """Return the upgrade's state; one that failed is retried, as an operator would."""
        upgrade = self._upgrade()
        if upgrade is None:
            return None
        if upgrade["state"] == "failed":
            self._traffic.count("retries of failed upgrades")
            print(f"  upgrade {upgrade['id']} failed and is retried: {upgrade['error']}", flush=True)
            self._client.send("POST", f"/v1/upgrades/{self.upgrade_id}/retry")
        state: str = upgrade["state"]
        return state

    def _upgrade(self) -> dict[str, Any] | None:
        return self._get(f"/v1/upgrades/{self.upgrade_id}")

    def _get(self, path: str) -> dict[str, Any] | None:
        answer = self._client.send("GET", path)
        self._allow(answer, 200)
        if answer is None or not answer.is_success:
            return None
        body: dict[str, Any] = answer.json()
        return body

    def _allow(self, answer: httpx.Response | None, *statuses: int) -> None:
        if answer is not None and answer.status_code < 500 and answer.status_code not in statuses:
            self._traffic.violations.add(f"{answer.request.url}: {answer.status_code} {answer.text[:300]}")

    def _until(self, what: str, ask: Callable[[], bool]) -> None:
        ends = time.monotonic() + _STEP_SECONDS
        while not ask():
            if self._traffic.stopping.is_set():
                raise Stuck(f"the traffic ended before: {what}")
            if time.monotonic() > ends:
                raise Stuck(f"after {_STEP_SECONDS:.0f} s still not: {what}; the upgrade is {self._upgrade()}")
            time.sleep(_POLL_SECONDS)
        self.steps_done += 1


def _cut_over(conductor: Conductor) -> None:
    conductor.start_upgrade()
    conductor.wait_until_ready()
    conductor.act("cutover", "live")
    conductor.import_in("v2")
    conductor.dwell()


def _finalize(conductor: Conductor) -> None:
    _cut_over(conductor)
    conductor.act("finalize", "finalized")


def _roll_back(conductor: Conductor) -> None:
    """After the cutover, imports bring the vectors of v1 with those of v2, so that none is lost by the rollback."""
    conductor.start_upgrade()
    conductor.wait_until_ready()
    conductor.act("cutover", "live")
    conductor.import_in("both")
    conductor.dwell()
    conductor.act("rollback", "rolled_back")
    conductor.import_in("v1")
    conductor.dwell()


def _roll_back_and_again(conductor: Conductor) -> None:
    _roll_back(conductor)
    _cut_over(conductor)


def _cancel_and_again(conductor: Conductor) -> None:
    conductor.start_upgrade(speed=0.3)
    conductor.wait_for_progress(0.1)
    conductor.act("cancel", "cancelled")
    _cut_over(conductor)


def _pause(conductor: Conductor) -> None:
    conductor.start_upgrade(speed=0.3)
    conductor.wait_for_progress(0.1)
    conductor.act("pause", "paused", "ready")
    conductor.check_pause()
    conductor.act("resume", "transforming", "indexing", "evaluating", "ready")
    conductor.set_speed(1.0)
    conductor.wait_until_ready()
    conductor.act("cutover", "live")
    conductor.import_in("v2")
    conductor.dwell()


def _hold(conductor: Conductor) -> None:
    """Auto, and judged: it stays ready whatever dies, and goes live past its failed gates by an override alone."""
    conductor.start_upgrade(cutover="auto", observe=False)
    conductor.wait_until_ready()
    conductor.wait_until_failed_by_its_gates()
    conductor.dwell()
    conductor.check_held()
    conductor.act("cutover", "live", body={"override": {"reason": "the storm wants it"}})
    conductor.import_in("v2")
    conductor.dwell()


def _backfill(conductor: Conductor) -> None:
    """Images are encoded again by the candidate while it is ready, by workers, and after the cutover, by a client."""
    conductor.write_images(_IMAGES)
    conductor.start_upgrade()
    conductor.wait_until_ready()
    conductor.begin_backfill("next", "uri", speed=0.05, budget={"share": 0.5})
    conductor.wait_until_backfilled()
    conductor.act("cutover", "live")
    conductor.import_in("v2")
    conductor.begin_backfill("active", "client")
    conductor.bring_images()
    conductor.dwell()


PLANS: dict[str, Plan] = {
    "cut over": _cut_over,
    "roll back": _roll_back,
    "cancel, again": _cancel_and_again,
    "finalize": _finalize,
    "pause, resume": _pause,
    "roll back, again": _roll_back_and_again,
    "held, overridden": _hold,
    "backfilled": _backfill,
}
