"""Several real worker processes on one upgrade: they share its batches without overlap, take over from one that is
killed, and do not mind a flood of nudges."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import make_url, text

from service.app import create_app
from service.db import Database, create_database_engine
from service.domain.upgrade.upgrades import lock_state
from service.embedded.processes import spawn
from service.embedded.supervisor import worker_command
from service.queue import ADVANCE_UPGRADE, TaskQueue, celery_application
from service.settings import Settings
from tests.conftest import Servers, fresh_database, small_settings
from tests.fakes import RecordingQueue
from tests.real_servers import RealServers
from tests.scenario import (
    create_gallery,
    import_vectors,
    register_transformation,
    register_version,
    start_upgrade,
    state_of,
)
from tests.served import wait_for
from workers.app import make_worker_parts
from workers.upgrading import advance_upgrade

if TYPE_CHECKING:
    import subprocess

WORKERS = ("worker-0", "worker-1", "worker-2")
AT_ONCE = 2  # batches in one worker
ITEMS = 600
BATCH_ITEMS = 20
LEASE_SECONDS = 1.0
TAKEN_OVER_SECONDS = 5.0  # after the lease: a sweep, and a machine that is busy
NO_SUCH_UPGRADE = 10**6
QUEUE = "gallery_upgrade"
pytestmark = pytest.mark.xdist_group("deaths")

_WAITING = """
SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND wait_event = :wait_event
"""


@dataclass(frozen=True)
class Batch:
    id: int
    state: str
    attempts: int
    items: int
    rows: int
    lease_expires_at: datetime
    is_expired: bool
    done_at: datetime | None


def url_as(settings: Settings, name: str) -> str:
    """Return the database's URL for a process that PostgreSQL shall know by this name."""
    assert settings.database_url is not None
    url = make_url(settings.database_url).update_query_dict({"application_name": name})
    return url.render_as_string(hide_password=False)


@dataclass
class Crew:
    """Worker processes, each known to PostgreSQL by its name and to us by its log."""

    settings: Settings
    folder: Path
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self) -> None:
        """Start every worker that does not run, and return when all are ready."""
        for name in WORKERS:
            if name in self._processes and self._processes[name].poll() is None:
                continue
            own = {"database_url": url_as(self.settings, name)}
            environment = {**os.environ, **self.settings.model_copy(update=own).environment()}
            self.log(name).unlink(missing_ok=True)
            self._processes[name] = spawn(worker_command(), log_path=self.log(name), environment=environment)
        wait_for(lambda: all(" ready." in self.log(name).read_text() for name in WORKERS), seconds=90)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def recorded(self, name: str, upgrade_id: int) -> list[int]:
        """Return the batches of an upgrade that a worker says it recorded."""
        pattern = rf"upgrade\.batch_recorded upgrade_id={upgrade_id} batch_id=(\d+) "
        return [int(batch_id) for batch_id in re.findall(pattern, self.log(name).read_text())]

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(60)


@pytest.fixture(scope="module")
def broker_urls(servers: Servers) -> tuple[str, str]:
    """The URL that Celery wants and the one that redis-py wants, of a broker where nobody else sends or listens."""
    if isinstance(servers, RealServers):
        url = servers.new_broker_url()
        return url, url
    return f"{servers.broker_url}?virtual_host=1", f"{servers.redis_url}?db=1"


@pytest.fixture
def broker(broker_urls: tuple[str, str]) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker_urls[1]) as broker:
        yield broker


