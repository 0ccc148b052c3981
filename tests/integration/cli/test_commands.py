"""Commands that work on a database of the operator's."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from service.cli.commands import main
from tests.conftest import Servers, empty_database


@pytest.fixture
def empty(servers: Servers) -> Iterator[str]:
    with empty_database(servers) as url:
        yield url


def tables(url: str) -> set[str]:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        query = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        return {name for (name,) in connection.execute(query)}


def test_migrating_makes_the_tables_and_can_be_repeated(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALLERY_DATABASE_URL", empty)
    monkeypatch.setenv("GALLERY_BROKER_URL", "memory://")
    before = tables(empty)

    codes = [CliRunner().invoke(main, ["migrate"]).exit_code for _ in range(2)]

    assert before == set()
    assert codes == [0, 0]
    assert {"galleries", "items", "upgrades", "jobs", "alembic_version"} <= tables(empty)


@pytest.fixture
def migrated(database_url: str, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALLERY_DATABASE_URL", database_url)
    monkeypatch.setenv("GALLERY_BROKER_URL", servers.broker_url)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.usefixtures("migrated")
def test_no_address_of_others_is_listened_on_before_there_is_a_key() -> None:
    refused = invoke("api", "--host", "0.0.0.0")

    assert refused.exit_code == 2
    assert "gallery-upgrade keys create --scopes admin" in refused.stderr
    assert "GALLERY_ADMIN_KEY" in refused.stderr


@pytest.mark.usefixtures("migrated")
def test_a_key_is_made_listed_rotated_and_revoked(tmp_path: Path) -> None:
    made = invoke("keys", "create", "--scopes", "admin", "--name", "the first")
    key_id = made.stdout[3:11]
    spared = invoke("keys", "create", "--scopes", "admin", "--unless-any")
    rotated = invoke("keys", "rotate", key_id)
    revoked = invoke("keys", "revoke", key_id)
    listed = invoke("keys", "list")
    filed = invoke("keys", "create", "--scopes", "read", "--to", str(tmp_path / "key"))
    again = invoke("keys", "create", "--scopes", "read", "--to", str(tmp_path / "key"))
    wrong = invoke("keys", "create", "--scopes", "reed")

    assert re.fullmatch(r"gu_[a-z0-9]{8}_[A-Za-z0-9_-]{43}\n", made.stdout)
    assert spared.stdout == ""
    assert rotated.stdout[:12] != made.stdout[:12]
    assert revoked.exit_code == 0
    assert f"{key_id}  default  'the first'  admin on *  revoked" in listed.stdout
    assert made.stdout[12:-1] not in listed.stdout
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (filed.exit_code, again.exit_code, wrong.exit_code) == (0, 1, 1)
    assert "'read'" not in wrong.stderr
    assert "reed" in wrong.stderr
