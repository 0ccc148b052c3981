"""Working on upgrades as a worker process does, in the test's own thread."""

import threading
from dataclasses import replace
from typing import Any

import httpx

from tests.scenario import state_of
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade


def with_settings(worker: WorkerParts, **changes: Any) -> WorkerParts:
    """Return the worker with other settings, for what it reads of them at each task."""
    return replace(worker, settings=worker.settings.model_copy(update=changes))


def run_until(worker: WorkerParts, client: httpx.Client, upgrade_id: int, state: str) -> None:
    """Let the worker work on an upgrade until it is in a state."""
    for _ in range(30):
        advance_upgrade(worker, upgrade_id)
        if state_of(client, upgrade_id) == state:
            return
    raise AssertionError(client.get(f"/v1/upgrades/{upgrade_id}").json())


def cut_over(client: httpx.Client, worker: WorkerParts, upgrade_id: int, **options: Any) -> None:
    """Ask for a cutover, and let the worker take the steps that it is asked for until that is answered."""
    path = f"/v1/upgrades/{upgrade_id}/cutover"
    asking = threading.Thread(target=client.post, args=(path,), kwargs={"json": options})
    asking.start()
    while asking.is_alive():
        advance_upgrade(worker, upgrade_id)
    assert state_of(client, upgrade_id) == "live"
