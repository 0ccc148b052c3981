"""Every action on an upgrade in every state, over HTTP and on real rows: what is answered, what it leaves, and that
asking twice is asking once."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.app import create_app
from service.domain.indexes.index_files import index_file
from service.domain.upgrade.upgrades import fail_upgrade, get_upgrade
from service.domain.upgrade_state import Action, State
from service.queue import celery_application
from service.settings import Settings
from tests.conftest import Servers, fresh_database, small_settings
from tests.scenario import (
    create_gallery,
    import_vectors,
    register_transformation,
    register_version,
    start_upgrade,
    state_of,
)
from workers.app import WorkerParts, make_worker_parts
from workers.throttle import Throttle
from workers.upgrading import advance_upgrade

pytestmark = pytest.mark.xdist_group("upgrade states")
# One row per state: the state after each action, `same` where nothing changes because it is so already, and `409`.
TABLE = """
state        pause  resume       cancel    retry        cutover rollback    finalize  speed
planned      paused same         cancelled same         409     409         409       planned
transforming paused same         cancelled same         409     409         409       transforming
indexing     paused same         cancelled same         409     409         409       indexing
smoothing    paused same         cancelled same         409     409         409       smoothing
evaluating   paused same         cancelled same         409     409         409       evaluating
ready        409    same         cancelled same         live    409         409       ready
live         409    409          409       409          same    rolled_back finalized 409
finalized    409    409          409       409          409     409         same      409
paused       same   transforming cancelled 409          409     409         409       paused
cancelled    409    409          same      409          409     409         409       409
failed       409    409          cancelled transforming 409     409         409       failed
rolled_back  409    409          409       409          409     same        409       409
"""
HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {(row[0], action): after for row in ROWS for action, after in zip(HEADER[1:], row[1:], strict=True)}

# Which of the upgrade's two generations have a table, and which one answers.
OLD, NEW = "v1", "v2"
STORED = {"cancelled": [OLD], "rolled_back": [OLD], "finalized": [NEW]}
ACTIVE = {"live": NEW, "finalized": NEW}
INDEXED = {"smoothing", "evaluating", "ready", "live", "finalized"}
# Shorter ways to states that are reached by an action: the state before, and the action.
REACHED = {
    "paused": ("transforming", "pause"),
    "cancelled": ("transforming", "cancel"),
    "rolled_back": ("live", "rollback"),
    "finalized": ("live", "finalize"),
}


class OneStepAtATime(Throttle):
    """Has a worker rest after every step, so that each call of `advance_upgrade` takes one at most."""

    def __init__(self) -> None:
        super().__init__()
        self._rests = cycle([0.0, 1e-9])

    def rest_seconds(self, upgrade_id: int, speed: float) -> float:
        return next(self._rests)


@dataclass
class Stage:
    """An API and a worker, and one small gallery per upgrade."""

    client: TestClient
    worker: WorkerParts
    numbers: Iterator[int]

    def upgrade_in(self, state: str) -> int:
        """Return a fresh gallery's upgrade in a state."""
        if state in REACHED:
            before, action = REACHED[state]
            upgrade_id = self.upgrade_in(before)
            assert self.act(upgrade_id, action).status_code == 200
        elif state == "failed":
            upgrade_id = self.upgrade_in("transforming")
            with self.worker.database.session_scope() as session:
                fail_upgrade(session, upgrade_id, "The device fell off. Put it back and retry.")
        else:
            name = f"g{next(self.numbers)}"
            create_gallery(self.client, name)
            import_vectors(self.client, [f"vector-{number}" for number in range(5)], name)
            options: dict[str, Any] = {"smoothing": {}} if state == "smoothing" else {}
            cutover = "auto" if state == "live" else "manual"
            upgrade_id = start_upgrade(self.client, "v2", name, cutover=cutover, **options)
            self.run_to(upgrade_id, state)
        assert state_of(self.client, upgrade_id) == state
        return upgrade_id

    def run_to(self, upgrade_id: int, state: str) -> None:
        """Let the worker take steps until the upgrade is in a state."""
        for _ in range(30):
            if state_of(self.client, upgrade_id) == state:
                return
            advance_upgrade(self.worker, upgrade_id)
        raise AssertionError(self.client.get(f"/v1/upgrades/{upgrade_id}").json())

    def act(self, upgrade_id: int, action: str) -> httpx.Response:
        answer: httpx.Response
        if action == "speed":
            answer = self.client.patch(f"/v1/upgrades/{upgrade_id}", json={"speed": 0.5})
        else:
            answer = self.client.post(f"/v1/upgrades/{upgrade_id}/{action}")
        return answer

    def act_beside_a_worker(self, upgrade_id: int, action: str) -> httpx.Response:
        """Act while a worker takes the steps that it is asked for."""
        answered = threading.Event()

        def work() -> None:
            while not answered.wait(0.01):
                advance_upgrade(self.worker, upgrade_id)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            return self.act(upgrade_id, action)
        finally:
            answered.set()
            thread.join()

    def everything(self, upgrade_id: int) -> dict[str, Any]:
        """Return all that an action could change: rows, tables and files."""
        with self.worker.database.session_scope() as session:
            parameters = {"upgrade": upgrade_id, "gallery": get_upgrade(session, upgrade_id).gallery_id}

            def rows(query: str) -> list[Any]:
                return list(session.scalars(text(query), parameters))

            generations = rows("SELECT to_jsonb(n) FROM generations n WHERE gallery_id = :gallery ORDER BY id")
            tables = rows(
                "SELECT n.id FROM generations n WHERE gallery_id = :gallery"
                " AND to_regclass('embeddings_' || n.id) IS NOT NULL ORDER BY id"
            )
            return {
                "upgrade": rows("SELECT to_jsonb(u) FROM upgrades u WHERE id = :upgrade"),
                "events": rows("SELECT to_jsonb(e) FROM upgrade_events e WHERE upgrade_id = :upgrade ORDER BY id"),
                "batches": rows("SELECT to_jsonb(b) FROM upgrade_batches b WHERE upgrade_id = :upgrade ORDER BY id"),
                "gallery": rows("SELECT to_jsonb(g) FROM galleries g WHERE id = :gallery"),
                "generations": generations,
                "tables": tables,
                "rows": [rows(f"SELECT to_jsonb(e) FROM embeddings_{id_} e ORDER BY item_id") for id_ in tables],
                "files": sorted(self.worker.blobs.list_files("indexes")),
            }

    def check_generations(self, upgrade_id: int, state: str) -> None:
        """The generations that a state keeps have tables, no other has a table or a file, and the right one answers."""
        answer = self.client.get(f"/v1/upgrades/{upgrade_id}").json()
        ids = {OLD: answer["from_generation"], NEW: answer["to_generation"]}
        found = self.everything(upgrade_id)
        stored = STORED.get(state, [OLD, NEW])
        assert found["tables"] == [ids[version] for version in stored]
        files = {id_ for id_ in ids.values() if f"generation_{id_}" in {name.split(".")[0] for name in found["files"]}}
        assert files == {row["id"] for row in found["generations"] if row["index_name"] and row["state"] != "dropped"}
        assert files >= ({ids[NEW]} if state in INDEXED else set())
        gallery = self.client.get(f"/v1/galleries/{answer['gallery']}").json()
        assert found["gallery"][0]["active_generation_id"] == ids[ACTIVE.get(state, OLD)]
        assert (gallery["model_version"], gallery["items"]) == (ACTIVE.get(state, OLD), 5)


