"""Nobody can change what the audit says without its being seen, and it says of every act that it was done."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from service import identity, logs
from service.audit import Act, Subject, Verified, Wanted, head_of, list_entries, prune, record, verify
from service.db import Database
from service.tables import AuditEntry

GALLERY = Subject("gallery", "g")


def add_entries(database: Database, count: int) -> None:
    for number in range(count):
        with database.session_scope() as session:
            record(session, Act.GALLERY_CHANGED, GALLERY, before={"n": number}, after={"n": number + 1}, reason="é")


def verified(database: Database, head: str | None = None) -> Verified:
    with database.session_scope(snapshot=True) as session:
        return verify(session, head)


def tamper(database: Database, *statements: str) -> None:
    """Change entries as somebody may who owns the database."""
    with database.session_scope() as session:
        for statement in ("ALTER TABLE audit DISABLE TRIGGER USER", *statements):
            session.execute(text(statement))


def test_an_entry_says_who_did_what_with_which_request(database: Database) -> None:
    who = identity.Identity("k1234567", "ann", "acme", frozenset({"admin"}))
    tokens = identity.current.set(who), logs.request_id.set("r-1")
    with database.session_scope() as session:
        record(session, Act.GALLERY_CHANGED, GALLERY, before={"index": "auto"}, after={"index": "flat"}, reason="why")
    identity.current.reset(tokens[0])
    logs.request_id.reset(tokens[1])

    with database.session_scope() as session:
        (entry,) = list_entries(session, Wanted(tenant="acme"), 0, 10)
    assert (entry.key_id, entry.name, entry.tenant, entry.request_id) == ("k1234567", "ann", "acme", "r-1")
    assert (entry.action, entry.subject_kind, entry.subject) == ("gallery.changed", "gallery", "g")
    assert (entry.before, entry.after, entry.reason) == ({"index": "auto"}, {"index": "flat"}, "why")


def test_without_keys_the_actor_is_a_dash(database: Database) -> None:
    add_entries(database, 1)

    with database.session_scope() as session:
        (entry,) = session.scalars(select(AuditEntry)).all()
    assert (entry.key_id, entry.name, entry.request_id) == (None, "-", "-")


def test_a_chain_that_is_as_it_was_written_is_whole(database: Database) -> None:
    add_entries(database, 5)

    found = verified(database)

    assert (found.entries, found.fault) == (5, None)
    with database.session_scope() as session:
        assert found.head == head_of(session)


@pytest.mark.parametrize("statement", ["UPDATE audit SET name = 'x'", "DELETE FROM audit", "TRUNCATE audit"])
def test_the_database_refuses_to_change_entries(database: Database, statement: str) -> None:
    add_entries(database, 1)

    with pytest.raises(DBAPIError, match="never changed or removed"), database.session_scope() as session:
        session.execute(text(statement))


TAMPERED = {
    "edited": (["UPDATE audit SET reason = 'another' WHERE id = 3"], "Entry 3 "),
    "edited before": (["UPDATE audit SET before = NULL WHERE id = 3"], "Entry 3 "),
    "moved in time": (["UPDATE audit SET at = at + interval '1 microsecond' WHERE id = 3"], "Entry 3 "),
    "given to another": (["UPDATE audit SET name = 'bob' WHERE id = 3"], "Entry 3 "),
    "deleted": (["DELETE FROM audit WHERE id = 3"], "what was 3 is missing"),
    "deleted and closed": (
        ["DELETE FROM audit WHERE id = 3", "UPDATE audit SET id = id - 1 WHERE id > 3"],
        "Entry 3 ",
    ),
    "deleted at the start": (["DELETE FROM audit WHERE id <= 2"], "what was 1 to 2 is missing"),
    "reordered": (
        [
            "UPDATE audit SET id = 100 WHERE id = 3",
            "UPDATE audit SET id = 3 WHERE id = 4",
            "UPDATE audit SET id = 4 WHERE id = 100",
        ],
        "Entry 3 ",
    ),
    "inserted": (
        ["INSERT INTO audit SELECT 6, at, key_id, name, tenant, action, subject_kind, subject, request_id, before,"
         " after, reason, hash FROM audit WHERE id = 5"],
        "Entry 6 ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", TAMPERED)
def test_the_first_entry_that_is_not_as_it_was_is_named(database: Database, how: str) -> None:
    statements, fault = TAMPERED[how]
    add_entries(database, 5)

    tamper(database, *statements)

    found = verified(database)
    assert found.fault is not None
    assert fault in found.fault


def test_a_cut_at_the_end_is_seen_by_a_hash_that_was_kept_elsewhere(database: Database) -> None:
    add_entries(database, 5)
    head = verified(database).head
    tamper(database, "DELETE FROM audit WHERE id > 3")

    assert verified(database).fault is None
    found = verified(database, head)

    assert found.fault is not None
    assert "after entry 3" in found.fault


def test_a_hash_that_was_kept_earlier_is_still_in_the_chain(database: Database) -> None:
    add_entries(database, 2)
    head = verified(database).head
    add_entries(database, 2)

    assert verified(database, head).fault is None


def test_many_writers_at_once_make_one_chain(database: Database) -> None:
    together = threading.Barrier(4)

    def write() -> None:
        together.wait()
        add_entries(database, 10)

    with ThreadPoolExecutor(4) as threads:
        for written in [threads.submit(write) for _ in range(4)]:
            written.result()

    found = verified(database)
    assert (found.entries, found.fault) == (40, None)


def test_what_is_rolled_back_has_no_entry(database: Database) -> None:
    with database.session_scope() as session:
        record(session, Act.GALLERY_CHANGED, GALLERY)
        session.rollback()

    assert verified(database).entries == 0


def test_a_savepoint_within_a_transaction_writes_nothing_by_itself(database: Database) -> None:
    with database.session_scope() as session:
        record(session, Act.GALLERY_CHANGED, GALLERY)
        with session.begin_nested():
            session.execute(text("SELECT 1"))
        assert session.scalar(text("SELECT count(*) FROM audit")) == 0

    assert verified(database).entries == 1


AUDIT_POINT = "audit.appended"
_DYING = """
import sys
from sqlalchemy import text
from service import crash_points
from service.db import Database, create_database_engine
from service.audit import Act, Subject, record
crash_points.arm(sys.argv[2])
with Database(create_database_engine(sys.argv[1]), None).session_scope() as session:
    session.execute(text("INSERT INTO jobs (kind, state) VALUES ('index_build', 'running')"))
    record(session, Act.JOB_CANCELLED, Subject("job", 1))
