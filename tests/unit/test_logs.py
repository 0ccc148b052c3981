"""Lines of the log: the event, its fields, what it is about and for whom, and never a secret."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service import identity
from service.identity import Identity
from service.logs import Events, LogFormat, about, about_nothing, configure_logging, request_id

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

SECRETS = {
    "a key": ("Authorization: Bearer gu_abcd1234_S3cr3tS3cr3t-_x", "S3cr3t"),
    "a key in a repr": ("{'api-key': 'gu_abcd1234_S3cr3tS3cr3t'}", "S3cr3t"),
    "a token": ("Authorization: Bearer eyJhbGciS3cr3t.x.y", "S3cr3t"),
    "the database's URL": ("postgresql+psycopg://gallery:S3cr3t@db.example/gallery", "S3cr3t"),
    "the database's words": ("host=db user=gallery password='S3cr3t' dbname=gallery", "S3cr3t"),
    "the broker's URL": ("Error connecting to redis://:S3cr3t@broker:6379/0.", "S3cr3t"),
    "the index's URL": ("http://root:S3cr3t@milvus.example:19530", "S3cr3t"),
    "the index's token": ("MilvusClient(uri='http://milvus', token='root:S3cr3t')", "S3cr3t"),
    "S3's URL": ("s3://AKIA:S3cr3t@bucket/cats", "S3cr3t"),
    "S3's key": ('{"aws_secret_access_key": "S3cr3t/x+y"}', "S3cr3t"),
    "a signed address": ("https://b.s3.example/k?X-Amz-Signature=S3cr3t&X-Amz-Credential=S3cr3t%2Fz&n=1", "S3cr3t"),
}


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, whose handlers are as before at the end."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def somebody() -> Iterator[None]:
    """A request with a key that is about a gallery."""
    who = Identity(key_id="abcd1234", name="ci", tenant="default", scopes=frozenset())
    token, asked = identity.current.set(who), request_id.set("asked-here")
    about(gallery="cats")
    yield
    about_nothing()
    identity.current.reset(token)
    request_id.reset(asked)


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


def test_an_event_says_for_which_key_and_gallery_it_is(somebody: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        events.info("search.repeated", reason="x")
        events.info("gallery.deleted", gallery="dogs")

    assert lines(caplog) == [
        "search.repeated reason='x' gallery='cats' key_id='abcd1234' request_id=asked-here",
        "gallery.deleted gallery='dogs' key_id='abcd1234' request_id=asked-here",
    ]


def test_a_line_of_json_has_the_fields_by_name(
    somebody: None, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("json")

    events.info("upgrade.batch_recorded", upgrade_id=3, shape=(2, 3))
    events.exception("request.failed", ValueError("no"), path="/v1")
    logging.getLogger("celery").warning("lost %s", "it")

    recorded, failed, of_library = map(json.loads, capsys.readouterr().err.splitlines())
    assert recorded.pop("timestamp").endswith("Z")
    assert recorded == {
        "event": "upgrade.batch_recorded",
        "level": "info",
        "logger": "tests.logs",
        "upgrade_id": 3,
        "shape": [2, 3],
        "gallery": "cats",
        "key_id": "abcd1234",
        "request_id": "asked-here",
    }
    assert (failed["path"], failed["level"], "ValueError: no" in failed["exception"]) == ("/v1", "error", True)
    assert (of_library["event"], of_library["logger"]) == ("lost it", "celery")


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("what", SECRETS)
def test_no_line_has_a_secret(
    what: str, log_format: LogFormat, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(log_format)
    text, secret = SECRETS[what]

    events.info("x.y", text=text)
    events.exception("x.y", ValueError(text))
    logging.getLogger("a.library").warning("%s", text)
    logging.getLogger("a.library").warning("%s", {"nested": {"text": text}})

    written = capsys.readouterr().err
    assert written.count("***") >= 4
    assert secret not in written


def test_a_line_of_json_stays_one_whatever_its_fields_are_called(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("json")

    events.info("x.y", tokens=3, claim_token=None, password="S3cr3t", nested=[{"api_key": "S3cr3t"}], other={1, 2})

    line = json.loads(capsys.readouterr().err)
    assert (line["tokens"], line["claim_token"], line["other"]) == (3, None, "{1, 2}")
    assert (line["password"], line["nested"]) == ("***", [{"api_key": "***"}])


def test_what_is_no_secret_stays(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()

    events.info("x.y", url="http://127.0.0.1:8000/v1/galleries/a:b@c", items=3, key_id="abcd1234", error="it broke: 12")

    written = capsys.readouterr().err
    assert "url='http://127.0.0.1:8000/v1/galleries/a:b@c' items=3 key_id='abcd1234' error='it broke: 12'" in written
