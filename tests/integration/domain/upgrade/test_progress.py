"""The events of an upgrade: each state once, and progress counted from rows."""

import json
from typing import Any

from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.scenario import create_upgradable_gallery, start_upgrade
from tests.working import run_until
from workers.app import WorkerParts


def sent(client: TestClient, upgrade_id: int, after: int = 0) -> list[tuple[str, str, Any]]:
    """Return the (event, id, data) of an ended upgrade's stream."""
    headers = {"Last-Event-ID": str(after)} if after else {}
    body = client.get(f"/v1/upgrades/{upgrade_id}/events", headers=headers)
    assert body.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in body.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        events.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return events


def test_a_stream_beyond_as_many_as_may_be_open_is_429_and_says_where_to_look(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"max_event_streams": 1}))) as client:
        create_upgradable_gallery(client)
        upgrade_id = start_upgrade(client, "v2")
        path = f"/v1/upgrades/{upgrade_id}/events"
        streams = client.app.state.parts.event_streams.opened()  # type: ignore[attr-defined]  # starlette's annotation
        assert client.portal is not None
        client.portal.call(anext, streams)

        refused = client.get(path)
        client.portal.call(anext, streams, None)
        client.post(f"/v1/upgrades/{upgrade_id}/cancel")

        assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
        assert client.get(path).status_code == 200


def test_events_tell_every_state_once_and_go_on_after_the_last_one_seen(
    gallery: TestClient, worker: WorkerParts
) -> None:
    upgrade_id = start_upgrade(gallery, "v2", cutover="auto")
    run_until(worker, gallery, upgrade_id, "live")
    gallery.post(f"/v1/upgrades/{upgrade_id}/finalize")

    events = sent(gallery, upgrade_id)
    states = [(data["state"], int(id_)) for name, id_, data in events if name == "state"]
    later = sent(gallery, upgrade_id, after=states[3][1])

    expected = ["planned", "transforming", "indexing", "evaluating", "ready", "live", "finalized"]
    assert [state for state, _ in states] == expected
    assert [data["state"] for name, _, data in later if name == "state"] == expected[4:]
    (progress,) = [data for name, _, data in events if name == "progress"]
    assert progress["transforming"] | {"rate": None} == {
        "done": 20,
        "total": 20,
        "unit": "items",
        "rate": None,
        "eta_seconds": 0.0,
    }
    assert progress["indexing"]["done"] == 20
    assert gallery.get("/v1/upgrades/999/events").status_code == 404
