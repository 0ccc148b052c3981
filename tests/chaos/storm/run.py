"""One run of the storm: a copy of the filled gallery, its service, its traffic, its plan, its kills and its count."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.chaos.storm.checks import Checks
from tests.chaos.storm.oracle import Oracle, Violations
from tests.chaos.storm.plan import PLANS, Conductor
from tests.chaos.storm.processes import (
    Killable,
    Service,
    copy_blobs,
    create_database,
    drop_database,
)
from tests.chaos.storm.searches import Searcher
from tests.chaos.storm.traffic import Client, Traffic, Writer
from tests.chaos.storm.values import (
    EMBEDDING_DIM,
    SIDE_INFORMATION_DIM,
    Reference,
    artifacts,
    transformation_artifacts,
)
from tests.networks import PREPROCESSING
from tests.real_servers import RealServers

BASE = "storm_base"
_WRITERS = 2
_SEARCHERS = 2
_WORKERS = 2


@dataclass(frozen=True)
class Options:
    """How large a storm is. `writes` is how many acknowledged writes each run waits for, the base's not counted."""

    items: int
    writes: int
    chunk_items: int = 500
    writer_pause_seconds: float = 0.3
    kill_every_seconds: float = 3.0
    dwell_seconds: float = 2.0
    graph_every: int = 12  # one run in so many leaves the kind of index to the service; the others have an exact one


@dataclass(frozen=True)
class Outcome:
    """What one run did and found."""

    seed: int
    plan: str
    kills: dict[Killable, int]
    counts: Counter[str]
    violations: list[str]
    seconds: float


