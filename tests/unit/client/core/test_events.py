"""Reading server-sent events."""

from gallery_upgrade.core.events import Event, EventReader


def test_events_are_read_from_lines() -> None:
    lines = [
        'data: {"state": "ready"}',
        "event: state",
        "id: 7",
        "",
        ": keep-alive",
        "",
        "event:progress",
        'data:{"a":',
        "data: 1}",
        "",
    ]
    reader = EventReader()

    events = [event for line in lines if (event := reader.take(line)) is not None]

    assert events == [
        Event("state", {"state": "ready"}, 7),
        Event("ping", {}, None),
        Event("progress", {"a": 1}, None),
    ]
