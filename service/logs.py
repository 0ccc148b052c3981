"""Logging: dotted event names with ids as fields, one line each, and the id of the request that is being served.

The id travels with a task's message (`service.queue`), and the worker takes it from there (`workers.tasks`), so that
its lines bear the id of the request that asked for the work. What nobody asked for, such as a sweep, bears none.
"""

import logging
import sys
from contextvars import ContextVar

NO_REQUEST = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)


class Events:
    """A logger of events: `events.info("upgrade.batch_recorded", upgrade_id=3, items=20000)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def exception(self, event: str, error: Exception, **fields: object) -> None:
        """Log `event` with the traceback of `error`."""
        self._write(logging.ERROR, event, fields, error)

    def _write(self, level: int, event: str, fields: dict[str, object], error: Exception | None = None) -> None:
        if self._logger.isEnabledFor(level):
            text = " ".join(f"{key}={value!r}" for key, value in fields.items())
            self._logger.log(level, "%s %s request_id=%s", event, text, request_id.get(), exc_info=error)


def configure_logging(level: int = logging.INFO) -> None:
    """Send every log line of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "alembic", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
