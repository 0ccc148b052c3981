"""The command line without any server: what it needs, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.api.transformations import TrainingOptions
from service.cli.commands import main
from service.embedded.addresses import Address
from tests.scripted_service import ScriptedService
from tests.served import free_port

JOB: dict[str, Any] = {
    **dict.fromkeys(("error", "finished_at", "generation", "request", "result", "upgrade")),
    "id": 7,
    "kind": "training",
    "state": "queued",
    "speed": 1.0,
    "progress": {},
    "created_at": "2026-01-01T00:00:00Z",
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "INDEX_URL"):
        monkeypatch.delenv(f"GALLERY_{name}", raising=False)


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def run_apart(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own: without its refusal it would take ours over."""
    command = [sys.executable, "-m", "service.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", ["api", "migrate"])
def test_a_part_alone_names_the_variables_that_it_lacks(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    neither = invoke(command)
    monkeypatch.setenv("GALLERY_DATABASE_URL", "postgresql://nowhere/x")
    one = invoke(command)

    assert (neither.exit_code, one.exit_code) == (2, 2)
    assert "set GALLERY_DATABASE_URL and GALLERY_BROKER_URL, or use `gallery-upgrade serve`" in neither.stderr
    assert "set GALLERY_BROKER_URL, or use" in one.stderr


def test_a_worker_alone_is_refused_likewise() -> None:
    refused = run_apart("worker")

    assert refused.returncode == 2
    assert "set GALLERY_DATABASE_URL and GALLERY_BROKER_URL" in refused.stderr


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_data_folder_that_is_a_file_is_refused_with_a_sentence(below: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")

    refused = run_apart("serve", "--port", str(free_port()), "--data", str(file / below))

    assert refused.returncode == 1
    assert f"gallery-upgrade: Nothing can be kept in the data folder {file}" in refused.stderr
    assert "Choose another --data." in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_printed_document_is_the_one_in_the_repository() -> None:
    printed = invoke("openapi")

    assert printed.exit_code == 0
    assert printed.stdout == (Path(__file__).parents[3] / "docs" / "openapi.json").read_text()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("::", "http://[::]:80"),
        ("a.b", "http://a.b:80"),
    ],
)
def test_the_address_that_serve_prints_can_be_opened(host: str, url: str) -> None:
    assert Address(host, 80).url() == url


def test_an_api_with_a_certificate_is_asked_over_tls() -> None:
    address = Address("0.0.0.0", 8443, Path("chain.pem"), Path("key.pem"))

    assert address.url("127.0.0.1") == "https://127.0.0.1:8443"
    assert address.options == [
        *("--host", "0.0.0.0", "--port", "8443"),
        *("--ssl-certfile", "chain.pem", "--ssl-keyfile", "key.pem"),
    ]


def test_a_training_has_the_options_that_rest_takes(service: ScriptedService) -> None:
    service.will_answer(202, JOB)
    options = {"recipe": "paper", "epochs": 3, "seed": 1, "batch": 64, "learning_rate": 0.25, "weight_decay": 0.0}
    options |= {"inner_dim": 32, "task": "instance"}
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]

    wanted = ["--url", service.url, "--from", "v1", "--to", "v2", "--dataset", "d", "--no-wait"]
    asked = invoke("train", *wanted, *given)

    assert asked.exit_code == 0, asked.output
    assert json.loads(service.asked[0][2])["options"] == options
    assert TrainingOptions.model_validate(options).model_dump(exclude_unset=True) == options


def test_serve_refuses_milvus_lite_before_it_starts_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GALLERY_INDEX_URL", "vectors.db")

    refused = run_apart("serve", "--data", str(tmp_path / "data"), "--port", str(free_port()))

    assert refused.returncode == 1
    assert "run `milvus-lite server --data-dir vectors.db` and set GALLERY_INDEX_URL" in refused.stderr
    assert not (tmp_path / "data").exists()


def test_several_processes_refuse_a_file_that_one_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATABASE_URL": "postgresql://nowhere/x",
        "BROKER_URL": "memory://",
        "INDEX_URL": "v.db",
    }.items():
        monkeypatch.setenv(f"GALLERY_{name}", value)

    refused = run_apart("api", "--processes", "2")

    assert refused.returncode == 2
    assert "Milvus Lite opens a file in one process" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "http://localhost", "--from", "v1", "--to", "v2"],
        ["--url", "http://localhost", "--from", "v1", "--to", "v2", "--pairs", __file__, "--dataset", "photos"],
        ["--url", "http://localhost", "--from", "v1", "--to", "v2", "--pairs", "/nowhere.parquet"],
        ["--url", "http://localhost", "--from", "v1", "--to", "v2", "--dataset", "photos", "--epochs", "0"],
        ["--url", "http://localhost", "--from", "v1", "--dataset", "photos"],
    ],
    ids=["no source", "two sources", "no such file", "no epochs", "no version to lead to"],
)
def test_a_training_that_is_not_asked_for_rightly_is_a_mistake_of_the_command_line(arguments: list[str]) -> None:
    assert invoke("train", *arguments).exit_code == 2