class Storm:
    """Real servers with a gallery that every run starts from a copy of."""

    def __init__(self, servers: RealServers, folder: Path, options: Options) -> None:
        self._servers = servers
        self._folder = folder
        self._options = options
        self._settings = {
            "follow_every_seconds": "0.2",
            "batch_items": str(max(200, options.items // 40)),
            "lease_seconds": "3",
            "sweep_every_seconds": "1",
            "cutover_wait_seconds": "10",
            "precision": "float32",  # as h is applied offline
            "backfill_batch_items": "8",
            "backfill_lease_seconds": "15",
        }
        self.reference = Reference()
        self.base = Oracle()

    def fill(self) -> Counter[str]:
        """Import the items into the base, under no kills; return what was counted."""
        create_database(self._servers, BASE)
        service = self._service(BASE, self._folder / "base", 1, 0, is_exact=True)
        service.start()
        traffic = self._traffic(service, self.base, Violations(seed=0), seed=0)
        register(service.urls[0])
        chance = random.Random(0)
        for number in range(_WRITERS):
            writer = Writer(traffic, number, Client(traffic, chance), chance)
            left = self._options.items // _WRITERS
            while left:
                count = min(left, 5_000)
                if not writer.import_new(count):
                    raise RuntimeError("the base could not be filled")
                left -= count
        service.stop()
        return traffic.counts

    def run(self, seed: int) -> Outcome:
        """Run one storm; what is wrong is in the outcome, and printed with the seed."""
        started = time.monotonic()
        name = f"storm_{seed}"
        plan = list(PLANS)[seed % len(PLANS)]
        violations = Violations(seed)
        create_database(self._servers, name, template=BASE)
        copy_blobs(self._folder / "base", self._folder / name)
        is_exact = seed % self._options.graph_every != 0
        service = self._service(name, self._folder / name, 1 + seed // len(PLANS) % 2, _WORKERS, is_exact)
        traffic = self._traffic(service, self.base.copy(), violations, seed)
        try:
            service.start()
            self._storm(service, traffic, plan)
            service.wait_until_ready()
            Checks(
                service.database_url,
                service.urls,
                self._folder / name / "blobs",
                traffic.oracle,
                self.reference,
                violations,
            ).run()
        finally:
            traffic.stopping.set()
            service.stop()
        drop_database(self._servers, name)
        return Outcome(seed, plan, service.kills, traffic.counts, violations.found, time.monotonic() - started)

    def _storm(self, service: Service, traffic: Traffic, plan: str) -> None:
        """Let the traffic, the plan and the kills go on until the plan is through."""
        seeds = random.Random(traffic.seed)

        def client() -> tuple[Client, random.Random]:
            chance = random.Random(seeds.random())
            return Client(traffic, chance), chance

        roles = [Writer(traffic, number, *client()).run for number in range(_WRITERS)]
        roles += [Searcher(traffic, *client()).run for _ in range(_SEARCHERS)]
        conductor = Conductor(traffic, client()[0], self._options.dwell_seconds)

        def follow_plan() -> None:
            PLANS[plan](conductor)
            conductor.write_at_least(self._options.writes)

        threads = [threading.Thread(target=_recorded, args=(traffic, role), daemon=True) for role in roles]
        planned = threading.Thread(target=_recorded, args=(traffic, follow_plan), daemon=True)
        for thread in (*threads, planned):
            thread.start()
        self._kill_while(planned, service, conductor, random.Random(seeds.random()))
        traffic.stopping.set()
        while any(thread.is_alive() for thread in threads):
            service.supervise()
            time.sleep(0.05)

    def _kill_while(
        self, planned: threading.Thread, service: Service, conductor: Conductor, chance: random.Random
    ) -> None:
        """Kill at random times until the plan is through.

        Kills come more slowly the more of them one step of the plan has seen: an index is built in one go, and with a
        kill every few seconds it never would be.
        """
        step, kills_in_step = 0, 0
        next_kill = time.monotonic() + chance.uniform(0.0, self._options.kill_every_seconds)
        while planned.is_alive():
            service.supervise()
            if conductor.steps_done != step:
                step, kills_in_step = conductor.steps_done, 0
            if time.monotonic() >= next_kill:
                service.kill_something(chance)
                kills_in_step += 1
                mean_seconds = self._options.kill_every_seconds * (1 + kills_in_step / 3)
                next_kill = time.monotonic() + chance.expovariate(1 / mean_seconds)
            time.sleep(0.05)

    def _service(self, database: str, folder: Path, apis: int, workers: int, is_exact: bool) -> Service:
        """`is_exact`: the index is exact at this size. A graph of 200,000 vectors takes a minute of two cores and is
        built in one go, so that a storm would mostly watch builds begin again."""
        own = {"images": f"{_pictures(folder).as_uri()}/"}
        if is_exact:
            own["flat_below_rows"] = str(10 * self._options.items)
        return Service(self._servers, folder, database, apis, workers, self._settings | own)

    def _traffic(self, service: Service, oracle: Oracle, violations: Violations, seed: int) -> Traffic:
        pictures = _pictures(service.folder)
        pictures.mkdir()
        return Traffic(
            service.urls,
            oracle,
            violations,
            self.reference,
            seed,
            self._options.chunk_items,
            self._options.writer_pause_seconds,
            pictures,
        )


def _pictures(folder: Path) -> Path:
    return folder / "pictures"


def register(url: str) -> None:
    """Register both versions and the transformation, and make the gallery."""
    spec = {
        "embedding_dim": EMBEDDING_DIM,
        "side_information_dim": SIDE_INFORMATION_DIM,
        "preprocessing": PREPROCESSING,
    }
    with httpx.Client(base_url=url, timeout=60) as client:
        for version in ("v1", "v2"):
            phi, psi = artifacts(version)
            files = {"embedding_model": ("phi", phi), "side_information_model": ("psi", psi)}
            form = {"name": version, "spec": json.dumps(spec)}
            client.post("/v1/model-versions", data=form, files=files).raise_for_status()
        h, g = transformation_artifacts()
        form = {"from_version": "v1", "to_version": "v2"}
        client.post("/v1/transformations", data=form, files={"h": ("h", h), "g": ("g", g)}).raise_for_status()
        client.post("/v1/galleries", json={"name": "g", "model_version": "v1"}).raise_for_status()


def _recorded(traffic: Traffic, role: Callable[[], None]) -> None:
    """Run one thread; whatever ends it early is a violation, and ends the run."""
    try:
        role()
    except Exception as error:  # noqa: BLE001 - reported with the seed
        traffic.violations.add(f"{type(error).__name__}: {error}")
        traffic.stopping.set()
