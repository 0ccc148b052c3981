"""Backfills over HTTP: clients that bring images, what is refused, and what is shown."""

from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.settings import Settings
from service.vectors.rows import Origin
from tests.backfills import (
    backfill_of,
    begin_backfill,
    go_live,
    lease,
    make_candidate,
    name_of,
    refused,
    run_backfill,
    send_images,
)
from tests.networks import image_bytes
from tests.rows import all_rows
from tests.scenario import create_upgradable_gallery, import_vectors, post_images, search, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts

ITEMS = 4


@pytest.fixture
def upgrade(client: TestClient, worker: WorkerParts, tmp_path: Path) -> int:
    """A ready upgrade of gallery `g` from v1 to v2."""
    return make_candidate(client, worker, tmp_path, ITEMS)


def detail_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    detail: str = answer.json()["detail"]
    return detail


def begin(client: TestClient, **options: object) -> httpx.Response:
    wanted = {"generation": "next", "source": "client", **options}
    answer: httpx.Response = client.post("/v1/galleries/g/backfills", json=wanted)
    return answer


@pytest.mark.usefixtures("upgrade")
def test_clients_lease_items_and_send_their_images(client: TestClient, worker: WorkerParts, upgrade: int) -> None:
    backfill_id = begin_backfill(client, source="client")
    first, second = lease(client, backfill_id, 3), lease(client, backfill_id)

    answers = [
        send_images(client, backfill_id, {name: image_bytes(int(name[6:-4])) for name in ids})
        for ids in (first, second)
    ]

    statuses = [result["status"] for answer in answers for result in answer.json()["results"]]
    assert (len(first), len(second)) == (3, 1)
    assert statuses == ["backfilled"] * ITEMS
    assert backfill_of(client, backfill_id)["state"] == "finished"
    assert lease(client, backfill_id) == []
    _, new = all_rows(worker, upgrade)
    assert (new.origin == Origin.BACKFILLED).all()


def test_a_random_backfill_does_not_begin_with_what_references_are_drawn_from(
    client: TestClient, worker: WorkerParts, tmp_path: Path
) -> None:
    upgrade_id = make_candidate(client, worker, tmp_path, 40)

    drawn = set(client.get(f"/v1/upgrades/{upgrade_id}/references", params={"wanted": 10}).json()["ids"])
    first = set(lease(client, begin_backfill(client, source="client", order="random", budget={"items": 10})))

    assert (len(drawn), len(first)) == (10, 10)
    assert len(drawn & first) < 8


@pytest.mark.usefixtures("upgrade")
def test_what_a_client_leased_and_did_not_send_is_leased_to_the_next(client: TestClient, settings: Settings) -> None:
    settings.backfill_lease_seconds = 1e-6
    backfill_id = begin_backfill(client, source="client")

    first, second = lease(client, backfill_id), lease(client, backfill_id)
    late = send_images(client, backfill_id, {first[0]: image_bytes(int(first[0][6:-4]))})
    again = send_images(client, backfill_id, {first[0]: image_bytes(int(first[0][6:-4]))})

    assert first == second
    assert len(first) == ITEMS
    assert [result["status"] for result in late.json()["results"]] == ["backfilled"]
    assert [result["status"] for result in again.json()["results"]] == ["skipped"]
    assert len(lease(client, backfill_id)) == ITEMS - 1


@pytest.mark.usefixtures("upgrade")
def test_images_of_others_and_broken_ones_are_refused_and_listed(client: TestClient) -> None:
    backfill_id = begin_backfill(client, source="client")
    ids = lease(client, backfill_id)
    wrong = send_images(client, backfill_id, {ids[0]: image_bytes(77), ids[1]: b"no image"})

    unknown = send_images(client, backfill_id, {"elsewhere": image_bytes(0)})

    assert "No image of the request was taken" in detail_of(wrong, 422)
    assert detail_of(unknown, 422)
    assert set(refused(client, backfill_id)) == set(ids[:2])
    assert backfill_of(client, backfill_id)["outcomes"]["refused"] == 2


@pytest.mark.usefixtures("upgrade")
def test_a_paused_backfill_leases_nothing_and_takes_nothing(client: TestClient) -> None:
    backfill_id = begin_backfill(client, source="client")
    ids = lease(client, backfill_id)
    client.post(f"/v1/backfills/{backfill_id}/pause")

    leased = client.post(f"/v1/backfills/{backfill_id}/lease")
    sent = send_images(client, backfill_id, {ids[0]: image_bytes(0)})

    assert "is paused" in detail_of(leased, 409)
    assert "is paused" in detail_of(sent, 409)


@pytest.mark.usefixtures("upgrade")
def test_a_deleted_item_stays_deleted_when_its_image_comes(client: TestClient) -> None:
    backfill_id = begin_backfill(client, source="client")
    ids = lease(client, backfill_id)
    assert client.delete(f"/v1/galleries/g/items/{ids[0]}").status_code == 204

    sent = send_images(client, backfill_id, {ids[0]: image_bytes(int(ids[0][6:-4]))})

    assert [result["status"] for result in sent.json()["results"]] == ["skipped"]
    assert client.get(f"/v1/galleries/g/items/{ids[0]}").status_code == 404
    assert backfill_of(client, backfill_id)["outcomes"]["superseded"] == 1


