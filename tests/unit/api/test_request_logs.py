"""Lines of the log say which gallery, upgrade or job their request is about."""

import logging

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.fakes import connectionless_parts


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/galleries/cats", "gallery='cats'"),
        ("/v1/upgrades/7", "upgrade_id='7'"),
        ("/v1/backfills/7", "backfill_id='7'"),
        ("/v1/jobs/7", "job_id='7'"),
    ],
)
def test_a_failure_is_logged_with_what_its_request_was_about(
    path: str, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(allowed_hosts="testserver"))
    app.state.parts = connectionless_parts()  # every request that needs the database fails

    with caplog.at_level(logging.INFO):
        TestClient(app, raise_server_exceptions=False).get(path, headers={"X-Request-ID": "asked"})

    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.api.problems"]
    assert line == f"request.failed path='{path}' {named} request_id=asked"


def test_a_model_version_is_no_gallery(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings(allowed_hosts="testserver"))
    app.state.parts = connectionless_parts()

    with caplog.at_level(logging.INFO):
        TestClient(app, raise_server_exceptions=False).get("/v1/model-versions/v1")

    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.api.problems"]
    assert "gallery" not in line
