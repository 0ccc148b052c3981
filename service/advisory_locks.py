"""Every advisory lock of the database, in one list.

A lock is two numbers: one of these, and the id of what it is about; 0 where there is only one such thing. The lock of a
running request with an `Idempotency-Key` is one number of 64 bits instead, from `idempotency_lock`: PostgreSQL keeps
the two kinds apart. A crash frees every lock.
"""

import hashlib
from enum import IntEnum

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session


class AdvisoryLock(IntEnum):
    # Of an upgrade: batches in flight share it; a change of state has it alone, so it waits for them and they see it.
    UPGRADE_STATE = 724_061
    UPGRADE_STOP = 724_074  # of an upgrade: held alone by who asks for a pause or a cancel, until it is answered
    UPGRADE_PHASE = 724_062  # of an upgrade: one worker plans, builds or evaluates at a time
    TRAINING = 724_063  # of a job: one worker works on a training at a time
    REBUILD = 724_064  # one worker rebuilds an index at a time, so that the others are free
    COLLECTION = 724_065  # of a generation: one process fills its Milvus collection, or brings it along
    ALIAS = 724_066  # of a gallery: one process points its Milvus alias
    MIGRATION = 724_067  # two processes that start at once migrate one after the other
    # A registration shares it from before it stores blobs until its row has committed; who removes blobs has it alone,
    # and so never misses a row that is about to name one.
    BLOBS = 724_068
    TRAINING_FILES = 724_069  # the same for the files of trainings and the rows of their jobs
    BACKFILL_STATE = 724_070  # of a backfill: who encodes for it shares it, a change of state has it alone
    BACKFILL_STOP = 724_075  # of a backfill: as that of an upgrade
    AUDIT = 724_071  # one transaction at a time adds entries, as its last step, so that their chain has one end
    ERASURE = 724_072  # of a job: one worker works on an erasure at a time
    # Of an upgrade of another store: who works on a range shares it, a change of state has it alone.
    EXTERNAL_STATE = 724_076
    EXTERNAL_PHASE = 724_077  # of such an upgrade: one worker plans, begins a pass, judges, switches or cleans up
    # A tenant with a quota opens one upgrade at a time, as one of the last steps of its transaction.
    OPEN_UPGRADES = 724_078
    VERSION_NAMES = 724_073  # one model version takes a name at a time, since two kinds of names must differ


def key_of(lock: AdvisoryLock, id_: int = 0) -> dict[str, int]:
    """Return the lock's two numbers, as parameters `lock` and `id` of a statement."""
    return {"lock": lock.value, "id": id_ % 2**31}


def hold(session: Session, lock: AdvisoryLock, id_: int = 0, *, shared: bool = False) -> None:
    """Wait for a lock and hold it until the transaction ends, alone or shared."""
    function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    session.execute(text(f"SELECT {function}(:lock, :id)"), key_of(lock, id_))


def hold_if_free(session: Session, lock: AdvisoryLock, id_: int = 0) -> bool:
    """Hold a lock alone until the transaction ends, if nobody else does; return whether it is held."""
    return bool(session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock, :id)"), key_of(lock, id_)))


def is_asked_for(connection: Connection, lock: AdvisoryLock, id_: int = 0) -> bool:
    """Return whether somebody holds a lock alone."""
    statement = text("SELECT pg_try_advisory_xact_lock_shared(:lock, :id)")
    return not connection.scalar(statement, key_of(lock, id_))


def idempotency_lock(key: str, path: str) -> int:
    """Return the number of a running request's lock: 64 bits of a digest, since keys have no ids."""
    return int.from_bytes(hashlib.sha256(f"{path}\0{key}".encode()).digest()[:8], "big", signed=True)
