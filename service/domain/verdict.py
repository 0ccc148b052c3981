"""What a report says of an upgrade; pure, no database."""

from enum import StrEnum


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_JUDGED = "not_judged"  # there is no evidence by the new model; what else was measured did not fail
