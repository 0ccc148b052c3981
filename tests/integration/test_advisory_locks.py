"""Advisory locks: who excludes whom, in both ways of holding one."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import pytest
from sqlalchemy import text

from service.advisory_locks import AdvisoryLock, hold, hold_if_free, idempotency_lock
from service.db import Database
from tests.served import wait_for

LOCK = AdvisoryLock.UPGRADE_STATE
Way = Callable[[Database, AdvisoryLock, int], AbstractContextManager[bool]]


@contextmanager
def by_waiting(database: Database, lock: AdvisoryLock, id_: int) -> Iterator[bool]:
    with database.session_scope() as session:
        hold(session, lock, id_)
        yield True


@contextmanager
def in_a_transaction(database: Database, lock: AdvisoryLock, id_: int) -> Iterator[bool]:
    with database.session_scope() as session:
        yield hold_if_free(session, lock, id_)


def on_a_connection(database: Database, lock: AdvisoryLock, id_: int) -> AbstractContextManager[bool]:
    return database.advisory_lock(lock, id_)


WAYS: list[Way] = [by_waiting, in_a_transaction, on_a_connection]
ASKING: list[Way] = [in_a_transaction, on_a_connection]


def is_free(database: Database, lock: AdvisoryLock, id_: int) -> bool:
    with database.advisory_lock(lock, id_) as held:
        return held


def waiting(database: Database) -> int:
    """Return how many sessions wait for an advisory lock of this database."""
    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with database.reading() as connection:
        count: int = connection.execute(text(query)).scalar_one()
        return count


def test_every_lock_has_a_number_of_its_own() -> None:
    names = list(AdvisoryLock.__members__)

    distinct = [lock.name for lock in AdvisoryLock]  # a second name of a number is not among them

    assert distinct == names


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", ASKING)
@pytest.mark.parametrize("id_", [0, 7, 2**31 - 1, 2**31, 2**31 + 7, 2**62])
def test_a_lock_is_held_by_one_at_a_time_and_is_free_afterwards(
    database: Database, first: Way, second: Way, id_: int
) -> None:
    with first(database, LOCK, id_) as held, second(database, LOCK, id_) as meanwhile:
        pass

    with second(database, LOCK, id_) as afterwards:
        assert (held, meanwhile, afterwards) == (True, False, True)


@pytest.mark.parametrize("way", WAYS)
def test_a_lock_is_free_after_a_failure(database: Database, way: Way) -> None:
    with pytest.raises(KeyError), way(database, LOCK, 7):
        raise KeyError

    assert is_free(database, LOCK, 7)


@pytest.mark.parametrize("way", WAYS)
def test_locks_of_other_things_and_other_locks_of_the_thing_stay_free(database: Database, way: Way) -> None:
    others = [lock for lock in AdvisoryLock if lock is not LOCK]

    with way(database, LOCK, 7):
        same_thing = [is_free(database, lock, 7) for lock in others]
        other_things = [is_free(database, LOCK, id_) for id_ in (0, 6, 8)]

    assert all(same_thing)
    assert all(other_things)


def test_those_who_share_a_lock_do_not_exclude_each_other_but_who_wants_it_alone(database: Database) -> None:
    with database.session_scope() as first, database.session_scope() as second:
        hold(first, LOCK, 7, shared=True)
        hold(second, LOCK, 7, shared=True)
        beside_both = is_free(database, LOCK, 7)
        first.commit()
        beside_one = is_free(database, LOCK, 7)

    assert (beside_both, beside_one) == (False, False)
    assert is_free(database, LOCK, 7)


@pytest.mark.parametrize("shared", [False, True])
def test_who_holds_waits_until_nobody_has_the_lock_alone(database: Database, shared: bool) -> None:
    def wait() -> bool:
        with database.session_scope() as session:
            hold(session, LOCK, 7, shared=shared)
            return is_free(database, LOCK, 7)

    with ThreadPoolExecutor() as threads:
        with database.advisory_lock(LOCK, 7):
            waiter = threads.submit(wait)
            wait_for(lambda: waiting(database) == 1)
            done_meanwhile = waiter.done()
        free_beside_the_waiter = waiter.result()

    assert (done_meanwhile, free_beside_the_waiter) == (False, False)


def test_a_lock_that_gets_free_within_the_wait_is_held(database: Database) -> None:
    def wait() -> bool:
        with database.advisory_lock(LOCK, 7, wait_seconds=600.0) as held:
            return held

    with ThreadPoolExecutor() as threads:
        with database.advisory_lock(LOCK, 7):
            waiter = threads.submit(wait)
            done_meanwhile = waiter.done()

        assert (done_meanwhile, waiter.result()) == (False, True)


def test_a_running_request_has_a_lock_by_its_key_and_its_path() -> None:
    pairs = [("a", "/v1/galleries"), ("b", "/v1/galleries"), ("a", "/v1/keys"), ("a/v1", "/galleries"), ("", "")]

    numbers = [idempotency_lock(key, path) for key, path in pairs]

    assert len(set(numbers)) == len(pairs)
    assert all(-(2**63) <= number < 2**63 for number in numbers)
    assert numbers == [idempotency_lock(key, path) for key, path in pairs]
