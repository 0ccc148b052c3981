"""What the rows of upgrades keep of how they go live."""

from typing import Any

import pytest

from service.domain.decision import Decision
from service.domain.verdict import Verdict
from service.identity import Actor

AUTO = {"by": "auto", "reason": None, "report": 2, "verdict": "pass"}
ACTOR = {"key_id": None, "name": "-", "tenant": "default", "request_id": "r"}
ASKED = {"by": "request", "reason": "we want it", "report": None, "asked_by": ACTOR, "asked_at": "2026-01-02T03:04:05"}


@pytest.mark.parametrize(
    ("row", "decision"),
    [
        (AUTO, Decision("auto", None, 2, Verdict.PASS)),
        (ASKED, Decision("request", "we want it", None, None, Actor(None, "-", "default", "r"), "2026-01-02T03:04:05")),
    ],
    ids=["auto", "asked"],
)
def test_a_decision_is_read_and_written_with_the_keys_of_the_row(row: dict[str, Any], decision: Decision) -> None:
    assert Decision.from_json(row) == decision
    assert decision.to_json() == row


def test_an_audit_has_the_actor_and_the_reason_apart() -> None:
    assert Decision.from_json(ASKED).audited() == {"by": "request", "report": None, "asked_at": "2026-01-02T03:04:05"}
