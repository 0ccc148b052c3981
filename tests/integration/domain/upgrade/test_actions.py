"""A user's actions on an upgrade are answered after the fact: by the generation that is active then, and when what was
given up is gone."""

from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.db import Database
from service.domain.indexes.removal import StillRead
from service.domain.upgrade.actions import CutoverRefused, NoWorkerAnswered, UpgradeActions
from service.domain.upgrade.cutover import RollbackWouldLose
from service.domain.upgrade.upgrades import fail_upgrade
from service.domain.upgrade_state import IllegalTransition
from service.queue import ADVANCE_UPGRADE, Sender
from tests.fakes import RecordingQueue
from tests.scenario import import_vectors, start_upgrade, state_of
from tests.working import run_until
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade


class WorkingQueue:
    """A `service.queue.Sender` whose worker does at once what it is sent."""

    def __init__(self, worker: WorkerParts) -> None:
        self._worker = worker

    def send(self, task_name: str, *arguments: int) -> None:
        assert task_name == ADVANCE_UPGRADE
        advance_upgrade(self._worker, *arguments)


class FailingQueue:
    """A `service.queue.Sender` whose worker fails the upgrade that it is to advance."""

    def __init__(self, worker: WorkerParts) -> None:
        self._worker = worker

    def send(self, task_name: str, *arguments: int) -> None:
        assert task_name == ADVANCE_UPGRADE
        with self._worker.database.session_scope() as session:
            fail_upgrade(session, arguments[0], "The device fell off.")


@pytest.fixture
def ready(gallery: TestClient, worker: WorkerParts) -> int:
    """An upgrade of the gallery that can be cut over."""
    upgrade_id = start_upgrade(gallery, "v2")
    run_until(worker, gallery, upgrade_id, "ready")
    return upgrade_id


@pytest.fixture
def live(gallery: TestClient, worker: WorkerParts) -> int:
    """An upgrade of the gallery that can be rolled back."""
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    run_until(worker, gallery, upgrade_id, "live")
    return upgrade_id


def actions_of(client: TestClient, queue: Sender | None = None, **settings: float) -> UpgradeActions:
    """Return the actions of the client's own process, with another queue or other settings."""
    actions: UpgradeActions = client.app.state.parts.upgrade_actions  # type: ignore[attr-defined]  # untyped state
    database = actions.database if queue is None else Database(actions.database.engine, queue)
    return replace(actions, database=database, settings=actions.settings.model_copy(update=settings))


def answers_by(client: TestClient) -> int:
    """Return the generation by which the client's process answers at this moment."""
    return actions_of(client).replicas.active(1, None).generation_id


def left(worker: WorkerParts) -> tuple[list[int], list[str]]:
    """Return the ids of the generations that have a table, and the names of all index files."""
    query = "SELECT id FROM generations WHERE to_regclass('embeddings_' || id) IS NOT NULL ORDER BY id"
    with worker.database.session_scope() as session:
        return list(session.scalars(text(query))), worker.blobs.list_files("indexes")


def test_a_cutover_is_answered_when_this_process_answers_by_the_next_generation(
    gallery: TestClient, worker: WorkerParts, ready: int
) -> None:
    actions = actions_of(gallery, WorkingQueue(worker))
    before = answers_by(gallery)

    actions.cut_over(ready)

    assert (before, answers_by(gallery), state_of(gallery, ready)) == (1, 2, "live")


def test_a_cutover_that_was_withdrawn_is_not_done_by_a_worker_that_comes_later(
    gallery: TestClient, worker: WorkerParts, ready: int
) -> None:
    queue = RecordingQueue()
    with pytest.raises(NoWorkerAnswered, match="perhaps no worker runs"):
        actions_of(gallery, queue, cutover_wait_seconds=0.0).cut_over(ready)

    for task_name, arguments in queue.sent:
        WorkingQueue(worker).send(task_name, *arguments)

    assert queue.sent == [(ADVANCE_UPGRADE, (ready,))]
    assert (answers_by(gallery), state_of(gallery, ready)) == (1, "ready")


def test_a_cutover_that_was_done_when_the_wait_ends_is_no_failure(
    gallery: TestClient, worker: WorkerParts, ready: int
) -> None:
    actions = actions_of(gallery, WorkingQueue(worker), cutover_wait_seconds=0.0)

    actions.cut_over(ready)

    assert (answers_by(gallery), state_of(gallery, ready)) == (2, "live")


def test_a_cutover_that_a_worker_cannot_do_is_refused_with_its_sentence(
    gallery: TestClient, worker: WorkerParts, ready: int
) -> None:
    actions = actions_of(gallery, FailingQueue(worker))

    with pytest.raises(CutoverRefused, match="The device fell off") as refused:
        actions.cut_over(ready)

    assert refused.value.status_code == 409
    assert (answers_by(gallery), state_of(gallery, ready)) == (1, "failed")


def test_a_cutover_of_an_upgrade_that_is_not_ready_asks_no_worker(gallery: TestClient) -> None:
    upgrade_id, queue = start_upgrade(gallery, "v2"), RecordingQueue()

    with pytest.raises(IllegalTransition):
        actions_of(gallery, queue).cut_over(upgrade_id)

    assert (queue.sent, state_of(gallery, upgrade_id)) == ([], "planned")


def test_a_roll_back_is_answered_when_the_old_generation_answers_and_the_new_one_is_gone(
    gallery: TestClient, worker: WorkerParts, live: int
) -> None:
    tables, files = left(worker)
    assert (tables, len(files)) == ([1, 2], 1)

    actions_of(gallery).roll_back(live, accept_loss=False)

    assert left(worker) == ([1], [])
    assert (answers_by(gallery), state_of(gallery, live)) == (1, "rolled_back")


def test_a_roll_back_that_is_refused_leaves_both_generations(
    gallery: TestClient, worker: WorkerParts, live: int
) -> None:
    import_vectors(gallery, ["one"], version="v2")
    before = left(worker)

    with pytest.raises(RollbackWouldLose, match="'one'"):
        actions_of(gallery).roll_back(live, accept_loss=False)
    refused = left(worker)
    actions_of(gallery).roll_back(live, accept_loss=True)

    assert refused == before
    assert left(worker) == ([1], [])
    assert gallery.get("/v1/galleries/g/items/one").status_code == 404


def test_a_cancel_is_answered_when_the_generation_is_gone(gallery: TestClient, worker: WorkerParts, ready: int) -> None:
    tables, files = left(worker)
    assert (tables, len(files)) == ([1, 2], 1)

    actions_of(gallery).cancel(ready)

    assert left(worker) == ([1], [])
    assert (answers_by(gallery), state_of(gallery, ready)) == (1, "cancelled")


def test_a_finalize_is_answered_when_the_old_generation_is_gone(
    gallery: TestClient, worker: WorkerParts, live: int
) -> None:
    _, files = left(worker)

    actions_of(gallery).finalize(live)

    assert left(worker) == ([2], files)
    assert (answers_by(gallery), state_of(gallery, live)) == (2, "finalized")


def test_a_cancel_whose_table_is_still_read_says_so_and_ends_when_it_is_repeated(
    gallery: TestClient, worker: WorkerParts, ready: int
) -> None:
    hurried = actions_of(gallery, removal_wait_seconds=0.01)
    with worker.database.session_scope() as session:
        session.execute(text("SELECT FROM embeddings_2"))
        with pytest.raises(StillRead) as refused:
            hurried.cancel(ready)

    actions_of(gallery).cancel(ready)

    assert refused.value.status_code == 503
    assert left(worker) == ([1], [])
    assert state_of(gallery, ready) == "cancelled"
