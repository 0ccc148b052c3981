"""Messages to workers: what is in them, and that a broker that is away fails nobody."""

import logging

import pytest
from celery import Celery

from service.logs import request_id
from service.queue import (
    ADVANCE_RESTING_UPGRADE,
    ADVANCE_TRAINING,
    ADVANCE_UPGRADE,
    BUILD_INDEX,
    TaskQueue,
    celery_application,
)
from service.settings import Settings
from tests.served import free_port


@pytest.fixture
def application() -> Celery:
    """An application whose broker is in this process."""
    return celery_application(Settings(broker_url="memory://"))


def test_a_message_is_a_name_with_ids_under_the_request_that_asks_for_it(application: Celery) -> None:
    token = request_id.set("asked-here")
    TaskQueue(application).send(ADVANCE_UPGRADE, 7)
    request_id.reset(token)

    with application.connection_for_read() as connection, connection.SimpleQueue("gallery_upgrade") as queue:
        message = queue.get(timeout=5)

    assert message.headers["task"] == ADVANCE_UPGRADE
    assert message.headers["request_id"] == "asked-here"
    assert message.payload[:2] == [[7], {}]


def test_a_message_of_an_upgrade_overtakes_what_can_wait(application: Celery) -> None:
    sent = [(ADVANCE_TRAINING, 1), (BUILD_INDEX, 2), (ADVANCE_RESTING_UPGRADE, 3), (ADVANCE_UPGRADE, 4)]
    for task_name, row_id in sent:
        TaskQueue(application).send(task_name, row_id)

    with application.connection_for_read() as connection, connection.SimpleQueue("gallery_upgrade") as queue:
        priorities = {m.headers["task"]: m.properties["priority"] for m in (queue.get(timeout=5) for _ in sent)}

    steps = application.conf.broker_transport_options["priority_steps"]
    assert steps == sorted(set(priorities.values()))
    assert [name for name, priority in priorities.items() if priority == steps[0]] == [ADVANCE_UPGRADE]


def test_a_broker_that_is_away_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    queue = TaskQueue(celery_application(Settings(broker_url=f"redis://127.0.0.1:{free_port()}")))

    with caplog.at_level(logging.WARNING, "service.queue"):
        queue.send(BUILD_INDEX, 3)

    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.queue"]
    assert line.startswith(f"queue.message_not_sent task='{BUILD_INDEX}' arguments=(3,) ")
