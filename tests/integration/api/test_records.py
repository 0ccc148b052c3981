"""The record of an upgrade names all that it was made by, and can be verified without the service."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner, Result

from service.app import create_app
from service.audit import head_of
from service.cli.commands import main
from service.settings import Settings
from service.signatures import Signer
from tests.problems import check_problem
from tests.scenario import create_upgradable_gallery, import_vectors, start_upgrade
from tests.working import cut_over, run_until
from workers.app import WorkerParts

SIGNER = Signer.new()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"signing_key": SIGNER.to_text()})


@pytest.fixture
def record(client: TestClient, worker: WorkerParts) -> dict[str, Any]:
    """The record of an upgrade that is live, by a cutover that somebody asked for."""
    create_upgradable_gallery(client)
    import_vectors(client, ["a", "b", "c"])
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    cut_over(client, worker, upgrade_id)
    answer = client.get(f"/v1/upgrades/{upgrade_id}/record")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def verify(tmp_path: Path, document: Any, public_key: str = SIGNER.public_key) -> Result:
    file = tmp_path / "record.json"
    file.write_text(json.dumps(document))
    return CliRunner().invoke(main, ["record", "verify", str(file), "--public-key", public_key])


def test_it_names_networks_reports_counts_events_and_who_decided(
    client: TestClient, worker: WorkerParts, record: dict[str, Any]
) -> None:
    content = record["record"]

    versions = {version["name"]: version for version in client.get("/v1/model-versions").json()["items"]}
    for side, name in (("from", "v1"), ("to", "v2")):
        assert content[side]["model_version"]["name"] == name
        digest = content[side]["model_version"]["embedding_model_sha256"]
        assert digest in json.dumps(versions[name])
    (leg,) = content["path"]
    assert all(len(leg["transformations"][0][network]) == 64 for network in ("h_sha256", "g_sha256"))
    assert (content["counts"]["items"], content["counts"]["rows_transformed"]) == (3, 3)
    assert [event["state"] for event in content["events"]][-1] == content["upgrade"]["state"] == "live"
    assert (content["decision"]["by"], content["decision"]["asked_by"]["name"]) == ("request", "-")
    assert [report["number"] for report in content["reports"]] == [1]
    assert len(content["to"]["index"]["sha256"]) == 64
    assert [entry["action"] for entry in content["audit"]["entries"]] == ["upgrade.opened", "upgrade.cut_over"]
    with worker.database.session_scope() as session:
        assert content["audit"]["head"] == head_of(session)


def test_it_is_verified_without_service_and_database(
    client: TestClient, record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GALLERY_DATABASE_URL", raising=False)
    public_key = client.get("/v1/signing-key").json()["public_key"]

    found = verify(tmp_path, record, public_key)

    assert found.exit_code == 0, found.output
    assert "the record of upgrade 1 of gallery g, live" in found.stdout


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the paths of all values in a record."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from leaves(child, (*path, key))


def test_no_value_of_it_can_be_changed_or_left_out(record: dict[str, Any], tmp_path: Path) -> None:
    paths = list(leaves(record["record"]))

    for path in [*paths[:5], *paths[5::7]]:
        for change in ("changed", "removed"):
            forged = copy.deepcopy(record)
            place = forged["record"]
            for key in path[:-1]:
                place = place[key]
            if change == "changed":
                place[path[-1]] = "another"
            else:
                del place[path[-1]]
            found = verify(tmp_path, forged)
            assert found.exit_code == 1, path
            assert "changed since it was signed" in found.stderr


def test_what_is_no_record_or_of_another_key_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    other = verify(tmp_path, record, Signer.new().public_key)
    unsigned = verify(tmp_path, {**record, "signature": None})
    nothing = verify(tmp_path, [])

    assert [each.exit_code for each in (other, unsigned, nothing)] == [1, 1, 1]
    assert "another key" in other.stderr
    assert "not signed" in unsigned.stderr
    assert "no record" in nothing.stderr


def test_without_a_key_it_is_given_unsigned_and_says_so(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"signing_key": None}))) as client:
        create_upgradable_gallery(client)
        import_vectors(client, ["a"])
        found = client.get(f"/v1/upgrades/{start_upgrade(client, 'v2')}/record").json()

        assert found["signature"] is None
        assert "GALLERY_SIGNING_KEY" in found["unsigned_because"]
        assert "GALLERY_SIGNING_KEY" in check_problem(client.get("/v1/signing-key"), 404)


def test_an_upgrade_that_is_not_there_has_no_record(client: TestClient) -> None:
    check_problem(client.get("/v1/upgrades/7/record"), 404)


def test_a_new_key_is_one_that_the_service_takes(tmp_path: Path) -> None:
    printed = CliRunner().invoke(main, ["record", "key"]).stdout

    private, public = (line.partition("=" if line.startswith("GALLERY") else ": ")[2] for line in printed.splitlines())
    assert Signer.of(Settings(signing_key=private).signing_key or "").public_key == public
