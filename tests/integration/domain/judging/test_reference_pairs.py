"""References: which items are asked for, and that only an item's own image is one."""

from collections import Counter

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from tests.judged import CLASSES, class_image, post_class_images, post_references, register_h, register_two_spaces
from tests.scenario import start_upgrade
from tests.working import run_until
from workers.app import WorkerParts

pytestmark = pytest.mark.few_batches

ITEMS = 60


@pytest.fixture
def upgrade_id(client: TestClient, worker: WorkerParts) -> int:
    """A ready upgrade of a gallery of labelled images."""
    register_h(client, register_two_spaces(client))
    post_class_images(client, range(ITEMS))
    identifier = start_upgrade(client, "v2")
    run_until(worker, client, identifier, "ready")
    return identifier


def draw(client: TestClient, upgrade_id: int, wanted: int, seed: int = 0) -> tuple[list[str], int]:
    answer = client.get(f"/v1/upgrades/{upgrade_id}/references", params={"wanted": wanted, "seed": seed})
    assert answer.is_success, answer.text
    return answer.json()["ids"], answer.json()["given"]


def test_items_are_drawn_by_seed_and_of_each_label_by_its_share(client: TestClient, upgrade_id: int) -> None:
    ids, given = draw(client, upgrade_id, 20)

    assert len(set(ids)) == 20
    assert given == 0
    assert set(Counter(int(name.removesuffix(".png")) % CLASSES for name in ids).values()) == {20 // CLASSES}
    assert draw(client, upgrade_id, 20) == (ids, 0)
    assert draw(client, upgrade_id, 20, seed=1)[0] != ids
    assert len(draw(client, upgrade_id, 1_000)[0]) == ITEMS


def test_what_was_given_is_not_asked_for_again_until_the_item_changes(client: TestClient, upgrade_id: int) -> None:
    assert post_references(client, upgrade_id, range(10)).is_success
    given = {f"{number}.png" for number in range(10)}

    ids, count = draw(client, upgrade_id, 1_000)
    assert (count, set(ids) & given) == (10, set())
    post_class_images(client, [3])

    ids, count = draw(client, upgrade_id, 1_000)
    assert (count, set(ids) & given) == (9, {"3.png"})


def test_the_image_of_another_item_is_no_reference_nor_is_what_is_no_image_or_no_item(
    client: TestClient, upgrade_id: int
) -> None:
    files = [
        ("files", ("0.png", class_image(0))),
        ("files", ("1.png", class_image(2))),
        ("files", ("2.png", b"no image")),
        ("files", ("none.png", class_image(3))),
    ]

    results = client.post(f"/v1/upgrades/{upgrade_id}/references", files=files).json()["results"]

    assert [result["status"] for result in results] == ["accepted", "rejected", "rejected", "rejected"]
    assert "another image" in results[1]["error"]
    assert draw(client, upgrade_id, 1)[1] == 1


def test_a_request_without_a_reference_is_422_and_stores_nothing(client: TestClient, upgrade_id: int) -> None:
    refused = post_references(client, upgrade_id, [4, 5], of={4: 5, 5: 4})

    assert refused.status_code == 422
    assert [error["id"] for error in refused.json()["errors"]] == ["4.png", "5.png"]
    assert draw(client, upgrade_id, 1)[1] == 0


def test_an_item_that_occurs_twice_has_its_last_image(client: TestClient, worker: WorkerParts, upgrade_id: int) -> None:
    files = [("files", (name, class_image(number))) for name, number in (("0.png", 0), ("1.png", 1), ("0.png", 0))]

    answer = client.post(f"/v1/upgrades/{upgrade_id}/references", files=files)

    assert [result["status"] for result in answer.json()["results"]] == ["accepted"] * 3
    assert draw(client, upgrade_id, 1)[1] == 2


def test_references_serve_a_later_upgrade_between_the_same_versions(
    client: TestClient, worker: WorkerParts, upgrade_id: int
) -> None:
    assert post_references(client, upgrade_id, range(7)).is_success
    assert client.post(f"/v1/upgrades/{upgrade_id}/cancel").is_success
    assert client.get(f"/v1/upgrades/{upgrade_id}/references").status_code == 409
    assert post_references(client, upgrade_id, [9]).status_code == 409

    later = start_upgrade(client, "v2")

    assert draw(client, later, 1)[1] == 7


def test_the_embeddings_that_are_kept_are_those_of_both_versions(
    client: TestClient, worker: WorkerParts, upgrade_id: int
) -> None:
    assert post_references(client, upgrade_id, [0]).is_success
    post_class_images(client, [0])  # encoded by both versions now

    with worker.database.session_scope() as session:
        kept = session.execute(text("SELECT embedding_from, embedding_to FROM reference_pairs")).one()
        stored = session.execute(
            text(
                "SELECT a.embedding::real[], b.embedding::real[] FROM embeddings_1 a"
                " JOIN embeddings_2 b USING (item_id) JOIN items i ON i.id = a.item_id WHERE i.external_id = '0.png'"
            )
        ).one()
    for data, row in zip(kept, stored, strict=True):
        np.testing.assert_allclose(np.frombuffer(data, "<f4"), row, rtol=1e-3)
