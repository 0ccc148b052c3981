"""What each action on an upgrade of another store would do, said from rows: the same are possible as the API takes, and
the numbers are those of the store and of its ranges."""

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.db import Database
from service.domain.consequences import Consequence
from service.domain.external.consequences import consequences_of
from service.domain.external.progress import describe_external_upgrades
from service.domain.external.upgrades import get_external_upgrade
from service.domain.external_state import ExternalAction
from tests.external_stores import key_of
from tests.external_upgrades import act, drawn, register_both, start, store_of_v1, work_until
from workers.app import WorkerParts

Found = dict[ExternalAction, Consequence[ExternalAction]]


def _consequences(database: Database, upgrade_id: int) -> Found:
    with database.session_scope() as session:
        (details,) = describe_external_upgrades(session, [get_external_upgrade(session, upgrade_id)])
        return {each.action: each for each in consequences_of(session, details)}


def _possible(found: Found) -> set[ExternalAction]:
    return {action for action, each in found.items() if each.is_possible}


@pytest.mark.parametrize("notices", [True, False])
def test_what_is_possible_follows_the_upgrade_and_says_numbers(
    client: TestClient, worker: WorkerParts, database: Database, path: Path, notices: bool
) -> None:
    register_both(client)
    store_of_v1(path, notices=notices)
    upgrade_id = start(client)

    planned = _consequences(database, upgrade_id)
    assert _possible(planned) == {ExternalAction.PAUSE, ExternalAction.CANCEL}
    assert "the new side with 0 rows written to it" in planned[ExternalAction.CANCEL].sentence
    assert planned[ExternalAction.CUTOVER].sentence.startswith("Not possible while it is planned: an upgrade is cut")

    act(client, upgrade_id, "pause")
    paused = _consequences(database, upgrade_id)
    assert _possible(paused) == {ExternalAction.RESUME, ExternalAction.CANCEL}

    act(client, upgrade_id, "resume")
    work_until(worker, client, upgrade_id, "ready")
    ready = _consequences(database, upgrade_id)
    assert _possible(ready) == {ExternalAction.CUTOVER, ExternalAction.CANCEL}
    assert "Searches of 30 rows of shop see v2" in ready[ExternalAction.CUTOVER].sentence
    assert ("Hold writes" in ready[ExternalAction.CUTOVER].sentence) is not notices
    assert "It is not judged" in ready[ExternalAction.CUTOVER].sentence
    assert "the new side with 30 rows written to it" in ready[ExternalAction.CANCEL].sentence

    act(client, upgrade_id, "cutover")
    asked = _consequences(database, upgrade_id)[ExternalAction.CUTOVER]
    assert (asked.is_possible, asked.sentence[:24]) == (False, "It is asked for already:")

    work_until(worker, client, upgrade_id, "live")
    live = _consequences(database, upgrade_id)
    assert _possible(live) == {ExternalAction.ROLLBACK, ExternalAction.FINALIZE}
    assert live[ExternalAction.ROLLBACK].may_lose is notices
    assert "the old side of shop: 30 rows of 6 numbers each" in live[ExternalAction.FINALIZE].sentence

    act(client, upgrade_id, "finalize")
    assert _possible(_consequences(database, upgrade_id)) == set()


def test_a_retry_counts_what_is_kept_and_what_was_refused(
    client: TestClient, worker: WorkerParts, database: Database, path: Path
) -> None:
    register_both(client)
    embedding, side = drawn(1)
    store_of_v1(path).put({key_of(11): (embedding[0] * np.nan, side[0])})
    upgrade_id = start(client)
    work_until(worker, client, upgrade_id, "failed")

    failed = _consequences(database, upgrade_id)

    assert _possible(failed) == {ExternalAction.RETRY, ExternalAction.CANCEL}
    sentence = failed[ExternalAction.RETRY].sentence
    assert sentence.startswith("It goes on transforming, with 1 range left; 4 finished ranges are kept. 1 range with")
