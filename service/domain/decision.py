"""On what verdict an upgrade goes live, here or of another store, and who wanted it; pure, no database."""

from dataclasses import dataclass
from typing import Any, Literal

from service.domain.verdict import Verdict
from service.identity import Actor
from service.json_records import JsonRecord

_LEFT_OUT = ("verdict", "asked_by", "asked_at")


@dataclass(frozen=True)
class Decision(JsonRecord):
    """An upgrade goes live `by` itself (`auto`) or by `request`: then `asked_by` is whose, and `asked_at` when, in ISO
    8601; `reason` says why past gates that failed. `report` is the number of the newest report then, None before the
    first one, and `verdict` what it said, None until that is asked."""

    by: Literal["auto", "request"]
    reason: str | None = None
    report: int | None = None
    verdict: Verdict | None = None
    asked_by: Actor | None = None
    asked_at: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object of its fields; what nobody said is left out."""
        values = super().to_json()
        return {name: value for name, value in values.items() if value is not None or name not in _LEFT_OUT}

    def audited(self) -> dict[str, Any]:
        """Return what an audit's entry says of it besides whose act it is, and its reason."""
        return {name: value for name, value in self.to_json().items() if name not in ("asked_by", "reason")}


BY_ITSELF = Decision("auto")
