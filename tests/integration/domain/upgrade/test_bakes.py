"""A bake: what is noted of both generations after a cutover, and what of it rolls the upgrade back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from service.api.dependencies import Parts
from service.app import create_app, make_parts
from service.domain.judging.baked_queries import Compared, note_compared
from service.domain.judging.shadowed_queries import ShadowDraw, Shadowing
from service.domain.upgrade.guarding import guard_bakes, look
from service.settings import Settings
from service.tables import BakedQuery
from tests.fakes import WatchedEncoders
from tests.judged import DIM, class_image, cut_over, post_class_images, register_h, register_two_spaces
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import import_vectors, register_transformation, register_version, search, start_upgrade, state_of
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts
from workers.sweep import sweep

pytestmark = pytest.mark.few_batches

HOUR = {"minutes": 60, "share": 1.0, "least_queries": 20}
ITEMS = 20


@dataclass
class App:
    """A service all of whose queries may be asked twice; encoders fail for the versions in `broken`."""

    client: TestClient = field(init=False)
    parts: Parts = field(init=False)
    broken: set[str] = field(default_factory=set)

    def encode(self, version: str) -> None:
        if version in self.broken:
            raise RuntimeError(f"{version} is broken")

    def ask(self, count: int, expected: int = 200) -> None:
        """Ask so many queries one after the other, each once the one before was noted."""
        for seed in range(count):
            before = len(self.noted())
            answer = self.client.post("/v1/galleries/g/search", content=class_image(1_000 + seed))
            assert answer.status_code == expected, answer.text
            wait_for(lambda before=before: len(self.noted()) > before)  # type: ignore[misc]  # mypy sees no default here

    def noted(self) -> list[BakedQuery]:
        with self.parts.database.session_scope() as session:
            return list(session.scalars(select(BakedQuery).order_by(BakedQuery.id)))

    def serves(self) -> str:
        """Return which version answers, by a query that is no image and so is not baked."""
        answer = self.client.post("/v1/galleries/g/search/vectors", json={"vectors": [[0.0] * DIM]}).json()
        version: str = answer["model_version"]
        return version

    def upgrade(self, upgrade_id: int = 1) -> dict[str, Any]:
        body: dict[str, Any] = self.client.get(f"/v1/upgrades/{upgrade_id}").json()
        return body


@pytest.fixture
def app(settings: Settings) -> Iterator[App]:
    app, parts = App(), make_parts(settings)
    watched = WatchedEncoders(parts.blobs, settings, app.encode, of_queries=True)
    shadowing = Shadowing(parts.database, watched, ShadowDraw(0.0, 1_000), 100)
    searching = replace(parts.search, encoders=watched, shadowing=shadowing)
    app.parts = replace(parts, shadowing=shadowing, search=searching)
    with TestClient(create_app(settings, lambda _: app.parts), raise_server_exceptions=False) as app.client:
        yield app


def live(app: App, worker: WorkerParts, bake: dict[str, Any], turned: bool = False, items: int = ITEMS) -> int:
    """Fill a gallery, and bring an upgrade of it live: by a perfect h, or one that leads into a wrong space."""
    turn = register_two_spaces(app.client)
    post_class_images(app.client, range(items))
    wrong = np.linalg.qr(np.random.default_rng(9).standard_normal((DIM, DIM)))[0]
    register_h(app.client, (turn @ wrong if turned else turn).astype(np.float32))
    upgrade_id = start_upgrade(app.client, "v2", bake=bake)
    run_until(worker, app.client, upgrade_id, "ready")
    cut_over(app.client, worker, upgrade_id)
    wait_for(lambda: app.serves() == "v2")
    return upgrade_id


def note(worker: WorkerParts, count: int, **changes: Any) -> None:
    """Note queries as another API process would."""
    compared = replace(Compared(False, False, 0.01, 0.01, 10, 10, 0.5), **changes)
    with worker.database.session_scope() as session:
        for _ in range(count):
            note_compared(session, 1, compared)


def notes(worker: WorkerParts) -> list[str]:
    with worker.database.session_scope() as session:
        return list(session.scalars(text("SELECT note FROM upgrade_events WHERE note IS NOT NULL ORDER BY id")))


def end_minutes(worker: WorkerParts) -> None:
    with worker.database.session_scope() as session:
        session.execute(text("UPDATE upgrades SET bake_ends_at = now() - interval '1 second'"))


def test_a_healthy_upgrade_stays_live_and_its_figures_are_kept_when_the_minutes_are_over(
    app: App, worker: WorkerParts
) -> None:
    upgrade_id = live(app, worker, HOUR)
    app.ask(25)

    sweep(worker)
    assert (state_of(app.client, upgrade_id), app.upgrade()["bake"]["result"]) == ("live", None)
    end_minutes(worker)
    sweep(worker)

    assert state_of(app.client, upgrade_id) == "live"
    result = app.upgrade()["bake"]["result"]
    assert (result["outcome"], result["figures"]["n"], result["figures"]["failed"]) == ("passed", 25, 0)
    assert result["figures"]["overlap"] > 0.9
    assert notes(worker) == [result["reason"]]
    assert app.noted() == []
    assert app.client.post(f"/v1/upgrades/{upgrade_id}/finalize").json()["state"] == "finalized"


def test_a_candidate_that_gives_unrelated_answers_is_rolled_back(app: App, worker: WorkerParts) -> None:
    upgrade_id = live(app, worker, HOUR, turned=True, items=150)
    app.ask(25)

    sweep(worker)

    assert state_of(app.client, upgrade_id) == "rolled_back"
    result = app.upgrade()["bake"]["result"]
    assert result["outcome"] == "rolled_back"
    assert [broken["guardrail"] for broken in result["figures"]["broken"]] == ["overlap"]
    assert notes(worker) == [result["reason"]]
    events = app.client.get(f"/v1/upgrades/{upgrade_id}/events").text
    assert events.index("event: note") < events.index('"rolled_back"')
    assert result["reason"] in events
    wait_for(lambda: search(app.client, 50)["model_version"] == "v1")


def test_a_candidate_that_gives_errors_is_rolled_back(app: App, worker: WorkerParts) -> None:
    upgrade_id = live(app, worker, HOUR)
    app.broken = {"v2"}
    app.ask(20, expected=500)

    guard_bakes(worker.database)

    assert state_of(app.client, upgrade_id) == "rolled_back"
    reason = app.upgrade()["bake"]["result"]["reason"]
    assert "errors 1" in reason
    (entry,) = app.client.get("/v1/audit", params={"action": "upgrade.rolled_back"}).json()["items"]
    assert (entry["after"]["by"], entry["reason"], entry["name"]) == ("guardrails", reason, "-")
    wait_for(lambda: search(app.client, 50)["model_version"] == "v1")


def test_errors_that_both_generations_give_are_not_the_upgrades(app: App, worker: WorkerParts) -> None:
    upgrade_id = live(app, worker, HOUR)
    app.broken = {"v1", "v2"}
    app.ask(20, expected=500)

    guard_bakes(worker.database)

    assert state_of(app.client, upgrade_id) == "live"


def test_a_candidate_that_gives_empty_answers_is_rolled_back(app: App, worker: WorkerParts) -> None:
    upgrade_id = live(app, worker, HOUR)
    served = app.parts.replicas.loaded(1, 2)
    assert served is not None
    served.index.remove(served.index.ids())
    app.ask(20)

    guard_bakes(worker.database)

    assert state_of(app.client, upgrade_id) == "rolled_back"
    assert "empty_answers 1" in app.upgrade()["bake"]["result"]["reason"]


def test_a_query_that_finds_nothing_in_either_generation_is_not_an_empty_answer(app: App, worker: WorkerParts) -> None:
    live(app, worker, HOUR)

    nothing = {"filter": '{"label": "none"}'}
    answer = app.client.post("/v1/galleries/g/search", content=image_bytes(50), params=nothing)
    wait_for(lambda: len(app.noted()) == 1)

    assert answer.json()["neighbors"] == []
    (row,) = app.noted()
    assert (row.found_before, row.found_after, row.overlap) == (0, 0, None)


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"failed_after": True}, "errors"),
        ({"found_after": 0, "overlap": 0.0}, "empty_answers"),
        ({"seconds_after": 0.1}, "p99_ratio"),
        ({"overlap": 0.0}, "overlap"),
    ],
)
def test_what_several_processes_note_breaks_a_guardrail_together(
    app: App, worker: WorkerParts, changes: dict[str, Any], broken: str
) -> None:
    upgrade_id = live(app, worker, HOUR)
    note(worker, 10, **changes)
    guard_bakes(worker.database)
    assert state_of(app.client, upgrade_id) == "live", "too few queries decide nothing"

    note(worker, 10, **changes)
    guard_bakes(worker.database)

    assert state_of(app.client, upgrade_id) == "rolled_back"
    assert broken in [each["guardrail"] for each in app.upgrade()["bake"]["result"]["figures"]["broken"]]


def test_a_guardrail_of_null_watches_nothing(app: App, worker: WorkerParts) -> None:
    upgrade_id = live(app, worker, {**HOUR, "guardrails": {"overlap": None}})

    note(worker, 20, overlap=0.0)
    guard_bakes(worker.database)

    assert state_of(app.client, upgrade_id) == "live"


def test_too_few_queries_leave_a_bake_undecided(app: App, worker: WorkerParts) -> None:
    live(app, worker, HOUR)
    note(worker, 19, failed_after=True)
    end_minutes(worker)

    guard_bakes(worker.database)

    assert app.upgrade()["bake"]["result"]["outcome"] == "undecided"
    assert app.upgrade()["state"] == "live"


def test_a_rollback_that_would_lose_items_is_left_to_a_person(app: App, worker: WorkerParts) -> None:
    register_version(app.client, "v1")
    register_version(app.client, "v2")
    register_transformation(app.client, "v1", "v2")
    app.client.post("/v1/galleries", json={"name": "g", "model_version": "v1"})
    import_vectors(app.client, ["a", "b"])
    upgrade_id = start_upgrade(app.client, "v2", bake=HOUR)
    run_until(worker, app.client, upgrade_id, "ready")
    cut_over(app.client, worker, upgrade_id)
    import_vectors(app.client, ["new alone"], version="v2")
    note(worker, 20, failed_after=True)

    guard_bakes(worker.database)

    assert state_of(app.client, upgrade_id) == "live"
    result = app.upgrade()["bake"]["result"]
    assert result["outcome"] == "not_rolled_back"
    assert "'new alone'" in result["reason"]
    assert app.client.get("/v1/galleries/g/items/new%20alone").is_success


def test_a_process_that_dies_before_the_commit_leaves_the_next_one_to_roll_back(app: App, worker: WorkerParts) -> None:
    upgrade_id = live(app, worker, HOUR)
    note(worker, 20, failed_after=True)

    class Died(BaseException):
        pass

    def die() -> None:
        raise Died

    with pytest.raises(Died):
        interrupted(worker, die)
    assert (state_of(app.client, upgrade_id), app.upgrade()["bake"]["result"]) == ("live", None)
    assert len(app.noted()) == 20

    guard_bakes(worker.database)
    guard_bakes(worker.database)

    assert state_of(app.client, upgrade_id) == "rolled_back"
    assert len(notes(worker)) == 1


def interrupted(worker: WorkerParts, die: Callable[[], None]) -> None:
    """Do all that guarding an upgrade does but its commit."""
    with worker.database.session_scope() as session:
        look(session, 1)
        die()


def test_a_manual_rollback_ends_the_bake(app: App, worker: WorkerParts) -> None:
    upgrade_id = live(app, worker, HOUR)
    note(worker, 20, failed_after=True)

    assert app.client.post(f"/v1/upgrades/{upgrade_id}/rollback").json()["state"] == "rolled_back"
    guard_bakes(worker.database)

    assert app.upgrade()["bake"]["result"]["outcome"] == "ended"
    assert len(notes(worker)) == 1
    note(worker, 1)
    assert app.noted() == []


def test_what_is_baked_is_not_finalized_until_the_bake_is_ended(app: App, worker: WorkerParts) -> None:
    upgrade_id = live(app, worker, HOUR)
    path = f"/v1/upgrades/{upgrade_id}"

    refused = app.client.post(f"{path}/finalize")
    changed = app.client.patch(path, json={"bake": HOUR})
    ended = app.client.patch(path, json={"bake": None})

    assert '"bake": null' in check_problem(refused, 409)
    check_problem(changed, 409)
    assert ended.json()["bake"]["result"]["outcome"] == "ended"
    assert app.client.post(f"{path}/finalize").json()["state"] == "finalized"


def test_a_finalize_ends_a_bake_whose_minutes_are_over_where_no_worker_looked(app: App, worker: WorkerParts) -> None:
    upgrade_id = live(app, worker, HOUR)
    note(worker, 25)
    end_minutes(worker)

    finalized = app.client.post(f"/v1/upgrades/{upgrade_id}/finalize").json()

    assert (finalized["state"], finalized["bake"]["result"]["outcome"]) == ("finalized", "passed")


def test_a_finalize_takes_no_upgrade_whose_guardrail_broke_and_that_no_worker_looked_at(
    app: App, worker: WorkerParts
) -> None:
    upgrade_id = live(app, worker, HOUR)
    note(worker, 25, failed_after=True)
    end_minutes(worker)

    check_problem(app.client.post(f"/v1/upgrades/{upgrade_id}/finalize"), 409)

    assert app.upgrade()["state"] == "rolled_back"
    wait_for(lambda: app.serves() == "v1")
    (entry,) = app.client.get("/v1/audit", params={"action": "upgrade.rolled_back"}).json()["items"]
    assert (entry["after"]["by"], entry["name"]) == ("guardrails", "-")


def test_how_an_upgrade_is_baked_can_be_said_until_its_cutover(app: App, worker: WorkerParts) -> None:
    turn = register_two_spaces(app.client)
    post_class_images(app.client, range(20))
    register_h(app.client, turn)
    upgrade_id = start_upgrade(app.client, "v2")
    path = f"/v1/upgrades/{upgrade_id}"
    assert app.upgrade()["bake"] is None

    said = app.client.patch(path, json={"bake": {"minutes": 5}}).json()["bake"]
    taken_back = app.client.patch(path, json={"bake": None}).json()["bake"]
    run_until(worker, app.client, upgrade_id, "ready")
    cut_over(app.client, worker, upgrade_id)
    too_late = app.client.patch(path, json={"bake": {"minutes": 5}})

    limits = {"errors": 0.01, "p99_ratio": 2.0, "empty_answers": 0.01, "overlap": 0.2}
    assert said == {
        "minutes": 5.0,
        "share": 0.05,
        "least_queries": 50,
        "guardrails": limits,
        "ends_at": None,
        "result": None,
    }
    assert taken_back is None
    check_problem(too_late, 409)
    for wrong in ({}, {"minutes": 0}, {"minutes": 5, "share": 0}, {"minutes": 5, "guardrails": {"overlap": 2}}):
        check_problem(app.client.patch(path, json={"bake": wrong}), 422)
