"""`gallery-upgrade train` against a running service, whose worker trains."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.commands import main
from tests.paired_vectors import paired_columns, parquet
from tests.scenario import register_version
from tests.served import Served


@pytest.fixture
def versions(served: Served) -> Served:
    for version in ("v1", "v2"):
        register_version(served.client, version)
    return served


def train(served: Served, *arguments: str) -> Result:
    address = f"http://127.0.0.1:{served.port}"
    return CliRunner().invoke(main, ["train", "--url", address, "--from", "v1", *arguments])


def test_pairs_are_uploaded_and_trained_and_the_metrics_are_printed(versions: Served, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.parquet"
    pairs.write_bytes(parquet(paired_columns()))

    result = train(versions, "--to", "v2", "--pairs", str(pairs), "--with-g", "--epochs", "3", "--seed", "3")

    assert result.exit_code == 0, result.output
    transformation, metrics = result.stdout.split("\n", 1)
    shown = versions.client.get(f"/v1/transformations/{transformation.removeprefix('transformation ')}").json()
    assert json.loads(metrics) == shown["metrics"]
    assert shown["training"]["seed"] == 3
    assert shown["g_digest"] is not None
    assert (shown["training"]["recipe"], shown["training"]["options"]["epochs"]) == ("default", 3)


def test_a_refusal_is_printed_as_its_sentence(versions: Served) -> None:
    refused = train(versions, "--to", "v2", "--dataset", "photos")
    neither = train(versions, "--to", "v2")

    assert refused.exit_code == 1
    assert "has not set GALLERY_DATASETS" in refused.stderr
    assert neither.exit_code == 2
