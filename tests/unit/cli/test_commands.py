"""The command line without any server: what it needs, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.commands import main
from tests.served import free_port


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "BROKER_URL", "INDEX_URL"):
        monkeypatch.delenv(f"GALLERY_{name}", raising=False)


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


def test_the_printed_document_is_the_one_in_the_repository() -> None:
    printed = invoke("openapi")

    assert printed.exit_code == 0
    assert printed.stdout == (Path(__file__).parents[3] / "docs" / "openapi.json").read_text()


def test_serve_refuses_milvus_lite_before_it_starts_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GALLERY_INDEX_URL", "vectors.db")

    refused = run_apart("serve", "--data", str(tmp_path / "data"), "--port", str(free_port()))

    assert refused.returncode == 1
    assert "run `milvus-lite server --data-dir vectors.db` and set GALLERY_INDEX_URL" in refused.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--server", "http://localhost", "--from", "v1", "--to", "v2"],
        ["--server", "http://localhost", "--from", "v1", "--to", "v2", "--pairs", __file__, "--dataset", "photos"],
        ["--server", "http://localhost", "--from", "v1", "--to", "v2", "--pairs", "/nowhere.parquet"],
        ["--server", "http://localhost", "--from", "v1", "--to", "v2", "--dataset", "photos", "--epochs", "0"],
        ["--server", "http://localhost", "--from", "v1", "--dataset", "photos"],
    ],
    ids=["no source", "two sources", "no such file", "no epochs", "no version to lead to"],
)
def test_a_training_that_is_not_asked_for_rightly_is_a_mistake_of_the_command_line(arguments: list[str]) -> None:
    assert invoke("train-transformation", *arguments).exit_code == 2