def test_what_a_client_sent_is_found_by_the_next_query(client: TestClient, worker: WorkerParts, upgrade: int) -> None:
    go_live(client, worker, upgrade)
    backfill_id = begin_backfill(client, source="client", generation="active")
    ids = lease(client, backfill_id)

    send_images(client, backfill_id, {name: image_bytes(int(name[6:-4])) for name in ids})

    (nearest,) = search(client, 1, k=1)["neighbors"]
    assert (nearest["id"], nearest["origin"]) == (name_of(1), "backfilled")
    assert nearest["distance"] == pytest.approx(0, abs=2e-2)


def test_a_backfill_needs_a_candidate_and_something_that_h_made(client: TestClient, worker: WorkerParts) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(2))

    none = begin(client)
    active = begin(client, generation="active")
    upgrade_id = start_upgrade(client, "v2")
    early = begin(client)
    run_until(worker, client, upgrade_id, "ready")
    no_uri = begin(client, source="uri")
    no_thumbnail = begin(client, source="thumbnails")

    assert "has no candidate" in detail_of(none, 409)
    assert "nothing to encode again" in detail_of(active, 409)
    assert f"Upgrade {upgrade_id} is planned" in detail_of(early, 409)
    assert "GALLERY_IMAGES" in detail_of(no_uri, 409)
    assert "at least 20 are needed" in detail_of(no_thumbnail, 409)


@pytest.mark.usefixtures("upgrade")
def test_what_nothing_is_known_of_is_refused_by_a_sentence(client: TestClient) -> None:
    refusals = [
        begin(client, order="uncertainty"),
        begin(client, order="traffic"),
        begin(client, stop="knee"),
    ]

    details = [detail_of(answer, 409) for answer in refusals]

    assert "does not say" in details[0]
    assert "shadowed" in details[1]
    assert "references" in details[2]


@pytest.mark.usefixtures("upgrade")
@pytest.mark.parametrize(
    "options",
    [
        {"budget": {"items": 1, "share": 0.5}},
        {"budget": {"share": 0}},
        {"budget": {"items": 0}},
        {"speed": 2},
        {"order": "best"},
        {"generation": "old"},
        {"source": "s3"},
    ],
    ids=str,
)
def test_malformed_requests_are_refused(client: TestClient, options: dict[str, object]) -> None:
    answer = begin(client, **options)

    assert answer.status_code == 422


@pytest.mark.usefixtures("upgrade")
def test_a_generation_has_one_open_backfill_and_its_gallery_stays_while_it_is_open(
    client: TestClient, upgrade: int
) -> None:
    backfill_id = begin_backfill(client, source="client")

    second = begin(client)
    client.post(f"/v1/upgrades/{upgrade}/cancel")
    delete = client.delete("/v1/galleries/g")
    cancelled = client.post(f"/v1/backfills/{backfill_id}/cancel")

    assert "open backfill" in detail_of(second, 409)
    assert f"Backfill {backfill_id}" in detail_of(delete, 409)
    assert cancelled.json()["state"] == "cancelled"
    assert client.delete("/v1/galleries/g").status_code == 204


def test_a_dry_run_writes_nothing_and_says_that_references_are_missing(client: TestClient, upgrade: int) -> None:
    answer = begin(client, dry_run=True, budget={"share": 0.5})

    body = answer.json()
    assert answer.status_code == 200
    assert (body["candidates"], body["items"], body["order"]) == (ITEMS, ITEMS / 2, "random")
    assert (body["references"], body["curve"], body["knee"]) == (0, [], None)
    assert "at least 20 are needed" in body["reason"]
    assert client.get("/v1/galleries/g/backfills").json()["items"] == []


def test_events_tell_the_states_and_the_progress(client: TestClient, worker: WorkerParts, upgrade: int) -> None:
    backfill_id = begin_backfill(client, source="client")
    ids = lease(client, backfill_id)
    send_images(client, backfill_id, {name: image_bytes(int(name[6:-4])) for name in ids})
    run_backfill(client, worker, backfill_id)

    text = client.get(f"/v1/backfills/{backfill_id}/events").text

    assert [state in text for state in ('"planned"', '"running"', '"finished"')] == [True] * 3
    assert f'"done":{ITEMS}' in text.replace(" ", "")


@pytest.mark.usefixtures("upgrade")
def test_a_speed_of_0_stops_the_worker_and_is_refused_once_it_has_ended(
    client: TestClient, worker: WorkerParts
) -> None:
    backfill_id = begin_backfill(client, source="client")

    slow = client.patch(f"/v1/backfills/{backfill_id}", json={"speed": 0})
    client.post(f"/v1/backfills/{backfill_id}/cancel")
    ended = client.patch(f"/v1/backfills/{backfill_id}", json={"speed": 1})

    assert slow.json()["speed"] == 0
    assert "has no speed" in detail_of(ended, 409)


def test_imported_vectors_that_h_carried_over_are_taken_back_to_pixels_too(
    client: TestClient, worker: WorkerParts
) -> None:
    create_upgradable_gallery(client)
    import_vectors(client, ["a"])
    post_images(client, [1])
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    backfill_id = begin_backfill(client, source="client")
    ids = lease(client, backfill_id)

    sent = send_images(client, backfill_id, {name_of(1): image_bytes(1), "a": image_bytes(5)})

    assert sorted(ids) == ["a", name_of(1)]
    assert [result["status"] for result in sent.json()["results"]] == ["backfilled", "refused"]
    _, new = all_rows(worker, upgrade_id)
    assert np.count_nonzero(new.origin == Origin.BACKFILLED) == 1
