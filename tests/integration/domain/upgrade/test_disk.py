"""Space on disk is looked at before an upgrade begins."""

from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient


def test_an_upgrade_that_the_disk_cannot_hold_is_refused(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))

    refused = gallery.post("/v1/galleries/g/upgrades", json={"to_version": "v2"})

    assert refused.status_code == 507
    assert "GiB" in refused.json()["detail"]
    assert gallery.get("/v1/galleries/g/upgrades").json()["items"] == []
