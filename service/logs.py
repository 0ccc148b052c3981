"""Logging: dotted event names with ids as fields, one line each, as text or as JSON, and what the work is for.

Each line bears the id of the request that is served, those of its key and its trace, and the gallery, upgrade or job
that it is about (`about`), as far as there are such. A request's id travels with a task's message (`service.queue`),
and the worker takes it from there (`workers.tasks`), so that its lines bear the id of the request that asked for the
work. What nobody asked for, such as a sweep, bears none. No line has a secret: keys, passwords in URLs and signatures
are left out of whatever is written, tracebacks and lines of libraries too.
"""

import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict

from service import identity

NO_REQUEST = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)

LogFormat = Literal["text", "json"]
Fields = dict[str, object]

_NAMED = r"password|passwd|secret|token|api[-_]?key|signature|credential"
_IS_SECRET = re.compile(rf"(?i){_NAMED}")
_SECRETS = (
    (re.compile(r"\bgu_([A-Za-z0-9]{8})_[A-Za-z0-9_-]+"), r"gu_\1_***"),
    (re.compile(r"(?<=://)([^\s/:@'\"\\]*):[^\s/@'\"\\]+@"), r"\1:***@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 ***"),
    (
        re.compile(rf"(?i)([A-Za-z0-9_-]*(?:{_NAMED})[A-Za-z0-9_]*\\?['\"]?\s*[=:]\s*\\?['\"]?)[^\s'\"&,;)}}\\]+"),
        r"\1***",
    ),
)

_sources: list[Callable[[], Fields]] = []


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

    def _write(self, level: int, event: str, fields: Fields, error: Exception | None = None) -> None:
        if self._logger.isEnabledFor(level):
            fields = {**fields, **{name: value for name, value in _context().items() if name not in fields}}
            text = " ".join(f"{key}={value!r}" for key, value in fields.items())
            asked_by = request_id.get()
            extra = {"event_name": event, "event_fields": {**fields, "request_id": asked_by}}
            self._logger.log(level, "%s %s request_id=%s", event, text, asked_by, exc_info=error, extra=extra)


def about(**ids: object) -> None:
    """Have the lines of what is done from here on in this context name a gallery, an upgrade, a job."""
    structlog.contextvars.bind_contextvars(**ids)


def about_nothing() -> None:
    """Forget what `about` named."""
    structlog.contextvars.clear_contextvars()


def add_context(source: Callable[[], Fields]) -> None:
    """Have every line bear the fields that `source` gives when it is written."""
    _sources.append(source)


def _context() -> Fields:
    """Return what a line bears besides its own fields and the request's id."""
    fields: Fields = dict(structlog.contextvars.get_contextvars())
    key_id = identity.current.get().key_id
    if key_id is not None:
        fields["key_id"] = key_id
    for source in _sources:
        fields |= source()
    return fields


def without_secrets(text: str) -> str:
    """Return a text without the keys, passwords and signatures that stand in it."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _named(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Give an event its own name and fields, in the place of the line that they make."""
    record: logging.LogRecord = event["_record"]
    fields = getattr(record, "event_fields", None)
    return event if fields is None else {**event, "event": record.event_name, **fields}  # type: ignore[attr-defined]  # set beside event_fields


def _cleaned(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Leave secrets out of the texts of an event; the line of JSON would be none if they were left out of that."""
    return {name: _clean(name, value) for name, value in event.items()}


def _clean(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return "***" if _IS_SECRET.search(name) else without_secrets(value)
    if isinstance(value, Mapping):
        return {key: _clean(str(key), each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(name, each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else without_secrets(repr(value))


def _formatter(log_format: LogFormat) -> logging.Formatter:
    if log_format == "text":
        return _WithoutSecrets("%(asctime)s %(levelname)s %(name)s %(message)s")
    return ProcessorFormatter(
        processors=[
            _named,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.format_exc_info,
            ProcessorFormatter.remove_processors_meta,
            _cleaned,
            structlog.processors.JSONRenderer(),
        ]
    )


def configure_logging(log_format: LogFormat = "text", level: int = logging.INFO) -> None:
    """Send every log line of this process to standard error: as text, or as JSON, one object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(log_format))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "alembic", "fsspec", "aiobotocore", "botocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
