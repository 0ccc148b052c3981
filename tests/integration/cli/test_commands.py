"""Commands that work on a database of the operator's."""

from collections.abc import Iterator

import psycopg
import pytest
from typer.testing import CliRunner

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