"""


@pytest.mark.chaos
def test_a_death_between_the_entry_and_the_commit_leaves_neither_act_nor_entry(
    database: Database, database_url: str
) -> None:
    add_entries(database, 1)

    died = subprocess.run([sys.executable, "-c", _DYING, database_url, AUDIT_POINT], check=False)

    assert died.returncode == 137
    with database.session_scope() as session:
        assert session.scalar(text("SELECT count(*) FROM jobs")) == 0
    add_entries(database, 1)
    assert verified(database) == Verified(2, verified(database).head)


def test_pruning_leaves_a_chain_that_goes_on_from_what_was_removed(database: Database) -> None:
    add_entries(database, 4)
    with database.session_scope() as session:
        removed = prune(session, datetime.now(UTC) + timedelta(days=1))
    add_entries(database, 1)

    found = verified(database)

    assert removed == 3
    assert (found.entries, found.fault) == (3, None)
    with database.session_scope() as session:
        (entry,) = list_entries(session, Wanted("default", action="audit.pruned"), 0, 10)
    assert entry.after is not None
    assert (entry.after["through"], entry.after["entries"]) == (3, 3)
    tamper(database, "DELETE FROM audit WHERE id = 4")
    assert "what was 4 is missing" in (verified(database).fault or "")


def test_pruning_removes_nothing_that_is_newer(database: Database) -> None:
    add_entries(database, 2)

    with database.session_scope() as session:
        assert prune(session, datetime.now(UTC) - timedelta(days=1)) == 0

    assert verified(database).entries == 2


def test_entries_are_found_by_action_subject_and_time(database: Database) -> None:
    add_entries(database, 1)
    with database.session_scope() as session:
        record(session, Act.FINALIZE, Subject("upgrade", 7))
    now, day = datetime.now(UTC), timedelta(days=1)

    def found(**wanted: object) -> list[str]:
        with database.session_scope() as session:
            entries = list_entries(session, Wanted("default", **wanted), 0, 10)  # type: ignore[arg-type] # any filter
            return [entry.action for entry in entries]

    assert found() == ["gallery.changed", "upgrade.finalized"]
    assert found(action="upgrade.finalized") == ["upgrade.finalized"]
    assert found(subject_kind="upgrade", subject="7") == ["upgrade.finalized"]
    assert found(subject="8") == []
    assert found(since=now - day, until=now + day) == ["gallery.changed", "upgrade.finalized"]
    assert found(until=now - day) == found(since=now + day) == []


def test_text_that_is_nowhere_stored_is_no_filter(client: TestClient) -> None:
    for query in ("subject=%00", "subject_kind=a%00b", "action=%00"):
        answer = client.get(f"/v1/audit?{query}")

        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), query
