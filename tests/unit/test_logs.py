"""Lines of the log: the event, its fields, and the id of the request that is being served."""

import logging
import subprocess
import sys

import pytest

from service.logs import Events, request_id

events = Events("tests.logs")
_PROGRAM = """
import logging
from service.logs import Events, configure_logging

configure_logging()
configure_logging()
Events("service.x").info("a.b", id=1)
logging.getLogger("httpx").info("GET")
logging.getLogger("httpx").error("e")
"""


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tests.logs"]


def test_an_event_is_one_line_with_its_fields_and_without_a_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        events.info("upgrade.batch_recorded", upgrade_id=3, reason="two\nlines")

    assert lines(caplog) == ["upgrade.batch_recorded upgrade_id=3 reason='two\\nlines' request_id=-"]


def test_an_event_bears_the_id_of_the_request_that_is_served(caplog: pytest.LogCaptureFixture) -> None:
    token = request_id.set("asked-here")
    events.warning("index.gave_way")
    request_id.reset(token)
    events.warning("index.gave_way")

    assert [line.rsplit(" ", 1)[1] for line in lines(caplog)] == ["request_id=asked-here", "request_id=-"]


def test_a_failure_brings_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("no")

    events.exception("request.failed", error, path="/v1")

    (record,) = caplog.records
    assert (record.levelno, record.exc_info and record.exc_info[1]) == (logging.ERROR, error)


def test_what_is_below_the_level_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        events.info("replica.followed", gallery_id=1)

    assert lines(caplog) == []


def test_a_process_logs_to_standard_error_only_and_its_libraries_only_when_something_is_wrong() -> None:
    finished = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)

    ends = [line.split(" ", 2)[2] for line in finished.stderr.splitlines()]
    assert (finished.stdout, ends) == ("", ["INFO service.x a.b id=1 request_id=-", "ERROR httpx e"])