@pytest.fixture(scope="module")
def settings(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with fresh_database(servers) as url:
        yield small_settings(servers, url, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stage(settings: Settings) -> Iterator[Stage]:
    worker = replace(make_worker_parts(settings, celery_application(settings)), throttle=OneStepAtATime())
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        for version in ("v1", "v2"):
            register_version(client, version)
        register_transformation(client, "v1", "v2")
        yield Stage(client, worker, count(1))
    worker.database.engine.dispose()


@pytest.fixture(scope="module")
def resting(stage: Stage) -> dict[str, int]:
    """Return an upgrade in every state, for actions that change nothing."""
    return {state: stage.upgrade_in(state) for state in State}


def pairs(*, moving: bool) -> list[tuple[str, str]]:
    return [pair for pair, after in EXPECTED.items() if (after not in ("409", "same")) == moving]


def test_the_table_has_every_state_and_every_action_of_a_user() -> None:
    workers_own = {Action.START, Action.TRANSFORMED, Action.INDEXED, Action.EVALUATED, Action.FAIL}
    workers_own |= {Action.SMOOTH, Action.SMOOTHED}

    assert {state for state, _ in EXPECTED} == set(State)
    assert {action for _, action in EXPECTED} == set(Action) - workers_own | {"speed"}


@pytest.mark.parametrize(("state", "action"), pairs(moving=False))
def test_an_action_that_is_refused_or_asks_for_what_is_so_changes_nothing(
    stage: Stage, resting: dict[str, int], state: str, action: str
) -> None:
    upgrade_id = resting[state]
    before = stage.everything(upgrade_id)
    shown = stage.client.get(f"/v1/upgrades/{upgrade_id}").json()

    answer = stage.act(upgrade_id, action)

    body = answer.json()
    if EXPECTED[state, action] == "409":
        assert (answer.status_code, body["status"]) == (409, 409)
        assert answer.headers["content-type"] == "application/problem+json"
        assert body["detail"].startswith(f"An upgrade that is {state} ")
        assert body["detail"].endswith(".")
    else:
        assert (answer.status_code, body) == (200, shown)
    assert stage.everything(upgrade_id) == before


@pytest.mark.parametrize(("state", "action"), pairs(moving=True))
def test_an_action_leads_where_the_table_says_and_repeating_it_is_answered_alike(
    stage: Stage, state: str, action: str
) -> None:
    expected = EXPECTED[state, action]
    upgrade_id = stage.upgrade_in(state)

    first = (stage.act_beside_a_worker if action == "cutover" else stage.act)(upgrade_id, action)
    stage.check_generations(upgrade_id, expected)
    after = stage.everything(upgrade_id)
    again = stage.act(upgrade_id, action)

    assert (first.status_code, first.json()["state"]) == (200, expected)
    assert first.json()["speed"] == (0.5 if action == "speed" else 1.0)
    assert stage.client.get(f"/v1/upgrades/{upgrade_id}").json() == first.json()
    assert (again.status_code, again.json()) == (200, first.json())
    assert stage.everything(upgrade_id) == after


@pytest.mark.parametrize("state", State)
def test_every_state_has_the_generations_that_it_keeps(stage: Stage, resting: dict[str, int], state: str) -> None:
    stage.check_generations(resting[state], state)


def test_an_index_that_cannot_be_built_fails_the_upgrade_with_its_reason_and_a_retry_goes_on(
    stage: Stage, settings: Settings
) -> None:
    upgrade_id = stage.upgrade_in("indexing")
    generation_id = stage.client.get(f"/v1/upgrades/{upgrade_id}").json()["to_generation"]
    with stage.worker.database.session_scope() as session:
        job_id = session.scalars(text("SELECT coalesce(max(id), 0) + 1 FROM jobs")).one()
    in_the_way = Path(settings.blob_location.removeprefix("file://")) / index_file(generation_id, job_id)
    in_the_way.mkdir(parents=True)

    stage.run_to(upgrade_id, "failed")
    failed = stage.client.get(f"/v1/upgrades/{upgrade_id}").json()
    in_the_way.rmdir()
    retried = stage.act(upgrade_id, "retry").json()
    stage.run_to(upgrade_id, "ready")

    assert re.fullmatch(r"The index could not be built: .*faiss.*\. Retry when the cause is gone\.", failed["error"])
    assert (retried["state"], retried["error"]) == ("indexing", None)


def test_a_cutover_that_no_worker_answers_is_withdrawn(stage: Stage, settings: Settings) -> None:
    upgrade_id = stage.upgrade_in("ready")
    before = stage.everything(upgrade_id)
    hurried = settings.model_copy(update={"cutover_wait_seconds": 0.1})

    with TestClient(create_app(hurried), raise_server_exceptions=False) as client:
        answer = client.post(f"/v1/upgrades/{upgrade_id}/cutover")

    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("No worker cut the upgrade over within")
    assert stage.everything(upgrade_id) == before
