"""The tasks that workers know, and those that the service sends."""

import logging
from types import SimpleNamespace

import pytest
from celery import Task
from celery.signals import task_prerun

from service import logs, queue
from workers import tasks
from workers.app import app


def tasks_of_ours() -> dict[str, Task]:
    return {name: task for name, task in app.tasks.items() if name.startswith("workers.")}


def test_every_name_that_is_sent_is_a_task_and_the_reverse() -> None:
    sent = {value for name, value in vars(queue).items() if name.isupper() and isinstance(value, str)}

    assert set(tasks_of_ours()) == sent
    assert {task.__module__ for task in tasks_of_ours().values()} == {tasks.__name__}


def test_every_task_is_acknowledged_when_it_has_ended_and_says_why_it_may_run_twice() -> None:
    for name, task in tasks_of_ours().items():
        assert (task.acks_late, task.reject_on_worker_lost) == (True, True), name
        assert "Safe to run twice" in (task.run.__doc__ or ""), name


def test_every_line_of_a_task_names_its_request_and_its_row_until_the_next_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = logs.Events("tests.tasks")

    with caplog.at_level(logging.INFO):
        for name, request in ((queue.ADVANCE_UPGRADE, {"request_id": "asked"}), (queue.ADVANCE_TRAINING, {})):
            task_prerun.send(sender=app.tasks[name], task=SimpleNamespace(name=name, request=request), args=[7])
            events.info("x.y")
    logs.about_nothing()
    logs.request_id.set(logs.NO_REQUEST)

    assert caplog.messages == ["x.y upgrade_id=7 request_id=asked", "x.y job_id=7 request_id=-"]
