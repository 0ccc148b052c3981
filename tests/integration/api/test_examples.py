"""The examples of a report are items, with the labels and thumbnails that they have when somebody asks."""

import html
import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.tables import Item, Report
from tests.networks import image_bytes
from tests.reported import ready_upgrade, reported_upgrade
from workers.app import WorkerParts

KINDS = ["negative_flips", "positive_flips", "churn", "hubs", "uncertain"]


@pytest.fixture
def upgrade_id(client: TestClient, worker: WorkerParts) -> int:
    return reported_upgrade(client, worker)


def examples_of(client: TestClient, upgrade_id: int, kind: str, limit: int = 50) -> dict[str, Any]:
    answer = client.get(f"/v1/upgrades/{upgrade_id}/report/examples", params={"kind": kind, "limit": limit})
    assert answer.is_success, answer.text
    body: dict[str, Any] = answer.json()
    return body


def kept(worker: WorkerParts, upgrade_id: int) -> tuple[dict[str, Any], dict[int, Item]]:
    """Return the examples that the newest report holds, and items by their internal ids."""
    with worker.database.session_scope() as session:
        contents = session.scalars(
            select(Report.content).where(Report.upgrade_id == upgrade_id).order_by(Report.number)
        )
        measurements: dict[str, Any] = json.loads(list(contents)[-1])["measurements"]
        items = {item.id: item for item in session.scalars(select(Item))}
        session.expunge_all()
    return measurements["examples"], items


def test_each_kind_has_items_with_both_answers_as_the_report_keeps_them(
    client: TestClient, worker: WorkerParts, upgrade_id: int
) -> None:
    bodies = {kind: examples_of(client, upgrade_id, kind) for kind in KINDS}

    examples, items = kept(worker, upgrade_id)
    assert set(examples) == set(KINDS)
    for kind, body in bodies.items():
        check(body, kind, examples[kind], items)


def check(body: dict[str, Any], kind: str, examples: list[dict[str, Any]], items: dict[int, Item]) -> None:
    """Compare an answer with what the report keeps."""
    assert (body["report"], body["kind"]) == (2, kind)
    assert len(body["examples"]) == len(examples) > 0
    for found, expected in zip(body["examples"], examples, strict=True):
        assert found["item"]["id"] == items[expected["item_id"]].external_id
        assert found["item"]["label"] == items[expected["item_id"]].label
        assert found["item"]["since"] == "same"
        assert [found[name] for name in ("value_before", "value_after")] == [
            expected[name] for name in ("value_before", "value_after")
        ]
        for side in ("before", "after"):
            assert [near["id"] for near in found[side]] == [items[i].external_id for i in expected[side]["ids"]]
            assert [near["label"] for near in found[side]] == [items[i].label for i in expected[side]["ids"]]
            assert [near["distance"] for near in found[side]] == expected[side]["distances"]


def test_a_negative_flip_is_answered_by_its_label_before_and_not_after(client: TestClient, upgrade_id: int) -> None:
    for example in examples_of(client, upgrade_id, "negative_flips")["examples"]:
        assert example["before"][0]["label"] == example["item"]["label"]
        assert example["after"][0]["label"] != example["item"]["label"]
        assert example["value_before"] == 1


def compared(client: TestClient, upgrade_id: int, kind: str, **options: str) -> str:
    """Return the console's page of the first example of a kind."""
    answer = client.get(f"/console/upgrades/{upgrade_id}/compare", params={"kind": kind, **options})
    page: str = answer.text
    assert answer.status_code == 200, page
    return page


@pytest.mark.parametrize("kind", KINDS)
def test_the_console_shows_what_the_report_found(client: TestClient, upgrade_id: int, kind: str) -> None:
    example = examples_of(client, upgrade_id, kind, limit=1)["examples"][0]

    page = compared(client, upgrade_id, kind)
    shown = page[page.index('<div class="compare">') :]

    found = [html.unescape(id_) for id_ in re.findall(r'<span class="clamp id"><bdi>(.*?)</bdi>', shown)]
    assert found == [near["id"] for near in (*example["before"], *example["after"])]
    assert ("The first right item is number 1 before, and" in page) == (kind == "negative_flips")
    assert ("Items whose queries found it" in page) == (kind == "hubs")
    blind = compared(client, upgrade_id, kind, blind="true")
    assert ("Left is better" in blind) == (kind != "hubs")
    assert "The first right item" not in blind


def test_thumbnail_urls_lead_to_the_thumbnails(client: TestClient, upgrade_id: int) -> None:
    example = examples_of(client, upgrade_id, "churn", limit=1)["examples"][0]

    for item in (example["item"], *example["before"], *example["after"]):
        answer = client.get(item["thumbnail_url"])
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")


def test_items_that_were_deleted_since_are_gone_and_those_written_again_changed(
    client: TestClient, upgrade_id: int
) -> None:
    example = examples_of(client, upgrade_id, "uncertain", limit=1)["examples"][0]
    deleted, replaced = example["item"]["id"], example["before"][0]["id"]
    path = example["item"]["thumbnail_url"].removesuffix("/thumbnail")
    assert client.delete(path).status_code == 204
    files = [("files", ("image-1.png", image_bytes(1), "image/png"))]
    items = json.dumps([{"id": replaced, "label": "another"}])
    assert client.post("/v1/galleries/g/images", files=files, data={"items": items}).is_success

    again = examples_of(client, upgrade_id, "uncertain", limit=1)["examples"][0]

    assert again["item"] == {"id": deleted, "label": None, "thumbnail_url": None, "since": "gone"}
    assert (again["before"][0]["label"], again["before"][0]["since"]) == ("another", "changed")
    assert [near["distance"] for near in again["before"]] == [near["distance"] for near in example["before"]]
    page = client.get(f"/v1/upgrades/{upgrade_id}/report?format=html").text
    assert "deleted since" in page
    assert "changed since" in page
    assert "changed or deleted since." in compared(client, upgrade_id, "uncertain")


def test_limit_takes_the_most_telling_ones(client: TestClient, upgrade_id: int) -> None:
    everything = examples_of(client, upgrade_id, "churn")["examples"]

    assert examples_of(client, upgrade_id, "churn", limit=2)["examples"] == everything[:2]
    path = f"/v1/upgrades/{upgrade_id}/report/examples"
    assert len(client.get(path, params={"kind": "churn"}).json()["examples"]) == min(10, len(everything))
    for bad in ({"kind": "churn", "limit": 0}, {"kind": "churn", "limit": 51}, {"kind": "odd"}, {}):
        assert client.get(path, params=bad).status_code == 422


def test_a_report_without_evidence_has_no_examples(client: TestClient, worker: WorkerParts) -> None:
    upgrade_id = ready_upgrade(client, worker)

    assert [examples_of(client, upgrade_id, kind)["examples"] for kind in KINDS] == [[]] * len(KINDS)


def test_without_a_report_or_an_upgrade_there_are_none(client: TestClient, worker: WorkerParts) -> None:
    assert client.get("/v1/upgrades/9/report/examples?kind=hubs").status_code == 404
