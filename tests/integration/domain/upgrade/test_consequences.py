"""What each action on an upgrade would do, said from rows: the same are possible as the API takes, and the numbers are
those of the rows."""

from fastapi.testclient import TestClient

from service.db import Database
from service.domain.consequences import Consequence
from service.domain.upgrade.consequences import consequences_of
from service.domain.upgrade.progress import describe_upgrades
from service.domain.upgrade.upgrades import get_upgrade
from service.domain.upgrade_state import Action
from tests.problems import check_problem
from tests.scenario import (
    create_upgradable_gallery,
    import_vectors,
    post_images,
    register_transformation,
    register_version,
    start_upgrade,
)
from tests.working import cut_over, run_until
from workers.app import WorkerParts


def _consequences(database: Database, upgrade_id: int) -> dict[Action, Consequence[Action]]:
    with database.session_scope() as session:
        (details,) = describe_upgrades(session, [get_upgrade(session, upgrade_id)])
        return {each.action: each for each in consequences_of(session, details)}


def _possible(found: dict[Action, Consequence[Action]]) -> set[Action]:
    return {action for action, each in found.items() if each.is_possible}


def test_what_is_possible_follows_the_upgrade_and_says_numbers(
    client: TestClient, worker: WorkerParts, database: Database
) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(9))
    upgrade_id = start_upgrade(client, "v2")

    planned = _consequences(database, upgrade_id)
    assert _possible(planned) == {Action.PAUSE, Action.CANCEL}
    assert planned[Action.CANCEL].sentence.startswith("Generation 2 with 0 transformed rows is dropped")
    assert planned[Action.CUTOVER].sentence.startswith("Not possible while it is planned")

    client.post(f"/v1/upgrades/{upgrade_id}/pause")
    assert _possible(_consequences(database, upgrade_id)) == {Action.RESUME, Action.CANCEL}

    client.post(f"/v1/upgrades/{upgrade_id}/resume")
    run_until(worker, client, upgrade_id, "ready")
    client.delete("/v1/galleries/g/items/image-0.png")
    ready = _consequences(database, upgrade_id)
    assert _possible(ready) == {Action.CUTOVER, Action.CANCEL}
    assert "Queries of 8 items are answered by v2, generation 2. 1 change since" in ready[Action.CUTOVER].sentence


def test_a_rollback_counts_what_it_would_lose(client: TestClient, worker: WorkerParts, database: Database) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(4))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    cut_over(client, worker, upgrade_id)

    live = _consequences(database, upgrade_id)
    assert _possible(live) == {Action.ROLLBACK, Action.FINALIZE}
    assert live[Action.ROLLBACK].lost_items == 0
    assert live[Action.FINALIZE].sentence.startswith("Generation 1 with 4 rows is dropped.")

    import_vectors(client, ["only-in-the-new-space"], version="v2")
    rollback = _consequences(database, upgrade_id)[Action.ROLLBACK]
    assert rollback.lost_items == 1
    assert "1 item that only generation 2 has would be deleted." in rollback.sentence


def test_what_another_upgrade_of_the_gallery_keeps_from_being_is_not_offered(
    client: TestClient, worker: WorkerParts, database: Database
) -> None:
    """The first is live, and so is one on top of it: what is said is what the API answers."""
    create_upgradable_gallery(client)
    register_version(client, "v3")
    register_transformation(client, "v2", "v3")
    post_images(client, range(4))
    upgrade_ids = []
    for version in ("v2", "v3"):
        upgrade_ids.append(start_upgrade(client, version))
        run_until(worker, client, upgrade_ids[-1], "ready")
        cut_over(client, worker, upgrade_ids[-1])

    first, second = (_consequences(database, upgrade_id) for upgrade_id in upgrade_ids)

    assert _possible(first) == {Action.FINALIZE}
    assert _possible(second) == {Action.ROLLBACK}
    for upgrade_id, found, action in ((upgrade_ids[0], first, "rollback"), (upgrade_ids[1], second, "finalize")):
        refused = client.post(f"/v1/upgrades/{upgrade_id}/{action}")
        check_problem(refused, 409)
        assert refused.json()["detail"] == found[Action(action)].sentence
