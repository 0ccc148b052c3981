"""The names of the tasks that workers run, and sending them after a commit.

A message is only a nudge: what remains to be done can always be read from rows, and every worker's sweep sends lost
messages again. So a broker that is away never fails a request; the failure is logged.

Workers take messages of galleries' upgrades first: somebody waits for them. All else comes last, in the order in which
it was sent: upgrades that rest because of their speed and those of other stores, trainings, backfills, ingests by
reference, erasures, index builds.
"""

from typing import Protocol

from celery import Celery
from kombu.exceptions import ChannelError, OperationalError
from sqlalchemy.orm import Session

from service import logs
from service.errors import Unavailable
from service.settings import Settings

ADVANCE_UPGRADE = "workers.advance_upgrade"
ADVANCE_RESTING_UPGRADE = "workers.advance_resting_upgrade"
ADVANCE_TRAINING = "workers.advance_training"
ADVANCE_BACKFILL = "workers.advance_backfill"
ADVANCE_EXTERNAL = "workers.advance_external"
ADVANCE_INGEST = "workers.advance_ingest"
ADVANCE_ERASURE = "workers.advance_erasure"
BUILD_INDEX = "workers.build_index"

# Redis has a list for each, and a worker looks into the first one first.
_FIRST, _LAST = 0, 9
_PRIORITIES = {
    ADVANCE_UPGRADE: _FIRST,
    ADVANCE_RESTING_UPGRADE: _LAST,
    ADVANCE_TRAINING: _LAST,
    ADVANCE_INGEST: _LAST,
    ADVANCE_BACKFILL: _LAST,
    ADVANCE_EXTERNAL: _LAST,
    ADVANCE_ERASURE: _LAST,
    BUILD_INDEX: _LAST,
}

events = logs.Events(__name__)


class Sender(Protocol):
    def send(self, task_name: str, *arguments: int) -> None: ...


class TaskQueue:
    """Sends task names with ids to the broker."""

    def __init__(self, application: Celery) -> None:
        self._application = application

    def send(self, task_name: str, *arguments: int) -> None:
        """Send one nudge; a broker that does not answer is logged, not raised."""
        try:
            self._application.send_task(
                task_name,
                args=arguments,
                headers={"request_id": logs.request_id.get()},
                priority=_PRIORITIES[task_name],
                retry=False,
            )
        except (OperationalError, OSError) as error:
            events.warning("queue.message_not_sent", task=task_name, arguments=arguments, error=str(error))

    def waiting(self) -> int:
        """Return how many messages wait at the broker. Raises `Unavailable` (503) when it does not answer."""
        try:
            with self._application.connection_for_read() as connection:
                name = self._application.conf.task_default_queue
                return int(connection.default_channel.queue_declare(name, passive=True).message_count)
        except ChannelError:  # nobody has sent one, or all were taken
            return 0
        except (OperationalError, OSError) as error:
            raise Unavailable(f"The broker does not answer: {error}") from error


def celery_application(settings: Settings) -> Celery:
    """Return a Celery application with the settings that were measured to redeliver after a kill."""
    application = Celery("gallery_upgrade", broker=settings.broker_url, set_as_current=False)
    application.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue="gallery_upgrade",
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "priority_steps": [_FIRST, _LAST],
            "visibility_timeout": 120,
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": 2,
            "max_retries": 0,
        },
    )
    return application


def send_after_commit(session: Session, task_name: str, *arguments: int) -> None:
    """Ask for a task once this session's transaction has committed; dropped if it rolls back."""
    messages = session.info.setdefault("messages", [])
    if (task_name, arguments) not in messages:
        messages.append((task_name, arguments))
