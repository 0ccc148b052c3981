"""A canary: which queries the candidate answers, that no query fails by it, and when it ends."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.api.dependencies import Parts
from service.app import create_app, make_parts
from service.domain.gallery.galleries import Trial
from service.domain.search.canary import takes
from service.domain.upgrade.upgrades import fail_upgrade
from service.settings import Settings
from tests.fakes import WatchedEncoders
from tests.judged import (
    ITEMS,
    WRONG,
    cut_over,
    evaluate_again,
    judged,
    post_class_images,
    post_references,
    register_h,
    register_two_spaces,
)
from tests.networks import image_bytes
from tests.problems import check_problem
from tests.scenario import create_upgradable_gallery, post_images, search, start_upgrade, state_of
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts

pytestmark = pytest.mark.few_batches


@dataclass
class App:
    """A service whose encoders fail for the versions in `broken`."""

    client: TestClient = field(init=False)
    parts: Parts = field(init=False)
    broken: set[str] = field(default_factory=set)

    def encode(self, version: str) -> None:
        if version in self.broken:
            raise RuntimeError(f"{version} is broken")

    def answered_by(self, **options: Any) -> str:
        version: str = search(self.client, 50, **options)["model_version"]
        return version

    def with_key(self, key: str) -> str:
        answer = self.client.post("/v1/galleries/g/search", content=image_bytes(50), params={"canary_key": key})
        version: str = answer.json()["model_version"]
        return version

    def queries(self, upgrade_id: int) -> dict[str, int]:
        found: dict[str, int] = self.client.get(f"/v1/upgrades/{upgrade_id}").json()["canary_queries"]
        return found

    def counted(self, by: str) -> float:
        registry = self.parts.image_query_metrics.registry
        labels = {"upgrade": "1", "answered_by": by}
        return registry.get_sample_value("gallery_canary_queries_total", labels) or 0.0


@pytest.fixture
def app(settings: Settings) -> Iterator[App]:
    """A service whose queries are encoded by themselves, and fail with their version."""
    app, parts = App(), make_parts(settings)
    watched = WatchedEncoders(parts.blobs, settings, app.encode, of_queries=True)
    app.parts = replace(parts, search=replace(parts.search, encoders=watched))
    with TestClient(create_app(settings, lambda _: app.parts), raise_server_exceptions=False) as app.client:
        yield app


def ready(app: App, worker: WorkerParts) -> int:
    create_upgradable_gallery(app.client)
    post_images(app.client, range(12))
    upgrade_id = start_upgrade(app.client, "v2")
    run_until(worker, app.client, upgrade_id, "ready")
    wait_for(lambda: app.parts.replicas.loaded_next(1) is not None)
    return upgrade_id


def set_canary(client: TestClient, upgrade_id: int, share: float) -> dict[str, Any]:
    answer = client.patch(f"/v1/upgrades/{upgrade_id}", json={"canary": share})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def notes(worker: WorkerParts, upgrade_id: int) -> list[str]:
    with worker.database.session_scope() as session:
        query = text("SELECT note FROM upgrade_events WHERE upgrade_id = :id AND note IS NOT NULL ORDER BY id")
        return list(session.scalars(query, {"id": upgrade_id}))


def test_a_share_of_keys_is_taken_always_the_same_and_a_larger_share_takes_them_too() -> None:
    keys = [f"user {number}" for number in range(2_000)]

    few = {key for key in keys if takes(Trial(1, 0.05), key)}
    more = {key for key in keys if takes(Trial(1, 0.2), key)}
    of_another = {key for key in keys if takes(Trial(2, 0.05), key)}

    assert 60 < len(few) < 140
    assert few < more
    assert few != of_another
    assert all(takes(Trial(1, 1.0), key) for key in keys)
    assert not any(takes(Trial(1, 0.0), key) for key in [*keys, None])
    assert 20 < sum(takes(Trial(1, 0.05), None) for _ in range(1_000)) < 100
    takes(Trial(1, 0.5), "\ud800")


def test_the_candidate_answers_its_share_and_names_its_generation(app: App, worker: WorkerParts) -> None:
    upgrade_id = ready(app, worker)
    assert app.answered_by() == "v1"

    shown = set_canary(app.client, upgrade_id, 1)

    assert shown["canary"] == 1
    assert app.answered_by() == "v2"
    assert app.answered_by(generation="active") == "v1"
    assert app.answered_by(generation="next") == "v2"
    within = app.client.post("/v1/galleries/g/search", content=image_bytes(50), params={"max_distance": 9}).json()
    assert within["model_version"] == "v1", "a largest distance is one of the active space"
    vector = app.client.post("/v1/galleries/g/search/vectors", json={"vectors": [[0.0] * 6]}).json()
    assert vector["model_version"] == "v1"
    assert app.counted("candidate") == 1
    wait_for(lambda: app.queries(upgrade_id) == {"asked": 1, "answered": 1, "failed": 0})
    assert "gallery_canary_queries_total" in app.client.get("/metrics").text
    set_canary(app.client, upgrade_id, 0)
    assert app.answered_by() == "v1"
    assert notes(worker, upgrade_id) == [
        "The candidate answers 1 of the image queries.",
        "The candidate answers 0 of the image queries.",
    ]


def test_queries_of_one_key_are_answered_by_one_generation_in_a_form_and_in_the_query(
    app: App, worker: WorkerParts
) -> None:
    upgrade_id = ready(app, worker)
    set_canary(app.client, upgrade_id, 0.5)

    by_key = {key: app.with_key(key) for key in map(str, range(20))}

    taken = list(by_key.values()).count("v2")
    wait_for(lambda: app.queries(upgrade_id) == {"asked": taken, "answered": taken, "failed": 0})
    assert set(by_key.values()) == {"v1", "v2"}
    for key, version in by_key.items():
        form = {"file": ("query.png", image_bytes(50))}
        in_form = app.client.post("/v1/galleries/g/search", files=form, data={"canary_key": key})
        in_query = app.client.post("/v1/galleries/g/search", files=form, params={"canary_key": key})
        assert [answer.json()["model_version"] for answer in (in_form, in_query)] == [version, version]
    too_long = app.client.post("/v1/galleries/g/search", content=image_bytes(50), params={"canary_key": "k" * 513})
    assert "canary_key" in check_problem(too_long, 422)


def test_a_query_that_the_candidate_cannot_answer_is_answered_by_the_active_generation(
    app: App, worker: WorkerParts
) -> None:
    upgrade_id = ready(app, worker)
    set_canary(app.client, upgrade_id, 1)
    app.broken = {"v2"}

    assert app.answered_by() == "v1"

    assert (app.counted("active"), app.counted("candidate")) == (1, 0)
    wait_for(lambda: app.queries(upgrade_id) == {"asked": 1, "answered": 0, "failed": 1})
    app.broken = set()
    refused = app.client.post("/v1/galleries/g/search", content=image_bytes(50), params={"filter": '{"nothing": 1}'})
    check_problem(refused, 422)
    assert app.counted("active") == 1, "a query that is wrong says nothing of the candidate"


@pytest.mark.parametrize("leave", ["cancel", "cutover", "fail"])
def test_a_canary_ends_with_the_state_ready(app: App, worker: WorkerParts, leave: str) -> None:
    upgrade_id = ready(app, worker)
    set_canary(app.client, upgrade_id, 1)

    if leave == "cancel":
        assert app.client.post(f"/v1/upgrades/{upgrade_id}/cancel").is_success
    elif leave == "cutover":
        cut_over(app.client, worker, upgrade_id)
        wait_for(lambda: app.answered_by(generation="active") == "v2")
    else:
        with worker.database.session_scope() as session:
            fail_upgrade(session, upgrade_id, "It failed.")
        assert app.client.post(f"/v1/upgrades/{upgrade_id}/retry").json()["state"] == "ready"

    assert app.client.get(f"/v1/upgrades/{upgrade_id}").json()["canary"] == 0
    assert app.answered_by() == ("v2" if leave == "cutover" else "v1")


def test_a_canary_is_for_upgrades_that_are_ready(app: App, worker: WorkerParts) -> None:
    create_upgradable_gallery(app.client)
    post_images(app.client, range(12))
    upgrade_id = start_upgrade(app.client, "v2")

    early = app.client.patch(f"/v1/upgrades/{upgrade_id}", json={"canary": 0.1, "speed": 0.5})

    assert "while it is ready" in check_problem(early, 409)
    assert app.client.get(f"/v1/upgrades/{upgrade_id}").json()["speed"] == 1
    for wrong in ({}, {"canary": 1.5}, {"canary": None}, {"canary": -0.1}, {"canari": 0.1}):
        check_problem(app.client.patch(f"/v1/upgrades/{upgrade_id}", json=wrong), 422)


def test_no_user_is_answered_by_a_candidate_whose_gates_failed(client: TestClient, worker: WorkerParts) -> None:
    turn = register_two_spaces(client)
    post_class_images(client, range(ITEMS))
    upgrade_id = judged(client, worker, WRONG["into a wrong space"](turn).astype("float32"))

    refused = client.patch(f"/v1/upgrades/{upgrade_id}", json={"canary": 0.1})

    assert "failed" in check_problem(refused, 409)
    assert state_of(client, upgrade_id) == "ready"


def test_a_canary_ends_when_a_gate_of_a_new_report_fails(client: TestClient, worker: WorkerParts) -> None:
    turn = register_two_spaces(client)
    post_class_images(client, range(ITEMS), labels=False)
    register_h(client, WRONG["into a wrong space"](turn).astype("float32"))
    upgrade_id = start_upgrade(client, "v2", observe=False)
    run_until(worker, client, upgrade_id, "ready")
    assert set_canary(client, upgrade_id, 0.1)["judged"]["verdict"] == "not_judged"

    assert post_references(client, upgrade_id, range(ITEMS)).is_success
    assert evaluate_again(client, worker, upgrade_id)["verdict"] == "fail"

    assert client.get(f"/v1/upgrades/{upgrade_id}").json()["canary"] == 0
    assert notes(worker, upgrade_id)[-1] == "The canary ended: a gate of the newest report failed."
