"""The audit on the command line: it says whether the chain is whole, and prunes it."""

import re

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from service.audit import Act, Subject, record
from service.cli.commands import main
from service.db import Database


@pytest.fixture(autouse=True)
def three_entries(database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALLERY_DATABASE_URL", database_url)
    monkeypatch.setenv("GALLERY_BROKER_URL", "memory://")
    with database.session_scope() as session:
        for number in range(3):
            record(session, Act.GALLERY_CREATED, Subject("gallery", f"g{number}"))


def audit(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["audit", *arguments])


def tamper(database: Database, statement: str) -> None:
    with database.session_scope() as session:
        session.execute(text("ALTER TABLE audit DISABLE TRIGGER USER"))
        session.execute(text(statement))


def head() -> str:
    found = re.search("[0-9a-f]{64}", audit("verify").stdout)
    assert found is not None
    return found[0]


def test_a_whole_chain_is_counted_and_its_head_printed() -> None:
    found = audit("verify")

    assert found.exit_code == 0
    assert "3 entries are as they were written" in found.stdout
    assert audit("verify", "--head", head()).exit_code == 0


def test_an_entry_that_was_changed_is_named(database: Database) -> None:
    tamper(database, "UPDATE audit SET subject = 'other' WHERE id = 2")

    found = audit("verify")

    assert found.exit_code == 1
    assert "Entry 2 (gallery.created) is not what was written" in found.stderr


def test_a_cut_is_seen_by_the_head(database: Database) -> None:
    kept = head()
    tamper(database, "DELETE FROM audit WHERE id = 3")

    assert audit("verify").exit_code == 0
    found = audit("verify", "--head", kept)

    assert found.exit_code == 1
    assert "cut off" in found.stderr


def test_pruning_leaves_a_whole_chain() -> None:
    pruned = audit("prune", "--before", "2999-01-01")

    assert pruned.exit_code == 0, pruned.output
    assert "removed 2 entries" in pruned.stdout
    assert "2 entries are as they were written" in audit("verify").stdout
