"""What references say of a backfill before it is done: the order, the curve, the knee, and whether thumbnails help."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.domain.upgrade.upgrades import get_upgrade
from service.tables import ShadowedQuery, Upgrade, embeddings_table
from tests.backfills import begin_backfill, lease, run_backfill
from tests.judged import WRONG, post_class_images, post_references, register_h, register_two_spaces
from tests.scenario import start_upgrade
from tests.working import run_until
from workers.app import WorkerParts

pytestmark = pytest.mark.few_batches

ITEMS = 60


def make_candidate(client: TestClient, worker: WorkerParts, wrong: str | None = None, labels: bool = True) -> int:
    """Make a ready upgrade with references of every item; return its id. Its h is right, unless it is `WRONG`."""
    turn = register_two_spaces(client)
    register_h(client, turn if wrong is None else WRONG[wrong](turn).astype("float32"))
    post_class_images(client, range(ITEMS), labels=labels)
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    assert post_references(client, upgrade_id, range(ITEMS)).is_success
    return upgrade_id


def upgrade_of(worker: WorkerParts, upgrade_id: int) -> Upgrade:
    with worker.database.session_scope() as session:
        return get_upgrade(session, upgrade_id)


def fail_knowingly(worker: WorkerParts, upgrade_id: int) -> None:
    """Let h be far off for every fourth item, and know its errors."""
    table = embeddings_table(upgrade_of(worker, upgrade_id).to_generation_id)
    with worker.database.session_scope() as session:
        session.execute(text(f"UPDATE {table} SET uncertainty = 0.01 + item_id * 1e-6"))
        session.execute(
            text(
                f"UPDATE {table} SET uncertainty = 9, embedding = (SELECT o.embedding FROM {table} o"
                f" WHERE o.item_id = {table}.item_id + 2) WHERE item_id % 4 = 0 AND item_id < {ITEMS - 2}"
            )
        )


def dry_run(client: TestClient, **options: Any) -> dict[str, Any]:
    wanted = {"generation": "next", "source": "client", "dry_run": True, **options}
    answer = client.post("/v1/galleries/g/backfills", json=wanted)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize(("labels", "measure"), [(True, "cmc_at_1"), (False, "overlap_at_10")])
def test_the_order_with_the_best_curve_is_taken_and_its_knee_is_where_the_failures_end(
    client: TestClient, worker: WorkerParts, labels: bool, measure: str
) -> None:
    fail_knowingly(worker, make_candidate(client, worker, labels=labels))

    found = dry_run(client)
    stopped = begin_backfill(client, source="client", stop="knee")

    assert (found["order"], found["measure"], found["references"]) == ("uncertainty", measure, ITEMS)
    assert found["orders"]["uncertainty"] > found["orders"]["random"]
    assert [point["share"] for point in found["curve"]] == pytest.approx([place / 21 for place in range(22)])
    assert all(point["low"] <= point["gain"] <= point["high"] for point in found["curve"])
    assert found["curve"][0]["gain"] == 0
    assert found["curve"][-1]["low"] > 0
    assert found["curve"][-1]["seconds"] == pytest.approx(ITEMS * found["seconds_per_item"])
    assert 0.15 <= found["knee"] <= 0.35
    assert client.get(f"/v1/backfills/{stopped}").json()["items"] == pytest.approx(found["knee"] * ITEMS, abs=1)


def test_a_right_h_is_not_worth_a_backfill_and_has_no_knee(client: TestClient, worker: WorkerParts) -> None:
    make_candidate(client, worker)

    found = dry_run(client)
    wanted = {"generation": "next", "source": "client", "stop": "knee"}
    refused = client.post("/v1/galleries/g/backfills", json=wanted)

    assert found["knee"] is None
    assert refused.status_code == 409
    assert "no certain gain" in refused.json()["detail"]


def test_the_uncertain_items_come_first_and_references_still_count_after_a_backfill(
    client: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = make_candidate(client, worker)
    fail_knowingly(worker, upgrade_id)
    backfill_id = begin_backfill(client, source="client", order="uncertainty", budget={"items": 3})

    ids = lease(client, backfill_id)

    assert all(int(name.removesuffix(".png")) % 4 == 3 for name in ids)  # ids count from 1, names from 0
    assert client.get(f"/v1/upgrades/{upgrade_id}/references", params={"wanted": 1}).json()["given"] == ITEMS


def test_items_that_shadowed_queries_found_come_first_by_traffic(client: TestClient, worker: WorkerParts) -> None:
    upgrade_id = make_candidate(client, worker)
    upgrade = upgrade_of(worker, upgrade_id)
    with worker.database.session_scope() as session:
        versions = session.execute(text("SELECT id FROM model_versions ORDER BY id")).scalars().all()
        for answers in ([9, 5], [9, 7], [9, -1], [5, 1]):
            session.add(
                ShadowedQuery(
                    gallery_id=upgrade.gallery_id,
                    from_version_id=versions[0],
                    to_version_id=versions[1],
                    to_generation_id=upgrade.to_generation_id,
                    embedding_from=b"",
                    embedding_to=b"",
                    answers_before=[],
                    answers_after=answers,
                )
            )

    backfill_id = begin_backfill(client, source="client", order="traffic")

    assert lease(client, backfill_id, limit=2) == ["8.png", "4.png"]


def test_thumbnails_replace_what_h_made_where_they_are_better(client: TestClient, worker: WorkerParts) -> None:
    make_candidate(client, worker, wrong="into a wrong space")

    found = run_backfill(client, worker, begin_backfill(client, source="thumbnails", order="random"))

    assert found["outcomes"] == {"backfilled": ITEMS, "superseded": 0, "refused": 0}
    assert found["simulation"]["references"] == ITEMS


def test_only_items_of_which_h_expects_more_error_than_thumbnails_have_are_taken_from_them(
    client: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = make_candidate(client, worker, wrong="into a wrong space")
    table = embeddings_table(upgrade_of(worker, upgrade_id).to_generation_id)
    with worker.database.session_scope() as session:
        session.execute(text(f"UPDATE {table} SET uncertainty = CASE WHEN item_id % 2 = 0 THEN 1e6 ELSE 0 END"))

    found = dry_run(client, source="thumbnails")

    assert found["candidates"] == ITEMS / 2


def test_thumbnails_that_are_no_better_than_h_are_refused(client: TestClient, worker: WorkerParts) -> None:
    make_candidate(client, worker)

    answer = client.post("/v1/galleries/g/backfills", json={"generation": "next", "source": "thumbnails"})

    assert answer.status_code == 409
    assert "not certainly nearer" in answer.json()["detail"]