@pytest.fixture(scope="module")
def settings(
    servers: Servers, broker_urls: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    own = {
        "broker_url": broker_urls[0],
        "batch_items": BATCH_ITEMS,
        "batches_at_once": AT_ONCE,
        "lease_seconds": LEASE_SECONDS,
        "sweep_every_seconds": 0.2,
    }
    with fresh_database(servers) as url:
        yield small_settings(servers, url, tmp_path_factory.mktemp("data")).model_copy(update=own)


@pytest.fixture(scope="module")
def started(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    crew = Crew(settings, tmp_path_factory.mktemp("logs"))
    yield crew
    crew.stop()


@pytest.fixture
def crew(started: Crew) -> Crew:
    """Three workers that run and have nothing to do."""
    started.start()
    return started


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        for version in ("v1", "v2"):
            register_version(client, version)
        register_transformation(client, "v1", "v2")
        yield client


@pytest.fixture(scope="module")
def database(settings: Settings) -> Iterator[Database]:
    assert settings.database_url is not None
    engine = create_database_engine(settings.database_url)
    yield Database(engine, RecordingQueue())
    engine.dispose()


_numbers = count(1)


@pytest.fixture
def upgrade_id(client: TestClient) -> int:
    """A planned upgrade of a gallery of 600 items, on which nobody works: its speed is 0."""
    name = f"g{next(_numbers)}"
    create_gallery(client, name)
    import_vectors(client, [f"vector-{number}" for number in range(ITEMS)], name)
    return start_upgrade(client, "v2", name, speed=0)


@contextmanager
def all_at_work(client: TestClient, database: Database, upgrade_id: int) -> Iterator[None]:
    """Start the upgrade, and stop each worker in the middle of its first batches for as long as this is held."""
    target = client.get(f"/v1/upgrades/{upgrade_id}").json()["to_generation"]
    with database.session_scope() as session:
        session.execute(text(f"LOCK TABLE embeddings_{target} IN EXCLUSIVE MODE"))
        assert client.patch(f"/v1/upgrades/{upgrade_id}", json={"speed": 1}).status_code == 200
        wait_for(lambda: sorted(waiting(database, "relation")) == sorted(AT_ONCE * WORKERS), seconds=60)
        yield


def waiting(database: Database, wait_event: str) -> list[str]:
    """Return the names of the connections that wait for a lock of a kind; in a transaction of its own, because one
    transaction sees one moment of `pg_stat_activity`."""
    with database.session_scope() as session:
        return list(session.scalars(text(_WAITING), {"wait_event": wait_event}))


def batches_of(database: Database, upgrade_id: int) -> list[Batch]:
    columns = "id, state, attempts, items, rows, lease_expires_at, lease_expires_at < now() AS is_expired, done_at"
    query = text(f"SELECT {columns} FROM upgrade_batches WHERE upgrade_id = :id ORDER BY id")
    with database.session_scope() as session:
        return [Batch(**row._asdict()) for row in session.execute(query, {"id": upgrade_id})]


def now(database: Database) -> datetime:
    with database.session_scope() as session:
        moment: datetime = session.scalars(text("SELECT clock_timestamp()")).one()
        return moment


def check_all_done(client: TestClient, database: Database, crew: Crew, upgrade_id: int) -> list[Batch]:
    """Every batch was done exactly once, by one worker, and every worker did some."""
    batches = batches_of(database, upgrade_id)
    recorded = {name: crew.recorded(name, upgrade_id) for name in WORKERS}
    upgrade = client.get(f"/v1/upgrades/{upgrade_id}").json()
    with database.session_scope() as session:
        stored = session.scalars(text(f"SELECT count(*) FROM embeddings_{upgrade['to_generation']}")).one()
    assert {batch.state for batch in batches} == {"done"}
    assert [batch.rows for batch in batches] == [batch.items for batch in batches] == [BATCH_ITEMS] * 30
    assert stored == ITEMS
    assert upgrade["progress"]["transforming"]["done"] == ITEMS
    assert sorted(id_ for ids in recorded.values() for id_ in ids) == [batch.id for batch in batches]
    return batches


@pytest.mark.chaos
@pytest.mark.parametrize("nudges", [0, 200])
def test_three_workers_share_an_upgrade_without_overlap_however_often_they_are_nudged(
    crew: Crew, client: TestClient, database: Database, broker: redis.Redis, upgrade_id: int, nudges: int
) -> None:
    queue = TaskQueue(celery_application(crew.settings))
    in_flight = AT_ONCE * len(WORKERS)

    with all_at_work(client, database, upgrade_id):
        for _ in range(nudges):
            queue.send(ADVANCE_UPGRADE, upgrade_id)
        queue.send(ADVANCE_UPGRADE, NO_SUCH_UPGRADE)
        # A lease that ends while its worker lives takes nothing away from it.
        wait_for(lambda: sum(batch.is_expired is True for batch in batches_of(database, upgrade_id)) == in_flight)
        assert broker.llen(QUEUE) > nudges
        claimed = [batch.id for batch in batches_of(database, upgrade_id) if batch.state == "claimed"]
    wait_for(lambda: state_of(client, upgrade_id) == "ready", seconds=60)
    wait_for(lambda: broker.llen(QUEUE) == 0, seconds=60)

    batches = check_all_done(client, database, crew, upgrade_id)
    assert {batch.attempts for batch in batches} == {1}
    assert len(claimed) == in_flight
    assert all(len(set(claimed) & set(crew.recorded(name, upgrade_id))) == AT_ONCE for name in WORKERS)
    assert [line for name in WORKERS for line in crew.log(name).read_text().splitlines() if "ERROR" in line] == []


@pytest.mark.chaos
def test_workers_that_plan_the_batches_at_once_plan_them_once(
    client: TestClient, database: Database, settings: Settings, upgrade_id: int
) -> None:
    own = settings.model_copy(update={"database_url": url_as(settings, "planner")})
    workers = [make_worker_parts(own, celery_application(own)) for _ in range(2)]

    with ThreadPoolExecutor() as threads:
        with database.session_scope() as session:
            lock_state(session, upgrade_id)
            assert client.patch(f"/v1/upgrades/{upgrade_id}", json={"speed": 1}).status_code == 200
            runs = [threads.submit(advance_upgrade, worker, upgrade_id) for worker in workers]
            wait_for(lambda: len(waiting(database, "advisory")) == 1)  # the others do not queue behind it
        assert [run.exception() for run in runs] == [None, None]
    wait_for(lambda: not advance_upgrade(workers[0], upgrade_id) and state_of(client, upgrade_id) == "ready")

    assert [batch.items for batch in batches_of(database, upgrade_id)] == [BATCH_ITEMS] * 30
    for worker in workers:
        worker.database.engine.dispose()


@pytest.mark.chaos
def test_the_batches_of_a_killed_worker_are_done_by_others_soon_after_their_lease(
    crew: Crew, client: TestClient, database: Database, upgrade_id: int
) -> None:
    with all_at_work(client, database, upgrade_id):
        crew.kill("worker-1")
        before = {batch.id: batch for batch in batches_of(database, upgrade_id)}
    released_at = now(database)
    wait_for(lambda: state_of(client, upgrade_id) == "ready", seconds=60)

    batches = check_all_done(client, database, crew, upgrade_id)
    taken_over = [batch for batch in batches if batch.attempts != 1]
    assert len(taken_over) == AT_ONCE
    assert crew.recorded("worker-1", upgrade_id) == []
    for batch in taken_over:
        assert batch.attempts == 2
        assert before[batch.id].state == "claimed"
        assert batch.done_at is not None
        lease_expires_at = before[batch.id].lease_expires_at
        assert batch.done_at > lease_expires_at
        assert (batch.done_at - max(lease_expires_at, released_at)).total_seconds() < TAKEN_OVER_SECONDS
