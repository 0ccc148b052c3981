"""The tasks, by the names in `service.queue`."""

from service.queue import ADVANCE_UPGRADE
from workers.app import app, worker_parts
from workers.upgrading import advance_upgrade


@app.task(name=ADVANCE_UPGRADE)
def advance(upgrade_id: int) -> None:
    """Work on an upgrade for one time slice, and ask for the next one.

    Safe to run twice: batches are claimed from rows and marked in the transaction that writes them, and every change
    of state is guarded by the state that it leaves.
    """
    parts = worker_parts()
    parts.working.set()
    try:
        if advance_upgrade(parts, upgrade_id):
            parts.database.queue.send(ADVANCE_UPGRADE, upgrade_id)
    finally:
        parts.working.clear()
