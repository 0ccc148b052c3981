"""Settings: read from `GALLERY_` variables, checked, and handed on to other processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.settings import Quotas, Settings


def test_a_variable_with_the_prefix_is_read_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALLERY_BATCH_ITEMS", "12")
    monkeypatch.setenv("LEASE_SECONDS", "99")

    settings = Settings()

    assert (settings.batch_items, settings.lease_seconds) == (12, 30.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_items": 0},
        {"lease_seconds": 0},
        {"retry_base_seconds": -1},
        {"precision": "float16"},
        {"queries_at_once": 37},  # of the 40 threads that answer requests
        {"shadow_share": 1.01},
        {"shadow_per_second": 0},
        {"index_url": "milvus:19530"},
        {"index_url": "http://"},
        {"trusted_proxies": "a.proxy"},
        {"quotas": {"item": 3}},
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong

    with pytest.raises(ValidationError, match=name):
        Settings(**wrong)


def test_a_refused_url_is_not_told_with_its_password() -> None:
    with pytest.raises(ValidationError) as refusal:
        Settings(index_url="tcp://user:secret@milvus:19530")

    assert "secret" not in str(refusal.value)


def test_blobs_are_below_the_data_folder_unless_they_have_a_url_of_their_own(tmp_path: Path) -> None:
    data = tmp_path / "somewhere" / ".." / "data"

    assert Settings(data=data).blob_location == f"file://{tmp_path / 'data' / 'blobs'}"
    assert Settings(data=data, blob_url="s3://bucket/x").blob_location == "s3://bucket/x"


def test_another_process_builds_equal_settings_from_the_variables(tmp_path: Path) -> None:
    settings = Settings(
        data=tmp_path,
        database_url="postgresql://h/d?x=1&y=%41",
        trust_torchscript=True,
        lease_seconds=0.1,
        device="cuda",
        quotas=Quotas(items=3),
        tenant_quotas={"acme": Quotas(searches_per_second=2)},
    )
    program = "from service.settings import Settings; print(Settings().model_dump_json())"

    built = subprocess.run(
        [sys.executable, "-c", program], env=settings.environment(), capture_output=True, text=True, check=True
    )

    assert json.loads(built.stdout) == settings.model_dump(mode="json")


@pytest.mark.parametrize(
    ("host", "settings", "needed"),
    [
        ("127.0.0.1", {}, False),
        ("127.8.9.1", {}, False),
        ("::1", {}, False),
        ("localhost", {}, False),
        ("0.0.0.0", {}, True),
        ("::", {}, True),
        ("10.0.0.1", {}, True),
        ("localhost.example", {}, True),
        ("127.0.0.1", {"trusted_proxies": "127.0.0.1"}, True),
        ("127.0.0.1", {"auth": "on"}, True),
        ("0.0.0.0", {"auth": "off"}, False),
    ],
)
def test_without_a_key_nobody_is_served_but_who_is_on_the_machine(
    host: str, settings: dict[str, Any], needed: bool
) -> None:
    assert Settings(**settings).needs_keys(host) == needed


def test_a_key_that_is_none_is_refused_and_not_shown() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(admin_key="gu_a-secret-that-was-cut")

    assert "admin_key" in str(refused.value)
    assert "a-secret" not in str(refused.value)
    assert "a-secret" not in repr(Settings.model_construct(admin_key="a-secret"))
